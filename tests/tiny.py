"""A data set of a few tiny slices, whole trainings on it in this process, and what files of networks hold."""

import inspect
import os
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

import modules
import train
from dataset import DataSet, Slices
from inference.loading import identity
from networks.pixelcnn import PixelCNN
from networks.transformer import Transformer
from report import plots
from scoring import judge
from training import likelihood, painter, run, setup

SIZE = 32
OPTIONS = {
    "model": "vqvae",
    "epochs": 2,
    "batch-size": 16,
    "codebook-size": 16,
    "painter-slices": 0,
    "painter-batch-size": 16,
    "prior": "none",
    "prior-epochs": 2,
    "prior-batch-size": 16,
    "device": "cpu",
    "precision": "fp32",
}
STEPS = 4  # an epoch, of 64 slices in batches of 16
DATA = {"title": "blobs", "root": "blobs", "synthetic": True, "fingerprint": "f" * 64, "size": [256, 256], "axis": 2}
DATA |= {"box": [96, 96, 64, 64], "levels": 32, "slices": None, "spacing": None, "person": None, "affine": None}


def content_of(network: torch.nn.Module, autoencoder: modules.Autoencoder | None = None) -> dict:
    """What the file of an autoencoder trained on `DATA` holds, or of a prior over an autoencoder's codes."""
    content = {"model": type(network).__name__.lower(), "arguments": network.arguments, "epoch": 1}
    if autoencoder is None:
        content |= {"kind": "autoencoder", "data": DATA, "validation_ssim": 0.9}
    else:
        content |= {"kind": "prior", "autoencoder": identity(autoencoder)}
    return content | {"state": network.state_dict()}


def of_people(volumes: np.ndarray, first: int) -> Slices:
    """The slices of volumes, uint8 [P, L, H, W], each of one person, whom numbers tell from `first` on."""
    n, levels = volumes.shape[:2]
    names = [f"case_{first + i:03d}_slice_{level}.nii.png" for i in range(n) for level in range(levels)]
    return Slices(
        images=volumes.reshape(-1, *volumes.shape[2:]),
        names=names,
        people=[name[:8] for name in names],
        levels=np.tile(np.arange(levels), n),
        paths=[Path(name) for name in names],
    )


def slices(people: int, levels: int, first: int = 1) -> Slices:
    """Smooth blobs, uint8 [people x levels, 32, 32]; neighbours of one person are alike."""
    volumes = []
    for person in range(first, first + people):
        noise = ndimage.gaussian_filter(np.random.default_rng(person).standard_normal((levels, SIZE, SIZE)), (1, 4, 4))
        volumes.append((128 + 100 * noise / abs(noise).max()).round().astype(np.uint8))
    return of_people(np.stack(volumes), first)


def data_set() -> DataSet:
    splits = {"train": slices(4, 16), "validate": slices(2, 8, first=5)}
    return DataSet("made-up blobs", Path("blobs"), True, splits, "f" * 64)


class Trainer:
    """Runs train.py's `main` in this process, on `data_set`, without figures."""

    def __init__(self, out: Path, monkeypatch: pytest.MonkeyPatch):
        self.out, self.patch, self.runs = out, monkeypatch, []
        monkeypatch.setattr(setup, "load_data", lambda settings: data_set())
        monkeypatch.setattr(train, "JUDGED_SAMPLES", 100)
        monkeypatch.setattr(judge, "SPACES", ("pca",))
        for name, number in {
            "TEACHER_EPOCHS": 2,
            "STUDENT_EPOCHS": 2,
            "TEACHER_STEPS": 8,
            "STUDENT_SHARE": 4.0,
            "LOSS_SLICES": 4,
        }.items():
            monkeypatch.setattr(painter, name, number)
        monkeypatch.setitem(train.GANS, "residual", partial(modules.DCGAN, width=16))
        monkeypatch.setattr(modules, "Discriminator", partial(modules.Discriminator, width=16))
        monkeypatch.setattr(likelihood, "PixelCNN", partial(PixelCNN, width=16, layers=3))
        monkeypatch.setattr(likelihood, "Transformer", partial(Transformer, width=24, layers=2, inner=8))
        for name, function in inspect.getmembers(plots, inspect.isfunction):
            if function.__module__ == plots.__name__ and not name.startswith("_"):
                monkeypatch.setattr(plots, name, lambda *args, **kwargs: None)
        opened = self.runs

        class KnownRun(run.Run):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                opened.append(self)

        monkeypatch.setattr(train, "Run", KnownRun)

    def __call__(self, *arguments: str, **given) -> tuple[int, Path]:
        """Exit status and run folder of `train.py ARGUMENTS --NAME=VALUE ...`, with the tiny options in a new run."""
        alone = {"--resume", "--config"} & set(arguments)
        chosen = given if alone else OPTIONS | {"out": self.out} | given
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()]
        self.patch.setattr(sys, "argv", ["train.py", *arguments, *flags])
        self.runs.clear()
        try:
            status = train.main()
        except SystemExit as stop:
            status = stop.code
        finally:
            for opened in self.runs:
                opened.lock.close()
        folder = self.runs[-1].folder if self.runs else None
        return status, folder

    def resume(self, folder: Path, **given) -> int:
        return self("--resume", str(folder), **given)[0]

    def at_step(self, number: int, action) -> None:
        """Call `action` in training step `number`, counted from 1 over all stages, of the next run."""
        count, add = [0], run.Stage.add

        def counted(stage, **values):
            count[0] += 1
            if count[0] == number:
                action()
            add(stage, **values)

        self.patch.setattr(run.Stage, "add", counted)

    def kill_at_step(self, number: int, kind: signal.Signals = signal.SIGTERM) -> None:
        self.at_step(number, lambda: os.kill(os.getpid(), kind))


def assert_same(a: object, b: object, where: str = "") -> None:
    """Nested dicts, lists and tensors are equal to the bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    else:
        assert a == b, where


def assert_same_run(a: Path, b: Path) -> None:
    """Two run folders hold the same checkpoints, states, metrics and values of steps, to the bit."""
    names = sorted(path.name for path in a.iterdir() if path.suffix == ".pth" and path.name != "previous.pth")
    assert names == sorted(path.name for path in b.iterdir() if path.suffix == ".pth" and path.name != "previous.pth")
    assert "last.pth" in names
    for name in names:
        first, second = (torch.load(folder / name, weights_only=True) for folder in (a, b))
        assert_same(first, second, name)
    tables = sorted(path.name for path in a.glob("*.csv"))
    assert tables == sorted(path.name for path in b.glob("*.csv"))
    for name in tables:
        assert (a / name).read_text() == (b / name).read_text(), name
