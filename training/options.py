"""What can be set? Every option of train.py, with its default, and what a resumed run may change."""

import argparse
from pathlib import Path
from typing import Any

from modules import AUTOENCODERS
from runtime import compute
from runtime.errors import InputError, Parser, number

# group -> (name, argparse type or choices, default, help)
OPTIONS: dict[str, list[tuple[str, Any, Any, str]]] = {
    "data": [
        ("data", str, None, "data set's folder, or 'demo'; else $OASIS_DIR, then the usual places"),
        ("limit-people", number(int, 1), None, "use the first N people of each split only"),
        ("allow-overlap", bool, False, "go on when a person is in two splits"),
        ("axis", ("0", "1", "2"), "2", "cut 3-D volumes in sagittal (0), coronal (1) or axial (2) slices"),
        ("slices", str, None, "cut 3-D volumes at 'start:stop[:step]' only"),
    ],
    "autoencoder": [
        ("model", tuple(AUTOENCODERS), "rqvae", "autoencoder; vqvae is the course report's"),
        ("epochs", number(int, 1), 12, "passes over the training slices"),
        ("batch-size", number(int, 1), 8, "slices a step, over all processes together"),
        ("optimizer", ("muon", "adam"), None, "Muon, momentum made orthogonal, or Adam (default: muon for rqvae only)"),
        ("lr", number(float, 0), 1e-3, "learning rate, after warm-up and before it falls"),
        ("beta", number(float, 0), 0.25, "weight of the commitment loss"),
        ("downsample", ("4", "8", "16"), "8", "rqvae: pixels a code, in height and in width"),
        ("depth", number(int, 1, 16), 8, "rqvae: codes a place"),
        ("width", number(int, 8), 64, "rqvae: channels at a quarter of the size, twice as many below"),
        ("blocks", number(int, 1), 2, "rqvae: residual blocks of the encoder, and of the decoder"),
        ("codebook-size", number(int, 2, 32767), 512, "codes in each codebook"),
        ("codebook", ("ema", "gradient"), "ema", "how the codebook learns: moving averages or gradient"),
        ("loss", ("l1+ssim", "mse"), "l1+ssim", "reconstruction loss: L1 + (1 - SSIM) / 2, or squared error"),
    ],
    "prior": [
        ("autoencoder", Path, None, "trained vqvae.pth to learn a prior for, instead of training one"),
        ("prior", ("dcgan", "pixelcnn", "none"), "dcgan", "prior over the codes"),
        ("prior-epochs", number(int, 1), 25, "passes over the training codes"),
        ("prior-batch-size", number(int, 1), 16, "code grids a step, over all processes together"),
        ("prior-lr", number(float, 0), None, "Adam's learning rate (default: 2e-4 for dcgan, 1e-3 for pixelcnn)"),
        ("gan-loss", ("r3gan", "bce"), "r3gan", "relativistic loss with R1 and R2, or the course report's GAN"),
        ("gan-gamma", number(float, 0), 2.0, "weight of the gradient penalties R1 and R2"),
    ],
    "run": [
        ("out", Path, Path("runs"), "folder in which the run's own folder is made"),
        ("seed", number(int, 0, 2**31), 0, "seed of everything random"),
        ("device", compute.DEVICES, "auto", "where to compute; auto is CUDA if there is any, else the CPU"),
        ("precision", compute.PRECISIONS, "auto", "auto is bf16 where the device computes in it, else fp32"),
        ("save-minutes", number(float, 0), 10.0, "minutes between two saves within an epoch"),
        ("time-limit", number(float, 0), None, "minutes after which to save and stop with exit status 143"),
        ("tensorboard", bool, False, "write event files for TensorBoard, too (pip install -r requirements-extra.txt)"),
    ],
}
# On --resume.
MAY_CHANGE = {"data", "epochs", "prior_epochs", "device", "out", "save_minutes", "time_limit", "tensorboard"}
DEFAULTS = {name.replace("-", "_"): default for group in OPTIONS.values() for name, _, default, _ in group}


def parse(description: str, arguments: list[str] | None = None) -> tuple[dict[str, Any], Path | None]:
    """The options that were given (no defaults among them), and the run folder to go on with, if any."""
    parser = Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--resume", type=Path, default=None, metavar="RUN", help="go on with the run in this folder")
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for name, kind, default, text in options:
            if kind is bool:
                group.add_argument(f"--{name}", action="store_true", help=text)
                continue
            how = {"choices": kind} if isinstance(kind, tuple) else {"type": kind, "metavar": "X"}
            shown = "" if default is None else f" (default: {default})"
            group.add_argument(f"--{name}", **how, help=text + shown)
    given = vars(parser.parse_args(arguments))
    return given, given.pop("resume")


def settle(given: dict[str, Any], stored: dict[str, Any] | None) -> argparse.Namespace:
    """All settings: what was given, else what the resumed run has, else the defaults.

    Raises InputError when a resumed run was started with another setting than the one given now, when what
    it has stored is no setting at all, or when settings exclude each other.
    """
    if stored:
        stored = DEFAULTS | parse("", _arguments(stored))[0]
    for name, value in given.items():
        if stored and name not in MAY_CHANGE and value != stored[name]:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"the run was started with {flag} {stored[name]}, not {value}; leave {flag} out")
    ours = [name.replace("-", "_") for name, *_ in OPTIONS["autoencoder"]]
    if "autoencoder" in given and (unused := [name for name in ours if name in given]):
        raise InputError(f"--autoencoder is trained already: leave out --{unused[0].replace('_', '-')}")
    for name in ("epochs", "prior_epochs"):
        if stored and given.get(name, stored[name]) < stored[name]:
            raise InputError(f"the run was started with more {name} ({stored[name]}); give as many or more")
    return argparse.Namespace(**{**DEFAULTS, **(stored or {}), **given})


def _arguments(stored: dict[str, Any]) -> list[str]:
    """The command line that gives the settings in a config.json, so that the parser looks at them, too."""
    values = {name.replace("_", "-"): stored.get(name) for name in DEFAULTS}
    given = {name: value for name, value in values.items() if value is not None and value is not False}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]


def plain(settings: argparse.Namespace) -> dict[str, Any]:
    """The settings as values that JSON and a checkpoint can hold."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(settings).items()}
