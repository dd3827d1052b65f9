"""What is in the files that somebody brings? Pictures, volumes, or folders of them, as slices of their own size."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reading import images, nifti
from reading.decoding import THREADS, or_problem, refuse, some
from reading.intensity import PERCENTILES, robust_range, scale_to_uint8
from reading.kinds import CODES, DICOM, PICTURE, kind_of
from reading.names import level_of, natural
from reading.nifti import Cut
from runtime.errors import InputError

MAX_SIDE = 1024  # of a slice: what an autoencoder takes in a few GB
READABLE = "PNG, JPEG, TIFF, BMP, WebP, NIfTI, Analyze, MGH or DICOM"


class Part(NamedTuple):
    """The slices of one picture or volume."""

    path: Path  # the file, or the folder of a DICOM series
    names: list[str]  # of each slice
    levels: list[int]
    pictures: np.ndarray  # uint8 [n, h, w]
    span: tuple[float, float] | None  # a volume's intensities that 0 and 255 stand for
    notes: list[str]  # what was done to it that its owner has to know


def read(paths: list[Path], cut: Cut) -> list[Part]:
    """Decode pictures, or volumes, not both. Raises InputError that names each file which can't be used."""
    sources, kinds = expand(paths)
    if CODES in kinds:
        raise InputError("files of codes are no slices: give them alone, as predict.py --input")
    if PICTURE in kinds and len(kinds) > 1:
        raise InputError("these are pictures and volumes (such as NIfTI or DICOM): give one kind at a time")
    # Decoders warn of what they then repair. Filters are the process's: set here, once, around all threads.
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        warnings.simplefilter("ignore")
        read_one = _picture if PICTURE in kinds else partial(_volume, cut=cut)
        parts = list(pool.map(lambda path: or_problem(read_one, path), sources))
    refuse([part for part in parts if isinstance(part, str)])
    return parts


def expand(paths: list[Path]) -> tuple[list[Path], set[str]]:
    """The files that are meant, with folders replaced by what they hold, and the kinds of them.

    A folder of DICOM files stays one path, since they are a series; of other folders, every readable file counts,
    in natural order, but no folder in it. Raises InputError for what isn't there, or isn't readable.
    """
    if missing := [f"no file {path}" for path in paths if not (path.is_file() or path.is_dir())]:
        raise InputError(some(missing))
    sources, kinds = [], set()
    for path in paths:
        try:
            found = _in_folder(path.resolve()) if path.is_dir() else {path: kind_of(path)}
        except OSError as error:
            raise InputError(f"can't read {error.filename or path}: {error.strerror or error}") from error
        if not found:
            raise InputError(f"{path} holds no {READABLE} file (folders in it are not looked into)")
        if None in found.values():
            raise InputError(f"{path} is no {READABLE} file")
        sources += found
        kinds |= set(found.values())
    headers = {path: nifti.partner(path) for path in sources if path.name.lower().endswith((".hdr", ".hdr.gz"))}
    return [headers.get(path) or path for path in sources if headers.get(path) not in sources], kinds


def _in_folder(folder: Path) -> dict[Path, str]:
    """The kind of each readable file in a folder, or of the folder, where it is a DICOM series."""
    entries = sorted(folder.iterdir(), key=lambda path: natural(path.name))
    kinds = {path: kind_of(path) for path in entries if path.is_file() and not path.name.startswith(".")}
    kinds = {path: kind for path, kind in kinds.items() if kind is not None}
    if set(kinds.values()) == {DICOM}:
        return {folder: DICOM}
    if DICOM in kinds.values():
        raise InputError(f"{folder} holds DICOM and other files: a series needs a folder of its own")
    return kinds


# ------------------------------------------------------------------------------------------- one of them


def _picture(path: Path) -> Part:
    pixels, notes = images.read_any(path)
    _check_size(pixels.shape)
    return Part(path, [path.name], [level_of(path.name)], pixels[None], None, [f"{path.name}: {n}" for n in notes])


def _volume(path: Path, cut: Cut) -> Part:
    image = nifti.load(path)
    named, shape = nifti.slices_of(image, path.name, cut)
    _check_size(shape)
    voxels = nifti.cut_slices(image, cut)
    low, high = robust_range([voxels])
    notes = image.extra["notes"]
    if stack := image.extra.get("stack"):
        size = "x".join(str(side) for side in stack.shape if side > 1)
        if all(plane.is_8_bit for plane in stack.planes):
            low, high = 0.0, 255.0
            notes.append(f"DICOM of {size}, 8-bit")
        else:
            percentiles = "percentiles {} and {}".format(*PERCENTILES)
            notes.append(f"DICOM of {size}, values {low:.6g} to {high:.6g} ({percentiles}) scaled to 8-bit")
        if any(plane.colour for plane in stack.planes):
            notes.append("colour, converted to grey")
    if cut.spacing is not None and (sizes := nifti.voxel_sizes(image)):
        before = "x".join(f"{size:.3g}" for size in sizes)
        notes.append(f"resampled from voxels of {before} mm to {cut.spacing:g} mm")
    names, levels = zip(*named, strict=True)
    pictures = scale_to_uint8(voxels, low, high)
    return Part(path, list(names), list(levels), pictures, (low, high), [f"{path.name}: {note}" for note in notes])


def _check_size(shape: tuple[int, int]) -> None:
    if max(shape) > MAX_SIDE:
        size = "x".join(map(str, shape))
        raise ValueError(f"has slices of {size}, and {MAX_SIDE} a side is the most: scale it down, or cut it")
