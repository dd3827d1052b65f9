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
    codec: Codec, image: np.ndarray, path: Path, title: str, kept: int | None = None, frame: tuple | None = None
) -> None:
    """Draw a slice, uint8 [H, W], and what it becomes.

    That is, where the autoencoder has several codes per position, the pictures decoded from the first 1, 2, 4, ... of
    them up to the first `kept`; else the code grids and the one picture. `frame`: where the slice lies on the canvas,
    which alone is scored.
    """
    codes = codec.encode(image[None])[:kept]
    shown = codes.box.around(0, image.shape)
    if codec.autoencoder.depth == 1:
        decoded, coded = codec.decode(codes)[0], f"the {codes.box.height}x{codes.box.width} pixels that are coded"
        grids = [grid[0].cpu().numpy() for grid in codes]
        plots.code_map(shown.crop(image), grids, shown.crop(decoded), path, f"{title}, {coded}")
        return
    depths = [*(n for n in DEPTHS if n < len(codes)), len(codes)]
    pictures = np.concatenate([codec.decode(codes[:n]) for n in depths])
    own = image[frame or ...][None]
    labels = []
    for n, picture in zip(depths, pictures, strict=True):
        ssim = reconstruction_scores(own, picture[frame or ...][None])["ssim"][0]
        size = codec.bytes_per_image(codes.box, n)
        labels.append(f"{counted(n, 'code')}: SSIM {SCORES['ssim'].text(ssim)}, {size:,.0f} bytes")
    plots.code_depths(shown.crop(image), shown.crop(pictures), labels, path, title)
