"""Scans and data sets made on the spot, and what the commands say about them, for the tests of reading."""

import struct
import sys
import zlib
from itertools import count, islice
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import dataset
from runtime.errors import InputError

OBLIQUE = nib.affines.from_matvec(
    np.diag([1.1, 0.9, 2.0]) @ np.array([[0.98, -0.199, 0], [0.199, 0.98, 0], [0, 0, 1]]), [-90, -126, -72]
)
PEOPLE = {"train": 2, "validate": 1, "test": 1}


def picture(seed: int, shape=(256, 256)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def volume(seed=0, shape=(20, 24, 16)) -> np.ndarray:
    """Random float32 voxels about 500, some of them 0."""
    rng = np.random.default_rng(seed)
    return (rng.gamma(5, 100, shape) * (rng.random(shape) > 0.2)).astype(np.float32)


def save(path: Path, voxels: np.ndarray, affine=OBLIQUE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def write_set(root: Path, people=PEOPLE, slices=3, name="keras_png_slices_{}/case_{:03}_slice_{}.nii.png", made=None):
    """A set of people numbered through the splits; the slices are random pictures, or made(person, level, path)."""
    numbers = count(1)
    for split, number in people.items():
        for person in islice(numbers, number):
            for level in range(slices):
                path = root / name.format(split, person, level)
                path.parent.mkdir(parents=True, exist_ok=True)
                if made:
                    made(person, level, path)
                else:
                    Image.fromarray(picture(100 * person + level)).save(path)
    return root


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def run(monkeypatch, *arguments: object) -> int:
    """Exit status of `dataset.py ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["dataset.py", *map(str, arguments)])
    return dataset.main()


def refused(read, *arguments, **options) -> str:
    """The one line that a function refuses its arguments with."""
    with pytest.raises(InputError) as error:
        read(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)
