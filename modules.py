"""What are the networks? The default method whole: a VQ-VAE, its residual quantiser, and a GAN prior over its codes.

Autoencoder and prior meet only in the codes: a list of integer grids `[B, h, w]` in `[0, K)`.

    autoencoder.encode(images)    -> codes
    autoencoder.decode(codes)     -> images
    autoencoder(images)           -> reconstruction, codes, latent loss
    prior.sample(seeds, levels)   -> codes, one sample per seed

Images are float32 `[B, 1, H, W]` in [0, 1]. Decoders end in a linear layer: `decode` clamps to [0, 1]; the training
forward pass does not, since a clamp has no gradient outside its range. The other networks are in `networks/`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

Codes = list[Tensor]  # int64 grids [B, h, w]: one for VQVAE, top and bottom for VQVAE2, one per depth for RQVAE

# ----------------------------------------------------------------------------------------------------
# Quantiser


class VectorQuantizer(nn.Module):
    """Nearest-code quantisation with a straight-through gradient (van den Oord et al. 2017, eqs. 1-3), `depth` times.

    With `depth` above 1 each codebook quantises the residual that the one before it left (Lee et al. 2022, eqs. 2-4).
    Codebooks follow the encoder by exponential moving averages (van den Oord et al. 2017, appendix A.1), or learn by
    the gradient of the codebook loss when `ema` is false. A codebook that starts at random dies, and so does one that
    a young encoder runs away from. So the first training steps `bypass` quantisation, then `initialise` sets the
    codebooks by k-means. From then on each code whose share of the latents falls below `DEAD` restarts at a latent
    that is poorly represented.

    Everything runs in float32, also under autocast: in bf16 1-3 % of the assignments change.
    """

    DEAD, RESTART = 0.05, 0.1  # shares of the latents, in units of 1 / codebook_size

    def __init__(
        self, codebook_size: int, dim: int, depth: int = 1, beta: float = 0.25, decay: float = 0.97, ema: bool = True
    ):
        super().__init__()
        self.codebook_size, self.dim, self.depth = codebook_size, dim, depth
        self.beta, self.decay, self.ema, self.bypass = beta, decay, ema, False
        codebooks = torch.randn(depth, codebook_size, dim)
        if ema:
            self.register_buffer("codebooks", codebooks)
            self.register_buffer("cluster_size", torch.ones(depth, codebook_size))  # the mean is 1
            self.register_buffer("cluster_sum", codebooks.clone())
        else:
            self.codebooks = nn.Parameter(codebooks)
        self.register_buffer("usage", torch.zeros(depth, codebook_size))  # latents per code since it was last zeroed

    def forward(self, z_e: Tensor, num_codes: Tensor | None = None) -> tuple[Tensor, Codes, Tensor]:
        """Quantise z_e float [B, D, h, w].

        Args:
            num_codes: int64 [B] in [1, depth], how many codes per position make up each z_q; None for all.

        Returns:
            z_q float32 [B, D, h, w], whose gradient goes straight to z_e; all codes; the latent loss: beta *
            commitment, plus the codebook loss when the codebooks learn by gradient. Under `bypass`: z_e, zeros, 0.
        """
        batch, _, height, width = z_e.shape
        if self.bypass:
            codes = z_e.new_zeros(self.depth, batch, height, width, dtype=torch.long)
            return z_e.float(), list(codes), z_e.new_zeros(())
        with torch.autocast(z_e.device.type, enabled=False):
            flat = z_e.float().movedim(1, -1).flatten(0, -2)  # [N, D]: channels last, N = B*h*w latents
            codes, residuals = self.quantise(flat.detach())  # [depth, N], [depth + 1, N, D]
            approximations = flat.detach() - residuals[1:]  # by 1, 2, ... codes: [depth, N, D]
            loss = self.beta * F.mse_loss(flat.expand_as(approximations), approximations)
            if not self.ema:
                vectors = [F.embedding(*pair) for pair in zip(codes, self.codebooks, strict=True)]
                loss = loss + F.mse_loss(torch.stack(vectors), residuals[:-1])
            if self.training:  # after the look-up: no batch is quantised by codebooks that it has moved
                self._follow(codes, residuals)
            grids = residuals[1:].view(self.depth, batch, height, width, self.dim)
            left = grids[-1] if num_codes is None else grids[num_codes - 1, torch.arange(batch, device=z_e.device)]
            z_q = z_e.float() - left.movedim(-1, 1)  # the value of the code vectors' sum, the gradient of z_e
        return z_q, list(codes.view(self.depth, batch, height, width)), loss

    def quantise(self, flat: Tensor, depth: int | None = None) -> tuple[Tensor, Tensor]:
        """Latents float32 [N, D] -> codes int64 [depth, N], and residuals [depth + 1, N, D]: before and after each."""
        codes, residuals = [], [flat]
        for codebook in self.codebooks.detach()[:depth]:
            codes.append(nearest(residuals[-1], codebook))
            residuals.append(residuals[-1] - F.embedding(codes[-1], codebook))
        return torch.stack(codes), torch.stack(residuals)

    def encode(self, z_e: Tensor, depth: int | None = None) -> Codes:
        """z_e [B, D, h, w] -> codes int64 [B, h, w] for each codebook, or the first `depth`, coarse to fine."""
        codes, _ = self.quantise(z_e.float().movedim(1, -1).flatten(0, -2), depth)
        return list(codes.view(-1, len(z_e), *z_e.shape[2:]))

    def embed(self, codes: Codes) -> Tensor:
        """Code grids [B, h, w], of all codebooks or the first few -> the sum of their code vectors, [B, D, h, w]."""
        return sum(F.embedding(*pair) for pair in zip(codes, self.codebooks, strict=False)).movedim(-1, 1)

    @torch.no_grad()
    def initialise(self, z_e: Tensor) -> None:
        """Set the codebooks, one after the other, by k-means on latents z_e [B, D, h, w]."""
        residual = z_e.float().movedim(1, -1).flatten(0, -2)
        for depth in range(self.depth):
            centres, shares = kmeans(residual, self.codebook_size)
            self.codebooks[depth] = broadcast(centres)
            if self.ema:
                self.cluster_size[depth] = broadcast(shares).clamp_min(self.DEAD)
                self.cluster_sum[depth] = self.codebooks[depth] * self.cluster_size[depth, :, None]
            residual = residual - F.embedding(nearest(residual, self.codebooks[depth]), self.codebooks[depth])

    @torch.no_grad()
    def _follow(self, codes: Tensor, residuals: Tensor) -> None:
        """Move the codebooks towards the latents of this batch; all processes of a group move them alike."""
        rows = codes + self.codebook_size * torch.arange(self.depth, device=codes.device)[:, None]
        tally = count_and_sum(rows.flatten(), residuals[:-1].flatten(0, 1), self.depth * self.codebook_size)
        tally = tally.view(self.depth, self.codebook_size, 1 + self.dim)
        if dist.is_initialized():
            dist.all_reduce(tally)
        self.usage += tally[..., 0]
        if not self.ema:
            return
        shares = tally * (self.codebook_size / tally[..., :1].sum(1, keepdim=True))
        self.cluster_size.lerp_(shares[..., 0], 1 - self.decay)
        self.cluster_sum.lerp_(shares[..., 1:], 1 - self.decay)
        dead = self.cluster_size < self.DEAD
        rows = draw_in_proportion(self.codebook_size, residuals[1:].square().sum(2))  # [depth, K]
        restart = broadcast(residuals[:-1].gather(1, rows[..., None].expand(-1, -1, self.dim)))
        self.cluster_sum.copy_(torch.where(dead[..., None], self.RESTART * restart, self.cluster_sum))
        self.cluster_size.masked_fill_(dead, self.RESTART)
        self.codebooks.copy_(self.cluster_sum / self.cluster_size[..., None])


def nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """Index int64 [N] of the code vector of codebook [K, D] that is nearest to each row of x float32 [N, D].

    argmin |x - e|^2 = argmax x.e - |e|^2 / 2: one matrix product, no square root, no |x|^2.
    """
    table, bias = codebook.t(), -0.5 * codebook.square().sum(1)
    rows = 512 if x.device.type == "cpu" else len(x)  # the scores stay in the CPU's cache
    with torch.autocast(x.device.type, enabled=False):  # and `max` finds the best in half of `argmax`'s time
        codes = [torch.addmm(bias, part, table).max(1).indices for part in x.split(rows)]
    return codes[0] if len(codes) == 1 else torch.cat(codes)


def kmeans(x: Tensor, k: int, iterations: int = 10) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm on the rows of x [N, D]: centres [k, D], and shares [k] of the rows, in units of 1 / k.

    A centre without rows moves to a row that is far from its own centre.
    """
    centres = x[torch.randint(len(x), (k,), device=x.device)]
    for _ in range(iterations):
        codes = nearest(x, centres)
        counts, sums = count_and_sum(codes, x, k).split([1, x.shape[1]], dim=1)
        far = x[draw_in_proportion(k, (x - F.embedding(codes, centres)).square().sum(1))]
        centres = torch.where(counts > 0, sums / counts, far)
    return centres, counts[:, 0] * (k / len(x))


