import json

import numpy as np
import pytest
from conftest import run_script

from benchmarks import others


def test_the_template_is_whole_along_each_axis():
    shapes = [others.mni152(axis).shape for axis in range(3)]
    assert shapes == [(197, 233, 189), (233, 197, 189), (189, 197, 233)]
    slices = others.mni152(2)
    assert slices.dtype == np.uint8
    assert (slices.min(), slices.max()) == (0, 255)


def test_dimmed_slices_keep_their_black():
    slices = np.array([[[0, 10, 255]]], np.uint8)
    assert others.dimmed(slices, 0.1).tolist() == [[[0, 1, 26]]]


def test_a_row_says_how_many_how_good_and_whether_black_stays_black(tiny_run):
    model = others.TrainedModel.load(tiny_run / "vqvae.pth", "none", "cpu")
    row = others.row_of(model, "all black", np.zeros((2, 64, 48), np.uint8))
    assert row["slices"] == 2
    assert row["largest_value"] in range(256)
    assert row["ssim"] == pytest.approx(row["lowest"])


def test_rows_are_written_and_bad_input_is_one_line(tiny_run, tiny_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(others, "sources", lambda settings: iter([("all black", np.zeros((1, 64, 64), np.uint8))]))
    arguments = ["others.py", str(tiny_run / "vqvae.pth"), "--out", str(tmp_path / "others.json")]
    monkeypatch.setattr("sys.argv", arguments)
    assert others.main() == 0
    [row] = json.loads((tmp_path / "others.json").read_text())["rows"]
    assert row["name"] == "all black"
    assert f"{row['ssim']:.4f}" in others.others_table([row])
    done = run_script("benchmarks/others.py", tmp_path / "none.pth", cache=tiny_cache)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
