"""How is a prior sampled? Codes of novel slices, each from a seed of its own, and walks between two of them."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from inference.codec import Codec
from inference.loading import load_prior
from inference.settings import LEAST_TEMPERATURE
from modules import DCGAN, Codes
from networks.baseline_gan import BaselineGAN
from networks.transformer import Transformer
from runtime.errors import InputError

FILES = ("transformer.pth", "dcgan.pth", "pixelcnn.pth")  # priors beside an autoencoder, the better one first
BATCH = 64
Where = Mapping[str, float | str | Sequence]  # covariates by their names: a value for all samples, or one each
WALK = 24  # pictures


def find_prior(folder: Path) -> Path | None:
    """The prior in a run folder, the best one where there are several, None where there is none."""
    return next((path for name in FILES if (path := folder / name).is_file()), None)


class Sampler:
    """The prior in the file `path`, over the codes of `codec`'s autoencoder.

    Attributes:
        title: the prior's name in figures.
        levels: the number of slice levels that it knows, from 0 on; 0 when it was trained without.
        num_grids: how many grids of codes it samples, of those that the autoencoder has.
        description: the rest of the file: model, epoch and its scores.

    Raises:
        InputError: the file isn't a prior of this autoencoder.
    """

    def __init__(self, path: Path, codec: Codec):
        prior, self.description = load_prior(path, codec.autoencoder)
        self.prior, self.path, self.codec = prior.to(codec.on.device), path, codec
        self.is_gan = isinstance(prior, DCGAN)
        self.title = prior.title
        self.num_grids = prior.arguments["codes"] if self.is_gan else len(prior.arguments["sizes"])
        self.levels = 0 if isinstance(prior, BaselineGAN) else prior.levels

    def check(self, level: int | None, temperature: float | None, nucleus: float | None) -> None:
        """Raises InputError when the prior knows no such level, or takes no such temperature or nucleus."""
        if level is not None and (not isinstance(level, Integral) or not 0 <= level < self.levels):
            known = f"knows slice levels 0 to {self.levels - 1}" if self.levels else "was trained without slice levels"
            raise InputError(f"slice level {level}: {self.path} {known}")
        for name, value in (("temperature", temperature), ("nucleus", nucleus)):
            if value is not None and self.is_gan:
                raise InputError(f"a DCGAN has no {name}: leave it out, or give a transformer")
        if temperature is not None and not LEAST_TEMPERATURE <= temperature < math.inf:
            raise InputError(f"the temperature must be at least {LEAST_TEMPERATURE}, not {temperature}")
        if nucleus is not None and not 0 < nucleus <= 1:
            raise InputError(f"the nucleus must be above 0 and at most 1, not {nucleus}")

    @torch.no_grad()
    def sample(
        self,
        seeds: Sequence[int],
        level: int | None = None,
        temperature: float | None = None,
        nucleus: float | None = None,
        where: Where | None = None,
    ) -> Codes:
        """One sample a seed, which depends on that seed only: code grids int64 [len(seeds), h, w].

        `level` None draws each sample's level as often as it occurs in training. `temperature` and `nucleus` (default
        1) are for a transformer or a PixelCNN, see `draw_code`. `where`: see `covariates`; what is left open is drawn
        as among training people of that kind.
        """
        options = {} if self.is_gan else {"temperature": temperature or 1.0, "nucleus": nucleus or 1.0}
        parts, asked = [], self.covariates(where, len(seeds))
        if isinstance(self.prior, Transformer) and where:
            options["guidance"] = self.prior.guidance
        for start in tqdm(range(0, len(seeds), BATCH), "sampling", unit="batch", disable=None):
            batch = seeds[start : start + BATCH]
            with self.codec.on.autocast():
                own = self.prior.draw_covariates(batch, None if asked is None else asked[start : start + BATCH])
                parts.append(self.prior.sample(batch, self._levels(level, len(batch)), own, **options))
        return [torch.cat(grids) for grids in zip(*parts, strict=True)]

    @torch.no_grad()
    def walk(self, seeds: tuple[int, int], level: int | None = None) -> Codes:
        """A walk from one seed's sample to the other's: code grids int64 [WALK, h, w].

        For a DCGAN, through samples of one level: two z are all but orthogonal, so cos t a + sin t b keeps their
        length. The other priors have no such space: the walk is a straight line through the autoencoder's latents,
        snapped to the codebook.
        """
        t = torch.linspace(0, 1, WALK, device=self.codec.on.device)[:, None]
        if isinstance(self.prior, DCGAN):
            a, b = self.prior.noise(seeds)
            angle = t * math.pi / 2
            level = int(self.prior.draw_levels(seeds[:1])) if level is None else level
            z = angle.cos() * a + angle.sin() * b
            return self.prior.generate(z, self._levels(level, WALK), self.prior.draw_covariates(seeds[:1] * WALK))
        codes = self.sample(seeds, level)
        a, b = self.codec.autoencoder.embed(codes)
        return self.codec.autoencoder.quantise(torch.lerp(a, b, t[..., None, None]))[: len(codes)]

    @torch.no_grad()
    def bits(self, codes: Codes, levels: Tensor) -> float:
        """Mean bits per image of an entropy coder with this prior, for code grids [N, h, w] and levels [N].

        Grids that the prior doesn't model cost log2 K bits a code. Levels that it doesn't know count as unknown.
        """
        if self.is_gan:
            raise ValueError("a GAN has no likelihood")
        device, number = self.codec.on.device, self.num_grids
        uniform = zip(codes[number:], self.codec.autoencoder.codebook_sizes[number:], strict=True)
        rest = sum(grid[0].numel() * math.log2(size) for grid, size in uniform)
        codes = [grid.to(device) for grid in codes[:number]]
        levels = torch.where((levels < 0) | (levels > self.prior.levels), self.prior.levels, levels).to(device)
        total = 0.0
        for rows in torch.arange(len(levels), device=device).split(BATCH):
            with self.codec.on.autocast():
                total += self.prior([grid[rows].long() for grid in codes], levels[rows]).sum().item()
        return total / len(levels) + rest

    def covariates(self, where: Where | None, n: int) -> Tensor | None:
        """What `where` asks of n samples, as the prior takes it, NaN where it is left open; None where it asks nothing.

        `where`: values of covariates by their names, in their own units, one for all samples or a sequence of n; what
        is left out stays open. Raises InputError when the prior doesn't know such covariates, or such values.
        """
        if not where:
            return None
        known = {each["name"]: i for i, each in enumerate(self.prior.covariates)}
        values = self.prior.unknown(n)
        for name, value in where.items():
            if name not in known:
                can = f"can be asked for {', '.join(known)}" if known else "was trained without covariates"
                raise InputError(f"{name}: {self.path} {can}")
            each = [value] * n if isinstance(value, str) or not np.ndim(value) else value
            if len(each) != n:
                raise InputError(f"{name}: give one value, or {n:,}, not {len(each):,}")
            covariate = self.prior.covariates[known[name]]
            values[:, known[name]] = values.new_tensor([_standardised(covariate, one) for one in each])
        return values

    def _levels(self, level: int | None, n: int) -> Tensor | None:
        return None if level is None else torch.full((n,), level, device=self.codec.on.device)


def _standardised(covariate: Mapping, value: float | str) -> float:
    """A value of a covariate as priors take it. Raises InputError when training had none like it."""
    name = covariate["name"]
    if categories := covariate["categories"]:
        if str(value) not in categories:
            raise InputError(f"{name}={value}: it can be {', '.join(categories)}")
        return categories.index(str(value))
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not covariate["low"] <= number <= covariate["high"]:
        raise InputError(f"{name}={value}: it can be from {covariate['low']:.4g} to {covariate['high']:.4g}")
    return (number - covariate["mean"]) / covariate["deviation"]
