"""The settings of a training: where they come from, what wins, and what a resumed run may change."""

import json
from pathlib import Path

import pytest
import tiny
import torch

from inference.loading import AUTOENCODERS
from runtime import cli
from runtime.compute import Compute
from runtime.errors import InputError
from train import GAN_RECIPES, LOSSES, PRIORS
from training.settings import (
    AutoencoderSettings,
    PriorSettings,
    TrainCommand,
    TrainSettings,
    config_of,
    read_config,
    settle,
)

CPU = Compute(torch.device("cpu"), bf16=False)


def settled(*arguments: object) -> TrainSettings:
    """The settings that train.py comes to with these arguments."""
    return settle(cli.parse(TrainCommand, "", list(map(str, arguments))))[0]


def written(folder: Path, **values: object) -> Path:
    """A run folder with the config.json of a run that was started with these settings."""
    config = config_of(TrainSettings(**values), tiny.data_set(), CPU)
    (folder / "config.json").write_text(config.model_dump_json())
    return folder


def choices(settings: type, name: str) -> set:
    """What a field that is a choice can be, None aside."""
    kind = settings.model_fields[name].annotation
    parts = [part for part in kind.__args__ if part is not type(None)]
    return set(parts[0].__args__ if hasattr(parts[0], "__args__") else parts)


def test_defaults_are_those_that_the_readme_names():
    settings = settled()
    assert (settings.epochs, settings.batch_size, settings.lr, settings.beta) == (24, 8, 1e-3, 0.25)
    assert (settings.codebook_size, settings.codebook, settings.prior_epochs) == (512, "ema", 80)
    assert (settings.model, settings.depth, settings.downsample, settings.gan) == ("rqvae", 8, 8, "residual")


def test_every_choice_is_one_that_training_knows():
    assert choices(AutoencoderSettings, "model") == set(AUTOENCODERS)
    assert choices(AutoencoderSettings, "loss") == set(LOSSES)
    assert choices(PriorSettings, "prior") == {*PRIORS, "none"}
    assert choices(PriorSettings, "gan") == set(GAN_RECIPES)


def test_every_number_has_a_range_and_every_field_a_help_text():
    for name, field in TrainCommand.model_fields.items():
        assert field.description, name
        if field.annotation in (int, int | None, float, float | None):
            assert {key for one in field.metadata for key in ("ge", "le") if hasattr(one, key)} == {"ge", "le"}, name


# ------------------------------------------------------------------------------------------- config.json


def test_config_comes_back_as_it_was_and_names_data_commit_and_device(tmp_path):
    given = ["--lr=0.01", "--limit-people=3", "--allow-overlap", "--slices=1:5", "--downsample=16", "--axis=0"]
    settings = settled("--data=demo", *given, "--save-minutes=2.5", "--out=somewhere/else")
    config = config_of(settings, tiny.data_set(), CPU)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert read_config(tmp_path / "config.json") == config
    assert config.data_fingerprint == tiny.data_set().fingerprint
    assert config.computed_on.startswith("computing on the CPU")
    assert config.commit is None or len(config.commit) == 40
    assert settled("--config", tmp_path / "config.json") == settings
    assert settled("--resume", tmp_path) == settings


def test_data_and_autoencoder_are_stored_as_absolute_paths(tmp_path, monkeypatch):
    """So that a run goes on from any directory."""
    monkeypatch.chdir(tmp_path)
    config = config_of(TrainSettings(data="blobs", autoencoder="some/vqvae.pth"), tiny.data_set(), CPU)
    assert (config.data, config.autoencoder) == (str(tmp_path / "blobs"), tmp_path / "some/vqvae.pth")
    assert config_of(settled("--data=demo"), tiny.data_set(), CPU).data == "demo"
    assert config_of(settled(), tiny.data_set(), CPU).data == str(tmp_path / "blobs")  # found in a usual place


def test_options_win_over_the_config_and_the_config_over_defaults(tmp_path):
    (tmp_path / "mine.json").write_text('{"model": "vqvae2", "epochs": 5, "seed": 3, "downsample": 4}')
    settings = settled("--config", tmp_path / "mine.json", "--seed=4", "--lr", "0.5")
    assert (settings.model, settings.epochs, settings.seed, settings.lr) == ("vqvae2", 5, 4, 0.5)
    assert (settings.downsample, settings.width) == (4, 64)
    assert settled("--config", tmp_path / "mine.json", "--epochs=24").epochs == 24  # back to the default


@pytest.mark.parametrize("option", ["--config", "--resume"])
def test_what_is_wrong_with_a_config_is_named(option, tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(InputError, match=f"can't read {path}: No such file"):
        settled(option, path if option == "--config" else tmp_path)
    path.write_text('{"epochs": 0}')
    with pytest.raises(InputError, match=f"{path}: epochs must be greater than or equal to 1, not 0"):
        settled(option, path if option == "--config" else tmp_path)


def test_a_config_starts_a_run_with_the_same_result(tmp_path, monkeypatch):
    trainer = tiny.Trainer(tmp_path, monkeypatch)
    _, first = trainer(epochs=1)
    status, second = trainer("--config", str(first / "config.json"))
    assert status == 0
    assert second != first
    tiny.assert_same_run(first, second)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (first, second)]
    assert all(config.pop("minutes") >= 0 for config in configs)
    assert configs[0] == configs[1]


