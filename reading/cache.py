"""What has been decoded already? The arrays of a data set, kept for all later runs.

A data set is decoded once, to one `SPLIT.npy` (uint8 [N, H, W]) for each split and an `index.json`, in a folder of
the user's cache that is named after the files' names, sizes and times; later runs memory-map those arrays. A
folder there is whole or absent: it is made under another name, under a lock, and then renamed. What it holds is
compared with the SHA-256 of what was written, and decoded again where it is anything else. It can be deleted at any
time.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import numpy as np
from pydantic import Field, InstanceOf
from tqdm import tqdm

from reading.decoding import THREADS, Problems, Unit, canvas_of, decode, plan
from reading.listing import SPLITS, Listing
from runtime.errors import InputError, one_line, visible
from runtime.files import BUILD_TIMEOUT, locked, whole_folder
from runtime.schema import Schema
from runtime.wording import counted

VERSION = 1  # raise it when the same files would give other arrays


Count = Annotated[int, Field(ge=0, le=2**31)]
Name = InstanceOf[str]  # whatever its characters: pydantic's own texts are UTF-8, and a file's name may be anything
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Columns(Schema):
    """What the index tells of a split's slices."""

    names: list[Name]
    levels: list[Annotated[int, Field(ge=-1, lt=10**9)]]
    files: list[Name]
    ranges: list[Annotated[list[float], Field(min_length=2, max_length=2)] | None]
    padded: Count
    resized: Count
    sha256: Hash


class Index(Schema):
    """An index.json."""

    canvas: Annotated[list[Annotated[int, Field(ge=16, le=2**14)]], Field(min_length=2, max_length=2)]
    splits: dict[Literal[*SPLITS], Columns]
    fingerprint: Hash
    sha256: Hash  # of all the rest of it


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/brain-vqvae`, or `~/.cache/brain-vqvae`. Raises InputError when there is no home, either."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "brain-vqvae"
    except RuntimeError:
        raise InputError("this user has no home folder: set XDG_CACHE_HOME to a folder for decoded slices") from None


def _header(n: int, canvas: tuple[int, int]) -> bytes:
    """What an .npy file of n slices begins with."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (n, *canvas)})
    return file.getvalue()


def _write_split(
    file: BinaryIO, units: list[Unit], canvas: tuple[int, int], axis: int, slices: str | None, pool: Executor, bar: tqdm
) -> tuple[dict, Problems]:
    """Decode a split to an open .npy file; its columns for the index, and what was wrong."""
    names = [name for unit in units for name in unit.names]
    file.write(_header(len(names), canvas))
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
    index["fingerprint"] = _sum_of(sums)
    index["sha256"] = _sum_of(index)
    with open(folder / "index.json", "w") as file:
        json.dump(index, file)
        _sync(file)
    return index


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


# ------------------------------------------------------------------------------------------- keeping the arrays


def open_or_build(listing: Listing, axis: int, slices: str | None, splits: Iterable[str] = SPLITS) -> tuple[dict, Path]:
    """The cache of a data set: its index and its folder. Built when it isn't there, or not as it was written.

    Index: "canvas" (H, W), "fingerprint" (SHA-256 of all names and pixels), "splits": for each, the columns
    "names", "levels", "files", "ranges" and the numbers of slices "padded" and "resized". `splits`: those whose
    pixels will be used, and are compared. Raises InputError that names each file which can't be read, or when the
    cache can't be written.
    """
    how = (axis, slices) if listing.is_nifti else None
    identity = repr((VERSION, str(listing.root.resolve()), listing.key, how))
    folder = cache_root() / hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:24]
    with suppress(*DAMAGE):
        return _read_index(folder, splits), folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.lock"), BUILD_TIMEOUT):
            try:
                return _read_index(folder, splits), folder  # another process built it while this one waited
            except DAMAGE as problem:
                if folder.exists():
                    print(f"the cache in {visible(folder)} is not as it was written: {one_line(problem)}")
            return _build(listing, axis, slices, folder), folder
    except OSError as error:
        raise InputError(
            f"can't write the cache in {folder.parent} ({error.strerror or error}):"
            " free space there, or set XDG_CACHE_HOME to another folder"
        ) from error


def open_array(folder: Path, split: str) -> np.ndarray:
    """The slices of a split, uint8 [N, H, W], memory-mapped and read-only."""
    return np.asarray(np.load(folder / f"{split}.npy", mmap_mode="r", allow_pickle=False))


DAMAGE = (OSError, ValueError, EOFError, RecursionError)  # what reading a cache that isn't whole raises


def _read_index(folder: Path, splits: Iterable[str]) -> dict:
    """A cache's index. Raises one of `DAMAGE` when it, or the array of one of `splits`, is not as it was written."""
    content = json.loads((folder / "index.json").read_text())
    index = Index.checked(content, "index.json").model_dump()
    if _sum_of({key: value for key, value in content.items() if key != "sha256"}) != index["sha256"]:
        raise ValueError("index.json holds something else")
    with ThreadPoolExecutor(len(SPLITS)) as pool:
        list(pool.map(lambda split: _check_array(folder, split, index), splits))
    return index


def _check_array(folder: Path, split: str, index: dict) -> None:
    columns = index["splits"].get(split, {"names": []})
    if not columns["names"]:  # an empty file can't be mapped
        return
    header = _header(len(columns["names"]), index["canvas"])
    with open(folder / f"{split}.npy", "rb") as file:  # NumPy's parser is not for headers that are damaged
        if file.read(len(header)) != header:
            raise ValueError(f"{split}.npy is no array of {len(columns['names'])} slices")
    array = open_array(folder, split)
    if any(len(columns[name]) != len(array) for name in ("levels", "files", "ranges")):
        raise ValueError(f"index.json has not one level, file and range for each slice of {split}")
    digest = hashlib.sha256(json.dumps(columns["names"]).encode())
    digest.update(array)
    if digest.hexdigest() != columns["sha256"]:
        raise ValueError(f"{split}.npy holds other pixels")


def _sum_of(content: dict) -> str:
    """SHA-256 of plain values, as JSON."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _build(listing: Listing, axis: int, slices: str | None, folder: Path) -> dict:
    """Decode a data set into `folder`: all of it, or nothing. The caller holds the lock."""
    total = sum(map(len, listing.files.values()))
    print(f"decoding {counted(total, 'file')} of {visible(listing.root)} once, to {visible(folder)}", flush=True)
    with whole_folder(folder, replace=True) as new:  # what is there is a damaged cache
        return _decode_all(listing, axis, slices, new)
