"""What a training logs: a line an epoch, the time that is left, the values of some steps; no bars in files."""

import csv
import re
import time
from pathlib import Path

import pytest
import tiny
import torch

from runtime.errors import InputError
from runtime.wording import counted, duration
from training import setup, telling
from training.settings import TrainSettings
from training.telling import Pace, StepTable, describe_epoch, short


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what is added to `clock[0]`, in seconds."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_time_that_is_left_follows_from_the_steps_after_the_first_two(clock):
    pace, estimates = Pace(epochs=3), []
    for step in range(1, 11):  # of 10 an epoch
        clock[0] += 60.0 if step <= telling.WARM_UP_STEPS else 4.0  # the first steps are slow and don't count
        estimates.append(pace.step(step / 10))
    assert estimates == [False, False, False, False, True, True, True, True, True, True]  # after 12 s
    assert pace.left(1.0) == "1 min"  # 20 steps of 4 s
    assert pace.left(1.0, later=2.0) == "5 min"  # and 60 steps' time for other stages
    assert not pace.step(1.1)  # it comes once
    clock[0] += 40
    pace.slices_a_second = 2.0
    assert pace.describe(2) == ["2 slices/s", "40 s left"]  # 72 s for 1.8 epochs
    assert pace.describe(3) == ["2 slices/s", "done in 3 min"]


def test_the_first_estimate_is_of_the_stage_and_of_those_after_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(telling, "FIRST_ESTIMATE", 1e-3)
    tiny.Trainer(tmp_path / "runs", monkeypatch)(prior="pixelcnn")
    printed = capsys.readouterr().out
    assert re.search(
        r"\nautoencoder: 2 epochs of 4 steps of 16 slices, about .+ left; roughly .+ with pixelcnn\n", printed
    )
    assert re.search(r"\npixelcnn: 2 epochs of 4 steps of 16 slices, about [^;]+ left\n", printed)


def test_the_work_of_a_stage_grows_with_what_it_trains_on(monkeypatch):
    monkeypatch.setattr(setup, "SLICE_COST", {"rqvae": 1.0, "painter": 0.5, "student": 0.25, "dcgan": 2.0})
    given = TrainSettings(epochs=3, prior_epochs=5, painter_slices=600, painter_width=64)
    assert setup.work(given, 100) == {"autoencoder": 300, "painter": 1200, "student": 600, "dcgan": 1000}
    assert setup.work(given.model_copy(update={"autoencoder": Path("vqvae.pth")}), 100) == {"dcgan": 1000}


def test_no_time_is_given_before_any_is_known(clock):
    pace = Pace(epochs=3)
    assert pace.describe(1) == []
    pace.step(0.5)
    assert pace.left(0.5) == ""


def test_an_epochs_line_has_the_first_losses_and_the_score_beside_the_best():
    row = {"loss_a": 0.5, "loss_b": 0.25, "loss_c": 1.0, "validation_ssim": 0.9}
    means = ["loss_a", "loss_b", "loss_c"]
    expected = ["loss a 0.5000", "loss b 0.2500", "SSIM 0.9000 (best 0.9500)"]
    assert describe_epoch(row, means, ("SSIM", 0.9, 0.95)) == expected
    assert describe_epoch(row, means, ("SSIM", 0.9, 0.9))[-1] == "SSIM 0.9000 (best so far)"
    assert describe_epoch(row, [], None) == []


def test_every_tenth_step_is_kept_and_those_after_the_last_save_are_made_again(tmp_path):
    path = tmp_path / "steps_x.csv"

    def go(table, epoch, steps):
        for step in steps:
            table.add(epoch, step, ["loss"], torch.tensor([100.0 * epoch + step]))

    whole = StepTable(path, 0, 0)
    go(whole, 1, range(25))
    go(whole, 2, range(25))
    whole.write()
    text = path.read_text()
    assert text.splitlines() == ["epoch,step,loss", *(f"{e},{s},{100 * e + s}" for e in (1, 2) for s in (0, 10, 20))]
    again = StepTable(path, 1, 11)  # saved within the second epoch, before its step 11
    go(again, 2, range(11, 25))
    again.write()
    assert path.read_text() == text
    StepTable(path, 0, 0).write()  # nothing was saved: nothing is kept, once there is something to write
    anew = StepTable(path, 0, 0)
    go(anew, 1, range(5))
    anew.write()
    assert path.read_text() == "epoch,step,loss\n1,0,100\n"


@pytest.mark.parametrize(
    "content",
    [b"\xff\n", b"epoch,loss\n1,2\n", b"epoch,step,loss\nx,0,1\n", b"epoch,step,loss\n1,0\n", b"epoch,step\n1,0,5\n"],
    ids=["no text", "no step", "no number", "too few", "too many"],
)
def test_a_damaged_file_of_steps_is_named(content, tmp_path):
    path = tmp_path / "steps.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"steps\.csv is damaged"):
        StepTable(path, 1, 0)


def test_a_run_logs_its_plan_then_a_line_an_epoch_then_where_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(StepTable, "EVERY", 1)
    status, folder = tiny.Trainer(tmp_path / "runs", monkeypatch)(prior="pixelcnn")
    printed = capsys.readouterr()
    assert status == 0
    assert printed.err == ""  # no bars: this is no terminal
    lines = printed.out.splitlines()
    assert (folder / "log.txt").read_text().splitlines() == lines
    assert "to do: vqvae, 2 epochs, then pixelcnn, 2 epochs" in lines
    rows = read_csv(folder / "metrics.csv")
    epochs = [line for line in lines if line.startswith(("autoencoder ", "pixelcnn "))]
    stages = [f"{row['stage']} {row['epoch']}/2: " for row in rows]
    assert [line[: len(stage)] for line, stage in zip(epochs, stages, strict=True)] == stages
    ssim = float(rows[0]["validation_ssim"])
    loss = float(rows[0]["train_reconstruction"])
    assert f"train reconstruction {loss:.4f}, " in epochs[0]
    assert f", validation SSIM {ssim:.4f} (best so far), " in epochs[0]
    bits = float(rows[2]["validation_bits"])
    assert f", validation bits per code {bits:.4f} (best so far), " in epochs[2]
    assert all(" slices/s, " in line for line in epochs)
    assert " left" in epochs[0]
    assert "done in " in epochs[1]
    command = f"python predict.py {folder / 'vqvae.pth'}"
    assert lines[-1] == f"finished: see {folder / 'report.html'}; to score it: {command}"
    steps = read_csv(folder / "steps_autoencoder.csv")
    assert [(row["epoch"], row["step"]) for row in steps] == [(e, str(s)) for e in "12" for s in range(tiny.STEPS)]
    for name in ("train_reconstruction", "train_commitment", "gradient_norm", "learning_rate"):
        mean = sum(float(row[name]) for row in steps[: tiny.STEPS]) / tiny.STEPS
        assert mean == pytest.approx(float(rows[0][name]), rel=1e-4)


def test_numbers_and_times_in_words():
    assert [counted(n, "slice") for n in (0, 1, 1120)] == ["0 slices", "1 slice", "1,120 slices"]
    assert [counted(n, "person", "people") for n in (1, 2)] == ["1 person", "2 people"]
    assert [duration(s) for s in (0.2, 59.4, 60, 3599, 11100)] == ["0 s", "59 s", "1 min", "1 h 0 min", "3 h 5 min"]
    assert [short(x) for x in (0.0312, 0.0, 8.7e-4)] == ["0.0312", "0.0000", "8.7e-04"]
