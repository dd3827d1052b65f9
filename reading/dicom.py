"""What is in a DICOM file, or in the files of a series? One picture, or one volume with its place in space.

pydicom is an optional requirement: it is imported where a file is read.
"""

from collections import Counter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reading.kinds import DICOM, decoding_errors, kind_of, kind_of_bytes
from reading.names import natural

COLOURS = (0.299, 0.587, 0.114)  # ITU-R BT.601: grey of red, green and blue, as Pillow weighs them
SAME = 1e-3  # how much directions (cosines) and steps (their share) of the slices of one volume may differ
MAX_FRAMES = 2**14  # in one file
DEFLATED = "1.2.840.10008.1.2.1.99"  # the transfer syntax whose whole data set is packed: it may unpack to anything


class Plane(NamedTuple):
    """One frame of one file: what has to be known of it before its pixels are read."""

    path: Path
    frame: int
    shape: tuple[int, int]  # rows, columns
    colour: bool
    is_8_bit: bool  # stored intensities are bytes
    position: np.ndarray | None  # mm, LPS: the centre of the first pixel (ImagePositionPatient)
    turn: np.ndarray | None  # [2, 3]: unit vectors along a row and along a column (ImageOrientationPatient)
    spacing: np.ndarray  # [2], mm from row to row, and from column to column
    thickness: float  # mm
    slope: float  # intensity = slope x stored value + intercept
    intercept: float


class Stack(NamedTuple):
    """Planes in the order of their place along the normal, as a volume [rows, columns, planes]."""

    planes: list[Plane]
    affine: np.ndarray  # [4, 4]: indices -> mm, RAS as NIfTI has it

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.planes[0].shape, len(self.planes))


def scan(path: Path) -> Stack:
    """The headers of a file, or of all DICOM files in a folder. Raises ValueError with the reason.

    The files of a folder must be one series, whose slices lie at even steps along one normal. Frames of one file
    that doesn't say where they lie are in the file's order, at steps of 1 mm from the foot to the head.
    """
    if find_spec("pydicom") is None:
        raise ValueError("is DICOM: pip install pydicom (requirements-extra.txt)")
    files = _files(path) if path.is_dir() else [path]
    headers = [(file, _dataset(file, pixels=False)) for file in files]
    headers = [(file, header) for file, header in headers if "Rows" in header]  # else a report, or settings
    if not headers:
        raise ValueError("holds no DICOM picture")
    _check_one_series(headers)
    return _stack([plane for file, header in headers for plane in _planes(file, header)])


def voxels(stack: Stack) -> np.ndarray:
    """Intensities, float32 [rows, columns, planes]: rescaled, MONOCHROME1 inverted, colour as grey, padding as dark as
    the darkest of the rest.

    Raises ValueError with the reason, such as a compression that needs a plugin.
    """
    values = np.empty((len(stack.planes), *stack.planes[0].shape), np.float32)
    for path in dict.fromkeys(plane.path for plane in stack.planes):
        frames = _frames(path)
        for row, plane in enumerate(stack.planes):
            if plane.path == path:
                values[row] = frames[plane.frame] * plane.slope + plane.intercept
    values = np.nan_to_num(values, nan=0.0 if np.isnan(values).all() else np.nanmin(values))
    return np.moveaxis(values, 0, -1)


# ------------------------------------------------------------------------------------------- files


def _files(folder: Path) -> list[Path]:
    """The DICOM files in a folder, without the list of them that a disc has."""
    entries = sorted(folder.iterdir(), key=lambda path: natural(path.name))
    entries = [path for path in entries if path.is_file() and not path.name.startswith(".")]
    return [path for path in entries if path.name.upper() != "DICOMDIR" and kind_of(path) == DICOM]


def _dataset(path: Path, pixels: bool) -> Any:
    """A file as pydicom's Dataset. Raises ValueError that names the file, where it is one of a folder's."""
    pydicom = import_module("pydicom")
    with decoding_errors(DICOM, f"{path.name}: "):
        if kind_of_bytes(path) != DICOM:
            raise ValueError
        has_preamble = pydicom.misc.is_dicom(path)
        syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID") if has_preamble else None
    if syntax == DEFLATED:
        raise ValueError(f"is deflated ({path.name}), which may unpack to any size: unpack it first (dcmconv +te)")
    with decoding_errors(DICOM, f"{path.name}: "):
        header = pydicom.dcmread(path, stop_before_pixels=not pixels, force=not has_preamble)
        if header.file_meta.get("TransferSyntaxUID") is None:
            explicit, implicit = pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ImplicitVRLittleEndian
            header.file_meta.TransferSyntaxUID = explicit if header.original_encoding == (False, True) else implicit
            if header.original_encoding[1] is False:
                header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
        return header


def _check_one_series(headers: list[tuple[Path, Any]]) -> None:
    names, numbers = {}, Counter()
    for file, header in headers:
        with decoding_errors(DICOM, f"{file.name}: "):
            series = str(header.get("SeriesInstanceUID"))
            names[series] = str(header.get("SeriesDescription", series))
        numbers[series] += 1
    if len(numbers) > 1:
        found = ", ".join(f"{names[series]!r} ({number})" for series, number in numbers.items())
        raise ValueError(f"holds {len(numbers)} series, {found}: give one folder for each")


# ------------------------------------------------------------------------------------------- geometry


def _planes(path: Path, header: Any) -> list[Plane]:
    """A plane for each frame. Multi-frame files keep in sequences what others have at the top."""
    with decoding_errors(DICOM, f"{path.name}: "):  # pydicom converts values only now that they are asked for
        number = int(header.get("NumberOfFrames") or 1)
        own = header.get("PerFrameFunctionalGroupsSequence") or [{}] * min(number, MAX_FRAMES)
        shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]
        planes = [_plane(path, i, header, (frame, shared)) for i, frame in enumerate(own[:MAX_FRAMES])]
    if len(planes) != number:
        raise ValueError(f"claims {number} frames, and describes {len(planes)} ({path.name})")
    return planes


