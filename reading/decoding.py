"""How do files become slices? Together, where they share a range of intensities, and all on one canvas as uint8."""

import os
from collections import Counter
from concurrent.futures import Executor
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reading import images, nifti
from reading.intensity import robust_range, scale_to_uint8
from reading.names import is_nifti, level_of, volume_of
from runtime.errors import InputError

THREADS = min(16, os.cpu_count() or 1)


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


def some(lines: list[str], limit: int = 40) -> str:
    """Join lines for an error message of one line, the first `limit` of them."""
    rest = f"; and {len(lines) - limit} more (python dataset.py check lists all)" if len(lines) > limit else ""
    return "; ".join(lines[:limit]) + rest


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
        return [Unit([folder / name], [name], [level_of(name)], [name], []) for name in files]

    def contents(name: str) -> tuple[list[tuple[str, int]], tuple[int, int]] | str:
        try:
            return nifti.contents(folder / name, axis, slices)
        except ValueError as problem:
            return f"{folder / name} {problem}"

    found = dict(zip(files, pool.map(contents, files), strict=True))
    problems += [problem for problem in found.values() if isinstance(problem, str)]
    units = []
    for _, group in groupby((name for name in files if not isinstance(found[name], str)), volume_of):
        unit = Unit([], [], [], [], [])
        for file in group:
            named, shape = found[file]
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
    return images.whole_blocks(counts.most_common(1)[0][0])


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
        span = robust_range(parts)
        parts = [scale_to_uint8(part, *span) for part in parts]
    pictures = [picture for part in parts for picture in part]
    resized = sum(p.shape[0] > canvas[0] or p.shape[1] > canvas[1] for p in pictures)
    padded = sum(p.shape != canvas for p in pictures) - resized
    fitted = np.empty((len(pictures), *canvas), np.uint8)
    for row, picture in enumerate(pictures):
        fitted[row] = images.fit(picture, canvas)
    return Decoded(fitted, span, padded, resized)
