"""What does an autoencoder make of many slices? Codes, pictures, and scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from inference.codec import PlacedCodes, rows_by_box, to_uint8
from inference.model import TrainedModel
from inference.sampling import Sampler
from scoring.metrics import MIN_SIDE, reconstruction_scores
from scoring.scores import SCORES

CHUNK = 128  # slices whose reconstructions are in memory as floats at a time
OUTLIER = 5  # times the validation slices' 1 - SSIM: a slice that exceeds this is like none in training


@dataclass(frozen=True)
class Reconstruction:
    """What an autoencoder makes of N slices."""

    groups: list[tuple[np.ndarray, PlacedCodes]]  # indices of slices that are coded in one box, and their codes
    pictures: np.ndarray  # uint8 [N, H, W]
    scores: dict[str, np.ndarray]  # float64 [N] for each of `SCORES`
    bytes_per_image: float  # the mean

    def flat_codes(self) -> list[torch.Tensor]:
        """The codes of all slices in a row, for each grid."""
        grids = zip(*(codes for _, codes in self.groups), strict=True)
        return [torch.from_numpy(np.concatenate([grid.ravel() for grid in same])) for same in grids]

    def grid_sizes(self) -> list[str]:
        """The size of each grid, "18x22", or the smallest and the largest where slices differ."""
        grids = zip(*(codes for _, codes in self.groups), strict=True)
        sizes = [sorted({grid.shape[1:] for grid in same}, key=math.prod) for same in grids]
        return [" to ".join("x".join(map(str, size)) for size in dict.fromkeys((each[0], each[-1]))) for each in sizes]

    def outliers(self, validation_ssim: float) -> np.ndarray:
        """Indices of the slices that are reconstructed far worse than the validation slices were in training."""
        return np.flatnonzero(1 - self.scores["ssim"] > OUTLIER * (1 - validation_ssim))

    def entropy_coded_bytes(self, sampler: Sampler, levels: np.ndarray) -> float | None:
        """Mean bytes of a slice's codes after an entropy coder with the prior's probabilities.

        `levels` int64 [N]. None for a GAN, which has no probabilities, and unless all codes are on the prior's grid.
        """
        codec = sampler.codec
        complete = all(c.box == codec.box and len(c) == len(codec.grid_shapes()) for _, c in self.groups)
        if sampler.is_gan or not complete:
            return None
        tensors = [(torch.from_numpy(levels[rows]), [*map(torch.from_numpy, codes)]) for rows, codes in self.groups]
        return sum(len(own) * sampler.bits(codes, own) for own, codes in tensors) / len(levels) / 8


def reconstruct(
    model: TrainedModel, slices: np.ndarray, depth: int | None = None, frames: Sequence[tuple] | None = None
) -> Reconstruction:
    """Code slices, uint8 [N, H, W], each in the box that holds its content, and decode and score them.

    `depth`: decode from the first so many codes of each position (default all). `frames`: each slice's place on its
    canvas; only that is scored.
    """
    groups, pictures, size = [], np.empty_like(slices), 0.0
    scores = {name: np.empty(len(slices)) for name in SCORES}
    with tqdm(total=len(slices), desc="reconstructing", unit=" slices", disable=None) as bar:
        for box, rows_of_box in rows_by_box(slices, model.codec.least(slices)).items():
            for rows in np.array_split(rows_of_box, -(-len(rows_of_box) // CHUNK)):
                codes = model.encode(slices[rows])[:depth]
                decoded = model.decode(codes)
                pictures[rows] = to_uint8(decoded)
                for name, values in _scores(slices[rows], decoded, frames and [frames[row] for row in rows]).items():
                    scores[name][rows] = values
                groups.append((rows, codes))
                size += len(rows) * model.codec.bytes_per_image(box, depth)
                bar.update(len(rows))
    return Reconstruction(groups, pictures, scores, size / len(slices))


def scored_part(canvas: np.ndarray, frame: tuple | None) -> tuple:
    """The part of a canvas [H, W] that is scored: its frame, or all of it where that is smaller than SSIM's windows."""
    return frame if frame and min(canvas[frame].shape) >= MIN_SIDE else (slice(None),) * 2


def _scores(slices: np.ndarray, decoded: np.ndarray, frames: Sequence[tuple] | None) -> dict[str, np.ndarray]:
    if not frames:
        return reconstruction_scores(slices, decoded)
    each = []
    for original, picture, frame in zip(slices, decoded, frames, strict=True):
        part = scored_part(original, frame)
        each.append(reconstruction_scores(original[part][None], picture[part][None]))
    return {name: np.concatenate([one[name] for one in each]) for name in SCORES}
