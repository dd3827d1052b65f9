"""How do files become slices? Together, where they share a range of intensities, all on one canvas as uint8, with a
look at their values."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from reading import images, nifti
from reading.intensity import (
    PERCENTILES,
    fill_padding,
    looks_like_labels,
    nominal_range,
    padding_of,
    robust_range,
    scale_to_uint8,
)
from reading.names import is_volume, level_of, volume_of
from reading.nifti import Cut
from runtime.errors import InputError
from runtime.wording import counted

Value = TypeVar("Value")
THREADS = min(16, os.cpu_count() or 1)
SAMPLE = 2**12  # values that are taken of a picture of more than 8 bits to find the range of all
DIM = 64  # a set of bytes whose largest value is less has hardly been made to be looked at


class Unit(NamedTuple):
    """Files that are decoded together, since they share a range of intensities, and the slices that they give."""

    paths: list[Path]  # one picture, or the slices of one volume
    names: list[str]
    levels: list[int]
    files: list[str]  # of each slice
    shapes: list[tuple[int, int]]  # of each slice; empty for pictures, whose sizes nobody needs to know ahead
    voxels: tuple[float, ...] | None = None  # mm of a volume's


class Look(NamedTuple):
    """What one file is, and what its values look like."""

    path: Path
    kind: str  # "256x256, mode L"
    flat: bool  # one value all over
    labels: bool
    largest: int | None  # of a picture's bytes
    transparent: bool
    notes: list[str]
    sample: np.ndarray | None = None  # some values of a picture of more than 8 bits


class Decoded(NamedTuple):
    pictures: list[np.ndarray]  # uint8 [h, w]; black where a range for more than 8 bits isn't known yet
    span: tuple[float, float] | None  # the volume's intensities that 0 and 255 stand for
    looks: list[Look]  # one for each file


def some(lines: list[str], limit: int = 40) -> str:
    """Join lines for an error message of one line, the first `limit` of them."""
    rest = f"; and {len(lines) - limit} more (python dataset.py check lists all)" if len(lines) > limit else ""
    return "; ".join(lines[:limit]) + rest


def refuse(bad: list[str]) -> None:
    """Raises InputError when there are lines about files that can't be used."""
    if bad:
        raise InputError(f"{len(bad)} of the files can't be used: {some(bad)}")


def or_problem(read_one: Callable[[Path], Value], path: Path) -> Value | str:
    """What `read_one` makes of a file, or the line that says what is wrong with it."""
    try:
        return read_one(path)
    except OSError as error:
        return f"{path} can't be read: {error.strerror or error}"
    except (ValueError, MemoryError) as error:
        return f"{path} {error or 'takes more memory than there is'}"


def plan(folder: Path, files: list[str], cut: Cut, pool: Executor, bad: list[str]) -> list[Unit]:
    """Group files into units. Headers of volumes are read, those that can't be named in `bad`; pictures stay closed."""
    if not files or not is_volume(files[0]):
        return [Unit([folder / name], [name], [level_of(name)], [name], []) for name in files]

    def contents(path: Path) -> tuple:
        image = nifti.load(path, voxels=False)
        return *nifti.slices_of(image, path.name, cut), nifti.voxel_sizes(image)

    found = dict(zip(files, pool.map(lambda name: or_problem(contents, folder / name), files), strict=True))
    bad += [problem for problem in found.values() if isinstance(problem, str)]
    units = []
    for _, group in groupby((name for name in files if not isinstance(found[name], str)), volume_of):
        own = list(group)
        slices = [(*name_and_level, file, found[file][1]) for file in own for name_and_level in found[file][0]]
        units.append(Unit([folder / file for file in own], *map(list, zip(*slices, strict=True)), found[own[0]][2]))
    return units


def canvas_of(units: Iterable[Unit]) -> tuple[int, int]:
    """The size that all slices get: 256x256 for pictures; for slices of volumes the most frequent one, its sides
    brought up to multiples of 16, since a network halves them up to four times."""
    counts = Counter(shape for unit in units for shape in unit.shapes)
    if not counts:
        return images.CANVAS
    return images.whole_blocks(counts.most_common(1)[0][0])


def _decode(unit: Unit, cut: Cut, deep: tuple | None) -> Decoded | str:
    are_volumes, span = is_volume(unit.paths[0].name), None
    read_one = partial(_volume, cut=cut) if are_volumes else partial(_picture, deep=deep)
    decoded = [or_problem(read_one, path) for path in unit.paths]
    if bad := [one for one in decoded if isinstance(one, str)]:
        return bad[0]
    parts, looks = zip(*decoded, strict=True)
    if are_volumes:
        span = robust_range(parts)
        parts = [scale_to_uint8(part, *span) for part in parts]
    return Decoded([picture for part in parts for picture in part], span, list(looks))


