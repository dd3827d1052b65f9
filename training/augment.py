"""What else could a slice look like? As other sources have it, for the autoencoder; much like itself, for the priors.

An autoencoder that has only seen one set's slices, all upright, in one place, of one brightness, knows nothing else.
So half of its batches are turned, mirrored, shifted, scaled, partly outside the window, of other intensities, noisy,
beside other structures, or constant; the other half are mirrored at most. Random numbers come from PyTorch's default
generators, which a run saves, so that a resumed run draws the same ones.
"""

import math
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset import Box

SHARE = 0.5  # of the autoencoder's batches that are augmented; the others look like the slices that it is scored on
ASPECTS = (1.0, 1.5, 2 / 3, 0.5)  # height by width of a window, beside that of the box
GRID = 16  # pixels; a window's sides are multiples of it
MAX_SHIFT = 60  # pixels from the window's centre to the box's
CONTROL = (7, 6)  # points of a warp, some 30 pixels apart
MOST_WARPED = 3.0  # pixels, the largest standard deviation of a control point's move


def uniform(n: int, low: float, high: float, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """[n, 1, 1, 1] from U(low, high)."""
    return torch.empty(n, 1, 1, 1, device=device).uniform_(low, high, generator=generator)


def random_integer(low: int, high: int) -> int:
    """One integer in [low, high) for the whole batch, drawn on the host."""
    return int(torch.randint(low, high, ()))


# ----------------------------------------------------------------------------------------------------
# For the autoencoder


def draw_window(box: Box, share: float = SHARE) -> tuple[int, int] | None:
    """Height and width of the window that a batch is seen through, about as large as `box`; `share` of the batches.

    None for the others. Drawn on the host, since it decides the batch's shape.
    """
    if random_integer(0, 1000) >= 1000 * share:
        return None
    aspects = (box.height / box.width, *ASPECTS)
    aspect = aspects[random_integer(0, len(aspects))]
    height = max(round(math.sqrt(box.height * box.width * aspect) / GRID), 1) * GRID
    return height, max(round(box.height * box.width / height / GRID), 1) * GRID


def augment(slices: Tensor, box: Box, window: tuple[int, int] | None) -> Tensor:
    """Whole slices [B, 1, H, W] in [0, 1] -> what the autoencoder is trained on, [B, 1, h, w] in [0, 1].

    `box`: where the training slices have their content. `window`: see `draw_window`; None for a batch that isn't
    augmented, but seen through the box.
    """
    if window is None:
        upright = box.crop(slices)
        return torch.where(uniform(len(slices), 0, 1, slices.device) < 0.5, upright.flip(2), upright)
    return (_flatten(_relight(_crowd(_transform(slices, box, window)))).clamp(0, 1) * 255).round() / 255


def _transform(slices: Tensor, box: Box, window: tuple[int, int]) -> Tensor:
    """Turned, mirrored, scaled by 0.6 to 1.65, and shifted, through the window."""
    (height, width), n, device = window, len(slices), slices.device

    def draw(low: float, high: float) -> Tensor:
        return uniform(n, low, high, device)

    full_turn = math.pi * draw(-1, 1)
    angle = torch.where(draw(0, 1) < 0.5, 0.1 * full_turn, full_turn)
    zoom, stretch = draw(-0.5, 0.5).exp(), draw(-0.15, 0.15).exp()
    half_height = height / 2 * (1 - 2 * (draw(0, 1) < 0.5).float()) / zoom / stretch
    half_width = width / 2 * (1 - 2 * (draw(0, 1) < 0.5).float()) / zoom * stretch
    shifted = draw(0, 1) < 0.7
    middle_y, middle_x = _middle(box)
    to_x = [angle.cos() * half_width, -angle.sin() * half_height, middle_x + MAX_SHIFT * shifted * draw(-1, 1)]
    to_y = [angle.sin() * half_width, angle.cos() * half_height, middle_y + MAX_SHIFT * shifted * draw(-1, 1)]
    return _resample(slices, window, to_x, to_y, "bilinear")


def _resample(
    slices: Tensor,
    window: tuple[int, int],
    to_x: list[Tensor],
    to_y: list[Tensor],
    mode: str,
    warp: Tensor | None = None,
) -> Tensor:
    """Slices [B, 1, H, W] through a window of (height, width) pixels.

    `to_x`, `to_y`: the slice's pixel for the window's (x, y), both in [-1, 1]: factors of x and of y, and offset.
    `warp`: pixels to the right and down [B, 2, i, j], added to these at control points over the whole window.
    """
    rows = []
    for (of_x, of_y, offset), side in ((to_x, slices.shape[3]), (to_y, slices.shape[2])):
        rows.append(torch.cat([of_x, of_y, offset - side / 2], dim=3) / (side / 2))  # `grid_sample` has -1 to 1 here
    theta = torch.cat(rows, dim=2)[:, 0]  # [B, 2, 3]
    grid = F.affine_grid(theta, [len(slices), 1, *window], align_corners=False)
    if warp is not None:
        warp = torch.stack([warp[:, 0] * 2 / slices.shape[3], warp[:, 1] * 2 / slices.shape[2]], dim=3)  # [B, i, j, 2]
        grid = grid + F.interpolate(warp.movedim(3, 1), window, mode="bicubic", align_corners=True).movedim(1, 3)
    return F.grid_sample(slices, grid, mode, align_corners=False)


def _middle(box: Box) -> tuple[float, float]:
    return box.top + box.height / 2, box.left + box.width / 2


def _crowd(slices: Tensor) -> Tensor:
    """A quarter of them beside or under themselves, shifted and turned by half, as a brain lies in a skull."""
    n, device = len(slices), slices.device
    shift = torch.randint(-MAX_SHIFT, MAX_SHIFT, (2,), device=device)
    size = slices.shape[2:]
    rows, columns = ((shift[i] - 1 - torch.arange(size[i], device=device)) % size[i] for i in range(2))
    other = slices[:, :, rows[:, None], columns] * uniform(n, 0.3, 1, device)
    return torch.where(uniform(n, 0, 1, device) < 0.25, torch.maximum(slices, other), slices)


def _relight(slices: Tensor) -> Tensor:
    """Another gamma, brightness (half of them down to a twentieth), and some noise on a fifth."""
    n, device = len(slices), slices.device
    dark = uniform(n, 0, 1, device) < 0.5
    gain = torch.where(dark, uniform(n, 0.5, 1.2, device), uniform(n, -3, 0, device).exp())
    noise = uniform(n, 0, 0.03, device) * (uniform(n, 0, 1, device) < 0.2) * torch.randn_like(slices)
    return slices.clamp(0, 1) ** uniform(n, -0.6, 0.6, device).exp() * gain + noise


def _flatten(slices: Tensor) -> Tensor:
    """Three in a hundred constant or a ramp, one black: an empty picture must stay empty."""
    n, device = len(slices), slices.device
    down, across = (torch.linspace(-0.5, 0.5, side, device=device) for side in slices.shape[2:])
    slope_down, slope_across = uniform(n, -0.5, 0.5, device), uniform(n, -0.5, 0.5, device)
    slopes = (uniform(n, 0, 1, device) < 0.5) * (slope_down * down[:, None] + slope_across * across)
    which = uniform(n, 0, 1, device)
    return torch.where(which < 0.03, uniform(n, 0, 1, device) + slopes, slices) * (which < 0.99)


# ----------------------------------------------------------------------------------------------------
# For the priors


class Variation(NamedTuple):
    """How each of n brains is varied; all but `warp` are [n, 1, 1, 1]."""

    augmented: Tensor  # whether at all
    mirrored: Tensor  # 1 or -1
    down: Tensor  # pixels, whole
    across: Tensor
    zoom: Tensor  # factors
    stretch: Tensor
    brightness: Tensor
    warp: Tensor  # pixels to the right and down at control points, [n, 2, *CONTROL]

    @classmethod
    def draw(cls, n: int, share: float, device: torch.device, generator: torch.Generator | None = None) -> Self:
        """Brains as the training people could have had them, too; `share` of them differ from the originals.

        They are moved by whole pixels, dimmed or brightened a little, and half of them are mirrored. Three in four are
        scaled by a few per cent and warped, gyri by as much as people differ in them; the others keep their grain.
        """

        def draw(low: float, high: float) -> Tensor:
            return uniform(n, low, high, device, generator)

        scaled = (draw(0, 1) < 0.75).float()
        return cls(
            augmented=draw(0, 1) < share,
            mirrored=1 - 2 * (draw(0, 1) < 0.5).float(),
            down=draw(-4, 4).round(),
            across=draw(-4, 4).round(),
            zoom=(scaled * draw(-0.06, 0.06)).exp(),
            stretch=(scaled * draw(-0.03, 0.03)).exp(),
            brightness=draw(-0.12, 0.12).exp(),
            warp=scaled * draw(0, MOST_WARPED) * torch.randn(n, 2, *CONTROL, device=device, generator=generator),
        )

    def of(self, indices: Tensor) -> Self:
        """The variation of each of these brains, int64 [N]: all slices of a brain are varied alike."""
        return type(self)(*(each[indices] for each in self))

    def apply(self, slices: Tensor, box: Box) -> Tensor:
        """Whole slices [B, 1, H, W] in [0, 1] -> what a prior is trained on, [B, 1, *box].

        Priors are conditioned on `augmented`, and sample as if nothing were (Karras et al. 2022, appendix F.2).
        """
        (down, across), zero = _middle(box), torch.zeros_like(self.zoom)
        to_x = [box.width / 2 / self.zoom * self.stretch, zero, across + self.across]
        to_y = [zero, box.height / 2 * self.mirrored / self.zoom / self.stretch, down + self.down]
        varied = _resample(slices, (box.height, box.width), to_x, to_y, "bicubic", self.warp) * self.brightness
        return torch.where(self.augmented, (varied.clamp(0, 1) * 255).round() / 255, box.crop(slices))
