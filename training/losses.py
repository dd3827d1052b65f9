"""What is learnt by? Distances of reconstructions from their slices, and what critics and their opponents want."""

import torch
import torch.nn.functional as F
from torch import Tensor

from scoring.metrics import ssim


def l1_ssim(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error + (1 - SSIM) / 2 of each image, [B].

    Not of the clamped picture: where black may be any negative number, the latents of the background grow for ever.
    """
    return (reconstruction - images).abs().mean(dim=(1, 2, 3)) + 0.5 * (1 - ssim(reconstruction, images))


def squared_error(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean squared error of each image, [B]."""
    return (reconstruction - images).square().mean(dim=(1, 2, 3))


def r3gan_losses(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Generator's and discriminator's relativistic loss for scores of one shape (Huang et al. 2024, eq. 2)."""
    return F.softplus(real - fake).mean(), F.softplus(fake - real).mean()


def gradient_penalty(scores: Tensor, inputs: Tensor) -> Tensor:
    """|d sum of the scores / d input|^2 for each score: R1 on real inputs, R2 on fake ones (Mescheder et al. 2018).

    `scores`: one for each of `inputs` [B, C, h, w], or a map of them; the mean over all.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
    return gradient.square().sum() / scores.numel()
