"""What has been decoded already? The arrays of a data set, kept for all later runs.

A data set is decoded once, to one `SPLIT.npy` (uint8 [N, H, W]) for each split and an `index.json`, in a folder of
the user's cache that is named after the files' names, sizes and times; later runs memory-map those arrays. A
folder there is whole or absent: it is made under another name, under a lock, and then renamed. It can be deleted
at any time.
"""

import hashlib
import json
import os
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import filelock
import numpy as np
from tqdm import tqdm

from reading.decoding import THREADS, Problems, Unit, canvas_of, decode, plan
from reading.listing import Listing
from runtime.errors import InputError
from runtime.files import whole_folder
from runtime.wording import counted

VERSION = 1  # raise it when the same files would give other arrays


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/brain-vqvae`, or `~/.cache/brain-vqvae`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "brain-vqvae"


def _write_split(
    file: BinaryIO, units: list[Unit], canvas: tuple[int, int], axis: int, slices: str | None, pool: Executor, bar: tqdm
) -> tuple[dict, Problems]:
    """Decode a split to an open .npy file; its columns for the index, and what was wrong."""
    names = [name for unit in units for name in unit.names]
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(names), *canvas)}
    np.lib.format.write_array_header_1_0(file, header)
    columns = {
        "names": names,
        "levels": [level for unit in units for level in unit.levels],
        "files": [name for unit in units for name in unit.files],
        "ranges": [],
        "padded": 0,
        "resized": 0,
    }
    problems, digest = Problems(), hashlib.sha256(json.dumps(names).encode())
    for start in range(0, len(units), 128):  # in pieces, so that few decoded slices wait to be written
        part = units[start : start + 128]
        for unit, decoded in zip(part, pool.map(lambda u: decode(u, canvas, axis, slices), part), strict=True):
            bar.update(len(unit.paths))
            if isinstance(decoded, str):
                problems.append(decoded)
                continue
            file.write(decoded.pictures)  # not by memory map: on a full disk that would kill the process
            digest.update(decoded.pictures)
            columns["ranges"] += [decoded.span] * len(unit.names)
            columns["padded"] += decoded.padded
            columns["resized"] += decoded.resized
    columns["sha256"] = digest.hexdigest()
    return columns, problems


def _decode_all(listing: Listing, axis: int, slices: str | None, folder: Path) -> dict:
    """Write `SPLIT.npy` for every split, and the index; returns the index."""
    problems, index = Problems(), {"splits": {}}
    total = sum(map(len, listing.files.values()))
    with ThreadPoolExecutor(THREADS) as pool, tqdm(total=total, desc="decoding", unit="file", disable=None) as bar:
        units = {
            split: plan(listing.folders[split], files, axis, slices, pool, problems)
            for split, files in listing.files.items()
        }
        index["canvas"] = canvas_of([unit for part in units.values() for unit in part])
        for split, part in units.items():
            with open(folder / f"{split}.npy", "wb") as file:
                columns, wrong = _write_split(file, part, index["canvas"], axis, slices, pool, bar)
                problems += wrong
                _sync(file)
            index["splits"][split] = columns
    problems.check()
    sums = {split: columns["sha256"] for split, columns in index["splits"].items()}
    index["fingerprint"] = hashlib.sha256(json.dumps(sums).encode()).hexdigest()
    with open(folder / "index.json", "w") as file:
        json.dump(index, file)
        _sync(file)
    return index


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


# ------------------------------------------------------------------------------------------- keeping the arrays


def open_or_build(listing: Listing, axis: int, slices: str | None) -> tuple[dict, Path]:
    """The cache of a data set: its index and its folder. Built when it isn't there, or is damaged.

    Index: "canvas" (H, W), "fingerprint" (SHA-256 of all names and pixels), "splits": for each, the columns
    "names", "levels", "files", "ranges" and the numbers of slices "padded" and "resized". Raises InputError that
    names each file which can't be read, or when the cache can't be written.
    """
    how = (axis, slices) if listing.is_nifti else None
    identity = repr((VERSION, str(listing.root.resolve()), listing.key, how))
    folder = cache_root() / hashlib.sha256(identity.encode()).hexdigest()[:24]
    if (index := _read_index(folder)) is not None:
        return index, folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock"):
            if (index := _read_index(folder)) is None:  # else another process built it while this one waited
                index = _build(listing, axis, slices, folder)
    except OSError as error:
        raise InputError(
            f"can't write the cache in {folder.parent} ({error.strerror or error}):"
            " free space there, or set XDG_CACHE_HOME to another folder"
        ) from error
    return index, folder


def open_array(folder: Path, split: str) -> np.ndarray:
    """The slices of a split, uint8 [N, H, W], memory-mapped and read-only."""
    return np.asarray(np.load(folder / f"{split}.npy", mmap_mode="r", allow_pickle=False))


def _read_index(folder: Path) -> dict | None:
    """A cache's index, or None when there is no cache or its arrays aren't whole."""
    try:
        index = json.loads((folder / "index.json").read_text())
        for split, columns in index["splits"].items():
            shape = (len(columns["names"]), *index["canvas"])
            if shape[0] and open_array(folder, split).shape != shape:  # an empty file can't be mapped
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index


def _build(listing: Listing, axis: int, slices: str | None, folder: Path) -> dict:
    """Decode a data set into `folder`: all of it, or nothing. The caller holds the lock."""
    total = sum(map(len, listing.files.values()))
    print(f"decoding {counted(total, 'file')} of {listing.root} once, to {folder}", flush=True)
    with whole_folder(folder, replace=True) as new:  # what is there is a damaged cache
        return _decode_all(listing, axis, slices, new)
