"""What does an autoencoder make of many slices? Codes, pictures, and how near these are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from inference.codec import PlacedCodes, to_uint8
from inference.model import TrainedModel
from scoring.metrics import reconstruction_scores
from scoring.scores import SCORES

CHUNK = 128  # slices whose reconstructions are in memory as floats at a time
LEAST_SIDE = 11  # pixels, of the Gaussian SSIM's window
UNLIKE = 5  # times what validation slices lack of an SSIM of 1: a slice that lacks more is like none in training


@dataclass(frozen=True)
class Reconstruction:
    """What an autoencoder makes of N slices."""

    groups: list[tuple[np.ndarray, PlacedCodes]]  # indices of slices whose codes lie in one box, and these codes
    pictures: np.ndarray  # uint8 [N, H, W]
    scores: dict[str, np.ndarray]  # float64 [N] for each of `SCORES`
    bytes_per_image: float  # the mean

    def flat_codes(self) -> list[torch.Tensor]:
        """The codes of all slices in a row, for each grid."""
        grids = zip(*(codes for _, codes in self.groups), strict=True)
        return [torch.from_numpy(np.concatenate([grid.ravel() for grid in same])) for same in grids]

    def grid_sizes(self) -> list[str]:
        """The size of each grid, "18x22", or those of the smallest and the largest where slices differ."""
        grids = zip(*(codes for _, codes in self.groups), strict=True)
        sizes = [sorted({grid.shape[1:] for grid in same}, key=math.prod) for same in grids]
        return [" to ".join("x".join(map(str, size)) for size in dict.fromkeys((each[0], each[-1]))) for each in sizes]

    def unlike(self, validation_ssim: float) -> np.ndarray:
        """Indices of the slices that are reconstructed far worse than those that training was validated with."""
        return np.flatnonzero(1 - self.scores["ssim"] > UNLIKE * (1 - validation_ssim))


def reconstruct(
    model: TrainedModel, slices: np.ndarray, kept: int | None = None, frames: Sequence[tuple] | None = None
) -> Reconstruction:
    """Code slices, uint8 [N, H, W], each in the box that holds it, and decode them from the first `kept` codes.

    `frames`: where each slice lies on the canvas, which alone is scored then.
    """
    groups, pictures, size = [], np.empty_like(slices), 0.0
    scores = {name: np.empty(len(slices)) for name in SCORES}
    with tqdm(total=len(slices), desc="reconstructing", unit=" slices", disable=None) as bar:
        for alike in model.codec.alike(slices):
            for rows in np.array_split(alike, -(-len(alike) // CHUNK)):
                codes = model.encode(slices[rows])[:kept]
                decoded = model.decode(codes)
                pictures[rows] = to_uint8(decoded)
                for name, values in _scores(slices[rows], decoded, frames and [frames[row] for row in rows]).items():
                    scores[name][rows] = values
                groups.append((rows, codes))
                size += len(rows) * model.codec.bytes_per_image(codes.box, kept)
                bar.update(len(rows))
    return Reconstruction(groups, pictures, scores, size / len(slices))


def _scores(slices: np.ndarray, decoded: np.ndarray, frames: Sequence[tuple] | None) -> dict[str, np.ndarray]:
    """Scores of each slice where it lies; with the black around it where it is smaller than SSIM's windows."""
    if not frames:
        return reconstruction_scores(slices, decoded)
    each = []
    for original, picture, frame in zip(slices, decoded, frames, strict=True):
        frame = frame if min(original[frame].shape) >= LEAST_SIDE else ...
        each.append(reconstruction_scores(original[frame][None], picture[frame][None]))
    return {name: np.concatenate([one[name] for one in each]) for name in SCORES}
