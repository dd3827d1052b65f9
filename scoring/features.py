"""What makes slices alike? Four feature spaces, fitted on the training slices alone.

Three need no download, since features learnt on photographs say little of images unlike them (Naeem et al. 2020,
section 4.3):
`pca`: the slice area-resized to 64x64, its first 64 principal components;
`randconv`: mean and standard deviation of every channel, after every layer, of a convolutional network with fixed
random weights, each standardised, their first 64 principal components. It sees what `pca` can't, such as blur;
`folds`: mean and standard deviation, over the tissue, of the structure tensor's coherence at three scales, each
standardised. It sees whether folds run on or are mottled, which the eye sees first and the other two don't.
The fourth is for figures that are to stand beside published ones:
`inception`: the 2,048 pooled features of torchvision's Inception v3, as they are.
"""

import itertools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from skimage.feature import structure_tensor
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import nn
from torchvision.models import Inception_V3_Weights, inception_v3

from runtime.errors import InputError
from scoring.metrics import FOREGROUND

SPACES = ("pca", "randconv", "folds")  # those that need no download
COMPONENTS = 64  # principal components kept
RANDOM_NET_SEED = 1  # the weights are part of the definition: another seed is another yardstick
RANDOM_NET_CHANNELS = (1, 8, 16, 32, 64, 128)
SCALES = (2, 4, 8)  # pixels: the structure tensor's windows, from a fold's width to a gyrus's
MARGIN = 2  # pixels around the tissue, beyond which a black background's gradients are 0


class Pixels(nn.Module):
    """A slice area-resized to 64x64: [B, 1, H, W] -> [B, 4096]."""

    width = 64 * 64

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, size=(64, 64), mode="area").flatten(1)


