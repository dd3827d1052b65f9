"""What else could a slice look like? As other sources have it, for the autoencoder; much like itself, for the priors.

An autoencoder that has only seen one set's slices, all upright, in one place, of one brightness, knows nothing else.
Half of its batches are therefore turned, mirrored, shifted, scaled, partly outside the window, of other intensities,
noisy, beside other structures, or constant; the other half are mirrored at most.
"""

import math
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dataset import Box

SHARE = 0.5  # of the batches that are changed; the others keep what the autoencoder is scored on in view
SHAPES = (1.0, 1.5, 2 / 3, 0.5)  # height by width of a window, beside that of the box
GRID = 16  # pixels; what a window's sides are multiples of


class Draws:
    """Random numbers for this process's share of a batch, made on the CPU so that any device gets the same.

    They are drawn for the shares of all processes together, so that several train on the pictures that one would.
    """

    def __init__(self, n: int, generator: torch.Generator, device: torch.device, rank: int = 0, world_size: int = 1):
        self.n, self.generator, self.device, self.rank, self.world_size = n, generator, device, rank, world_size

    def of(self, n: int) -> Self:
        """Further random numbers, for so many images of this process."""
        return type(self)(n, self.generator, self.device, self.rank, self.world_size)

    def uniform(self, low: float, high: float) -> Tensor:
        """[n, 1, 1, 1] from U(low, high)."""
        drawn = torch.rand(self.world_size, self.n, 1, 1, 1, generator=self.generator)[self.rank]
        return (low + (high - low) * drawn).to(self.device, non_blocking=True)

    def chance(self, share: float) -> Tensor:
        """[n, 1, 1, 1] booleans, true with probability `share`."""
        return self.uniform(0, 1) < share

    def normal(self, height: int, width: int) -> Tensor:
        """[n, 1, height, width] from N(0, 1)."""
        drawn = torch.randn(self.world_size, self.n, 1, height, width, generator=self.generator)[self.rank]
        return drawn.to(self.device, non_blocking=True)

    def whole(self, low: int, high: int) -> int:
        """One number from low to high - 1, for the whole batch."""
        return int(torch.randint(low, high, (), generator=self.generator))


def generator_of(*numbers: int) -> torch.Generator:
    """A CPU generator that is a function of these numbers, of seed, epoch and step, however often training stopped."""
    return torch.Generator().manual_seed(int(np.random.default_rng(numbers).integers(2**63)))


def augment(pictures: Tensor, box: Box, draw: Draws, share: float = SHARE) -> Tensor:
    """Whole slices [B, 1, H, W] in [0, 1] -> what the autoencoder is trained on, [B, 1, h, w] in [0, 1].

    `box`: where the training slices have their content, the window of the batches that are not changed. `share` of the
    batches are.
    """
    if draw.whole(0, 1000) >= 1000 * share:
        upright = box.crop(pictures)
        return torch.where(draw.chance(0.5), upright.flip(2), upright)
    changed = _moved(pictures, box, _window(box, draw), draw)
    changed = _crowded(changed, draw)
    changed = _relit(changed, draw)
    return (_made_up(changed, draw).clamp(0, 1) * 255).round() / 255


def _window(box: Box, draw: Draws) -> tuple[int, int]:
    """Height and width of about the box's area, multiples of `GRID`."""
    shapes = (box.height / box.width, *SHAPES)
    shape = shapes[draw.whole(0, len(shapes))]
    height = max(round(math.sqrt(box.height * box.width * shape) / GRID), 1) * GRID
    return height, max(round(box.height * box.width / height / GRID), 1) * GRID


def _moved(pictures: Tensor, box: Box, window: tuple[int, int], draw: Draws) -> Tensor:
    """Turned, mirrored, scaled by 0.6 to 1.65, and with the window's centre up to 60 pixels off the box's."""
    full_turn = math.pi * draw.uniform(-1, 1)
    angle = torch.where(draw.chance(0.5), 0.1 * full_turn, full_turn)
    zoom, stretch = draw.uniform(-0.5, 0.5).exp(), draw.uniform(-0.15, 0.15).exp()
    mirrored = [1 - 2 * draw.chance(0.5).float() for _ in range(2)]
    shifted = draw.chance(0.7)
    centre = [middle + 60 * shifted * draw.uniform(-1, 1) for middle in _middle(box)]
    half_height = window[0] / 2 * mirrored[0] / zoom / stretch
    half_width = window[1] / 2 * mirrored[1] / zoom * stretch
    to_x = [angle.cos() * half_width, -angle.sin() * half_height, centre[1]]
    to_y = [angle.sin() * half_width, angle.cos() * half_height, centre[0]]
    return _through(window, to_x, to_y, pictures, "bilinear")


