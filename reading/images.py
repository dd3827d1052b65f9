"""What is in one picture file? A grey slice, whatever way it was stored, and its place on a larger canvas."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from reading.intensity import PERCENTILES, nominal_range, robust_range, scale_to_uint8
from reading.kinds import decoding_errors

CANVAS = (256, 256)  # height, width of the published OASIS slices
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")

# A small file can claim a huge picture (a "decompression bomb"). No slice comes near this.
MAX_PIXELS = 4096 * 4096
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**26  # bytes: some programs store a whole history
LOSS = 8  # levels by which lossy compression may tint a grey picture
GREY = ("1", "L", "LA")
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # more than 8 bits
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_STANDARD_ERROR = threading.Lock()  # there is one for all threads


class Picture(NamedTuple):
    """A picture's grey values, turned as its EXIF orientation says, with transparency laid over black."""

    values: np.ndarray  # [h, w], uint8, uint16, int32 or float32
    mode: str  # Pillow's name for what the file holds
    colour: bool  # whether its channels differ by more than lossy compression makes them
    transparent: bool
    pages: int


def read(path: Path) -> Picture:
    """Colour becomes grey as ITU-R BT.601 weighs it. Raises ValueError with the reason when the file is no picture."""
    formats = "PNG, JPEG, TIFF, BMP or WebP"
    with open(path, "rb") as file:
        if not file.read(1):
            raise ValueError("is empty")
        with decoding_errors(formats), Image.open(file, formats=FORMATS) as image:
            (width, height), mode, format_ = image.size, image.mode, image.format
            # Pillow itself checks the sums of a PNG's other chunks, but not of those that hold the pixels.
            if format_ == "PNG" and width * height <= MAX_PIXELS:
                image.verify()
        if width * height > MAX_PIXELS:
            raise ValueError(f"claims {width}x{height} pixels, more than any slice has")
        if mode not in GREY + DEEP + COLOUR:
            raise ValueError(f"has mode {mode}, which has no grey")
        file.seek(0)
        quiet = _silent_libtiff() if format_ == "TIFF" else nullcontext()
        with decoding_errors(formats), quiet, Image.open(file, formats=FORMATS) as image:
            return _to_grey(image)


def read_any(path: Path) -> tuple[np.ndarray, list[str]]:
    """Anybody's picture: (uint8 [h, w], notes of what was done to it that its owner has to know).

    More than 8 bits are scaled from the range of their type when they span it (`nominal_range`), else from the
    picture's 0.5 and 99.5 percentiles. Raises ValueError with the reason when the file is no picture.
    """
    picture, notes = read(path), []
    if picture.pages > 1:
        notes.append(f"the first of its {picture.pages} pages")
    if picture.transparent:
        notes.append("transparency laid over black")
    if picture.colour:
        notes.append("colour, converted to grey")
    values = picture.values
    if (span := nominal_range(values)) is None:
        span = low, high = robust_range([values])
        kind = {"u": "16-bit", "i": "integer"}.get(values.dtype.kind, "floating-point")
        percentiles = "percentiles {} and {}".format(*PERCENTILES)
        notes.append(f"{kind}, values {low:.6g} to {high:.6g} ({percentiles}) scaled to 8-bit")
    return values if values.dtype == np.uint8 else scale_to_uint8(values, *span), notes


@contextmanager
def _silent_libtiff() -> Iterator[None]:
    """libtiff writes what is wrong with a file to the process's standard error, besides raising it."""
    with _STANDARD_ERROR, open(os.devnull, "wb") as nowhere:
        stderr = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _to_grey(image: Image.Image) -> Picture:
    mode, pages = image.mode, getattr(image, "n_frames", 1)
    ImageOps.exif_transpose(image, in_place=True)
    if mode in DEEP:
        values = np.asarray(image)
        return Picture(values.astype(values.dtype.newbyteorder("=")), mode, False, False, pages)
    transparent = colour = False
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("LA" if mode in GREY else "RGBA")
        alpha = image.getchannel("A")
        transparent = alpha.getextrema()[0] < 255
        image = image.convert(image.mode[:-1])
        if transparent:
            image = Image.composite(image, Image.new(image.mode, image.size), alpha)
    if image.mode in COLOUR:
        image = image.convert("RGB")
        colour = bool(np.ptp(np.asarray(image), axis=-1).max() > LOSS)
    return Picture(np.asarray(image.convert("L")), mode, colour, transparent, pages)


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
