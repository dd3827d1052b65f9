import csv
import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import tiny
import torch

import train
from inference.loading import load_autoencoder
from runtime import checkpoint
from training import likelihood, run, setup
from training.settings import Config

STEPS = tiny.STEPS
TRAINED = 2 * STEPS  # steps of an autoencoder's whole training
PAINTER = {"model": "rqvae", "painter_slices": str(2 * 16 * STEPS), "painter_width": "8"}
MODELS = [
    {"model": "vqvae"},
    {"model": "vqvae", "codebook": "gradient", "loss": "mse"},
    {"model": "vqvae2"},
    {"model": "rqvae"},
    PAINTER,
    {"prior": "dcgan"},
    {"prior": "dcgan", "gan": "baseline"},
    {"prior": "pixelcnn"},
    {"prior": "transformer"},
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folders of uninterrupted runs, by their options."""
    made: dict[str, Path] = {}

    def of(**given) -> Path:
        key = json.dumps(given, sort_keys=True)
        if key not in made:
            with pytest.MonkeyPatch.context() as patch:
                status, made[key] = tiny.Trainer(tmp_path_factory.mktemp("whole"), patch)(**given)
            assert status == 0
        return made[key]

    return of


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    return tiny.Trainer(tmp_path / "runs", monkeypatch)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that was stopped in its second epoch."""
    with pytest.MonkeyPatch.context() as patch:
        stopping = tiny.Trainer(tmp_path_factory.mktemp("stopped"), patch)
        stopping.kill_at_step(STEPS + 3)
        status, folder = stopping()
    assert status == 143
    return folder


@pytest.fixture
def interrupted(stopped, tmp_path):
    """A copy of that folder."""
    return Path(shutil.copytree(stopped, tmp_path / "interrupted"))


@pytest.fixture
def finished(whole, tmp_path):
    """A copy of a finished run with a PixelCNN."""
    return Path(shutil.copytree(whole(prior="pixelcnn"), tmp_path / "finished"))


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


# ----------------------------------------------------------------------------------------------------
# The same in the end


@pytest.mark.parametrize("given", MODELS, ids=lambda given: "-".join(given.values()))
def test_interrupted_and_resumed_equals_uninterrupted(given, whole, trainer, capsys):
    """SIGTERM within an epoch of the last stage: all weights, states and metrics are the same to the bit."""
    before = 0 if given.keys() <= {"model", "codebook", "loss"} else TRAINED
    before += TRAINED if "painter_slices" in given else 0  # the student is the last, with as many steps as its teacher
    trainer.kill_at_step(before + STEPS + 3)
    status, folder = trainer(**given)
    assert status == 143
    assert f"--resume {folder}" in capsys.readouterr().out
    state = checkpoint.load(folder / "last.pth", "run")
    assert (state["epoch"], state["step"]) == (1, 3)
    assert trainer.resume(folder) == 0
    tiny.assert_same_run(folder, whole(**given))


@pytest.mark.parametrize(
    ("step", "given"),
    [
        (2, {}),  # in which k-means starts the codebooks
        (STEPS, {}),  # the end of an epoch
        (TRAINED, {"prior": "pixelcnn"}),  # between autoencoder and prior
        (TRAINED + STEPS, PAINTER),  # an epoch of the painter's teacher
        (2 * TRAINED, PAINTER),  # between teacher and student
    ],
    ids=str,
)
def test_interrupted_anywhere(step, given, whole, trainer):
    trainer.kill_at_step(step)
    status, folder = trainer(**given)
    assert status == 143
    assert trainer.resume(folder) == 0
    tiny.assert_same_run(folder, whole(**given))


def test_interrupted_at_every_second_step(whole, trainer):
    """Again and again, until it is done: as a queue that preempts does."""
    trainer.kill_at_step(2)
    status, folder = trainer()
    stops = 0
    while status:
        assert status == 143
        stops += 1
        trainer.kill_at_step(2)
        status = trainer.resume(folder)
    assert stops == 4
    tiny.assert_same_run(folder, whole())


def test_the_same_seed_gives_the_same_run_and_another_seed_another(whole, trainer):
    _, same = trainer()
    tiny.assert_same_run(same, whole())
    _, other = trainer(seed=1)
    assert rows(other) != rows(same)


def test_killed_without_warning_goes_on_from_the_last_save(whole, trainer, monkeypatch):
    """As SIGKILL: what is in memory is lost, what was saved within the epoch is not."""

    class Killed(BaseException):
        pass

    def die():
        raise Killed

    trainer.at_step(STEPS + 3, die)
    with pytest.raises(Killed):
        trainer(save_minutes=0)
    folder = next(trainer.out.glob("*/"))
    state = checkpoint.load(folder / "last.pth", "run")
    assert (state["epoch"], state["step"]) == (1, 2)
    monkeypatch.setattr(run.Stage, "add", run.Stage.add)
    assert trainer.resume(folder) == 0
    tiny.assert_same_run(folder, whole())


# ----------------------------------------------------------------------------------------------------
# Signals and limits


def test_time_limit_saves_and_stops(whole, trainer):
    status, folder = trainer(time_limit=0)
    assert status == 143
    assert checkpoint.load(folder / "last.pth", "run")["step"] == 1
    assert trainer.resume(folder, time_limit=1e6) == 0
    tiny.assert_same_run(folder, whole())


# ----------------------------------------------------------------------------------------------------
# Options on resume


def test_contradicting_options_are_an_error(interrupted, trainer, capsys):
    before = {path.name: path.read_bytes() for path in interrupted.iterdir()}
    assert trainer.resume(interrupted, batch_size=8) == 2
    assert "--batch-size" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in interrupted.iterdir()} == before


