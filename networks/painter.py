"""What paints texture? A conditional flow in pixels, given the plain decoder's picture of the first codes.

One code per position fixes where a gyrus runs and leaves open where exactly its edge lies. The decoder, trained on a
distance, answers with the mean of the possible pictures: a blur. The painter samples one of them: slice = plain
picture + `scale` * r, where a flow with straight paths takes Gaussian noise to the residual r.
"""

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FOLD = 4  # pixels, down and across, folded into channels
BLOCK = 8  # pixels of a JPEG block: a network sees its grid, and with it by how much a slice was shifted
FREQUENCIES = 32  # of the time's embedding
MIN_TIME_LEFT = 0.05  # 1 - t at which the weight of the loss stops growing
NOISE_CORRELATION = 0.8  # of the starting noise between adjacent levels of a brain
SEED_OFFSET = 1 << 48  # keeps the seeds of this noise apart from those of codes and levels


class ChannelRMSNorm(nn.Module):
    """x / rms over the channels of each position, times a gain (Zhang and Sennrich 2019): no statistics of a canvas."""

    def __init__(self, channels: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> the same shape. On a CPU the second form is faster than the first."""
        if x.device.type == "cuda":
            return F.rms_norm(x.movedim(1, -1), self.gain.shape, self.gain.to(x.dtype), 1e-12).movedim(-1, 1)
        rms = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32) / x.shape[1] ** 0.5
        return x * (1 / (rms + 1e-6)).to(x.dtype) * self.gain[:, None, None].to(x.dtype)


class FlowBlock(nn.Module):
    """A residual block, scaled and shifted by an embedding of the time (FiLM, Perez et al. 2018)."""

    def __init__(self, channels: int, embedding: int):
        super().__init__()
        self.norm1, self.norm2 = ChannelRMSNorm(channels), ChannelRMSNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * channels)
        for layer in (self.conv2, self.film):  # at first the block does nothing
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x [B, C, h, w], embedding [B, E] -> [B, C, h, w]."""
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = self.norm2(self.conv1(F.silu(self.norm1(x)))) * (1 + scale) + shift
        return x + self.conv2(F.silu(hidden))


class Painter(nn.Module):
    """A small U-net that predicts the clean residual of a noisy one: 8.5 million weights at the default width.

    Args:
        dim: length of the code vectors.
        width: channels at a quarter of the picture's size; twice as many at an eighth.
        blocks: residual blocks at a quarter of the size on the way down, and at each of two on the way on.
        scale: standard deviation of slice - plain picture.
        steps: of Euler's method in `paint`.

    Attributes:
        arguments: plain values; the constructor takes them again.
        noise_size: float32 [2], mean and standard deviation of the starting noise's scale, drawn once per brain.
    """

    def __init__(self, dim: int, width: int = 128, blocks: int = 2, scale: float = 0.06, steps: int = 4):
        super().__init__()
        self.arguments = {"dim": dim, "width": width, "blocks": blocks, "scale": scale, "steps": steps}
        self.scale, self.steps, inner = scale, steps, 2 * width
        self.register_buffer("noise_size", torch.tensor([1.0, 0.0]))
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, 6.9, FREQUENCIES)), persistent=False)
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
        self.phase = nn.Embedding(BLOCK**2, 128)
        nn.init.zeros_(self.phase.weight)
        self.fold = nn.Conv2d(2 * FOLD**2, width, 3, padding=1)
        self.code = nn.Conv2d(dim, inner, 3, padding=1)
        self.before = nn.ModuleList([FlowBlock(width, 128) for _ in range(blocks)])
        self.down = nn.Conv2d(width, inner, 4, stride=2, padding=1)
        self.middle = nn.ModuleList([FlowBlock(inner, 128) for _ in range(2 * blocks)])
        self.up = nn.Conv2d(inner, 4 * width, 3, padding=1)
        self.mix = nn.Conv2d(2 * width, width, 1)
        self.after = nn.ModuleList([FlowBlock(width, 128) for _ in range(blocks + 1)])
        self.norm = ChannelRMSNorm(width)
        self.unfold = nn.Conv2d(width, FOLD**2, 3, padding=1)
        nn.init.zeros_(self.unfold.weight)  # an untrained painter returns the plain picture
        nn.init.zeros_(self.unfold.bias)

    def forward(self, x: Tensor, t: Tensor, plain: Tensor, z_q: Tensor, phase: Tensor | None = None) -> Tensor:
        """The estimate of the clean residual, float32 [B, 1, H, W], given the noisy one x [B, 1, H, W] at time t [B].

        t is in [0, 1]: 0 is noise, 1 is clean. `plain` [B, 1, H, W] in [0, 1] is the decoder's picture of the first
        codes, `z_q` [B, dim, h, w] their vectors. H and W are multiples of 8. `phase` int64 [B] in [0, 64): by how much
        each slice was shifted, 8 * (pixels down mod 8) + pixels across mod 8; None for 0.
        """
        angles = t[:, None] * self.frequencies
        embedding = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        phase_embedding = self.phase.weight[:1] if phase is None else self.phase(phase)
        embedding = embedding + phase_embedding.to(embedding.dtype)
        # Brains' grey values are about 0.3 +- 1/3.
        folded = [F.pixel_unshuffle(each, FOLD) for each in (x, (plain - 0.3) * 3)]
        fine = self.fold(torch.cat(folded, dim=1))  # [B, width, H/4, W/4]
        for block in self.before:
            fine = block(fine, embedding)
        coarse = self.down(fine)  # [B, 2 width, H/8, W/8]
        if z_q.shape[2:] != coarse.shape[2:]:  # a grid of a quarter or a sixteenth
            z_q = F.interpolate(z_q, coarse.shape[2:], mode="area")
        coarse = coarse + self.code(z_q)
        for block in self.middle:
            coarse = block(coarse, embedding)
        fine = self.mix(torch.cat([F.pixel_shuffle(self.up(coarse), 2), fine], dim=1))
        for block in self.after:
            fine = block(fine, embedding)
        return F.pixel_shuffle(self.unfold(F.silu(self.norm(fine))), FOLD).float()

    def paint(self, plain: Tensor, z_q: Tensor, noise: Tensor) -> Tensor:
        """Pictures [B, 1, H, W] in [0, 1] from their starting noise [B, 1, H, W]; the others as in `forward`."""
        *_, (_, x) = self.path(plain, z_q, noise, self.steps)
        return (plain + self.scale * x).clamp(0, 1)

    def path(self, plain: Tensor, z_q: Tensor, x: Tensor, steps: int) -> Iterator[tuple[float, Tensor]]:
        """Times and states (t, x_t) from noise to the clean residual, by Euler's method, both ends included.

        The flow's velocity at x_t is (clean - x_t) / (1 - t) (Lipman et al. 2023, eq. 21).
        """
        x = x.contiguous(memory_format=torch.channels_last)
        yield 0.0, x
        for i in range(steps):
            clean = self(x, x.new_full((len(x),), i / steps), plain, z_q)
            x = x + (clean - x) / (steps - i)
            yield (i + 1) / steps, x

    def noise(self, seed: int, levels: int, height: int, width: int) -> Tensor:
        """Starting noise of a brain of `levels` slices, or of one slice: float32 [levels, 1, height, width].

        Adjacent levels correlate. The scale, which is the scan's graininess, is drawn once per brain. The numbers come
        from a CPU generator, so that a seed gives the same noise on every device.
        """
        generator = torch.Generator().manual_seed(seed + SEED_OFFSET)
        mean, spread = self.noise_size.tolist()
        size = mean + spread * torch.randn((), generator=generator)
        noise = torch.randn(levels, 1, height, width, generator=generator)
        for below, own in itertools.pairwise(noise):
            own.mul_((1 - NOISE_CORRELATION**2) ** 0.5).add_(below, alpha=NOISE_CORRELATION)
        return size * noise


