"""How are checkpoints written and read? Whole or not at all, and without running code.

A `.pth` holds tensors and plain Python values only and is loaded with `weights_only=True`. A file can't make loading
take much more memory than its own size.
"""

import io
import reprlib
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from runtime.errors import InputError
from runtime.files import atomic, require_checkpoint

# What PyTorch raises when a network is built from arguments that don't fit, or filled with weights of another one.
MISFITS = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, ZeroDivisionError)
LARGEST_WEIGHT = 1e9  # far above any weight, sum or count of a sound training


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint of tensors and plain values."""
    buffer = io.BytesIO()  # so that a full disk is an OSError of our write, not an error inside torch.save
    torch.save(content, buffer)
    with atomic(path) as file:
        file.write(buffer.getbuffer())


def load(path: Path, kind: str) -> dict[str, Any]:
    """Read a checkpoint that `save` wrote; its tensors are on the CPU.

    Raises InputError when the file is damaged, can't be read, or isn't of this kind: "autoencoder", "prior" or "run".
    """
    require_checkpoint(path)
    try:
        _check_archive(path)
        with warnings.catch_warnings(action="ignore"):  # about files that are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_tensors(content, path.stat().st_size)
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}") from error
    except MemoryError:
        raise
    except Exception as error:  # PyTorch raises a dozen kinds here, pickle and zip errors among them
        reason = f"{type(error).__name__}: {error}"[:200]
        raise InputError(f"{path} is damaged or not a checkpoint of train.py ({reason}); give another") from error
    found = content.get("kind") if isinstance(content, dict) else None
    if found != kind:
        raise InputError(f"{path} holds {reprlib.repr(found)}, not {kind!r}; give another .pth file")
    return content


def _check_archive(path: Path) -> None:
    """Raises BadZipFile unless the file is as `torch.save` writes it: uncompressed, and each part has its checksum."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
        if packed or sum(part.file_size for part in parts) > path.stat().st_size:
            raise zipfile.BadZipFile("claims to be larger than it is")
        if damaged := archive.testzip():  # torch.load doesn't compare checksums
            raise zipfile.BadZipFile(damaged)


def _check_tensors(content: object, size: int) -> None:
    """Raises ValueError when a tensor isn't a dense array, or all together are larger than a file of `size` bytes."""
    total, waiting, visited = 0, [content], set()
    while waiting:
        value = waiting.pop()
        if id(value) in visited:  # a list can hold itself
            continue
        visited.add(id(value))
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
                raise ValueError("a tensor isn't a dense array")
            total += value.numel() * value.element_size()
    if total > 2 * size:  # weights can have two names
        raise ValueError("tensors claim to be larger than the file")


def check_numbers(tensors: dict[str, torch.Tensor], where: str, largest: float = LARGEST_WEIGHT) -> None:
    """Raises InputError that names the first tensor with a NaN, an infinity or a magnitude above `largest`."""
    for name, tensor in tensors.items():
        if tensor.is_complex() or not (tensor.isfinite().all() and (tensor.float().abs() <= largest).all()):
            raise InputError(f"{where}.{name} holds numbers that aren't finite, or too large; give another file")


def halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights as float16, for a file of half the size; loading makes them float32 again."""
    return {name: x.half() if x.is_floating_point() else x for name, x in state.items()}
