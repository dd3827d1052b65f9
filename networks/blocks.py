"""What are the networks built of? Residual blocks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClassicResidual(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))), without biases, as in the original VQ-VAE (van den Oord et al. 2017)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.conv3 = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.conv1 = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv1(F.relu(self.conv3(F.relu(x))))


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each position (as ConvNeXt has it, Liu et al. 2022).

    With statistics over positions, as of a GroupNorm, every pixel would depend on the whole canvas: on how much black
    surrounds a brain, and on how bright the rest is.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> the same shape."""
        return F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias).movedim(-1, 1)


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with `ChannelNorm`."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            ChannelNorm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            ChannelNorm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class PlainResidual(nn.Module):
    """x + conv(lrelu(conv(lrelu(x)))) without normalisation, small at the start (Huang et al. 2024, section 4)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2.weight.data *= 0.1
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(x, 0.2)), 0.2))
