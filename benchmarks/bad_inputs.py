"""Which bad inputs does faults.py try? Folders, pictures, NIfTI files, checkpoints and options that can't be used."""

import gzip
import io
import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from PIL import Image
from scipy import ndimage

SPLITS = {"train": (4, 16), "validate": (2, 8), "test": (1, 8)}  # people, slices of each
STOP = ["--time-limit=0", "--device=cpu", "--precision=fp32", "--batch-size=16"]  # what is fine stops after a step


@dataclass(frozen=True)
class Case:
    kind: str
    name: str
    make: Callable[[Path], list]  # prepares an empty folder, and gives the command line
    program: str = "train"
    may_be_fine: bool = False  # of random changes, some change nothing


def blob(seed: int) -> np.ndarray:
    """A smooth made-up slice, uint8 [32, 32]."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((32, 32)), 3)
    return (128 + 100 * noise / abs(noise).max()).round().astype(np.uint8)


def write_set(root: Path, layout: str = "keras_png_slices_{}") -> Path:
    """A set of blobs in the OASIS PNG layout."""
    person = 0
    for split, (people, levels) in SPLITS.items():
        folder = root / layout.format(split)
        folder.mkdir(parents=True)
        for _ in range(people):
            person += 1
            for level in range(levels):
                picture = Image.fromarray(blob(100 * person + level))
                picture.save(folder / f"case_{person:03d}_slice_{level}.nii.png")
    return root


def bad_inputs(data: Path, run: Path, other: Path, rng: random.Random) -> Iterator[Case]:
    """All cases, on `data` from `write_set`; `run` is a finished run with a dcgan.pth, `other` one with a PixelCNN."""
    yield from bad_options(data)
    yield from bad_folders(data)
    yield from bad_pictures(data, rng)
    yield from bad_nifti(rng)
    yield from bad_checkpoints(data, run, other, rng)
    yield from bad_runs(run, other, rng)


# ----------------------------------------------------------------------------------------------------
# Options and folders


OPTIONS = """
    --epochs=0 --epochs=-1 --epochs=1e9 --epochs= --batch-size=0 --batch-size=x --lr=-1 --lr=nan --lr=inf --beta=-0.1
    --codebook-size=1 --codebook-size=99999 --model=unet --prior=flow --loss=l2 --seed=-1 --device=tpu --precision=fp8
    --time-limit=-1 --save-minutes=-1 --limit-people=0 --slices=a:b --axis=7 --what --resume=nowhere
    --config=nowhere --downsample=5 --gan=bce --prior-lr=-- --null --epochs=null
