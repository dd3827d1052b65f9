"""What is the transformer prior? Codes of a slice, one position after another, each given all before it.

Attention runs over positions in raster order; the input of a position is the sum of its codes' embeddings. Within a
position the codes follow each other, coarse to fine, as in the RQ-Transformer (Lee et al. 2022, section 3.2.2), with a
small network in the place of its depth transformer. Up to two known slices of the same brain condition every position:
so one network samples single slices, the slice beside another, and the slice between two.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules import Codes, CovariateEmbedding, Prior, seeded_rows
from networks.autoregressive import draw_code

ABOVE, BESIDE = 2, 2  # rows above and columns to either side in the receptive field of the first layer
MAX_OFFSET = 16  # slice levels between a slice and a neighbour that conditions it


class Neighbours(NamedTuple):
    """Known slices of the same brain, n for each slice that is to be sampled."""

    codes: Codes  # int64 [B, n, rows, columns] for each depth
    offsets: Tensor  # int64 [B, n] in [-MAX_OFFSET, MAX_OFFSET]: their level minus its own; 0 marks an absent one


class CodeEmbedding(nn.Module):
    """An embedding of each code: a linear map of its code vector, shared by all codes, plus a free one of its own."""

    def __init__(self, size: int, dim: int, width: int):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, dim))
        self.shared = nn.Linear(dim, width, bias=False)
        self.own = nn.Parameter(torch.zeros(size, width))

    def fit(self, codebook: Tensor) -> None:
        """Set the code vectors from codebook [K, dim]."""
        self.vectors.copy_(codebook / codebook.std().clamp_min(1e-6))

    def forward(self) -> Tensor:
        """The table [K, width]."""
        return self.shared(self.vectors) + self.own


class CausalConv(nn.Module):
    """The first layer: a convolution over the `ABOVE` rows above and the `BESIDE` positions to the left.

    It gives every position its own surroundings at once; attention adds what is further away.
    """

    def __init__(self, inner: int, width: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.mix = nn.Linear((ABOVE * (2 * BESIDE + 1) + BESIDE) * inner, width)

    def forward(self, embedded: Tensor) -> Tensor:
        """[B, N, inner] of all positions -> [B, N, width], each a function of the positions before it."""
        rows, columns = self.grid
        x = F.pad(embedded.unflatten(1, self.grid), (0, 0, BESIDE, BESIDE, ABOVE, 0))
        windows = [x[:, i : i + rows, j : j + columns] for i in range(ABOVE) for j in range(2 * BESIDE + 1)]
        windows += [x[:, ABOVE:, j : j + columns] for j in range(BESIDE)]
        return self.mix(torch.cat(windows, dim=-1)).flatten(1, 2)

    def at(self, embedded: Tensor, row: int, column: int) -> Tensor:
        """One position's output [B, width], for input that is padded: [B, rows + ABOVE, columns + 2 BESIDE, inner]."""
        above = embedded[:, row : row + ABOVE, column : column + 2 * BESIDE + 1].flatten(1)
        left = embedded[:, row + ABOVE, column : column + BESIDE].flatten(1)
        return self.mix(torch.cat([above, left], dim=1))


class NeighbourEncoder(nn.Module):
    """Known slices of the same brain as conditioning of each position: two convolutions, modulated by their offset.

    Gyri and ventricles continue from level to level at about the same place; a distant slice still shows how large
    and how bright the brain is.
    """

    def __init__(self, inner: int, width: int):
        super().__init__()
        hidden = width // 2
        self.conv_in = nn.Conv2d(inner, hidden, 3, padding=1)
        self.offset_embedding = nn.Embedding(2 * MAX_OFFSET + 1, 2 * hidden)  # scale and shift
        self.conv_out = nn.Conv2d(hidden, width, 3, padding=1)
        nn.init.zeros_(self.offset_embedding.weight)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, embedded: Tensor, offsets: Tensor) -> Tensor:
        """Neighbours [B, n, rows, columns, inner] and their offsets [B, n] -> [B, rows * columns, width]."""
        x = self.conv_in(embedded.flatten(0, 1).permute(0, 3, 1, 2))
        scale, shift = self.offset_embedding(offsets.flatten() + MAX_OFFSET)[:, :, None, None].chunk(2, dim=1)
        x = self.conv_out(F.gelu(x * (1 + scale) + shift)).flatten(2).transpose(1, 2)
        return (x.unflatten(0, offsets.shape) * (offsets != 0)[:, :, None, None]).sum(1)


