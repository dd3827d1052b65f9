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
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence
from PIL.PngImagePlugin import PngInfo

from report import page
from runtime.errors import InputError, visible
from runtime.files import atomic, whole_folder
from scoring.scores import SCORES

FIGURES = {  # name in the report -> file
    "ssim_distribution": "ssim.png",
    "worst": "worst.png",
    "best": "best.png",
    "code_map": "code_map.png",
    "code_usage": "code_usage.png",
    "sample_grid": "samples.png",
    "samples_beside_real": "samples_beside_real.png",
    "walk": "walk.gif",
    "memorisation": "memorisation.png",
    "nearest_training": "nearest_training.png",
    "volumes": "volumes.png",
    "volume_scroll": "volume.gif",
    "volume_curves": "volume_curves.png",
}
TRAINING_FIGURES = {  # the same, of the run folder that the checkpoint is in
    "progress": "progress.gif",
    "training_curves": "training.png",
    "painter_progress": "painter.gif",
    "student_progress": "student.gif",
    "gan_curves": "dcgan.png",
    "pixelcnn_curves": "pixelcnn.png",
    "transformer_curves": "transformer.png",
}
LISTS = "metrics.json", "ssim_scores.csv", "report.html"  # what is written last


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A new folder, which takes the place of `out` when the block ends without an error.

    Raises InputError when `out` can't be made, or holds anything that predict.py doesn't write.
    """
    out = out.resolve()
    try:
        if foreign := _foreign(out) if out.exists() else []:
            raise InputError(f"{out} holds {foreign[0]}, which is not of predict.py: choose another --out")
        with whole_folder(out, replace=True) as new:
            yield new
    except OSError as error:
        raise InputError(f"can't write to {out}: {error.strerror}; choose another --out") from error


def _foreign(out: Path) -> list[str]:
    """The files below `out` that predict.py hasn't made: those that the metrics.json there doesn't name."""
    try:
        made = json.loads((out / LISTS[0]).read_text())["files"]
        known = {*LISTS, *FIGURES.values(), *(name for name in made if isinstance(name, str))}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # none, or another's
        known = {*LISTS, *FIGURES.values()}
    at_the_top = {entry.name for entry in out.iterdir()} - {Path(name).parts[0] for name in known if Path(name).parts}
    return sorted(at_the_top or set(_files(out)) - known)  # what is below is looked at where all above is known


def _files(folder: Path) -> list[str]:
    """Paths of all files below a folder, from there; sorted."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def can_be_shown(path: Path) -> bool:
    """Whether there is a picture at `path`, which an earlier program made, and all of it can be decoded."""
    try:
        with Image.open(path) as image:
            for frame in ImageSequence.Iterator(image):
                frame.load()
    except Exception:  # a decoder fed with damaged bytes raises nearly anything
        return False
    return True


def write_png(path: Path, picture: np.ndarray, title: str) -> None:
    """Write a picture, uint8 [H, W], as an 8-bit PNG file that says in its text what it is."""
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
        self.figures: dict[str, Path] = {}
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Print what the reader of the numbers has to know, and keep it with them."""
        self.notes.append(visible(text))
        print(f"note: {self.notes[-1]}")

    def draw(self, name: str, plot: Callable, *arguments, title: str) -> None:
        """Make one of `FIGURES` with a function of plots.py."""
        plot(*arguments, path := self.folder / FIGURES[name], title)
        self.figures[name] = path

    def save_pictures(self, name: str, pictures: Iterable[np.ndarray], files: list[str], title: str) -> None:
        """Write N pictures, uint8 [H, W], as 8-bit PNG files in the folder `name`; each says in its text what it is."""
        for picture, file_name in zip(pictures, files, strict=True):
            write_png(self.folder / name / file_name, picture, title)

    def write(
        self, rows: list[dict], images: tuple[np.ndarray, np.ndarray] | None, settings: Mapping, training: Path | None
    ) -> None:
        """Write ssim_scores.csv, metrics.json and report.html.

        `rows`: name and scores of each slice. `images`: originals and reconstructions [N, H, W]. `training`: the run
        folder whose figures the report shows too, if any.
        """
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, ["name", *SCORES])
        writer.writeheader()
        writer.writerows({k: "" if v != v else v for k, v in row.items()} for row in rows)  # NaN: no foreground
        figures = dict(self.figures)
        for name, file in TRAINING_FIGURES.items() if training else ():
            if can_be_shown(training / file):
                figures[name] = training / file
            elif (training / file).exists():
                self.note(f"{training / file} is damaged, and not shown")
        metrics = self.metrics | {"notes": self.notes}
        made = sorted({*_files(self.folder), *LISTS} - ({"ssim_scores.csv"} if not rows else set()))
        text = json.dumps(metrics | {"settings": settings, "files": made}, indent=2, allow_nan=False)
        for name, content in (("ssim_scores.csv", table.getvalue() if rows else ""), ("metrics.json", text)):
            if not content:  # samples alone have no scores
                continue
            with atomic(self.folder / name) as file:
                file.write(content.encode())
        page.write_report(self.folder, self.title, metrics, rows, figures, settings, images)
