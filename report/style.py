"""How does every figure look? Colours, type and layout, set here and nowhere else.

Charts are drawn on white, pictures on black. Both carry a heading and, at their foot, a caption, which the PNG file
has in its text fields `Title` and `Description`, too. Its field `Parts` says where the panels or tiles lie, so that a
page can show these alone, one beside the other where there is room. A file appears whole or not at all.
"""

import json
import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from runtime.files import atomic

# Okabe and Ito (2008): told apart under every common colour blindness, and in gray print by their lightness.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9"
INK, MUTED, GRID = "#1b1f24", "#5b6570", "#e3e6ea"

DPI = 100
CHART_DPI = 200  # a panel is read on screens that show two pixels for each of a page's
STYLE = {
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so a figure looks the same everywhere
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # file names may hold dollar signs
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": (
        matplotlib.cycler(linestyle=["-", "--"])
        * matplotlib.cycler(color=[BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, INK])
    ),
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "image.origin": "upper",
    "image.interpolation": "none",
}
HEADING_SIZE, CAPTION_SIZE = 12, 8  # points
CHARACTER, LINE = 6.6, 15  # a caption's character is at most this wide on average, its line this high; pixels
MARGIN, GAP = 16, 6  # pixels around a figure of pictures, and between them
HEADING_HEIGHT, NARROWEST = 28, 560  # pixels
LEGEND_WIDTH = 64  # characters beside each other in a legend
GROUND, TEXT = "#000000", "#d5dae0"  # of figures of pictures: slices are black around the brain


def _save(figure: Figure, path: Path, heading: str, caption: str, parts: dict, dpi: int) -> None:
    about = {"Title": heading, "Description": caption, "Parts": json.dumps(parts), "Software": None}
    with atomic(path) as file:
        figure.savefig(file, format="png", metadata=about, dpi=dpi)


def _wrap(text: str, width: float) -> str:
    """`text` on as many lines as it takes to stay within `width` pixels at the caption's size."""
    return "\n".join(textwrap.wrap(" ".join(text.split()), max(int(width / CHARACTER), 8)))


def _height(text: str) -> int:
    return LINE * len(text.splitlines())


@contextmanager
def chart(path: Path, heading: str, caption: str, width: float, height: float) -> Iterator[Figure]:
    """A figure for axes, `width` x `height` inches, with heading and caption; written when the block ends."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.suptitle(heading, x=0.01, ha="left", fontsize=HEADING_SIZE, fontweight="bold")
        wrapped = _wrap(caption, width * DPI - 2 * MARGIN)
        figure.supxlabel(wrapped, x=0.01, ha="left", fontsize=CAPTION_SIZE, color=MUTED)
        yield figure
        _save(figure, path, heading, caption, _panels_of(figure), CHART_DPI)


@contextmanager
def chart_of(path: Path, heading: str, caption: str, n: int) -> Iterator[list[Axes]]:
    """A chart of `n` axes, up to three in a row; of four, two."""
    columns = 2 if n == 4 else min(3, n)
    rows = math.ceil(n / columns)
    with chart(path, heading, caption, max(4.2 * columns, 5.4), 3.2 * rows + 0.8) as figure:
        yield [figure.add_subplot(rows, columns, 1 + number) for number in range(n)]


def write_head(axes: Axes, heading: str) -> None:
    """Write the panel's heading, and below it, above the lines that it would hide, the legend."""
    entries = [label for label in axes.get_legend_handles_labels()[1] if label and label[0] != "_"]
    columns = max(min(4, LEGEND_WIDTH // max(map(len, entries), default=1)), 1)
    legend_rows = math.ceil(len(entries) / columns)
    axes.set_title(heading, pad=6 + 13 * legend_rows)
    if entries:
        place = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1), "borderaxespad": 0.2}
        axes.legend(ncols=columns, handlelength=1.4, columnspacing=1.2, **place)


def whole_numbers(axis: Axis) -> None:
    """Ticks at whole numbers alone, eight or so."""
    axis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))


