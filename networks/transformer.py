"""What is the transformer prior? Codes of a slice, one position after another, each given all before it.

A position's codes are drawn jointly with those of the positions before it in raster order: what follows sees them all.
Within a position the codes follow each other, coarse to fine, as in the RQ-Transformer (Lee et al. 2022, section
3.2.2), whose depth transformer is a small network here, since there are two codes and not eight. Slices of the same
brain that are known already, up to two of them, are seen as a whole from every position: so one network draws single
slices, the slice beside another, and the slice between two.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.prior import Codes, Prior, draw_code, draw_levels, level_shares, seeded_rows

ABOVE, BESIDE = 2, 2  # rows above and columns to either side that the first layer sees at once
FARTHEST = 16  # levels from a slice to a neighbour that tells anything of it


class Neighbours(NamedTuple):
    """Slices of the same brain, n of them for each slice that is to be drawn."""

    codes: Codes  # int64 [B, n, rows, columns] for each depth
    offsets: Tensor  # int64 [B, n] in [-FARTHEST, FARTHEST]: so many levels they lie above it; 0 where there is none


class CodeTable(nn.Module):
    """A vector for each code: what is learnt of all alike, from where their code vectors lie, and of each alone."""

    def __init__(self, size: int, dim: int, width: int):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, dim))
        self.shared = nn.Linear(dim, width, bias=False)
        self.own = nn.Parameter(torch.zeros(size, width))

    def fit(self, codebook: Tensor) -> None:
        """Take the code vectors from codebook [K, dim]."""
        self.vectors.copy_(codebook / codebook.std().clamp_min(1e-6))

    def forward(self) -> Tensor:
        """[K, width]"""
        return self.shared(self.vectors) + self.own


class Neighbourhood(nn.Module):
    """The first layer, a causal convolution: each position from those beside it that come before, in raster order.

    It gives every position its own surroundings at once; attention brings what is further away. What it sees ends at
    the grid's edge, so that a row's last codes are first seen from the rows below.
    """

    def __init__(self, inner: int, width: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.mix = nn.Linear((ABOVE * (2 * BESIDE + 1) + BESIDE) * inner, width)

    def forward(self, embedded: Tensor) -> Tensor:
        """[B, N, inner] of all positions -> [B, N, width], of which each knows nothing of itself and what follows."""
        rows, columns = self.grid
        x = F.pad(embedded.unflatten(1, self.grid), (0, 0, BESIDE, BESIDE, ABOVE, 0))
        seen = [x[:, i : i + rows, j : j + columns] for i in range(ABOVE) for j in range(2 * BESIDE + 1)]
        seen += [x[:, ABOVE:, j : j + columns] for j in range(BESIDE)]
        return self.mix(torch.cat(seen, dim=-1)).flatten(1, 2)

    def at(self, embedded: Tensor, row: int, column: int) -> Tensor:
        """Of one position, [B, width], from what is padded already: [B, rows + ABOVE, columns + 2 BESIDE, inner]."""
        above = embedded[:, row : row + ABOVE, column : column + 2 * BESIDE + 1].flatten(1)
        left = embedded[:, row + ABOVE, column : column + BESIDE].flatten(1)
        return self.mix(torch.cat([above, left], dim=1))


class NeighbourView(nn.Module):
    """What known slices of the same brain say of each position: seen within two positions around it, by their distance.

    At most levels the same gyri and ventricles go on at the same place, a little moved; what is far off tells at least
    how large and how bright the brain is.
    """

    def __init__(self, inner: int, width: int):
        super().__init__()
        hidden = width // 2
        self.look = nn.Conv2d(inner, hidden, 3, padding=1)
        self.distance = nn.Embedding(2 * FARTHEST + 1, 2 * hidden)  # scale and shift of what is seen
        self.tell = nn.Conv2d(hidden, width, 3, padding=1)
        nn.init.zeros_(self.distance.weight)
        nn.init.zeros_(self.tell.weight)
        nn.init.zeros_(self.tell.bias)

    def forward(self, embedded: Tensor, offsets: Tensor) -> Tensor:
        """Neighbours [B, n, rows, columns, inner] and their offsets [B, n] -> [B, rows * columns, width]."""
        x = self.look(embedded.flatten(0, 1).permute(0, 3, 1, 2))
        scale, shift = self.distance(offsets.flatten() + FARTHEST)[:, :, None, None].chunk(2, dim=1)
        told = self.tell(F.gelu(x * (1 + scale) + shift)).flatten(2).transpose(1, 2)
        return (told.unflatten(0, offsets.shape) * (offsets != 0)[:, :, None, None]).sum(1)


class Block(nn.Module):
    """Causal attention and a feed-forward network, normalised beforehand.

    Queries and keys are normalised (Henry et al. 2020), so that large learning rates are safe. All heads share one key
    and one value (Shazeer 2019): drawing reads the keys and values of all positions before, at each position anew.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * self.size, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width, bias=False), nn.Dropout(dropout)
        )
        self.sharpness = nn.Parameter(torch.tensor(8.0))  # the largest logit of the attention
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.feed_forward[2].weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width] -> the same shape."""
        queries, key, value = self.project(x)
        key, value = (each[:, None].expand(-1, self.heads, -1, -1) for each in (key, value))
        mixed = F.scaled_dot_product_attention(queries.transpose(1, 2), key, value, is_causal=True, scale=1.0)
        return self.after(x, mixed.transpose(1, 2).flatten(2))

    def step(self, x: Tensor, keys: Tensor, values: Tensor, n: int) -> Tensor:
        """Of position n alone, [B, 1, width]; keys and values [B, N, size] hold those of the positions before it."""
        queries, keys[:, n : n + 1], values[:, n : n + 1] = self.project(x)
        seen = (each[:, None, : n + 1] for each in (keys, values))
        mixed = F.scaled_dot_product_attention(
            queries.to(keys.dtype), *seen, scale=1.0
        )  # heads in the place of queries
        return self.after(x, mixed.flatten(2))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, width] -> queries [B, N, heads, size], key and value [B, N, size]."""
        x = self.norm1(x)
        queries = self.queries(x).unflatten(-1, (self.heads, self.size))
        key, value = self.key_value(x).chunk(2, dim=-1)
        queries = F.normalize(queries, dim=-1) * self.sharpness.to(queries.dtype)
        return queries, F.normalize(key, dim=-1), value

    def after(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The block's output, for its input and what attention mixed, both [B, N, width]."""
        x = x + self.out(mixed)
        return x + self.feed_forward(self.norm2(x))


class Finer(nn.Module):
    """What is said of a position, once its coarser code is known: [B, ..., width] of both -> [B, ..., width]."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
            nn.LayerNorm(width),
        )

    def forward(self, said: Tensor, code: Tensor) -> Tensor:
        return self.layers(said + code)


class Transformer(Prior):
    """The prior of a grid of codes, (rows, columns), with a code per position for each of `sizes` [K, ...].

    `dim`: length of the code vectors. `width`, `layers`, `heads`: of the transformer; `inner`: of a code's vector in
    the first layer.
    """

    title = "transformer"
    temperature = 1.1  # at 1, more samples are like one training slice, mirrored or not, than other people's slices are

    def __init__(
        self,
        grid: tuple[int, int],
        sizes: Sequence[int],
        dim: int,
        levels: int,
        width: int = 192,
        layers: int = 6,
        heads: int = 3,
        inner: int = 64,
        dropout: float = 0.05,
    ):
        arguments = {"grid": list(grid), "sizes": list(sizes), "dim": dim, "levels": levels, "width": width}
        super().__init__(levels, arguments | {"layers": layers, "heads": heads, "inner": inner, "dropout": dropout})
        self.grid, self.inner = tuple(grid), inner
        self.seen = nn.ModuleList([CodeTable(k, dim, inner) for k in sizes])
        self.said = nn.ModuleList([CodeTable(k, dim, width) for k in sizes])
        self.first = Neighbourhood(inner, width, self.grid)
        self.neighbours = NeighbourView(inner, width)
        self.position = nn.Parameter(0.02 * torch.randn(math.prod(grid), width))  # the brains are aligned
        self.level = nn.Embedding(levels + 1, width)
        self.changed = nn.Parameter(torch.zeros(width))  # added where a slice was varied for training
        self.blocks = nn.ModuleList([Block(width, heads, dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.finer = nn.ModuleList([Finer(width) for _ in sizes[1:]])
        self.coarse = nn.ModuleList([CodeTable(k, dim, width) for k in sizes[:-1]])  # for `finer`
        nn.init.normal_(self.level.weight, 0, 0.1)

    @torch.no_grad()
    def fit(self, codebooks: Sequence[Tensor], levels: Tensor) -> None:
        """Take the code vectors from codebooks [K, dim], and the level shares from the slices' levels int64 [N]."""
        for tables in (self.seen, self.said, self.coarse):
            for table, codebook in zip(tables, codebooks, strict=False):
                table.fit(codebook)
        self.level_share.copy_(level_shares(levels, self.levels))

    def forward(
        self, codes: Codes, levels: Tensor, changed: Tensor | None = None, neighbours: Neighbours | None = None
    ) -> Tensor:
        """Bits per image [B]: -log2 p(codes | level, neighbours), which is also what an entropy coder would need.

        `changed`: bool [B], which slices were varied for training; none of what is sampled is.
        """
        flat = [grid.flatten(1) for grid in codes]
        x = self.first(self._see(flat)) + self._given(levels, neighbours)
        if changed is not None:
            x = x + changed[:, None, None] * self.changed
        for block in self.blocks:
            x = block(x)
        nats = []
        for i, said in enumerate(self._say(self.norm(x), flat)):
            logits = self._logits(said, i).float()
            nats.append(F.cross_entropy(logits.transpose(1, 2), flat[i], reduction="none").sum(1))
        return torch.stack(nats).sum(0) / math.log(2)

    def _see(self, codes: Codes) -> Tensor:
        """Codes [B, ...] of each depth -> their vectors' sum [B, ..., inner]."""
        return sum(F.embedding(grid, table()) for grid, table in zip(codes, self.seen, strict=True))

    def _given(self, levels: Tensor, neighbours: Neighbours | None) -> Tensor:
        """What is known of each position before any code is, [B, rows * columns, width]."""
        given = self.position + self.level(levels)[:, None]
        if neighbours is None:
            return given
        return given + self.neighbours(self._see(neighbours.codes), neighbours.offsets)

    def _say(self, said: Tensor, codes: Codes) -> Iterator[Tensor]:
        """What is `said` of positions [B, N, width] about each of their codes, given the coarser ones [B, N]."""
        yield said
        for finer, coarse, grid in zip(self.finer, self.coarse, codes, strict=False):
            said = finer(said, F.embedding(grid, coarse()))
            yield said

    def _logits(self, said: Tensor, i: int) -> Tensor:
        return F.linear(said, self.said[i]()) / math.sqrt(said.shape[-1])

    @torch.no_grad()
    def sample(
        self,
        seeds: Sequence[int],
        levels: Tensor | None = None,
        temperature: float = 1.0,
        nucleus: float = 1.0,
        neighbours: Neighbours | None = None,
    ) -> Codes:
        """As `Prior.sample`; `temperature` and `nucleus` as in `draw_code`. Keys and values are computed once.

        `neighbours`: what of the same brains is drawn already.
        """
        device = self.level_share.device
        if levels is None:
            levels = draw_levels(seeds, self.level_share)
        (rows, columns), depth, n = self.grid, len(self.said), len(seeds)
        uniform = seeded_rows(seeds, rows * columns * depth, torch.rand).to(device).view(n, rows, columns, depth)
        given = self._given(levels.to(device), neighbours)  # [B, N, width]
        seen, said, coarse = ([table() for table in tables] for tables in (self.seen, self.said, self.coarse))
        canvas = given.new_zeros(n, rows + ABOVE, columns + 2 * BESIDE, self.inner)  # what `first` sees
        kind = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else given.dtype
        cache = given.new_zeros(len(self.blocks), 2, n, rows * columns, self.blocks[0].size, dtype=kind)
        codes = torch.zeros(depth, n, rows, columns, dtype=torch.long, device=device)
        for at in range(rows * columns):
            i, j = divmod(at, columns)
            x = (self.first.at(canvas, i, j) + given[:, at])[:, None]
            for block, (keys, values) in zip(self.blocks, cache, strict=True):
                x = block.step(x, keys, values, at)
            told = self.norm(x)[:, 0]
            for k in range(depth):
                logits = F.linear(told, said[k]) / math.sqrt(told.shape[-1])
                codes[k, :, i, j] = draw_code(logits, uniform[:, i, j, k], temperature, nucleus)
                canvas[:, i + ABOVE, j + BESIDE] += F.embedding(codes[k, :, i, j], seen[k])
                if k + 1 < depth:
                    told = self.finer[k](told, F.embedding(codes[k, :, i, j], coarse[k]))
        return list(codes.unbind())
