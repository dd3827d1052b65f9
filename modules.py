"""What are the networks? Autoencoders with discrete codes, and priors over those codes.

Autoencoder and prior meet only in the codes: a list of integer grids `[B, h, w]` in `[0, K)`.

    autoencoder.encode(images)    -> codes
    autoencoder.decode(codes)     -> images
    autoencoder(images)           -> reconstruction, codes, latent loss
    prior.sample(seeds, levels)   -> codes, one sample a seed

Images are float32 `[B, 1, H, W]` in [0, 1]. The decoders are linear at the end: `decode` clamps to [0, 1],
the training forward does not, since a clamp has no gradient outside.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.blocks import ClassicResidual, Residual
from networks.decoder import PrefixDecoder
from networks.gan import LatentCritic, LatentGenerator
from networks.prior import Codes, Prior, draw_levels, level_shares, seeded_rows
from networks.quantizer import VectorQuantizer

# ----------------------------------------------------------------------------------------------------
# Autoencoders


class Autoencoder(nn.Module, ABC):
    """What all autoencoders can do with codes.

    Attributes:
        arguments: plain values, every size of the network among them; with these it is built again.
        quantizers: one for each code grid, coarse to fine.
        downsample: image pixels, in height and in width, per position of the finest grid.
        factor: what the images' height and width must be multiples of.
        depth: codes per position, of which the last ones may be left out: a decoder gets by with fewer (`decode`).
    """

    quantizers: nn.ModuleList
    downsample: int
    factor: int
    depth: int = 1

    def __init__(self, **arguments: Any):
        super().__init__()
        self.arguments = arguments

    @abstractmethod
    def forward(self, images: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Codes, Tensor]:
        """images [B, 1, H, W] in [0, 1] -> reconstruction [B, 1, H, W] (not clamped), codes, latent loss (a scalar).

        `kept` int64 [B] in [1, depth]: from how many of its codes per position, coarse to fine, each is reconstructed;
        None for all.
        """

    @abstractmethod
    def grid_shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(h, w) of each code grid of an image of this size, whose sides are multiples of `factor`."""

    def latents(self, images: Tensor) -> Tensor:
        """images [B, 1, H, W] in [0, 1] -> what the encoder says of them, [B, C, h, w]: `snap` makes it codes."""
        return self.encoder(images).float()

    @abstractmethod
    def embed(self, codes: Codes) -> Tensor:
        """Code grids -> z_q float32 [B, C, h, w] on the finest grid: all that the decoder sees."""

    @abstractmethod
    def snap(self, z: Tensor) -> Codes:
        """z [B, C, h, w] -> the codes whose `embed` is nearest to it, greedily from grid to grid."""

    @abstractmethod
    def decode_latents(self, z_q: Tensor, kept: int | None = None) -> Tensor:
        """z_q [B, C, h, w], embedded from the first `kept` codes per position (None: all) -> images (not clamped)."""

    def encode(self, images: Tensor) -> Codes:
        """images [B, 1, H, W] in [0, 1] -> code grids int64 [B, h, w], coarse to fine."""
        return self(images)[1]

    def decode(self, codes: Codes) -> Tensor:
        """Code grids -> images [B, 1, H, W], float32 in [0, 1]. Where there is `depth`, its first grids will do."""
        return self.decode_latents(self.embed(codes), len(codes)).float().clamp(0, 1)

    @property
    def codebook_sizes(self) -> list[int]:
        """K of each code grid."""
        return [quantizer.codebook_size for quantizer in self.quantizers]

    def bypass_quantizers(self, bypass: bool) -> None:
        """Let latents through unquantised (see `VectorQuantizer`), or stop doing so."""
        for quantizer in self.quantizers:
            quantizer.bypass = bypass

    @torch.no_grad()
    def initialise_codebooks(self, images: Tensor) -> None:
        """k-means for each codebook on the latents that it will see for `images` [B, 1, H, W], in order."""
        training = self.training
        self.eval()  # or the codebooks would already follow these passes
        for quantizer in self.quantizers:
            seen: list[Tensor] = []
            hook = quantizer.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
            self.encode(images)
            hook.remove()
            quantizer.initialise(seen[0])
        self.train(training)


