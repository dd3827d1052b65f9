"""What do the networks minimise? A distance of pictures for the autoencoder, adversarial losses for the GAN."""

import torch
import torch.nn.functional as F
from torch import Tensor

from scoring.metrics import ssim


def l1_ssim(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error + (1 - SSIM) / 2 of each image, [B].

    Of the unclamped picture: where black may be any negative number, the background's latents grow without limit.
    """
    return (reconstruction - images).abs().mean(dim=(1, 2, 3)) + 0.5 * (1 - ssim(reconstruction, images))


def mean_squared_error(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean squared error of each image, [B]."""
    return (reconstruction - images).square().mean(dim=(1, 2, 3))


def r3gan_losses(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Generator's and discriminator's relativistic loss for logits of one shape (Huang et al. 2024, eq. 2)."""
    return F.softplus(real - fake).mean(), F.softplus(fake - real).mean()


def bce_losses(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Generator's (non-saturating) and discriminator's binary cross-entropy (Goodfellow et al. 2014)."""
    return F.softplus(-fake).mean(), F.softplus(-real).mean() + F.softplus(fake).mean()


def gradient_penalty(scores: Tensor, inputs: Tensor) -> Tensor:
    """|d sum(scores) / d input|^2 for each input, [B]: R1 on real inputs, R2 on fake ones (Mescheder et al. 2018).

    Always float32, since squares of small gradients vanish in bf16.
    """
    (gradient,) = torch.autograd.grad(scores.float().sum(), inputs, create_graph=True)
    return gradient.float().square().flatten(1).sum(1)
