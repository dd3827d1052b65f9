"""What does predict.py leave behind? A folder that appears whole or not at all.

predict/
    metrics.json        every number
    ssim_scores.csv     a row a slice
    report.html         all of it on one page
    samples/            a PNG a sample, named by its seed
    volumes/            a NIfTI file a brain, named by its seed
    reconstructions/    PNG or NIfTI files, where they are asked for
    *.png, *.gif        figures
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from report import page
from runtime.errors import InputError, visible
from runtime.files import atomic, whole_folder
from scoring.scores import SCORES

LISTS = "metrics.json", "ssim_scores.csv", "report.html"  # written last


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A new folder, which takes the place of `out` when the block ends without an error.

    Raises InputError when `out` can't be made, or holds anything that predict.py doesn't write.
    """
    out = out.resolve()
    if out.is_file():
        raise InputError(f"{out} is a file: choose another --out")
    try:
        if foreign := _foreign(out):
            raise InputError(f"{out} holds {foreign}, which predict.py did not write: choose another --out")
        with whole_folder(out, replace=True) as new:
            yield new
    except OSError as error:
        raise InputError(f"can't write to {out}: {error.strerror}; choose another --out") from error


def _foreign(out: Path) -> str | None:
    """What predict.py hasn't put into `out`: neither a figure nor listed in the metrics.json there."""
    known = {*LISTS, *(name for names in page.SECTIONS.values() for name in names)}
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):  # there is none, or another program's
        known.update(map(str, json.loads((out / LISTS[0]).read_text())["files"]))
    known |= {str(parent) for name in known for parent in Path(name).parents}
    names = (str(path.relative_to(out)) for path in out.rglob("*"))
    return next((name for name in names if name not in known), None)


def write_png(path: Path, picture: np.ndarray, title: str) -> None:
    """Write a picture, uint8 [H, W], as an 8-bit PNG file whose text field `Description` is the title."""
    path.parent.mkdir(exist_ok=True)
    about = PngInfo()
    about.add_itxt("Description", title)
    with atomic(path) as file:
        Image.fromarray(picture).save(file, "PNG", pnginfo=about)


class Results:
    """What goes into `folder`: figures at once, the numbers and the page that shows all with `write`.

    `title`: what is scored, data set and split. `metrics`: for metrics.json, plain numbers and texts.
    """

    def __init__(self, folder: Path, title: str):
        self.folder, self.title = folder, title
        self.metrics: dict = {"data": title}
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Print what the reader of the numbers has to know, and store it with them."""
        self.notes.append(visible(text))
        print(f"note: {self.notes[-1]}")

    def draw(self, name: str, plot: Callable, *arguments, title: str) -> None:
        """Make the figure `name`, one of `page.SECTIONS`, with a function of plots.py."""
        plot(*arguments, self.folder / name, title)

    def save_pictures(self, name: str, pictures: Iterable[np.ndarray], files: list[str], title: str) -> None:
        """`write_png` of N pictures, uint8 [H, W], in the folder `name`."""
        for picture, file_name in zip(pictures, files, strict=True):
            write_png(self.folder / name / file_name, picture, title)

    def write(
        self, rows: list[dict], images: tuple[np.ndarray, np.ndarray] | None, settings: Mapping, training: Path | None
    ) -> None:
        """Write ssim_scores.csv, metrics.json and report.html.

        `rows`: name and scores of each slice. `images`: originals and reconstructions [N, H, W]. `training`: the run
        folder whose figures the report shows too, if any.
        """
        if rows:  # samples alone have no scores
            with (self.folder / "ssim_scores.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ["name", *SCORES])
                writer.writeheader()
                writer.writerows({k: "" if v != v else v for k, v in row.items()} for row in rows)  # NaN: no foreground
        metrics = self.metrics | {"notes": self.notes}
        files = {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if not path.is_dir()}
        listed = {"settings": settings, "files": sorted(files | {"metrics.json", "report.html"})}
        text = json.dumps(metrics | listed, indent=2, allow_nan=False)
        (self.folder / "metrics.json").write_text(text, encoding="utf-8")
        page.write_report(self.folder, self.title, metrics, rows, settings, images, training)
