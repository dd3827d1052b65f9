"""The page says of a GPU what the parts of benchmarks/gpu.sh have measured, and nothing where they haven't."""

import json
import re

import pytest

from benchmarks import gpu

ABOUT = {"device": "a GPU in bf16", "torch": "9.9", "cores": 2, "quick": False}


def test_the_page_is_what_the_files_say():
    text = gpu.PAGE.read_text(encoding="utf-8")
    assert re.findall(r"<!-- gpu: (\w+) -->", text) == list(gpu.PARTS)
    assert gpu.filled(text, gpu.PAGE.parent / "gpu") == text


@pytest.mark.parametrize(
    ("part", "numbers", "row"),
    [
        ("tests", {"passed": 9, "failed": [], "skipped": ["a"]}, "| 9 | 0 | 1 |"),
        (
            "two_processes",
            {"two_processes": [{"processes": 2, "seconds": 7.1, "validation_ssim": [0.5, 0.91234]}]},
            "| 2 | 0.9123 | 7 |",
        ),
        (
            "train",
            {"rows": [{"stage": "dcgan", "epoch": str(i), "frechet_pca": f"0.{i}"} for i in (1, 2)]},
            "| dcgan | 2 | frechet_pca 0.2 |",
        ),
        (
            "precision",
            {"both_precisions": [{"precision": "bf16", "seed": 1, "images": 9, "validation_ssim": 0.9, "seconds": 3}]},
            "| bf16 | 1 | 9 | 0.9000 | 3 |",
        ),
    ],
)
def test_a_part_that_was_measured_is_a_table(part, numbers, row, tmp_path):
    page = f"<!-- gpu: {part} -->\nold\n<!-- end -->\n"
    (tmp_path / f"{part}.json").write_text(json.dumps(ABOUT | {"quick": True} | numbers))
    assert "Not measured yet" in gpu.filled(page, tmp_path)
    (tmp_path / f"{part}.json").write_text(json.dumps(ABOUT | numbers))
    filled = gpu.filled(page, tmp_path)
    assert "a GPU in bf16, PyTorch 9.9:" in filled
    assert row in filled.splitlines()
    assert "old" not in filled
