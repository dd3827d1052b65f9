"""What has been decoded already? The arrays of a data set, kept for all later runs.

A data set is decoded once, to one `SPLIT.npy` (uint8 [N, H, W]) for each split and an `index.json`, in a folder of
the user's cache that is named after the files' names, sizes and times; later runs memory-map those arrays. A
folder there is whole or absent: it is made under another name, under a lock, and then renamed. Arrays whose size or
time have changed, or an index that isn't as it was written, are made again. It can be deleted at any time.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from reading import demo, images, nifti
from reading.decoding import THREADS, Decoded, Survey, Unit, canvas_of, plan, refuse
from reading.listing import Listing
from reading.nifti import Cut
from runtime.errors import InputError, one_line, visible
from runtime.files import BUILD_TIMEOUT, locked, whole_folder
from runtime.wording import counted

VERSION = 2  # raise it when the same files would give other arrays
DAMAGE = (OSError, ValueError, EOFError, RecursionError, TypeError, LookupError, AttributeError)  # of reading a cache


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/brain-vqvae`, or `~/.cache/brain-vqvae`. Raises InputError when there is no home, either."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "brain-vqvae"
    except RuntimeError:
        raise InputError("this user has no home folder: set XDG_CACHE_HOME to a folder for decoded slices") from None


# ------------------------------------------------------------------------------------------- making and reading it


def open_or_build(listing: Listing, cut: Cut) -> tuple[dict, Path]:
    """The cache of a data set: its index and its folder. Built when it isn't there, or not as it was written.

    Index: "canvas" (H, W), "fingerprint" (SHA-256 of all names and pixels), "notes", and "splits": for each, the
    columns "names", "levels", "files", "ranges", the numbers of slices "padded" and "resized", and the "affine" of its
    first volume. Raises InputError that names each file which can't be read, or when the cache can't be written.
    """
    identity = repr((VERSION, str(listing.root.resolve()), listing.key, tuple(cut) if listing.has_volumes else None))
    folder = cache_root() / hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:24]
    with suppress(*DAMAGE):
        return _read_index(folder), folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.lock"), BUILD_TIMEOUT):
            try:
                return _read_index(folder), folder  # another process built it while this one waited
            except DAMAGE as problem:
                if folder.exists():
                    print(f"the cache in {visible(folder)} is not as it was written: {one_line(problem)}")
            total = sum(map(len, listing.files.values()))
            what = f"{counted(total, 'file')} of {visible(listing.root)}"
            print(f"decoding {what} once, to {visible(folder)}", flush=True)
            with whole_folder(folder, replace=True) as new:  # what is there is a damaged cache
                return _build(listing, cut, new), folder
    except OSError as error:
        raise InputError(
            f"can't write the cache in {folder.parent} ({error.strerror or error}):"
            " free space there, or set XDG_CACHE_HOME to another folder"
        ) from error


def open_array(folder: Path, split: str) -> np.ndarray:
    """The slices of a split, uint8 [N, H, W], memory-mapped and read-only."""
    return np.asarray(np.load(folder / f"{split}.npy", mmap_mode="r", allow_pickle=False))


def _read_index(folder: Path) -> dict:
    """A cache's index. Raises one of `DAMAGE` when it, or one of the arrays, is not as it was written."""
    index = json.loads((folder / "index.json").read_text())
    if index.pop("sha256") != _sum_of(index):
        raise ValueError("index.json holds something else")
    for split, columns in index["splits"].items():
        if _size_and_time(folder / f"{split}.npy") != columns["size_and_time"]:
            raise ValueError(f"{split}.npy holds something else")
    return index


def _build(listing: Listing, cut: Cut, folder: Path) -> dict:
    """Write `SPLIT.npy` for every split, and the index; returns the index."""
    bad, deep = [], None
    with ThreadPoolExecutor(THREADS) as pool:
        units = {split: plan(listing.folders[split], files, cut, pool, bad) for split, files in listing.files.items()}
        canvas = canvas_of(unit for part in units.values() for unit in part)
        for _ in range(2):  # pictures of more than 8 bits are decoded again once the range of all is known
            survey, index = Survey(bad), {"canvas": canvas, "splits": {}}
            with tqdm(total=sum(map(len, listing.files.values())), desc="decoding", unit="file", disable=None) as bar:
                for split, part in units.items():
                    decoded = survey.decode(split, part, cut, pool, bar, deep)
                    index["splits"][split] = _write_split(folder / f"{split}.npy", part, decoded, canvas)
            refuse(bad)
            if deep or not (deep := survey.deep):
                break
    for split, part in units.items():
        first = part[0].paths[0] if part and listing.has_volumes else None
        affine = first and nifti.affine_of(first, canvas, cut)
        index["splits"][split]["affine"] = None if affine is None else affine.tolist()
    index["notes"] = survey.problems() + survey.notes()
    index["fingerprint"] = _sum_of({split: columns["sha256"] for split, columns in index["splits"].items()})
    with open(folder / "index.json", "w") as file:
        json.dump(index | {"sha256": _sum_of(index)}, file)
        _sync(file)
    return index


def _write_split(
    path: Path, units: list[Unit], decoded: Iterable[tuple[Unit, Decoded]], canvas: tuple[int, int]
) -> dict:
    """Write a split's array; returns its columns for the index."""
    names = [name for unit in units for name in unit.names]
    columns = {
        "names": names,
        "levels": [level for unit in units for level in unit.levels],
        "files": [name for unit in units for name in unit.files],
        "ranges": [],
        "padded": 0,
        "resized": 0,
    }
    digest = hashlib.sha256(json.dumps(names).encode())
    with open(path, "wb") as file:  # not by memory map: on a full disk that would kill the process
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(names), *canvas)}
        np.lib.format.write_array_header_1_0(file, header)
        for unit, result in decoded:
            for picture in result.pictures:
                fitted = np.ascontiguousarray(images.fit(picture, canvas))
                file.write(fitted.data)
                digest.update(fitted.data)
                is_larger = picture.shape[0] > canvas[0] or picture.shape[1] > canvas[1]
                columns["resized"] += is_larger
                columns["padded"] += picture.shape != canvas and not is_larger
            columns["ranges"] += [result.span] * len(unit.names)
        _sync(file)
    return columns | {"sha256": digest.hexdigest(), "size_and_time": _size_and_time(path)}


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _size_and_time(path: Path) -> list[int]:
    return [path.stat().st_size, path.stat().st_mtime_ns]


def _sum_of(content: dict) -> str:
    """SHA-256 of plain values, as JSON."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


# ------------------------------------------------------------------------------------------- what it holds


def stored() -> dict[Path, int]:
    """The folders in the cache and their sizes in bytes, the largest first."""
    folders = [entry for entry in cache_root().glob("*") if entry.is_dir()]
    sizes = {path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in folders}
    return dict(sorted(sizes.items(), key=lambda item: item[1], reverse=True))


def content_of(folder: Path) -> str:
    """What one of the folders holds, in words."""
    if demo.is_demo(folder):
        return "the synthetic demo set"
    try:
        index = json.loads((folder / "index.json").read_text())
        names = [name for columns in index["splits"].values() for name in columns["names"]]
        height, width = index["canvas"]
        return f"{counted(len(names), 'slice')} of {height}x{width}, {names[0]} to {names[-1]}"
    except DAMAGE:
        return "not whole"


def clear() -> None:
    """Delete what the cache holds, but for what another process is making; files in use stay until they are closed."""
    for folder in stored():
        with suppress(InputError), locked(folder.with_name(f"{folder.name}.lock")):
            shutil.rmtree(folder, ignore_errors=True)
