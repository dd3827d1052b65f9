"""What do the codes of one slice hold? What each further code per position adds, or the code grids themselves."""

from pathlib import Path

import numpy as np

from inference.codec import Codec, to_uint8
from inference.reconstruction import scored_part
from report import plots
from report.style import coloured
from runtime.wording import counted
from scoring.metrics import reconstruction_scores
from scoring.scores import SCORES

DEPTHS = (1, 2, 4, 8)  # codes per position


def code_pictures(
    codec: Codec, image: np.ndarray, depth: int | None = None, frame: tuple | None = None
) -> list[tuple[str, np.ndarray]]:
    """A slice, uint8 [H, W], and what its codes are or become: labels and pictures, uint8 [h, w, 3].

    Where the autoencoder has several codes per position, these are the pictures decoded from the first 1, 2, 4, ... of
    them, at most the first `depth`; else the code grids and the decoded picture. `frame`: where the slice lies on the
    canvas, which alone is scored.
    """
    codes = codec.encode(image[None])[:depth]
    box = codes.box.around(0, image.shape)
    found = [("slice", plots.gray(box.crop(image)))]
    if codec.autoencoder.depth == 1:
        highest = max(1, *(int(grid.max()) for grid in codes))
        for grid in codes:
            height, width = grid.shape[1:]
            block = np.ones((codes.box.height // height, codes.box.width // width), int)  # pixels of a code
            indices = np.kron(grid[0].cpu().numpy(), block)[: box.height, : box.width]
            found.append((f"codes, {height} x {width}", coloured(indices / highest, "viridis")))
        decoded = to_uint8(box.crop(codec.decode(codes)[0]))
        return [*found, ("decoded", plots.gray(decoded))]
    part = scored_part(image, frame)
    for n in [*(n for n in DEPTHS if n < len(codes)), len(codes)]:
        picture = codec.decode(codes[:n])[0]
        ssim = reconstruction_scores(image[part][None], picture[part][None])["ssim"][0]
        size = codec.bytes_per_image(codes.box, n)
        label = f"{counted(n, 'code')}: SSIM {SCORES['ssim'].text(ssim)}, {size:,.0f} bytes"
        found.append((label, plots.gray(to_uint8(box.crop(picture)))))
    return found


def draw_codes(
    codec: Codec, image: np.ndarray, path: Path, title: str, depth: int | None = None, frame: tuple | None = None
) -> None:
    """`code_pictures` as a figure."""
    labels, pictures = zip(*code_pictures(codec, image, depth, frame), strict=True)
    plots.codes(pictures, labels, path, title)
