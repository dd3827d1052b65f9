"""The demo is as long on a slow machine as on a fast one, and runs the commands that anybody would."""

import sys

import pytest
import tiny
import torch

from benchmarks import demo
from runtime.compute import Compute
from training.settings import TrainSettings


def test_a_fast_machine_takes_all_a_slow_one_less_and_no_machine_nothing():
    assert demo.size_for(0.01) == demo.Size(32, 4, 3, 2048)
    assert demo.size_for(100) == demo.Size(8, 1, 1, 256)
    sizes = [demo.size_for(0.01 * 1.1**n) for n in range(100)]
    work = [size.work for size in sizes]
    assert work == sorted(work, reverse=True)
    for step in (0.15, 0.3, 0.6, 1.2):
        size = demo.size_for(step)
        assert demo.LEAST <= size.people <= demo.MOST
        assert size.work * step <= demo.TRAINING


def test_steps_are_timed_on_the_device_that_trains():
    settings = TrainSettings(width=8, blocks=1, depth=2, codebook_size=16)
    assert 0 < demo.seconds_of_a_step(tiny.data_set(), settings, Compute(torch.device("cpu"), bf16=False)) < 60


def test_the_commands_are_those_that_anybody_would_give(tmp_path, monkeypatch, capsys):
    commands = []

    def run(command):
        commands.append(list(command))
        (tmp_path / "out/2000-01-01").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(demo, "run", run)
    monkeypatch.setattr(demo, "show", lambda folder, size, device: folder / "picture.png")
    monkeypatch.setattr(demo, "seconds_of_a_step", lambda *_: 100.0)
    monkeypatch.setattr(demo.dataset, "load", lambda *_: tiny.data_set())
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["demo.py", f"--out={out}", "--device=cpu", "--precision=fp32"])
    assert demo.main() == 0
    how = ["--device=cpu", "--precision=fp32"]
    sizes = ["--limit-people", "8", "--epochs", "1"]
    sizes += ["--painter-slices", "256", "--painter-width", "16", "--painter-batch-size", "8"]
    sizes += ["--prior", "dcgan", "--prior-epochs", "1", "--prior-batch-size", "16"]
    assert commands == [
        ["train.py", "--data", "demo", *sizes, "--out", str(out), *how],
        ["predict.py", str(out / "2000-01-01/vqvae.pth"), "--samples", "16", *how],
    ]
    printed = capsys.readouterr().out
    assert "8 of 32 people, 1 epoch of the autoencoder, 1 of the prior" in printed
    assert str(out / "2000-01-01/picture.png") in printed


def test_a_command_that_fails_ends_the_demo(monkeypatch, tmp_path):
    with pytest.raises(demo.InputError, match=r"train\.py ended with exit status 2"):
        demo.run(["train.py", "--epochs", "0"])