def count_and_sum(codes: Tensor, x: Tensor, k: int) -> Tensor:
    """How many rows of x [N, D] have each of k codes int64 [N], and beside that the rows' sum: [k, 1 + D].

    Not by `bincount`: the size of its result depends on the codes, and a GPU would have to be waited for.
    """
    counted = torch.cat([x.new_ones(len(x), 1), x], dim=1)
    return x.new_zeros(k, counted.shape[1]).index_add_(0, codes, counted)


def draw_in_proportion(n: int, weights: Tensor) -> Tensor:
    """`n` indices [..., n] drawn with probability proportional to weights [..., N], as k-means++ does."""
    cumulative = weights.double().cumsum(-1)
    uniform = torch.rand(*weights.shape[:-1], n, device=weights.device, dtype=torch.float64)
    return torch.searchsorted(cumulative, uniform * cumulative[..., -1:]).clamp_max(weights.shape[-1] - 1)


def broadcast(x: Tensor) -> Tensor:
    """The first process's `x`, in every process of a group."""
    if dist.is_initialized():
        dist.broadcast(x := x.contiguous(), 0)
    return x


# ----------------------------------------------------------------------------------------------------
# Blocks


class ClassicResidual(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))), without biases, as in the original VQ-VAE (van den Oord et al. 2017)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.conv3 = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.conv1 = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv1(F.relu(self.conv3(F.relu(x))))


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each position (as in ConvNeXt, Liu et al. 2022).

    With statistics over positions, as in a GroupNorm, every pixel would depend on the whole canvas: on how much black
    surrounds a brain, and on how bright the rest is.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> the same shape."""
        return F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias).movedim(-1, 1)


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with `ChannelNorm`."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            ChannelNorm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            ChannelNorm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class PlainResidual(nn.Module):
    """x + conv(lrelu(conv(lrelu(x)))) without normalisation, small at the start (Huang et al. 2024, section 4)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2.weight.data *= 0.1
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(x, 0.2)), 0.2))