class RandomNet(nn.Module):
    """Channel means and deviations of a fixed random network: [B, 1, H, W] -> [B, 2 x 248].

    Five 3x3 convolutions of stride 2 without bias, leaky ReLU 0.2, He initialisation. The weights come from a
    CPU generator of their own and the network runs on the CPU in float32, so it is the same everywhere.
    """

    width = 2 * sum(RANDOM_NET_CHANNELS[1:])

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(RANDOM_NET_SEED)
        for i, (inner, outer) in enumerate(itertools.pairwise(RANDOM_NET_CHANNELS)):
            weight = torch.randn(outer, inner, 3, 3, generator=generator) * (2 / (9 * inner)) ** 0.5
            self.register_buffer(f"weight{i}", weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        statistics = []
        for weight in self.buffers():
            x = F.leaky_relu(F.conv2d(x, weight, stride=2, padding=1), 0.2)
            variance, mean = torch.var_mean(x, dim=(2, 3), correction=0)
            statistics += [mean, variance.sqrt()]
        return torch.cat(statistics, dim=1)


class Folds(nn.Module):
    """How far folds run on: [B, 1, H, W] -> [B, 6], mean and deviation of the coherence for each of `SCALES`.

    The structure tensor's eigenvalues l1 >= l2, seen through a Gaussian window, give the coherence (l1 - l2) /
    (l1 + l2) at a pixel (Bigün, Granlund and Wiklund 1991): 1 where grey values change across one direction alone, as
    along a fold, 0 where no direction stands out. Mean and deviation are those over the tissue.
    """

    width = 2 * len(SCALES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.stack([self.of_slice(image) for image in x[:, 0].numpy()]))

    @staticmethod
    def of_slice(image: np.ndarray) -> np.ndarray:
        """float32 [H, W] in [0, 1] -> float32 [6]; zeros where there is no tissue."""
        tissue = image > FOREGROUND / 255
        if not tissue.any():
            return np.zeros(Folds.width, np.float32)
        box = tuple(slice(max(at.min() - MARGIN, 0), at.max() + 1 + MARGIN) for at in np.nonzero(tissue))
        image, tissue = image[box], tissue[box]
        statistics = []
        for scale in SCALES:
            down, mixed, across = structure_tensor(image, sigma=scale, mode="nearest", order="rc")
            difference = np.hypot(down - across, 2 * mixed)  # of the eigenvalues, whose sum is the trace
            coherence = (difference / (down + across).clip(min=np.finfo(np.float32).tiny))[tissue]
            statistics += [coherence.mean(), coherence.std()]
        return np.array(statistics, np.float32)


class Inception(nn.Module):
    """Inception v3's pooled features: [B, 1, H, W] -> [B, 2048].

    The whole slice, resized to 299x299: the weights' own transform would crop the head. torchvision's weights
    are not those of the original FID, so figures agree with published ones roughly, not to the digit.
    """

    width = 2048

    def __init__(self) -> None:
        super().__init__()
        try:
            self.network = inception_v3(weights=Inception_V3_Weights.IMAGENET1K_V1)
        except (OSError, RuntimeError) as error:  # no network, no room, or a download cut short
            raise InputError(
                f"can't get Inception's weights ({error}): leave out --features inception, or copy"
                f" {Inception_V3_Weights.IMAGENET1K_V1.url} to {torch.hub.get_dir()}/checkpoints"
            ) from error
        self.network.fc = nn.Identity()
        self.eval()  # else batch normalisation would depend on the batch, and dropout on chance

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(x, size=(299, 299), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
        mean, std = x.new_tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
        return self.network((x - mean) / std)


class FeatureSpace:
    """One of the four spaces, fitted on training slices.

    Attributes:
        train: float64 [N, D], the training slices' features; distances between neighbours are taken here.
        scale: [D], divides features before a Frechet distance. Each of the D principal components is whitened
            and divided by sqrt(D), so that the training slices' total variance is 1: all components count
            alike, and a mean that is off by one standard deviation in each of them is a distance of 1. Without
            it one component, brightness, has half the variance of `randconv`, and real data against real data
            varies fourfold with the people drawn. Inception's features stay as published figures have them.
    """

    def __init__(self, name: str, train: np.ndarray, device: str | torch.device = "cpu") -> None:
        """`train`: uint8 [N, H, W]. `device` is where Inception runs; the others' place is the CPU."""
        # Exact to rounding. The randomised solver's last components depend on its draw, and what it gives for the
        # slices that it was fitted on differs from what it gives for the same slices as samples.
        pca = PCA(min(COMPONENTS, len(train) - 1), svd_solver="arpack", random_state=0)
        self.device = torch.device(device if name == "inception" else "cpu")
        match name:
            case "pca":
                network, self.projection = Pixels(), make_pipeline(pca)
            case "randconv":
                network, self.projection = RandomNet(), make_pipeline(StandardScaler(copy=False), pca)
            case "folds":
                network, self.projection = Folds(), make_pipeline(StandardScaler(copy=False), PCA(svd_solver="full"))
            case "inception":
                network, self.projection = Inception(), make_pipeline(FunctionTransformer())
            case _:
                raise InputError(f"no feature space {name!r}: there are {', '.join(SPACES)} and inception")
        self.network = network.to(self.device)
        self.train = self.projection.fit_transform(self._extract(train)).astype(np.float64)
        deviation = np.maximum(self.train.std(axis=0), np.finfo(np.float32).eps)
        self.scale = 1.0 if name == "inception" else deviation * np.sqrt(len(deviation))

    def features(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W] -> float64 [N, D]."""
        return self.projection.transform(self._extract(images)).astype(np.float64)

    def _extract(self, images: np.ndarray, batch: int = 16) -> np.ndarray:
        """The network's features before projection, float32; small batches stay in the processor's cache."""
        features = np.empty((len(images), self.network.width), np.float32)

        @torch.inference_mode()
        def fill(start: int) -> None:
            # Into one array: many small ones, between freed batches, would keep those from the operating system.
            rows = slice(start, start + batch)
            features[rows] = self.network(unit_batch(images[rows], self.device)).cpu().numpy()

        on_all_cores(fill, range(0, len(images), batch))
        return features


def on_all_cores(function: Callable, items: Iterable) -> list:
    """`[function(item) for item in items]`, each item on one core.

    PyTorch would split every small operation over the cores instead, and wait for the slowest each time: on a
    machine that does other work too, that takes many times as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)


def unit_batch(images: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """uint8 [N, H, W] -> float32 [N, 1, H, W] in [0, 1]."""
    return torch.tensor(images, device=device)[:, None].float() / 255  # a copy: the slices may be read-only
