"""What does a training say while it goes on? A line an epoch, the time that is left, and the values of some steps."""

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from runtime.errors import InputError
from runtime.files import atomic
from runtime.wording import duration

FIRST_LOOK = 10.0  # seconds of steps, after which the time that a stage will take is told
UNTIMED = 2  # first steps: slower than all others, since memory and kernels are made ready in them
LOSSES = 2  # of an epoch's means, those in its line


class Pace:
    """How fast a stage of so many epochs goes, by what this process has done of it since its first steps.

    Places are epochs done, with the part of the one under way.
    """

    def __init__(self, epochs: int):
        self.epochs, self.began = epochs, time.monotonic()
        self.steps = 0  # done by this process
        self.since: tuple[float, float] | None = None  # a time, and the place then
        self.told = False  # how long it will take
        self.slices_a_second = 0.0  # over the steps of an epoch, without what comes between epochs

    def step(self, place: float) -> bool:
        """Count a step; whether it is now time to tell, for the first time, how long the stage will take."""
        self.steps += 1
        if self.steps == UNTIMED:
            self.since = time.monotonic(), place
        return self.since is not None and not self.told and time.monotonic() - self.since[0] > FIRST_LOOK

    def left(self, place: float) -> str:
        """`12 min` to the stage's end, with validation and pictures once there were any; "" when nothing is known."""
        self.told = True
        if self.since is None or place <= self.since[1]:
            return ""
        each = (time.monotonic() - self.since[0]) / (place - self.since[1])
        return duration(each * (self.epochs - place))

    def describe(self, place: int) -> list[str]:
        """Slices a second, and the time that is left; in the end, that which the stage took."""
        rate = [f"{self.slices_a_second:.3g} slices/s"] if self.slices_a_second else []
        if place >= self.epochs:
            return [*rate, f"done in {duration(time.monotonic() - self.began)}"]
        return [*rate, f"{left} left"] if (left := self.left(place)) else rate


def epoch_told(row: Mapping[str, float], means: Sequence[str], score: tuple[str, float, float] | None) -> list[str]:
    """`train reconstruction 0.0312, train commitment 0.0021`, `validation SSIM 0.9712 (best 0.9731)`.

    The first of the epoch's `means` in its row of metrics.csv; name, value and best value of the `score` if any.
    """
    told = [f"{name.replace('_', ' ')} {row[name]:.4f}" for name in means[:LOSSES] if name in row]
    if score:
        name, value, best = score
        told.append(f"{name} {value:.4f}" + (" (best so far)" if value == best else f" (best {best:.4f})"))
    return told


class StepTable:
    """`steps_<stage>.csv`: epoch, step and values of every `EVERY`th step, counted from 0 within its epoch.

    Values wait on their device until `write`, since reading one halts a GPU. A stage that goes on after an
    interruption keeps the rows of the steps that were saved, and makes the others again.
    """

    EVERY = 10

    def __init__(self, path: Path, epoch: int, step: int):
        """`epoch`: how many are done; `step`: how many of the next. Raises InputError when the file is damaged."""
        self.path, self.rows = path, []
        self.waiting: list[tuple[dict[str, int], list[str], Tensor]] = []
        if (epoch, step) > (0, 0) and path.is_file():
            self.rows = [row for row in _read(path) if (int(row["epoch"]) - 1, int(row["step"])) < (epoch, step)]

    def add(self, epoch: int, step: int, names: list[str], values: Tensor) -> None:
        """Values [n] of a step, if it is one of those to keep; `epoch` is counted from 1."""
        if step % self.EVERY == 0:
            self.waiting.append(({"epoch": epoch, "step": step}, names, values))

    def write(self) -> None:
        """The file, with what has been waiting. Raises InputError when the disk is full."""
        for place, names, values in self.waiting:
            self.rows.append(place | {name: f"{x:.6g}" for name, x in zip(names, values.tolist(), strict=True)})
        self.waiting = []
        if self.rows:
            text = io.StringIO(newline="")
            columns = dict.fromkeys(key for row in self.rows for key in row)
            writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            with atomic(self.path) as file:
                file.write(text.getvalue().encode())


def _read(path: Path) -> list[dict[str, str]]:
    """The rows of a file that `StepTable` wrote. Raises InputError when it holds anything else."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        whole = all(int(row["epoch"]) > 0 <= int(row["step"]) and None not in {*row, *row.values()} for row in rows)
    except (KeyError, TypeError, ValueError, csv.Error):
        whole = False
    if not whole:
        raise InputError(f"{path} is damaged: move it away, and go on")
    return rows