def log_scale(axes: Axes, axis: str = "y") -> None:
    """Log scale with plain decimals (0.05, not 5 x 10^-2) and as many ticks as the range needs."""
    low, high = getattr(axes.dataLim, f"interval{axis}")
    if 0 < low <= high < 1.1 * low:  # all alike, as after one epoch: there is no range to choose limits from
        axes.set(**{f"{axis}lim": (low / 1.2, high * 1.2)})
    axes.set(**{f"{axis}scale": "log"})
    low, high = sorted(getattr(axes, f"get_{axis}lim")())
    decades = math.log10(high / low)
    subs = [1] if decades > 3 else [1, 2, 5] if decades > 0.8 else range(1, 10)
    chosen = getattr(axes, f"{axis}axis")
    chosen.set_major_locator(LogLocator(subs=subs) if decades > 0.3 else MaxNLocator(5))
    chosen.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    chosen.set_minor_formatter(NullFormatter())


def _panels_of(figure: Figure) -> dict:
    """The `Parts` of a chart: its axes with all that is written around them."""
    figure.draw_without_rendering()  # lays them out
    scale, parts = CHART_DPI / DPI, []
    width, height = (int(scale * side) for side in figure.get_size_inches() * DPI)
    for axes in figure.axes:
        area = axes.get_tightbbox().padded(3)
        left, right = max(int(scale * area.x0), 0), min(int(scale * area.x1) + 1, width)
        top, bottom = max(height - int(scale * area.y1), 0), min(height - int(scale * area.y0) + 1, height)
        parts.append({"label": "", "tiles": [[[left, top, right, bottom]]]})
    return {"kind": "chart", "parts": parts}