# ----------------------------------------------------------------------------------------------------
# Autoencoders


class Autoencoder(nn.Module):
    """encoder -> quantiser -> decoder, with one grid of `depth` codes per position.

    Attributes:
        arguments: plain values, every size of the network among them; the constructor takes them again.
        downsample: image pixels, in height and in width, per position of the finest grid.
        factor: the images' height and width must be multiples of this.
        depth: codes per position of the grid. Above 1, a decoder also makes pictures of the first few of them.
    """

    encoder: nn.Module
    quantizer: VectorQuantizer
    decoder: nn.Module
    downsample: int
    factor: int
    depth: int = 1

    def __init__(self, **arguments: Any):
        super().__init__()
        self.arguments = arguments

    def forward(self, images: Tensor, num_codes: Tensor | None = None) -> tuple[Tensor, Codes, Tensor]:
        """images [B, 1, H, W] in [0, 1] -> reconstruction [B, 1, H, W] (not clamped), codes, latent loss (a scalar).

        `num_codes` int64 [B] in [1, depth]: how many codes per position, coarse to fine, each image is reconstructed
        from; None for all.
        """
        z_q, codes, loss = self.quantizer(self.encoder(images), num_codes)
        return self.decode_latents(z_q, num_codes), codes, loss

    def grid_shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(h, w) of each code grid of an image of this size, whose sides are multiples of `factor`."""
        return [(height // self.downsample, width // self.downsample)] * self.depth

    def latents(self, images: Tensor) -> Tensor:
        """images [B, 1, H, W] in [0, 1] -> float32 latents [B, C, h, w] before quantisation."""
        return self.encoder(images).float()

    def quantise(self, z_e: Tensor) -> Codes:
        """Latents [B, C, h, w] -> codes int64 [B, h, w], coarse to fine."""
        return self.quantizer.encode(z_e)

    def embed(self, codes: Codes) -> Tensor:
        """Code grids -> z_q float32 [B, C, h, w] on the finest grid: the decoder's whole input."""
        return self.quantizer.embed(codes)

    def decode_latents(self, z_q: Tensor, num_codes: Tensor | int | None = None) -> Tensor:
        """z_q [B, C, h, w], embedded from the first `num_codes` codes per position (None: all) -> images, unclamped."""
        return self.decoder(z_q)

    def encode(self, images: Tensor) -> Codes:
        """images [B, 1, H, W] in [0, 1] -> code grids int64 [B, h, w], coarse to fine."""
        return self.quantise(self.latents(images))

    def decode(self, codes: Codes) -> Tensor:
        """Code grids -> images float32 [B, 1, H, W] in [0, 1]. With `depth` above 1 the first grids are enough."""
        return self.decode_latents(self.embed(codes), len(codes)).float().clamp(0, 1)

    @torch.no_grad()
    def initialise_codebooks(self, images: Tensor) -> None:
        """Set each codebook by k-means on the latents that it will see for `images` [B, 1, H, W]."""
        self.quantizer.initialise(self.encoder(images))

    @property
    def quantizers(self) -> list[VectorQuantizer]:
        """The quantiser of each grid, coarse to fine."""
        return [self.quantizer]

    @property
    def codebooks(self) -> list[Tensor]:
        """The codebook [K, D] of each code, coarse to fine."""
        return [codebook for quantizer in self.quantizers for codebook in quantizer.codebooks]

    @property
    def codebook_sizes(self) -> list[int]:
        """K of each code, coarse to fine."""
        return [len(codebook) for codebook in self.codebooks]

    def bypass_quantizers(self, bypass: bool) -> None:
        """Let latents through unquantised (see `VectorQuantizer`), or stop doing so."""
        for quantizer in self.quantizers:
            quantizer.bypass = bypass