def test_more_epochs_are_allowed_and_remembered(trainer):
    _, folder = trainer(epochs=1)
    trainer.kill_at_step(2)
    assert trainer.resume(folder, epochs=3) == 143
    assert trainer.resume(folder) == 0  # still three
    assert [row["epoch"] for row in rows(folder)] == ["1", "2", "3"]
    assert json.loads((folder / "config.json").read_text())["epochs"] == 3
    assert trainer.resume(folder, epochs=2) == 2


def test_more_epochs_of_an_autoencoder_whose_prior_has_begun_are_an_error(trainer, capsys):
    trainer.kill_at_step(TRAINED + 1)
    _, folder = trainer(prior="pixelcnn")
    config = (folder / "config.json").read_bytes()
    assert trainer.resume(folder, epochs=9) == 2
    assert "--epochs" in capsys.readouterr().err
    assert (folder / "config.json").read_bytes() == config
    assert trainer.resume(folder, prior_epochs=3) == 0
    assert [row["stage"] for row in rows(folder)] == ["autoencoder"] * 2 + ["pixelcnn"] * 3


def test_other_data_is_an_error(interrupted, trainer, monkeypatch, capsys):
    other = tiny.data_set()
    object.__setattr__(other, "fingerprint", "0" * 64)
    monkeypatch.setattr(setup, "load_data", lambda settings: other)
    assert trainer.resume(interrupted) == 2
    assert "not the data" in capsys.readouterr().err


def test_resuming_a_finished_run_changes_nothing(finished, whole, trainer):
    assert trainer.resume(finished) == 0
    tiny.assert_same_run(finished, whole(prior="pixelcnn"))


@pytest.mark.parametrize("name", ["vqvae.pth", "pixelcnn.pth"])
def test_a_finished_run_whose_weights_are_gone_is_an_error(name, finished, trainer, capsys):
    (finished / name).unlink()
    assert trainer.resume(finished) == 2
    assert f"{name} is gone from {finished}, and last.pth" in capsys.readouterr().err


def test_early_stop_holds_after_a_resume(trainer, monkeypatch):
    monkeypatch.setattr(likelihood, "PATIENCE", 0)
    monkeypatch.setattr(likelihood, "held_out_bits", lambda *args: 1.0)  # never better than the first epoch
    _, folder = trainer(prior="pixelcnn", prior_epochs=9)
    assert [row["stage"] for row in rows(folder)].count("pixelcnn") == 1
    assert trainer.resume(folder) == 0
    assert [row["stage"] for row in rows(folder)].count("pixelcnn") == 1


# ----------------------------------------------------------------------------------------------------
# Damaged files


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_truncated_last_falls_back_to_the_one_before(interrupted, whole, trainer, capsys):
    truncate(interrupted / "last.pth")
    assert trainer.resume(interrupted) == 0
    captured = capsys.readouterr()
    assert "warning: " in captured.err
    assert "last.pth is damaged" in captured.err
    assert "after epoch 1, step 0" in captured.out
    tiny.assert_same_run(interrupted, whole())