def _picture(path: Path, deep: tuple | None) -> tuple[np.ndarray, Look]:
    picture = images.read(path)
    values, sample, largest = picture.values, None, None
    if picture.colour:
        raise ValueError("is a colour picture: its channels differ")
    if picture.pages > 1:
        raise ValueError(f"holds {picture.pages} pages: save each as a file of its own")
    flat = bool(values.min() == values.max())
    labels = looks_like_labels(values)
    if values.dtype == np.uint8:
        largest = int(values.max())
    else:
        sample = values.ravel()[:: max(1, values.size // SAMPLE)]
        span, padding = deep or ((0, 0), None)
        values = scale_to_uint8(fill_padding(values, padding), *span)
    kind = f"{'x'.join(map(str, values.shape))}, mode {picture.mode}"
    return values[None], Look(path, kind, flat, labels, largest, picture.transparent, [], sample)


def _volume(path: Path, cut: Cut) -> tuple[np.ndarray, Look]:
    image = nifti.load(path)
    slices = nifti.cut_slices(image, cut)
    whole = f"volumes of {len(slices)} slices" if len(slices) > 1 else "slices of volumes"
    kind = f"{'x'.join(map(str, slices.shape[1:]))}, {whole}"
    flat = bool(slices.min() == slices.max())
    return slices, Look(path, kind, flat, looks_like_labels(slices), None, False, image.extra["notes"])


# ------------------------------------------------------------------------------------------- a look at the values


class Survey:
    """What the files of a data set look like, gathered while they are decoded."""

    def __init__(self, bad: list[str]) -> None:
        self.bad = bad  # a line for each file that can't be decoded
        self.looks: dict[str, list[Look]] = {}  # by split
        self.voxels: Counter = Counter()  # volumes of each size of voxels

    def decode(
        self, split: str, units: list[Unit], cut: Cut, pool: Executor, bar: tqdm, deep: tuple | None = None
    ) -> Iterator[tuple[Unit, Decoded]]:
        """Each unit of sound files with its slices.

        `deep`: the range and the padding of pictures of more than 8 bits, as the property of that name finds them.
        """
        for start in range(0, len(units), 128):  # in pieces, so that few decoded slices wait for what is done with them
            part = units[start : start + 128]
            for unit, decoded in zip(part, pool.map(lambda unit: _decode(unit, cut, deep), part), strict=True):
                bar.update(len(unit.paths))
                if isinstance(decoded, str):
                    self.bad.append(decoded)
                    continue
                self.looks.setdefault(split, []).extend(decoded.looks)
                if unit.voxels:
                    self.voxels["x".join(f"{size:.3g}" for size in unit.voxels)] += 1
                yield unit, decoded

    @property
    def deep(self) -> tuple[tuple[float, float], float | None] | None:
        """Of all pictures of more than 8 bits together: the values that become 0 and 255, and what is padding.

        None where there are no such pictures.
        """
        samples = [look.sample for looks in self.looks.values() for look in looks if look.sample is not None]
        if not samples:
            return None
        values = np.concatenate(samples)
        padding = padding_of(values)
        values = fill_padding(values, padding)
        return nominal_range(values) or robust_range([values]), padding

    def problems(self) -> list[str]:
        """A line for each split that isn't fit to be trained on, or scored."""
        largest = [look.largest for looks in self.looks.values() for look in looks if look.largest is not None]
        if largest and 0 < max(largest) < DIM:
            return [f"the largest value of all pictures is {max(largest)} of 255: scale them up"]
        lines = []
        for split, looks in self.looks.items():
            labels, flat = [look for look in looks if look.labels], [look for look in looks if look.flat]
            if labels:
                lines.append(f"{self._count(split, labels)} like a mask or labels: move such files elsewhere")
            if 2 * len(flat) > len(looks):
                lines.append(f"{self._count(split, flat)} one value all over")
        return lines

    def notes(self) -> list[str]:
        """What was done to the files that their owner has to know, and what differs between them."""
        lines = []
        if found := self.deep:
            (low, high), padding = found
            if padding is not None:
                lines.append(f"value {padding:g} taken for padding")
            if high not in (1, 65535):
                how = "values {:.6g} to {:.6g} (percentiles {} and {} of the whole set)".format(low, high, *PERCENTILES)
                lines.append(f"pictures of more than 8 bits, {how} scaled to 8")
        if len(self.voxels) > 1:
            sizes = [f"{size} mm in {counted(number, 'volume')}" for size, number in self.voxels.most_common(3)]
            lines.append(f"voxels of {len(self.voxels)} sizes: {', '.join(sizes)}; --spacing 1 makes them alike")
        for split, looks in self.looks.items():
            for note, number in Counter(note for look in looks for note in look.notes).items():
                lines.append(f"{split}: {counted(number, 'file')}: {note}")
            if transparent := [look for look in looks if look.transparent]:
                lines.append(f"{self._count(split, transparent)} transparent in places, laid over black")
            flat = [look for look in looks if look.flat]
            if 0 < 2 * len(flat) <= len(looks):
                lines.append(f"{self._count(split, flat)} one value all over")
        return lines

    def _count(self, split: str, looks: list[Look]) -> str:
        are = "is" if len(looks) == 1 else "are"
        return (
            f"{split}: {len(looks):,} of {counted(len(self.looks[split]), 'file')} (such as {looks[0].path.name}) {are}"
        )
