"""Codecs at given bytes: what fits and what doesn't, the best that fits, and the whole command on a tiny data set."""

import json
import sys

import numpy as np
import pytest
from conftest import LEVELS, blob
from PIL import Image
from skimage.metrics import structural_similarity

from benchmarks import codecs
from benchmarks.codecs import CODECS, compress, decompress, run_codec


@pytest.mark.parametrize("name", CODECS)
def test_the_best_quality_that_fits_is_taken(name):
    image = blob(1, 5)
    small, large = (compress(CODECS[name], image, budget) for budget in (700, 1500))
    assert len(small) <= 700 < len(large) <= 1500  # more bytes are used where they are allowed
    scores = [structural_similarity(image, decompress(data), data_range=255) for data in (small, large)]
    assert scores[0] < scores[1]
    assert scores[1] > 0.95
    if name == "JPEG":  # whose best quality is not the highest: at every other one black isn't black
        assert decompress(large)[0, 0] == 0


def test_a_slice_that_does_not_fit_is_counted():
    images = np.stack([np.zeros((256, 256), np.uint8), np.random.default_rng(0).integers(0, 256, (256, 256), np.uint8)])
    coded = run_codec("JPEG", images, 1100)
    assert coded.sizes[0] <= 1100 < coded.sizes[1]
    assert (coded.row["too_large"], coded.row["bytes"]) == (1, coded.sizes.mean())
    assert coded.pictures.shape == images.shape
    assert not coded.pictures[0].any()


def test_the_whole_table_from_the_command_line(tiny_data, tiny_cache, tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(codecs, "CODECS", {name: CODECS[name] for name in ("JPEG", "WebP")})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny_cache))
    options = ["--data", tiny_data, "--checkpoints", tiny_run / "vqvae.pth", "--bytes", 900, "--out", tmp_path]
    monkeypatch.setattr(sys, "argv", ["codecs.py", *map(str, options)])
    assert codecs.main() == 0
    content = json.loads((tmp_path / "codecs.json").read_text())
    assert content["data"] == f"synthetic demo set, test split, {LEVELS} slices"
    rows = content["rows"]
    assert [(row["name"], row["budget"]) for row in rows[1:]] == [("JPEG", 900), ("WebP", 900)]
    assert 0 < rows[0]["file_bytes"] < rows[0]["bytes"]
    assert all(row["bytes"] <= row["budget"] or row["too_large"] for row in rows)
    table = (tmp_path / "codecs.md").read_text()
    assert table in capsys.readouterr().out
    assert f"| {rows[0]['bytes']:,.0f} | {rows[0]['file_bytes']:,.0f} | {rows[0]['ssim']:.4f} |" in table
    for name in ("rate_distortion.png", f"side_by_side_{tiny_run.name}.png"):
        with Image.open(tmp_path / name) as image:
            assert "synthetic demo set" in image.text["Description"]