class VQVAE(Autoencoder):
    """VQ-VAE (van den Oord et al. 2017) with the layers of the course baseline: 222,465 parameters.

    256x256 slices become 64x64 codes of `codebook_size`, each a vector of 64.
    """

    factor = downsample = 4

    def __init__(self, codebook_size: int = 512, beta: float = 0.25, ema: bool = True):
        super().__init__(codebook_size=codebook_size, beta=beta, ema=ema)
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 4, stride=2, padding=1),  # [B, 32, H/2, W/2]
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2, padding=1),  # [B, 64, H/4, W/4]
            ClassicResidual(64, 32),
            ClassicResidual(64, 32),
            nn.Conv2d(64, 64, 1),
        )
        self.quantizers = nn.ModuleList([VectorQuantizer(codebook_size, 64, beta, ema=ema)])
        self.decoder = nn.Sequential(
            nn.Conv2d(64, 64, 3, padding=1),  # [B, 64, H/4, W/4]
            ClassicResidual(64, 32),
            ClassicResidual(64, 32),
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),  # [B, 32, H/2, W/2]
            nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1),  # [B, 1, H, W]
        )

    def forward(self, images: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Codes, Tensor]:
        z_q, codes, loss = self.quantizers[0](self.encoder(images))
        return self.decoder(z_q), [codes], loss

    def grid_shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        return [(height // 4, width // 4)]

    def embed(self, codes: Codes) -> Tensor:
        return self.quantizers[0].embed(codes[0])

    def snap(self, z: Tensor) -> Codes:
        return [nearest_grid(self.quantizers[0], z)]

    def decode_latents(self, z_q: Tensor, kept: int | None = None) -> Tensor:
        return self.decoder(z_q)


def nearest_grid(quantizer: VectorQuantizer, z: Tensor) -> Tensor:
    """Codes int64 [B, h, w] nearest to the latents z [B, D, h, w]."""
    rows = z.float().movedim(1, -1)
    return quantizer.nearest(rows.flatten(0, -2)).view(rows.shape[:-1])


class VQVAE2(Autoencoder):
    """Two-level VQ-VAE-2 (Razavi et al. 2019, algorithm 1): the bottom grid is coded given the top grid.

    256x256 slices become a 32x32 top and a 64x64 bottom grid. The bottom encoder sees the decoded top, the
    decoder sees both; this is not two autoencoders side by side.
    """

    downsample, factor = 4, 8

    def __init__(self, codebook_size: int = 512, beta: float = 0.25, ema: bool = True):
        super().__init__(codebook_size=codebook_size, beta=beta, ema=ema)
        width, dim = 128, 64
        self.dim = dim

        def residuals() -> list[nn.Module]:
            return [ClassicResidual(width, 32), ClassicResidual(width, 32), nn.ReLU()]

        self.encoder_bottom = nn.Sequential(
            nn.Conv2d(1, width // 2, 4, stride=2, padding=1),  # [B, width/2, H/2, W/2]
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 4, stride=2, padding=1),  # [B, width, H/4, W/4]
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            *residuals(),
        )
        self.encoder_top = nn.Sequential(
            nn.Conv2d(width, width // 2, 4, stride=2, padding=1),  # [B, width/2, H/8, W/8]
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 3, padding=1),
            *residuals(),
        )
        self.to_top = nn.Conv2d(width, dim, 1)
        self.decoder_top = nn.Sequential(
            nn.Conv2d(dim, width, 3, padding=1),
            *residuals(),
            nn.ConvTranspose2d(width, dim, 4, stride=2, padding=1),  # [B, dim, H/4, W/4]
        )
        self.to_bottom = nn.Conv2d(dim + width, dim, 1)
        self.quantizers = nn.ModuleList([VectorQuantizer(codebook_size, dim, beta, ema=ema) for _ in range(2)])
        self.upsample_top = nn.ConvTranspose2d(dim, dim, 4, stride=2, padding=1)  # [B, dim, H/4, W/4]
        self.decoder = nn.Sequential(
            nn.Conv2d(2 * dim, width, 3, padding=1),
            *residuals(),
            nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1),  # [B, width/2, H/2, W/2]
            nn.ReLU(),
            nn.ConvTranspose2d(width // 2, 1, 4, stride=2, padding=1),  # [B, 1, H, W]
        )

    def forward(self, images: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Codes, Tensor]:
        features, top = self._top(images)
        top, top_codes, top_loss = self.quantizers[0](top)
        bottom, bottom_codes, bottom_loss = self.quantizers[1](self._bottom(features, top))
        return self._decode(top, bottom), [top_codes, bottom_codes], top_loss + bottom_loss

    def _top(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The bottom encoder's features, and the top grid's latents."""
        features = self.encoder_bottom(images)
        return features, self.to_top(self.encoder_top(features))

    def _bottom(self, features: Tensor, top: Tensor) -> Tensor:
        """The bottom grid's latents, given the top grid's quantised ones."""
        return self.to_bottom(torch.cat([self.decoder_top(top), features], dim=1))

    def latents(self, images: Tensor) -> Tensor:
        features, top = self._top(images)
        bottom = self._bottom(features, self.quantizers[0](top)[0])
        return torch.cat([F.interpolate(top.float(), scale_factor=2), bottom.float()], dim=1)

    def _decode(self, top: Tensor, bottom: Tensor) -> Tensor:
        return self.decoder(torch.cat([self.upsample_top(top), bottom], dim=1))

    def grid_shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        return [(height // 8, width // 8), (height // 4, width // 4)]

    def embed(self, codes: Codes) -> Tensor:
        top, bottom = (quantizer.embed(grid) for quantizer, grid in zip(self.quantizers, codes, strict=True))
        return torch.cat([F.interpolate(top, scale_factor=2), bottom], dim=1)

    def snap(self, z: Tensor) -> Codes:
        top, bottom = z.split(self.dim, dim=1)
        return [
            nearest_grid(self.quantizers[0], F.avg_pool2d(top, 2)),
            nearest_grid(self.quantizers[1], bottom),
        ]

    def decode_latents(self, z_q: Tensor, kept: int | None = None) -> Tensor:
        top, bottom = z_q.split(self.dim, dim=1)
        return self._decode(F.avg_pool2d(top, 2), bottom)


class RQVAE(Autoencoder):
    """Residual-quantised autoencoder (Lee et al. 2022, eqs. 2-4): `depth` codes per position, coarse to fine.

    The second codebook quantises what the first one left, and so on: two codebooks of 512 tell 262,144 vectors
    apart. Few positions with many codes each suit a prior, which has to see far less of a grid at once. Pixels are
    folded into channels at once, four by four, so that the width works on small grids only; a `downsample` of 8 or
    16 halves the grid once or twice more, at twice the width.

    The first codes of each position are a picture, too, at a lower rate: the decoder is told how many there are, and
    trained with fewer at times (quantiser dropout, Zeghidour et al. 2021, section III.C). What the first code leaves
    open `networks.painter` paints.
    """

    def __init__(
        self,
        codebook_size: int = 512,
        depth: int = 8,
        downsample: int = 8,
        beta: float = 0.25,
        ema: bool = True,
        width: int = 64,
        blocks: int = 2,
        dim: int = 32,
    ):
        sizes = {"width": width, "blocks": blocks, "dim": dim}
        super().__init__(codebook_size=codebook_size, depth=depth, downsample=downsample, beta=beta, ema=ema, **sizes)
        self.depth = depth
        self.factor = self.downsample = downsample
        widths = [width, 2 * width, 2 * width][: downsample.bit_length() - 2]  # at 1/4, 1/8, 1/16 of the size
        encoder: list[nn.Module] = [nn.PixelUnshuffle(4), nn.Conv2d(16, width, 3, padding=1)]
        for n_in, n_out in pairwise(widths):
            encoder += [Residual(n_in), nn.Conv2d(n_in, n_out, 4, stride=2, padding=1)]
        encoder += [Residual(widths[-1]) for _ in range(blocks)]
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(widths[-1], dim, 1))
        self.quantizers = nn.ModuleList([VectorQuantizer(codebook_size, dim, beta, ema=ema) for _ in range(depth)])
        self.decoder = PrefixDecoder(dim, widths[::-1], blocks, depth)

    def forward(self, images: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Codes, Tensor]:
        z_q, codes, loss = self.quantise(images, kept)
        return self.decoder(z_q, kept), codes, loss

    def quantise(self, images: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Codes, Tensor]:
        """images [B, 1, H, W] -> z_q [B, dim, h, w] of the first `kept` codes, all codes, latent loss."""
        z = self.latents(images)  # [B, dim, H / downsample, W / downsample]
        rest, rests, codes, losses = z, [], [], []
        for quantizer in self.quantizers:
            quantised, grid, loss = quantizer(rest)
            rest = rest - quantised.detach()
            rests.append(rest)
            codes.append(grid)
            losses.append(loss)
        left_out = rest if kept is None else torch.stack(rests)[kept - 1, torch.arange(len(z), device=z.device)]
        z_q = z - left_out.detach()  # the value of the kept code vectors' sum, the gradient of z
        return z_q, codes, torch.stack(losses).mean()

    def grid_shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        return [(height // self.downsample, width // self.downsample)] * self.depth

    def embed(self, codes: Codes) -> Tensor:
        return sum(quantizer.embed(grid) for quantizer, grid in zip(self.quantizers, codes, strict=False))

    def snap(self, z: Tensor) -> Codes:
        codes = []
        for quantizer in self.quantizers:
            codes.append(nearest_grid(quantizer, z))
            z = z - quantizer.embed(codes[-1])
        return codes

    def encode(self, images: Tensor) -> Codes:
        return self.quantise(images)[1]

    def decode_latents(self, z_q: Tensor, kept: int | None = None) -> Tensor:
        return self.decoder(z_q, torch.full((len(z_q),), kept or self.depth, device=z_q.device))


# ----------------------------------------------------------------------------------------------------
# DCGAN

SPREAD = (
    1.3  # of a sample's random numbers, times that of training's: nearer ones are too often nearly a training slice
)
FLAT = 0.3  # of the largest deviation of latents along an axis: smaller ones count as that large


class Generator(nn.Module):
    """DCGAN generator (Radford et al. 2016) of latents in [-1, 1]: 3,868,544 parameters for a 64x64 grid.

    The first layer makes the smallest grid that four doublings bring to `grid` or beyond; what is beyond is cut
    off evenly. It takes no notice of slice levels, nor of whether a slice was varied.
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

    def forward(self, z: Tensor, levels: Tensor, changed: Tensor | None = None) -> Tensor:
        """z [B, z_dim] of N(0, 1), levels int64 [B] -> latents [B, channels, h, w] in [-1, 1]."""
        latents = self.layers(z[:, :, None, None])
        top, left = ((made - side) // 2 for made, side in zip(latents.shape[2:], self.grid, strict=True))
        return latents[:, :, top : top + self.grid[0], left : left + self.grid[1]]


class Discriminator(nn.Module):
    """DCGAN discriminator: 725,952 parameters for a 64x64 grid. Logits out, since the losses take them as such.

    It takes no notice of slice levels, nor of whether a slice was varied.
    """

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

    def forward(self, latents: Tensor, levels: Tensor, changed: Tensor | None = None) -> Tensor:
        """latents [B, channels, h, w], levels int64 [B] -> logits [B]: above 0 means real."""
        below, beside = (max(16 - side, 0) for side in latents.shape[2:])  # four halvings need 16 a side
        return self.score(self.layers(F.pad(latents, (0, beside, 0, below)))).mean(dim=(1, 2, 3))


def _dcgan_init(module: nn.Module) -> None:
    """Weights from N(0, 0.02), batch-norm scales from N(1, 0.02) (Radford et al. 2016, section 4)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1, 0.02)


class DCGAN(Prior):
    """A GAN over the latents of an autoencoder, as a prior over its codes.

    Generator and discriminator live in normalised latents, so that the discriminator can't win by scale. `sample`
    maps back and snaps to the codebooks, so the decoder only ever sees code vectors.

    `network` "baseline" is the course baseline's pair, which knows no slice levels; each channel is mapped to [-1, 1].
    "residual" is `LatentGenerator` and `LatentCritic`; the channels are rotated to their principal axes and scaled to
    deviation 1. `codes`: how many grids of codes are drawn, coarse to fine. `width`: of the residual generator.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        grid: tuple[int, int],
        channels: int,
        levels: int,
        codes: int,
        network: str = "residual",
        width: int = 128,
    ):
        arguments = {"grid": list(grid), "channels": channels, "levels": levels, "codes": codes, "network": network}
        super().__init__(levels, arguments | {"width": width})
        self.grid, self.channels, self.codes, self.network = tuple(grid), channels, codes, network
        self.title = {"residual": "DCGAN", "baseline": "course baseline's DCGAN"}[network]
        if network == "residual":
            self.generator = LatentGenerator(self.grid, channels, levels, width)
        else:
            self.generator = Generator(self.grid, channels)
        self.spread = SPREAD if network == "residual" else 1.0
        self.spoken = (autoencoder,)  # whose codes it draws; in a tuple, since it is no part of this network
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("axes", torch.eye(channels))  # a column is an axis
        self.register_buffer("scale", torch.ones(1, channels, 1, 1))

    def make_discriminator(self) -> nn.Module:
        """The opponent to train the generator with; sampling needs none."""
        if self.network == "baseline":
            return Discriminator(self.grid, self.channels)
        return LatentCritic(self.grid, self.channels, self.levels)

    @torch.no_grad()
    def fit(self, latents: Tensor, levels: Tensor) -> None:
        """Take normalisation and means from latents [N, C, h, w] of levels int64 [N], and how often these occur."""
        self.level_share.copy_(level_shares(levels, self.levels))
        self.mean.copy_(latents.mean(dim=(0, 2, 3), keepdim=True))
        centred = latents - self.mean
        if self.network == "baseline":
            self.scale.copy_(centred.abs().amax(dim=(0, 2, 3), keepdim=True).clamp_min(1e-6))
            return
        variance, axes = torch.linalg.eigh(torch.cov(centred.movedim(1, 0).flatten(1).double()))
        self.axes.copy_(axes)
        deviation = variance.clamp_min(0).sqrt()  # where it is small, little is said of the nearest code: it stays so
        self.scale.copy_(deviation.clamp_min(FLAT * deviation.max())[:, None, None])
        normal = self.normalise(latents)
        for level in levels.unique().tolist():
            self.generator.mean[level] = normal[levels == level].mean(0)

    def normalise(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> what the generator makes."""
        with torch.autocast(latents.device.type, enabled=False):
            return torch.einsum("bchw,cd->bdhw", latents - self.mean, self.axes) / self.scale

    def denormalise(self, made: Tensor) -> Tensor:
        """What the generator makes -> latents [B, C, h, w]."""
        with torch.autocast(made.device.type, enabled=False):
            return torch.einsum("bdhw,cd->bchw", made.float() * self.scale, self.axes) + self.mean

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """z [len(seeds), z_dim] of N(0, 1) times `spread`; a row depends on its own seed only."""
        return self.spread * seeded_rows(seeds, self.generator.z_dim, torch.randn).to(self.mean.device)

    @torch.no_grad()
    def generate(self, z: Tensor, levels: Tensor) -> Codes:
        """z [B, z_dim], levels int64 [B] -> codes. In eval mode only: batch norm would mix the samples."""
        return self.spoken[0].snap(self.denormalise(self.generator(z, levels)))[: self.codes]

    def sample(self, seeds: Sequence[int], levels: Tensor | None = None) -> Codes:
        if levels is None:
            levels = draw_levels(seeds, self.level_share)
        return self.generate(self.noise(seeds), levels.to(self.mean.device))


AUTOENCODERS = {"vqvae": VQVAE, "vqvae2": VQVAE2, "rqvae": RQVAE}
