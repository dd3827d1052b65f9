"""How does a person read the results? One page, report.html, that needs nothing but itself.

Pictures, style and script are inside the file; its content security policy forbids every request and every other
script. All text passes through Jinja2's autoescape, so a slice may have any name.
"""

import base64
import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageSequence

from report.plots import unit_range
from report.style import CHART_DPI, DPI
from runtime.files import atomic
from scoring.scores import SCORES, SSIM_PASS, Score

PAIRS = 64  # slices that the slider can show
FRAMES, FRAME_WIDTH = 24, 1200  # an animation has at most so many frames, of at most so many pixels across
EXACT_BYTES = 1_000_000  # a figure whose file is larger is embedded with loss, at WebP quality 88

SECTIONS = {  # section -> its figures in order, by the names of the functions in plots.py
    "Reconstruction": ["ssim_distribution", "worst", "best", "code_map", "code_usage", "rate_distortion"],
    "Samples": ["samples_beside_real", "sample_grid", "walk", "memorisation", "nearest_training"],
    "Whole brains": ["volumes", "volume_scroll", "volume_curves"],
    "Training": [
        *("progress", "training_curves", "painter_progress", "student_progress"),
        *("gan_curves", "pixelcnn_curves", "transformer_curves"),
    ],
}
HEADINGS = {  # where the figure's own heading does not tell two of them apart, or is one frame's, or there is none
    "worst": "Lowest SSIM",
    "best": "Highest SSIM",
    "walk": "A walk between two samples",
    "volume_scroll": "Through the levels of one drawn brain",
    "progress": "The same slices through training",
    "painter_progress": "The same slices, painted by the teacher",
    "student_progress": "The same slices, painted by its student",
}


@dataclass(frozen=True)
class Part:
    """A picture in the page: `source` and `still` (the last frame of an animation) are data URIs."""

    label: str
    source: str
    width: int
    height: int
    still: str | None = None


@dataclass(frozen=True)
class Figure:
    """Parts, which the page puts beside each other where there is room, with one heading and one caption.

    `kind`: "chart", "halves", "columns", "tiles" as report/style.py has them, or "animation".
    """

    name: str
    kind: str
    heading: str
    caption: str
    parts: list[Part]


@dataclass(frozen=True)
class Table:
    """Cells as text; the first of each row is its heading. `columns` is empty where rows are name and value."""

    heading: str
    columns: list[str]
    rows: list[list[str]]


# --------------------------------------------------------------------------------------------- pictures


def _data_uri(image: Image.Image, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **options)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _animation(image: Image.Image) -> tuple[str, str, tuple[int, int]]:
    """An animation with evenly chosen frames, its last frame, and their (width, height)."""
    frames, milliseconds = [], []
    chosen = set(np.linspace(0, image.n_frames - 1, FRAMES).round().astype(int).tolist())
    for number, frame in enumerate(ImageSequence.Iterator(image)):
        if number in chosen:
            milliseconds.append(frame.info["duration"])
            frames.append(frame.convert("RGB"))
            frames[-1].thumbnail((FRAME_WIDTH, 16_383), Image.Resampling.LANCZOS)
    options = {"save_all": True, "append_images": frames[1:], "duration": milliseconds, "loop": 0, "quality": 80}
    return _data_uri(frames[0], **options), _data_uri(frames[-1], quality=80), frames[0].size


