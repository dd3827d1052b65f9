"""How do intensities become 8 bits? By their type's own range where they span it, else by robust percentiles."""

import numpy as np

PERCENTILES = (0.5, 99.5)  # of all values: what becomes 0 and 255


def robust_range(voxels: list[np.ndarray]) -> tuple[float, float]:
    """The (0.5, 99.5) percentiles of all finite values; min and max where those two are equal."""
    values = np.concatenate([part.ravel() for part in voxels])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 0.0
    low, high = np.percentile(values, PERCENTILES)
    if low == high:  # almost everything is background, or the volume is flat
        low, high = values.min(), values.max()
    return float(low), float(high)


def nominal_range(values: np.ndarray) -> tuple[float, float] | None:
    """What black and white are by the type of a picture's values, when the values span that range; else None.

    The range is (0, 255) for uint8, (0, 65535) for uint16 and (0, 1) for floats; other types have none. Bytes are
    taken to span it. Others do when none lies outside and the largest lies in the upper half: scanners write 10 or
    12 bits into 16, and such a picture would come out nearly black.
    """
    if values.dtype == np.uint8:
        return 0.0, 255.0
    if values.dtype != np.uint16 and values.dtype.kind != "f":
        return None
    white = 65535.0 if values.dtype == np.uint16 else 1.0
    least, most = values.min(), values.max()
    return (0.0, white) if least >= 0 and white / 2 < most <= white else None


def scale_to_uint8(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Intensities -> uint8, low to 0 and high to 255, clipped. Flat pictures and values that aren't finite become 0."""
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    scaled = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) * (255 / (high - low))
    return scaled.clip(0, 255).round().astype(np.uint8)
