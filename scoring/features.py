"""What makes slices alike? Three feature spaces, fitted to the training slices alone.

Features learnt from photographs would say little about images unlike them (Naeem et al. 2020, section 4.3).
`pca`: the slice area-resized to 64x64, its first 64 principal components;
`randconv`: mean and standard deviation of every channel, after every layer, of a convolutional network with fixed
random weights, each standardised, their first 64 principal components. It sees what `pca` can't, such as blur;
`folds`: mean and standard deviation, over the tissue, of the structure tensor's coherence at three scales, each
standardised. It sees whether folds run on or are mottled, which the eye sees first and the other two don't.
"""

import itertools
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from sklearn.decomposition import PCA
from sklearn.feature_selection import VarianceThreshold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from scoring.batches import on_all_cores, unit_batch
from scoring.metrics import FOREGROUND

COMPONENTS = 64  # principal components kept
BATCH = 16  # slices: few, so that they stay in the processor's cache
RANDOM_NET_SEED = 1  # the weights are part of the definition: another seed is another yardstick
RANDOM_NET_CHANNELS = (1, 8, 16, 32, 64, 128)
SCALES = (2, 4, 8)  # pixels: the structure tensor's windows, from a fold's width to a gyrus's
MARGIN = 2  # pixels around the tissue, beyond which a black background's gradients are 0


class Pixels(nn.Module):
    """A slice area-resized to 64x64: [B, 1, H, W] -> [B, 4096]."""

    width = 64 * 64

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, size=(64, 64), mode="area").flatten(1)


class RandomNet(nn.Module):
    """Channel means and deviations of a fixed random network: [B, 1, H, W] -> [B, 2 x 248].

    Five 3x3 convolutions of stride 2 without bias, leaky ReLU 0.2, He initialisation. The weights come from a generator
    of their own and the network runs in float32 on the CPU, so it is the same everywhere.
    """

    width = 2 * sum(RANDOM_NET_CHANNELS[1:])

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(RANDOM_NET_SEED)
        for i, (inner, outer) in enumerate(itertools.pairwise(RANDOM_NET_CHANNELS)):
            weight = torch.randn(outer, inner, 3, 3, generator=generator) * (2 / (9 * inner)) ** 0.5
            self.register_buffer(f"weight{i}", weight)

    def forward(self, x: Tensor) -> Tensor:
        statistics = []
        for weight in self.buffers():
            x = F.leaky_relu(F.conv2d(x, weight, stride=2, padding=1), 0.2)
            # `torch.var_mean` takes five times as long as the convolution.
            mean = x.mean(dim=(2, 3), keepdim=True)
            statistics += [mean[..., 0, 0], (x - mean).square_().mean(dim=(2, 3)).sqrt()]
        return torch.cat(statistics, dim=1)


class Folds(nn.Module):
    """How far folds run on: [B, 1, H, W] -> [B, 6], mean and deviation of the coherence at each of `SCALES`.

    The structure tensor's eigenvalues l1 >= l2, seen through a Gaussian window, give the coherence (l1 - l2) /
    (l1 + l2) of a pixel (Bigün, Granlund and Wiklund 1991): 1 where grey values change in one direction only, as
    across a fold, 0 where no direction stands out. Mean and deviation are those over the tissue, 0 without tissue.
    """

    width = 2 * len(SCALES)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.of_slice(image) for image in x[:, 0]])

    @staticmethod
    def of_slice(image: Tensor) -> Tensor:
        """float32 [H, W] in [0, 1] -> [6]."""
        tissue = image > FOREGROUND / 255
        if not tissue.any():
            return torch.zeros(Folds.width)
        box = tuple(slice(max(at.min() - MARGIN, 0), at.max() + 1 + MARGIN) for at in np.nonzero(tissue.numpy()))
        image, tissue = image[box], tissue[box]
        down, mixed, across = structure_tensor(image)
        difference = ((down - across).square() + 4 * mixed.square()).sqrt()  # of eigenvalues, whose sum is the trace
        coherence = difference / (down + across).clamp_min(torch.finfo(torch.float32).tiny)
        mean = (coherence * tissue).sum(dim=(1, 2), keepdim=True) / tissue.sum()
        variance = ((coherence - mean).square() * tissue).sum(dim=(1, 2)) / tissue.sum()
        return torch.stack((mean[:, 0, 0], variance.sqrt()), dim=1).flatten()


