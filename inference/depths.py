"""What do the codes of one slice hold? A figure: what each further code per position adds, or the codes themselves."""

from pathlib import Path

import numpy as np

from inference.codec import Codec
from report import plots
from runtime.wording import counted
from scoring.metrics import reconstruction_scores
from scoring.scores import SCORES

DEPTHS = (1, 2, 4, 8)  # codes per position


def draw_codes(
    codec: Codec, image: np.ndarray, path: Path, title: str, depth: int | None = None, frame: tuple | None = None
) -> None:
    """Draw a slice, uint8 [H, W], beside the pictures decoded from the first 1, 2, 4, ... codes of each position.

    With one code per position, the code grids are drawn instead. `depth`: the most codes per position to show (default
    all). `frame`: the slice's place on its canvas; only that is scored.
    """
    codes = codec.encode(image[None])[:depth]
    window = codes.box.around(0, image.shape)
    if codec.autoencoder.depth == 1:
        decoded, size = codec.decode(codes)[0], f"the {codes.box.height}x{codes.box.width} pixels that are coded"
        grids = [grid[0].cpu().numpy() for grid in codes]
        plots.code_map(window.crop(image), grids, window.crop(decoded), path, f"{title}, {size}")
        return
    depths = [*(n for n in DEPTHS if n < len(codes)), len(codes)]
    pictures = np.concatenate([codec.decode(codes[:n]) for n in depths])
    labels = []
    for n, picture in zip(depths, pictures, strict=True):
        ssim = reconstruction_scores(image[frame or ...][None], picture[frame or ...][None])["ssim"][0]
        size = codec.bytes_per_image(codes.box, n)
        labels.append(f"{counted(n, 'code')}: SSIM {SCORES['ssim'].text(ssim)}, {size:,.0f} bytes")
    plots.code_depths(window.crop(image), window.crop(pictures), labels, path, title)