def _through(window: tuple[int, int], to_x: list[Tensor], to_y: list[Tensor], pictures: Tensor, mode: str) -> Tensor:
    """What a window of so many pixels shows of pictures [B, 1, H, W].

    `to_x`, `to_y`: the picture's pixel for the window's (x, y), both in [-1, 1]: factors of x and of y, and offset.
    """
    rows = []
    for (of_x, of_y, offset), side in ((to_x, pictures.shape[3]), (to_y, pictures.shape[2])):
        rows.append(
            torch.cat([of_x, of_y, offset - side / 2], dim=3) / (side / 2)
        )  # `grid_sample` has -1 to 1 here, too
    theta = torch.cat(rows, dim=2)[:, 0]  # [B, 2, 3]
    grid = F.affine_grid(theta, [len(pictures), 1, *window], align_corners=False)
    return F.grid_sample(pictures, grid, mode, align_corners=False)


def _middle(box: Box) -> tuple[float, float]:
    return box.top + box.height / 2, box.left + box.width / 2


def _crowded(pictures: Tensor, draw: Draws) -> Tensor:
    """A quarter of them beside or under themselves, shifted and half-turned, as a brain lies in a skull."""
    away = (draw.whole(-60, 60), draw.whole(-60, 60))
    other = pictures.flip((2, 3)).roll(away, (2, 3)) * draw.uniform(0.3, 1)
    return torch.where(draw.chance(0.25), torch.maximum(pictures, other), pictures)


def _relit(pictures: Tensor, draw: Draws) -> Tensor:
    """Another gamma, brightness (half of them down to a twentieth), and some noise on a fifth."""
    gain = torch.where(draw.chance(0.5), draw.uniform(0.5, 1.2), draw.uniform(-3, 0).exp())
    noise = draw.uniform(0, 0.03) * draw.chance(0.2)
    return pictures.clamp(0, 1) ** draw.uniform(-0.6, 0.6).exp() * gain + noise * draw.normal(*pictures.shape[2:])


def _made_up(pictures: Tensor, draw: Draws) -> Tensor:
    """Three in a hundred constant or a ramp, one black: where there is nothing to see, nothing must be drawn."""
    down, across = (torch.linspace(-0.5, 0.5, side, device=pictures.device) for side in pictures.shape[2:])
    slopes = draw.chance(0.5) * (draw.uniform(-0.5, 0.5) * down[:, None] + draw.uniform(-0.5, 0.5) * across)
    flat = draw.uniform(0, 1) + slopes
    which = draw.uniform(0, 1)
    return torch.where(which < 0.03, flat, pictures) * (which < 0.99)


class Variation(NamedTuple):
    """How each of n brains is varied; all are [n, 1, 1, 1]."""

    changed: Tensor  # whether at all
    mirrored: Tensor  # 1 or -1
    down: Tensor  # pixels, whole
    across: Tensor
    zoom: Tensor  # factors
    stretch: Tensor
    brightness: Tensor

    def of(self, indices: Tensor) -> Self:
        """That of each of these, int64 [N]: all slices of a brain are varied in the same way."""
        return type(self)(*(each[indices] for each in self))


def variation(draw: Draws) -> Variation:
    """Brains as the training people could have had them, too.

    Two fifths stay as they are. The others are moved by whole pixels, scaled by a few per cent (half of them), dimmed
    or brightened a little, and a quarter of them are mirrored.
    """
    scaled = draw.chance(0.5).float()
    return Variation(
        changed=draw.chance(0.6),
        mirrored=1 - 2 * draw.chance(0.25).float(),
        down=draw.uniform(-4, 4).round(),
        across=draw.uniform(-4, 4).round(),
        zoom=(scaled * draw.uniform(-0.06, 0.06)).exp(),
        stretch=(scaled * draw.uniform(-0.03, 0.03)).exp(),
        brightness=draw.uniform(-0.12, 0.12).exp(),
    )


def vary(pictures: Tensor, box: Box, how: Variation) -> Tensor:
    """Whole slices [B, 1, H, W] in [0, 1] -> what a prior is trained on, [B, 1, *box].

    A prior is told which ones were changed, and samples as if none were (Karras et al. 2022, appendix F.2, has this for
    diffusion models).
    """
    down, across = _middle(box)
    none = torch.zeros_like(how.zoom)
    to_x = [box.width / 2 / how.zoom * how.stretch, none, across + how.across]
    to_y = [none, box.height / 2 * how.mirrored / how.zoom / how.stretch, down + how.down]
    varied = _through((box.height, box.width), to_x, to_y, pictures, "bicubic") * how.brightness
    varied = (varied.clamp(0, 1) * 255).round() / 255
    return torch.where(how.changed, varied, box.crop(pictures))
