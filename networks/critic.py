"""What tells decoded pictures from real ones? The opponent of a decoder that is to draw texture."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

DETAIL = 4.0  # how much finest detail is enlarged
NEIGHBOURHOOD = 4  # positions, in both directions


class PatchCritic(nn.Module):
    """A patch critic (Isola et al. 2017, section 3.2.2) that looks twice: at a fold, and at a lobe around it.

    It is shown the picture and, enlarged, what a 3x3 mean leaves of it: a sharp fold and a blurred one differ by a few
    hundredths of grey, which a critic that sees the picture alone takes thousands of steps to notice. Pixels are
    folded into channels two by two; the first scores see 58 pixels, the second ones 154. The layers are spectrally
    normalised (Miyato et al. 2018), so that no gradient penalty is needed.
    """

    def __init__(self, width: int = 48):
        super().__init__()

        def layer(n_in: int, n_out: int, stride: int = 1) -> nn.Module:
            size = 4 if stride == 2 else 3
            return spectral_norm(nn.Conv2d(n_in, n_out, size, stride, padding=1))

        self.near = nn.ModuleList(
            [
                layer(8, width),  # [B, width, H/2, W/2]
                layer(width, 2 * width, stride=2),  # [B, 2 width, H/4, W/4]
                layer(2 * width, 3 * width, stride=2),  # [B, 3 width, H/8, W/8]
                layer(3 * width, 3 * width),
            ]
        )
        self.far = nn.ModuleList(
            [
                layer(3 * width, 4 * width, stride=2),  # [B, 4 width, H/16, W/16]
                layer(4 * width, 4 * width),
            ]
        )
        self.scores = nn.ModuleList([nn.Conv2d(n_in, 1, 3, padding=1) for n_in in (3 * width, 4 * width)])

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """images [B, 1, H, W], H and W multiples of 16 -> two maps of scores [B, 1, h, w], and every layer's features.

        The higher a score, the more real its neighbourhood.
        """
        mean = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        x = F.pixel_unshuffle(torch.cat([images, DETAIL * (images - mean)], dim=1), 2)
        scores, features = [], []
        for layers, score in zip((self.near, self.far), self.scores, strict=True):
            for layer in layers:
                x = F.leaky_relu(layer(x), 0.2)
                features.append(x)
            scores.append(score(x))
        return scores, features


def hinge(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """The critic's hinge loss, the mean over its score maps (Miyato et al. 2018, eq. 16)."""
    losses = [F.relu(1 - r.float()).mean() + F.relu(1 + f.float()).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(losses).mean()


def feature_distance(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Mean absolute difference of local means of features, in units of the real ones' mean size, summed over layers.

    Feature matching (Salimans et al. 2016, section 3.1), in windows of `NEIGHBOURHOOD` positions: how much texture
    there is, and of which kind, and not where each of its edges lies, which a few codes can't tell; whoever had to say
    where would do best to blur it. Normalised as by Défossez et al. 2022, eq. 5.
    """
    means = [[_local_mean(feature.float()) for feature in side] for side in (real, fake)]
    return torch.stack([(f - r).abs().mean() / r.abs().mean() for r, f in zip(*means, strict=True)]).sum()


def _local_mean(feature: Tensor) -> Tensor:
    return F.avg_pool2d(feature, [min(NEIGHBOURHOOD, side) for side in feature.shape[2:]])
