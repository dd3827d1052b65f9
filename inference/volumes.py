"""How is a whole brain drawn? From a middle slice outwards, each slice given those of the same brain beside it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from inference.sampling import BATCH, Sampler
from networks.prior import Codes
from networks.transformer import FARTHEST, Neighbours, Transformer
from reading import nifti
from runtime.errors import InputError

STRIDES = (8, 4, 2, 1)  # levels: first every eighth slice and both ends, then those half way between
SHOWN = 2  # known slices that each is drawn given


class Place(NamedTuple):
    """A level to draw, and the levels that are drawn by then and shown."""

    level: int
    beside: list[int]


def plan(levels: range, start: int) -> Iterator[list[Place]]:
    """In which order `levels` are drawn after `start`: rounds of slices that don't depend on each other.

    Each is shown the nearest slice below and the nearest above; the first ones, where there are none on one side, the
    two nearest. So nearly all slices lie between two. Drawn from level to level instead, each like the one before, a
    brain comes to a standstill within a few slices.
    """
    known, ends = {start}, {levels[0], levels[-1]}
    for stride in STRIDES:
        wanted = (level for level in levels if (level - start) % stride == 0 or level in ends)
        missing = [level for level in wanted if level not in known]
        while missing:
            now = [level for level in missing if any(abs(level - other) <= stride for other in known)]
            if not now:  # the levels have a gap that is wider than the stride
                break
            yield [Place(level, _beside(level, known)) for level in now]
            known.update(now)
            missing = [level for level in missing if level not in known]


def _beside(level: int, known: set[int]) -> list[int]:
    near = sorted((other for other in known if abs(other - level) <= FARTHEST), key=lambda other: abs(other - level))
    sides = [next((other for other in near if (other > level) == above), None) for above in (False, True)]
    both = [side for side in sides if side is not None]
    return both if len(both) == SHOWN else near[:SHOWN]


class VolumeSampler:
    """Draws brains with the transformer of `sampler`. Raises InputError when that is another prior."""

    def __init__(self, sampler: Sampler):
        if not isinstance(sampler.prior, Transformer):
            raise InputError(f"{sampler.path} draws single slices; whole brains take a transformer (--prior)")
        self.sampler, self.prior, self.on = sampler, sampler.prior, sampler.codec.on
        seen = torch.nonzero(self.prior.level_share[: self.prior.levels])[:, 0].tolist()
        if len(seen) < 2:
            raise InputError(f"{sampler.path} knows one slice level: it draws no brains")
        self.levels = range(seen[0], seen[-1] + 1)

    @property
    def middle(self) -> int:
        """The level that is drawn first."""
        return self.levels[len(self.levels) // 2]

    def draw(
        self,
        seeds: Sequence[int],
        start: tuple[int, Codes] | None = None,
        temperature: float | None = None,
        nucleus: float | None = None,
    ) -> Codes:
        """A brain a seed, which depends on that seed only: code grids int64 [len(seeds), levels, h, w].

        `start`: the level and the codes, [1, h, w] each, of a slice that all of them are drawn around; None draws it.
        """
        options = {"temperature": temperature or self.prior.temperature, "nucleus": nucleus or 1.0}
        first = self.middle if start is None else start[0]
        n, grid, depth = len(seeds), self.prior.grid, len(self.prior.said)
        codes = [torch.zeros(n, len(self.levels), *grid, dtype=torch.long, device=self.on.device) for _ in range(depth)]
        with tqdm(total=n * len(self.levels), desc="drawing brains", unit="slice", disable=None) as bar:
            for places in ([Place(first, [])], *plan(self.levels, first)):
                if start is not None and places[0].level == first:
                    for known, given in zip(codes, start[1], strict=False):
                        known[:, first - self.levels[0]] = given.to(known)
                else:
                    self._draw_round(codes, seeds, places, options)
                bar.update(n * len(places))
        return codes

    def paint(self, codes: Codes, seeds: Sequence[int], apart: bool = False) -> np.ndarray:
        """Code grids [V, levels, h, w] of brains, one a seed -> float32 [V, levels, H, W] in [0, 1].

        The painter's noise goes on from level to level; `apart`: every slice has its own.
        """
        number, levels = codes[0].shape[:2]
        flat = [grid.flatten(0, 1) for grid in codes]
        if apart:
            seeds, levels = [seed + (level << 32) for seed in seeds for level in range(levels)], 1
        pictures = self.sampler.codec.paint(flat, seeds, levels)
        return pictures.reshape(number, -1, *pictures.shape[1:])

    def draw_apart(self, seeds: Sequence[int]) -> Codes:
        """As `draw`, but with each slice alone: what to compare brains with, whose slices belong together."""
        grids = (len(seeds), len(self.levels), *self.prior.grid)
        codes = [torch.zeros(grids, dtype=torch.long, device=self.on.device) for _ in self.prior.said]
        options = {"temperature": self.prior.temperature, "nucleus": 1.0}
        for level in tqdm(self.levels, "drawing slices apart", unit="level", disable=None, leave=False):
            self._draw_round(codes, seeds, [Place(level, [])], options)
        return codes

    @torch.no_grad()
    def _draw_round(self, codes: Codes, seeds: Sequence[int], places: list[Place], options: dict) -> None:
        """Draw the slices at these places of each brain into `codes`."""
        rows = [(brain, place) for brain in range(len(seeds)) for place in places]
        for begin in range(0, len(rows), BATCH):
            part = rows[begin : begin + BATCH]
            brains = torch.tensor([brain for brain, _ in part], device=self.on.device)
            levels = torch.tensor([place.level for _, place in part], device=self.on.device)
            # A stream of random numbers for each slice: 2**32 seeds below, the level above.
            streams = [seeds[brain] + ((place.level + 2) << 32) for brain, place in part]
            with self.on.autocast():
                drawn = self.prior.sample(streams, levels, **options, neighbours=self._neighbours(codes, part))
            for known, grid in zip(codes, drawn, strict=True):
                known[brains, levels - self.levels[0]] = grid

    def _neighbours(self, codes: Codes, part: list[tuple[int, Place]]) -> Neighbours | None:
        if not part[0][1].beside:
            return None
        shown = [(place.beside + [place.level] * SHOWN)[:SHOWN] for _, place in part]  # its own place: no neighbour
        beside = torch.tensor(shown, device=self.on.device)
        brains = torch.tensor([brain for brain, _ in part], device=self.on.device)[:, None]
        offsets = beside - torch.tensor([place.level for _, place in part], device=self.on.device)[:, None]
        return Neighbours([grid[brains, beside - self.levels[0]] for grid in codes], offsets)


def write_volume(path: Path, volume: np.ndarray, data: Mapping) -> None:
    """Write a brain, uint8 [levels, H, W], as NIfTI, where the training volumes lie in space.

    `data`: what the autoencoder's checkpoint says of its training data. Where its slices came one by one, their
    distance isn't known, and voxels are cubes of 1 mm.
    """
    affine = None if data["affine"] is None else np.array(data["affine"])
    nifti.write_stack(path, volume, data["axis"], affine)