def test_a_time_limit_is_that_of_one_start(tmp_path):
    """A run that was started for no time at all would else stop after each step, however often it is resumed."""
    settings = settled("--data=demo", "--time-limit=0")
    (tmp_path / "config.json").write_text(config_of(settings, tiny.data_set(), CPU).model_dump_json())
    assert settings.time_limit == 0
    assert settled("--resume", tmp_path).time_limit is None


# ------------------------------------------------------------------------------------------- --resume


def test_resume_takes_only_a_runs_own_config(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="has no data_fingerprint"):
        settled("--resume", tmp_path)
    with pytest.raises(InputError, match="leave out --config"):
        settled("--resume", tmp_path, "--config", tmp_path / "config.json")


CHANGED = {
    "data": "elsewhere", "limit_people": 3, "allow_overlap": True, "axis": 1, "slices": "1:2", "spacing": 2.0,
    "person": "P", "model": "vqvae", "from_": "/y.pth",
    "epochs": 30, "batch_size": 4, "optimizer": "adam", "lr": 0.5, "beta": 1.0, "downsample": 4, "depth": 2,
    "width": 32, "blocks": 1, "codebook_size": 64, "codebook": "gradient", "loss": "mse",
    "autoencoder": "/x.pth", "prior": "pixelcnn", "prior_epochs": 90, "prior_batch_size": 4, "prior_lr": 0.1,
    "gan": "baseline", "gan_gamma": 1.0, "painter_slices": 30, "covariates": "age", "prior_from": "/y.pth",
    "painter_width": 8, "painter_batch_size": 4, "painter_steps": 2,
    "augment": "off", "prior_codes": 3, "out": "there", "seed": 5, "device": "cpu", "precision": "fp32",
    "save_minutes": 1.0, "cuda_graphs": True, "time_limit": 3.0, "tensorboard": True,
}  # fmt: skip
ALLOWED = {
    "cuda_graphs",
    "data",
    "epochs",
    "prior_epochs",
    "device",
    "out",
    "save_minutes",
    "time_limit",
    "tensorboard",
}


@pytest.mark.parametrize("name", sorted(TrainSettings.model_fields))
def test_what_a_resumed_run_may_change(name, tmp_path):
    """Where it runs and how long; nothing that changes the result."""
    flag = cli.flag(name)
    arguments = ["--resume", written(tmp_path), flag, *([] if CHANGED[name] is True else [CHANGED[name]])]
    if name in ALLOWED:
        assert str(getattr(settled(*arguments), name)) == str(CHANGED[name])
        return
    with pytest.raises(InputError, match=f"started with {flag} .*; leave {flag} out"):
        settled(*arguments)


@pytest.mark.parametrize("name", ["epochs", "prior_epochs"])
def test_epochs_can_only_grow(name, tmp_path):
    run, flag = written(tmp_path, **{name: 5}), cli.flag(name)
    assert getattr(settled("--resume", run, f"{flag}=6"), name) == 6
    with pytest.raises(InputError, match=f"started with {flag} 5; give as many or more"):
        settled("--resume", run, f"{flag}=4")


# ------------------------------------------------------------------------------------------- what excludes what


def test_baseline_gan_needs_two_slices_a_step():
    with pytest.raises(InputError, match="a --prior-batch-size of 2 at least"):
        settled("--gan=baseline", "--prior-batch-size=1")


def test_a_trained_autoencoder_in_the_config_excludes_them_too(tmp_path):
    (tmp_path / "vqvae.pth").touch()
    written(tmp_path, autoencoder=tmp_path / "vqvae.pth", prior="pixelcnn")
    for start in (["--config", tmp_path / "config.json"], ["--resume", tmp_path]):
        assert settled(*start, "--prior-epochs=90").prior_epochs == 90
        with pytest.raises(InputError, match="leave out --epochs"):
            settled(*start, "--epochs=90")


@pytest.mark.parametrize("size", ["--model=vqvae", "--depth=4", "--painter-width=8"])
def test_networks_to_go_on_from_keep_their_sizes(size):
    with pytest.raises(InputError, match=f"leave out {size.partition('=')[0]}"):
        settled("--from=vqvae.pth", size)


def test_a_trained_autoencoder_must_be_there_and_get_a_prior():
    with pytest.raises(InputError, match="leaves nothing to train"):
        settled("--autoencoder=vqvae.pth", "--prior=none")
    with pytest.raises(InputError, match="no checkpoint at "):
        settled("--autoencoder=nowhere.pth")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--prior=transformer", "--prior-from=x.pth"],
            "--prior-from takes --prior transformer or pixelcnn, and the",
        ),
        (["--prior=pixelcnn", "--covariates=age"], "--covariates are for --prior transformer and the residual dcgan"),
        (["--gan=baseline", "--covariates=age"], "--covariates are for --prior transformer and the residual dcgan"),
    ],
)
def test_priors_that_take_no_covariates_or_have_nothing_to_go_on_from(arguments, message):
    with pytest.raises(InputError, match=message):
        settled(*arguments)
