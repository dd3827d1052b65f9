"""Which run was the best? One page of all runs in a folder, index.html, with a row for each."""

import csv
import json
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from report.page import ENVIRONMENT, label, number, webp
from runtime.files import atomic

GENERATOR = "train.py of VQ-VAE and learned priors for brain MRI slices"
ABOUT = ("data_fingerprint", "commit", "computed_on", "minutes")  # keys of config.json that are no settings
PICTURE = 256, 160  # pixels, at most


def write_index(folder: Path) -> None:
    """Write `folder`/index.html about the runs in `folder`, unless there is a page of another kind.

    Raises InputError when it can't be written. Runs whose files can't be read are left out.
    """
    path = folder / "index.html"
    if path.exists() and GENERATOR not in path.read_text("utf-8", "replace"):
        return
    runs = [run for config in sorted(folder.glob("*/config.json"), reverse=True) if (run := _read(config))]
    keys = dict.fromkeys(key for run in runs for key in run["config"] if key not in ABOUT)
    differing = [key for key in keys if len({json.dumps(run["config"].get(key)) for run in runs}) > 1]
    for run in runs:
        config = run["config"]
        device, commit = str(config.get("computed_on")).removeprefix("computing on "), str(config.get("commit"))[:7]
        about = [run["ssim"], config.get("minutes") or None, device, commit]
        run["cells"] = [number(value) for value in (*about, *(config.get(key) for key in differing))]
    columns = ["run", "", "best SSIM", "minutes", "device", "commit", *map(label, differing)]
    page = ENVIRONMENT.get_template("index.html").render(generator=GENERATOR, columns=columns, runs=runs)
    with atomic(path) as file:
        file.write(page.encode())


def _read(path: Path) -> dict[str, Any] | None:
    """What the page says of the run with this config.json."""
    folder = path.parent
    try:
        config, metrics = json.loads(path.read_text()), folder / "metrics.csv"
        rows = list(csv.DictReader(metrics.read_text().splitlines())) if metrics.is_file() else []
        best = max((float(row["validation_ssim"]) for row in rows if row.get("validation_ssim")), default=None)
        link = quote(f"{folder.name}/{'report.html' if (folder / 'report.html').is_file() else ''}")
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    return {"config": config, "name": folder.name, "link": link, "ssim": best, "picture": _picture(folder)}


def _picture(folder: Path) -> str | None:
    """The run's samples or, while there are none, the picture of its newest epoch, made small."""
    newest = sorted(folder.glob("*_[0-9][0-9][0-9].png"), key=lambda path: path.stat().st_mtime)
    for path in [folder / "samples.png", *newest[:-2:-1]]:
        with suppress(OSError), Image.open(path) as picture:
            small = picture.convert("RGB")
            small.thumbnail(PICTURE)
            return webp(small)
    return None