def _figure(name: str, path: Path, title: str) -> Figure:
    """The figure at `path`: a PNG with heading, caption and parts in its text fields, or a GIF with a comment."""
    with Image.open(path) as image:
        heading = HEADINGS.get(name) or image.info.get("Title", name)
        caption = image.info.get("Description") or image.info.get("comment", b"").decode() or title
        if getattr(image, "is_animated", False):
            source, still, size = _animation(image)
            return Figure(name, "animation", heading, caption, [Part("", source, *size, still)])
    kind, pictures = parts_of(path)
    exact = path.stat().st_size <= EXACT_BYTES
    scale = CHART_DPI // DPI if kind == "chart" else 1
    parts = []
    for label, picture in pictures:
        width, height = (side // scale for side in picture.size)
        parts.append(Part(label, _data_uri(picture, lossless=exact, quality=88), width, height))
    return Figure(name, kind, heading, caption, parts)


def parts_of(path: Path) -> tuple[str, list[tuple[str, Image.Image]]]:
    """The kind of the figure at `path`, and its parts: (label, picture). One that names none, is one: a GIF's frame."""
    with Image.open(path) as image:
        pixels = image.convert("RGB")
        if "Parts" not in image.info:
            return "animation", [("", pixels)]
        layout = json.loads(image.info["Parts"])
    return layout["kind"], [(part["label"], _put_together(pixels, part["tiles"])) for part in layout["parts"]]


def _put_together(pixels: Image.Image, tiles: list[list[list[int] | None]]) -> Image.Image:
    """Rows of tiles, each [left, top, right, bottom] in `pixels`, edge to edge; black where one is None."""
    left, top, right, bottom = next(tile for line in tiles for tile in line if tile)
    width, height = right - left, bottom - top
    together = Image.new("RGB", (width * max(map(len, tiles)), height * len(tiles)))
    for row, line in enumerate(tiles):
        for column, tile in enumerate(line):
            if tile:
                together.paste(pixels.crop(tile), (column * width, row * height))
    return together


def _exact(picture: np.ndarray) -> str:
    """One slice [H, W] to 8 bits, without further loss: the reader judges the model here, not WebP."""
    pixels = np.round(255 * unit_range(picture[None])[0]).astype(np.uint8)
    return _data_uri(Image.fromarray(pixels), lossless=True)


def _slider_pairs(scores: Sequence[Mapping], images: tuple[np.ndarray, np.ndarray]) -> dict[int, dict]:
    """Row of `scores` -> name, SSIM and exact pictures of the slice, for rows evenly spaced by rank of SSIM."""
    originals, reconstructions = images
    if not len(originals) == len(reconstructions) == len(scores):
        raise ValueError(f"{len(scores)} scores, {len(originals)} originals, {len(reconstructions)} reconstructions")
    ranked = sorted(range(len(scores)), key=lambda row: scores[row]["ssim"])
    chosen = sorted(set(np.linspace(0, len(ranked) - 1, PAIRS).round().astype(int).tolist()))
    pairs = {}
    for row in (ranked[rank] for rank in chosen):
        pictures = {"original": originals[row], "reconstruction": reconstructions[row]}
        sources = {key: _exact(picture) for key, picture in pictures.items()}
        pairs[row] = {"name": scores[row]["name"], "ssim": f"{scores[row]['ssim']:.4f}", **sources}
    return pairs


# ---------------------------------------------------------------------------------------------- numbers


def _text(value: Any) -> str:
    """A value as a reader wants it: 12,345; 0.9806; 1.2e-05; a dash where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        return f"{value:.4g}" if 0 < abs(value) < 0.001 else f"{value:,.4f}" if abs(value) < 10 else f"{value:,.2f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "-"
    return str(value)


def _words(key: object) -> str:
    return str(key).replace("_", " ")


def _as_groups(value: Any) -> Any:
    """A list of mappings (one a level) as a mapping by number; all else as it is."""
    if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
        return {str(number): item for number, item in enumerate(value)}
    return value


def _alike(groups: Mapping[str, Mapping]) -> list[dict[str, Mapping]]:
    """The groups that belong in one table: those that share at least half of their keys with its first."""
    tables: list[dict[str, Mapping]] = []
    for key, group in groups.items():
        firsts = ((table, next(iter(table.values()))) for table in tables)
        homes = (table for table, first in firsts if 2 * len(first.keys() & group.keys()) >= len(group))
        if (home := next(homes, None)) is None:
            tables.append(home := {})
        home[key] = group
    return tables


def _tables(heading: str, values: Mapping) -> Iterator[Table]:
    """Nested results as tables: plain values together, like groups of plain values as rows of one, the rest in turn."""
    values = {key: _as_groups(value) for key, value in values.items()}
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    if plain:
        yield Table(heading, [], [[_words(key), _text(value)] for key, value in plain.items()])
    flat, deep = {}, {}
    for key, group in values.items():
        if isinstance(group, Mapping):
            nested = any(isinstance(_as_groups(value), Mapping) for value in group.values())
            (deep if nested else flat)[key] = group
    for alike in _alike(flat):
        if len(alike) == 1:
            [(key, group)] = alike.items()
            yield Table(f"{heading}: {_words(key)}", [], [[_words(k), _text(value)] for k, value in group.items()])
            continue
        columns = list(dict.fromkeys(key for group in alike.values() for key in group))
        cells = [
            [_words(key), *(_text(group[c]) if c in group else "" for c in columns)] for key, group in alike.items()
        ]
        yield Table(heading, ["", *map(_words, columns)], cells)
    for key, group in deep.items():
        yield from _tables(f"{heading}: {_words(key)}", group)


def _judge_tables(judge: Mapping) -> list[Table]:
    """The judge's verdict: each feature space's samples beside the floor and ceiling, and all else after them."""
    kinds = {"fidelity": "samples", "floor": "floor (training slices)", "ceiling": "ceiling (another prior)"}
    spaces = dict.fromkeys(space for kind in kinds for space in judge.get(kind, {}))
    together = {
        f"{space}: {label}": judge[kind][space]
        for space in spaces
        for kind, label in kinds.items()
        if space in judge.get(kind, {})
    }
    rest = {key: value for key, value in judge.items() if key not in kinds}
    return [*_tables("Fidelity and coverage, by feature space", together), *_tables("Judge", rest)]


def _cell(value: float, score: Score) -> dict[str, str]:
    """A score as the reader sees it and as the page's script sorts by it."""
    if math.isinf(value):  # the PSNR of a slice that came back to the bit
        return {"value": "Infinity", "text": "exact"}
    return {"value": "" if math.isnan(value) else str(value), "text": score.text(value)}


def _score_table(scores: Sequence[Mapping], pairs: Mapping[int, dict]) -> dict | None:
    """What the sortable table shows, lowest SSIM first; `pair` is the slice's place in the slider, if it has one."""
    if not scores:
        return None
    columns = {key: score for key, score in SCORES.items() if key in scores[0]}
    places = {row: place for place, row in enumerate(pairs)}
    rows = []
    for number, row in sorted(enumerate(scores), key=lambda item: item[1]["ssim"]):
        cells = [_cell(float(row[key]), score) for key, score in columns.items()]
        rows.append({"name": row["name"], "pair": places.get(number), "cells": cells})
    headings = [score.heading[0].upper() + score.heading[1:] for score in columns.values()]
    return {"columns": headings, "rows": rows}


def _headline(scores: Sequence[Mapping]) -> list[tuple[str, str]]:
    """The numbers to see first: (what, value)."""
    if not scores:
        return []
    ssim = np.array([row["ssim"] for row in scores], dtype=float)
    cards = [
        ("slices", f"{len(ssim):,}"),
        ("mean SSIM", SCORES["ssim"].text(ssim.mean())),
        ("lowest SSIM", SCORES["ssim"].text(ssim.min())),
        (f"at or above {SSIM_PASS}", f"{100 * (ssim >= SSIM_PASS).mean():.4g} %"),
    ]
    for key in ("foreground_ssim", "psnr"):
        known = [float(row[key]) for row in scores if key in row and not math.isnan(row[key])]
        if known:
            cards.append((f"mean {SCORES[key].heading}", SCORES[key].text(np.mean(known))))
    return cards


# ------------------------------------------------------------------------------------------------- page


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def write_report(
    folder: Path,
    title: str,
    metrics: Mapping[str, Any],
    scores: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Path],
    config: Mapping[str, Any],
    images: tuple[np.ndarray, np.ndarray] | None = None,
) -> Path:
    """Write `folder`/report.html and return its path. Parts for which there is nothing are left out.

    Args:
        title: what was measured: data set and split ("synthetic demo set, test split").
        metrics: as in metrics.json, nested as it likes; "judge", as `Judge.score` gives it and with a
            "ceiling" like its "floor" where there is one, is shown with the samples.
        scores: one row a slice with `name`, `ssim` and any of the other `SCORES`; NaN where it has none.
        figures: name (any in `SECTIONS`) -> PNG or GIF file made by plots.py.
        config: the settings of the run.
        images: originals and reconstructions [N, H, W], uint8 or float in [0, 1], in the order of `scores`, for
            the slider.

    Raises:
        ValueError: a figure's name is unknown, or scores and images differ in number.
    """
    unknown = set(figures) - {name for names in SECTIONS.values() for name in names}
    if unknown:
        raise ValueError(f"no place in the report for {sorted(unknown)}")
    pairs = _slider_pairs(scores, images) if images is not None and len(scores) else {}
    sections = {
        section: [_figure(name, figures[name], title) for name in names if name in figures]
        for section, names in SECTIONS.items()
    }
    rest = {key: value for key, value in metrics.items() if key not in ("judge", "volume_judge")}
    brains = {key: value for key, value in metrics.get("volume_judge", {}).items() if key != "curves"}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sha256"] = _sha256
    page = environment.get_template("page.html").render(
        title=title,
        cards=_headline(scores),
        sections=sections,
        pairs=list(pairs.values()),
        shape=images[0].shape[1:] if pairs else None,
        table=_score_table(scores, pairs),
        judge=_judge_tables(metrics.get("judge", {})),
        volume_judge=list(_tables("Whole brains", brains)),
        numbers=list(_tables("Scores", rest)),
        settings=list(_tables("Settings", config)),
    )
    path = Path(folder) / "report.html"
    with atomic(path) as file:
        file.write(page.encode())
    return path
