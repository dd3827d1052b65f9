"""How does a person read the results? One page, report.html, that needs nothing but itself.

Pictures, style and script are inside the file; its content security policy forbids every request and every other
script. All text passes through Jinja's autoescape, so a slice may have any name.
"""

import base64
import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from report.plots import to_bytes
from runtime.files import atomic
from scoring.scores import SCORES, SSIM_PASS

SLIDER_SLICES = 64  # at most
SECTIONS = {  # section -> the figures in it, in order
    "Reconstruction": [
        *("ssim_distribution.png", "reconstructions_worst.png", "reconstructions_best.png"),
        *("codes.png", "code_usage.png"),
    ],
    "Samples": ["samples_beside_real.png", "samples.png", "walk.gif", "memorisation.png", "nearest_training.png"],
    "Whole brains": ["volumes.png", "volume_levels.gif", "volume_curves.png"],
    "Training": [
        *("progress.gif", "training_curves.png", "painter_progress.gif", "student_progress.gif"),
        *("dcgan_progress.gif", "pixelcnn_progress.gif", "transformer_progress.gif"),
        *("dcgan_curves.png", "pixelcnn_curves.png", "transformer_curves.png"),
    ],
}
TRAINING_FIGURES = SECTIONS["Training"]
LABELS = {  # words of keys that are written otherwise
    "ssim": "SSIM",
    "ms": "multi-scale",
    "psnr": "PSNR",
    "pca": "PCA",
    "randconv": "random network",
    "auc": "AUC",
    "std": "standard deviation",
    "min": "lowest",
    "max": "highest",
    "frechet": "Frechet distance",
    "lr": "learning rate",
    "vqvae": "VQ-VAE",
    "dcgan": "DCGAN",
    "pixelcnn": "PixelCNN",
    "r1": "R1",
    "r2": "R2",
    "baseline": "independent slices",
}


ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters["sha256"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# --------------------------------------------------------------------------------------------- pictures


def webp(image: Image.Image, **options: Any) -> str:
    """The address of an image within a page, as WebP."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **options)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def figure(path: Path, title: str) -> dict[str, Any]:
    """What the page needs of a PNG of plots.py or a GIF, whose last frame is its still; OSError if it's neither."""
    with Image.open(path) as image:
        name = label(path.stem)
        about = {
            "heading": image.info.get("Title") or name[0].upper() + name[1:],
            "caption": image.info.get("Description") or image.info.get("comment", b"").decode() or title,
            "width": image.width,
            "height": image.height,
        }
        if path.suffix == ".gif":
            moving = webp(image, save_all=True, quality=80)
            image.seek(image.n_frames - 1)
            return about | {"source": moving, "still": webp(image.convert("RGB"), quality=80), "kind": "animation"}
        kind = "chart" if image.convert("RGB").getpixel((0, 0)) == (255, 255, 255) else "pictures"
    source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return about | {"source": source, "still": None, "kind": kind}


def _slider(scores: Sequence[Mapping], images: tuple[np.ndarray, np.ndarray]) -> dict[int, dict]:
    """Row of `scores` -> name, SSIM and lossless pictures of the slice, for rows evenly spaced by rank of SSIM."""
    if not len(images[0]) == len(images[1]) == len(scores):
        raise ValueError(f"{len(scores)} scores, {len(images[0])} originals, {len(images[1])} reconstructions")
    ranked = np.argsort([row["ssim"] for row in scores], kind="stable")
    pairs = {}
    for row in ranked[np.unique(np.linspace(0, len(ranked) - 1, SLIDER_SLICES).round().astype(int))].tolist():
        pair = (Image.fromarray(to_bytes(stack[row])) for stack in images)
        original, reconstruction = (webp(picture, lossless=True) for picture in pair)
        name = f"{scores[row]['name']}, SSIM {scores[row]['ssim']:.4f}"
        pairs[row] = {"name": name, "original": original, "reconstruction": reconstruction}
    return pairs


# ---------------------------------------------------------------------------------------------- numbers


def number(value: Any) -> str:
    """A value as a reader wants it: 12,345; 0.9806; 1.2e-05; a dash where there is none."""
    if isinstance(value, list | tuple):
        return ", ".join(map(number, value)) or "-"
    if value is None or value != value:  # NaN
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and value >= 100 and value.is_integer()):
        return f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:.4g}" if 0 < abs(value) < 0.001 else f"{value:,.4f}" if abs(value) < 10 else f"{value:,.2f}"
    return str(value)


def label(key: object) -> str:
    """A key of metrics.json or metrics.csv in words: `codes_used_0` becomes "codes used, codebook 1"."""
    name = re.sub(r"_(\d+)$", lambda found: f", codebook {int(found[1]) + 1}", str(key))
    return re.sub(r"[A-Za-z0-9]+", lambda word: LABELS.get(word[0], word[0]), name.replace("_", " "))


def _grid(title: str, groups: Mapping[Any, Mapping]) -> dict[str, Any]:
    """A table with a row for each group; its columns are all of their keys."""
    keys = list(dict.fromkeys(key for group in groups.values() for key in group))
    rows = [
        [label(name), *(number(group[key]) if key in group else "" for key in keys)] for name, group in groups.items()
    ]
    return {"title": title, "columns": ["", *map(label, keys)], "rows": rows}


