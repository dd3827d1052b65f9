"""What do the priors learn from? The codes of the slices, as they are for scores, or augmented anew in every epoch."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dataset import Batches, Slices, shuffled_shares
from inference.codec import Codec
from modules import Codes
from networks.transformer import MAX_OFFSET, Neighbours
from reading.names import volume_of
from training.augment import Variation
from training.covariates import Covariates

ENCODING_BATCH = 64  # slices
AUGMENTED = 0.8  # share of the brains
WITHOUT_NEIGHBOUR = 0.45  # share of the slices that a prior learns to draw without a neighbour


class CodeBatch(NamedTuple):
    """A batch of what an autoregressive prior learns to draw, and of its conditioning."""

    codes: Codes  # int64 [b, h, w] each
    levels: Tensor  # int64 [b]
    augmented: Tensor  # bool [b]
    covariates: Tensor  # float32 [b, n], NaN where unknown
    neighbours: Neighbours | None  # slices of the same brain, augmented alike


class EncodedSplit:
    """A split's codes, [N, h, w] each, slice levels int64 [N], and covariates float32 [N, n], on the device.

    `levels` of the data set: that number stands for an unknown level. `num_codes`: how many codes per position, coarse
    to fine, a prior learns (None: all): the first ones hold the brain's shape, the last ones its noise. An autoencoder
    whose decoder needs all codes keeps them all.
    """

    def __init__(
        self,
        codec: Codec,
        slices: Slices,
        levels: int,
        num_codes: int | None = None,
        covariates: np.ndarray | None = None,
    ):
        self.codes = codec.encode(slices.images, codec.box)[: num_codes if codec.autoencoder.depth > 1 else None]
        known = torch.from_numpy(slices.levels).to(codec.on.device)
        self.unknown = levels
        self.levels = torch.where((known < 0) | (known > levels), levels, known)
        covariates = np.zeros((len(slices), 0), np.float32) if covariates is None else covariates
        self.covariates = torch.from_numpy(covariates).to(codec.on.device)
        self.codes_per_image = sum(grid[0].numel() for grid in self.codes)

    def __len__(self) -> int:
        return len(self.levels)

    def at(self, rows: Tensor) -> tuple[Codes, Tensor]:
        """Codes, each grid int64 [b, h, w], and levels int64 [b], of these rows."""
        rows = rows.to(self.levels.device, non_blocking=True)
        return [grid[rows].long() for grid in self.codes], self.levels[rows]


class AugmentedCodes:
    """Batches of a split's codes, in which every brain is augmented anew in every epoch, with neighbouring slices."""

    def __init__(
        self, codec: Codec, slices: Slices, encoded: EncodedSplit, batch_size: int, covariates: Covariates | None = None
    ):
        """`encoded`: the same slices as they are, whose levels, number of codes and `covariates` hold here."""
        self.codec, self.encoded, self.covariates, self.on = codec, encoded, covariates, codec.on
        self.brains, self.neighbour_rows = brain_of_slice(slices), neighbour_rows(slices)
        # Every process encodes all slices: any of them can be a neighbour in its share of a batch.
        self.slices = Batches(slices, ENCODING_BATCH, self.on.device)
        self.batch_size = min(batch_size, len(encoded) // self.on.world_size * self.on.world_size)
        self.steps = len(encoded) // self.batch_size

    def shuffled(self, seed: int, epoch: int, start: int = 0) -> Iterator[CodeBatch]:
        """An epoch's batches from step `start` on; the same for the same seed and epoch."""
        encoded, on = self.encoded, self.on
        codes, variation = self._augmented(seed, epoch)
        covariates = encoded.covariates
        covariates = self.covariates.scaled(covariates, variation) if self.covariates else covariates
        augmented = variation.augmented.flatten()
        order = shuffled_shares(len(encoded), self.batch_size, seed, epoch, on.rank, on.world_size)
        for step, rows in enumerate(order[start:], start=start):
            random = np.random.default_rng([seed, epoch, step, on.rank])
            known, offsets = choose_neighbours(self.neighbour_rows[rows], random)
            on_device = [torch.as_tensor(each).to(on.device, non_blocking=True) for each in (rows, known, offsets)]
            rows, known, offsets = on_device
            neighbours = Neighbours([grid[known].long() for grid in codes], offsets)
            own = [grid[rows].long() for grid in codes]
            yield CodeBatch(own, encoded.levels[rows], augmented[rows], covariates[rows], neighbours)

    def _augmented(self, seed: int, epoch: int) -> tuple[Codes, Variation]:
        """The codes of all slices in this epoch, int16 [N, h, w] each, and how each slice is varied."""
        device, depth = self.on.device, len(self.encoded.codes)
        entropy = int(np.random.default_rng([seed, epoch]).integers(2**63))
        generator = torch.Generator(device).manual_seed(entropy)
        brains = self.brains.to(device)
        variation, parts = Variation.draw(int(brains.max()) + 1, AUGMENTED, device, generator), []
        for images, rows in tqdm(self.slices.in_order(), "encoding", unit="batch", disable=None, delay=2, leave=False):
            varied = variation.of(brains[rows]).apply(images, self.codec.box)
            with torch.no_grad(), self.on.autocast():
                parts.append([grid.to(torch.int16) for grid in self.codec.autoencoder.encode(varied)[:depth]])
        return [torch.cat(grids) for grids in zip(*parts, strict=True)], variation.of(brains)


def brain_of_slice(slices: Slices) -> Tensor:
    """A number for each slice's brain, int64 [N]: the same for all slices of one volume, from 0 on."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(map(volume_of, slices.names)))}
    return torch.tensor([numbers[volume_of(name)] for name in slices.names])


def neighbour_rows(slices: Slices) -> np.ndarray:
    """Where the slices of the same brain are: int64 [N, 2 MAX_OFFSET + 1], rows of the split, or -1 for none.

    Column i is for the slice i - MAX_OFFSET levels above; the middle one is the slice itself.
    """
    places = list(zip(brain_of_slice(slices).tolist(), slices.levels.tolist(), strict=True))
    rows = {place: row for row, place in enumerate(places) if place[1] >= 0}
    offsets = range(-MAX_OFFSET, MAX_OFFSET + 1)
    return np.array([[rows.get((brain, level + by), -1) for by in offsets] for brain, level in places], np.int64)


def choose_neighbours(neighbour_rows: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The slices that condition a batch: rows int64 [b, 2], and their offsets int64 [b, 2], 0 where there is none.

    `neighbour_rows`: of the batch's slices. `WITHOUT_NEIGHBOUR` of them get none, the others one or two, mostly one on
    each side, at distances from 1 to `MAX_OFFSET` that are log-uniform.
    """
    n = len(neighbour_rows)
    distance = np.rint(2 ** random.uniform(0, math.log2(MAX_OFFSET), (n, 2))).astype(np.int64)
    side = random.choice([-1, 1], n)
    other_side = np.where(random.random(n) < 0.8, -side, side)
    offsets = np.stack([side * distance[:, 0], other_side * distance[:, 1]], axis=1)
    offsets[random.random(n) < WITHOUT_NEIGHBOUR] = 0
    offsets[random.random(n) < 0.4, 1] = 0
    offsets[offsets[:, 0] == offsets[:, 1], 1] = 0
    rows = np.take_along_axis(neighbour_rows, offsets + MAX_OFFSET, axis=1)
    offsets[rows < 0] = 0
    return np.maximum(rows, 0), offsets
