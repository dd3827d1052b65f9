"""What do the priors learn from? Codes or latents of the training slices, as they are or varied a little each time."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dataset import Batches, Slices, shuffled_shares
from inference.codec import Codec
from modules import Autoencoder
from networks.prior import Codes
from networks.transformer import FARTHEST, Neighbours
from reading.names import volume_of
from runtime.compute import Compute
from runtime.errors import InputError
from training.augment import Draws, generator_of, variation, vary

ENCODED = 64  # slices at once
EXAMPLES = 1024  # slices whose latents tell what is usual
ALONE = 0.45  # share of the slices that a prior learns to draw without a neighbour


class Given(NamedTuple):
    """A batch of what a prior learns to draw, and what it is told of it."""

    codes: Codes  # int64 [b, h, w] each
    levels: Tensor  # int64 [b]
    changed: Tensor  # bool [b], which slices were varied
    neighbours: Neighbours | None  # slices of the same brain, varied alike; None where none are shown


class CodeBatches:
    """A split's codes and slice levels, resident on the device; level `levels` is that of slices without one.

    `kept`: how many codes per position, coarse to fine, a prior learns to draw (None: all): the first ones hold the
    brain's shape, the last ones its noise. Of an autoencoder whose decoder needs all codes, all are kept.
    """

    def __init__(
        self, codec: Codec, slices: Slices, levels: int, batch_size: int, on: Compute, kept: int | None = None
    ):
        if batch_size % on.world_size:
            raise InputError(f"--prior-batch-size {batch_size} can't be shared equally by {on.world_size} processes")
        depth = codec.autoencoder.depth
        self.codes = codec.encode(slices.images, codec.box)[: kept if depth > 1 else None]
        self.unknown = levels
        known = torch.from_numpy(slices.levels).to(on.device)
        self.levels = torch.where((known < 0) | (known > levels), levels, known)
        self.size, self.on = len(slices), on
        self.batch_size = min(batch_size, self.size // on.world_size * on.world_size)
        self.steps = self.size // self.batch_size
        self.codes_per_image = sum(grid[0].numel() for grid in self.codes)

    def at(self, indices: Tensor) -> tuple[Codes, Tensor]:
        """Codes, each grid int64 [b, h, w], and levels int64 [b]."""
        indices = indices.to(self.on.device, non_blocking=True)
        return [grid[indices].long() for grid in self.codes], self.levels[indices]

    def alone(self, indices: Tensor) -> Given:
        """Slices as they are, without a neighbour."""
        codes, levels = self.at(indices)
        return Given(codes, levels, torch.zeros_like(levels, dtype=torch.bool), None)

    def shuffled(self, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[Codes, Tensor]]:
        """An epoch's batches from step `start` on; the same for the same arguments."""
        order = shuffled_shares(self.size, self.batch_size, seed, epoch, self.on.rank, self.on.world_size)
        for indices in order[start:]:
            yield self.at(indices)

    def latents(self, autoencoder: Autoencoder) -> Tensor:
        """What `autoencoder` makes of all codes, float32 [N, C, h, w]."""
        parts = torch.arange(self.size).split(256)
        return torch.cat([autoencoder.embed(self.at(indices)[0]) for indices in parts])


class VariedCodes:
    """The codes of whole brains, each varied anew in every epoch (`augment.vary`), and those beside each slice."""

    def __init__(self, codec: Codec, slices: Slices, batches: CodeBatches, seed: int):
        """`batches`: the codes of the same slices as they are, whose levels and number of codes hold here."""
        self.codec, self.plain, self.seed = codec, batches, seed
        self.brains, self.beside = brain_of_slice(slices), rows_beside(slices)
        # Every process encodes all slices: any of them can be a neighbour in its share of a batch.
        self.slices = Batches(slices, ENCODED, batches.on.device)

    def shuffled(self, epoch: int, start: int = 0) -> Iterator[Given]:
        """An epoch's batches from step `start` on; the same for the same seed and epoch."""
        plain = self.plain
        codes, changed = self._varied(epoch)
        order = shuffled_shares(plain.size, plain.batch_size, self.seed, epoch, plain.on.rank, plain.on.world_size)
        for step, rows in enumerate(order[start:], start=start):
            chance = np.random.default_rng([self.seed, epoch, step, plain.on.rank])
            known, offsets = (torch.from_numpy(each) for each in choose_neighbours(self.beside[rows], chance))
            rows, known, offsets = (each.to(plain.on.device, non_blocking=True) for each in (rows, known, offsets))
            beside = Neighbours([grid[known].long() for grid in codes], offsets)
            yield Given([grid[rows].long() for grid in codes], plain.levels[rows], changed[rows], beside)

    def _varied(self, epoch: int) -> tuple[Codes, Tensor]:
        """The codes of all slices in this epoch, int16 [N, h, w] each, and which ones were changed, bool [N]."""
        draw = Draws(int(self.brains.max()) + 1, generator_of(self.seed, epoch), self.plain.on.device)
        how, parts = variation(draw), []
        for images, rows in tqdm(self.slices.in_order(), "varying", unit="batch", disable=None, delay=2, leave=False):
            pictures = vary(images, self.codec.box, how.of(self.brains[rows].to(images.device)))
            with torch.no_grad(), self.codec.on.autocast():
                varied = self.codec.autoencoder.encode(pictures)[: len(self.plain.codes)]
            parts.append([grid.to(torch.int16) for grid in varied])
        changed = how.changed.flatten()[self.brains.to(self.plain.on.device)]
        varied = [torch.cat(grids) for grids in zip(*parts, strict=True)]
        plain = (grid.to(torch.int16) for grid in self.plain.codes)
        return [torch.where(changed[:, None, None], new, old) for new, old in zip(varied, plain, strict=True)], changed