class VQVAE(Autoencoder):
    """VQ-VAE (van den Oord et al. 2017) with the layers of the course baseline: 222,465 parameters.

    A 256x256 slice becomes 64x64 codes of `codebook_size`, each a vector of 64.
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
        self.quantizer = VectorQuantizer(codebook_size, 64, beta=beta, ema=ema)
        self.decoder = nn.Sequential(
            nn.Conv2d(64, 64, 3, padding=1),  # [B, 64, H/4, W/4]
            ClassicResidual(64, 32),
            ClassicResidual(64, 32),
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),  # [B, 32, H/2, W/2]
            nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1),  # [B, 1, H, W]
        )


class RQVAE(Autoencoder):
    """Residual-quantised autoencoder (Lee et al. 2022): `depth` codes per position, coarse to fine. The default.

    Two codebooks of 512 tell 262,144 vectors apart. Few positions with many codes each suit a prior, which has to
    model far less of a grid at once. Pixels are folded into channels at once, four by four, so that the width works
    on small grids only; a `downsample` of 8 or 16 halves the grid once or twice more, at twice the width.

    The first codes of each position are a picture, too, at a lower rate: training reconstructs some images from fewer
    codes (quantiser dropout, Zeghidour et al. 2021, section III.C), and the decoder has an embedding of their number.
    `networks.painter` adds the texture that the first code leaves open.
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
        self.depth, self.factor, self.downsample = depth, downsample, downsample
        widths = [width, 2 * width, 2 * width][: downsample.bit_length() - 2]  # at 1/4, 1/8, 1/16 of the size

        encoder: list[nn.Module] = [nn.PixelUnshuffle(4), nn.Conv2d(16, width, 3, padding=1)]
        for n_in, n_out in pairwise(widths):
            encoder += [Residual(n_in), nn.Conv2d(n_in, n_out, 4, stride=2, padding=1)]
        encoder += [Residual(widths[-1]) for _ in range(blocks)]
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(widths[-1], dim, 1))

        self.quantizer = VectorQuantizer(codebook_size, dim, depth, beta, ema=ema)

        self.depth_embedding = nn.Embedding(depth, widths[-1])  # of how many codes z_q is the sum
        nn.init.zeros_(self.depth_embedding.weight)
        self.decoder_input = nn.Conv2d(dim, widths[-1], 3, padding=1)
        decoder: list[nn.Module] = [Residual(widths[-1]) for _ in range(blocks)]
        for n_in, n_out in pairwise(widths[::-1]):
            decoder += [nn.Conv2d(n_in, 4 * n_out, 3, padding=1), nn.PixelShuffle(2)]
            decoder += [Residual(n_out) for _ in range(blocks)]
        self.decoder = nn.Sequential(*decoder, nn.Conv2d(width, 16, 3, padding=1), nn.PixelShuffle(4))

    def decode_latents(self, z_q: Tensor, num_codes: Tensor | int | None = None) -> Tensor:
        num_codes = self.depth if num_codes is None else num_codes
        embedding = self.depth_embedding.weight[num_codes - 1]  # [width], or [B, width]
        return self.decoder(self.decoder_input(z_q) + embedding[..., None, None])


