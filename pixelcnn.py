"""What is the autoregressive prior? A gated PixelCNN for each code grid, given the grids before it.

van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders": a vertical stack sees the
rows above, a horizontal stack the codes to the left, and both are gated. Masks come from shifting the input
(Salimans et al. 2017, PixelCNN++): one row down for the vertical stack, one column right for the horizontal
one. After that every convolution may look at its own place.

p(codes) = p(grid 1) p(grid 2 | grid 1) ...: the top of a VQVAE2 and then its bottom, or the depths of an
RQVAE; a VQVAE has one grid.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules import Codes, seeded_rows


class GatedLayer(nn.Module):
    """One gated layer of both stacks (ibid., figure 2), with what is known of the whole grid as condition."""

    def __init__(self, width: int):
        super().__init__()
        self.vertical = nn.Conv2d(width, 2 * width, (2, 3))  # rows i-1 and i, columns j-1 to j+1
        self.across = nn.Conv2d(2 * width, 2 * width, 1)
        self.horizontal = nn.Conv2d(width, 2 * width, (1, 2))  # columns j-1 and j
        self.condition = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, v: Tensor, h: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """v, h, condition [B, width, rows, columns] -> the next v and h."""
        above = self.vertical(F.pad(v, (1, 1, 1, 0)))
        given = self.across(above) + self.condition(condition)
        mixed = self.horizontal(F.pad(h, (1, 0, 0, 0))) + given
        return _gate(above), h + self.out(_gate(mixed))


def _gate(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, dim=1)
    return torch.tanh(value) * torch.sigmoid(gate)


class GridModel(nn.Module):
    """p(grid | grids before it, level): logits for each code from the codes before it in raster order."""

    def __init__(
        self,
        grid: tuple[int, int],
        sizes: Sequence[int],
        levels: int,
        width: int,
        layers: int,
        dropout: float,
    ):
        super().__init__()
        *before, size = sizes  # codebook sizes of the grids before this one, and of this one
        self.grid = grid
        self.embedding = nn.Embedding(size, width)
        self.before = nn.ModuleList([nn.Embedding(k, width) for k in before])
        self.mix = nn.Sequential(  # what the grids before say about each place, seen from all sides
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.position = nn.Parameter(0.02 * torch.randn(1, width, *grid))  # the brains are aligned
        self.level = nn.Embedding(levels + 1, width)
        self.layers = nn.ModuleList([GatedLayer(width) for _ in range(layers)])
        self.head = nn.Sequential(
            nn.GELU(), nn.Conv2d(width, width, 1), nn.GELU(), nn.Dropout(dropout), nn.Conv2d(width, size, 1)
        )

    def condition(self, before: Codes, levels: Tensor) -> Tensor:
        """What holds for the whole grid: grids before it, place and level -> [B, width, rows, columns]."""
        given = self.position + self.level(levels)[:, :, None, None]
        for embedding, codes in zip(self.before, before, strict=True):
            seen = embedding(codes).movedim(-1, 1)
            given = given + F.interpolate(seen, size=self.grid, mode="nearest")
        return given + self.mix(given) if before else given

    def forward(self, codes: Tensor, before: Codes, levels: Tensor) -> Tensor:
        """codes [B, rows, columns] -> logits [B, size, rows, columns]; those at i depend on codes before i."""
        given = self.condition(before, levels)
        x = self.embedding(codes).movedim(-1, 1)
        v = F.pad(x, (0, 0, 1, 0))[:, :, :-1] + given
        h = F.pad(x, (1, 0, 0, 0))[:, :, :, :-1] + given
        for layer in self.layers:
            v, h = layer(v, h, given)
        return self.head(h)

    @torch.no_grad()
    def sample(self, uniform: Tensor, before: Codes, levels: Tensor, temperature: float) -> Tensor:
        """Codes int64 [B, rows, columns] by inversion of uniform [B, rows * columns] in [0, 1).

        Each activation is computed once: per row the vertical stack, from its own row and the one above;
        per code the horizontal stack, from its own column and the one to the left.
        """
        rows, columns = self.grid
        given = self.condition(before, levels)
        conditions = [layer.condition(given) for layer in self.layers]
        codes = torch.zeros(len(uniform), rows, columns, dtype=torch.long, device=uniform.device)
        row_above = torch.zeros_like(given[:, :, 0])  # embedded codes [B, width, columns]
        cache = [torch.zeros_like(row_above) for _ in self.layers]  # each layer's v one row up
        for i in range(rows):
            v = row_above + given[:, :, i]
            row_given = []
            for k, layer in enumerate(self.layers):
                above = layer.vertical(F.pad(torch.stack([cache[k], v], dim=2), (1, 1)))
                row_given.append(layer.across(above)[:, :, 0] + conditions[k][:, :, i])
                cache[k], v = v, _gate(above)[:, :, 0]
            row = []
            left = torch.zeros_like(v[:, :, 0])
            lefts = [left] * len(self.layers)  # each layer's h one column to the left
            for j in range(columns):
                h = left + given[:, :, i, j]
                for k, layer in enumerate(self.layers):
                    pair = layer.horizontal(torch.stack([lefts[k], h], dim=2)[:, :, None])
                    mixed = pair[:, :, 0, 0] + row_given[k][:, :, j]
                    lefts[k], h = h, h + F.linear(_gate(mixed), layer.out.weight[:, :, 0, 0], layer.out.bias)
                logits = self.head(h[:, :, None, None])[:, :, 0, 0].float() / temperature
                codes[:, i, j] = _invert(logits.softmax(1), uniform[:, i * columns + j])
                left = self.embedding(codes[:, i, j])
                row.append(left)
            row_above = torch.stack(row, dim=2)
        return codes


def _invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """First index whose cumulative probability [B, K] exceeds uniform [B]."""
    cumulative = probabilities.cumsum(1)
    return torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0].clamp_max(
        probabilities.shape[1] - 1
    )


class PixelCNN(nn.Module):
    """The prior of all grids together: `grids` [(rows, columns), ...] with `sizes` [K, ...] codes each.

    Levels are axial slice levels in [0, levels); level `levels` means any.
    """

    def __init__(
        self,
        grids: Sequence[tuple[int, int]],
        sizes: Sequence[int],
        levels: int,
        width: int = 96,
        layers: int = 8,
        dropout: float = 0.2,
    ):
        super().__init__()
        self.levels = levels
        self.grids = nn.ModuleList(
            [GridModel(grid, sizes[: i + 1], levels, width, layers, dropout) for i, grid in enumerate(grids)]
        )

    def forward(self, codes: Codes, levels: Tensor) -> Tensor:
        """Bits per image [B]: -log2 p(codes | level), which is also what an entropy coder would need."""
        nats = [
            F.cross_entropy(model(grid, codes[:i], levels).float(), grid, reduction="none").sum((1, 2))
            for i, (model, grid) in enumerate(zip(self.grids, codes, strict=True))
        ]
        return torch.stack(nats).sum(0) / math.log(2)

    def sample(self, seeds: Sequence[int], levels: Tensor | None = None, temperature: float = 1.0) -> Codes:
        """One sample a seed: codes, each grid int64 [len(seeds), rows, columns]. In eval mode only.

        `levels` int64 [len(seeds)] in [0, levels]; None means any for all.
        """
        device = self.grids[0].position.device
        if levels is None:
            levels = torch.full((len(seeds),), self.levels)
        places = [model.grid[0] * model.grid[1] for model in self.grids]
        uniform = seeded_rows(seeds, sum(places), torch.rand).to(device).split(places, dim=1)
        codes: Codes = []
        for model, draws in zip(self.grids, uniform, strict=True):
            codes.append(model.sample(draws, list(codes), levels.to(device), temperature))
        return codes
