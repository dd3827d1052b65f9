"""What is the autoregressive prior? A gated PixelCNN for each grid of codes, given the grids before it.

van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders": a vertical stack sees the
rows above, a horizontal stack the codes to the left, and both are gated. Masks come from shifting the input
(Salimans et al. 2017, PixelCNN++): one row down for the vertical stack, one column right for the horizontal
one. After that a convolution may include its own position.

p(codes) = p(grid 1) p(grid 2 | grid 1) ...: the top of a VQVAE2 and then its bottom. The depths of an RQVAE are
codes of one grid.
"""

import math
from collections.abc import Sequence
from itertools import accumulate, groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules import Codes, Prior, seeded_rows
from networks.autoregressive import draw_code


class GatedLayer(nn.Module):
    """One gated layer of both stacks (ibid., figure 2), conditioned at every position."""

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
        mixed = self.horizontal(F.pad(h, (1, 0, 0, 0))) + self.across(above) + self.condition(condition)
        return _gate(above), h + self.out(self.dropout(_gate(mixed)))


def _gate(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, dim=1)
    return torch.tanh(value) * torch.sigmoid(gate)


class GridModel(nn.Module):
    """p(codes of one grid | grids before it, level): from position to position in raster order, coarse to fine at each.

    The gated layers see all codes of the positions before. Their output at a position, plus the embeddings of its
    codes so far, gives the next code there (Lee et al. 2022, section 3.2.2, with a small head per depth).
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
        """`sizes`: K of each code of a position; `before`: K of each grid that conditions this one."""
        super().__init__()
        self.grid, self.depth = grid, len(sizes)
        self.embeddings = nn.ModuleList([nn.Embedding(k, width) for k in sizes])
        self.before = nn.ModuleList([nn.Embedding(k, width) for k in before])
        self.mix = nn.Sequential(  # the conditioning grids, from all sides of a position
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.position = nn.Parameter(0.02 * torch.randn(1, width, *grid))  # the brains are aligned
        self.level_embedding = nn.Embedding(levels + 1, width)
        self.augmented_embedding = nn.Parameter(torch.zeros(1, width, 1, 1))  # added for augmented training slices
        self.layers = nn.ModuleList([GatedLayer(width, dropout) for _ in range(layers)])
        self.heads = nn.ModuleList(
            [
                nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, k))
                for k in sizes
            ]
        )

    def condition(self, before: Codes, levels: Tensor, augmented: Tensor | None = None) -> Tensor:
        """Conditioning grids, position and level -> [B, width, rows, columns]."""
        conditioning = self.position + self.level_embedding(levels)[:, :, None, None]
        if augmented is not None:
            conditioning = conditioning + augmented[:, None, None, None] * self.augmented_embedding
        for embedding, codes in zip(self.before, before, strict=True):
            embedded = embedding(codes).movedim(-1, 1)
            conditioning = conditioning + F.interpolate(embedded, size=self.grid, mode="nearest")
        return conditioning + self.mix(conditioning) if before else conditioning

    def forward(self, codes: Codes, before: Codes, levels: Tensor, augmented: Tensor | None = None) -> list[Tensor]:
        """codes [B, rows, columns] each -> logits [B, rows, columns, size] each.

        A position's logits depend on the codes of the positions before it, and on its own coarser codes.
        """
        conditioning = self.condition(before, levels, augmented)
        embedded = [embedding(grid) for embedding, grid in zip(self.embeddings, codes, strict=True)]
        x = sum(embedded).movedim(-1, 1)
        v = F.pad(x, (0, 0, 1, 0))[:, :, :-1] + conditioning
        h = F.pad(x, (1, 0, 0, 0))[:, :, :, :-1] + conditioning
        for layer in self.layers:
            v, h = layer(v, h, conditioning)
        context, logits = h.movedim(1, -1), []
        for head, code in zip(self.heads, embedded, strict=True):
            logits.append(head(context))
            context = context + code
        return logits

    @torch.no_grad()
    def sample(self, uniform: Tensor, before: Codes, levels: Tensor, temperature: float, nucleus: float) -> Codes:
        """Codes int64 [B, rows, columns] each, by inversion of uniform [B, depth * rows * columns] in [0, 1).

        Each activation is computed once: per row the vertical stack, from its own row and the one above;
        per code the horizontal stack, from its own column and the one to the left.
        """
        rows, columns = self.grid
        uniform = uniform.view(-1, rows, columns, self.depth)
        conditioning = self.condition(before, levels)
        conditions = [layer.condition(conditioning) for layer in self.layers]
        codes = torch.zeros_like(uniform, dtype=torch.long)
        row_above = torch.zeros_like(conditioning[:, :, 0])  # embedded codes [B, width, columns]
        cache = [torch.zeros_like(row_above) for _ in self.layers]  # each layer's v one row up
        for i in range(rows):
            v = row_above + conditioning[:, :, i]
            row_condition = []
            for k, layer in enumerate(self.layers):
                above = layer.vertical(F.pad(torch.stack([cache[k], v], dim=2), (1, 1)))
                row_condition.append(layer.across(above)[:, :, 0] + conditions[k][:, :, i])
                cache[k], v = v, _gate(above)[:, :, 0]
            row = []
            left = torch.zeros_like(v[:, :, 0])
            lefts = [left] * len(self.layers)  # each layer's h one column to the left
            for j in range(columns):
                h = left + conditioning[:, :, i, j]
                for k, layer in enumerate(self.layers):
                    pair = layer.horizontal(torch.stack([lefts[k], h], dim=2)[:, :, None])
                    mixed = pair[:, :, 0, 0] + row_condition[k][:, :, j]
                    lefts[k], h = h, h + F.linear(_gate(mixed), layer.out.weight[:, :, 0, 0], layer.out.bias)
                codes[:, i, j], left = self._position(h, uniform[:, i, j], temperature, nucleus)
                row.append(left)
            row_above = torch.stack(row, dim=2)
        return list(codes.unbind(-1))

    def _position(self, context: Tensor, uniform: Tensor, temperature: float, nucleus: float) -> tuple[Tensor, Tensor]:
        """A position's codes [B, depth] and the sum of their embeddings [B, width], from its context [B, width]."""
        codes, embedded = [], torch.zeros_like(context)
        for head, embedding, draw in zip(self.heads, self.embeddings, uniform.unbind(1), strict=True):
            codes.append(draw_code(head(context + embedded), draw, temperature, nucleus))
            embedded = embedded + embedding(codes[-1])
        return torch.stack(codes, dim=1), embedded


