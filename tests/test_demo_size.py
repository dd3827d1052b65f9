"""`make demo`: as long on a slow machine as on a fast one, by the commands that anybody would give."""

import sys

import tiny
import torch

from benchmarks import demo
from runtime.compute import Compute


def test_a_fast_machine_trains_more_than_a_slow_one_within_the_time():
    assert demo.size_for(0.01) == demo.Size(32, 4, 3, 2048)
    assert demo.size_for(100) == demo.Size(8, 1, 1, 256)
    sizes = [demo.size_for(0.01 * 1.1**n) for n in range(100)]
    assert sizes == sorted(sizes, key=lambda size: size.work, reverse=True)
    assert all(demo.size_for(step).work * step <= demo.TRAINING_SECONDS for step in (0.15, 0.3, 0.6, 1.2))


def test_the_demo_trains_scores_and_compares(tmp_path, monkeypatch, capsys):
    commands = []

    def call(*command):
        commands.append(command)
        (tmp_path / "out/2000-01-01").mkdir(parents=True, exist_ok=True)
        (tmp_path / "out/2000-01-01/report.html").touch()

    monkeypatch.setattr(demo, "call", call)
    monkeypatch.setattr(demo, "TIMED_STEPS", 1)
    monkeypatch.setattr(demo, "draw_comparison", lambda folder, people, device: folder / "picture.png")
    monkeypatch.setattr(demo, "size_for", lambda seconds: demo.SIZES[-1] if 0 < seconds < 60 else None)
    monkeypatch.setattr(demo.dataset, "load", lambda *_: tiny.data_set())
    monkeypatch.setattr(demo.compute, "choose", lambda *_: Compute(torch.device("cpu"), bf16=False))
    monkeypatch.setattr(sys, "argv", ["demo.py", f"--out={tmp_path / 'out'}", "--device=cpu", "--precision=fp32"])
    assert demo.main() == 0
    (train, *options), (predict, weights, *_) = commands
    assert (train, predict, weights) == ("train.py", "predict.py", tmp_path / "out/2000-01-01/vqvae.pth")
    assert {"--data=demo", "--limit-people=8", "--epochs=1", "--device=cpu", "--precision=fp32"} <= set(options)
    assert str(tmp_path / "out/2000-01-01/picture.png") in capsys.readouterr().out
