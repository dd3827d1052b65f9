"""What is the course baseline's GAN? The DCGAN networks (Radford et al. 2016) that the default is compared with."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules import DCGAN


class BaselineGAN(DCGAN):
    """The course baseline's DCGAN: it takes no notice of slice levels, and maps each latent channel to [-1, 1]."""

    title = "course baseline's DCGAN"
    noise_scale = 1.0

    def make_generator(self) -> nn.Module:
        return BaselineGenerator(self.grid, self.channels)

    def make_discriminator(self) -> nn.Module:
        return BaselineDiscriminator(self.grid, self.channels)

    @torch.no_grad()
    def fit(self, latents: Tensor, levels: Tensor) -> None:
        self.mean.copy_(latents.mean(dim=(0, 2, 3), keepdim=True))
        self.scale.copy_((latents - self.mean).abs().amax(dim=(0, 2, 3), keepdim=True).clamp_min(1e-6))


class BaselineGenerator(nn.Module):
    """DCGAN generator (Radford et al. 2016) of latents in [-1, 1]: 3,868,544 parameters for a 64x64 grid.

    The first layer makes the smallest grid that four doublings bring to `grid` or beyond; what is beyond is cut
    off evenly.
    """

    def __init__(self, grid: tuple[int, int] = (64, 64), channels: int = 64, z_dim: int = 128):
        super().__init__()
        self.grid, self.z_dim = grid, z_dim

        def block(n_in: int, n_out: int, **conv) -> list[nn.Module]:
            conv = nn.ConvTranspose2d(n_in, n_out, bias=False, **conv)
            return [conv, nn.BatchNorm2d(n_out), nn.LeakyReLU(0.2)]

        start = tuple(-(-side // 16) for side in grid)
        self.layers = nn.Sequential(
            *block(z_dim, 512, kernel_size=start),  # [B, 512, h/16, w/16]
            *block(512, 256, kernel_size=4, stride=2, padding=1),  # [B, 256, h/8, w/8]
            *block(256, 128, kernel_size=4, stride=2, padding=1),  # [B, 128, h/4, w/4]
            *block(128, 64, kernel_size=4, stride=2, padding=1),  # [B, 64, h/2, w/2]
            nn.ConvTranspose2d(64, channels, 4, stride=2, padding=1, bias=False),  # [B, channels, h, w]
            nn.Tanh(),
        )
        self.apply(_dcgan_init)

    def forward(self, z: Tensor, *conditioning: Tensor) -> Tensor:
        """z [B, z_dim] of N(0, 1) -> latents [B, channels, h, w] in [-1, 1]; the conditioning is left out."""
        latents = self.layers(z[:, :, None, None])
        top, left = ((made - side) // 2 for made, side in zip(latents.shape[2:], self.grid, strict=True))
        return latents[:, :, top : top + self.grid[0], left : left + self.grid[1]]


class BaselineDiscriminator(nn.Module):
    """DCGAN discriminator: 725,952 parameters for a 64x64 grid. Its outputs are logits."""

    def __init__(self, grid: tuple[int, int] = (64, 64), channels: int = 64, width: int = 32):
        super().__init__()

        def block(n_in: int, n_out: int) -> list[nn.Module]:
            conv = nn.Conv2d(n_in, n_out, 4, stride=2, padding=1, bias=False)
            return [conv, nn.BatchNorm2d(n_out), nn.LeakyReLU(0.2)]

        self.layers = nn.Sequential(
            *block(channels, width),  # [B, width, h/2, w/2]
            *block(width, 2 * width),  # [B, 2 width, h/4, w/4]
            *block(2 * width, 4 * width),  # [B, 4 width, h/8, w/8]
            *block(4 * width, 8 * width),  # [B, 8 width, h/16, w/16]
        )
        self.score = nn.Conv2d(8 * width, 1, tuple(max(side // 16, 1) for side in grid), bias=False)
        self.apply(_dcgan_init)

    def forward(self, latents: Tensor, *conditioning: Tensor) -> Tensor:
        """latents [B, channels, h, w] -> logits [B]: above 0 means real."""
        below, beside = (max(16 - side, 0) for side in latents.shape[2:])  # four halvings need 16 a side
        return self.score(self.layers(F.pad(latents, (0, beside, 0, below)))).mean(dim=(1, 2, 3))


def _dcgan_init(module: nn.Module) -> None:
    """Weights from N(0, 0.02), batch-norm scales from N(1, 0.02) (Radford et al. 2016, section 4)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1, 0.02)