def tables(title: str, values: Mapping) -> list[dict[str, Any]]:
    """Nested results as tables, each with a title of its own: `title` and the keys that lead to it."""
    rows, nested = [], []
    for key, value in values.items():
        if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            value = dict(enumerate(value, start=1))
        if not isinstance(value, Mapping):
            rows.append([label(key), number(value)])
            continue
        name, groups = f"{title}: {label(key)}", [*value.values()]
        flat = [
            isinstance(group, Mapping) and not any(isinstance(v, Mapping) for v in group.values()) for group in groups
        ]
        nested += [_grid(name, value)] if flat and all(flat) else tables(name, value)
    return [{"title": title, "columns": [], "rows": rows}, *nested] if rows else nested


def sample_tables(judge: Mapping) -> list[dict[str, Any]]:
    """The verdict on samples: in each feature space beside the floor and the ceiling, and all else after that."""
    kinds = {"fidelity": "samples", "floor": "training slices (floor)", "ceiling": "another prior (ceiling)"}
    spaces = dict.fromkeys(space for kind in kinds for space in judge.get(kind, {}))
    rows = {
        f"{space}: {name}": judge[kind][space]
        for space in spaces
        for kind, name in kinds.items()
        if space in judge.get(kind, {})
    }
    rest = tables("Samples", {key: value for key, value in judge.items() if key not in kinds})
    return [_grid("Samples: fidelity and coverage, by feature space", rows), *rest] if rows else rest


def _score_table(scores: Sequence[Mapping], slider: Mapping[int, dict]) -> dict[str, Any]:
    """What the sortable table shows, lowest SSIM first; `pair` is the slice's place in the slider, if it has one."""
    columns = {key: score for key, score in SCORES.items() if key in scores[0]}
    places = {row: place for place, row in enumerate(slider)}
    rows = []
    for place, row in sorted(enumerate(scores), key=lambda item: item[1]["ssim"]):
        cells = []  # (number for JavaScript, text)
        for value, score in ((float(row[key]), score) for key, score in columns.items()):
            if math.isinf(value):  # the PSNR of a slice that is reconstructed to the bit
                cells.append(("Infinity", "exact"))
            else:
                cells.append(("" if math.isnan(value) else value, score.text(value)))
        rows.append({"name": row["name"], "pair": places.get(place), "cells": cells})
    return {"columns": [score.heading[0].upper() + score.heading[1:] for score in columns.values()], "rows": rows}


def _headline(scores: Sequence[Mapping]) -> dict[str, str]:
    """The numbers to see first."""
    ssim = np.array([row["ssim"] for row in scores], dtype=float)
    cards = {
        "slices": f"{len(ssim):,}",
        "mean SSIM": SCORES["ssim"].text(ssim.mean()),
        "lowest SSIM": SCORES["ssim"].text(ssim.min()),
        f"at or above {SSIM_PASS}": f"{100 * (ssim >= SSIM_PASS).mean():.4g} %",
    }
    for key in ("foreground_ssim", "psnr"):
        if known := [float(row[key]) for row in scores if key in row and not math.isnan(row[key])]:
            cards[f"mean {SCORES[key].heading}"] = SCORES[key].text(np.mean(known))
    return cards


# ------------------------------------------------------------------------------------------------- page


def write_report(
    folder: Path,
    title: str,
    metrics: Mapping[str, Any],
    scores: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    images: tuple[np.ndarray, np.ndarray] | None = None,
    training: Path | None = None,
) -> Path:
    """Write `folder`/report.html, with the figures of `SECTIONS` that lie in `folder`, and return its path.

    Args:
        title: data set and split ("synthetic demo set, test split").
        metrics: as in metrics.json, nested as it likes; "judge" and "volume_judge" are shown with the samples.
        scores: one row a slice with `name`, `ssim` and any of the other `SCORES`; NaN where it has none.
        config: the settings of the run.
        images: originals and reconstructions [N, H, W], uint8 or float in [0, 1], in the order of `scores`, for
            the slider. Raises ValueError when their number is another.
        training: the run folder whose `TRAINING_FIGURES` are shown, too.
    """
    slider = _slider(scores, images) if images is not None and len(scores) else {}
    paths = {name: folder / name for names in SECTIONS.values() for name in names}
    if training:
        paths |= {name: training / name for name in TRAINING_FIGURES}
    if paths["samples_beside_real.png"].is_file():  # which shows the same samples
        del paths["samples.png"]
    figures = {
        section: [figure(paths[name], title) for name in names if name in paths and paths[name].is_file()]
        for section, names in SECTIONS.items()
    }
    apart = (*SCORES, "codes", "judge", "volume_judge", "notes")
    numbers = tables("Results", {key: value for key, value in metrics.items() if key not in apart})
    if found := {score.heading: metrics[key] for key, score in SCORES.items() if key in metrics}:
        numbers.insert(0, _grid("Reconstruction scores", found))
    if "codes" in metrics:
        numbers.append(_grid("Codebooks", dict(enumerate(metrics["codes"], start=1))))
    brains = {key: value for key, value in metrics.get("volume_judge", {}).items() if key != "curves"}
    page = ENVIRONMENT.get_template("page.html").render(
        title=title,
        notes=metrics.get("notes", []),
        cards=_headline(scores) if scores else {},
        figures=figures,
        pairs=list(slider.values()),
        shape=images[0].shape[1:] if slider else None,
        table=_score_table(scores, slider) if scores else None,
        tables={
            "Samples": sample_tables(metrics.get("judge", {})),
            "Whole brains": tables("Whole brains", brains),
            "Numbers": numbers,
            "Settings": tables("Settings", config),
        },
    )
    path = folder / "report.html"
    with atomic(path) as file:
        file.write(page.encode())
    return path
