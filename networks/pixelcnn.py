"""What is the autoregressive prior? A gated PixelCNN for each grid of codes, given the grids before it.

van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders": a vertical stack sees the
rows above, a horizontal stack the codes to the left, and both are gated. Masks come from shifting the input
(Salimans et al. 2017, PixelCNN++): one row down for the vertical stack, one column right for the horizontal
one. After that every convolution may look at its own position.

p(codes) = p(grid 1) p(grid 2 | grid 1) ...: the top of a VQVAE2 and then its bottom. The depths of an RQVAE are
codes of one grid.
"""

import math
from collections.abc import Sequence
from itertools import accumulate, groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.prior import Codes, Prior, draw_code, draw_levels, level_shares, seeded_rows


class GatedLayer(nn.Module):
    """One gated layer of both stacks (ibid., figure 2), with what is known of the whole grid as condition."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.vertical = nn.Conv2d(width, 2 * width, (2, 3))  # rows i-1 and i, columns j-1 to j+1
        self.across = nn.Conv2d(2 * width, 2 * width, 1)
        self.horizontal = nn.Conv2d(width, 2 * width, (1, 2))  # columns j-1 and j
        self.condition = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.out = nn.Conv2d(width, width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, v: Tensor, h: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """v, h, condition [B, width, rows, columns] -> the next v and h."""
        above = self.vertical(F.pad(v, (1, 1, 1, 0)))
        given = self.across(above) + self.condition(condition)
        mixed = self.horizontal(F.pad(h, (1, 0, 0, 0))) + given
        return _gate(above), h + self.out(self.dropout(_gate(mixed)))


def _gate(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, dim=1)
    return torch.tanh(value) * torch.sigmoid(gate)


class GridModel(nn.Module):
    """p(codes of one grid | grids before it, level): from position to position in raster order, coarse to fine at each.

    The gated layers see all codes of the positions before; what they say of a position and its codes so far give the
    next code there (as the depth transformer of Lee et al. 2022, section 3.2.2, with a small network instead).
    """

    def __init__(
        self,
        grid: tuple[int, int],
        sizes: Sequence[int],
        before: Sequence[int],
        levels: int,
        width: int,
        layers: int,
        dropout: float,
    ):
        """`sizes`: K of each code of a position; `before`: K of every grid of codes that is known beforehand."""
        super().__init__()
        self.grid, self.depth = grid, len(sizes)
        self.embeddings = nn.ModuleList([nn.Embedding(k, width) for k in sizes])
        self.before = nn.ModuleList([nn.Embedding(k, width) for k in before])
        self.mix = nn.Sequential(  # what the grids before say about each position, seen from all sides
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.position = nn.Parameter(0.02 * torch.randn(1, width, *grid))  # the brains are aligned
        self.level = nn.Embedding(levels + 1, width)
        self.changed = nn.Parameter(torch.zeros(1, width, 1, 1))  # added where a slice was varied for training
        self.layers = nn.ModuleList([GatedLayer(width, dropout) for _ in range(layers)])
        self.heads = nn.ModuleList(
            [
                nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, k))
                for k in sizes
            ]
        )

    def condition(self, before: Codes, levels: Tensor, changed: Tensor | None = None) -> Tensor:
        """What holds for the whole grid: grids before it, position, level -> [B, width, rows, columns]."""
        given = self.position + self.level(levels)[:, :, None, None]
        if changed is not None:
            given = given + changed[:, None, None, None] * self.changed
        for embedding, codes in zip(self.before, before, strict=True):
            seen = embedding(codes).movedim(-1, 1)
            given = given + F.interpolate(seen, size=self.grid, mode="nearest")
        return given + self.mix(given) if before else given

    def forward(self, codes: Codes, before: Codes, levels: Tensor, changed: Tensor | None = None) -> list[Tensor]:
        """codes [B, rows, columns] each -> logits [B, rows, columns, size] each.

        Those of a position depend on the codes of the positions before it, and on its own coarser codes.
        """
        given = self.condition(before, levels, changed)
        embedded = [embedding(grid) for embedding, grid in zip(self.embeddings, codes, strict=True)]
        x = sum(embedded).movedim(-1, 1)
        v = F.pad(x, (0, 0, 1, 0))[:, :, :-1] + given
        h = F.pad(x, (1, 0, 0, 0))[:, :, :, :-1] + given
        for layer in self.layers:
            v, h = layer(v, h, given)
        seen, logits = h.movedim(1, -1), []
        for head, told in zip(self.heads, embedded, strict=True):
            logits.append(head(seen))
            seen = seen + told
        return logits

    @torch.no_grad()
    def sample(self, uniform: Tensor, before: Codes, levels: Tensor, temperature: float, nucleus: float) -> Codes:
        """Codes int64 [B, rows, columns] each, by inversion of uniform [B, depth * rows * columns] in [0, 1).

        Each activation is computed once: per row the vertical stack, from its own row and the one above;
        per code the horizontal stack, from its own column and the one to the left.
        """
        rows, columns = self.grid
        uniform = uniform.view(-1, rows, columns, self.depth)
        given = self.condition(before, levels)
        conditions = [layer.condition(given) for layer in self.layers]
        codes = torch.zeros_like(uniform, dtype=torch.long)
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
                codes[:, i, j], left = self._position(h, uniform[:, i, j], temperature, nucleus)
                row.append(left)
            row_above = torch.stack(row, dim=2)
        return list(codes.unbind(-1))

    def _position(self, seen: Tensor, uniform: Tensor, temperature: float, nucleus: float) -> tuple[Tensor, Tensor]:
        """A position's codes [B, depth] and their summed embeddings [B, width], for what is `seen` of it [B, width]."""
        codes, told = [], torch.zeros_like(seen)
        for head, embedding, draw in zip(self.heads, self.embeddings, uniform.unbind(1), strict=True):
            codes.append(draw_code(head(seen + told), draw, temperature, nucleus))
            told = told + embedding(codes[-1])
        return torch.stack(codes, dim=1), told


