"""How much of each tissue does a slice show, and how grainy is it? Anatomical figures of real and of sampled slices."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage import filters, morphology

from scoring.batches import on_all_cores
from scoring.metrics import FOREGROUND

FLUID, GREY, WHITE = range(3)  # classes of tissue
MIN_PIXELS = 100  # of a tissue, for a figure of it
DEPTH = 2  # pixels from its edge from which on white matter's grain is measured
FIGURES = ("fluid", "grey", "white", "ribbon", "boundary", "grain")


def classes(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W] -> int [H, W]: FLUID, GREY or WHITE by Otsu's method with three classes, -1 for the background.

    All -1 where there are too few grey values to tell three tissues apart.
    """
    brain = image > FOREGROUND
    if len(np.unique(image[brain])) < 3:
        return np.full(image.shape, -1)
    return np.where(brain, np.digitize(image, filters.threshold_multiotsu(image[brain], 3), right=True), -1)


def deep_white(image: np.ndarray) -> np.ndarray:
    """The pixels of uint8 [H, W] that lie deep in white matter, bool [H, W]."""
    return ndimage.binary_erosion(classes(image) == WHITE, iterations=DEPTH)


def grain(image: np.ndarray, where: np.ndarray) -> float:
    """Mean |x - Gaussian x| of uint8 [H, W] over pixels `where`, bool [H, W], in grey values; NaN if they are few."""
    image = image.astype(np.float32)
    detail = np.abs(image - ndimage.gaussian_filter(image, 1))
    return float(detail[where].mean()) if where.sum() >= MIN_PIXELS else float("nan")


def figures(image: np.ndarray) -> list[float]:
    """The `FIGURES` of a slice, uint8 [H, W]; NaN for those of a tissue that it doesn't show.

    `fluid`, `grey`, `white`: shares of the brain's pixels; `ribbon`: median thickness of grey matter in pixels, twice
    the distance to its edge along its skeleton; `boundary`: length of white matter's edge per pixel of white matter;
    `grain`: see `grain`, of deep white matter.
    """
    tissue = classes(image)
    brain = (tissue >= 0).sum()
    if brain < MIN_PIXELS:
        return [float("nan")] * len(FIGURES)
    grey, white = tissue == GREY, tissue == WHITE
    distances = ndimage.distance_transform_edt(grey)[morphology.skeletonize(grey)]
    edge = white & ~ndimage.binary_erosion(white)
    return [
        *(float((tissue == kind).sum() / brain) for kind in (FLUID, GREY, WHITE)),
        2 * float(np.median(distances)) if distances.size else float("nan"),
        float(edge.sum() / white.sum()) if white.sum() >= MIN_PIXELS else float("nan"),
        grain(image, ndimage.binary_erosion(white, iterations=DEPTH)),
    ]


def measure(images: np.ndarray) -> np.ndarray:
    """The `FIGURES` of slices, uint8 [N, H, W] -> float64 [N, 6]."""
    return np.array(on_all_cores(figures, images, "tissue"))


def compare(some: np.ndarray, others: np.ndarray) -> dict[str, dict[str, float]]:
    """For each of the `FIGURES`, how what was measured of some slices, [N, 6], differs from that of others, [M, 6].

    `d`: difference of the means over the pooled standard deviation (Cohen's d); `spread`: ratio of the deviations.
    Figures that none of the slices have are left out.
    """
    found = {}
    for name, a, b in zip(FIGURES, some.T, others.T, strict=True):
        a, b = a[np.isfinite(a)], b[np.isfinite(b)]
        pooled = np.sqrt((a.var() + b.var()) / 2) if a.size and b.size else 0
        if pooled and b.std():
            found[name] = {"d": float((a.mean() - b.mean()) / pooled), "spread": float(a.std() / b.std())}
    return found


def cells(found: dict[str, dict[str, float]], names: Sequence[str] = FIGURES) -> list[str]:
    """What `compare` found, as texts "d, spread"; a dash where there is nothing."""
    return ["{d:.2f}, {spread:.2f}".format(**found[name]) if name in found else "-" for name in names]