# ----------------------------------------------------------------------------------------------------
# Priors


class Prior(nn.Module, ABC):
    """A distribution over the codes of an autoencoder's training slices.

    Slice levels are those of the data, in [0, levels); level `levels` stands for an unknown one.

    Attributes:
        arguments: plain values, every size of the network among them; the constructor takes them again.
        title: its name in figures.
        levels: the number of slice levels.
        covariates: what else it can be asked for, a mapping each, see `CovariateEmbedding`.
        level_share: float32 [levels + 1], how often each level occurs in training.
    """

    title: str
    smoothing = 0.3  # standard deviations, between the covariates of a sample and those of a training brain

    def __init__(self, levels: int, arguments: dict[str, Any]):
        super().__init__()
        self.levels, self.arguments = levels, arguments
        self.covariates: list[dict[str, Any]] = arguments.get("covariates", [])
        self.register_buffer("level_share", torch.ones(levels + 1))

    @abstractmethod
    def sample(
        self, seeds: Sequence[int], levels: Tensor | None = None, covariates: Tensor | None = None, **options: Any
    ) -> Codes:
        """One sample per seed, a function of that seed and its conditioning: code grids int64 [len(seeds), h, w].

        `levels` int64 [len(seeds)] in [0, levels], `covariates` float32 [len(seeds), n], see `CovariateEmbedding`; None
        draws them as training has them. In eval mode only.
        """

    def fit_levels(self, levels: Tensor) -> None:
        """Set `level_share` from the training slices' levels int64 [N]."""
        self.level_share.copy_(torch.bincount(levels, minlength=self.levels + 1) / len(levels))

    def draw_levels(self, seeds: Sequence[int]) -> Tensor:
        """A slice level int64 [len(seeds)] for each seed, as often as in training."""
        streams = [seed + 2**32 for seed in seeds]  # other random numbers than those that make the sample
        cumulative = self.level_share.double().cumsum(0)
        uniform = seeded_rows(streams, 1, torch.rand)[:, 0].to(cumulative) * cumulative[-1]
        return torch.searchsorted(cumulative, uniform, right=True)

    def draw_covariates(self, seeds: Sequence[int], asked: Tensor | None = None) -> Tensor:
        """Those that are `asked` for, the others nearly those of a training brain that is like that: float32 [N, n].

        `asked`: [N, n] for N seeds, NaN where it is left open; None is all. So samples differ as people do.
        """
        asked = self.unknown(len(seeds)) if asked is None else asked
        if not self.covariates:
            return asked
        brains = torch.tensor([each["values"] for each in self.covariates], device=asked.device).T
        width = asked.new_tensor([1e-3 if each["categories"] else self.smoothing for each in self.covariates])
        distance = ((asked[:, None] - brains) / width).square().nan_to_num(1e6) * ~asked.isnan()[:, None]
        cumulative = (-0.5 * distance.sum(2)).double().softmax(1).cumsum(1)
        streams = [seed + 2**48 for seed in seeds]
        uniform = seeded_rows(streams, 1, torch.rand).to(cumulative) * cumulative[:, -1:]
        chosen = brains[torch.searchsorted(cumulative, uniform, right=True)[:, 0]]
        noise = width * seeded_rows(streams, len(width), torch.randn).to(asked)
        return torch.where(asked.isnan(), chosen + noise, asked)

    def unknown(self, n: int) -> Tensor:
        """The covariates of n slices of which nothing is known: NaN [n, len(covariates)]."""
        return self.level_share.new_full((n, len(self.covariates)), math.nan)