def _plane(path: Path, frame: int, header: Any, groups: tuple) -> Plane:
    """`groups` are the frame's sequences, and those that all frames of the file share."""

    def numbers(sequence: str, name: str, default: list[float] | None) -> np.ndarray | None:
        items = [group[sequence][0] for group in groups if group.get(sequence)]
        found = next((item.get(name) for item in [*items, header] if item.get(name) not in (None, "")), default)
        return None if found is None else np.array(found, np.float64)

    turn = numbers("PlaneOrientationSequence", "ImageOrientationPatient", None)
    slope = numbers("PixelValueTransformationSequence", "RescaleSlope", [1.0]).item()
    intercept = numbers("PixelValueTransformationSequence", "RescaleIntercept", [0.0]).item()
    palette = "PALETTE" in _photometric(header)
    is_bytes = (header.get("BitsStored"), header.get("PixelRepresentation")) == (8, 0)
    plane = Plane(
        path=path,
        frame=frame,
        shape=(int(header.Rows), int(header.Columns)),
        colour=int(header.get("SamplesPerPixel", 1)) > 1 or palette,
        is_8_bit=is_bytes and (slope, intercept) == (1, 0) and not palette,
        position=numbers("PlanePositionSequence", "ImagePositionPatient", None),
        turn=None if turn is None else turn.reshape(2, 3),
        spacing=numbers("PixelMeasuresSequence", "PixelSpacing", [1.0, 1.0]),
        thickness=numbers("PixelMeasuresSequence", "SliceThickness", [1.0]).item() or 1.0,
        slope=slope,
        intercept=intercept,
    )
    for part, length in ((plane.position, 3), (plane.spacing, 2), (np.array([plane.thickness, slope, intercept]), 3)):
        if part is not None and (part.shape != (length,) or not np.isfinite(part).all()):
            raise ValueError
    if turn is not None and not np.isfinite(turn).all():
        raise ValueError
    return plane


def _stack(planes: list[Plane]) -> Stack:
    """Order planes by their place along the normal, and find the affine of the volume."""
    first = planes[0]
    if any(plane.shape != first.shape for plane in planes):
        raise ValueError("holds pictures of different sizes: not one volume")
    if any(plane.position is None or plane.turn is None for plane in planes):
        if len({plane.path for plane in planes}) > 1:
            raise ValueError("doesn't say where its slices lie (ImagePositionPatient): give the files one by one")
        return Stack(planes, np.diag([*first.spacing, 1.0, 1.0]))
    if any(not np.allclose([*p.turn.flat, *p.spacing], [*first.turn.flat, *first.spacing], atol=SAME) for p in planes):
        raise ValueError("holds pictures of different directions or pixel sizes: not one volume")

    normal = np.cross(*first.turn)
    planes = sorted(planes, key=lambda plane: float(plane.position @ normal))
    step = normal * first.thickness
    if len(planes) > 1:
        positions = np.stack([plane.position for plane in planes])
        steps, step = np.diff(positions @ normal), (positions[-1] - positions[0]) / (len(planes) - 1)
        if steps.min() < SAME * steps.max() or steps.max() == 0:
            raise ValueError("holds several pictures at one place (times, or echoes): not one volume")
        if steps.max() - steps.min() > 0.1 * steps.mean():
            found = f"{steps.min():.4g} to {steps.max():.4g} mm apart"
            raise ValueError(f"holds slices that are {found}, so some are missing")
    affine = np.eye(4)
    affine[:3, 0] = first.turn[1] * first.spacing[0]  # a step down a column is to the next row
    affine[:3, 1] = first.turn[0] * first.spacing[1]
    affine[:3, 2] = step
    affine[:3, 3] = planes[0].position
    return Stack(planes, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)  # DICOM counts to the left and back (LPS)


# ------------------------------------------------------------------------------------------- pixels


def _photometric(header: Any) -> str:
    return str(header.get("PhotometricInterpretation", ""))


def _frames(path: Path) -> np.ndarray:
    """A file's stored values as grey, [frames, rows, columns]; MONOCHROME1, whose least value is white, inverted; NaN
    where the file declares padding."""
    pixels, dataset = import_module("pydicom.pixels"), _dataset(path, pixels=True)
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        values = pixels.pixel_array(dataset)
    except (RuntimeError, NotImplementedError) as error:  # no decoder for it, or none that knows this kind
        plugins = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
        raise ValueError(f"can't be decoded ({path.name}: {syntax.name}): damaged, or needs {plugins}") from error
    except Exception as error:  # damaged bytes raise nearly anything
        raise ValueError(f"can't be read as DICOM ({path.name}: {type(error).__name__})") from error
    with decoding_errors(DICOM, f"{path.name}: "):
        if "PALETTE" in _photometric(dataset):
            values = pixels.apply_color_lut(values, dataset)
        values = values.reshape(int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns), -1)
        grey = values[..., 0] if values.shape[-1] == 1 else values[..., :3] @ np.array(COLOURS)
        if isinstance(padding := dataset.get("PixelPaddingValue"), int):
            limit = dataset.get("PixelPaddingRangeLimit", padding)
            grey = np.where((grey >= min(padding, limit)) & (grey <= max(padding, limit)), np.float32(np.nan), grey)
        if _photometric(dataset) == "MONOCHROME1":
            signed = int(dataset.get("PixelRepresentation", 0))
            grey = (-1.0 if signed else 2.0 ** int(dataset.BitsStored) - 1) - grey  # the type's least + most, less it
    return grey
