"""Can this training start, or resume? Data, settings and the run folder have to fit each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import dataset
from dataset import DataSet
from inference.loading import load_autoencoder, load_painter
from networks.painter import Painter
from reading.nifti import Cut
from runtime import checkpoint, compute
from runtime.compute import Compute
from runtime.errors import InputError
from runtime.wording import counted
from scoring.enough import check_enough
from training.optim import cosine
from training.run import BEFORE_PRIOR, NotFiniteError, Run
from training.settings import SIZES, Config, DataSettings, TrainSettings

# CPU time of a training slice, with what comes between epochs; the painter's and the student's is for each slice that a
# teacher of 32 channels sees. Measured on two cores of an Intel Xeon (AMX, bf16), on slices with 144x176 pixels of
# content; those of vqvae, vqvae2 and pixelcnn are estimated.
SLICE_COST = {"rqvae": 1.0, "vqvae": 0.2, "vqvae2": 0.4, "painter": 0.3, "student": 0.1}
SLICE_COST |= {"dcgan": 0.9, "transformer": 2.0, "pixelcnn": 1.5}


def load_data(settings: DataSettings) -> DataSet:
    """The training and validation splits that the options name."""
    return dataset.load(
        settings.data,
        splits=("train", "validate"),
        allow_overlap=settings.allow_overlap,
        limit_people=settings.limit_people,
        cut=Cut(settings.axis, settings.slices, settings.spacing),
        person=settings.person,
    )


def describe_data(data: DataSet, settings: DataSettings) -> dict:
    """The description of its training data that a checkpoint keeps: plain values only."""
    train = data.splits["train"]
    return {
        "title": data.title,
        "root": str(data.root.resolve()),
        "synthetic": data.synthetic,
        "fingerprint": data.fingerprint,
        "size": list(train.images.shape[1:]),
        "box": list(train.box),
        "levels": train.level_count,
        "axis": settings.axis,
        "slices": settings.slices,
        "spacing": settings.spacing,
        "person": settings.person,
        "affine": None if train.affine is None else train.affine.tolist(),
    }


def has_painter(settings: TrainSettings) -> bool:
    """Whether a painter is trained: where codes can be left out, and the autoencoder is this run's own."""
    deep = settings.model == "rqvae" and settings.depth > 1
    return deep and settings.painter_slices > 0 and not settings.autoencoder


def with_painter_size(settings: TrainSettings, on: Compute) -> TrainSettings:
    """The settings with a painter's size that suits the device, where none is given."""
    default = (1_500_000, 128, 128) if on.device.type == "cuda" else (60_000, 32, 32)
    sizes = zip(("painter_slices", "painter_width", "painter_batch_size"), default, strict=True)
    return settings.model_copy(update={name: size for name, size in sizes if getattr(settings, name) is None})


def painter_to_go_on_from(settings: TrainSettings) -> Painter | None:
    """The painter beside the file of --from, if there is one."""
    path = settings.from_
    return path and load_painter(path.with_name("painter.pth"), load_autoencoder(path)[0])


def with_sizes_to_go_on_from(settings: TrainSettings) -> TrainSettings:
    """The settings with the sizes of the networks in the files of --from, if that is given."""
    if not settings.from_:
        return settings
    about = load_autoencoder(settings.from_)[1]
    sizes = {"model": about["model"], "codebook": "ema" if about["arguments"]["ema"] else "gradient"}
    sizes |= {name: value for name, value in about["arguments"].items() if name in SIZES}
    if painter := painter_to_go_on_from(settings):
        sizes["painter_width"] = painter.arguments["width"]
    return settings.model_copy(update=sizes)


def plan(settings: TrainSettings) -> list[str]:
    """The stages of a run in words, one after the other."""
    before = f" from {settings.from_}" if settings.from_ else ""
    stages = [] if settings.autoencoder else [f"{settings.model}{before}, {counted(settings.epochs, 'epoch')}"]
    if has_painter(settings):
        stages.append(f"its painter, {counted(settings.painter_slices, 'slice')}")
    if settings.prior != "none":
        stages.append(f"{settings.prior}, {counted(settings.prior_epochs, 'epoch')}")
    return stages


def work(settings: TrainSettings, slices: int) -> dict[str, float]:
    """What each stage costs with so many training slices, in slices of the default autoencoder's training."""
    costs = {} if settings.autoencoder else {"autoencoder": settings.epochs * slices * SLICE_COST[settings.model]}
    if has_painter(settings):
        size = settings.painter_slices * (settings.painter_width / 32) ** 2
        costs |= {name: size * SLICE_COST[name] for name in ("painter", "student")}
    if settings.prior != "none":
        costs[settings.prior] = settings.prior_epochs * slices * SLICE_COST[settings.prior]
    return costs


