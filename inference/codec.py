"""How do many slices go through an autoencoder? In batches, cropped to what they hold and pasted back."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Self, SupportsIndex

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dataset import Box, content_box
from modules import Autoencoder
from networks.painter import Painter
from networks.prior import Codes
from reading.images import whole_blocks
from runtime.compute import Compute
from runtime.errors import InputError

BATCH = 32
MARGIN = 8  # pixels around what is coded, in figures
PIXELS = 32 * 256 * 256  # of a batch: larger slices go in smaller ones


class PlacedCodes(list):
    """Code grids [N, h, w], coarse to fine, that know where they lie: in `box` of pictures of `size` (H, W)."""

    def __init__(self, grids: Iterable, box: Box, size: tuple[int, int]):
        super().__init__(grids)
        self.box, self.size = box, size

    def __getitem__(self, which: SupportsIndex | slice):
        """A grid; or the first few of them, `codes[:2]`, which lie where all do."""
        chosen = super().__getitem__(which)
        return PlacedCodes(chosen, self.box, self.size) if isinstance(which, slice) else chosen

    def with_grids(self, grids: Iterable) -> Self:
        """Other grids in the same place."""
        return PlacedCodes(grids, self.box, self.size)


class Codec:
    """An autoencoder as a compressor of whole pictures: slices [N, H, W] <-> codes <-> pictures [N, H, W].

    What is coded is a box of the picture, and what is outside comes back black. The box holds all content of the
    slices, whatever their size; that of slices of the training's size holds at least `box`, in which all content of the
    training slices lies, so that bytes can be compared. `data` is what a checkpoint says of its training data; its
    "box" and "size" [H, W] are needed here. `painter`: what paints the codes that a prior drew, if there is one.
    """

    def __init__(self, autoencoder: Autoencoder, data: Mapping, on: Compute, painter: Painter | None = None):
        self.autoencoder = autoencoder.eval().to(on.device, memory_format=torch.channels_last)
        self.painter = painter and painter.eval().to(on.device, memory_format=torch.channels_last)
        self.box, self.size, self.on = Box(*data["box"]), tuple(data["size"]), on

    def box_of(self, slices: np.ndarray | Tensor) -> Box:
        """What `encode` codes of slices [N, H, W]: one box for all of them, on the canvas that sides of 16 make."""
        least = self.box if tuple(slices.shape[1:]) == self.size else None
        return content_box(_on_canvas(np.asarray(slices.cpu() if isinstance(slices, Tensor) else slices)), least)

    def window(self, slices: np.ndarray | Tensor) -> Box:
        """What a figure shows of slices [N, H, W]: what is coded and a small margin, where they have one."""
        return self.box_of(slices).around(MARGIN, tuple(slices.shape[1:]))

    def alike(self, slices: np.ndarray) -> Iterator[np.ndarray]:
        """The indices, int64 [n], of slices [N, H, W] that have one box, for one box after the other."""
        boxes: dict[Box, list[int]] = {}
        for i in range(len(slices)):
            boxes.setdefault(self.box_of(slices[i : i + 1]), []).append(i)
        return (np.array(rows) for rows in boxes.values())

    @torch.no_grad()  # and not `inference_mode`, whose tensors nobody could train with
    def encode(self, slices: np.ndarray | Tensor, box: Box | None = None) -> PlacedCodes:
        """uint8 in [0, 255] or float in [0, 1], [N, H, W] -> code grids int16 [N, h, w], coarse to fine.

        `box`: where to look, a rectangle with sides of multiples of 16; None for `box_of` these slices.
        """
        box, parts = box or self.box_of(slices), []
        step = _rows_at_once(box)
        for start in _told(range(0, len(slices), step), "encoding"):
            batch = slices[start : start + step]
            if isinstance(batch, np.ndarray):
                batch = torch.from_numpy(np.array(batch))  # a copy: slices of a data set are read-only
            batch = box.crop(_on_canvas(batch))[:, None].to(self.on.device)
            images = batch.float() / 255 if batch.dtype == torch.uint8 else batch.float()
            with self.on.autocast():
                grids = self.autoencoder.encode(images)
            parts.append([grid.to(torch.int16) for grid in grids])
        grids = [torch.cat(grids) for grids in zip(*parts, strict=True)]
        return PlacedCodes(grids, box, tuple(slices.shape[1:]))

    @torch.no_grad()
    def decode(self, codes: Codes) -> np.ndarray:
        """Code grids [N, h, w], on any device -> float32 [N, H, W] in [0, 1].

        Of codes that don't say where they lie, those on the training's grid lie in `box`; other grids become pictures
        of their own size. The first grids alone will do where the autoencoder gets by with fewer codes.
        """
        return self._pictures(codes, lambda grids, _: self.autoencoder.decode(grids), "decoding")

    @torch.no_grad()
    def paint(self, codes: Codes, seeds: Sequence[int], levels: int = 1) -> np.ndarray:
        """What a prior drew, code grids [N, h, w] -> float32 [N, H, W] in [0, 1], by the painter.

        It paints from the first code of each position. The N slices are `levels` of each brain, one after the other,
        and a brain's noise depends on its seed alone. As `decode`, where there is no painter, or no code is left out.
        """
        if not self.paints(len(codes)):
            return self.decode(codes)
        height, width = (side * self.autoencoder.downsample for side in codes[0].shape[1:])

        def painted(grids: Codes, rows: slice) -> Tensor:
            z_q = self.autoencoder.embed(grids)
            plain = self.autoencoder.decode_latents(z_q, 1).float().clamp(0, 1)
            first, end = rows.start // levels, -(-rows.stop // levels)  # brains that these slices are of
            noise = [self.painter.noise(seed, levels, height, width) for seed in seeds[first:end]]
            own = torch.cat(noise)[rows.start - first * levels :][: len(z_q)]
            return self.painter.paint(plain, z_q, own.to(self.on.device))

        return self._pictures(codes[:1], painted, "painting")

    def paints(self, drawn: int) -> bool:
        """Whether a painter paints what a prior draws that draws so many grids of codes."""
        return self.painter is not None and drawn < self.autoencoder.depth

    def _pictures(self, codes: Codes, make: Callable[[Codes, slice], Tensor], doing: str) -> np.ndarray:
        """What `make` makes of batches of codes, and of which rows they are, pasted to whole pictures."""
        box, size = (codes.box, codes.size) if isinstance(codes, PlacedCodes) else self._place(codes)
        canvas = whole_blocks(size)
        pictures = np.empty((len(codes[0]), *size), np.float32)
        step = _rows_at_once(box)
        for start in _told(range(0, len(pictures), step), doing):
            rows = slice(start, start + step)
            batch = [torch.as_tensor(grid[rows]).to(self.on.device).long() for grid in codes]
            with self.on.autocast():
                decoded = make(batch, rows)
            whole = box.paste(decoded, canvas)[:, 0, : size[0], : size[1]]
            pictures[rows] = whole.cpu().numpy()
        if not np.isfinite(pictures).all():
            raise InputError(f"no numbers come of {doing} these codes: the weights are damaged, give others")
        return pictures

    def _place(self, codes: Codes) -> tuple[Box, tuple[int, int]]:
        height, width = codes[-1].shape[1:]
        if (height, width) == self.grid_shapes()[-1]:
            return self.box, self.size
        size = height * self.autoencoder.downsample, width * self.autoencoder.downsample
        return Box(0, 0, *size), size

    def bytes_per_image(self, box: Box | None = None, kept: int | None = None) -> float:
        """Codes x log2 K / 8 over all grids, or the first `kept`, of what is in `box` (default the training's)."""
        shapes, sizes = self.grid_shapes(box), self.autoencoder.codebook_sizes
        bits = [h * w * math.log2(k) for (h, w), k in zip(shapes, sizes, strict=True)]
        return sum(bits[:kept]) / 8

    def grid_shapes(self, box: Box | None = None) -> list[tuple[int, int]]:
        """(h, w) of each code grid of what is in `box` (default the training's)."""
        box = box or self.box
        return self.autoencoder.grid_shapes(box.height, box.width)


def _rows_at_once(box: Box) -> int:
    """How many slices go through the network together: fewer where they are larger."""
    return max(1, min(BATCH, PIXELS // (box.height * box.width)))


def _told(starts: range, what: str) -> tqdm:
    """A bar in the terminal over batches that begin there, if they take long; it leaves nothing behind."""
    return tqdm(starts, what, unit="batch", disable=None, delay=2, leave=False)


def _on_canvas(slices: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """Slices [N, H, W], black added at the bottom and on the right up to multiples of 16."""
    below, beside = (whole - side for whole, side in zip(whole_blocks(slices.shape[1:]), slices.shape[1:], strict=True))
    if not below and not beside:
        return slices
    if isinstance(slices, Tensor):
        return F.pad(slices, (0, beside, 0, below))
    return np.pad(slices, ((0, 0), (0, below), (0, beside)))


def to_uint8(pictures: np.ndarray) -> np.ndarray:
    """float [N, H, W] in [0, 1] -> uint8, rounded."""
    return np.round(pictures * 255).astype(np.uint8)
