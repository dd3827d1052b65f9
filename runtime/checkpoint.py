"""What survives? Checkpoints: written whole or not at all, read without running code.

A `.pth` holds tensors and plain Python values only and is loaded with `weights_only=True`.
"""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from runtime.errors import InputError
from runtime.files import atomic, require_checkpoint
from runtime.wording import with_article

# What comes of building a network from a file's arguments, and filling it with weights, that aren't its own.
MISFITS = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, ZeroDivisionError)


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint of tensors and plain values."""
    buffer = io.BytesIO()  # so that a full disk is an OSError of our write, not an error inside torch.save
    torch.save(content, buffer)
    with atomic(path) as file:
        file.write(buffer.getbuffer())


def load(path: Path, kind: str) -> dict[str, Any]:
    """Read a checkpoint that `save` wrote, its tensors on the CPU.

    Raises InputError when it is damaged, or not of this kind: "autoencoder", "prior" or "run".
    """
    require_checkpoint(path)
    try:
        with zipfile.ZipFile(path) as archive:  # torch doesn't look at the checksums that it writes
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(damaged)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds here, pickle and zip errors among them
        raise InputError(
            f"{path} is damaged or no checkpoint of train.py ({type(error).__name__}); train again or give another"
        ) from error
    found = content.get("kind") if isinstance(content, dict) else None
    if found != kind:
        held, wanted = found or "something else", with_article(kind)
        raise InputError(f"{path} holds {held}, not the state of {wanted}; give another .pth file")
    return content


def halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A prior's weights as float16, for a file of half the size; loading makes them float32 again."""
    return {name: x.half() if x.is_floating_point() else x for name, x in state.items()}
