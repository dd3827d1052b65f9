"""Signals to stop: answered wherever the program is, and nothing is lost."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import cache

import pytest
import tiny
from conftest import ROOT

import train
from runtime import checkpoint
from training import figures


def start(*arguments: object, **environment: object) -> subprocess.Popen:
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in environment.items()}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, env=variables, **pipes)


def program(text: str) -> subprocess.Popen:
    """A program that has printed "ready" after the first lines of `text`."""
    process = start("-c", "import time\nfrom runtime.signals import StopSignals\n" + textwrap.dedent(text))
    assert process.stdout.readline() == "ready\n"
    return process


def test_the_first_is_printed_and_unwinds_the_program():
    process = program("""
        with StopSignals():
            try:
                print("ready", flush=True)
                time.sleep(60)
            finally:
                print("cleaned", flush=True)
    """)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("cleaned\n", "\nSIGINT: stopping\n")
    assert process.returncode == 130


def test_postponed_it_waits_for_the_block_and_is_printed_at_once():
    process = program("""
        with StopSignals() as signals:
            with signals.postponed():
                print("ready", flush=True)
                while not signals.received:
                    time.sleep(0.01)
                print("saved", flush=True)
            print("never", flush=True)
    """)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60) == ("saved\n", "\nSIGTERM: saving, then stopping\n")
    assert process.returncode == 143


def test_a_second_one_ends_the_program_but_not_a_repetition_of_the_first():
    process = program("""
        with StopSignals() as signals, signals.postponed():
            print("ready", flush=True)
            while not signals.received:
                time.sleep(0.01)
            print("received", flush=True)
            time.sleep(0.3)
            print("still there", flush=True)
            while True:
                time.sleep(0.01)
    """)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "received\n"
    process.send_signal(signal.SIGTERM)  # as torchrun does when its whole group gets Ctrl-C
    assert process.stdout.readline() == "still there\n"
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


# ------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that nobody stopped, by their prior."""

    @cache
    def run_of(prior):
        with pytest.MonkeyPatch.context() as patch:
            status, folder = tiny.Trainer(tmp_path_factory.mktemp("whole"), patch)(prior=prior)
        assert status == 0
        return folder

    return run_of


@pytest.mark.parametrize(
    ("where", "name", "prior"),
    [
        (train, "initialise_codebooks", "none"),
        (train, "validation_ssim", "none"),
        (figures, "draw_report", "none"),
        (train, "score_samples", "dcgan"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_outside_a_step_it_is_answered_at_once_and_nothing_differs(
    where, name, prior, whole, tmp_path, monkeypatch, capfd
):
    trainer = tiny.Trainer(tmp_path, monkeypatch)

    def stopped(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the signal was not answered")

    with monkeypatch.context() as patch:
        patch.setattr("training.run.UNSAVED_SECONDS", 0)  # a long epoch is saved before its validation
        patch.setattr(where, name, stopped)
        status, folder = trainer(prior=prior)
    assert status == 143
    out, complaints = capfd.readouterr()
    assert out.splitlines()[-1] == f"stopped; resume with: python train.py --resume {folder}"
    assert "SIGTERM: stopping" in complaints
    if name == "validation_ssim":
        state = checkpoint.load(folder / "last.pth", "run")
        assert (state["epoch"], state["step"]) == (0, tiny.STEPS)
    assert trainer.resume(folder) == 0
    tiny.assert_same_run(folder, whole(prior))


# ------------------------------------------------------------------------------------------- predict.py


def test_predict_leaves_nothing_unfinished(tmp_path):
    options = ["--samples-only", "--samples=500", "--device=cpu", "--out", tmp_path / "predicted"]
    process = start("predict.py", "resources/pretrained/vqvae.pth", *options)
    try:
        while process.poll() is None and not any(tmp_path.iterdir()):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, complaints = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    assert "SIGTERM: stopping" in complaints
    assert "Traceback" not in complaints
    assert not list(tmp_path.iterdir())