class PixelCNN(Prior):
    """The prior of all grids together: `grids` [(rows, columns), ...] with `sizes` [K, ...] codes each.

    Consecutive grids of one shape, such as the depths of an RQVAE, share their gated layers.
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

    def forward(self, codes: Codes, levels: Tensor, augmented: Tensor | None = None) -> Tensor:
        """Bits per image [B]: -log2 p(codes | level), which is also what an entropy coder would need.

        `augmented`: bool [B], which slices training augmented; samples are drawn as not augmented.
        """
        nats, start = [], 0
        for model in self.grids:
            here = codes[start : start + model.depth]
            for logits, grid in zip(model(here, codes[:start], levels, augmented), here, strict=True):
                each = F.cross_entropy(logits.flatten(0, 2).float(), grid.flatten(), reduction="none")
                nats.append(each.view(len(grid), -1).sum(1))
            start += model.depth
        return torch.stack(nats).sum(0) / math.log(2)

    def sample(
        self,
        seeds: Sequence[int],
        levels: Tensor | None = None,
        covariates: None = None,
        temperature: float = 1.0,
        nucleus: float = 1.0,
    ) -> Codes:
        """As `Prior.sample`, without covariates; `temperature` and `nucleus` as in `draw_code`."""
        device = self.level_share.device
        levels = self.draw_levels(seeds) if levels is None else levels
        draws = [math.prod(model.grid) * model.depth for model in self.grids]
        uniform = seeded_rows(seeds, sum(draws), torch.rand).to(device).split(draws, dim=1)
        codes: Codes = []
        for model, part in zip(self.grids, uniform, strict=True):
            codes += model.sample(part, list(codes), levels.to(device), temperature, nucleus)
        return codes
