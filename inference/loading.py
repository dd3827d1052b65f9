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
from torch import nn

from inference.contents import AutoencoderContent, Content, PainterContent, PriorContent
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
    content = AutoencoderContent.checked(checkpoint.load(Path(path), "autoencoder"), path)
    model = _build(AUTOENCODERS[content.model], content, path)
    description = content.model_dump(include={"model", "epoch", "validation_ssim", "data"})
    return model, description | {"arguments": model.arguments, "identity": identity(model)}


def load_prior(path: str | Path, autoencoder: Autoencoder) -> tuple[Prior, dict[str, Any]]:
    """The prior of a file such as dcgan.pth, in eval mode on the CPU, and the file's description of it.

    Raises InputError when it is another kind of file, holds impossible values, or was trained on another
    autoencoder's codes.
    """
    content = PriorContent.checked(checkpoint.load(Path(path), "prior"), path)
    if content.autoencoder != identity(autoencoder):
        raise InputError(f"{path} was trained with another autoencoder; give the --prior of this one's run")
    gan = partial(GANS[content.arguments.network or "residual"], autoencoder)
    prior = _build({"dcgan": gan, "pixelcnn": PixelCNN, "transformer": Transformer}[content.model], content, path)
    if not _fits(prior, autoencoder):
        raise InputError(f"{path}: its arguments are for other codes than this autoencoder's; train it again")
    if (prior.level_share < 0).any() or not prior.level_share.sum() > 0:
        raise InputError(f"{path}: state.level_share holds no shares of slice levels; give another file")
    return prior, content.model_dump(exclude={"state", "arguments"})


def load_painter(path: Path, autoencoder: Autoencoder) -> Painter | None:
    """The painter of a painter.pth, in eval mode on the CPU; None where there is no such file.

    Raises InputError when it is another kind of file, or was trained on another autoencoder's codes.
    """
    if not path.is_file():
        return None
    content = PainterContent.checked(checkpoint.load(path, "painter"), path)
    if content.autoencoder != identity(autoencoder):
        raise InputError(f"{path} was trained with another autoencoder; give that one's, or move it away")
    return _build(Painter, content, path)


def _build(network: Callable[..., Network], content: Content, path: str | Path) -> Network:
    """The network of a file, in eval mode. Raises InputError when the file's weights aren't the network's own."""
    arguments = content.arguments.model_dump(exclude_unset=True)
    try:
        with torch.device("meta"):  # takes no memory: a small file can describe a network of any size
            network(**arguments).load_state_dict(content.state, assign=True)
    except MISFITS as error:
        reason = " ".join(str(error).split("\n\t")[:2][-1].split())[:200]  # the first of PyTorch's list
        message = f"{path}: state doesn't fit the network of its arguments ({reason}); train it again"
        raise InputError(message) from error
    checkpoint.check_numbers(content.state, f"{path}: state")
    built = network(**arguments)
    built.load_state_dict(content.state)
    return built.eval()


def _fits(prior: Prior, autoencoder: Autoencoder) -> bool:
    """Whether the prior samples codes that the autoencoder can decode."""
    arguments = prior.arguments
    grids, sizes = arguments.get("grids") or [arguments["grid"]], arguments.get("sizes")
    number = len(sizes) if sizes else arguments["codes"]
    height, width = (side * autoencoder.downsample for side in grids[-1])
    shapes = autoencoder.grid_shapes(height, width)
    if height % autoencoder.factor or width % autoencoder.factor:
        return False
    if number != len(shapes) and number >= autoencoder.depth:
        return False
    if sizes:
        return [tuple(grid) for grid in grids] == shapes[: len(grids)] and sizes == autoencoder.codebook_sizes[:number]
    codes = [torch.zeros(1, *shape, dtype=torch.long, device=autoencoder.codebooks[0].device) for shape in shapes]
    return arguments["channels"] == autoencoder.embed(codes).shape[1]


def identity(model: Autoencoder) -> str:
    """SHA-256 of the codebooks: a prior's file names its autoencoder by it."""
    digest = hashlib.sha256()
    for codebook in model.codebooks:
        digest.update(codebook.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
