"""What survives? Checkpoints: written whole or not at all, read without running code.

A `.pth` holds tensors and plain Python values only and is loaded with `weights_only=True`. What it may claim of
memory is bounded by its own size, before any of that is taken.
"""

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from runtime.errors import InputError, lack
from runtime.files import atomic, require_checkpoint
from runtime.wording import with_article

# What comes of building a network from a file's arguments, and filling it with weights, that aren't its own.
MISFITS = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, ZeroDivisionError)
HUGE = 1e9  # no weight, sum or count of a training comes near it, and networks of such weights give no numbers


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint of tensors and plain values."""
    buffer = io.BytesIO()  # so that a full disk is an OSError of our write, not an error inside torch.save
    torch.save(content, buffer)
    with atomic(path) as file:
        file.write(buffer.getbuffer())


def load(path: Path, kind: str) -> dict[str, Any]:
    """Read a checkpoint that `save` wrote, its tensors on the CPU.

    Raises InputError when it is damaged, can't be read, or isn't of this kind: "autoencoder", "prior" or "run".
    """
    require_checkpoint(path)
    try:
        _check_archive(path)
        with warnings.catch_warnings(action="ignore"):  # of what is then refused
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_tensors(content, path.stat().st_size)
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}") from error
    except Exception as error:  # torch raises a dozen kinds here, pickle and zip errors among them
        if lacking := lack(error):
            raise InputError(f"can't load {path}: {lacking}; where there is enough, the file is damaged") from error
        raise InputError(
            f"{path} is damaged or no checkpoint of train.py ({type(error).__name__}); train again or give another"
        ) from error
    found = content.get("kind") if isinstance(content, dict) else None
    if found != kind:
        held, wanted = found if isinstance(found, str) else "something else", with_article(kind)
        raise InputError(f"{path} holds {held}, not the state of {wanted}; give another .pth file")
    return content


def _check_archive(path: Path) -> None:
    """Raises BadZipFile when a file isn't as `torch.save` writes it: stored as it is, each part with its checksum."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
        if packed or sum(part.file_size for part in parts) > path.stat().st_size:
            raise zipfile.BadZipFile("claims to be larger than it is")
        if damaged := archive.testzip():  # torch doesn't look at the checksums that it writes
            raise zipfile.BadZipFile(damaged)


def _check_tensors(content: object, size: int) -> None:
    """Raises ValueError when tensors are no plain arrays of numbers, or claim more memory than a file of `size` has."""
    total, waiting, seen = 0, [content], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:  # a list can hold itself
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
                raise ValueError("a tensor is no plain array")
            total += value.numel() * value.element_size()
    if total > 2 * size:  # weights can have two names
        raise ValueError("tensors claim to be larger than the file")


def check_numbers(tensors: dict[str, torch.Tensor], where: str, largest: float = HUGE) -> None:
    """Raises InputError, naming the first, unless all hold numbers of at most that size, and no NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_complex() or not (tensor.isfinite().all() and (tensor.float().abs() <= largest).all()):
            raise InputError(f"{where}.{name} holds numbers that aren't finite, or too large; give another file")


def halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A prior's weights as float16, for a file of half the size; loading makes them float32 again."""
    return {name: x.half() if x.is_floating_point() else x for name, x in state.items()}
