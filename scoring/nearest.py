"""Which training slices is a picture nearest to? By SSIM, among their mirror images too, and by person."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.neighbors import NearestNeighbors

from dataset import Slices, content_box
from scoring.features import FeatureSpace, on_all_cores, unit_batch
from scoring.metrics import WINDOW, SSIMToEach

CANDIDATES = 16  # nearest by features, among which SSIM decides
CLOSEST_PEOPLE = 5  # nearest slices, whose people are counted


@dataclass(frozen=True)
class Neighbours:
    """The training slices nearest to each of N images."""

    index: np.ndarray  # int64 [N], into the training slices
    ssim: np.ndarray  # float32 [N], of the image and that slice
    mirrored_index: np.ndarray  # int64 [N], of the slice whose mirror image is nearest
    mirrored_ssim: np.ndarray  # float32 [N], of the image and that mirror image
    of_one: np.ndarray  # bool [N]: the nearest five, each as near as it or its mirror image is, are of one person


class Search:
    """Finds the training slices nearest to images."""

    def __init__(self, train: Slices, space: FeatureSpace) -> None:
        """`space`: fitted on the slices of `train`."""
        self.train, self.space = train, space
        self.people = np.asarray(train.people)
        self.box = train.box
        candidates = min(CANDIDATES, len(space.train))
        self.candidates = NearestNeighbors(n_neighbors=candidates, algorithm="brute").fit(space.train)

    def mirrored(self, images: np.ndarray) -> np.ndarray:
        """[N, H, W] upside down within the training slices' content box.

        Axial slices here lie on their side: that is left for right, as training mirrors them.
        """
        top, _, height, _ = self.box
        return np.roll(images[:, ::-1], 2 * top + height - images.shape[1], axis=1)

    def __call__(self, images: np.ndarray) -> Neighbours:
        """Each image's nearest slices, uint8 [N, H, W]: of the 16 nearest by features, those of highest SSIM."""
        # An image is as near to a slice's mirror image as its own mirror image is to the slice.
        views = images, self.mirrored(images)
        candidates = [self.candidates.kneighbors(self.space.features(v), return_distance=False) for v in views]
        box = content_box(images, least=self.box).around(WINDOW - 1, images.shape[1:])
        windows = (images.shape[1] - WINDOW + 1) * (images.shape[2] - WINDOW + 1)

        def of_image(row: int) -> tuple:
            values = []
            for view, near in zip(views, candidates, strict=True):
                # One pair at a time: SSIM's temporaries stay in the processor's cache.
                to_each = SSIMToEach(unit_batch(box.crop(view[[row]])), windows)
                values.append([to_each(unit_batch(box.crop(self.train.images[[i]]))) for i in near[row]])
            return best_of([near[row] for near in candidates], values, self.people)

        columns = zip(*on_all_cores(of_image, range(len(images)), "nearest slices"), strict=True)
        types = np.int64, np.float32, np.int64, np.float32, bool
        return Neighbours(*(np.array(column, kind) for column, kind in zip(columns, types, strict=True)))


def best_of(candidates: Sequence[np.ndarray], ssims: Sequence[Sequence[float]], people: np.ndarray) -> tuple:
    """One image's row of `Neighbours`, from its candidates among the slices and among their mirror images."""
    row: list = []
    for index, values in zip(candidates, ssims, strict=True):
        best = int(np.argmax(values))
        row += [index[best], values[best]]
    order = np.argsort(-np.concatenate(ssims), kind="stable")
    nearest = list(dict.fromkeys(np.concatenate(candidates)[order].tolist()))[:CLOSEST_PEOPLE]
    return (*row, len(set(people[nearest])) == 1)
