"""What can a trained model do? Slices to codes and back, novel slices and brains, walks between two slices."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from inference.codec import Codec, PlacedCodes
from inference.loading import load_autoencoder, load_painter
from inference.sampling import Sampler, find_prior
from inference.volumes import VolumeSampler
from reading.inputs import MAX_SIDE
from reading.nifti import Cut
from runtime import compute
from runtime.cli import LARGEST_SEED
from runtime.errors import InputError

Array = TypeVar("Array", np.ndarray, Tensor)


class TrainedModel:
    """An autoencoder and, where there is one, a prior over its codes: arrays in, arrays out.

    Slices are [N, H, W], uint8 in [0, 255] or float in [0, 1], of any height and width up to 1024; a single one is
    `slice_[None]`. Codes are a list of integer arrays [N, h, w] with values in [0, K), coarse to fine, which also holds
    their place in the slices. Pictures are float32 [N, H, W] in [0, 1]. Slices and codes may be NumPy arrays or PyTorch
    tensors; results are of the same kind, and on the same device. Samples and walks are NumPy arrays.

    Input that can't be used raises InputError, a ValueError whose message is one line.

    Attributes:
        codec: the autoencoder, on its device.
        sampler: the prior, or None.
        description: what the autoencoder's file says of it: model, arguments, epoch, validation score, data.
    """

    def __init__(self, codec: Codec, description: dict, sampler: Sampler | None, path: Path):
        self.codec, self.description, self.sampler, self.path = codec, description, sampler, path

    @classmethod
    def load(
        cls, weights: str | Path, prior: str | Path | None = None, device: str = "auto", precision: str = "auto"
    ) -> Self:
        """The model in the file `weights`, with the prior in the file `prior`.

        `prior` None takes the best one beside the weights, if there is any; "none" does without. `precision` "fp32"
        and "bf16" are for all of it; "auto" computes codes and reconstructions in fp32, the same on every device, and
        paints samples in bf16 where the device has that. Except for "bf16", TF32 is turned off in this process's
        convolutions. Raises InputError when a file isn't what it should be, or there is no such device.
        """
        path = Path(weights)
        paint_on = compute.choose(device, precision)
        on = replace(paint_on, bf16=precision == "bf16")
        torch.backends.cudnn.allow_tf32 = precision == "bf16"
        autoencoder, description = load_autoencoder(path)
        painter = load_painter(path.parent / "painter.pth", autoencoder)
        codec = Codec(autoencoder, description["data"], on, painter, paint_on)
        found = find_prior(path.parent) if prior is None else None if prior == "none" else Path(prior)
        return cls(codec, description, Sampler(found, codec) if found else None, path)

    def encode(self, slices: Array) -> list[Array]:
        """Slices [N, H, W] -> codes, int16 [N, h, w] each."""
        codes = self.codec.encode(_as_slices(slices))
        return PlacedCodes((_like(slices, grid) for grid in codes), codes.box, codes.size)

    def decode(self, codes: Sequence[Array]) -> Array:
        """Codes -> pictures float32 [N, H, W] in [0, 1], black outside of the box that was coded.

        Where the autoencoder has several codes per position, the first of them will do: `decode(codes[:2])`. Codes that
        aren't from `encode` lie on the training's grid, or else become pictures of their grid's own size.
        """
        self._check_codes(codes)
        grids = [_as_numpy(grid, np.int64) for grid in codes]
        if isinstance(codes, PlacedCodes):
            grids = PlacedCodes(grids, codes.box, codes.size)
        return _like(codes[0], torch.from_numpy(self.codec.decode(grids)))

    @property
    def covariates(self) -> dict[str, tuple[float, float] | list[str]]:
        """What samples can be asked for with `where`: of a number its range in training, of others their categories."""
        known = self.sampler.prior.covariates if self.sampler else []
        return {each["name"]: each["categories"] or (each["low"], each["high"]) for each in known}

    def sample(self, seeds: Sequence[int], level: int | None = None, **options) -> np.ndarray:
        """Pictures of novel slices, one a seed: float32 [len(seeds), H, W] in [0, 1].

        They have texture where a painter.pth lies beside the weights; without one, the plain decoder blurs them.

        Args:
            seeds: each slice depends on its own seed only.
            level: the axial slice level, from 0; None draws each one's as often as it is in training.
            options: `temperature` and `nucleus`, 1 unless they are given, lower for likelier and more alike; `where`,
                values of some of `covariates`, {"cdr": 1, "ventricles": 0.12}: the others are drawn as among
                training people of that kind.
        Raises:
            InputError: there is no prior, or it knows no such level, temperature, nucleus or covariate.
        """
        sampler, seeds = self._ready(seeds, level, **options)
        return self.codec.paint(sampler.sample(seeds, level, **options), seeds)

    def sample_codes(self, seeds: Sequence[int], level: int | None = None, **options) -> list[np.ndarray]:
        """As `sample`, but the codes alone: int16 [len(seeds), h, w] each."""
        sampler, seeds = self._ready(seeds, level, **options)
        return [grid.to(torch.int16).cpu().numpy() for grid in sampler.sample(seeds, level, **options)]

    def walk(self, seeds: Sequence[int], level: int | None = None) -> np.ndarray:
        """Pictures on the way from one seed's sample to another's: float32 [24, H, W] in [0, 1]."""
        sampler, seeds = self._ready(seeds, level)
        if len(seeds) != 2:
            raise InputError(f"a walk goes between 2 seeds, not {len(seeds)}")
        codes = sampler.walk(tuple(seeds), level)
        return self.codec.paint(codes, [seeds[0]] * len(codes[0]))  # one noise, so that only the brain changes

    def sample_volume(self, seed: int, around: Array | None = None, level: int | None = None, **options) -> np.ndarray:
        """A novel brain, all levels of the training data: float32 [levels, H, W] in [0, 1]. See `sample_volumes`."""
        return self.sample_volumes([seed], around, level, **options)[0]

    def sample_volumes(
        self, seeds: Sequence[int], around: Array | None = None, level: int | None = None, **options
    ) -> np.ndarray:
        """Novel brains whose slices belong together, one a seed: float32 [len(seeds), levels, H, W] in [0, 1].

        `around`: a real slice [H, W] of the training's size, at slice level `level`, that all brains are sampled
        around; it comes back as its first codes have it, and the rest is invented. `options`: as `sample` takes them.
        Raises InputError when the prior samples single slices only, or can't be asked for that.
        """
        sampler, seeds = self._ready(seeds, level, **options)
        volumes, start = VolumeSampler(sampler), None
        if (around is None) != (level is None):
            raise InputError("a slice to draw a brain around goes with its level: give around and level, or neither")
        if around is not None:
            if tuple(getattr(around, "shape", ())) != self.codec.size:
                size = "x".join(map(str, self.codec.size))
                raise InputError(f"a slice to draw a brain around is {size}, as in training, not {_kind(around)}")
            if level not in volumes.levels:
                known = f"{volumes.levels[0]} to {volumes.levels[-1]}"
                raise InputError(f"slice level {level}: {sampler.path} draws brains of levels {known}")
            start = level, self.codec.encode(_as_slices(around[None]), self.codec.box)
        return volumes.paint(volumes.sample(seeds, start, **options), seeds)

    def cut(self, axis: int | None = None, slices: str | None = None, spacing: float | None = None) -> Cut:
        """How volumes are to be cut: as given, else as in training."""
        given = Cut(axis, slices, spacing)._asdict()
        return Cut(**{k: self.description["data"][k] if value is None else value for k, value in given.items()})

    def _ready(self, seeds: Sequence[int], level: int | None, **options) -> tuple[Sampler, list[int]]:
        """The sampler, and the seeds as a list. Raises InputError when these can't be sampled."""
        if self.sampler is None:
            raise InputError(f"no prior beside {self.path}, so nothing can be sampled: give the file of one as prior")
        seeds = list(seeds) if isinstance(seeds, Iterable) else []
        if not seeds or not all(isinstance(seed, Integral) and 0 <= seed <= LARGEST_SEED for seed in seeds):
            raise InputError(f"seeds are a list of whole numbers from 0 to {LARGEST_SEED:,}, at least one")
        self.sampler.check(level, options.get("temperature"), options.get("nucleus"))
        self.sampler.covariates(options.get("where"), len(seeds))
        return self.sampler, [int(seed) for seed in seeds]

    def _check_codes(self, codes: Sequence[Array]) -> None:
        """Raises InputError unless they are code grids that can be decoded."""
        autoencoder = self.codec.autoencoder
        sizes, depth = autoencoder.codebook_sizes, autoencoder.depth
        number = f"1 to {depth}" if depth > 1 else len(sizes)
        if not isinstance(codes, list | tuple) or not (1 if depth > 1 else len(sizes)) <= len(codes) <= len(sizes):
            raise InputError(f"codes are a list of {number} integer arrays [N, h, w], as encode gives it")
        for grid in codes:
            if not isinstance(grid, np.ndarray | Tensor) or "int" not in _kind(grid) or grid.ndim != 3:
                raise InputError(f"codes are integer arrays [N, h, w], not {_kind(grid)}")
        shapes = autoencoder.grid_shapes(*(side * autoencoder.downsample for side in codes[-1].shape[1:]))
        for grid, (h, w), size in zip(codes, shapes, sizes, strict=False):
            if not len(grid) or tuple(grid.shape) != (len(codes[0]), h, w):
                raise InputError(f"codes are [N, {h}, {w}], N the same for all grids and at least 1, not {_kind(grid)}")
            if grid.min() < 0 or grid.max() >= size:
                raise InputError(f"codes are from 0 to {size - 1}, these from {int(grid.min())} to {int(grid.max())}")

    def __repr__(self) -> str:
        shapes = [f"{h}x{w}" for h, w in self.codec.grid_shapes()]
        grids = ", ".join(f"{shapes.count(shape)} of {shape}" for shape in dict.fromkeys(shapes))
        height, width = self.codec.size
        prior = f"{self.sampler.title} with {self.sampler.levels} slice levels" if self.sampler else "none"
        what = "{model}, epoch {epoch}: slices ".format(**self.description)
        return f"{what}{height}x{width} <-> code grids {grids}; prior: {prior}; on {self.codec.on.device}"


