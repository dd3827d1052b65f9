"""How do intensities become 8 bits? By their type's own range where they span it, else by robust percentiles."""

import numpy as np

PERCENTILES = (0.5, 99.5)  # of all values: what becomes 0 and 255
FEW_VALUES = 16  # distinct values, at most, of a mask or a map of labels
PADDING_SHARE = 1e-3  # least share of the voxels that padding takes
PADDING_GAP = 2  # how far it lies from all other values, in their own spread


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


def padding_of(values: np.ndarray) -> float | None:
    """The value that stands for "outside the field of view", such as -32768, where there is one.

    That is a least or largest value other than 0 which many voxels have, and which lies far from all other values.
    """
    values = values[np.isfinite(values)]
    for extreme, inner in ((np.min, np.min), (np.max, np.max)):
        if not len(values) or (outlier := extreme(values)) == 0:
            continue
        others = values[values != outlier]
        if not len(others) or len(values) - len(others) < max(2, PADDING_SHARE * len(values)):
            continue
        spread = np.subtract(*np.percentile(others, PERCENTILES[::-1]).astype(float))
        if spread > 0 and abs(float(outlier) - float(inner(others))) > PADDING_GAP * spread:
            return float(outlier)
    return None


def fill_padding(values: np.ndarray, padding: float | None) -> np.ndarray:
    """The values with `padding` replaced by the least of the others; as they are where it is None."""
    if padding is None:
        return values
    outside = values == padding
    return np.where(outside, values[~outside].min(), values) if outside.any() and not outside.all() else values


def looks_like_labels(values: np.ndarray) -> bool:
    """Whether these are a mask or labels: few distinct values, or whole numbers that are the same from voxel to voxel.

    Flat pictures aren't, nor those of which hardly anything is other than 0.
    """
    if values.dtype == np.uint8:
        counts = np.bincount(values.ravel()[:: max(1, values.size // 2**12)], minlength=256)
        return 1 < np.count_nonzero(counts) <= FEW_VALUES and counts[1:].sum() > FEW_VALUES
    sample = values.ravel()[:: max(1, values.size // 2**16)]
    number = len(np.unique(sample))
    if number <= FEW_VALUES:
        return number > 1 and np.count_nonzero(sample) > FEW_VALUES
    if number > 256 or not np.array_equal(sample, np.round(sample)):
        return False
    here, beside = values[..., :-1], values[..., 1:]
    inside = (here != 0) & (beside != 0)
    return bool(np.mean(here[inside] == beside[inside]) > 0.8) if inside.any() else False


def scale_to_uint8(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Intensities -> uint8, low to 0 and high to 255, clipped. Flat pictures and values that aren't finite become 0."""
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    scaled = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) * (255 / (high - low))
    return scaled.clip(0, 255).round().astype(np.uint8)