def flow_loss(
    painter: nn.Module, r: Tensor, t: Tensor, noise: Tensor, plain: Tensor, z_q: Tensor, phase: Tensor | None
):
    """Conditional flow matching (Lipman et al. 2023, eq. 23; rectified flow, Liu et al. 2023, eq. 1), float32 [B].

    The mean squared error of the velocity r - noise at x_t = (1 - t) noise + t r, from the painter's estimate of r.
    r and noise are [B, 1, H, W], t is [B] in [0, 1); the others as in `Painter.forward`.
    """
    at = t[:, None, None, None]
    clean = painter((1 - at) * noise + at * r, t, plain, z_q, phase)
    return (clean - r).square().mean(dim=(1, 2, 3)) / (1 - t).clamp_min(MIN_TIME_LEFT).square()


def jump_loss(painter: nn.Module, start: tuple[float, Tensor], end: tuple[float, Tensor], plain: Tensor, z_q: Tensor):
    """A student's error in one step along its teacher's path, float32 [B]: of the mean velocity from start to end.

    Progressive distillation (Salimans and Ho 2022, section 3; of a decoder: SSDD, arXiv 2510.04961). `start` and `end`:
    times and states of `Painter.path`.
    """
    (a, x_a), (b, x_b) = start, end
    velocity = (painter(x_a, x_a.new_full((len(x_a),), a), plain, z_q) - x_a) / (1 - a)
    return (velocity - (x_b - x_a) / (b - a)).square().mean(dim=(1, 2, 3))
