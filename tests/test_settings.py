"""The settings of a training: where they come from, what wins, and what a resumed run may change."""

import json
from pathlib import Path

import pytest
import tiny

from modules import AUTOENCODERS
from runtime import cli
from runtime.errors import InputError
from train import BEST_OPTIMIZER, LOSSES, OPTIMIZERS, PRIORS
from training import dcgan
from training.settings import (
    FINGERPRINT,
    AutoencoderSettings,
    DataSettings,
    PainterSettings,
    PriorSettings,
    RunSettings,
    TrainCommand,
    TrainSettings,
    config_of,
    read_config,
    settle,
)


def settled(*arguments: object) -> TrainSettings:
    """The settings that train.py comes to with these arguments."""
    return settle(cli.parse(TrainCommand, "", list(map(str, arguments))))[0]


def written(folder: Path, **values: object) -> Path:
    """A run folder with the config.json of a run that was started with these settings."""
    config = config_of(TrainSettings(**values), tiny.data_set())
    (folder / "config.json").write_text(json.dumps(config))
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
    assert choices(AutoencoderSettings, "model") == set(AUTOENCODERS) == set(BEST_OPTIMIZER)
    assert choices(AutoencoderSettings, "loss") == set(LOSSES)
    assert choices(AutoencoderSettings, "optimizer") == set(OPTIMIZERS)
    assert choices(PriorSettings, "prior") == {*PRIORS, "none"}
    assert choices(PriorSettings, "gan") == set(dcgan.RECIPES)


def test_every_number_has_a_range_and_every_field_a_help_text():
    for name, field in TrainCommand.model_fields.items():
        assert field.description, name
        bounds = {key for one in field.metadata for key in ("ge", "le") if hasattr(one, key)}
        if field.annotation in (int, int | None):
            assert bounds == {"ge", "le"}, name
        if field.annotation in (float, float | None):
            assert bounds == {"ge", "le"}, name


def test_config_has_the_fields_in_the_order_of_the_help():
    groups = (DataSettings, AutoencoderSettings, PainterSettings, PriorSettings, RunSettings)
    expected = [name for group in groups for name in group.model_fields if name != "time_limit"]
    assert list(config_of(TrainSettings(), tiny.data_set())) == [*expected, FINGERPRINT]


# ------------------------------------------------------------------------------------------- config.json


def test_config_comes_back_as_it_was(tmp_path):
    given = ["--lr=0.01", "--limit-people=3", "--allow-overlap", "--slices=1:5", "--downsample=16", "--axis=0"]
    settings = settled("--data=demo", *given, "--save-minutes=2.5", "--out=somewhere/else")
    data = tiny.data_set()
    (tmp_path / "config.json").write_text(json.dumps(config_of(settings, data)))
    assert read_config(tmp_path / "config.json") == (settings, data.fingerprint)
    assert settled("--config", tmp_path / "config.json") == settings
    assert settled("--resume", tmp_path) == settings


def test_data_and_autoencoder_are_stored_as_absolute_paths(tmp_path, monkeypatch):
    """So that a run goes on from any directory."""
    monkeypatch.chdir(tmp_path)
    settings = settled("--data=blobs", "--autoencoder=some/vqvae.pth", "--prior=pixelcnn")
    config = config_of(settings, tiny.data_set())
    assert config["data"] == str(tmp_path / "blobs")
    assert config["autoencoder"] == str(tmp_path / "some/vqvae.pth")
    assert config_of(settled("--data=demo"), tiny.data_set())["data"] == "demo"
    assert config_of(settled(), tiny.data_set())["data"] == str(tmp_path / "blobs")  # found in a usual place


def test_options_win_over_the_config_and_the_config_over_defaults(tmp_path):
    written(tmp_path, model="vqvae2", epochs=5, seed=3)
    settings = settled("--config", tmp_path / "config.json", "--seed=4", "--lr", "0.5")
    assert (settings.model, settings.epochs, settings.seed, settings.lr) == ("vqvae2", 5, 4, 0.5)
    back_to_default = settled("--config", tmp_path / "config.json", "--epochs=24")
    assert back_to_default.epochs == 24


def test_a_config_may_be_short_and_without_a_run(tmp_path):
    (tmp_path / "mine.json").write_text('{"model": "vqvae", "downsample": 4}')
    settings = settled("--config", tmp_path / "mine.json")
    assert (settings.model, settings.downsample, settings.epochs) == ("vqvae", 4, 24)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"epochs": 0}', "config.json: epochs must be at least 1, not 0"),
        ('{"epochs": "many"}', "config.json: epochs must be a whole number, not many"),
        ('{"downsample": 5}', "config.json: downsample must be 4, 8 or 16, not 5"),
        ('{"gan_loss": "bce"}', "config.json: gan_loss is no setting of this version"),
        ('{"resume": "runs/x"}', "config.json: resume is no setting of this version"),
        ('{"lr": NaN}', "config.json: lr must be a finite number, not nan"),
        ("[]", "config.json holds no settings"),
        ("{", "config.json is not JSON"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "config.json is not JSON"),
        ("[" * 100_000, "config.json is not JSON"),
    ],
    ids=lambda value: value[:20],
)
@pytest.mark.parametrize("option", ["--config", "--resume"])
def test_what_is_wrong_with_a_config_is_named(option, text, complaint, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        settled(option, path if option == "--config" else tmp_path)
    assert str(caught.value).startswith(str(tmp_path / complaint))


@pytest.mark.parametrize("option", ["--config", "--resume"])
def test_config_that_is_not_there(option, tmp_path):
    with pytest.raises(InputError, match=r"can't read .*nowhere.*: No such file or directory"):
        settled(option, tmp_path / "nowhere")


def test_a_config_starts_a_run_with_the_same_result(tmp_path, monkeypatch):
    trainer = tiny.Trainer(tmp_path, monkeypatch)
    _, first = trainer(epochs=1)
    status, second = trainer("--config", str(first / "config.json"))
    assert status == 0
    assert second != first
    tiny.assert_same_run(first, second)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (first, second)]
    assert configs[0] == configs[1]


