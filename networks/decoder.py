"""How do the first few codes of each position become a picture? The decoder of `RQVAE`."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from networks.blocks import Residual


class PrefixDecoder(nn.Module):
    """Latents to a picture, residual blocks at every size up to a quarter of the picture's; told the number of codes.

    Four by four pixels unfold from the channels at the end, so that the width works on small grids only.
    """

    def __init__(self, dim: int, widths: Sequence[int], blocks: int, depth: int):
        """`widths`: channels at each size, from the latents' to a quarter of the picture's. `depth`: most codes."""
        super().__init__()
        self.first = nn.Conv2d(dim, widths[0], 3, padding=1)
        self.told = nn.Embedding(depth, widths[0])  # how many codes the latents were made of
        nn.init.zeros_(self.told.weight)
        layers: list[nn.Module] = [Residual(widths[0]) for _ in range(blocks)]
        for n_in, n_out in pairwise(widths):
            layers += [nn.Conv2d(n_in, 4 * n_out, 3, padding=1), nn.PixelShuffle(2)]
            layers += [Residual(n_out) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 16, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, z_q: Tensor, kept: Tensor | None = None) -> Tensor:
        """Latents [B, dim, h, w] of the first `kept` codes (int64 [B], None: all) -> images (not clamped)."""
        told = self.told.weight[-1:] if kept is None else self.told(kept - 1)
        return self.layers(self.first(z_q) + told[:, :, None, None])