class Block(nn.Module):
    """Causal attention and a feed-forward network, normalised beforehand.

    Queries and keys are normalised (Henry et al. 2020), so that large learning rates are safe. All heads share one key
    and one value (Shazeer 2019), since sampling reads the cached keys and values of all positions at every step.
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
        self.logit_scale = nn.Parameter(torch.tensor(8.0))  # the largest attention logit
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.feed_forward[2].weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width] -> the same shape."""
        queries, key, value = self.project(x)
        key, value = (each[:, None].expand(-1, self.heads, -1, -1) for each in (key, value))
        mixed = F.scaled_dot_product_attention(queries.transpose(1, 2), key, value, is_causal=True, scale=1.0)
        return self.after(x, mixed.transpose(1, 2).flatten(2))

    def step(self, x: Tensor, keys: Tensor, values: Tensor, n: int) -> Tensor:
        """Position n alone, [B, 1, width]; it extends the caches `keys` and `values` [B, N, size], filled up to n."""
        queries, keys[:, n : n + 1], values[:, n : n + 1] = self.project(x)
        cached = (each[:, None, : n + 1] for each in (keys, values))
        queries = queries.to(keys.dtype)  # the heads take the place of the sequence
        mixed = F.scaled_dot_product_attention(queries, *cached, scale=1.0)
        return self.after(x, mixed.flatten(2))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, width] -> queries [B, N, heads, size], key and value [B, N, size]."""
        x = self.norm1(x)
        queries = self.queries(x).unflatten(-1, (self.heads, self.size))
        key, value = self.key_value(x).chunk(2, dim=-1)
        queries = F.normalize(queries, dim=-1) * self.logit_scale.to(queries.dtype)
        return queries, F.normalize(key, dim=-1), value

    def after(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The block's output, for its input and what attention mixed, both [B, N, width]."""
        x = x + self.out(mixed)
        return x + self.feed_forward(self.norm2(x))