"""


def bad_options(data: Path) -> Iterator[Case]:
    for option in OPTIONS.split():
        yield Case("options", option, lambda folder, option=option: ["--data", data, option])
    if not torch.cuda.is_available():
        yield Case("options", "no CUDA", lambda folder: ["--data", data, "--device=cuda"])
    yield Case("options", "--out in a file", lambda folder: ["--data", data, "--out", next(data.glob("*/*.png")) / "x"])


def bad_folders(data: Path) -> Iterator[Case]:
    def make(change: Callable[[Path], object]) -> Callable[[Path], list]:
        def prepare(folder: Path) -> list:
            shutil.copytree(data, folder / "data")
            change(folder / "data")
            return ["--data", "data", *STOP]

        return prepare

    def empty(folder: Path) -> None:
        shutil.rmtree(folder)
        folder.mkdir()

    def a_file(folder: Path) -> None:
        shutil.rmtree(folder)
        folder.write_text("")

    def overlap(folder: Path) -> None:
        name = "case_001_slice_0.nii.png"
        shutil.copy(folder / "keras_png_slices_train" / name, folder / "keras_png_slices_test" / name)

    def no_pictures(folder: Path) -> None:
        for path in (folder / "keras_png_slices_train").iterdir():
            path.rename(path.with_suffix(".txt"))

    changes = {
        "missing": shutil.rmtree,
        "empty": empty,
        "a file": a_file,
        "no training split": lambda folder: shutil.rmtree(folder / "keras_png_slices_train"),
        "no validation split": lambda folder: shutil.rmtree(folder / "keras_png_slices_validate"),
        "empty training split": lambda folder: empty(folder / "keras_png_slices_train"),
        "training split is a file": lambda folder: a_file(folder / "keras_png_slices_train"),
        "no pictures": no_pictures,
        "a person in two splits": overlap,
        "two layouts": lambda folder: (folder / "keras_slices_train").mkdir(),
        "pictures and NIfTI": lambda folder: (folder / "keras_png_slices_train" / "a.nii").write_bytes(b"x"),
        "one split's folder": lambda folder: (folder.rename(folder.with_name("x")), shutil.copytree(
            folder.with_name("x") / "keras_png_slices_train", folder)),
    }  # fmt: skip
    for name, change in changes.items():
        yield Case("folders", name, make(change))


# ----------------------------------------------------------------------------------------------------
# Pictures and NIfTI


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to eight changed, or cut off, or some doubled."""
    data = bytearray(data)
    match rng.randrange(4):
        case 0:
            del data[rng.randrange(len(data)) :]
        case 1:
            start = rng.randrange(len(data))
            data[start:start] = data[start : start + rng.randrange(1, 64)]
        case _:
            for _ in range(rng.randrange(1, 9)):
                data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def huge_png() -> bytes:
    """A few bytes that claim 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def bad_pictures(data: Path, rng: random.Random) -> Iterator[Case]:
    good = png(blob(1))
    colours = np.stack([blob(seed) for seed in (1, 2, 3)], axis=2)
    gif = io.BytesIO()
    Image.fromarray(blob(1)).save(gif, "GIF")
    contents = {
        "empty": b"",
        "text": b"this is no picture\n",
        "header alone": good[:33],
        "half": good[: len(good) // 2],
        "a GIF": gif.getvalue(),
        "colours": png(colours),
        "60,000 pixels a side": huge_png(),
        "zeros": bytes(1000),
        "a NIfTI": gzip.compress(bytes(400)),
    }

    def make(content: bytes) -> Callable[[Path], list]:
        def prepare(folder: Path) -> list:
            shutil.copytree(data, folder / "data")
            (folder / "data" / "keras_png_slices_train" / "case_002_slice_3.nii.png").write_bytes(content)
            return ["--data", "data", *STOP]

        return prepare

    for name, content in contents.items():
        yield Case("pictures", name, make(content))
    for i in range(16):
        yield Case("pictures", f"changed bytes {i}", make(change_bytes(good, rng)), may_be_fine=True)


def bad_nifti(rng: random.Random) -> Iterator[Case]:
    volume = np.stack([blob(seed) for seed in range(8)], axis=2).astype(np.int16)
    good = nibabel.Nifti1Image(volume, np.eye(4)).to_bytes()
    rgb = np.zeros((8, 8, 8), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    contents = {
        "empty": b"",
        "text": b"this is no volume\n",
        "header alone": good[:348],
        "half": good[: len(good) // 2],
        "colours": nibabel.Nifti1Image(rgb, np.eye(4)).to_bytes(),
        "five dimensions": nibabel.Nifti1Image(np.zeros((4, 4, 4, 2, 3), np.int16), np.eye(4)).to_bytes(),
    }

    def make(content: bytes, suffix: str = ".nii") -> Callable[[Path], list]:
        def prepare(folder: Path) -> list:
            for number, split in enumerate(SPLITS):
                target = folder / "data" / split
                target.mkdir(parents=True)
                for person in range(8):  # with 8 slices each: as many as the judge of a GAN needs
                    packed = gzip.compress(good) if suffix == ".nii.gz" else good
                    (target / f"case_{8 * number + person:03d}{suffix}").write_bytes(packed)
            (folder / "data" / "train" / f"case_002{suffix}").write_bytes(content)
            return ["--data", "data", *STOP]

        return prepare

    for name, content in contents.items():
        yield Case("NIfTI", name, make(content))
    yield Case("NIfTI", "half a gzip", make(gzip.compress(good)[:500], ".nii.gz"))
    yield Case("NIfTI", "not gzipped", make(good, ".nii.gz"), may_be_fine=True)
    for i in range(8):
        changed = change_bytes(good[:352], rng) + good[352:]  # in the header: any pixel is as good as another
        yield Case("NIfTI", f"changed bytes {i}", make(changed), may_be_fine=True)
        changed = change_bytes(gzip.compress(good), rng)
        yield Case("NIfTI", f"changed gzip bytes {i}", make(changed, ".nii.gz"), may_be_fine=True)


# ----------------------------------------------------------------------------------------------------
# Checkpoints and run folders


class Call:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("it-ran",)


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def bad_checkpoints(data: Path, run: Path, other: Path, rng: random.Random) -> Iterator[Case]:
    """For predict.py, and for its --prior."""
    good = (run / "vqvae.pth").read_bytes()
    parts = torch.load(run / "vqvae.pth", weights_only=True)
    prior = torch.load(run / "dcgan.pth", weights_only=True)
    quick = ["--data", data, "--samples=1", "--device=cpu"]

    def make(content: bytes) -> Callable[[Path], list]:
        def prepare(folder: Path) -> list:
            (folder / "vqvae.pth").write_bytes(content)
            return ["vqvae.pth", *quick, "--prior=none"]

        return prepare

    def with_prior(content: bytes) -> Callable[[Path], list]:
        def prepare(folder: Path) -> list:
            (folder / "vqvae.pth").write_bytes(good)
            (folder / "prior.pth").write_bytes(content)
            return ["vqvae.pth", *quick, "--prior=prior.pth"]

        return prepare

    contents = {
        "empty": b"",
        "text": b"no checkpoint",
        "half": good[: len(good) // 2],
        "without its last byte": good[:-1],
        "a pickled call": saved(parts | {"extra": Call()}),
        "a resume state": (run / "last.pth").read_bytes(),
        "a prior": (run / "dcgan.pth").read_bytes(),
        "a tensor": saved(torch.zeros(3)),
        "another network's weights": saved(parts | {"model": "vqvae2"}),
        "an unknown network": saved(parts | {"model": "unet"}),
        "other sizes": saved(parts | {"arguments": {"codebook_size": 99}}),
        "no weights": saved({key: value for key, value in parts.items() if key != "state"}),
        "no data": saved({key: value for key, value in parts.items() if key != "data"}),
        "no box": saved(parts | {"data": {"title": "x"}}),
    }
    for name, content in contents.items():
        yield Case("checkpoints", name, make(content), "predict")
    for i in range(12):
        yield Case("checkpoints", f"changed bytes {i}", make(change_bytes(good, rng)), "predict", may_be_fine=True)
    priors = {
        "empty": b"",
        "an autoencoder": good,
        "another autoencoder's": saved(prior | {"autoencoder": "0" * 64}),
        "an unknown network": saved(prior | {"model": "flow"}),
        "other sizes": saved(prior | {"arguments": {}}),
    }
    for name, content in priors.items():
        yield Case("checkpoints", f"prior: {name}", with_prior(content), "predict")
    for arguments in (["nowhere.pth"], ["."], [run / "vqvae.pth", "--samples=-1"], [run / "vqvae.pth", "--split=all"]):
        yield Case("checkpoints", " ".join(map(str, arguments)), lambda folder, a=arguments: a, "predict")


def bad_runs(run: Path, other: Path, rng: random.Random) -> Iterator[Case]:
    """For train.py --resume."""

    def make(change: Callable[[Path], object], *options: str) -> Callable[[Path], list]:
        def prepare(folder: Path) -> list:
            shutil.copytree(run, folder / "run", ignore=shutil.ignore_patterns("*.png", "*.gif", ".lock"))
            change(folder / "run")
            return ["--resume", "run", *options]

        return prepare

    def config(**values: object) -> Callable[[Path], object]:
        stored = json.loads((run / "config.json").read_text())
        return lambda folder: (folder / "config.json").write_text(json.dumps(stored | values))

    def all_states(content: bytes) -> Callable[[Path], None]:
        def change(folder: Path) -> None:
            for name in ("last.pth", "previous.pth"):
                (folder / name).write_bytes(content)

        return change

    last = (run / "last.pth").read_bytes()
    state = torch.load(run / "last.pth", weights_only=True)
    changes = {
        "no config": lambda folder: (folder / "config.json").unlink(),
        "half a config": lambda folder: (folder / "config.json").write_text('{"epochs": 3,'),
        "a list for a config": lambda folder: (folder / "config.json").write_text("[]"),
        "text for a number": config(epochs="many"),
        "no such model": config(model="unet"),
        "no such setting": config(flow=1),
        "a number for a word": config(model=3),
        "other data": config(data_fingerprint="0" * 64),
        "data gone": config(data="nowhere"),
        "states cut in half": all_states(last[: len(last) // 2]),
        "states empty": all_states(b""),
        "states changed": all_states(last[: len(last) // 2] + b"\0\1\2\3" + last[len(last) // 2 + 4 :]),
        "states with a pickled call": all_states(saved(state | {"extra": Call()})),
        "states without parts": all_states(saved(state | {"parts": {}})),
        "states of another stage": all_states((other / "last.pth").read_bytes()),
    }
    for name, change in changes.items():
        yield Case("runs", name, make(change))
    for option in ("--model=vqvae2", "--seed=9", "--batch-size=8", "--prior=none", "--epochs=9", "--prior-epochs=1"):
        yield Case("runs", option, make(lambda folder: None, option))
