"""What is in one picture file? An 8-bit gray slice, whatever way it was stored, on a canvas of a known size."""

from pathlib import Path

import numpy as np
from PIL import Image

CANVAS = (256, 256)  # height, width of the published OASIS slices

# A small file can claim a huge picture (a "decompression bomb"). No slice comes near this.
MAX_PIXELS = 4096 * 4096


def read(path: Path) -> tuple[np.ndarray, str]:
    """Decode a PNG or JPEG to gray: (uint8 [h, w], Pillow's name of the mode that the file had).

    16-bit gray is scaled to 8 (65535 -> 255), colour is accepted when its channels are equal, and alpha is
    dropped. Raises ValueError with the reason when the file is not such a picture.
    """
    if path.stat().st_size == 0:
        raise ValueError("is empty")
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"claims {width}x{height} pixels, more than any slice has")
            mode = image.mode
            if mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16", "I;16B", "I;16L"):
                raise ValueError(f"has mode {mode}, which is not gray")
            if mode in ("1", "LA"):
                image = image.convert("L")
            elif mode in ("P", "RGBA"):
                image = image.convert("RGB")
            pixels = np.asarray(image)
    except ValueError:
        raise
    except Exception as error:  # a decoder fed with damaged bytes raises nearly anything
        raise ValueError(f"can't be read as PNG or JPEG ({type(error).__name__})") from error

    if pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise ValueError("is a colour picture: its channels differ")
        pixels = pixels[..., 0]
    if pixels.dtype != np.uint8:
        pixels = ((pixels.astype(np.int64) * 255 + 32767) // 65535).clip(0, 255).astype(np.uint8)
    return pixels, mode


def _placement(shape: tuple[int, int], canvas: tuple[int, int]) -> tuple[tuple[int, int], tuple[slice, slice]]:
    """The size that a picture takes on the canvas, and where: centred, shrunk only if it doesn't fit."""
    scale = min(1.0, canvas[0] / shape[0], canvas[1] / shape[1])
    size = tuple(max(1, round(side * scale)) for side in shape)
    corner = [(room - side) // 2 for room, side in zip(canvas, size, strict=True)]
    return size, tuple(slice(start, start + side) for start, side in zip(corner, size, strict=True))


def fit(pixels: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Put a slice, uint8 [h, w], on a black canvas [H, W]: padded, or area-resized when it is larger."""
    if pixels.shape == canvas:
        return pixels
    size, place = _placement(pixels.shape, canvas)
    if size != pixels.shape:
        pixels = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BOX))
    fitted = np.zeros(canvas, np.uint8)
    fitted[place] = pixels
    return fitted


def unfit(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Undo `fit`: from the canvas, float32 [H, W], back to the slice's own size [h, w]."""
    size, place = _placement(shape, pixels.shape)
    pixels = np.ascontiguousarray(pixels[place], dtype=np.float32)
    if size == shape:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.BILINEAR))
