"""What TensorBoard shows is what metrics.csv says, however often the run was stopped."""

import csv
import io
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

import train
from training import run
from training.board import Board

STEPS = tiny.STEPS


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    return tiny.Trainer(tmp_path / "runs", monkeypatch)


@pytest.fixture
def read():
    """A function from a run folder to what tensorboard reads in its event files."""
    reason = "needs the package tensorboard"
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=reason)

    def of(folder: Path):
        everything = {"scalars": 0, "images": 0}
        return module.EventAccumulator(str(folder / "tensorboard"), size_guidance=everything).Reload()

    return of


def points(events) -> dict[str, list[tuple[int, float]]]:
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def points_of_metrics(folder: Path) -> dict[str, list]:
    """The same of metrics.csv; the event files hold float32."""
    found = defaultdict(list)
    for row in csv.DictReader((folder / "metrics.csv").read_text().splitlines()):
        stage, epoch = row.pop("stage"), int(row.pop("epoch"))
        for column, value in row.items():
            if value:
                found[f"{stage}/{column}"].append((epoch, float(np.float32(value))))
    return dict(found)


def test_points_are_those_of_metrics_after_interruptions(trainer, read):
    """One within each stage, after an epoch of it."""
    trainer.kill_at_step(STEPS + 2)
    status, folder = trainer("--tensorboard", prior="pixelcnn")
    assert status == 143
    trainer.kill_at_step(2 * STEPS + 1)
    assert trainer.resume(folder) == 143
    assert trainer.resume(folder) == 0
    shown = points(read(folder))
    assert shown == points_of_metrics(folder)
    assert [epoch for epoch, _ in shown["autoencoder/validation_ssim"]] == [1, 2]
    assert len({tag.partition("/")[0] for tag in shown}) == 2
    assert len(list((folder / "tensorboard").iterdir())) == 3


def test_epoch_that_was_shown_but_not_saved_is_there_once(trainer, read, monkeypatch):
    """As if killed between the two."""
    save = run.Stage.save

    def dies(stage):
        if stage.epoch == 2:
            raise KeyboardInterrupt
        save(stage)

    with monkeypatch.context() as patch:
        patch.setattr(run.Stage, "save", dies)
        status, folder = trainer("--tensorboard", epochs=3)
    assert status == 130
    assert len(points(read(folder))["autoencoder/validation_ssim"]) == 2
    assert trainer.resume(folder) == 0
    assert points(read(folder)) == points_of_metrics(folder)


def test_pictures_are_those_of_the_epochs(tmp_path, read):
    rows = [{"stage": "autoencoder", "epoch": epoch, "validation_ssim": 0.5} for epoch in (1, 2, 9)]
    for epoch in (1, 2):
        pixels = np.random.default_rng(epoch).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"epoch_{epoch:03d}.png")
    Board(tmp_path, rows)  # as at the start of a resumed run
    shown = read(tmp_path).Images("autoencoder/pictures")
    assert [image.step for image in shown] == [1, 2]
    for image in shown:
        files = io.BytesIO(image.encoded_image_string), tmp_path / f"epoch_{image.step:03d}.png"
        assert np.array_equal(*(np.asarray(Image.open(file).convert("RGB")) for file in files))


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(run.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(run.dist, "get_rank", lambda: 1)
    assert run.Run(tmp_path, 10, None, tensorboard=True).board is None
    assert not list(tmp_path.iterdir())


def test_missing_package_is_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # what import says to be missing
    monkeypatch.setattr(sys, "argv", ["train.py", "--tensorboard", "--device=cpu", f"--out={tmp_path / 'runs'}"])
    assert train.main() == 2
    assert re.fullmatch(r"error: [^\n]*pip install -r requirements-extra.txt\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
