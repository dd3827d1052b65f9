"""Any bytes and damaged real files, in every kind of file that is read: they work, or end in one line with status 2."""

import gzip
import io
import json
import math
from copy import deepcopy

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import slices

import dataset
import modules
import train
from inference.codec import Codec
from inference.loading import load_autoencoder
from runtime import compute
from runtime.errors import InputError, exit_on_input_error
from training.settings import TrainSettings

DATA = {"title": "made up", "root": "/nowhere", "synthetic": True, "fingerprint": "f" * 64, "size": [32, 32]}
DATA |= {"box": [0, 0, 32, 32], "levels": 4, "axis": 2, "slices": None, "affine": np.eye(4).tolist()}
SLICES = slices(people=1, levels=4).images
some_examples = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(SLICES[0]).save(file, "PNG")
    return file.getvalue()


def nifti() -> bytes:
    return nibabel.Nifti1Image(np.moveaxis(SLICES, 0, 2).astype(np.int16), np.eye(4)).to_bytes()


def dicom(folder) -> bytes:
    pytest.importorskip("pydicom")
    from test_dicom import write

    return write(folder / "whole.dcm", SLICES.astype(np.uint16)).read_bytes()


def autoencoder() -> dict:
    torch.manual_seed(0)
    model = modules.RQVAE(codebook_size=4, depth=2, width=8, blocks=1, dim=4)
    content = {"kind": "autoencoder", "model": "rqvae", "arguments": model.arguments, "data": DATA, "epoch": 3}
    return content | {"validation_ssim": 0.9, "state": model.state_dict()}


# ------------------------------------------------------------------------------------------- damage

NUMBERS = [-1, 0, 1, 17, 2**31, 2**63, 10**400, 0.5, 1e308, math.nan, math.inf]
VALUES = [None, True, "", "x", "\x1b[2J", "\udcff", "9" * 5000, [], [1], [[]], {}, {"x": 1}, *NUMBERS]


@st.composite
def damaged_bytes(draw, data: bytes, first: int | None = None) -> bytes:
    """Any bytes, or `data` with some of its `first` bytes replaced, left out or doubled, or cut short."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=100))
    start = draw(st.integers(0, min(first or len(data), len(data)) - 1))
    end = draw(st.one_of(st.integers(start, start + 8), st.just(len(data))))
    return data[:start] + draw(st.one_of(st.binary(max_size=8), st.just(2 * data[start:end]))) + data[end:]


@st.composite
def damaged_tree(draw, tree: dict) -> dict:
    """One to three entries of nested dicts and lists replaced by odd values, left out, or turned to NaN."""
    tree = deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        where, key = tree, draw(st.sampled_from(sorted(tree)))
        while isinstance(where[key], dict | list) and where[key] and draw(st.booleans()):
            where = where[key]
            key = draw(st.sampled_from(list(where) if isinstance(where, dict) else range(len(where))))
        if isinstance(where[key], torch.Tensor):
            where[key] = draw(st.sampled_from([where[key] * math.nan, where[key][None], where[key].bool(), "x"]))
        elif draw(st.booleans()):
            where[key] = draw(st.sampled_from(VALUES))
        elif len(tree) > 1:
            del where[key]
    return tree


# ------------------------------------------------------------------------------------------- reading


def status_of(command, capsys) -> int:
    """Exit status of a command, which must be 0, or 2 after one printable line."""
    status = exit_on_input_error(command)()
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert status in (0, 2)
    assert len(errors) == (status == 2)
    assert all(line.isprintable() for line in errors)
    return status


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["a.png", "a.nii", "a.nii.gz", "a.dcm"])
def test_a_picture_or_a_volume(name, tmp_path, capsys):
    make = {
        "a.png": png,
        "a.nii": nifti,
        "a.nii.gz": lambda: gzip.compress(nifti()),
        "a.dcm": lambda: dicom(tmp_path),
    }
    path = tmp_path / name

    @some_examples
    @given(damaged_bytes(make[name](), first=500))
    def check(data):
        path.write_bytes(data)
        status_of(lambda: dataset.read_files([path]) and None, capsys)

    check()


@pytest.mark.parametrize("name", ["a.png", "a.nii.gz"])
def test_a_flipped_bit_never_gives_another_picture(name, tmp_path):
    """Both formats have checksums."""
    whole = png() if name == "a.png" else gzip.compress(nifti(), mtime=0)
    path = tmp_path / name
    path.write_bytes(whole)
    expected = dataset.read_files([path]).images

    @some_examples
    @given(st.integers(0, 8 * len(whole) - 1))
    def check(bit):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            images = dataset.read_files([path]).images
        except InputError:
            return
        np.testing.assert_array_equal(images, expected)

    check()


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint(tmp_path, capsys):
    path = tmp_path / "vqvae.pth"

    def reconstruct() -> None:
        model, about = load_autoencoder(path)
        codec = Codec(model, about["data"], compute.choose("cpu", "fp32"))
        codec.decode(codec.encode(SLICES[:1]))

    @some_examples
    @given(st.one_of(damaged_tree(autoencoder()).map(saved), damaged_bytes(saved(autoencoder()))))
    def check(data):
        path.write_bytes(data)
        status_of(reconstruct, capsys)

    check()


def test_a_config(tmp_path, capsys, monkeypatch):
    """Whatever is in it, the command then ends where there is no data."""
    path = tmp_path / "config.json"
    monkeypatch.setattr("sys.argv", ["train.py", "--config", str(path), "--data", str(tmp_path / "nowhere")])
    config = TrainSettings().model_dump(mode="json")

    @some_examples
    @given(st.one_of(damaged_tree(config).map(lambda tree: json.dumps(tree).encode()), damaged_bytes(b'{"epochs": 3}')))
    def check(data):
        path.write_bytes(data)
        assert status_of(train.main, capsys) == 2

    check()
