"""What tells decoded pictures from real ones? The opponent of a decoder that is to draw texture."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.blocks import PlainResidual

MIDDLE, SPREAD = 0.3, 1 / 3  # of grey values, about
DETAIL = 16.0  # how much finest detail is enlarged: that is as large as all of the picture then
FOLDED = 4  # by so many pixels, down and across, into channels


class PatchCritic(nn.Module):
    """A patch critic (Isola et al. 2017, section 3.2.2) that looks twice: at a gyrus, and at a lobe around it.

    It is shown the picture and, enlarged, what a 3x3 mean leaves of it: a sharp fold and a blurred one differ by a few
    hundredths of grey, which a critic that sees the picture alone takes thousands of steps to notice. Residual blocks
    without normalisation, as gradient penalties need it (Huang et al. 2024).
    """

    def __init__(self, width: int = 64):
        super().__init__()
        self.first = nn.Conv2d(2 * FOLDED**2, width, 3, padding=1)  # [B, width, H/4, W/4]
        self.near = nn.Sequential(
            PlainResidual(width),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),  # [B, 2 width, H/8, W/8]
            PlainResidual(2 * width),
        )
        self.far = nn.Sequential(
            nn.Conv2d(2 * width, 2 * width, 4, stride=2, padding=1),  # [B, 2 width, H/16, W/16]
            PlainResidual(2 * width),
        )
        self.scores = nn.ModuleList([nn.Conv2d(2 * width, 1, 1) for _ in range(2)])

    def forward(self, images: Tensor) -> list[Tensor]:
        """images [B, 1, H, W] in [0, 1], H and W multiples of 16 -> two maps of scores [B, 1, h, w].

        The higher a score, the more real its neighbourhood.
        """
        mean = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        seen = torch.cat([(images - MIDDLE) / SPREAD, DETAIL * (images - mean)], dim=1)
        near = self.near(self.first(F.pixel_unshuffle(seen, FOLDED)))
        looks = near, self.far(near)
        return [score(F.leaky_relu(x, 0.2)).float() for score, x in zip(self.scores, looks, strict=True)]
