"""Which training slices is a picture nearest to? By SSIM and by shared codes, mirrored or not, and by person."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import mannwhitneyu
from sklearn.neighbors import NearestNeighbors

from dataset import Slices, content_box
from scoring.batches import on_all_cores, unit_batch
from scoring.features import FeatureSpace
from scoring.metrics import WINDOW, ssim_in_black

CANDIDATES = 16  # nearest slices by features, among which SSIM decides
NEAREST_SLICES = 5  # whose people are counted


@dataclass(frozen=True)
class NearestSlices:
    """The training slices nearest to each of N images."""

    index: np.ndarray  # int64 [N], into the training slices
    ssim: np.ndarray  # float32 [N], of the image and that slice
    mirrored_index: np.ndarray  # int64 [N], of the slice whose mirror image is nearest
    mirrored_ssim: np.ndarray  # float32 [N], of the image and that mirror image
    one_person: np.ndarray  # bool [N]: the five nearest slices, mirrored or not, are of one person

    @property
    def mirrored(self) -> np.ndarray:
        """bool [N]: a mirror image is nearer than any slice."""
        return self.mirrored_ssim > self.ssim

    @property
    def nearest(self) -> tuple[np.ndarray, np.ndarray]:
        """Index and SSIM of the nearest slice, mirrored or not, each [N]."""
        return np.where(self.mirrored, self.mirrored_index, self.index), np.maximum(self.ssim, self.mirrored_ssim)


class NearestSearch:
    """Finds the training slices nearest to images."""

    def __init__(self, train: Slices, space: FeatureSpace) -> None:
        """`space`: fitted to the slices of `train`."""
        self.train, self.space = train, space
        self.people = np.asarray(train.people)
        self.box = train.box
        candidates = min(CANDIDATES, len(space.train))
        self.candidates = NearestNeighbors(n_neighbors=candidates, algorithm="brute").fit(space.train)

    def mirror(self, images: np.ndarray) -> np.ndarray:
        """[N, H, W] upside down within the training slices' content box.

        Axial slices here lie on their side: that swaps left and right, as training does.
        """
        top, _, height, _ = self.box
        return np.roll(images[:, ::-1], 2 * top + height - images.shape[1], axis=1)

    def __call__(self, images: np.ndarray) -> NearestSlices:
        """For each image, uint8 [N, H, W], those of highest SSIM among the 16 slices nearest by features."""
        # An image is as near to a slice's mirror image as its own mirror image is to the slice.
        views = images, self.mirror(images)
        candidates = [self.candidates.kneighbors(self.space.features(v), return_distance=False) for v in views]
        box = content_box(images, least=self.box).around(WINDOW - 1, images.shape[1:])
        windows = (images.shape[1] - WINDOW + 1) * (images.shape[2] - WINDOW + 1)

        def of_image(row: int) -> tuple:
            ssims = []
            for view, near in zip(views, candidates, strict=True):
                x, others = (unit_batch(box.crop(some)) for some in (view[[row]], self.train.images[near[row]]))
                # One pair at a time: SSIM's temporaries stay in the processor's cache.
                ssims.append([ssim_in_black(x, other, windows).item() for other in others.split(1)])
            return best_of([near[row] for near in candidates], ssims, self.people)

        columns = zip(*on_all_cores(of_image, range(len(images)), "nearest slices"), strict=True)
        types = np.int64, np.float32, np.int64, np.float32, bool
        return NearestSlices(*(np.array(column, kind) for column, kind in zip(columns, types, strict=True)))


def best_of(candidates: list[np.ndarray], ssims: list[list[float]], people: np.ndarray) -> tuple:
    """One image's row of `NearestSlices`, from its candidates among the slices and among their mirror images."""
    best = [int(np.argmax(values)) for values in ssims]
    order = np.argsort(-np.concatenate(ssims), kind="stable")
    nearest = list(dict.fromkeys(np.concatenate(candidates)[order].tolist()))[:NEAREST_SLICES]
    found = ((index[i], values[i]) for index, values, i in zip(candidates, ssims, best, strict=True))
    return (*(value for pair in found for value in pair), len(set(people[nearest])) == 1)


def shared_codes(codes: np.ndarray, train: np.ndarray) -> np.ndarray:
    """The share of its codes that each image has in common with the training slice that shares most: [N].

    `codes`, `train`: integers [N, h, w] and [M, h, w].
    """
    codes, train = (grid.reshape(len(grid), -1) for grid in (codes, train))
    return np.array([(train == own).mean(axis=1).max() for own in codes])


def data_copying(
    samples: np.ndarray, held_out: np.ndarray, sample_levels: np.ndarray, held_out_levels: np.ndarray
) -> float:
    """C_T (Meehan, Chaudhuri and Dasgupta 2020): are samples nearer to training slices than held-out slices are?

    The z-score of Mann and Whitney's U at each level, averaged with the numbers of held-out slices as weights: about 0
    where samples and held-out slices are equally near, well below 0 where samples are copies, well above 0 where they
    keep away from the training slices.

    Args:
        samples, held_out: distances to the nearest training slice, [N] and [M].
        sample_levels, held_out_levels: the level of that training slice.
    """
    scores, weights = [0.0], [0]
    for level in np.intersect1d(sample_levels, held_out_levels):
        a, b = samples[sample_levels == level], held_out[held_out_levels == level]
        n, m = len(a), len(b)
        u = mannwhitneyu(a, b).statistic  # pairs in which the sample is farther away
        scores.append((u - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12))
        weights.append(m)
    return float(np.average(scores, weights=weights)) if sum(weights) else 0.0