class Latents(NamedTuple):
    """A batch of what a GAN learns to draw, and what it is told of it."""

    values: Tensor  # float32 [b, C, h, w]
    levels: Tensor  # int64 [b]
    changed: Tensor  # bool [b], which slices were varied


class EmbeddedCodes:
    """The latents that the decoder sees: those of the slices' codes, as they are."""

    def __init__(self, codec: Codec, slices: Slices, batches: CodeBatches, seed: int):
        """`batches`: the codes of these slices."""
        self.autoencoder, self.batches, self.seed = codec.autoencoder, batches, seed

    def examples(self) -> tuple[Tensor, Tensor]:
        """All of them, float32 [N, C, h, w], and their levels int64 [N]."""
        return self.batches.latents(self.autoencoder), self.batches.levels

    def shuffled(self, epoch: int, start: int = 0) -> Iterator[Latents]:
        """An epoch's batches from step `start` on; the same for the same seed and epoch."""
        for codes, levels in self.batches.shuffled(self.seed, epoch, start):
            yield Latents(self.autoencoder.embed(codes), levels, torch.zeros_like(levels, dtype=torch.bool))


class VariedLatents:
    """What the encoder says of the slices, each of them varied anew in every epoch (`augment.vary`).

    Not quantised, as in latent diffusion (Rombach et al. 2022, section 3.1): code vectors lie apart from each other,
    and a critic would know real latents by that alone. Whoever draws latents snaps them to codes in the end.
    """

    def __init__(self, codec: Codec, slices: Slices, batches: CodeBatches, seed: int):
        """`batches`: the codes of these slices, whose levels and batch size hold here."""
        self.codec, self.batches, self.seed, on = codec, batches, seed, batches.on
        self.slices = Batches(slices, batches.batch_size, on.device, None, on.rank, on.world_size)

    def examples(self) -> tuple[Tensor, Tensor]:
        """Those of `EXAMPLES` slices at most, as they are, float32 [n, C, h, w], and their levels int64 [n]."""
        stride = -(-len(self.slices.pictures) // EXAMPLES)
        parts = torch.from_numpy(np.array(self.slices.pictures[::stride])).split(ENCODED)
        device, box = self.batches.on.device, self.codec.box
        latents = [self._encode(box.crop(part)[:, None].to(device) / 255) for part in parts]
        return torch.cat(latents), self.batches.levels[::stride]

    def shuffled(self, epoch: int, start: int = 0) -> Iterator[Latents]:
        """An epoch's batches from step `start` on; the same for the same seed and epoch."""
        on = self.batches.on
        for step, (images, rows) in enumerate(self.slices.shuffled(self.seed, epoch, start), start=start):
            generator = generator_of(self.seed, epoch, step)
            how = variation(Draws(len(images), generator, on.device, on.rank, on.world_size))
            levels = self.batches.levels[rows.to(on.device, non_blocking=True)]
            yield Latents(self._encode(vary(images, self.codec.box, how)), levels, how.changed.flatten())

    def _encode(self, images: Tensor) -> Tensor:
        with torch.no_grad(), self.codec.on.autocast():
            return self.codec.autoencoder.latents(images)


def brain_of_slice(slices: Slices) -> Tensor:
    """A number for each slice's brain, int64 [N]: the same for all slices of one volume, from 0 on."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(map(volume_of, slices.names)))}
    return torch.tensor([numbers[volume_of(name)] for name in slices.names])


def rows_beside(slices: Slices) -> np.ndarray:
    """Where the slices of the same brain are: int64 [N, 2 FARTHEST + 1], the row of that so many levels above, or -1.

    The first column is that `FARTHEST` levels below; the middle one is the slice's own.
    """
    places = list(zip(brain_of_slice(slices).tolist(), slices.levels.tolist(), strict=True))
    rows = {place: row for row, place in enumerate(places) if place[1] >= 0}
    away = range(-FARTHEST, FARTHEST + 1)
    beside = [[rows.get((brain, level + by), -1) for by in away] for brain, level in places]
    return np.array(beside, np.int64)


def choose_neighbours(beside: np.ndarray, chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Which known slices a prior is shown: rows int64 [b, 2] of them, and their offsets, 0 where there is none.

    `beside`: as `rows_beside`, of a batch. To `ALONE` of the slices none is shown, to the others one or two, mostly one
    on each side, at distances from 1 to `FARTHEST` that are drawn evenly by their logarithm.
    """
    n = len(beside)
    distance = np.rint(2 ** chance.uniform(0, math.log2(FARTHEST), (n, 2))).astype(np.int64)
    side = chance.choice([-1, 1], n)
    across = np.where(chance.random(n) < 0.8, -side, side)
    offsets = np.stack([side * distance[:, 0], across * distance[:, 1]], axis=1)
    offsets[chance.random(n) < ALONE] = 0
    offsets[chance.random(n) < 0.4, 1] = 0
    offsets[offsets[:, 0] == offsets[:, 1], 1] = 0
    rows = np.take_along_axis(beside, offsets + FARTHEST, axis=1)
    offsets[rows < 0] = 0
    return np.maximum(rows, 0), offsets
