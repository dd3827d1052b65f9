"""What is in one picture file? A grey slice, whatever way it was stored, and its place on a larger canvas."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from reading.intensity import PERCENTILES, nominal_range, robust_range, scale_to_uint8

CANVAS = (256, 256)  # height, width of the published OASIS slices
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")

# A small file can claim a huge picture (a "decompression bomb"). No slice comes near this.
MAX_PIXELS = 4096 * 4096
LOSS = 8  # levels by which lossy compression may tint a grey picture
GREY = ("1", "L", "LA")
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # more than 8 bits
_STANDARD_ERROR = threading.Lock()  # there is one for all threads
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


class Grey(NamedTuple):
    """A picture's grey values as they were stored."""

    values: np.ndarray  # [h, w], uint8, uint16, int32 or float32
    mode: str  # Pillow's name for what the file holds
    colour: bool  # its channels differed
    notes: list[str]  # what was left out or changed that its owner has to know


def read(path: Path) -> tuple[np.ndarray, str]:
    """A data set's picture, PNG or JPEG: (uint8 [h, w], Pillow's name of the mode that the file had).

    The slices of a data set have one scale, so nothing here depends on the one picture: 16-bit grey is scaled to 8
    (65535 -> 255), and colour is refused unless its channels are equal. Alpha is dropped. Raises ValueError with
    the reason when the file is not such a picture.
    """
    grey = _decode(path, ("PNG", "JPEG"))
    if grey.colour:
        raise ValueError("is a colour picture: its channels differ")
    if grey.values.dtype == np.uint8:
        return grey.values, grey.mode
    return scale_to_uint8(grey.values, 0, 65535), grey.mode


def read_any(path: Path) -> tuple[np.ndarray, list[str]]:
    """Anybody's picture: (uint8 [h, w], notes of what was done to it that its owner has to know).

    Colour becomes grey as ITU-R BT.601 weighs it, alpha is dropped. More than 8 bits are scaled from the range of
    their type when they span it (`nominal_range`), else from the picture's 0.5 and 99.5 percentiles. Raises
    ValueError with the reason when the file is no picture.
    """
    grey = _decode(path, FORMATS)
    span = nominal_range(grey.values)
    if span is None:
        span = low, high = robust_range([grey.values])
        kind = {"u": "16-bit", "i": "integer"}.get(grey.values.dtype.kind, "floating-point")
        percentiles = "percentiles {} and {}".format(*PERCENTILES)
        grey.notes.append(f"{kind}, values {low:.6g} to {high:.6g} ({percentiles}) scaled to 8-bit")
    pixels = grey.values if grey.values.dtype == np.uint8 else scale_to_uint8(grey.values, *span)
    return pixels, grey.notes


def _decode(path: Path, formats: tuple[str, ...]) -> Grey:
    if path.stat().st_size == 0:
        raise ValueError("is empty")
    try:
        with Image.open(path, formats=formats) as image:
            size, mode, format_ = image.size, image.mode, image.format
            # Pillow itself checks the sums of a PNG's other chunks, but not of those that hold the pixels.
            if format_ == "PNG" and size[0] * size[1] <= MAX_PIXELS:
                image.verify()
    except Exception as error:  # a decoder fed with damaged bytes raises nearly anything
        raise _unreadable(formats, error) from error
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"claims {size[0]}x{size[1]} pixels, more than any slice has")
    if mode not in GREY + DEEP + COLOUR:
        raise ValueError(f"has mode {mode}, which has no grey")
    try:
        quiet = _silent_libtiff() if format_ == "TIFF" else nullcontext()
        with quiet, Image.open(path, formats=formats) as image:
            return _to_grey(image)
    except Exception as error:
        raise _unreadable(formats, error) from error


@contextmanager
def _silent_libtiff() -> Iterator[None]:
    """libtiff writes what is wrong with a file to the process's standard error, besides raising it."""
    with _STANDARD_ERROR, open(os.devnull, "wb") as nowhere:
        kept = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _unreadable(formats: tuple[str, ...], error: Exception) -> ValueError:
    *others, last = formats
    return ValueError(f"can't be read as {', '.join(others)} or {last} ({type(error).__name__})")


def _to_grey(image: Image.Image) -> Grey:
    mode, notes, colour = image.mode, [], False
    if (pages := getattr(image, "n_frames", 1)) > 1:
        notes.append(f"the first of its {pages} pages")
    if mode in DEEP:
        values = np.asarray(image)
        return Grey(values.astype(values.dtype.newbyteorder("=")), mode, colour, notes)
    alpha = image.getchannel("A") if "A" in image.getbands() else None
    if (alpha and alpha.getextrema()[0] < 255) or "transparency" in image.info:
        notes.append("transparency left out")
    if mode in COLOUR:
        image = image.convert("RGB")
        channels = np.asarray(image)
        tint = int(np.ptp(channels, axis=-1).max())
        colour = tint > 0
        if tint > LOSS:
            notes.append("colour, converted to grey")
    return Grey(np.asarray(image.convert("L")), mode, colour, notes)


# ------------------------------------------------------------------------------------------- on a canvas


def whole_blocks(shape: tuple[int, int]) -> tuple[int, int]:
    """A size (h, w) with its sides brought up to multiples of 16: a network halves them up to four times."""
    height, width = shape
    return -(-height // 16) * 16, -(-width // 16) * 16


def placement(shape: tuple[int, int], canvas: tuple[int, int]) -> tuple[tuple[int, int], tuple[slice, slice]]:
    """The size that a picture takes on the canvas, and where: centred, shrunk only if it doesn't fit."""
    scale = min(1.0, canvas[0] / shape[0], canvas[1] / shape[1])
    size = tuple(max(1, round(side * scale)) for side in shape)
    corner = [(room - side) // 2 for room, side in zip(canvas, size, strict=True)]
    return size, tuple(slice(start, start + side) for start, side in zip(corner, size, strict=True))


def fit(pixels: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Put a slice, uint8 [h, w], on a black canvas [H, W]: padded, or area-resized when it is larger."""
    if pixels.shape == canvas:
        return pixels
    size, place = placement(pixels.shape, canvas)
    if size != pixels.shape:
        pixels = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BOX))
    fitted = np.zeros(canvas, np.uint8)
    fitted[place] = pixels
    return fitted


def unfit(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Undo `fit`: from the canvas, float32 [H, W], back to the slice's own size [h, w]."""
    size, place = placement(shape, pixels.shape)
    pixels = np.ascontiguousarray(pixels[place], dtype=np.float32)
    if size == shape:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.BILINEAR))
