"""How does an autoregressive prior draw a code from its logits?"""

import torch
from torch import Tensor


def draw_code(logits: Tensor, uniform: Tensor, temperature: float = 1.0, nucleus: float = 1.0) -> Tensor:
    """Codes int64 [B] drawn from logits [B, K] by inversion of uniform [B] in [0, 1).

    `temperature` divides the logits. `nucleus` keeps the fewest most likely codes whose probabilities add up to it
    (Holtzman et al. 2020, eq. 2); 1 keeps all.
    """
    probabilities = (logits.float() / temperature).softmax(1)
    if nucleus < 1:
        likeliest, codes = probabilities.sort(dim=1, descending=True)
        beyond = likeliest.cumsum(1) - likeliest >= nucleus
        probabilities = torch.zeros_like(probabilities).scatter_(1, codes, likeliest.masked_fill(beyond, 0))
    cumulative = probabilities.cumsum(1)
    drawn = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]
    return drawn.clamp_max(logits.shape[1] - 1)
