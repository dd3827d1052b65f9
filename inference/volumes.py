"""How is a whole brain sampled? From a middle slice outwards, each slice given those of the same brain beside it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from inference.sampling import BATCH, Sampler, Where
from modules import Codes
from networks.transformer import MAX_OFFSET, Neighbours, Transformer
from reading import nifti
from runtime.errors import InputError

STRIDES = (8, 4, 2, 1)  # levels: first every eighth slice and both ends, then those half way between
NEIGHBOURS = 2  # slices of the same brain that each slice is conditioned on


class Place(NamedTuple):
    """A level to sample, and the levels, sampled before, that it is conditioned on."""

    level: int
    neighbours: list[int]


def plan(levels: range, start: int) -> Iterator[list[Place]]:
    """The order in which `levels` are sampled after `start`: rounds of slices that don't depend on each other.

    Each is conditioned on the nearest slice below and the nearest above; the first ones, where one side has none, on
    the two nearest. So nearly all slices lie between two. If each slice were like the one before instead, from level
    to level, a brain would come to a standstill within a few slices.
    """
    known, ends = {start}, {levels[0], levels[-1]}
    for stride in STRIDES:
        wanted = (level for level in levels if (level - start) % stride == 0 or level in ends)
        missing = [level for level in wanted if level not in known]
        while missing:
            now = [level for level in missing if any(abs(level - other) <= stride for other in known)]
            if not now:  # the levels have a gap that is wider than the stride
                break
            yield [Place(level, _neighbours(level, known)) for level in now]
            known.update(now)
            missing = [level for level in missing if level not in known]


def _neighbours(level: int, known: set[int]) -> list[int]:
    near = sorted((other for other in known if abs(other - level) <= MAX_OFFSET), key=lambda other: abs(other - level))
    sides = [next((other for other in near if (other > level) == above), None) for above in (False, True)]
    both = [side for side in sides if side is not None]
    return both if len(both) == NEIGHBOURS else near[:NEIGHBOURS]


class VolumeSampler:
    """Samples brains with the transformer of `sampler`. Raises InputError when that is another prior."""

    def __init__(self, sampler: Sampler):
        if not isinstance(sampler.prior, Transformer):
            raise InputError(f"{sampler.path} draws single slices; whole brains take a transformer (--prior)")
        self.sampler, self.prior, self.on = sampler, sampler.prior, sampler.codec.on
        trained = torch.nonzero(self.prior.level_share[: self.prior.levels])[:, 0].tolist()
        if len(trained) < 2:
            raise InputError(f"{sampler.path} knows one slice level: it draws no brains")
        self.levels = range(trained[0], trained[-1] + 1)

    @property
    def middle(self) -> int:
        """The level that is sampled first."""
        return self.levels[len(self.levels) // 2]

    def sample(
        self,
        seeds: Sequence[int],
        start: tuple[int, Codes] | None = None,
        temperature: float | None = None,
        nucleus: float | None = None,
        where: Where | None = None,
    ) -> Codes:
        """A brain a seed, which depends on that seed only: code grids int64 [len(seeds), levels, h, w].

        `start`: the level and the codes, [1, h, w] each, of a slice that all brains are sampled around; None samples
        that slice, too. `where`: what is asked of them, see `Sampler.covariates`.
        """
        options = {"temperature": temperature or 1.0, "nucleus": nucleus or 1.0}
        options["guidance"] = self.prior.guidance if where else 1.0
        covariates = self.sampler.covariates(where, len(seeds))
        if start is None:
            covariates = self.prior.draw_covariates(seeds, covariates)
        elif covariates is None:  # of the brain of a slice that is given, nothing is known
            covariates = self.prior.unknown(len(seeds))
        codes = self._empty(len(seeds))
        if start is None:
            first, rounds = self.middle, [[Place(self.middle, [])]]
        else:
            (first, given), rounds = start, []
            for grid, own in zip(codes, given, strict=False):
                grid[:, first - self.levels[0]] = own.to(grid)
        for places in tqdm([*rounds, *plan(self.levels, first)], "drawing brains", unit="round", disable=None):
            self._sample_round(codes, seeds, places, covariates, **options)
        return codes

    def sample_independent(self, seeds: Sequence[int]) -> Codes:
        """As `sample`, but each slice on its own: the baseline for brains whose slices belong together."""
        codes = self._empty(len(seeds))
        for level in tqdm(self.levels, "drawing independent slices", unit="level", disable=None, leave=False):
            self._sample_round(codes, seeds, [Place(level, [])], None)
        return codes

    def paint(self, codes: Codes, seeds: Sequence[int], independent: bool = False) -> np.ndarray:
        """Code grids [V, levels, h, w] of brains, one a seed -> float32 [V, levels, H, W] in [0, 1].

        The painter's noise is continuous from level to level; `independent`: each slice has its own.
        """
        number, levels = codes[0].shape[:2]
        flat = [grid.flatten(0, 1) for grid in codes]
        if independent:
            seeds, levels = [seed + (level << 32) for seed in seeds for level in range(levels)], 1
        pictures = self.sampler.codec.paint(flat, seeds, levels)
        return pictures.reshape(number, -1, *pictures.shape[1:])

    def _empty(self, number: int) -> Codes:
        shape = (number, len(self.levels), *self.prior.grid)
        return [torch.zeros(shape, dtype=torch.long, device=self.on.device) for _ in self.prior.arguments["sizes"]]

    @torch.no_grad()
    def _sample_round(
        self, codes: Codes, seeds: Sequence[int], places: list[Place], covariates: Tensor | None, **options: float
    ) -> None:
        """Sample the slices at these places of each brain into `codes`."""
        rows = [(brain, place) for brain in range(len(seeds)) for place in places]
        for begin in range(0, len(rows), BATCH):
            batch = rows[begin : begin + BATCH]
            brains = torch.tensor([brain for brain, _ in batch], device=self.on.device)
            levels = torch.tensor([place.level for _, place in batch], device=self.on.device)
            # A stream of random numbers for each slice: 2**32 seeds below, the level above.
            streams = [seeds[brain] + ((place.level + 2) << 32) for brain, place in batch]
            options["neighbours"] = self._conditioning(codes, batch)
            own = None if covariates is None else covariates[brains]
            with self.on.autocast():
                sampled = self.prior.sample(streams, levels, own, **options)
            for grid, new in zip(codes, sampled, strict=True):
                grid[brains, levels - self.levels[0]] = new

    def _conditioning(self, codes: Codes, batch: list[tuple[int, Place]]) -> Neighbours | None:
        if not batch[0][1].neighbours:
            return None
        padded = [(place.neighbours + [place.level] * NEIGHBOURS)[:NEIGHBOURS] for _, place in batch]  # offset 0: none
        levels = torch.tensor(padded, device=self.on.device)
        brains = torch.tensor([brain for brain, _ in batch], device=self.on.device)[:, None]
        offsets = levels - torch.tensor([place.level for _, place in batch], device=self.on.device)[:, None]
        return Neighbours([grid[brains, levels - self.levels[0]] for grid in codes], offsets)


def write_volume(path: Path, volume: np.ndarray, data: Mapping) -> None:
    """Write a brain, uint8 [levels, H, W], as NIfTI, where the training volumes lie in space.

    `data`: the training data of the autoencoder's description. Where its slices came one by one, their distance isn't
    known, and voxels are cubes of 1 mm.
    """
    affine = None if data["affine"] is None else np.array(data["affine"])
    nifti.write_stack(path, volume, data["axis"], affine)
