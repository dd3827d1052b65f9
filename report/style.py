"""How does a figure look? Type, colours and layout, set here and nowhere else.

Charts are drawn by matplotlib on white. Slices are tiles on black whose pixels are enlarged a whole number of times, so
that nothing is smoothed. Both have a heading and, at the foot, a caption, which the PNG file also holds in its text
fields `Title` and `Description`. A file appears whole or not at all.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from runtime.files import atomic

# Okabe and Ito (2008): told apart under every common colour blindness, and in gray print by their lightness.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9"
INK, MUTED, GRID = "#1b1f24", "#5b6570", "#e3e6ea"
TEXT = "#d5dae0"  # on black

DPI = 150
FONT = "DejaVu Sans"  # comes with matplotlib, so a figure looks the same everywhere
STYLE = {
    "font.family": FONT,
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # file names may hold dollar signs
    "axes.edgecolor": MUTED,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": matplotlib.cycler(color=[BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, INK]),
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
HEADING_SIZE, CAPTION_SIZE = 16, 11  # pixels, in figures of slices
CHARACTER, LINE = 6.6, 15  # pixels: a caption's character is at most this wide on average, a line this high
MARGIN, GAP = 16, 6  # pixels around a figure of slices, and between its tiles
TILE = 256  # pixels: small tiles are enlarged towards this side
NARROWEST = 560  # pixels: a caption needs room


def wrap(text: str, width: float) -> str:
    """`text` on as many lines as it takes to stay within `width` pixels at the caption's size."""
    return "\n".join(textwrap.wrap(" ".join(text.split()), max(int(width / CHARACTER), 8)))


# ----------------------------------------------------------------------------------------------- charts


@contextmanager
def chart(path: Path, heading: str, caption: str, panels: int = 1) -> Iterator[list[Axes]]:
    """A PNG chart of some panels, up to three in a row (four: two in a row), written when the block ends."""
    columns = 2 if panels == 4 else min(3, panels)
    rows = math.ceil(panels / columns)
    width, height = max(4.6 * columns, 8), max(3.0 * rows + 0.8, 4.4)
    with matplotlib.rc_context(STYLE):
        figure = Figure((width, height), DPI, layout="constrained")
        figure.suptitle(heading, x=0.01, ha="left", fontsize=12, fontweight="bold")
        figure.supxlabel(wrap(caption, 100 * width - 2 * MARGIN), x=0.01, ha="left", fontsize=8, color=MUTED)
        yield [figure.add_subplot(rows, columns, 1 + number) for number in range(panels)]
        with atomic(path) as file:
            figure.savefig(file, format="png", metadata={"Title": heading, "Description": caption, "Software": None})


def finish(axes: Axes, heading: str, legend_title: str | None = None) -> None:
    """Write a panel's heading, and its legend, if any, at the right of the plot, where it covers nothing."""
    axes.set_title(heading)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1.03), title=legend_title, alignment="left")


def whole_numbers(axis: Axis) -> None:
    """Ticks at about eight whole numbers."""
    axis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))


def log_scale(axes: Axes, axis: str = "y") -> None:
    """Log scale with plain decimals (0.05, not 5 x 10^-2) and as many ticks as the range needs."""
    low, high = getattr(axes.dataLim, f"interval{axis}")
    if 0 < low <= high < 1.1 * low:  # all alike, as after one epoch: there is no range to choose limits from
        axes.set(**{f"{axis}lim": (low / 1.2, high * 1.2)})
    axes.set(**{f"{axis}scale": "log"})
    low, high = sorted(getattr(axes, f"get_{axis}lim")())
    decades = math.log10(high / low)
    ticks = getattr(axes, f"{axis}axis")
    subs = [1] if decades > 3 else [1, 2, 5] if decades > 0.8 else range(1, 10)
    ticks.set_major_locator(LogLocator(subs=subs) if decades > 0.3 else MaxNLocator(5))
    ticks.set_major_formatter("{x:g}")
    ticks.set_minor_formatter(NullFormatter())


# ------------------------------------------------------------------------------------------------ tiles


@cache
def _font(size: int, weight: str = "normal") -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont(font_manager.FontProperties(family=FONT, weight=weight)), size)


def coloured(values: np.ndarray, colour_map: str) -> np.ndarray:
    """Values [...] in [0, 1] (what is outside is cut off) in the colours of a matplotlib map: uint8 [..., 3]."""
    return matplotlib.colormaps[colour_map](np.clip(values, 0, 1), bytes=True)[..., :3]


def write_on(picture: np.ndarray, texts: Sequence[tuple[int, int, str, str]]) -> np.ndarray:
    """uint8 [h, w, 3] with texts (x, y, Pillow's anchor, text) at the caption's size."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for x, y, anchor, text in texts:
        draw.multiline_text((x, y), text, TEXT, _font(CAPTION_SIZE), anchor, spacing=LINE - CAPTION_SIZE - 2)
    return np.asarray(image)


def tile(pictures: np.ndarray, columns: int, labels: Sequence[str] = ()) -> np.ndarray:
    """Pictures, uint8 [N, H, W] or [N, H, W, 3], in rows of `columns`, each below its label: uint8 [h, w, 3]."""
    zoom = max(1, TILE // max(pictures.shape[1:3]))
    tiles = pictures.repeat(zoom, 1).repeat(zoom, 2)
    tiles = tiles if tiles.ndim == 4 else tiles[..., None].repeat(3, -1)
    n, height, width, _ = tiles.shape
    labels = [wrap(label, width) for label in labels]
    band = GAP + LINE * max((len(label.splitlines()) for label in labels), default=0)
    rows = math.ceil(n / columns)
    padded = np.pad(tiles, ((0, rows * columns - n), (band, 0), (GAP, 0), (0, 0)))
    grid = padded.reshape(rows, columns, *padded.shape[1:]).swapaxes(1, 2).reshape(rows * (band + height), -1, 3)
    texts = []
    for number, label in enumerate(labels):
        row, column = divmod(number, columns)
        texts.append((GAP + column * (GAP + width), row * (band + height) + band - 3, "ld", label))
    return write_on(grid, texts)


def save_tiles(tiles: np.ndarray, path: Path, heading: str, caption: str, foot: bool = True) -> None:
    """Write `tile`'s uint8 [h, w, 3] as a PNG figure. Without `foot` the caption is in the file's text alone."""
    height, width, _ = tiles.shape
    whole_width = max(width - GAP + 2 * MARGIN, NARROWEST)
    text = wrap(caption, whole_width - 2 * MARGIN) if foot else ""
    top = MARGIN + HEADING_SIZE + GAP
    image = Image.new("RGB", (whole_width, top + height + LINE * len(text.splitlines()) + 2 * MARGIN))
    image.paste(Image.fromarray(tiles), (MARGIN - GAP, top))
    ImageDraw.Draw(image).text((MARGIN, MARGIN), heading, TEXT, _font(HEADING_SIZE, "bold"))
    written = write_on(np.asarray(image), [(MARGIN, top + height + GAP, "la", text)])
    about = PngInfo()
    about.add_itxt("Title", heading)
    about.add_itxt("Description", caption)
    with atomic(path) as file:
        Image.fromarray(written).save(file, "PNG", pnginfo=about)
