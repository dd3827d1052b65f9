"""Does the benchmark of speed run, and say something about every stage? How fast things are is no test's business."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure, plain, speed
from modules import VQVAE
from runtime import compute
from scoring import metrics

STAGES = {
    "decoding and cache",
    "batches",
    "VQ-VAE step",
    "validation with SSIM",
    "DCGAN step",
    "DCGAN step, residual",
    "DCGAN sampling",
    "DCGAN sampling, residual",
    "PixelCNN step",
    "PixelCNN sampling",
    "whole training, 1 + 0 epochs",
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Two people for each of two splits, 3 slices each: noise in a few pixels, black around them."""
    root = tmp_path_factory.mktemp("set")
    for person, split in enumerate(("train", "train", "validate", "validate"), 1):
        folder = root / f"keras_png_slices_{split}"
        folder.mkdir(exist_ok=True)
        for level in range(3):
            slice_ = np.zeros((256, 256), np.uint8)
            slice_[100:132, 90:122] = np.random.default_rng(10 * person + level).integers(1, 256, (32, 32))
            Image.fromarray(slice_).save(folder / f"case_{person:03d}_slice_{level}.nii.png")
    return root


def run(pictures: Path, target: Path, monkeypatch, *options: str) -> dict:
    """The JSON of a quick benchmark in this process."""
    command = ["speed.py", "--quick", "--device", "cpu", "--data", str(pictures), "--out", str(target), *options]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setenv("XDG_CACHE_HOME", str(target.parent))  # speed.py sets it, and this puts it back
    assert speed.main() == 0
    return json.loads(target.read_text())


def positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def test_every_stage_is_measured(pictures, tmp_path, monkeypatch, capsys):
    result = run(pictures, tmp_path / "speed.json", monkeypatch)
    assert set(result["stages"]) == STAGES
    for title, ways in result["stages"].items():
        assert set(ways) == {"ours"} | ({"plain"} if "residual" not in title else set())
        for way in ways.values():
            assert all(map(positive, way["seconds"]))
            assert way["images_per_second_min"] <= way["images_per_second"] <= way["images_per_second_max"]
            assert positive(way["images_per_second"])
            assert way["peak_bytes"] >= 0
            if not title.startswith("whole"):
                assert positive(way["bytes_per_image"])
                assert positive(way["limit_images_per_second"])
                assert positive(way["share_of_limit"])
    assert all(positive(result["machine"][key]) for key in ("float32_flops", "copy_bytes_per_second"))
    printed = capsys.readouterr().out
    assert all(f"| {title} |" in printed for title in STAGES)


def test_second_start_finds_the_cache(pictures, tmp_path, monkeypatch, capsys):
    result = run(pictures, tmp_path / "start.json", monkeypatch, "--second-start")["second_start"]
    for start, torch_alone in zip(result["second_start_seconds"], result["importing_torch_seconds"], strict=True):
        assert 0 < torch_alone < start
    assert result["peak_bytes"] > result["torch_peak_bytes"] > 0
    assert "| beyond it, s |" in capsys.readouterr().out


def test_growth_tells_each_set_apart(pictures, tmp_path, monkeypatch, capsys):
    rows = run(pictures, tmp_path / "growth.json", monkeypatch, "--growth")["growth"]
    small, large = rows
    assert (small["images"], large["images"]) == (8, 16)
    assert large["data_bytes"] - small["data_bytes"] == pytest.approx(8 * 256**2, rel=0.01)
    assert all(positive(row["seconds_per_epoch"]) and row["peak_bytes"] > 0 for row in rows)
    assert "\n| 16 |" in capsys.readouterr().out


@pytest.mark.skipif(not compute.choose("cpu").bf16, reason="this CPU has no bf16 arithmetic")
def test_both_precisions_are_scored(pictures, tmp_path, monkeypatch):
    rows = run(pictures, tmp_path / "precisions.json", monkeypatch, "--both-precisions")["both_precisions"]
    assert [row["precision"] for row in rows] == ["bf16", "fp32"]
    assert all(-1 < row["validation_ssim"] < 1 for row in rows)


def test_bad_input_is_one_line_and_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["speed.py", "--quick", "--device", "cpu", "--data", str(tmp_path / "none")])
    assert speed.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_repetitions_are_new_people(pictures, tmp_path):
    root = measure.repeated_set(pictures, tmp_path / "more", {"train": 14, "validate": 4})
    names = sorted(path.name for path in (root / "keras_png_slices_train").iterdir())
    assert len(names) == 14
    assert len({name[: len("case_00001")] for name in names}) == 5  # 3 + 3, 3 + 3, 2 slices
    trained_on = {path.name[:10] for path in (root / "keras_png_slices_train").iterdir()}
    assert not trained_on & {path.name[:10] for path in (root / "keras_png_slices_validate").iterdir()}


@pytest.mark.parametrize("mode", ["gradients", "inference"])
def test_ledger_counts_as_torch_does(mode):
    model, images = VQVAE(), torch.rand(1, 1, 32, 32)

    def work():
        with torch.inference_mode(mode == "inference"):
            reconstruction, _, loss = model(images)
        if mode == "gradients":
            (reconstruction.mean() + loss).backward()

    with measure.Ledger() as ledger:
        work()
    with FlopCounterMode(display=False) as counter:
        work()
    assert sum(ledger.operations.values()) == counter.get_total_flops() > 0


def test_limit_is_the_slower_of_computing_and_moving():
    machine = measure.Machine({torch.float32: 1e9, torch.bfloat16: 4e9}, copy=1e6)
    ledger = measure.Ledger()
    ledger.operations.update({torch.float32: 10**9, torch.bfloat16: 10**9})
    assert machine.limit(ledger, moved=0) == pytest.approx(1.25)
    assert machine.limit(ledger, moved=2 * 10**6) == pytest.approx(2.0)


def test_plain_way_computes_the_same():
    """The same weights give the same codes, reconstruction and SSIM: only the speed differs."""
    torch.manual_seed(0)
    ours, report = VQVAE().eval(), plain.PlainVQVAE().eval()
    ours.quantizers[0].codebook.mul_(0.1)
    shared = {name: value for name, value in ours.state_dict().items() if not name.endswith("usage")}
    report.load_state_dict(shared)
    images = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        reconstruction, (codes,), loss = ours(images)
        report_reconstruction, (report_codes,), report_loss = report(images)
    assert torch.equal(codes, report_codes)
    torch.testing.assert_close(report_reconstruction, reconstruction)
    torch.testing.assert_close(report_loss, loss)
    with torch.no_grad():
        found = plain.validation_ssim(report, [images], torch.device("cpu"))
    pairs = zip(images[:, 0].numpy(), reconstruction[:, 0].clamp(0, 1).numpy(), strict=True)
    assert found == pytest.approx(np.mean([structural_similarity(*pair, data_range=1.0) for pair in pairs]), abs=1e-5)
    assert found == pytest.approx(metrics.ssim(images, reconstruction.clamp(0, 1)).mean().item(), abs=1e-4)


def test_masked_pixelcnn_looks_only_back():
    torch.manual_seed(0)
    prior = plain.MaskedPixelCNN(codebook_size=5, width=4, layers=3).eval()
    codes = torch.randint(5, (1, 6, 6))
    changed = codes.clone()
    changed[0, 2, 3] = (changed[0, 2, 3] + 1) % 5
    difference = (prior(codes) - prior(changed)).abs().sum(1)[0].flatten()
    assert (difference[: 2 * 6 + 3 + 1] == 0).all()
    assert difference[2 * 6 + 4] > 0
