"""What can be set? Every option of train.py with its range and default, and what a resumed run may change."""

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator

from inference.contents import CodebookSize, Depth
from runtime.cli import LARGEST_SEED, Device, Precision, Settings, flag, option
from runtime.errors import InputError
from runtime.files import require_checkpoint

if TYPE_CHECKING:
    from dataset import DataSet
    from runtime.compute import Compute


AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]  # so that a run can be resumed from any directory


class StartSettings(Settings):
    """where to start"""

    resume: Path | None = option(None, "resume the run in this folder", "RUN")
    config: Path | None = option(None, "settings to start a run with: any run's config.json; options win", "FILE.json")


class DataSettings(Settings):
    """data"""

    data: str | None = option(None, "data set's folder, or 'demo'; else $OASIS_DIR, then the usual places", "DIR")
    limit_people: int | None = option(None, "use the first N people of each split only", ge=1, le=1_000_000)
    allow_overlap: bool = option(False, "go on when a person is in two splits")
    axis: Literal[0, 1, 2] = option(2, "cut 3-D volumes in sagittal (0), coronal (1) or axial (2) slices")
    slices: str | None = option(None, "cut 3-D volumes at 'start:stop[:step]' only", "START:STOP")
    spacing: float | None = option(None, "resample 3-D volumes to cubic voxels of this size in mm", "MM", ge=0.1, le=20)
    person: str | None = option(
        None, "finds the person in a file's name (default: by the names of common sets)", "REGEX"
    )


class AutoencoderSettings(Settings):
    """autoencoder"""

    from_: AbsolutePath | None = option(
        None, "trained vqvae.pth to go on from, with its sizes, and with the painter beside it", "VQVAE.pth"
    )
    model: Literal["vqvae", "vqvae2", "rqvae"] = option("rqvae", "autoencoder; vqvae is the course baseline")
    epochs: int = option(24, "passes over the training slices", ge=1, le=1_000_000)
    batch_size: int = option(8, "slices a step, over all processes together", ge=1, le=1_000_000)
    optimizer: Literal["muon", "adam"] | None = option(
        None, "Muon, momentum made orthogonal, or Adam (default: muon for rqvae only)"
    )
    lr: float = option(1e-3, "learning rate, after warm-up and before it falls", ge=0, le=10)
    beta: float = option(0.25, "weight of the commitment loss", ge=0, le=1000)
    downsample: Literal[4, 8, 16] = option(8, "rqvae: pixels per code, in height and in width")
    depth: Depth = option(8, "rqvae: codes per position")
    width: int = option(64, "rqvae: channels at a quarter of the size, twice as many below", ge=8, le=4096)
    blocks: int = option(2, "rqvae: residual blocks of the encoder, and of the decoder", ge=1, le=64)
    codebook_size: CodebookSize = option(512, "codes in each codebook")
    codebook: Literal["ema", "gradient"] = option("ema", "how the codebook learns: moving averages or gradient")
    augment: Literal["on", "off"] = option(
        "on", "half of the batches as other sources have them: turned, dimmed, noisy"
    )
    loss: Literal["l1+ssim", "mse"] = option("l1+ssim", "reconstruction loss: L1 + (1 - SSIM) / 2, or squared error")


class PainterSettings(Settings):
    """painter"""

    painter_slices: int | None = option(
        None,
        "rqvae: slices from which a flow learns to paint what the first code leaves open; 0 for no painter"
        " (default: 1,500,000, on a CPU 60,000)",
        ge=0,
        le=1_000_000_000,
    )
    painter_width: int | None = option(
        None, "its channels at a quarter of the size, twice as many below (default: 128, on a CPU 32)", ge=8, le=4096
    )
    painter_batch_size: int | None = option(
        None, "slices a step, over all processes together (default: 128, on a CPU 32)", ge=1, le=1_000_000
    )
    painter_steps: int = option(4, "in which its student paints", ge=1, le=24)


class PriorSettings(Settings):
    """prior"""

    autoencoder: AbsolutePath | None = option(None, "trained vqvae.pth to learn a prior for, instead of training one")
    prior: Literal["dcgan", "transformer", "pixelcnn", "none"] = option("dcgan", "prior over the codes")
    prior_codes: Depth = option(1, "rqvae: codes per position that the prior draws; the painter adds texture")
    prior_from: AbsolutePath | None = option(
        None, "transformer or pixelcnn: go on from the weights in this file", "PATH"
    )
    covariates: str | None = option(
        None,
        "dcgan, transformer: what samples can be asked for, columns of participants.tsv, 'ventricles' and 'brain'"
        " (their size), with commas between; or 'none' (default: all, the first eight)",
        "NAMES",
    )
    prior_epochs: int = option(80, "passes over the training codes", ge=1, le=1_000_000)
    prior_batch_size: int | None = option(
        None, "slices a step, over all processes together (default: 64 for dcgan, else 16)", ge=1, le=1_000_000
    )
    prior_lr: float | None = option(
        None, "its learning rate (default: 2e-4 for dcgan, 2e-3 for transformer, 1e-3 for pixelcnn)", ge=0, le=10
    )
    gan: Literal["residual", "baseline"] = option(
        "residual", "dcgan: residual networks with R3GAN's loss, or the course baseline, with cross-entropy"
    )
    gan_gamma: float = option(
        4.0, "residual: weight of the gradient penalties R1 and R2 at first; a half of it at last", ge=0, le=1_000_000
    )

    @property
    def prior_batch(self) -> int:
        """Slices a step of the prior's training."""
        return self.prior_batch_size or (64 if self.prior == "dcgan" else 16)


