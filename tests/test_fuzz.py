"""A hundred changed files and command lines: read as train.py and predict.py read them, they end with status 0 or 2.

`benchmarks/fuzz.py` makes the same changes by the thousand, and gives them to the commands themselves.
"""

import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_checkpoint import DATA

import dataset
import modules
import predict
from benchmarks.bad_inputs import blob, png, saved
from benchmarks.fuzz import Examples, as_json, changed_bytes, changed_tree
from inference.codec import Codec
from inference.loading import identity, load_autoencoder, load_prior
from networks.pixelcnn import PixelCNN
from reading import cache
from runtime import checkpoint, cli, compute
from runtime.errors import exit_on_input_error
from training.run import load_last
from training.settings import TrainCommand, TrainSettings, settle
from training.state import restore

some_examples = settings(
    max_examples=12,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def make_autoencoder():
    torch.manual_seed(0)
    return modules.RQVAE(codebook_size=4, depth=2, width=8, blocks=1, dim=4).eval()


AUTOENCODER = make_autoencoder()
PRIOR = PixelCNN([[4, 4], [4, 4]], [4, 4], levels=4, width=8, layers=1)
OPTIMIZER = torch.optim.Adam(AUTOENCODER.parameters())
CHECKPOINT = {"kind": "autoencoder", "model": "rqvae", "arguments": AUTOENCODER.arguments, "data": DATA, "epoch": 3}
CHECKPOINT |= {"validation_ssim": 0.9, "state": AUTOENCODER.state_dict()}
PIXELCNN = {"kind": "prior", "model": "pixelcnn", "arguments": PRIOR.arguments, "autoencoder": identity(AUTOENCODER)}
PIXELCNN |= {"epoch": 1, "validation_bits": 3.5, "state": PRIOR.state_dict()}
STATE = {"kind": "run", "stage": "autoencoder", "epoch": 1, "step": 2, "best": 0.5, "sums": {"x": torch.ones(())}}
STATE |= {"rows": [{"stage": "autoencoder", "epoch": 1, "x": 0.5}], "rng": torch.get_rng_state(), "cuda_rng": None}
STATE |= {"parts": {"model": AUTOENCODER.state_dict(), "optimizer": OPTIMIZER.state_dict()}}
VOLUME = nibabel.Nifti1Image(np.stack([blob(seed) for seed in range(4)], axis=2).astype(np.int16), np.eye(4)).to_bytes()


def read_checkpoint(folder: Path) -> None:
    model, about = load_autoencoder(folder / "file")
    codec = Codec(model, about["data"], compute.choose("cpu", "fp32"))
    codec.decode(codec.encode(np.zeros((1, 32, 32), np.uint8)))


def read_prior(folder: Path) -> None:
    prior, _ = load_prior(folder / "file", AUTOENCODER)
    AUTOENCODER.decode(prior.sample([1, 2]))


def read_state(folder: Path) -> None:
    (folder / "last.pth").write_bytes((folder / "file").read_bytes())
    state = load_last(folder)
    try:
        for name, part in {"model": make_autoencoder(), "optimizer": OPTIMIZER}.items():
            restore(part, state["parts"][name])
    except checkpoint.MISFITS:  # as a stage does that goes on
        return


READ = {
    "checkpoint": (read_checkpoint, st.one_of(changed_tree(CHECKPOINT).map(saved), changed_bytes(saved(CHECKPOINT)))),
    "prior": (read_prior, changed_tree(PIXELCNN).map(saved)),
    "state": (read_state, changed_tree(STATE).map(saved)),
    "config": (
        lambda folder: settle(cli.parse(TrainCommand, "", ["--config", str(folder / "file")])),
        changed_tree(TrainSettings().model_dump(mode="json")).map(as_json),
    ),
    "picture": (lambda folder: dataset.read_files([folder / "file"]), changed_bytes(png(blob(1)))),
    "volume": (lambda folder: dataset.read_files([folder / "file"]), changed_bytes(VOLUME, 352)),
    "packed volume": (lambda folder: dataset.read_files([folder / "file"]), changed_bytes(gzip.compress(VOLUME))),
}


def ends_well(read, capsys) -> None:
    def command() -> None:
        read()

    status = exit_on_input_error(command)()
    said = capsys.readouterr().err.splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    assert status in (0, 2), said
    assert len(errors) == (status == 2), said
    assert all(line.isprintable() for line in said)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", READ)
def test_a_changed_file_is_read_or_refused_in_one_line(kind, tmp_path, capsys):
    read, changed = READ[kind]

    @some_examples
    @given(changed)
    def check(data):
        (tmp_path / "file").write_bytes(data)
        ends_well(lambda: read(tmp_path), capsys)

    check()


@pytest.mark.filterwarnings("ignore")
def test_a_changed_cache_is_built_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for split in ("train", "validate", "test"):
        (tmp_path / split).mkdir()
        Image.fromarray(blob(1)).save(tmp_path / split / f"{split}_slice_1.png")
    before = dataset.load(str(tmp_path)).fingerprint
    [index] = cache.cache_root().rglob("index.json")
    content = index.read_text()

    @some_examples
    @given(st.one_of(changed_tree(json.loads(content)).map(as_json), changed_bytes(content.encode())))
    def check(data):
        index.write_bytes(data)
        ends_well(lambda: dataset.load(str(tmp_path)), capsys)
        assert dataset.load(str(tmp_path)).fingerprint == before

    check()


@pytest.mark.parametrize("kind", [TrainCommand, predict.PredictSettings], ids=["train", "predict"])
def test_an_odd_command_line_is_taken_or_refused_in_one_line(kind, capsys):
    @some_examples
    @given(Examples.options(kind, "", ["vqvae.pth"] if kind is predict.PredictSettings else []))
    def check(example):
        settings = cli.parse if kind is predict.PredictSettings else lambda *given: settle(cli.parse(*given))
        ends_well(lambda: settings(kind, "", example.arguments), capsys)

    check()
