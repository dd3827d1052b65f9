"""What is done to the commands by the thousand, and what is said of it, on a few."""

import random

import pytest

from benchmarks import flips, reliability, stops
from benchmarks.bad_inputs import blob, png
from reading import images

FAULTS = {
    "kills": 2,
    "kills_by_plan": {"cache": 1, "vqvae": 1},
    "kills_failed": 0,
    "inputs": {"options, refused": 3, "PNG, accepted": 1, "PNG, refused": 2},
    "full_disks": 2,
    "full_disks_mounted": 1,
    "full_disks_failed": 0,
}


@pytest.mark.parametrize("bit", [0, 7, 8, 23])
def test_one_bit_is_flipped_and_flipped_back(bit):
    data = b"abc"
    changed = flips.flipped(data, bit)
    assert sum((one ^ other).bit_count() for one, other in zip(data, changed, strict=True)) == 1
    assert flips.flipped(changed, bit) == data


def test_no_flip_of_a_png_gives_another_picture_but_of_a_file_without_checksum_it_does(tmp_path):
    rng = random.Random(0)
    counts = flips.tried(tmp_path / "a.png", png(blob(1)), lambda path: images.read(path)[0], 40, rng)
    assert counts.total() == 40
    assert counts["refused"] > 30
    assert not counts[flips.OTHER]
    raw = flips.tried(tmp_path / "a.raw", bytes(10), lambda path: list(path.read_bytes()), 40, rng)
    assert raw == {flips.OTHER: 40}


def test_a_report_is_told_with_its_failures():
    table = reliability.table({"faults": FAULTS})
    assert "SIGKILL at random moments of `train.py`, 2 times: cache 1, vqvae 1" in table
    assert "nothing written: 5; taken as they are: 1" in table
    assert "failed" not in table
    assert "**1 failed**" in reliability.table({"faults": FAULTS | {"full_disks_failed": 1}})
    assert "**1 failed**" in reliability.table({"faults": FAULTS | {"inputs": {"options, refused": 3, "x, failed": 1}}})
    report = {"examples": 4, "outcomes": {"cache, status 143": 1, "PNG, status 2": 2, "PNG, status 0": 1}}
    assert "nothing written: 2; worked: 2; status 1: 0" in reliability.table({"fuzz": report | {"failures": []}})


def test_reports_are_read_by_their_programs_names(tmp_path):
    (tmp_path / "flips.json").write_text('{".png": {"refused": 1}}')
    (tmp_path / "other.json").write_text("[]")
    assert reliability.read(tmp_path) == {"flips": {".png": {"refused": 1}}}


def test_a_stack_tells_what_a_run_is_at(tmp_path):
    path = tmp_path / "stack.txt"
    path.write_text(
        'Current thread 0x1 (most recent call first):\n  File "/x/torch/nn.py", line 3 in forward\n'
        '  File "/x/scoring/judge.py", line 9 in frechet\n  File "/x/training/dcgan.py", line 7 in train_dcgan\n'
    )
    assert stops.at_work(path) == "the judge"
    path.write_text("")
    assert stops.at_work(path) == "before or after all of them"
