"""How are networks loaded from checkpoints? Built from the arguments in the file, and checked against each other.

An autoencoder's file describes its training data; a prior's names its autoencoder. What a file says must be within the
ranges of `inference.contents`, and its weights must be finite and fit the network of its arguments.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from inference.contents import ARGUMENTS, AutoencoderContent, PainterArguments, PainterContent, PriorContent
from modules import DCGAN, RQVAE, VQVAE, Autoencoder, Prior
from networks.baseline_gan import BaselineGAN
from networks.painter import Painter
from networks.pixelcnn import PixelCNN
from networks.transformer import Transformer
from networks.vqvae2 import VQVAE2
from runtime import checkpoint
from runtime.checkpoint import MISFITS
from runtime.errors import InputError

Network = TypeVar("Network", bound=nn.Module)
AUTOENCODERS = {"vqvae": VQVAE, "vqvae2": VQVAE2, "rqvae": RQVAE}
GANS = {"residual": DCGAN, "baseline": BaselineGAN}


def load_autoencoder(path: str | Path) -> tuple[Autoencoder, dict[str, Any]]:
    """The autoencoder of a vqvae.pth, in eval mode on the CPU, and the file's description of it.

    The description has "model", "arguments", "epoch", "validation_ssim", "identity", and "data" (`contents.Data`).
    Raises InputError when it is another kind of file, or holds impossible values.
    """
    path = Path(path)
    content = AutoencoderContent.checked(checkpoint.load(path, "autoencoder"), path)
    arguments = ARGUMENTS[content.model].checked(content.arguments, f"{path}: arguments").model_dump()
    model = _filled(partial(AUTOENCODERS[content.model], **arguments), content.state, path)
    description = content.model_dump(include={"model", "arguments", "epoch", "validation_ssim", "data"})
    return model.eval(), description | {"identity": identity(model)}


def load_prior(path: str | Path, autoencoder: Autoencoder) -> tuple[Prior, dict[str, Any]]:
    """The prior of a file such as dcgan.pth, in eval mode on the CPU, and the file's description of it.

    Raises InputError when it is another kind of file, holds impossible values, or was trained on another
    autoencoder's codes.
    """
    path = Path(path)
    content = PriorContent.checked(checkpoint.load(path, "prior"), path)
    if content.autoencoder != identity(autoencoder):
        raise InputError(f"{path} was trained with another autoencoder; give the --prior of this one's run")
    arguments = ARGUMENTS[content.model].checked(content.arguments, f"{path}: arguments").model_dump()
    _check_codes(arguments, autoencoder, path)
    gan = partial(GANS[arguments.get("network", "residual")], autoencoder)
    priors = {"dcgan": gan, "pixelcnn": PixelCNN, "transformer": Transformer}
    prior = _filled(partial(priors[content.model], **arguments), content.state, path)
    if (prior.level_share < 0).any() or not prior.level_share.sum() > 0:
        raise InputError(f"{path}: state.level_share holds no shares of slice levels; give another file")
    return prior.eval(), content.model_dump(exclude={"state"})


def load_painter(path: Path, autoencoder: Autoencoder) -> Painter | None:
    """The painter of a painter.pth, in eval mode on the CPU; None where there is no such file.

    Raises InputError when it is another kind of file, or was trained on another autoencoder's codes.
    """
    if not path.is_file():
        return None
    content = PainterContent.checked(checkpoint.load(path, "painter"), path)
    if content.autoencoder != identity(autoencoder):
        raise InputError(f"{path} was trained with another autoencoder; give that one's, or move it away")
    arguments = PainterArguments.checked(content.arguments, f"{path}: arguments").model_dump()
    return _filled(partial(Painter, **arguments), content.state, path).eval()


def _filled(build: Callable[[], Network], state: dict[str, Tensor], path: Path) -> Network:
    """The network that `build` makes, with the weights of a file. Raises InputError when these aren't its own."""
    try:
        with torch.device("meta"):  # takes no memory: a small file can describe a network of any size
            build().load_state_dict(state, assign=True)
    except MISFITS as error:
        reason = " ".join(str(error).split("\n\t")[:2][-1].split())[:200]  # the first of PyTorch's list
        raise InputError(
            f"{path}: state doesn't fit the network of its arguments ({reason}); train it again"
        ) from error
    checkpoint.check_numbers(state, f"{path}: state")
    network = build()
    network.load_state_dict(state)
    return network


def _check_codes(arguments: dict[str, Any], autoencoder: Autoencoder, path: Path) -> None:
    """Raises InputError unless a prior of these arguments samples codes that this autoencoder can decode."""
    is_gan = "channels" in arguments
    number = arguments["codes"] if is_gan else len(arguments["sizes"])
    grids = arguments["grids"] if "grids" in arguments else [arguments["grid"]] * number
    height, width = (side * autoencoder.downsample for side in grids[-1])
    shapes = autoencoder.grid_shapes(height, width)
    fits = number == len(shapes) or number < autoencoder.depth
    fits = fits and height % autoencoder.factor == width % autoencoder.factor == 0
    if is_gan:
        device = autoencoder.codebooks[0].device
        codes = [torch.zeros(1, *shape, dtype=torch.long, device=device) for shape in shapes]
        fits = fits and arguments["channels"] == autoencoder.embed(codes).shape[1]
    else:
        fits = fits and [tuple(grid) for grid in grids] == shapes[:number]
        fits = fits and arguments["sizes"] == autoencoder.codebook_sizes[:number]
    if not fits:
        raise InputError(f"{path}: its arguments are for other codes than this autoencoder's; train it again")


def identity(model: Autoencoder) -> str:
    """SHA-256 of the codebooks: a prior's file names its autoencoder by it."""
    digest = hashlib.sha256()
    for codebook in model.codebooks:
        digest.update(codebook.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
