"""What can every prior do? Draw codes, a sample for each seed and slice level."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Codes = list[Tensor]  # int64 grids [B, h, w]: one for VQVAE, top and bottom for VQVAE2, one per depth for RQVAE


class Prior(nn.Module, ABC):
    """A distribution over the codes of an autoencoder's training slices.

    Slice levels are those of the data, in [0, levels); level `levels` is that of slices whose level isn't known.

    Attributes:
        arguments: plain values, every size of the network among them; with these it is built again.
        title: what figures call it.
        levels: how many slice levels it knows; 0 where it takes no notice of them.
        temperature: what codes are drawn with where nothing else is asked for, see `draw_code`.
        level_share: float32 [levels + 1], how often each level occurs in training; as often it is drawn when none is
            asked for.
    """

    title: str
    temperature = 1.0

    def __init__(self, levels: int, arguments: dict[str, Any]):
        super().__init__()
        self.levels, self.arguments = levels, arguments
        self.register_buffer("level_share", torch.ones(levels + 1))

    @abstractmethod
    def sample(self, seeds: Sequence[int], levels: Tensor | None = None) -> Codes:
        """One sample a seed, which depends on that seed and its level only: code grids int64 [len(seeds), h, w].

        `levels` int64 [len(seeds)] in [0, levels]; None draws them as often as they are in training. In eval mode
        only.
        """


def level_shares(levels: Tensor, known: int) -> Tensor:
    """How often each level in [0, known] occurs in levels int64 [N]: float32 [known + 1]."""
    ones = torch.ones(len(levels), device=levels.device)
    return torch.zeros(known + 1, device=levels.device).index_add_(0, levels, ones) / len(levels)


def draw_levels(seeds: Sequence[int], share: Tensor) -> Tensor:
    """A slice level int64 [len(seeds)] for each seed, as likely as its `share` [levels + 1] says."""
    streams = [seed + 2**32 for seed in seeds]  # other random numbers than those that the sample is drawn with
    uniform = seeded_rows(streams, 1, torch.rand)[:, 0].double()
    cumulative = share.double().cpu().cumsum(0)
    return torch.searchsorted(cumulative, uniform * cumulative[-1], right=True)


def seeded_rows(seeds: Sequence[int], n: int, draw: Callable[..., Tensor]) -> Tensor:
    """[len(seeds), n] random numbers, each row from a CPU generator of its own: the same on any device."""
    return torch.stack([draw(n, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def draw_code(logits: Tensor, uniform: Tensor, temperature: float = 1.0, nucleus: float = 1.0) -> Tensor:
    """Codes int64 [B] drawn from logits [B, K] by inversion of uniform [B] in [0, 1).

    `temperature` divides the logits. `nucleus`: of the most likely codes so many are in the draw as it takes to get
    this probability together (Holtzman et al. 2020, eq. 2); 1 for all.
    """
    probabilities = (logits.float() / temperature).softmax(1)
    if nucleus < 1:
        likeliest, codes = probabilities.sort(dim=1, descending=True)
        beyond = likeliest.cumsum(1) - likeliest >= nucleus
        probabilities = torch.zeros_like(probabilities).scatter_(1, codes, likeliest.masked_fill(beyond, 0))
    cumulative = probabilities.cumsum(1)
    drawn = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]
    return drawn.clamp_max(logits.shape[1] - 1)
