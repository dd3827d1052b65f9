"""How do many slices go through an autoencoder? In batches, cropped to their content and pasted back."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import SupportsIndex

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dataset import Box, content_box
from modules import Autoencoder, Codes
from networks.painter import Painter
from reading.images import whole_blocks
from runtime.compute import Compute
from runtime.errors import InputError

BATCH = 32
MARGIN = 8  # pixels around the coded box, in figures
PIXELS = 32 * 256 * 256  # in a batch at most: larger slices go in smaller batches


class PlacedCodes(list):
    """Code grids [N, h, w], coarse to fine, with their place: in `box` of pictures of `size` (H, W).

    The first few of them, `codes[:2]`, have the same place.
    """

    def __init__(self, grids: Iterable, box: Box, size: tuple[int, int]):
        super().__init__(grids)
        self.box, self.size = box, size

    def __getitem__(self, which: SupportsIndex | slice):
        chosen = super().__getitem__(which)
        return PlacedCodes(chosen, self.box, self.size) if isinstance(which, slice) else chosen


def rows_by_box(slices: np.ndarray, least: Box | None) -> dict[Box, np.ndarray]:
    """The boxes in which slices [N, H, W] are coded -> the indices, int64 [n], of the slices that each box holds.

    A slice's box holds its content and `least`: it is `least` itself where no content lies outside.
    """
    boxes: dict[Box, list[int]] = {}
    canvases = _on_canvas(slices)
    for i in range(len(slices)):
        boxes.setdefault(content_box(canvases[i : i + 1], least), []).append(i)
    return {box: np.array(rows) for box, rows in boxes.items()}


class Codec:
    """An autoencoder as a compressor of whole pictures: slices [N, H, W] <-> codes <-> pictures [N, H, W].

    Only a box of a picture is coded; the rest decodes to black. The box holds all content of the slices given. For
    slices of the training's size, it also holds `box`, the training slices' own, so that bytes are comparable.

    Args:
        data: "box" and "size" [H, W] of the training data, as a checkpoint's description has them.
        on: what codes are computed with.
        painter: renders sampled codes with texture; None for the plain decoder.
        paint_on: what the painter computes with, where that differs.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        data: Mapping,
        on: Compute,
        painter: Painter | None = None,
        paint_on: Compute | None = None,
    ):
        self.autoencoder = autoencoder.eval().to(on.device, memory_format=torch.channels_last)
        self.painter = painter and painter.eval().to(on.device, memory_format=torch.channels_last)
        self.box, self.size, self.on, self.paint_on = Box(*data["box"]), tuple(data["size"]), on, paint_on or on

    def box_of(self, slices: np.ndarray) -> Box:
        """The one box that `encode` codes of slices [N, H, W], on a canvas with sides of multiples of 16."""
        return content_box(_on_canvas(slices), self.least(slices))

    def window(self, slices: np.ndarray) -> Box:
        """The part of slices [N, H, W] that figures show: the coded box with a small margin."""
        return self.box_of(slices).around(MARGIN, slices.shape[1:])

    def least(self, slices: np.ndarray) -> Box | None:
        """What is coded of each of these slices [N, H, W] at least: `box`, where they are of the training's size."""
        return self.box if slices.shape[1:] == self.size else None

    @torch.no_grad()  # not `inference_mode`, whose tensors can't be trained with
    def encode(self, slices: np.ndarray, box: Box | None = None) -> PlacedCodes:
        """uint8 in [0, 255] or float in [0, 1], [N, H, W] -> code grids int16 [N, h, w], coarse to fine.

        `box`: what to code, a rectangle with sides of multiples of 16; None for `box_of` these slices.
        """
        box, parts = box or self.box_of(slices), []
        for rows in _batches(len(slices), box, "encoding"):
            batch = np.array(box.crop(_on_canvas(slices[rows])))  # a copy: slices of a data set are read-only
            batch = torch.from_numpy(batch)[:, None].to(self.on.device)
            images = batch.float() / 255 if batch.dtype == torch.uint8 else batch.float()
            with self.on.autocast():
                parts.append([grid.to(torch.int16) for grid in self.autoencoder.encode(images)])
        grids = [torch.cat(grids) for grids in zip(*parts, strict=True)]
        return PlacedCodes(grids, box, slices.shape[1:])

    def decode(self, codes: Codes) -> np.ndarray:
        """Code grids [N, h, w], on any device -> float32 [N, H, W] in [0, 1].

        Codes without a place lie in `box` if they have the training's grid; other grids become pictures of their own
        size. Where the autoencoder has several codes per position, the first grids alone will do.
        """
        return self._pictures(codes, lambda grids, _: self.autoencoder.decode(grids), self.on, "decoding")

    def paint(self, codes: Codes, seeds: Sequence[int], slices_per_seed: int = 1) -> np.ndarray:
        """Sampled code grids [N, h, w] -> float32 [N, H, W] in [0, 1], with texture by the painter.

        The painter works from the first code of each position, with noise that depends on the seed alone: `seeds` has
        one for each `slices_per_seed` slices, which are of one brain. `decode` where there is no painter, or where the
        codes are complete.
        """
        if self.painter is None or len(codes) == self.autoencoder.depth:
            return self.decode(codes)
        height, width = (side * self.autoencoder.downsample for side in codes[0].shape[1:])

        def painted(grids: Codes, rows: slice) -> Tensor:
            z_q = self.autoencoder.embed(grids)
            plain = self.autoencoder.decode_latents(z_q, 1).float().clamp(0, 1)
            first, end = rows.start // slices_per_seed, -(-rows.stop // slices_per_seed)  # brains of these slices
            noise = torch.cat([self.painter.noise(seed, slices_per_seed, height, width) for seed in seeds[first:end]])
            noise = noise[rows.start - first * slices_per_seed :][: len(z_q)]
            return self.painter.paint(plain, z_q, noise.to(self.on.device))

        return self._pictures(codes[:1], painted, self.paint_on, "painting")

    @torch.no_grad()
    def _pictures(self, codes: Codes, make: Callable[[Codes, slice], Tensor], on: Compute, doing: str) -> np.ndarray:
        """The pictures that `make` gives for batches of codes, and the rows of these, pasted to whole pictures."""
        box, size = (codes.box, codes.size) if isinstance(codes, PlacedCodes) else self._place(codes)
        canvas = whole_blocks(size)
        pictures = np.empty((len(codes[0]), *size), np.float32)
        for rows in _batches(len(pictures), box, doing):
            batch = [torch.as_tensor(grid[rows]).to(self.on.device).long() for grid in codes]
            with on.autocast():
                made = make(batch, rows)
            pictures[rows] = box.paste(made, canvas)[:, 0, : size[0], : size[1]].float().cpu().numpy()
        if not np.isfinite(pictures).all():
            raise InputError(f"{doing} these codes gives NaN or infinity: the weights are damaged, give others")
        return pictures

    def _place(self, codes: Codes) -> tuple[Box, tuple[int, int]]:
        height, width = codes[-1].shape[1:]
        if (height, width) == self.grid_shapes()[-1]:
            return self.box, self.size
        size = height * self.autoencoder.downsample, width * self.autoencoder.downsample
        return Box(0, 0, *size), size

    def bytes_per_image(self, box: Box | None = None, depth: int | None = None) -> float:
        """Codes x log2 K / 8 of all grids, or of the first `depth`, for what is in `box` (default the training's)."""
        shapes, sizes = self.grid_shapes(box), self.autoencoder.codebook_sizes
        bits = [h * w * math.log2(k) for (h, w), k in zip(shapes, sizes, strict=True)]
        return sum(bits[:depth]) / 8

    def grid_shapes(self, box: Box | None = None) -> list[tuple[int, int]]:
        """(h, w) of each code grid of what is in `box` (default the training's)."""
        box = box or self.box
        return self.autoencoder.grid_shapes(box.height, box.width)


def _batches(number: int, box: Box, doing: str) -> Iterable[slice]:
    """Rows of each batch, with a progress bar if they take long. Larger boxes go in smaller batches."""
    step = max(1, min(BATCH, PIXELS // (box.height * box.width)))
    rows = [slice(start, min(start + step, number)) for start in range(0, number, step)]
    return tqdm(rows, doing, unit="batch", disable=None, delay=2, leave=False)


def _on_canvas(slices: np.ndarray) -> np.ndarray:
    """Slices [N, H, W], with black added at the bottom and on the right up to multiples of 16."""
    (height, width), (below, right) = slices.shape[1:], whole_blocks(slices.shape[1:])
    if (height, width) == (below, right):
        return slices
    return np.pad(slices, ((0, 0), (0, below - height), (0, right - width)))


def to_uint8(pictures: np.ndarray) -> np.ndarray:
    """float [N, H, W] in [0, 1] -> uint8, rounded."""
    return np.round(pictures * 255).astype(np.uint8)
