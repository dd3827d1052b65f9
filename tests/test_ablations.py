"""The ablation table: rows that train.py takes, and the whole command on a tiny data set."""

import json

import pytest
from conftest import run_script

from benchmarks.ablations import ROWS, ablation_table
from runtime import cli
from training.settings import TrainSettings


@pytest.mark.parametrize("changed", ROWS.values())
def test_train_takes_the_options_of_every_row(changed):
    settings, defaults = cli.parse(TrainSettings, "", changed), TrainSettings()
    different = {name for name, value in settings if value != getattr(defaults, name)}
    assert different == {flag[2:].replace("-", "_") for flag in changed[::2]}


def test_whole_command_and_going_on(tiny_data, tiny_cache, tmp_path):
    command = ("benchmarks/ablations.py", "--data", str(tiny_data), "--rows", "1", "--out", str(tmp_path))
    first = run_script(*command, cache=tiny_cache)
    assert first.returncode == 0, first.stderr
    runs = list(tmp_path.glob("00_*/*/vqvae.pth"))
    written = json.loads((tmp_path / "ablations.json").read_text())
    row = written["rows"]["default"]
    assert 0 < row["validation_ssim"] < 1
    assert row["images_per_second"] > 0
    assert ablation_table(written["rows"]) in (tmp_path / "ablations.md").read_text()
    assert run_script(*command, cache=tiny_cache).returncode == 0  # nothing is trained again
    assert list(tmp_path.glob("00_*/*/vqvae.pth")) == runs
