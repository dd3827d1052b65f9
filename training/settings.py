"""What can be set? Every option of train.py with its range and default, and what a resumed run may change."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from runtime.cli import Device, Precision, Settings, flag, option
from runtime.errors import InputError
from runtime.files import require_checkpoint

if TYPE_CHECKING:
    from dataset import DataSet


class StartSettings(Settings):
    """where to start"""

    resume: Path | None = option(None, "go on with the run in this folder", "RUN")
    config: Path | None = option(None, "settings to start a run with: any run's config.json; options win", "FILE.json")


class DataSettings(Settings):
    """data"""

    data: str | None = option(None, "data set's folder, or 'demo'; else $OASIS_DIR, then the usual places", "DIR")
    limit_people: int | None = option(None, "use the first N people of each split only", ge=1, le=1_000_000)
    allow_overlap: bool = option(False, "go on when a person is in two splits")
    axis: Literal[0, 1, 2] = option(2, "cut 3-D volumes in sagittal (0), coronal (1) or axial (2) slices")
    slices: str | None = option(None, "cut 3-D volumes at 'start:stop[:step]' only", "START:STOP")


class AutoencoderSettings(Settings):
    """autoencoder"""

    model: Literal["vqvae", "vqvae2", "rqvae"] = option("rqvae", "autoencoder; vqvae is the course baseline")
    epochs: int = option(24, "passes over the training slices", ge=1, le=1_000_000)
    batch_size: int = option(8, "slices a step, over all processes together", ge=1, le=1_000_000)
    optimizer: Literal["muon", "adam"] | None = option(
        None, "Muon, momentum made orthogonal, or Adam (default: muon for rqvae only)"
    )
    lr: float = option(1e-3, "learning rate, after warm-up and before it falls", ge=0, le=10)
    beta: float = option(0.25, "weight of the commitment loss", ge=0, le=1000)
    downsample: Literal[4, 8, 16] = option(8, "rqvae: pixels per code, in height and in width")
    depth: int = option(8, "rqvae: codes per position", ge=1, le=16)
    width: int = option(64, "rqvae: channels at a quarter of the size, twice as many below", ge=8, le=4096)
    blocks: int = option(2, "rqvae: residual blocks of the encoder, and of the decoder", ge=1, le=64)
    codebook_size: int = option(512, "codes in each codebook", ge=2, le=32767)  # codes are kept as int16
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

    autoencoder: Path | None = option(None, "trained vqvae.pth to learn a prior for, instead of training one")
    prior: Literal["dcgan", "transformer", "pixelcnn", "none"] = option("dcgan", "prior over the codes")
    prior_codes: int = option(
        1, "rqvae: codes per position that the prior draws; the painter adds texture", ge=1, le=16
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

    @field_validator("autoencoder")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        """So that a run goes on from any directory."""
        return path and path.absolute()


class RunSettings(Settings):
    """run"""

    out: Path = option(Path("runs"), "folder in which the run's own folder is made", "DIR")
    seed: int = option(0, "seed of everything random", ge=0, le=2**31)
    device: Device = option("auto", "where to compute; auto is CUDA if there is any, else the CPU")
    precision: Precision = option("auto", "auto is bf16 where the device computes in it, else fp32")
    save_minutes: float = option(10.0, "minutes between two saves within an epoch", ge=0, le=1_000_000)
    time_limit: float | None = option(
        None, "minutes after which to save and stop with exit status 143; not of a resumed run", ge=0, le=1_000_000
    )
    tensorboard: bool = option(False, "write event files for TensorBoard, too (pip install -r requirements-extra.txt)")


class TrainSettings(
    RunSettings, PriorSettings, PainterSettings, AutoencoderSettings, DataSettings
):  # the last base's fields come first
    """Everything that makes a run; config.json holds it."""

    def check(self) -> None:
        """Raises InputError for settings that exclude each other; those of a run to go on with are told by then."""
        if self.prior == "dcgan" and self.gan == "baseline" and self.prior_batch < 2:
            raise InputError("--gan baseline has batch normalisation: give a --prior-batch-size of 2 at least")


class TrainCommand(TrainSettings, StartSettings):
    """The command line of train.py."""


LENGTHS = ("epochs", "prior_epochs")  # may grow
MAY_CHANGE = {*LENGTHS, "data", "device", "out", "save_minutes", "time_limit", "tensorboard"}
FINGERPRINT = "data_fingerprint"  # the field of config.json that is no setting: the data that the run was started with


def settle(command: TrainCommand) -> tuple[TrainSettings, str | None]:
    """What was given on the command line, for the rest the settings of --resume or --config, for the rest the defaults.

    With it, on --resume, the fingerprint of the data that the run was started with. Raises InputError when a file of
    settings can't be used, the run was started with another setting than is given now, or settings exclude each other.
    """
    base, fingerprint = TrainSettings(), None
    if command.resume and command.config:
        raise InputError("--resume goes on with the run's own settings: leave out --config")
    if command.resume:
        base, fingerprint = read_config(command.resume / "config.json")
        if not isinstance(fingerprint, str):
            raise InputError(f"{command.resume / 'config.json'} is not train.py's own: it has no {FINGERPRINT}")
    elif command.config:
        base, _ = read_config(command.config)
    given = command.model_dump(include=command.model_fields_set & TrainSettings.model_fields.keys())
    if command.resume:
        _check_changes(given, base)
    settings = base.model_copy(update=given)
    if settings.autoencoder:
        if unused := [name for name in AutoencoderSettings.model_fields if name in given]:
            raise InputError(f"--autoencoder is trained already: leave out {flag(unused[0])}")
        if settings.prior == "none":
            raise InputError("--autoencoder with --prior none leaves nothing to train")
    settings.check()
    return settings, fingerprint


def _check_changes(given: dict[str, Any], started: TrainSettings) -> None:
    """Raises InputError unless a run that was `started` with these settings can go on with those `given` now."""
    for name, value in given.items():
        before = getattr(started, name)
        if name not in MAY_CHANGE and value != before:
            raise InputError(f"the run was started with {flag(name)} {before}, not {value}; leave {flag(name)} out")
        if name in LENGTHS and value < before:
            raise InputError(f"the run was started with more {name} ({before}); give as many or more")


def read_config(path: Path) -> tuple[TrainSettings, str | None]:
    """The settings in a config.json, and the fingerprint of the data that its run was started with.

    Raises InputError when the file can't be read, or holds anything that is no setting or out of its range.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}; give a run of train.py") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON; give a run of train.py") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no settings; give a run of train.py")
    fingerprint = values.pop(FINGERPRINT, None)
    return TrainSettings.checked(values, where=str(path)), fingerprint


def config_of(settings: TrainSettings, data: "DataSet") -> dict[str, Any]:
    """What config.json holds: every setting but the limit of this one start, the data's folder and its fingerprint.

    The folder is an absolute path.
    """
    folder = settings.data if settings.data == "demo" else str(data.root.resolve())
    return settings.model_dump(mode="json", exclude={"time_limit"}) | {"data": folder, FINGERPRINT: data.fingerprint}


def check_files(command: TrainCommand) -> None:
    """Raises InputError when options contradict each other, or a file or folder that they name isn't there.

    What it imports, it imports where that is needed: it is to answer before PyTorch is loaded.
    """
    settings, _ = settle(command)
    if settings.autoencoder and not command.resume:  # a run that was started has its own copy
        require_checkpoint(settings.autoencoder)
    if settings.data != "demo":
        from reading import places

        places.find(settings.data)
