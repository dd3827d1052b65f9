"""How do many slices go through an autoencoder? In batches, cropped to its box and pasted back."""

import math

import numpy as np
import torch

from dataset import Box
from modules import Autoencoder, Codes
from runtime.compute import Compute

BATCH = 32


class Codec:
    """An autoencoder as a compressor of whole pictures: uint8 [N, H, W] <-> codes <-> float32 [N, H, W].

    The autoencoder sees only `box` of the picture, in which all content of its training slices lies; what is
    outside comes back black. Codes are int16 grids [N, h, w] on the device.
    """

    def __init__(self, autoencoder: Autoencoder, about: dict, on: Compute):
        self.autoencoder = autoencoder.eval().to(on.device, memory_format=torch.channels_last)
        self.box, self.size, self.on = Box(*about["box"]), tuple(about["size"]), on

    @torch.inference_mode()
    def encode(self, images: np.ndarray) -> Codes:
        """uint8 [N, H, W] -> code grids int16 [N, h, w]."""
        parts = []
        for start in range(0, len(images), BATCH):
            pixels = torch.from_numpy(np.array(self.box.crop(images[start : start + BATCH])))
            with self.on.autocast():
                grids = self.autoencoder.encode(pixels[:, None].to(self.on.device).float() / 255)
            parts.append([grid.to(torch.int16) for grid in grids])
        return [torch.cat(grids) for grids in zip(*parts, strict=True)]

    @torch.inference_mode()
    def decode(self, codes: Codes) -> np.ndarray:
        """Code grids [N, h, w] -> float32 [N, H, W] in [0, 1]."""
        pictures = np.empty((len(codes[0]), *self.size), np.float32)
        for start in range(0, len(pictures), BATCH):
            batch = [grid[start : start + BATCH].long() for grid in codes]
            with self.on.autocast():
                decoded = self.autoencoder.decode(batch)
            pictures[start : start + BATCH] = self.box.paste(decoded, self.size)[:, 0].cpu().numpy()
        return pictures

    def bytes_per_image(self) -> float:
        """Codes x log2 K / 8, over all grids."""
        shapes = self.grid_shapes()
        bits = [h * w * math.log2(k) for (h, w), k in zip(shapes, self.autoencoder.codebook_sizes, strict=True)]
        return sum(bits) / 8

    def grid_shapes(self) -> list[tuple[int, int]]:
        """(h, w) of each code grid."""
        blank = np.zeros((1, *self.size), np.uint8)
        return [tuple(grid.shape[1:]) for grid in self.encode(blank)]


def to_uint8(pictures: np.ndarray) -> np.ndarray:
    """float [N, H, W] in [0, 1] -> uint8, rounded."""
    return np.round(pictures * 255).astype(np.uint8)
