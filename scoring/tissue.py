"""How much of each tissue does a slice show, and how grainy is it? Figures of anatomy, of real and drawn slices."""

import numpy as np
from scipy import ndimage
from skimage import filters, morphology

BACKGROUND = 10  # grey values up to this are none of the brain's
GREY, WHITE = 1, 2  # classes of tissue; 0 is fluid
SEEN = 100  # pixels of a tissue, at least, for a figure of it
DEEP = 2  # pixels from its edge, at least, that white matter's grain is measured at


def classes(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W] -> int [H, W]: 0 fluid, 1 grey matter, 2 white matter, -1 background (Otsu's method, three classes).

    All -1 where there are too few grey values to tell three tissues apart.
    """
    brain = image > BACKGROUND
    if len(np.unique(image[brain])) < 3:
        return np.full(image.shape, -1)
    return np.where(brain, np.digitize(image, filters.threshold_multiotsu(image[brain], 3), right=True), -1)


def deep_white(image: np.ndarray) -> np.ndarray:
    """Which pixels of uint8 [H, W] lie deep in white matter, bool [H, W]."""
    return ndimage.binary_erosion(classes(image) == WHITE, iterations=DEEP)


def grain(image: np.ndarray, where: np.ndarray) -> float:
    """Mean |x - Gaussian x| of uint8 [H, W] over these pixels, bool [H, W], in grey values; NaN where they are few."""
    image = image.astype(np.float32)
    detail = np.abs(image - ndimage.gaussian_filter(image, 1))
    return float(detail[where].mean()) if where.sum() >= SEEN else float("nan")


def figures(image: np.ndarray) -> dict[str, float]:
    """Figures of a slice, uint8 [H, W]; NaN for those of a tissue that it doesn't show.

    `fluid`, `grey`, `white`: shares of the brain's pixels. `ribbon`: median thickness of grey matter in pixels, twice
    the distance to its edge along its skeleton. `boundary`: length of white matter's edge per pixel of it. `grain`: of
    deep white matter.
    """
    tissue = classes(image)
    brain = (tissue >= 0).sum()
    if brain < SEEN:
        return dict.fromkeys(("fluid", "grey", "white", "ribbon", "boundary", "grain"), float("nan"))
    grey, white = tissue == GREY, tissue == WHITE
    inside = ndimage.distance_transform_edt(grey)[morphology.skeletonize(grey)]
    edge = white & ~ndimage.binary_erosion(white)
    return {
        **{name: float((tissue == i).sum() / brain) for i, name in enumerate(("fluid", "grey", "white"))},
        "ribbon": 2 * float(np.median(inside)) if inside.size else float("nan"),
        "boundary": float(edge.sum() / white.sum()) if white.sum() >= SEEN else float("nan"),
        "grain": grain(image, ndimage.binary_erosion(white, iterations=DEEP)),
    }


def compare(images: np.ndarray, others: np.ndarray) -> dict[str, dict[str, float]]:
    """For each figure, how images uint8 [N, H, W] differ from others [M, H, W].

    `d`: difference of the means over the pooled standard deviation (Cohen's d); `spread`: ratio of the deviations.
    """
    rows, beside = ([figures(image) for image in stack] for stack in (images, others))
    found = {}
    for name in rows[0]:
        a, b = (np.array([row[name] for row in each]) for each in (rows, beside))
        a, b = a[np.isfinite(a)], b[np.isfinite(b)]
        pooled = np.sqrt((a.var() + b.var()) / 2)
        found[name] = {"d": float((a.mean() - b.mean()) / pooled), "spread": float(a.std() / b.std())}
    return found
