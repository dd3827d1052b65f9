"""How does a GAN refine a draft? The generator and the discriminator of the default GAN over latents."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.blocks import PlainResidual
from networks.gaussian import LatentGaussian


class Refiner(nn.Module):
    """Generator: a Gaussian's draft of the latents, and a residual network that refines it.

    The draft has a brain's shape from the start, so that what is left to learn is what a Gaussian lacks.
    """

    def __init__(self, grid: tuple[int, int], channels: int, levels: int, width: int, components: int):
        super().__init__()
        self.draft = LatentGaussian((channels, *grid), levels, components)
        self.z_dim = self.draft.z_dim
        self.position = nn.Parameter(torch.zeros(1, width, *grid))  # the brains are aligned
        self.level = nn.Embedding(levels + 1, width)
        self.first = nn.Conv2d(2 * channels, width, 3, padding=1)
        self.layers = nn.Sequential(*[PlainResidual(width) for _ in range(3)])
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.normal_(self.level.weight, 0, 0.1)
        nn.init.zeros_(self.last.weight)  # training starts from the draft
        nn.init.zeros_(self.last.bias)

    def forward(self, z: Tensor, levels: Tensor) -> Tensor:
        """z [B, z_dim] of N(0, 1), levels int64 [B] -> normalised latents [B, channels, h, w]."""
        smooth, rest = self.draft(z, levels)
        x = self.first(torch.cat([smooth, rest], dim=1)) + self.level(levels)[:, :, None, None] + self.position
        return smooth + rest + self.last(F.leaky_relu(self.layers(x), 0.2))


class Critic(nn.Module):
    """Discriminator: a residual network without normalisation, told position and slice level.

    A score depends on its own image alone, as gradient penalties need it; the level enters by projection (Miyato
    and Koyama 2018).
    """

    def __init__(self, grid: tuple[int, int], channels: int, levels: int, width: int = 64):
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
        nn.init.normal_(self.level.weight, 0, 0.1)

    def forward(self, latents: Tensor, levels: Tensor) -> Tensor:
        """latents [B, channels, h, w], levels int64 [B] -> logits [B]: the higher, the more real."""
        features = self.layers(self.first(latents) + self.position)
        level = (features.mean(dim=(2, 3)) * self.level(levels)).sum(1)
        return (self.score(features.flatten(1))[:, 0] + level).float()
