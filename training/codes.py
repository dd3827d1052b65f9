"""What do the priors learn from? The codes of the training slices, as they are or varied a little each time."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dataset import Batches, Slices, shuffled_shares
from inference.codec import Codec
from modules import Autoencoder
from networks.prior import Codes
from runtime.compute import Compute
from runtime.errors import InputError
from training.augment import Draws, vary


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
    """Codes of slices that are varied anew each time (`augment.vary`), encoded as they are needed."""

    def __init__(self, codec: Codec, slices: Slices, batches: CodeBatches, seed: int):
        """`batches`: the codes of the same slices as they are, whose sizes, levels and number of codes hold here."""
        on = batches.on
        self.codec, self.plain, self.seed = codec, batches, seed
        self.batches = Batches(slices, batches.batch_size, on.device, None, on.rank, on.world_size)

    def shuffled(self, epoch: int, start: int = 0) -> Iterator[tuple[Codes, Tensor, Tensor]]:
        """An epoch's batches from step `start` on: codes int64 [b, h, w], levels [b], and which were changed, bool [b].

        The same for the same seed and epoch. Those that stayed as they are have the codes that `batches` has.
        """
        on, kept = self.codec.on, len(self.plain.codes)
        for step, (images, indices) in enumerate(self.batches.shuffled(self.seed, epoch, start), start=start):
            number = int(np.random.default_rng([self.seed, epoch, step]).integers(2**63))
            draw = Draws(len(images), torch.Generator().manual_seed(number), on.device, on.rank, on.world_size)
            pictures, changed = vary(images, self.codec.box, draw)
            with torch.no_grad(), on.autocast():
                varied = self.codec.autoencoder.encode(pictures)[:kept]
            plain, levels = self.plain.at(indices)
            where = changed[:, None, None]
            yield [torch.where(where, new, old) for new, old in zip(varied, plain, strict=True)], levels, changed