def test_both_states_damaged_is_an_error(interrupted, trainer, capsys):
    for name in ("last.pth", "previous.pth"):
        truncate(interrupted / name)
    assert trainer.resume(interrupted) == 2
    assert "damaged" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("stage", None, "stage must be a valid string, not None"),
        ("epoch", -1, "epoch must be greater than or equal to 0, not -1"),
        ("step", 10**300, "step must be less than or equal to 1000000000"),
        ("best", float("nan"), "best must be a finite number, not nan"),
        ("rows", [{"epoch": 1}], "rows.0.stage: Field required"),
        ("rows", [{"stage": "autoencoder", "epoch": 1, "x": [1]}], "rows.0.x"),
        ("parts", [], "parts must be a valid dictionary, not []"),
        ("sums", {"x": 1}, "sums.x must be an instance of Tensor, not 1"),
        ("rng", torch.zeros(3), "doesn't fit its config.json"),
        ("parts", {}, "doesn't fit its config.json"),
        ("parts.model.encoder.0.bias", torch.full((32,), torch.nan), "doesn't fit its config.json"),
        ("parts.optimizer.state.0.exp_avg", torch.zeros(3), "doesn't fit its config.json"),
        ("parts.optimizer.state.0.exp_avg_sq", torch.full((32, 1, 4, 4), torch.inf), "doesn't fit its config.json"),
    ],
)
def test_an_invalid_state_is_refused_with_the_field(field, value, message, interrupted, trainer, capsys):
    state = torch.load(interrupted / "last.pth", weights_only=True)
    where, (*path, last) = state, field.split(".", 2) if field.startswith("parts.model") else field.split(".")
    for name in path:
        where = where[int(name) if name.isdecimal() else name]
    where[last] = value
    checkpoint.save(interrupted / "last.pth", state)
    (interrupted / "previous.pth").unlink()  # which a run would go on from
    assert trainer.resume(interrupted) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_what_an_optimiser_is_set_to_comes_from_the_settings(interrupted, trainer, whole):
    state = torch.load(interrupted / "last.pth", weights_only=True)
    state["parts"]["optimizer"]["param_groups"] = [{"lr": "fast"}]
    checkpoint.save(interrupted / "last.pth", state)
    assert trainer.resume(interrupted) == 0
    tiny.assert_same_run(interrupted, whole())


@pytest.mark.parametrize("kept", ["last.pth", "previous.pth"])
def test_killed_between_two_renames_loses_nothing(kept, interrupted, whole, trainer):
    """The newest state is next.pth until it becomes last.pth."""
    os.replace(interrupted / "last.pth", interrupted / "next.pth")
    os.replace(interrupted / "previous.pth", interrupted / kept)
    assert run.load_last(interrupted)["step"] == 3
    assert trainer.resume(interrupted) == 0
    assert not (interrupted / "next.pth").exists()
    tiny.assert_same_run(interrupted, whole())


def test_killed_before_the_first_save_starts_again(whole, interrupted, trainer):
    for path in interrupted.iterdir():
        if path.name != "config.json":
            path.unlink()
    (interrupted / ".last.pth.1234.partial").write_bytes(b"half")
    assert trainer.resume(interrupted) == 0
    assert not list(interrupted.glob(".*.partial"))
    tiny.assert_same_run(interrupted, whole())


def test_state_of_another_run_is_an_error(interrupted, trainer, whole, capsys):
    for other in ({"model": "vqvae2"}, {"prior": "pixelcnn"}):
        shutil.copy(whole(**other) / "last.pth", interrupted)
        assert trainer.resume(interrupted) == 2
        assert "last.pth" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[1, 2]", "{}", '{"data_fingerprint": 1, "lr": -1}'])
def test_unusable_config_is_an_error(text, tmp_path, trainer, capsys):
    (tmp_path / "config.json").write_text(text)
    assert trainer.resume(tmp_path) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


# ----------------------------------------------------------------------------------------------------
# Folders


def test_two_runs_never_share_a_folder(tmp_path):
    folders = [run.create_run_folder(tmp_path / "runs", Config(seed=n)) for n in range(5)]
    assert len(set(folders)) == 5
    assert [json.loads((folder / "config.json").read_text())["seed"] for folder in folders] == list(range(5))
    assert sorted((tmp_path / "runs").iterdir()) == sorted(folders)  # and no half-made one is left


def test_only_one_run_at_a_time_works_in_a_folder(interrupted, trainer, capsys):
    here = run.Run(interrupted, 10, None)
    assert trainer.resume(interrupted) == 2
    assert "another process holds" in capsys.readouterr().err
    here.lock.close()


@pytest.mark.parametrize("out", ["a file", "a file/below"])
def test_out_that_is_no_folder_is_an_error(out, trainer, tmp_path, capsys):
    (tmp_path / "a file").write_text("mine")
    assert trainer(out=tmp_path / out)[0] == 2
    assert "--out" in capsys.readouterr().err
    assert (tmp_path / "a file").read_text() == "mine"


def full(monkeypatch, after: int) -> None:
    """From the sync number `after` on, the disk is full."""
    sync, count = os.fsync, [0]

    def fsync(descriptor):
        count[0] += 1
        if count[0] > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("after", [0, 3])