def _as_slices(slices: Array) -> np.ndarray:
    """Slices as uint8 or float32 [N, H, W]. Raises InputError when they can't be encoded."""
    if not isinstance(slices, np.ndarray | Tensor) or slices.ndim != 3 or not len(slices):
        raise InputError(f"slices are an array or a tensor [N, H, W], N at least 1, not {_kind(slices)}")
    if not 1 <= min(slices.shape[1:]) <= max(slices.shape[1:]) <= MAX_SIDE:
        raise InputError(f"slices have sides of 1 to {MAX_SIDE} pixels, not {_kind(slices)}")
    if str(slices.dtype).endswith("uint8"):
        return _as_numpy(slices, np.uint8)
    values = _as_numpy(slices, np.float32)
    if "float" not in _kind(slices) or not (values.min() >= 0 and values.max() <= 1):  # so that NaN is refused, too
        bounds = f"{_kind(slices)} from {values.min():g} to {values.max():g}"
        raise InputError(f"slices are uint8 in [0, 255] or float in [0, 1], not {bounds}")
    return values


def _as_numpy(array: Array, dtype: type) -> np.ndarray:
    """An array or a tensor of any number type, bfloat16 and the other byte order among them, as a NumPy array."""
    if isinstance(array, Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    return np.asarray(array, dtype)


def _like(given: Array, made: Tensor) -> Array:
    """A tensor as an array like the given one: a NumPy array, or a tensor on that one's device."""
    return made.to(given.device) if isinstance(given, Tensor) else made.cpu().numpy()


def _kind(thing: object) -> str:
    """`float32 [4, 256, 256]` for arrays, the type's name for others."""
    if not isinstance(thing, np.ndarray | Tensor):
        return f"a {type(thing).__name__}"
    return f"{getattr(thing.dtype, 'name', thing.dtype)} {list(thing.shape)}".removeprefix("torch.")