class CovariateEmbedding(nn.Module):
    """What is known of the person: numbers and categories, each of which may be unknown.

    `covariates`: a mapping each, see `training.covariates.Covariates`; only "categories" counts here.
    """

    def __init__(self, covariates: Sequence[dict[str, Any]], width: int, hidden: int = 64):
        super().__init__()
        self.covariates, self.width = covariates, width
        columns = sum(len(each["categories"] or ["number"]) + 1 for each in covariates)
        if covariates:
            self.layers = nn.Sequential(nn.Linear(columns, hidden), nn.SiLU(), nn.Linear(hidden, width))
            for parameter in self.layers[2].parameters():
                nn.init.zeros_(parameter)

    def forward(self, values: Tensor) -> Tensor:
        """values float32 [B, n], numbers standardised, a category as its index, NaN where unknown -> [B, width]."""
        if not self.covariates:
            return values.new_zeros(len(values), self.width)
        columns = [~values.isnan()]
        for each, value in zip(self.covariates, values.split(1, dim=1), strict=True):
            if each["categories"]:
                columns.append(value.round() == torch.arange(len(each["categories"]), device=values.device))
            else:
                columns.append(value.nan_to_num(0))
        return self.layers(torch.cat(columns, dim=1))


def seeded_rows(seeds: Sequence[int], n: int, draw: Callable[..., Tensor]) -> Tensor:
    """[len(seeds), n] random numbers, each row from a CPU generator of its own: the same on any device."""
    return torch.stack([draw(n, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


# ----------------------------------------------------------------------------------------------------
# DCGAN


class DCGAN(Prior):
    """A GAN over the latents of an autoencoder, as a prior over its codes.

    The name is the course's (Radford et al. 2016). The default networks are residual, and learn by R3GAN's loss
    (Huang et al. 2024). Both work on normalised latents: rotated to their principal axes, each scaled to deviation 1,
    so that the discriminator can't win by scale. `sample` maps back and quantises: the decoder only sees code vectors.

    `codes`: how many grids of codes are drawn, coarse to fine. `width`: channels of the generator.
    """

    title = "DCGAN"
    noise_scale = 1.3  # of z when sampling: at 1, too many samples are nearly a training slice
    min_deviation = 0.3  # of the largest along any axis: smaller ones are scaled as if they were that large

    def __init__(
        self,
        autoencoder: Autoencoder,
        grid: tuple[int, int],
        channels: int,
        levels: int,
        codes: int,
        network: str = "residual",
        width: int = 128,
        covariates: Sequence[dict[str, Any]] = (),
    ):
        arguments = {"grid": list(grid), "channels": channels, "levels": levels, "codes": codes, "network": network}
        super().__init__(levels, arguments | {"width": width, "covariates": list(covariates)})
        self.grid, self.channels, self.codes, self.width = tuple(grid), channels, codes, width
        self.generator = self.make_generator()
        self._autoencoder = (autoencoder,)  # in a tuple, since it is no part of this network
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("axes", torch.eye(channels))  # a column is an axis
        self.register_buffer("scale", torch.ones(1, channels, 1, 1))

    def make_generator(self) -> nn.Module:
        return Generator(self.grid, self.channels, self.levels, self.covariates, self.width)

    def make_discriminator(self) -> nn.Module:
        """The generator's opponent in training; sampling needs none."""
        return Discriminator(self.grid, self.channels, self.levels, self.covariates)

    @torch.no_grad()
    def fit(self, latents: Tensor, levels: Tensor) -> None:
        """Set the normalisation, and each level's mean, from latents [N, C, h, w] of levels int64 [N]."""
        self.mean.copy_(latents.mean(dim=(0, 2, 3), keepdim=True))
        variance, axes = torch.linalg.eigh(torch.cov((latents - self.mean).movedim(1, 0).flatten(1).double()))
        deviation = variance.clamp_min(0).sqrt()
        self.axes.copy_(axes)
        self.scale.copy_(deviation.clamp_min(self.min_deviation * deviation.max())[:, None, None])
        normalised = self.normalise(latents)
        for level in levels.unique().tolist():
            self.generator.mean[level] = normalised[levels == level].mean(0)

    def normalise(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> the generator's output space."""
        with torch.autocast(latents.device.type, enabled=False):
            return torch.einsum("bchw,cd->bdhw", latents - self.mean, self.axes) / self.scale

    def denormalise(self, normalised: Tensor) -> Tensor:
        """The generator's output -> latents [B, C, h, w]."""
        with torch.autocast(normalised.device.type, enabled=False):
            return torch.einsum("bdhw,cd->bchw", normalised.float() * self.scale, self.axes) + self.mean

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """z [len(seeds), z_dim] of N(0, noise_scale^2); a row depends on its own seed only."""
        return self.noise_scale * seeded_rows(seeds, self.generator.z_dim, torch.randn).to(self.mean.device)

    @torch.no_grad()
    def generate(self, z: Tensor, levels: Tensor, covariates: Tensor) -> Codes:
        """z [B, z_dim], levels int64 [B], covariates [B, n] -> codes. In eval mode only: batch norm would mix them."""
        latents = self.generator(z, levels, torch.zeros_like(levels, dtype=torch.bool), covariates)
        return self._autoencoder[0].quantise(self.denormalise(latents))[: self.codes]

    def sample(self, seeds: Sequence[int], levels: Tensor | None = None, covariates: Tensor | None = None) -> Codes:
        levels = self.draw_levels(seeds) if levels is None else levels
        covariates = self.draw_covariates(seeds) if covariates is None else covariates
        return self.generate(self.noise(seeds), levels.to(self.mean.device), covariates.to(self.mean.device))


GLOBAL_NOISE, LOCAL_NOISE = 128, 16  # random numbers of a sample, and of each of its positions
STYLE_DIM, START_CHANNELS = 256, 24


class Generator(nn.Module):
    """Half the grid's size first, then all of it; the style scales and shifts the channels of every block.

    It adds to the mean of each slice level, so that from the first step a sample is a brain, if always the same one.
    Blocks are R3GAN's (Huang et al. 2024), without normalisation; style from a small network and noise at every
    position as in StyleGAN (Karras et al. 2019).
    """

    def __init__(self, grid: tuple[int, int], channels: int, levels: int, covariates: Sequence[dict], width: int):
        super().__init__()
        self.grid, self.half = grid, tuple(-(-side // 2) for side in grid)
        self.z_dim = GLOBAL_NOISE + LOCAL_NOISE * grid[0] * grid[1]
        self.level_embedding = nn.Embedding(levels + 1, 64)
        self.augmented_embedding = nn.Embedding(2, 64)
        self.covariate_embedding = CovariateEmbedding(covariates, 64)
        self.style = nn.Sequential(
            nn.Linear(GLOBAL_NOISE + 64, STYLE_DIM),
            nn.LeakyReLU(0.2),
            nn.Linear(STYLE_DIM, STYLE_DIM),
            nn.LeakyReLU(0.2),
        )
        self.start = nn.Linear(STYLE_DIM, START_CHANNELS * self.half[0] * self.half[1])
        self.first = nn.Conv2d(START_CHANNELS, width, 3, padding=1)
        self.coarse = nn.ModuleList([PlainResidual(width) for _ in range(2)])  # [B, width, h/2, w/2]
        self.up = nn.Conv2d(width, 4 * width, 3, padding=1)
        self.noise = nn.Conv2d(LOCAL_NOISE, width, 3, padding=1)
        self.position = nn.Parameter(torch.zeros(1, width, *grid))  # the brains are aligned
        self.fine = nn.ModuleList([PlainResidual(width) for _ in range(4)])  # [B, width, h, w]
        self.modulation = nn.ModuleList([nn.Linear(STYLE_DIM, 2 * width) for _ in (*self.coarse, *self.fine)])
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        for parameter in (*self.modulation.parameters(), *self.last.parameters()):
            nn.init.zeros_(parameter)
        self.register_buffer("mean", torch.zeros(levels + 1, channels, *grid))  # of each level

    def forward(self, z: Tensor, levels: Tensor, augmented: Tensor, covariates: Tensor) -> Tensor:
        """z [B, z_dim] of N(0, 1), levels int64 [B], covariates [B, n] -> normalised latents [B, channels, h, w].

        `augmented`: bool [B], which of them are to look like augmented slices (Karras et al. 2022, appendix F.2:
        augmentations that don't leak into samples).
        """
        z, noise = z.split([GLOBAL_NOISE, z.shape[1] - GLOBAL_NOISE], dim=1)
        of_slice = self.level_embedding(levels) + self.augmented_embedding(augmented.long())
        conditioning = of_slice + self.covariate_embedding(covariates)
        style = self.style(torch.cat([z, conditioning], dim=1))
        scale_shift = [layer(style)[:, :, None, None].chunk(2, dim=1) for layer in self.modulation]
        x = self.first(self.start(style).view(-1, START_CHANNELS, *self.half))
        for block, (scale, shift) in zip(self.coarse, scale_shift, strict=False):
            x = block(x * (1 + scale) + shift)
        x = F.pixel_shuffle(self.up(F.leaky_relu(x, 0.2)), 2)[:, :, : self.grid[0], : self.grid[1]]
        x = x + self.noise(noise.view(-1, LOCAL_NOISE, *self.grid)) + self.position
        for block, (scale, shift) in zip(self.fine, scale_shift[len(self.coarse) :], strict=True):
            x = block(x * (1 + scale) + shift)
        return self.mean[levels] + self.last(F.leaky_relu(x, 0.2))


class Discriminator(nn.Module):
    """A residual network without normalisation: a score depends on its own image alone, as gradient penalties need it.

    Slice level, augmentation and covariates enter by projection (Miyato and Koyama 2018).
    """

    def __init__(self, grid: tuple[int, int], channels: int, levels: int, covariates: Sequence[dict], width: int = 96):
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
        self.level_embedding = nn.Embedding(levels + 1, 4 * width)
        self.augmented_embedding = nn.Embedding(2, 4 * width)
        for embedding in (self.level_embedding, self.augmented_embedding):
            nn.init.normal_(embedding.weight, 0, 0.1)
        self.covariate_embedding = CovariateEmbedding(covariates, 4 * width)

    def forward(self, latents: Tensor, levels: Tensor, augmented: Tensor, covariates: Tensor) -> Tensor:
        """latents [B, channels, h, w], conditioning as the generator's -> logits [B], higher for real ones."""
        features = self.layers(self.first(latents) + self.position)
        conditioning = self.level_embedding(levels) + self.augmented_embedding(augmented.long())
        conditioning = conditioning + self.covariate_embedding(covariates)
        return (self.score(features.flatten(1))[:, 0] + (features.mean(dim=(2, 3)) * conditioning).sum(1)).float()
