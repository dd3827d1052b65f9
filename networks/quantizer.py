"""What turns latents into codes? The vector quantiser, with a codebook that lives."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class VectorQuantizer(nn.Module):
    """Nearest-code quantisation with a straight-through gradient (van den Oord et al. 2017, eqs. 1-3).

    The codebook follows the encoder by exponential moving averages (ibid., appendix A.1), or learns by the
    gradient of the codebook loss when `ema` is false. A codebook started at random dies, and so does one that
    a young encoder runs away from: train the first steps with `bypass` set, which lets the latents through as
    they are, then call `initialise` (k-means). After that, every code whose share of the latents falls below
    `REVIVE` of an equal share starts again at a badly represented latent, with the statistics of `FRESH` shares.

    Everything runs in float32, also under autocast: in bf16 1-3 % of the assignments change.
    """

    REVIVE, FRESH = 0.05, 0.1

    def __init__(self, codebook_size: int, dim: int, beta: float = 0.25, decay: float = 0.97, ema: bool = True):
        super().__init__()
        self.codebook_size, self.dim, self.beta, self.decay, self.ema = codebook_size, dim, beta, decay, ema
        self.bypass = False
        codebook = torch.randn(codebook_size, dim)
        if ema:
            self.register_buffer("codebook", codebook)
            self.register_buffer("cluster_size", torch.ones(codebook_size))  # in equal shares: the mean is 1
            self.register_buffer("cluster_sum", codebook.clone())
        else:
            self.codebook = nn.Parameter(codebook)
        self.register_buffer("usage", torch.zeros(codebook_size))  # latents per code since it was last zeroed

    def forward(self, z_e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise `z_e` float [B, D, h, w].

        Returns z_q [B, D, h, w] (its gradient goes straight to z_e), codes int64 [B, h, w], and the latent
        loss: beta * commitment, plus the codebook loss when the codebook learns by gradient. While `bypass` is
        set: z_e, code 0 everywhere, and no loss.
        """
        if self.bypass:
            return z_e.float(), z_e.new_zeros(z_e[:, 0].shape, dtype=torch.long), z_e.new_zeros(())
        with torch.autocast(z_e.device.type, enabled=False):
            flat = z_e.float().movedim(1, -1).flatten(0, -2)  # [B*h*w, D]: channels last, a row is a latent
            codes = self.nearest(flat.detach())
            quantised = F.embedding(codes, self.codebook)
            loss = self.beta * F.mse_loss(flat, quantised.detach())
            if not self.ema:
                loss = loss + F.mse_loss(quantised, flat.detach())
            if self.training:  # after the look-up: no batch is quantised by a codebook that it has moved
                self._follow(flat.detach(), codes, quantised.detach())
            straight = flat + (quantised - flat).detach()
        codes = codes.view(z_e.shape[0], *z_e.shape[2:])
        return straight.view(*codes.shape, self.dim).movedim(-1, 1), codes, loss

    def nearest(self, flat: Tensor) -> Tensor:
        """Index int64 [N] of the code nearest to each row of `flat` float32 [N, D].

        argmin |x - e|^2 = argmax x.e - |e|^2 / 2: one matrix product, no square root, no |x|^2.
        """
        table = self.codebook.detach().t()
        bias = -0.5 * table.square().sum(0)
        rows = 512 if flat.device.type == "cpu" else len(flat)  # the scores stay in the CPU's cache
        with torch.autocast(flat.device.type, enabled=False):  # and `max` finds them in half of `argmax`'s time
            return torch.cat([torch.addmm(bias, part, table).max(1).indices for part in flat.split(rows)])

    def embed(self, codes: Tensor) -> Tensor:
        """Code vectors float32 [B, D, h, w] of `codes` int64 [B, h, w]."""
        return F.embedding(codes, self.codebook).movedim(-1, 1)

    @torch.no_grad()
    def initialise(self, z_e: Tensor, iterations: int = 10) -> None:
        """Set the codebook by k-means (Lloyd) on the latents `z_e` [B, D, h, w], cluster sizes by count."""
        flat = z_e.float().movedim(1, -1).flatten(0, -2)
        self.codebook.copy_(flat[torch.randint(len(flat), (self.codebook_size,), device=flat.device)])
        for _ in range(iterations):
            codes = self.nearest(flat)
            share, sums = (self._tally(flat, codes) * (self.codebook_size / len(flat))).split([1, self.dim], dim=1)
            spare = flat[_draw(self.codebook_size, _squared_error(flat, F.embedding(codes, self.codebook)))]
            self.codebook.copy_(torch.where(share > 0, sums / share, spare))
        if self.ema:
            self.cluster_size.copy_(share[:, 0].clamp_min(self.REVIVE))
            self.cluster_sum.copy_(self.codebook * self.cluster_size[:, None])

    def _follow(self, flat: Tensor, codes: Tensor, quantised: Tensor) -> None:
        """Move the codebook towards this batch's latents; the same on every process of a group."""
        tally = _all_reduce(self._tally(flat, codes))
        self.usage += tally[:, 0]
        if not self.ema:
            return
        shares = tally * (self.codebook_size / (len(flat) * _world_size()))
        self.cluster_size.lerp_(shares[:, 0], 1 - self.decay)
        self.cluster_sum.lerp_(shares[:, 1:], 1 - self.decay)
        dead = self.cluster_size < self.REVIVE
        spare = _draw_rows(self.codebook_size, flat, _squared_error(flat, quantised))
        self.cluster_sum.copy_(torch.where(dead[:, None], self.FRESH * spare, self.cluster_sum))
        self.cluster_size.masked_fill_(dead, self.FRESH)
        self.codebook.copy_(self.cluster_sum / self.cluster_size[:, None])

    def _tally(self, flat: Tensor, codes: Tensor) -> Tensor:
        """How many of the latents `flat` [N, D] each code has, and beside that their sum: [K, 1 + D].

        Not by `bincount`: the size of what it returns depends on the codes, and for that a GPU would be waited for.
        """
        count = flat.new_zeros(self.codebook_size).index_add_(0, codes, flat.new_ones(len(flat)))
        return torch.cat([count[:, None], torch.zeros_like(self.codebook).index_add_(0, codes, flat)], dim=1)


def _squared_error(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().sum(1)


def _draw(n: int, weights: Tensor) -> Tensor:
    """`n` indices drawn with probability proportional to `weights` [N], as k-means++ does."""
    cumulative = weights.double().cumsum(0)
    draws = torch.rand(n, device=weights.device, dtype=torch.float64) * cumulative[-1]
    return torch.searchsorted(cumulative, draws).clamp_max(len(weights) - 1)


def _draw_rows(n: int, rows: Tensor, weights: Tensor) -> Tensor:
    """Like `rows[_draw(n, weights)]`, over the rows of all processes together: each gets the same rows.

    Only the weights travel in full; the drawn rows are filled in by the process that has them.
    """
    if _world_size() == 1:
        return rows[_draw(n, weights)]
    everyone = [torch.empty_like(weights) for _ in range(_world_size())]
    dist.all_gather(everyone, weights)
    mine = _draw(n, torch.cat(everyone)) - dist.get_rank() * len(rows)
    here = (mine >= 0) & (mine < len(rows))
    return _all_reduce(rows[mine.clamp(0, len(rows) - 1)] * here[:, None])


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _all_reduce(x: Tensor) -> Tensor:
    """Sum of `x` over all processes."""
    if dist.is_initialized():
        dist.all_reduce(x)
    return x