class RunSettings(Settings):
    """run"""

    out: Path = option(Path("runs"), "folder in which the run's own folder is made", "DIR")
    seed: int = option(0, "seed of everything random", ge=0, le=LARGEST_SEED)
    device: Device = option("auto", "where to compute; auto is CUDA if there is any, else the CPU")
    precision: Precision = option("auto", "auto is bf16 where the device computes in it, else fp32")
    cuda_graphs: bool = option(
        False, "record a step's kernels once, and replay them; not of a resumed run (not tried on a GPU yet)"
    )
    save_minutes: float = option(10.0, "minutes between two saves within an epoch", ge=0, le=1_000_000)
    time_limit: float | None = option(
        None, "minutes after which to save and stop with exit status 143; not of a resumed run", ge=0, le=1_000_000
    )
    tensorboard: bool = option(False, "write event files for TensorBoard, too (pip install -r requirements-extra.txt)")


class TrainSettings(
    RunSettings, PriorSettings, PainterSettings, AutoencoderSettings, DataSettings
):  # fields of the last base come first
    """Everything that makes a run."""


class TrainCommand(TrainSettings, StartSettings):
    """The command line of train.py."""


SIZES = ("model", "codebook", "beta", "codebook_size", "downsample", "depth", "width", "blocks", "painter_width")
MAY_GROW = ("epochs", "prior_epochs")
MAY_CHANGE = {*MAY_GROW, "data", "device", "cuda_graphs", "out", "save_minutes", "time_limit", "tensorboard"}


class Config(TrainSettings):
    """What config.json holds: the settings of a run, and what it was made of."""

    data_fingerprint: str | None = None
    commit: str | None = None
    computed_on: str | None = None
    minutes: float = 0.0  # over all its starts


def settle(command: TrainCommand) -> tuple[TrainSettings, Config | None]:
    """Merge the command line over the settings of --resume or --config, and those over the defaults.

    Returns the settings, and the run's config.json on --resume. Raises InputError when a file of settings can't be
    used, when the run to resume was started with other settings, or when settings exclude each other.
    """
    base = Config()
    if command.resume and command.config:
        raise InputError("--resume uses the run's own settings: leave out --config")
    if command.resume or command.config:
        path = command.config or command.resume / "config.json"
        base = read_config(path)
        if command.resume and not base.data_fingerprint:
            raise InputError(f"{path} was not written by train.py: it has no data_fingerprint")
    given = command.model_dump(include=command.model_fields_set & TrainSettings.model_fields.keys())
    if command.resume:
        _check_changes(given, base)
    settings = TrainSettings(**base.model_dump(include=set(TrainSettings.model_fields)) | given)
    if settings.autoencoder:
        if unused := [name for name in AutoencoderSettings.model_fields if name in given]:
            raise InputError(f"--autoencoder is trained already: leave out {flag(unused[0])}")
        if settings.prior == "none":
            raise InputError("--autoencoder with --prior none leaves nothing to train")
        if not command.resume:  # a run has its own copy
            require_checkpoint(settings.autoencoder)
    if settings.from_ and (fixed := [name for name in SIZES if name in given]) and not command.resume:
        raise InputError(f"--from goes on with the networks of its files: leave out {flag(fixed[0])}")
    if settings.prior_from:
        if settings.prior not in ("transformer", "pixelcnn") or not settings.autoencoder:
            raise InputError("--prior-from takes --prior transformer or pixelcnn, and the --autoencoder of that prior")
        if not command.resume:
            require_checkpoint(settings.prior_from)
    if settings.covariates not in (None, "none") and (settings.prior == "pixelcnn" or settings.gan == "baseline"):
        raise InputError("--covariates are for --prior transformer and the residual dcgan: leave them out")
    if settings.prior == "dcgan" and settings.gan == "baseline" and settings.prior_batch < 2:
        raise InputError("--gan baseline has batch normalisation: give a --prior-batch-size of 2 at least")
    return settings, base if command.resume else None


def _check_changes(given: dict[str, Any], started: TrainSettings) -> None:
    """Raises InputError unless a run that was `started` with these settings can resume with those `given` now."""
    for name, value in given.items():
        before = getattr(started, name)
        if name not in MAY_CHANGE and value != before:
            raise InputError(f"the run was started with {flag(name)} {before}, not {value}; leave {flag(name)} out")
        if name in MAY_GROW and value < before:
            raise InputError(f"the run was started with {flag(name)} {before}; give as many or more")


def read_config(path: Path) -> Config:
    """The content of a config.json. Raises InputError when it can't be read, or holds a wrong value."""
    try:
        return Config.from_json(path.read_bytes(), path)
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}; give a run of train.py") from error


def config_of(settings: TrainSettings, data: "DataSet", on: "Compute") -> Config:
    """What config.json is to hold; an absolute path to the data; time limit and graphs are of one start only."""
    folder = settings.data if settings.data == "demo" else str(data.root.resolve())
    changed = {"data": folder, "time_limit": None, "cuda_graphs": False, "data_fingerprint": data.fingerprint}
    return Config(**settings.model_dump() | changed, commit=current_commit(), computed_on=on.describe())


def current_commit() -> str | None:
    """The hash of this clone's commit; None without Git."""
    call = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
