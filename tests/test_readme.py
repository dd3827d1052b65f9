"""The README says what was measured, the pretrained models are what it says they are, and every command is one."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from conftest import run_script

from benchmarks import readme, weights
from benchmarks.tables import markdown
from inference.loading import load_autoencoder, load_prior
from runtime import cli
from training.settings import TrainCommand, settle

RESULTS = json.loads((readme.RESOURCES / "results.json").read_text())
ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_numbers_in_the_pages_are_those_of_results_json(page):
    text = page.read_text(encoding="utf-8")
    assert readme.filled(text, RESULTS) == text
    changed = json.loads(json.dumps(RESULTS))
    changed["autoencoders"]["rqvae"]["ssim"]["mean"] += 0.01
    assert readme.filled(text, changed) != text


def test_every_block_of_results_is_shown():
    shown = re.findall(r"<!-- results: (.+?) -->", "".join(page.read_text(encoding="utf-8") for page in readme.PAGES))
    assert set(shown) == set(readme.BLOCKS)


def test_columns_of_numbers_stand_to_the_right():
    made = markdown(["a", "b", "c"], [["x", "1.5", "-"], ["y", "2,000", "3 of 4"]])
    assert made.splitlines()[1] == "| --- | ---: | ---: |"
    assert made.splitlines()[-1] == "| y | 2,000 | 3 of 4 |"


def test_checkpoints_are_taken_from_the_repository_or_from_finished_runs(tmp_path):
    settings = readme.ReadmeSettings(data="DIR", runs=tmp_path)
    assert readme.find("rqvae", settings) == readme.DEFAULT
    (tmp_path / "vqvae2/20260101_000000").mkdir(parents=True)
    assert readme.find("vqvae2", settings) is None
    (tmp_path / "vqvae2/20260101_000000/report.html").touch()
    assert readme.find("vqvae2", settings) == tmp_path / "vqvae2/20260101_000000/vqvae.pth"


@pytest.mark.parametrize("name", ["rqvae", "rqvae_4356", "vqvae"])
def test_pretrained_autoencoders_are_those_of_the_table(name):
    model, about = load_autoencoder(readme.PRETRAINED / readme.AUTOENCODERS[name].file)
    row = RESULTS["autoencoders"][name]
    assert about["epoch"] == row["epoch"]
    assert sum(p.numel() for p in model.parameters()) == row["parameters"]
    with torch.inference_mode():
        assert model.decode(model.encode(torch.zeros(1, 1, 144, 176))).shape == (1, 1, 144, 176)


@pytest.mark.parametrize("name", list(readme.PRIORS))
def test_pretrained_priors_speak_the_codes_of_the_default(name):
    autoencoder, _ = load_autoencoder(readme.DEFAULT)
    _, about = load_prior(readme.PRETRAINED / readme.PRIORS[name].file, autoencoder)
    assert about["epoch"] == RESULTS["priors"][name]["epoch"]


def test_pretrained_files_are_small_enough():
    sizes = [path.stat().st_size for path in readme.PRETRAINED.rglob("*.pth")]
    assert max(sizes) < 20e6
    assert sum(sizes) < 55e6


def test_the_model_card_has_the_command_of_every_file():
    made = weights.commands(Path("DIR"), readme.DEFAULT)
    assert set(made) == {str(path.relative_to(readme.PRETRAINED)) for path in readme.PRETRAINED.rglob("*.pth")}
    for options in made.values():
        settings, _ = settle(cli.parse(TrainCommand, "", options))
        assert settings.autoencoder in (None, readme.DEFAULT)
    assert made["vqvae.pth"] == made["painter.pth"]


def test_pictures_and_files_that_the_pages_name_are_there():
    for page in readme.PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), target


def test_every_command_in_the_readme_names_a_script_and_options_that_it_has(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))
    commands = [shlex.split(line, comments=True) for line in blocks.splitlines()]
    commands += [shlex.split(command) for command in re.findall(r"`(python [^`]+)`", text)]
    options = {}
    for words in commands:
        for script in [word for word in words if word.endswith(".py")]:
            own = [word for word in words[words.index(script) :] if word.startswith("--")]
            options.setdefault(script, set()).update(own)
    assert len(options) >= 4
    for script, own in options.items():
        assert (ROOT / script).is_file()
        known = run_script(script, "--help", cache=tmp_path).stdout if own else ""
        assert own <= set(re.findall(r"--[a-z-]+", known)), script
