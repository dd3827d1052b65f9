"""Which files does a data set hold, and what has been decoded of them already?

A data set is decoded once, to one `SPLIT.npy` (uint8 [N, H, W]) for each split and an `index.json`, in a folder of
the user's cache that is named after the files' names, sizes and times; later runs memory-map those arrays. A
folder there is whole or absent: it is made under another name, under a lock, and then renamed. It can be deleted
at any time.
"""

import hashlib
import json
import os
from collections import Counter
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

import filelock
import numpy as np
from tqdm import tqdm

from reading import images, nifti
from runtime.errors import InputError
from runtime.files import whole_folder

SPLITS = ("train", "validate", "test")
LAYOUTS = ("keras_png_slices_{}", "keras_slices_{}", "{}")
VERSION = 1  # raise it when the same files would give other arrays
THREADS = min(16, os.cpu_count() or 1)


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/brain-vqvae`, or `~/.cache/brain-vqvae`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "brain-vqvae"


def some(lines: list[str], limit: int = 40) -> str:
    """Join lines for an error message of one line, the first `limit` of them."""
    rest = f"; and {len(lines) - limit} more (python dataset.py check lists all)" if len(lines) > limit else ""
    return "; ".join(lines[:limit]) + rest


# ------------------------------------------------------------------------------------------- listing the files


@dataclass(frozen=True)
class Listing:
    """What a data set's folders hold, from the directory entries alone: nothing has been opened yet."""

    root: Path
    folders: dict[str, Path]  # by split, those that exist
    files: dict[str, list[str]]  # by split, in natural order of person and name
    is_nifti: bool
    key: str  # SHA-256 of the files' names, sizes and times

    def overlap(self) -> list[str]:
        """A line for each person who is in more than one split."""
        places: dict[str, list[str]] = {}
        for split, files in self.files.items():
            for person in dict.fromkeys(map(images.person_of, files)):
                places.setdefault(person, []).append(split)
        return [f"{person} is in {' and '.join(where)}" for person, where in places.items() if len(where) > 1]


def holds_splits(folder: Path) -> bool:
    """Whether a folder has a folder for some split, in any layout."""
    return any((folder / layout.format(split)).is_dir() for layout in LAYOUTS for split in SPLITS)


def scan(root: Path) -> Listing:
    """List the files of a folder that `holds_splits`. Raises InputError when it mixes layouts or kinds of file."""
    layouts = [layout for layout in LAYOUTS if any((root / layout.format(split)).is_dir() for split in SPLITS)]
    if len(layouts) > 1:
        names = " and ".join(layout.format("...") for layout in layouts)
        raise InputError(f"{root} holds two layouts, {names}: move one of them elsewhere")
    folders = {split: root / layouts[0].format(split) for split in SPLITS}
    folders = {split: folder for split, folder in folders.items() if folder.is_dir()}
    files, kinds, digest = {}, set(), hashlib.sha256()
    for split, folder in folders.items():
        with os.scandir(folder) as entries:
            found = {entry.name: entry.stat() for entry in entries if _is_data(entry.name) and entry.is_file()}
        kinds |= {is_nifti(name) for name in found}
        files[split] = sorted(found, key=lambda name: images.natural(f"{images.person_of(name)} {name}"))
        stats = [(name, found[name].st_size, found[name].st_mtime_ns) for name in files[split]]
        digest.update(repr((split, stats)).encode())
    if len(kinds) > 1:
        raise InputError(f"{root} holds both pictures and NIfTI files: keep one kind")
    return Listing(root, folders, files, kinds == {True}, digest.hexdigest())


def is_nifti(name: str) -> bool:
    return name.lower().endswith(nifti.SUFFIXES)


def _is_data(name: str) -> bool:
    # Dot files include the `._case_001...` that macOS leaves beside every file on a foreign disk.
    return not name.startswith(".") and (name.lower().endswith(images.SUFFIXES) or is_nifti(name))


# ------------------------------------------------------------------------------------------- decoding the files


class Unit(NamedTuple):
    """Files that are decoded together, since they share a range of intensities, and the slices that they give."""

    paths: list[Path]  # one picture, or the slices of one NIfTI volume
    names: list[str]
    levels: list[int]
    files: list[str]  # of each slice
    shapes: list[tuple[int, int]]  # of each slice; empty for pictures, whose sizes nobody needs to know ahead


class Decoded(NamedTuple):
    pictures: np.ndarray  # uint8 [n, H, W]
    span: tuple[float, float] | None  # the NIfTI intensities that 0 and 255 stand for
    padded: int
    resized: int


class Problems(list):
    """What is wrong with which file, gathered from all of them, so that one error can name each."""

    def check(self) -> None:
        if self:
            raise InputError(f"{len(self)} of the files can't be used: {some(self)}")


def plan(
    folder: Path, files: list[str], axis: int, slices: str | None, pool: Executor, problems: Problems
) -> list[Unit]:
    """Group files into units. NIfTI headers are read; pictures are not opened."""
    if not files or not is_nifti(files[0]):
        return [Unit([folder / name], [name], [images.level_of(name)], [name], []) for name in files]

    def describe(name: str) -> tuple[list[tuple[str, int]], tuple[int, int]] | str:
        try:
            return nifti.describe(folder / name, axis, slices)
        except ValueError as problem:
            return f"{folder / name} {problem}"

    described = dict(zip(files, pool.map(describe, files), strict=True))
    problems += [problem for problem in described.values() if isinstance(problem, str)]
    units = []
    for _, group in groupby((name for name in files if not isinstance(described[name], str)), nifti.volume_of):
        unit = Unit([], [], [], [], [])
        for file in group:
            named, shape = described[file]
            unit.paths.append(folder / file)
            for name, level in named:
                unit.names.append(name)
                unit.levels.append(level)
                unit.files.append(file)
                unit.shapes.append(shape)
        units.append(unit)
    return units


def canvas_of(units: list[Unit]) -> tuple[int, int]:
    """The size that all slices get: 256x256 for pictures; for NIfTI slices the most frequent one, its sides brought
    up to multiples of 16, since a network halves them up to four times."""
    counts = Counter(shape for unit in units for shape in unit.shapes)
    if not counts:
        return images.CANVAS
    height, width = counts.most_common(1)[0][0]
    return -(-height // 16) * 16, -(-width // 16) * 16


def decode(unit: Unit, canvas: tuple[int, int], axis: int, slices: str | None) -> Decoded | str:
    """The slices of a unit, or a line that says what is wrong with which file."""
    parts, span = [], None
    for path in unit.paths:
        try:
            nii = is_nifti(path.name)
            parts.append(nifti.read(path, axis, slices) if nii else images.read(path)[0][None])
        except (ValueError, OSError) as problem:
            return f"{path} {problem}"
    if is_nifti(unit.paths[0].name):
        span = nifti.robust_range(parts)
        parts = [nifti.to_uint8(part, *span) for part in parts]
    pictures = [picture for part in parts for picture in part]
    resized = sum(p.shape[0] > canvas[0] or p.shape[1] > canvas[1] for p in pictures)
    padded = sum(p.shape != canvas for p in pictures) - resized
    fitted = np.empty((len(pictures), *canvas), np.uint8)
    for row, picture in enumerate(pictures):
        fitted[row] = images.fit(picture, canvas)
    return Decoded(fitted, span, padded, resized)


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
    print(f"decoding {total:,} files of {listing.root} once, to {folder}", flush=True)
    with whole_folder(folder, replace=True) as new:  # what is there is a damaged cache
        return _decode_all(listing, axis, slices, new)
