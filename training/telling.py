"""What does a training log? A line an epoch, the time that is left, and a table with the values of every tenth step."""

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from runtime.errors import InputError
from runtime.files import atomic
from runtime.wording import duration

FIRST_ESTIMATE = 10.0  # seconds of steps, after which the time that a stage will take is logged
WARM_UP_STEPS = 2  # first steps, which are slower than the others and don't count
SHOWN_MEANS = 2  # of an epoch's means, those in its line


class Pace:
    """How fast a stage goes: slices a second, and the time that is left.

    A place in the stage is the number of epochs done, with the part of the one under way: 1.5.
    """

    def __init__(self, epochs: int):
        self.epochs, self.began = epochs, time.monotonic()
        self.steps = 0  # done by this process
        self.start: tuple[float, float] | None = None  # time and place after the warm-up steps
        self.estimated = False
        self.slices_a_second = 0.0  # over the steps of an epoch, without what comes between epochs

    def step(self, place: float) -> bool:
        """Count a step; true once, when it is time for a first estimate of how long the stage will take."""
        self.steps += 1
        if self.steps == WARM_UP_STEPS:
            self.start = time.monotonic(), place
        return bool(self.start) and not self.estimated and time.monotonic() - self.start[0] > FIRST_ESTIMATE

    def left(self, place: float, later: float = 0.0) -> str:
        """`12 min` to the stage's end, including validation and figures of the epochs so far; "" if unknown.

        With `later` stages, that take so many times what this one takes, to the end of those.
        """
        self.estimated = True
        if self.start is None or place <= self.start[1]:
            return ""
        seconds_an_epoch = (time.monotonic() - self.start[0]) / (place - self.start[1])
        return duration(seconds_an_epoch * (self.epochs * (1 + later) - place))

    def describe(self, place: int) -> list[str]:
        """Slices a second, and the time that is left or, at the end, that the stage took."""
        rate = [f"{self.slices_a_second:.3g} slices/s"] if self.slices_a_second else []
        if place >= self.epochs:
            return [*rate, f"done in {duration(time.monotonic() - self.began)}"]
        return [*rate, f"{left} left"] if (left := self.left(place)) else rate


def describe_epoch(row: Mapping[str, float], means: Sequence[str], score: tuple[str, float, float] | None) -> list[str]:
    """`train reconstruction 0.0312, train commitment 0.0021`, `validation SSIM 0.9712 (best 0.9731)`.

    The first of the epoch's `means` in its row of metrics.csv; name, value and best value of the `score` if any.
    """
    shown = [name for name in means if name in row and name != "learning_rate"][:SHOWN_MEANS]
    parts = [f"{name.replace('_', ' ')} {short(row[name])}" for name in shown]
    if score:
        name, value, best = score
        parts.append(f"{name} {value:.4f}" + (" (best so far)" if value == best else f" (best {best:.4f})"))
    return parts


def short(value: float) -> str:
    """`0.0312`; for a learning rate `8.7e-04`."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"


class StepTable:
    """`steps_<stage>.csv`: epoch, step and values of every `EVERY`th step, counted from 0 within its epoch.

    Values stay on their device until `write`, since reading one waits for the GPU. A stage that resumes after an
    interruption keeps the rows of the steps that were saved, and repeats the others.
    """

    EVERY = 10

    def __init__(self, path: Path, epoch: int, step: int):
        """`epoch`: how many are done; `step`: how many of the next. Raises InputError when the file is damaged."""
        self.path, self.rows = path, []
        self.pending: list[tuple[dict[str, int], list[str], Tensor]] = []
        if (epoch, step) > (0, 0) and path.is_file():
            self.rows = [row for row in _read(path) if (int(row["epoch"]) - 1, int(row["step"])) < (epoch, step)]

    def add(self, epoch: int, step: int, names: list[str], values: Tensor) -> None:
        """Values [n] of a step, if it is one to keep; `epoch` is counted from 1."""
        if step % self.EVERY == 0:
            self.pending.append(({"epoch": epoch, "step": step}, names, values))

    def write(self) -> None:
        """Write all rows. Raises InputError when the disk is full."""
        for place, names, values in self.pending:
            self.rows.append(place | {name: f"{x:.6g}" for name, x in zip(names, values.tolist(), strict=True)})
        self.pending = []
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
        sound = all(int(row["epoch"]) > 0 <= int(row["step"]) and None not in {*row, *row.values()} for row in rows)
    except (KeyError, TypeError, ValueError, csv.Error):
        sound = False
    if not sound:
        raise InputError(f"{path} is damaged: move it away, and go on")
    return rows