def test_a_limit_of_time_is_that_of_one_start(tmp_path):
    """A run that was started for no time at all would else stop after each step, however often it is resumed."""
    settings = settled("--data=demo", "--time-limit=0")
    (tmp_path / "config.json").write_text(json.dumps(config_of(settings, tiny.data_set())))
    assert settings.time_limit == 0
    assert settled("--resume", tmp_path).time_limit is None


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["--lr=1e308"], "--lr must be at most 10, not 1e308"),
        (["--beta=1e308"], "--beta must be at most 1000, not 1e308"),
        (["--gan=baseline", "--prior-batch-size=1"], "a --prior-batch-size of 2 at least"),
    ],
)
def test_what_can_not_be_trained_is_refused_at_once(given, complaint):
    with pytest.raises(InputError, match=complaint):
        settled(*given)


# ------------------------------------------------------------------------------------------- --resume


def test_resume_and_config_exclude_each_other(tmp_path):
    with pytest.raises(InputError, match="leave out --config"):
        settled("--resume", written(tmp_path), "--config", tmp_path / "config.json")


def test_resume_takes_only_a_runs_own_config(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="has no data_fingerprint"):
        settled("--resume", tmp_path)


@pytest.mark.parametrize("name", sorted(TrainSettings.model_fields))
def test_what_a_resumed_run_may_change(name, tmp_path):
    """Where it runs and how long; nothing that makes the result another."""
    changed = {
        "data": "elsewhere", "limit_people": 3, "allow_overlap": True, "axis": 1, "slices": "1:2", "model": "vqvae",
        "epochs": 30, "batch_size": 4, "optimizer": "adam", "lr": 0.5, "beta": 1.0, "downsample": 4, "depth": 2,
        "width": 32, "blocks": 1, "codebook_size": 64, "codebook": "gradient", "loss": "mse",
        "autoencoder": "/x.pth", "prior": "pixelcnn", "prior_epochs": 90, "prior_batch_size": 4, "prior_lr": 0.1,
        "gan": "baseline", "gan_gamma": 1.0, "painter_slices": 30,
        "painter_width": 8, "painter_batch_size": 4, "painter_steps": 2,
        "augment": "off", "prior_codes": 3, "out": "there", "seed": 5, "device": "cpu", "precision": "fp32",
        "save_minutes": 1.0, "time_limit": 3.0, "tensorboard": True,
    }  # fmt: skip
    flag = cli.flag(name)
    arguments = [flag] if changed[name] is True else [flag, changed[name]]
    allowed = {
        "data",
        "epochs",
        "prior_epochs",
        "device",
        "out",
        "save_minutes",
        "time_limit",
        "tensorboard",
    }
    if name in allowed:
        settings = settled("--resume", written(tmp_path), *arguments)
        assert str(getattr(settings, name)) == str(changed[name])
        return
    with pytest.raises(InputError, match=f"started with {flag} .*; leave {flag} out"):
        settled("--resume", written(tmp_path), *arguments)


def test_saying_the_same_again_is_no_change(tmp_path):
    run = written(tmp_path, model="vqvae", lr=0.001, autoencoder=None, downsample=8)
    same = settled("--resume", run, "--model=vqvae", "--lr=1e-3", "--downsample=8")
    assert same == settled("--resume", run)


@pytest.mark.parametrize("name", ["epochs", "prior_epochs"])
def test_epochs_can_only_grow(name, tmp_path):
    run = written(tmp_path, **{name: 5})
    assert getattr(settled("--resume", run, f"{cli.flag(name)}=6"), name) == 6
    with pytest.raises(InputError, match=f"more {name} \\(5\\)"):
        settled("--resume", run, f"{cli.flag(name)}=4")


# ------------------------------------------------------------------------------------------- --autoencoder


@pytest.mark.parametrize("name", sorted(AutoencoderSettings.model_fields))
def test_a_trained_autoencoder_excludes_its_options(name):
    value = AutoencoderSettings.model_fields[name].default or "adam"
    with pytest.raises(InputError, match=f"leave out {cli.flag(name)}"):
        settled("--autoencoder=vqvae.pth", cli.flag(name), value)


def test_a_trained_autoencoder_in_the_config_excludes_them_too(tmp_path):
    written(tmp_path, autoencoder="/there/vqvae.pth", prior="pixelcnn")
    for start in (["--config", tmp_path / "config.json"], ["--resume", tmp_path]):
        assert settled(*start, "--prior-epochs=90").prior_epochs == 90
        with pytest.raises(InputError, match="leave out --epochs"):
            settled(*start, "--epochs=90")


def test_a_trained_autoencoder_without_a_prior():
    with pytest.raises(InputError, match="leaves nothing to train"):
        settled("--autoencoder=vqvae.pth", "--prior=none")


def test_a_relative_autoencoder_is_the_stored_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = written(tmp_path, autoencoder="vqvae.pth")
    monkeypatch.chdir(tmp_path.parent)
    settings = settled("--resume", run, "--autoencoder", f"{tmp_path.name}/vqvae.pth")
    assert settings.autoencoder == tmp_path / "vqvae.pth"