def test_full_disk_keeps_what_was_saved(after, trainer, whole, monkeypatch, capsys):
    full(monkeypatch, after)
    status, folder = trainer()
    assert status == 2
    assert "the disk is full" in capsys.readouterr().err
    monkeypatch.undo()
    if folder is None:  # not even config.json could be written
        assert list(trainer.out.iterdir()) == []
        return
    assert not list(folder.glob(".*.partial"))
    with pytest.MonkeyPatch.context() as patch:
        assert tiny.Trainer(trainer.out, patch).resume(folder) == 0
    tiny.assert_same_run(folder, whole())


# ----------------------------------------------------------------------------------------------------
# Numbers


def test_not_a_number_stops_with_step_rate_and_names(trainer, monkeypatch, capsys):
    """The last good weights stay; the message has the step, the learning rate and the batch's names."""
    _, folder = trainer(epochs=1)
    good = (folder / "vqvae.pth").read_bytes()
    calls = []

    def loss(reconstruction, images):
        calls.append(1)
        return reconstruction.sum(dim=(1, 2, 3)) * (float("nan") if len(calls) == 2 else 0)

    monkeypatch.setitem(train.LOSSES, "l1+ssim", loss)
    assert trainer.resume(folder, epochs=3) == 2
    message = capsys.readouterr().err
    assert "epoch 2, step 1" in message
    assert "learning rate" in message
    assert "case_" in message
    assert (folder / "vqvae.pth").read_bytes() == good
    state = checkpoint.load(folder / "last.pth", "run")
    assert all(tensor.isfinite().all() for tensor in state["parts"]["model"].values())


def test_nothing_is_kept_of_a_first_epoch_that_diverged(trainer, monkeypatch):
    monkeypatch.setitem(
        train.LOSSES, "l1+ssim", lambda reconstruction, images: reconstruction.sum((1, 2, 3)) * float("inf")
    )
    status, folder = trainer()
    assert status == 2
    assert not list(folder.glob("*.pth"))


def test_best_is_the_highest_and_never_overwritten_by_a_worse_one(trainer, monkeypatch):
    """Mistakes 2 and 12: the checkpoint was saved when the loss was higher than the best."""
    scores = [float("nan"), 0.3, 0.5, float("nan"), 0.4]
    left = list(scores)
    monkeypatch.setattr(train, "validation_ssim", lambda *args: left.pop(0))
    _, folder = trainer(epochs=len(scores))
    about = load_autoencoder(folder / "vqvae.pth")[1]
    assert (about["validation_ssim"], about["epoch"]) == (0.5, 3)


def test_metrics_have_a_row_an_epoch_of_each_stage(whole):
    table = rows(whole(prior="pixelcnn"))
    assert [row["stage"] + row["epoch"] for row in table] == ["autoencoder1", "autoencoder2", "pixelcnn1", "pixelcnn2"]
    for row in table[:2]:
        assert 0 < float(row["validation_ssim"]) <= 1
        assert 1 <= float(row["perplexity_0"]) <= int(row["codes_used_0"]) <= 16
        assert float(row["train_reconstruction"]) > 0
    assert not table[0]["validation_bits"]
    assert float(table[3]["validation_bits"]) > 0


class Numbers:
    """Batches 0, 1, 2, 3."""

    steps, batch_size = 4, 1

    def shuffled(self, seed, epoch, start=0):
        return iter(range(start, self.steps))


def test_mean_over_the_epoch_is_over_all_steps(tmp_path):
    """Of every step, also those before an interruption, and read once an epoch. Mistake 12: `.item()` every step."""
    folder = run.create_run_folder(tmp_path, Config())
    first = run.Run(folder, 1e6, None)
    stage = run.Stage(first, "autoencoder", 1, Numbers(), {}, "score")
    steps = stage.steps(seed=0)
    for _ in range(2):
        stage.add(loss=torch.tensor(float(next(steps))))
    next(steps)  # the second step is done, the third one is not
    stage.save()
    first.lock.close()
    second = run.Run(folder, 1e6, None)
    stage = run.Stage(second, "autoencoder", 1, Numbers(), {}, "score")
    for number in stage.steps(seed=0):
        stage.add(loss=torch.tensor(float(number)))
    assert stage.means() == {"loss": 1.5}
    second.lock.close()


def test_run_state_holds_plain_values_only(whole):
    """Mistake 12: a checkpoint with an `argparse.Namespace` inside."""
    allowed = (torch.Tensor, int, float, str, bool, type(None))

    def walk(value, where):
        if isinstance(value, dict):
            for key, inner in value.items():
                assert type(key) in (str, int), where
                walk(inner, f"{where}.{key}")
        elif isinstance(value, list | tuple):
            for inner in value:
                walk(inner, where)
        else:
            assert type(value) in (*allowed, torch.nn.Parameter), (where, type(value))

    for given in ({"prior": "dcgan"}, {"prior": "pixelcnn"}):
        for path in whole(**given).glob("*.pth"):
            walk(torch.load(path, weights_only=True), path.name)