def check_data(data: DataSet, settings: TrainSettings, resumed: Path | None, started: Config | None) -> None:
    """Raises InputError when training can't resume, or a prior can't be trained, with these slices."""
    if started and data.fingerprint != started.data_fingerprint:
        raise InputError(f"{data.root} is not the data that {resumed} was started with; give that with --data")
    if settings.prior == "dcgan":
        check_enough(data.splits["train"], data.splits["validate"])
    if settings.autoencoder and not resumed:
        trained_on = load_autoencoder(settings.autoencoder)[1]["data"]
        if trained_on["fingerprint"] != data.fingerprint:
            title = trained_on["title"]
            raise InputError(f"{settings.autoencoder} was trained on {title}, other data than {data.root}")


def check_shares(data: DataSet, settings: TrainSettings, on: Compute) -> None:
    """Raises InputError when batches can't be shared equally by all processes."""
    batches = {} if settings.autoencoder else {"--batch-size": settings.batch_size}
    batches |= {"--painter-batch-size": settings.painter_batch_size} if has_painter(settings) else {}
    batches |= {} if settings.prior == "none" else {"--prior-batch-size": settings.prior_batch}
    for option, size in batches.items():
        if size % on.world_size:
            compute.refuse(f"{option} {size} can't be shared equally by {on.world_size} processes: give a multiple")
    if (slices := len(data.splits["train"])) < on.world_size:
        compute.refuse(f"{slices} training slices are too few for {on.world_size} processes: start fewer")


def check_state(run: Run, settings: TrainSettings) -> None:
    """Raises InputError when the state of a run to resume doesn't fit its settings, or its weights are gone."""
    if not run.state:
        return
    stage, trained = run.state["stage"], len(run.rows_of("autoencoder"))
    if stage not in (*BEFORE_PRIOR, settings.prior):
        raise InputError(f"last.pth in {run.folder} doesn't belong to the run that config.json describes; start anew")
    own_autoencoder = run.is_past("autoencoder") and not settings.autoencoder
    files = {"autoencoder": "vqvae.pth", "painter": "painter.pth", "student": "painter.pth"}
    needed = [files.get(stage, f"{stage}.pth")] if run.state["best"] is not None else []
    needed += ["vqvae.pth"] if own_autoencoder else []
    needed += ["painter.pth"] if run.is_past("painter") and has_painter(settings) else []
    if gone := [name for name in needed if not (run.folder / name).is_file()]:
        raise InputError(f"{gone[0]} is gone from {run.folder}, and last.pth needs it: put it back, or start anew")
    if own_autoencoder and trained < settings.epochs:
        raise InputError(f"{run.folder} is past training its autoencoder; for more --epochs start anew")


def adopt(run: Run, autoencoder: Path) -> None:
    """Copy a trained autoencoder, and the painter beside it, into the run folder, unless they are there already."""
    if not (run.folder / "vqvae.pth").is_file():
        run.save("vqvae.pth", checkpoint.load(autoencoder, "autoencoder"))
        if (painter := autoencoder.with_name("painter.pth")).is_file():
            run.save("painter.pth", checkpoint.load(painter, "painter"))


@contextmanager
def advice_when_memory_is_full(option: str, batch_size: int) -> Iterator[None]:
    """Raises InputError, with half the batch for `option`, when the block needs more memory than a GPU has."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise InputError(f"the GPU's memory is full: start again with {option} {max(batch_size // 2, 1)}") from error


@contextmanager
def naming_the_cause(folder: Path, data: DataSet, settings: TrainSettings) -> Iterator[None]:
    """Raises InputError with the slices of a step that diverged, or with what keeps files from being written."""
    try:
        yield
    except NotFiniteError as error:
        if error.stage != "autoencoder":
            raise
        names, epoch = data.splits["train"].names, error.epoch
        batch = min(settings.batch_size, len(names))
        steps = len(names) // batch
        rate = settings.lr * cosine((epoch - 1) * steps + error.step, settings.epochs * steps)
        chosen = dataset.shuffled_shares(len(names), batch, settings.seed, epoch - 1)[error.step]
        slices = ", ".join(names[i] for i in chosen)
        raise InputError(f"{error}; learning rate {rate:.2e}, slices {slices}") from error
    except BrokenPipeError:
        raise
    except OSError as error:  # of the log and the figures
        reason = error.strerror or error
        raise InputError(f"can't write to {folder}: {reason}; mend that, then --resume {folder}") from error