class DepthLayer(nn.Module):
    """A position's context for its next code: from its context and the embedding of the coarser code, [..., width]."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
            nn.LayerNorm(width),
        )

    def forward(self, context: Tensor, code: Tensor) -> Tensor:
        return self.layers(context + code)


class Transformer(Prior):
    """The prior of a grid of codes, (rows, columns), with a code per position for each of `sizes` [K, ...].

    `dim`: length of the code vectors. `width`, `layers`, `heads`: of the transformer. `inner`: length of a code's
    embedding in the first layer.
    """

    title = "transformer"
    guidance = 1.4  # for covariates that are asked for: at this weight, ventricles are as large as they are to be

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
        dropout: float = 0.15,
        covariates: Sequence[dict[str, Any]] = (),
    ):
        arguments = {"grid": list(grid), "sizes": list(sizes), "dim": dim, "levels": levels, "width": width}
        arguments |= {"layers": layers, "heads": heads, "inner": inner, "dropout": dropout}
        super().__init__(levels, arguments | {"covariates": list(covariates)})
        self.grid, self.inner = tuple(grid), inner
        self.input_embeddings = nn.ModuleList([CodeEmbedding(k, dim, inner) for k in sizes])
        self.output_embeddings = nn.ModuleList([CodeEmbedding(k, dim, width) for k in sizes])
        self.depth_embeddings = nn.ModuleList([CodeEmbedding(k, dim, width) for k in sizes[:-1]])
        self.causal_conv = CausalConv(inner, width, self.grid)
        self.neighbour_encoder = NeighbourEncoder(inner, width)
        self.position = nn.Parameter(0.02 * torch.randn(math.prod(grid), width))  # the brains are aligned
        self.level_embedding = nn.Embedding(levels + 1, width)
        self.covariate_embedding = CovariateEmbedding(covariates, width)
        self.augmented_embedding = nn.Parameter(torch.zeros(width))  # added for augmented training slices
        self.blocks = nn.ModuleList([Block(width, heads, dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.depth_layers = nn.ModuleList([DepthLayer(width) for _ in sizes[1:]])
        nn.init.normal_(self.level_embedding.weight, 0, 0.1)

    @torch.no_grad()
    def fit(self, codebooks: Sequence[Tensor]) -> None:
        """Set the code vectors from codebooks [K, dim]."""
        for tables in (self.input_embeddings, self.output_embeddings, self.depth_embeddings):
            for table, codebook in zip(tables, codebooks, strict=False):
                table.fit(codebook)

    def forward(
        self,
        codes: Codes,
        levels: Tensor,
        augmented: Tensor | None = None,
        covariates: Tensor | None = None,
        neighbours: Neighbours | None = None,
    ) -> Tensor:
        """Bits per image [B]: -log2 p(codes | conditioning), which is also what an entropy coder would need.

        `augmented`: bool [B], which slices training augmented; samples are drawn as not augmented. `covariates`: as in
        `Prior.sample`.
        """
        flat = [grid.flatten(1) for grid in codes]
        covariates = self.unknown(len(levels)) if covariates is None else covariates
        x = self.causal_conv(self._embed(flat)) + self._conditioning(levels, covariates, neighbours)
        if augmented is not None:
            x = x + augmented[:, None, None] * self.augmented_embedding
        for block in self.blocks:
            x = block(x)
        nats = []
        for grid, table, context in zip(flat, self.output_embeddings, self._contexts(self.norm(x), flat), strict=True):
            logits = _logits(context, table()).float()
            nats.append(F.cross_entropy(logits.transpose(1, 2), grid, reduction="none").sum(1))
        return torch.stack(nats).sum(0) / math.log(2)

    def _embed(self, codes: Codes) -> Tensor:
        """Codes [B, ...] of each depth -> the sum of their input embeddings, [B, ..., inner]."""
        return sum(F.embedding(grid, table()) for grid, table in zip(codes, self.input_embeddings, strict=True))

    def _conditioning(self, levels: Tensor, covariates: Tensor, neighbours: Neighbours | None) -> Tensor:
        """Position, slice level, covariates and neighbours, [B, rows * columns, width]."""
        of_slice = self.level_embedding(levels) + self.covariate_embedding(covariates)
        conditioning = self.position + of_slice[:, None]
        if neighbours is None:
            return conditioning
        return conditioning + self.neighbour_encoder(self._embed(neighbours.codes), neighbours.offsets)

    def _contexts(self, context: Tensor, codes: Codes) -> Iterator[Tensor]:
        """The context [B, N, width] of each of a position's codes, given its coarser codes [B, N]."""
        yield context
        for layer, table, grid in zip(self.depth_layers, self.depth_embeddings, codes, strict=False):
            context = layer(context, F.embedding(grid, table()))
            yield context

    @torch.no_grad()
    def sample(
        self,
        seeds: Sequence[int],
        levels: Tensor | None = None,
        covariates: Tensor | None = None,
        temperature: float = 1.0,
        nucleus: float = 1.0,
        guidance: float = 1.0,
        neighbours: Neighbours | None = None,
        choose: Callable[[Tensor, tuple[int, int, int]], Tensor] | None = None,
    ) -> Codes:
        """As `Prior.sample`; `temperature` and `nucleus` as in `draw_code`. Keys and values are computed once.

        `guidance`: weight of the logits given the covariates against those without (Ho and Salimans 2022).
        `neighbours`: slices of the same brains that are known already. `choose`, an entropy coder say, takes
        `draw_code`'s place: logits [B, K], (row, column, depth) -> codes int64 [B].
        """
        device = self.level_share.device
        levels = self.draw_levels(seeds) if levels is None else levels
        (rows, columns), depth, n = self.grid, len(self.output_embeddings), len(seeds)
        uniform = seeded_rows(seeds, rows * columns * depth, torch.rand).to(device).view(n, rows, columns, depth)
        covariates = self.draw_covariates(seeds) if covariates is None else covariates
        known = [covariates] if guidance == 1 else [covariates, self.unknown(n)]
        levels, streams = levels.to(device), len(known)  # of n rows each: with covariates, and, for guidance, without
        conditioning = torch.cat([self._conditioning(levels, each.to(device), neighbours) for each in known])
        tables = self.input_embeddings, self.output_embeddings, self.depth_embeddings
        inputs, outputs, depths = ([embedding() for embedding in each] for each in tables)
        canvas = conditioning.new_zeros(streams * n, rows + ABOVE, columns + 2 * BESIDE, self.inner)  # `causal_conv`'s
        kind = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else conditioning.dtype
        size = self.blocks[0].size
        cache = conditioning.new_zeros(len(self.blocks), 2, streams * n, rows * columns, size, dtype=kind)
        codes = torch.zeros(depth, n, rows, columns, dtype=torch.long, device=device)
        choose = choose or (lambda logits, place: draw_code(logits, uniform[:, *place], temperature, nucleus))
        for position in range(rows * columns):
            i, j = divmod(position, columns)
            x = (self.causal_conv.at(canvas, i, j) + conditioning[:, position])[:, None]
            for block, (keys, values) in zip(self.blocks, cache, strict=True):
                x = block.step(x, keys, values, position)
            context = self.norm(x)[:, 0]
            for k in range(depth):
                logits = _logits(context, outputs[k])
                if guidance != 1:
                    given, without = logits.chunk(2)
                    logits = torch.lerp(without, given, guidance)
                codes[k, :, i, j] = choose(logits, (i, j, k))
                drawn = codes[k, :, i, j].repeat(streams)
                canvas[:, i + ABOVE, j + BESIDE] += F.embedding(drawn, inputs[k])
                if k + 1 < depth:
                    context = self.depth_layers[k](context, F.embedding(drawn, depths[k]))
        return list(codes.unbind())


def _logits(context: Tensor, table: Tensor) -> Tensor:
    """Logits [..., K] of context [..., width] against the output embeddings [K, width]."""
    return F.linear(context, table) / math.sqrt(context.shape[-1])
