"""How does a GAN draw latents? Generator and critic of residual blocks: coarse first, with noise at every position."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.blocks import PlainResidual

GLOBAL, LOCAL = 128, 16  # random numbers of a sample, and of each of its positions
STYLE, START = 256, 24  # channels


class LatentGenerator(nn.Module):
    """Half the grid's size first, then all of it; what it is told scales and shifts the channels of every block.

    It begins with the mean of each slice level, so that what it draws is a brain, if always the same, from the start.
    Blocks are R3GAN's (Huang et al. 2024), without normalisation; style from a small network and noise at every
    position as in StyleGAN (Karras et al. 2019).
    """

    def __init__(self, grid: tuple[int, int], channels: int, levels: int, width: int = 128):
        super().__init__()
        self.grid, self.half = grid, tuple(-(-side // 2) for side in grid)
        self.z_dim = GLOBAL + LOCAL * grid[0] * grid[1]
        self.level = nn.Embedding(levels + 1, 64)
        self.changed = nn.Embedding(2, 64)
        self.style = nn.Sequential(
            nn.Linear(GLOBAL + 64, STYLE), nn.LeakyReLU(0.2), nn.Linear(STYLE, STYLE), nn.LeakyReLU(0.2)
        )
        self.start = nn.Linear(STYLE, START * self.half[0] * self.half[1])
        self.first = nn.Conv2d(START, width, 3, padding=1)
        self.coarse = nn.ModuleList([PlainResidual(width) for _ in range(2)])  # [B, width, h/2, w/2]
        self.up = nn.Conv2d(width, 4 * width, 3, padding=1)
        self.noise = nn.Conv2d(LOCAL, width, 3, padding=1)
        self.position = nn.Parameter(torch.zeros(1, width, *grid))  # the brains are aligned
        self.fine = nn.ModuleList([PlainResidual(width) for _ in range(4)])  # [B, width, h, w]
        self.told = nn.ModuleList([nn.Linear(STYLE, 2 * width) for _ in (*self.coarse, *self.fine)])
        for layer in self.told:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.register_buffer("mean", torch.zeros(levels + 1, channels, *grid))  # of each level

    def forward(self, z: Tensor, levels: Tensor, changed: Tensor | None = None) -> Tensor:
        """z [B, z_dim] of N(0, 1), levels int64 [B] -> normalised latents [B, channels, h, w].

        `changed`: bool [B], which of them are to look like slices that were varied; None for none.
        """
        changed = torch.zeros_like(levels) if changed is None else changed.long()
        z, noise = z.split([GLOBAL, z.shape[1] - GLOBAL], dim=1)
        style = self.style(torch.cat([z, self.level(levels) + self.changed(changed)], dim=1))
        told = [layer(style)[:, :, None, None].chunk(2, dim=1) for layer in self.told]
        x = self.first(self.start(style).view(-1, START, *self.half))
        for block, (scale, shift) in zip(self.coarse, told, strict=False):
            x = block(x * (1 + scale) + shift)
        x = F.pixel_shuffle(self.up(F.leaky_relu(x, 0.2)), 2)[:, :, : self.grid[0], : self.grid[1]]
        x = x + self.noise(noise.view(-1, LOCAL, *self.grid)) + self.position
        for block, (scale, shift) in zip(self.fine, told[len(self.coarse) :], strict=True):
            x = block(x * (1 + scale) + shift)
        return self.mean[levels] + self.last(F.leaky_relu(x, 0.2))


class LatentCritic(nn.Module):
    """A residual network without normalisation, told position, slice level, and whether a slice was varied.

    A score depends on its own image alone, as gradient penalties need it; what it is told enters by projection (Miyato
    and Koyama 2018).
    """

    def __init__(self, grid: tuple[int, int], channels: int, levels: int, width: int = 96):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, width, *grid))
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.layers = nn.Sequential(
            PlainResidual(width),
            PlainResidual(width),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),  # [B, 2 width, h/2, w/2]
            PlainResidual(2 * width),
            PlainResidual(2 * width),
            nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1),  # [B, 4 width, h/4, w/4]
            PlainResidual(4 * width),
            nn.LeakyReLU(0.2),
        )
        self.score = nn.Linear(4 * width * (grid[0] // 4) * (grid[1] // 4), 1)
        self.level = nn.Embedding(levels + 1, 4 * width)
        self.changed = nn.Embedding(2, 4 * width)
        for embedding in (self.level, self.changed):
            nn.init.normal_(embedding.weight, 0, 0.1)

    def forward(self, latents: Tensor, levels: Tensor, changed: Tensor) -> Tensor:
        """latents [B, channels, h, w], levels int64 [B], changed bool [B] -> logits [B]: the higher, the more real."""
        features = self.layers(self.first(latents) + self.position)
        told = self.level(levels) + self.changed(changed.long())
        return (self.score(features.flatten(1))[:, 0] + (features.mean(dim=(2, 3)) * told).sum(1)).float()
