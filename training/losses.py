"""How far is a reconstruction from its slice? The losses of the autoencoder."""

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