class Pictures:
    """A figure of tiles, each one picture enlarged a whole number of times, so that no pixel is smoothed.

    The layout counts pixels from the top left corner; matplotlib's own would give tiles a fractional size. The `Parts`
    of the file are the two halves where the figure is split, else its columns where rows have names, else its tiles.

    Args:
        shape: (H, W) of the pictures; small ones are enlarged towards 256 pixels.
        rows, columns: how many tiles.
        labels: [rows][columns] texts above the tiles, wrapped to their width.
        side: a name for each row, at the left.
        gutter: pixels to leave at the right, for a colour bar.
        split: the column before which the gap is wide, if any.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        rows: int,
        columns: int,
        labels: Sequence[Sequence[str]] | None = None,
        side: Sequence[str] = (),
        gutter: int = 0,
        split: int | None = None,
    ):
        zoom = max(1, 256 // max(shape))
        self.tile_height, self.tile_width = zoom * shape[0], zoom * shape[1]
        self.texts = labels or [[""] * columns] * rows
        self.labels = [[_wrap(text, self.tile_width) for text in row] for row in self.texts]
        self.side, self.split = side, split
        self.kind = "halves" if split else "columns" if side else "tiles"
        left = MARGIN + (round(CHARACTER * max(map(len, side))) + GAP if side else 0)
        wide = 0 if split is None else 2 * MARGIN
        self.x = [left + i * (self.tile_width + GAP) + (wide if i >= (split or 0) else 0) for i in range(columns)]
        self.y, y = [], MARGIN + HEADING_HEIGHT
        for row in self.labels:
            y += max(map(_height, row))
            self.y.append(y)
            y += self.tile_height + GAP
        self.bottom = y + GAP
        # A caption needs room: one narrow tile would wrap it to a column of words.
        self.width = max(self.x[-1] + self.tile_width + gutter + MARGIN, NARROWEST)
        self.tiles: list[tuple] = []

    def show(self, row: int, column: int, picture: np.ndarray) -> None:
        """Place a gray `picture`, float [H, W] in [0, 1]: black to white."""
        # As bytes: a colour map of 256 entries is one off here and there.
        gray = np.round(255 * picture).astype(np.uint8)
        self.tiles.append((row, column, gray[..., None].repeat(3, 2), {}))

    def show_map(self, row: int, column: int, values: np.ndarray, cmap: str, vmax: float) -> None:
        """Place `values`, whose height and width divide the tile's, in colours that span 0 to `vmax`."""
        self.tiles.append((row, column, values, {"cmap": cmap, "vmin": 0, "vmax": vmax}))

    def save(self, path: Path, heading: str, caption: str, colour_bar: tuple | None = None, foot: bool = True) -> None:
        """Draw and write the figure; `colour_bar` is (row, label, cmap, vmax), a scale at that row's right.

        Without `foot` the caption is in the file's text alone.
        """
        wrapped = _wrap(caption, self.width - 2 * MARGIN) if foot else ""
        self.total = self.bottom + _height(wrapped) + (MARGIN if foot else 0)
        with matplotlib.rc_context(STYLE):
            self.figure = Figure(figsize=(self.width / DPI, self.total / DPI), facecolor=GROUND)
            self._text(MARGIN, MARGIN, heading, fontsize=HEADING_SIZE, fontweight="bold")
            self._text(MARGIN, self.bottom, wrapped)
            for y, name in zip(self.y, self.side, strict=False):
                self._text(MARGIN, y + self.tile_height / 2, name, va="center", fontweight="bold")
            for row, column, picture, colours in self.tiles:
                x, y = self.x[column], self.y[row]
                axes = self._axes(x, y, self.tile_width)
                axes.imshow(picture, aspect="auto", **colours)
                axes.set_axis_off()
                self._text(x, y - 3, self.labels[row][column], va="bottom")
            if colour_bar:
                self._colour_bar(*colour_bar)
            _save(self.figure, path, heading, caption, {"kind": self.kind, "parts": self._parts()}, DPI)

    def _parts(self) -> list[dict]:
        """Each part's label, and its rows of tiles: [left, top, right, bottom] in pixels, None where there is none."""
        rows, columns = range(len(self.y)), range(len(self.x))
        blocks = {
            "halves": [(rows, columns[: self.split]), (rows, columns[self.split or 0 :])],
            "columns": [(rows, [column]) for column in columns],
            "tiles": [([row], [column]) for row in rows for column in columns],
        }
        drawn, parts = {(row, column) for row, column, *_ in self.tiles}, []
        for its_rows, its_columns in blocks[self.kind]:
            places = [[(row, column) for column in its_columns] for row in its_rows]
            texts = [self.texts[row][column] for line in places for row, column in line]
            tiles = [[self._tile(*place) if place in drawn else None for place in line] for line in places]
            if any(tile for line in tiles for tile in line):
                parts.append({"label": ", ".join(filter(None, texts)), "tiles": tiles})
        return parts

    def _tile(self, row: int, column: int) -> list[int]:
        left, top = self.x[column], self.y[row]
        return [left, top, left + self.tile_width, top + self.tile_height]

    def _colour_bar(self, row: int, label: str, cmap: str, vmax: float) -> None:
        axes = self._axes(self.x[-1] + self.tile_width + 10, self.y[row], 12)
        bar = self.figure.colorbar(ScalarMappable(Normalize(0, vmax), cmap), cax=axes)
        bar.set_label(label, fontsize=CAPTION_SIZE, color=TEXT)
        bar.ax.tick_params(labelsize=CAPTION_SIZE, color=TEXT, labelcolor=TEXT)
        bar.outline.set_visible(False)

    def _text(self, x: float, y: float, text: str, va: str = "top", **style) -> None:
        style = {"fontsize": CAPTION_SIZE, "color": TEXT} | style
        self.figure.text(x / self.width, 1 - y / self.total, text, va=va, **style)

    def _axes(self, x: int, y: int, width: int) -> Axes:
        """Axes as high as a tile with their top left corner at pixel (x, y)."""
        bottom = 1 - (y + self.tile_height) / self.total
        return self.figure.add_axes((x / self.width, bottom, width / self.width, self.tile_height / self.total))