class PixelCNN(Prior):
    """The prior of all grids together: `grids` [(rows, columns), ...] with `sizes` [K, ...] codes each.

    Grids of one shape that follow each other, as the depths of an RQVAE do, share their gated layers.
    """

    title = "PixelCNN"

    def __init__(
        self,
        grids: Sequence[tuple[int, int]],
        sizes: Sequence[int],
        levels: int,
        width: int = 96,
        layers: int = 8,
        dropout: float = 0.2,
    ):
        arguments = {"grids": [list(grid) for grid in grids], "sizes": list(sizes), "levels": levels}
        super().__init__(levels, arguments | {"width": width, "layers": layers, "dropout": dropout})
        shapes = [(tuple(shape), len(list(same))) for shape, same in groupby(grids, key=tuple)]
        starts = list(accumulate((depth for _, depth in shapes), initial=0))
        self.grids = nn.ModuleList(
            [
                GridModel(shape, sizes[start : start + depth], sizes[:start], levels, width, layers, dropout)
                for (shape, depth), start in zip(shapes, starts, strict=False)
            ]
        )

    @torch.no_grad()
    def fit(self, levels: Tensor) -> None:
        """Take the level shares from the slices' levels int64 [N]."""
        self.level_share.copy_(level_shares(levels, self.levels))

    def forward(self, codes: Codes, levels: Tensor, changed: Tensor | None = None) -> Tensor:
        """Bits per image [B]: -log2 p(codes | level), which is also what an entropy coder would need.

        `changed`: bool [B], which slices were varied for training; none of what is sampled is.
        """
        nats, start = [], 0
        for model in self.grids:
            here = codes[start : start + model.depth]
            for logits, grid in zip(model(here, codes[:start], levels, changed), here, strict=True):
                each = F.cross_entropy(logits.flatten(0, 2).float(), grid.flatten(), reduction="none")
                nats.append(each.view(len(grid), -1).sum(1))
            start += model.depth
        return torch.stack(nats).sum(0) / math.log(2)

    def sample(
        self, seeds: Sequence[int], levels: Tensor | None = None, temperature: float = 1.0, nucleus: float = 1.0
    ) -> Codes:
        """As `Prior.sample`; `temperature` and `nucleus` as in `draw_code`."""
        device = self.level_share.device
        if levels is None:
            levels = draw_levels(seeds, self.level_share)
        draws = [math.prod(model.grid) * model.depth for model in self.grids]
        uniform = seeded_rows(seeds, sum(draws), torch.rand).to(device).split(draws, dim=1)
        codes: Codes = []
        for model, part in zip(self.grids, uniform, strict=True):
            codes += model.sample(part, list(codes), levels.to(device), temperature, nucleus)
        return codes