def structure_tensor(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Its elements (down, down), (down, across) and (across, across) at each of `SCALES`: [h, w] -> 3 of [3, h, w].

    Up to a factor those of scikit-image, with Sobel's derivatives and repeated borders, in a third of its time.
    """
    h, w = image.shape
    padded = F.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
    down, across = padded[2:] - padded[:-2], padded[:, 2:] - padded[:, :-2]
    down = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    across = across[:-2] + 2 * across[1:-1] + across[2:]
    products = torch.stack((down * down, down * across, across * across), dim=1)  # [h, 3, w]
    blurred = gaussian_filters(h).flatten(0, 1) @ products.flatten(1)  # [3 h, 3 w]: all scales, down
    blurred = blurred.view(len(SCALES), h * 3, w) @ gaussian_filters(w).mT  # each scale, across
    return blurred.view(len(SCALES), h, 3, w).unbind(dim=2)


@lru_cache(maxsize=256)
def gaussian_filters(length: int) -> Tensor:
    """The Gaussian filter of each of `SCALES` as a matrix, float32 [3, length, length]: products are fastest."""
    filters = [gaussian_filter1d(np.eye(length), scale, axis=0, mode="nearest") for scale in SCALES]
    return torch.tensor(np.stack(filters), dtype=torch.float32)


SPACES = {"pca": Pixels, "randconv": RandomNet, "folds": Folds}


class FeatureSpace:
    """One of `SPACES`, fitted to training slices.

    Attributes:
        train: float64 [N, D], the training slices' features; distances between neighbours are taken here.
        scale: [D], divides features before a Frechet distance. Each of the D principal components is whitened and
            divided by sqrt(D), so that the training slices' total variance is 1: all components count alike, and a
            mean that is off by one standard deviation in each of them is a distance of 1. Without it one component,
            brightness, has half the variance of `randconv`, and real data against real data varies fourfold with the
            people drawn.
    """

    def __init__(self, name: str, train: np.ndarray) -> None:
        """`train`: uint8 [N, H, W]."""
        self.name, self.network = name, SPACES[name]()
        raw = self._raw_features(train)
        # All decompositions are exact to rounding: the randomised solver's last components would depend on chance.
        varying = np.count_nonzero(np.ptp(raw, axis=0))
        components = min(COMPONENTS, len(raw) - 1, varying - 1)
        solver = "covariance_eigh" if varying < len(raw) else "arpack"  # the faster one
        self.projection = {
            "pca": lambda: make_pipeline(VarianceThreshold(), PCA(components, svd_solver=solver, random_state=0)),
            "randconv": lambda: make_pipeline(StandardScaler(), PCA(components, svd_solver="covariance_eigh")),
            "folds": lambda: make_pipeline(StandardScaler(), PCA(svd_solver="full")),
        }[name]()
        self.train = self.projection.fit_transform(raw).astype(np.float64)
        deviation = np.maximum(self.train.std(axis=0), np.finfo(np.float32).eps)
        self.scale = deviation * np.sqrt(len(deviation))

    def features(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W] -> float64 [N, D]."""
        return self.projection.transform(self._raw_features(images)).astype(np.float64)

    def _raw_features(self, images: np.ndarray) -> np.ndarray:
        """The network's features before projection, float32."""
        features = np.empty((len(images), self.network.width), np.float32)

        @torch.inference_mode()
        def fill(start: int) -> None:
            # Into one array: many small ones, between freed batches, would keep those from the operating system.
            rows = slice(start, start + BATCH)
            features[rows] = self.network(unit_batch(images[rows])).numpy()

        on_all_cores(fill, range(0, len(images), BATCH), f"slices in {self.name}")
        return features
