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


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_is_printed_and_unwinds_the_program(number, status):
    process = program("""
        with StopSignals():
            try:
                print("ready", flush=True)
                time.sleep(60)
            finally:
                print("cleaned", flush=True)
    """)
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("cleaned\n", f"\n{number.name}: stopping\n")
    assert process.returncode == status


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
        (figures, "draw_report", "none"),
        (train, "score_samples", "dcgan"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_outside_a_step_it_is_answered_at_once_and_nothing_differs(
    where, name, prior, whole, tmp_path, monkeypatch, capfd
):
    trainer, function = tiny.Trainer(tmp_path, monkeypatch), getattr(where, name)

    def stopped(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the signal was not answered")

    monkeypatch.setattr(where, name, stopped)
    status, folder = trainer(prior=prior)
    assert status == 143
    out, complaints = capfd.readouterr()
    assert out.splitlines()[-1] == f"stopped; resume with: python train.py --resume {folder}"
    assert "SIGTERM: stopping" in complaints
    monkeypatch.setattr(where, name, function)
    assert trainer.resume(folder) == 0
    tiny.assert_same_run(folder, whole(prior))


def test_a_long_epoch_is_saved_before_its_validation(whole, tmp_path, monkeypatch):
    """Where a signal ends the run at once, nothing can be saved any more."""
    trainer, validation = tiny.Trainer(tmp_path, monkeypatch), train.validation_ssim
    monkeypatch.setattr("training.run.UNSAVED_SECONDS", 0)
    monkeypatch.setattr(train, "validation_ssim", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    status, folder = trainer()
    assert status == 143
    state = checkpoint.load(folder / "last.pth", "run")
    assert (state["epoch"], state["step"]) == (0, tiny.STEPS)
    monkeypatch.setattr(train, "validation_ssim", validation)
    assert trainer.resume(folder) == 0
    tiny.assert_same_run(folder, whole("none"))


# ------------------------------------------------------------------------------------------- predict.py


def test_predict_leaves_nothing_unfinished(tiny_run, tiny_data, tiny_cache, tmp_path):
    out = tmp_path / "predicted"
    options = ["--data", tiny_data, "--samples=0", "--device=cpu", "--out", out]
    process = start("predict.py", tiny_run / "vqvae.pth", *options, XDG_CACHE_HOME=tiny_cache)
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
