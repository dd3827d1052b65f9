"""What several test files share: a small data set on disk, and a run of train.py on it through the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import demo

ROOT = Path(__file__).resolve().parents[1]
LEVELS, SIDE = 32, 48  # slices a person, and pixels of content a side: few, so that training is fast
PEOPLE = {"train": 4, "validate": 1, "test": 1}


def blob(person: int, level: int) -> np.ndarray:
    """A smooth blob in an ellipse on black, uint8 [256, 256]: made up, different for each person and level."""
    noise = ndimage.gaussian_filter(np.random.default_rng([person, level]).standard_normal((SIDE, SIDE)), 3)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    inside = y**2 + x**2 / 0.8 < 0.6 + 0.01 * level
    pixels = (inside * (140 + 100 * noise / np.abs(noise).max())).round().astype(np.uint8)
    return np.pad(pixels, (256 - SIDE) // 2)


def run_script(*arguments: object, cache: Path) -> subprocess.CompletedProcess:
    """`python *arguments` in the repository's folder, on one core, with a cache folder of its own."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A data set in the OASIS PNG layout, marked as synthetic: `PEOPLE` of `LEVELS` slices each."""
    root, person = tmp_path_factory.mktemp("data"), 0
    for split, people in PEOPLE.items():
        folder = root / f"keras_png_slices_{split}"
        folder.mkdir()
        for _ in range(people):
            person += 1
            for level in range(LEVELS):
                picture = Image.fromarray(blob(person, level))
                picture.save(folder / f"case_{person:03d}_slice_{level}.nii.png")
    (root / demo.MARKER).write_text(json.dumps({"people": person}))
    return root


@pytest.fixture(scope="session")
def tiny_run(tiny_data, tiny_cache, tmp_path_factory):
    """The run folder of `train.py` on `tiny_data`: three epochs of the VQ-VAE and one of the DCGAN."""
    out = tmp_path_factory.mktemp("runs")
    options = [
        "--model=vqvae",
        "--epochs=3",
        "--batch-size=2",
        "--prior-epochs=1",
        "--codebook-size=64",
        "--device=cpu",
    ]
    done = run_script("train.py", "--data", tiny_data, *options, "--out", out, cache=tiny_cache)
    assert done.returncode == 0, done.stderr
    [folder] = out.iterdir()
    return folder
