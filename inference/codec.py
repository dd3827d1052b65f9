"""How do many slices go through an autoencoder? In batches, cropped to its box and pasted back."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from dataset import Box
from modules import Autoencoder
from networks.prior import Codes
from runtime.compute import Compute

BATCH = 32


class Codec:
    """An autoencoder as a compressor of whole pictures: slices [N, H, W] <-> codes <-> pictures [N, H, W].

    The autoencoder sees only `box` of the picture, in which all content of its training slices lies; what is
    outside comes back black. Codes are int16 grids [N, h, w] on the device. `data` is what a checkpoint says of its
    training data; its "box" and "size" [H, W] are needed here.
    """

    def __init__(self, autoencoder: Autoencoder, data: Mapping, on: Compute):
        self.autoencoder = autoencoder.eval().to(on.device, memory_format=torch.channels_last)
        self.box, self.size, self.on = Box(*data["box"]), tuple(data["size"]), on

    @torch.no_grad()  # and not `inference_mode`, whose tensors nobody could train with
    def encode(self, slices: np.ndarray | Tensor) -> Codes:
        """uint8 in [0, 255] or float in [0, 1], [N, H, W] -> code grids int16 [N, h, w], coarse to fine."""
        parts = []
        for start in range(0, len(slices), BATCH):
            batch = self.box.crop(slices[start : start + BATCH])
            if isinstance(batch, np.ndarray):
                batch = torch.from_numpy(np.array(batch))  # a copy: slices of a data set are read-only
            batch = batch[:, None].to(self.on.device)
            images = batch.float() / 255 if batch.dtype == torch.uint8 else batch.float()
            with self.on.autocast():
                grids = self.autoencoder.encode(images)
            parts.append([grid.to(torch.int16) for grid in grids])
        return [torch.cat(grids) for grids in zip(*parts, strict=True)]

    @torch.no_grad()
    def decode(self, codes: Codes) -> np.ndarray:
        """Code grids [N, h, w], on any device -> float32 [N, H, W] in [0, 1]."""
        pictures = np.empty((len(codes[0]), *self.size), np.float32)
        for start in range(0, len(pictures), BATCH):
            batch = [grid[start : start + BATCH].to(self.on.device).long() for grid in codes]
            with self.on.autocast():
                decoded = self.autoencoder.decode(batch)
            pictures[start : start + BATCH] = self.box.paste(decoded, self.size)[:, 0].cpu().numpy()
        return pictures

    def cut_off(self, slices: np.ndarray) -> int:
        """How many of the slices [N, H, W] aren't black outside of the box."""
        everywhere, inside = (np.count_nonzero(part, axis=(1, 2)) for part in (slices, self.box.crop(slices)))
        return int((everywhere > inside).sum())

    def bytes_per_image(self) -> float:
        """Codes x log2 K / 8, over all grids."""
        shapes = self.grid_shapes()
        bits = [h * w * math.log2(k) for (h, w), k in zip(shapes, self.autoencoder.codebook_sizes, strict=True)]
        return sum(bits) / 8

    def grid_shapes(self) -> list[tuple[int, int]]:
        """(h, w) of each code grid."""
        return self.autoencoder.grid_shapes(self.box.height, self.box.width)


def to_uint8(pictures: np.ndarray) -> np.ndarray:
    """float [N, H, W] in [0, 1] -> uint8, rounded."""
    return np.round(pictures * 255).astype(np.uint8)
