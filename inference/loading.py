"""How do networks come back from checkpoints? Built from the sizes in the file, and checked against each other.

An autoencoder's file says what it was trained on; a prior's, whose codes it draws.
"""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

from modules import AUTOENCODERS, DCGAN, Autoencoder
from networks.pixelcnn import PixelCNN
from networks.prior import Prior
from networks.transformer import Transformer
from runtime import checkpoint
from runtime.checkpoint import MISFITS
from runtime.errors import InputError

# What a checkpoint says of its data.
ABOUT_DATA = ("title", "root", "synthetic", "fingerprint", "size", "box", "levels", "axis", "slices")


def load_autoencoder(path: str | Path) -> tuple[Autoencoder, dict[str, Any]]:
    """The autoencoder of a vqvae.pth, in eval mode on the CPU, and the file's description of it.

    That is "model", "arguments", "epoch", "validation_ssim", "identity", and "data": title, root, synthetic,
    fingerprint, size [H, W], box [top, left, height, width], levels, and the axis and slices of volumes. Raises
    InputError when it is another file.
    """
    path = Path(path)
    content = checkpoint.load(path, "autoencoder")
    try:
        model = AUTOENCODERS[content["model"]](**content["arguments"])
        model.load_state_dict(content["state"])
        description = {key: content[key] for key in ("model", "arguments", "epoch", "validation_ssim", "data")}
        description["data"] = {key: description["data"][key] for key in ABOUT_DATA}
    except MISFITS as error:
        raise InputError(f"{path} holds a network that this version doesn't know; train it again") from error
    return model.eval(), description | {"identity": identity(model)}


def load_prior(path: str | Path, autoencoder: Autoencoder) -> tuple[Prior, dict[str, Any]]:
    """The prior of a file such as dcgan.pth, in eval mode on the CPU, and the file's description of it.

    Raises InputError when it is another kind of file, or was trained on another autoencoder's codes.
    """
    path = Path(path)
    content = checkpoint.load(path, "prior")
    if content.get("autoencoder") != identity(autoencoder):
        raise InputError(f"{path} was trained with another autoencoder; give the --prior of this one's run")
    try:
        priors = {"dcgan": partial(DCGAN, autoencoder), "pixelcnn": PixelCNN, "transformer": Transformer}
        prior = priors[content["model"]](**content["arguments"])
        prior.load_state_dict(content["state"])
    except MISFITS as error:
        raise InputError(f"{path} holds a network that this version doesn't know; train it again") from error
    return prior.eval(), {key: value for key, value in content.items() if key != "state"}


def identity(model: Autoencoder) -> str:
    """SHA-256 of the codebooks: says which autoencoder's codes a prior speaks."""
    digest = hashlib.sha256()
    for quantizer in model.quantizers:
        digest.update(quantizer.codebook.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
