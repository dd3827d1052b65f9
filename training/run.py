"""How does a training survive an interruption? By the run folder, and by epochs that can stop at any step.

runs/<date>_<time>/
    config.json     every setting of the run, its data's fingerprint, its commit, device and minutes
    log.txt         the terminal's output
    metrics.csv     a row an epoch; steps_<stage>.csv, one every few steps
    vqvae.pth       the autoencoder with the best validation SSIM (whatever --model it is)
    painter.pth     the painter of the samples' texture
    <prior>.pth     the best prior
    last.pth        everything needed to resume; previous.pth is the one before it
    *.png, *.gif    figures
    tensorboard/    event files, with --tensorboard
"""

import csv
import io
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from modules import Prior
from report.index import write_index
from runtime import checkpoint, compute
from runtime.errors import InputError, one_line, visible
from runtime.files import atomic, locked, whole_folder
from runtime.signals import StopSignals
from runtime.wording import counted
from training.board import Board
from training.settings import Config
from training.state import State, restore
from training.telling import Pace, StepTable, describe_epoch, short

UNSAVED_SECONDS = 10.0  # of training that may be lost to a signal outside of the steps, where nothing can be saved
AGREE_STEPS = 16  # between two agreements of all processes on whether to save or to stop
FINITE_STEPS = 50  # between two checks that the losses are finite: each waits for the GPU
NEVER = torch.iinfo(torch.int64).max  # the number of a step that doesn't come
BEFORE_PRIOR = ("autoencoder", "painter", "student")  # stages, in their order; the prior's has the prior's name


class Run:
    """One run folder, its log, and its progress.

    Only the first process of a group writes, and only one run at a time. `rows` are the rows of metrics.csv.
    Raises InputError when another run is at work in the folder, or nothing readable is left of its last state.
    """

    def __init__(self, folder: Path, save_minutes: float, time_limit: float | None, tensorboard: bool = False):
        self.folder = folder
        self.main = not dist.is_initialized() or dist.get_rank() == 0
        if self.main:
            self._lock()
        self.state = load_last(folder)
        self.rows: list[dict[str, Any]] = self.state["rows"] if self.state else []
        self.board = Board(folder, self.rows) if tensorboard and self.main else None
        self.signals = StopSignals()
        self.save_seconds = 60 * save_minutes
        self.deadline = time.monotonic() + 60 * time_limit if time_limit is not None else float("inf")
        self.saved_at = time.monotonic()
        self.work: dict[str, float] = {}  # each stage's, in any unit, to estimate the time of those to come

    def _lock(self) -> None:
        self.lock = ExitStack()
        self.lock.enter_context(locked(self.folder / ".lock"))
        for leftover in self.folder.glob(".*.partial"):  # of a process that was killed
            leftover.unlink()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Around the whole training: a signal stops it between two steps, and the log says how to resume.

        Before and after it, index.html beside the run folder is written anew.

        A process that waits for one which has left gets a RuntimeError, and leaves, too.
        """
        with self.signals:
            self._write_index()
            try:
                yield
            except SystemExit:
                self.log(f"stopped; resume with: python train.py --resume {self.folder}")
                raise
            except RuntimeError:
                if self.signals.received is None or not dist.is_initialized():
                    raise
                self.signals.leave()
            finally:
                self._write_index()

    def _write_index(self) -> None:
        if self.main:
            write_index(self.folder.parent)

    def log(self, text: str) -> None:
        """Print a line and keep it in log.txt."""
        if self.main:
            text = visible(text)
            with tqdm.external_write_mode():  # beside a bar, not through it
                print(text, flush=True)
            with open(self.folder / "log.txt", "a", encoding="utf-8") as file:
                file.write(text + "\n")

    def is_past(self, stage: str) -> bool:
        """Whether this stage, one of `BEFORE_PRIOR`, is over: the run was saved in one that comes after it."""
        if self.state is None:
            return False
        after = BEFORE_PRIOR[BEFORE_PRIOR.index(stage) + 1 :]
        return self.state["stage"] in after or self.state["stage"] not in BEFORE_PRIOR

    def save(self, name: str, content: dict[str, Any]) -> None:
        """Write a checkpoint into the run folder, by the first process only."""
        if self.main:
            checkpoint.save(self.folder / name, content)

    def save_prior(self, name: str, prior: Prior, identity: str, epoch: int, row: dict[str, float]) -> None:
        """<name>.pth: a prior for the codes of the autoencoder `identity`, with its epoch's row of metrics.csv."""
        content = {"kind": "prior", "model": name, "autoencoder": identity, "arguments": prior.arguments}
        self.save(f"{name}.pth", content | {"epoch": epoch, **row, "state": checkpoint.halved(prior.state_dict())})

    def rows_of(self, stage: str) -> list[dict[str, Any]]:
        """The rows of one stage, an epoch each."""
        return [row for row in self.rows if row["stage"] == stage]

    def write_config(self, config: Config) -> None:
        """Write config.json anew: with the settings that a resumed run was given, or the time that it took."""
        if self.main:
            write_config(self.folder, config)

    def write_metrics(self) -> None:
        """metrics.csv from `rows`: the columns of every stage, empty where a stage has none."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        with atomic(self.folder / "metrics.csv") as file:
            file.write(text.getvalue().encode())


def load_last(folder: Path) -> dict[str, Any] | None:
    """The newest readable state of a run, with a warning for each newer one that isn't; None when none was written.

    next.pth is there, and whole, when the process was killed just before it became last.pth.
    """
    problem = None
    for path in (folder / "next.pth", folder / "last.pth", folder / "previous.pth"):
        if path.exists():
            try:
                state = checkpoint.load(path, "run")
                State.checked(state, path)
            except InputError as error:
                problem = error
                print(f"warning: {one_line(error)}", file=sys.stderr)
                continue
            return state
    if problem:
        raise problem
    return None


def create_run_folder(out: Path, config: Config) -> Path:
    """A new folder `out/<date>_<time>` with config.json in it; two runs never get the same one."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    try:
        for attempt in range(1, 1000):
            folder = out / (stamp if attempt == 1 else f"{stamp}_{attempt}")
            with suppress(FileExistsError):  # the name is taken
                with whole_folder(folder) as new:
                    write_config(new, config)
                return folder
    except OSError as error:
        raise InputError(f"can't make a run folder in {out}: {error.strerror}; choose another --out") from error
    raise InputError(f"can't find a free name for a run folder in {out}; choose another --out")


def write_config(folder: Path, config: Config) -> None:
    """config.json, whole or not at all."""
    with atomic(folder / "config.json") as file:
        file.write(config.model_dump_json(indent=2).encode())


class NotFiniteError(InputError):
    """A loss became NaN or infinite in this step, counted from 0, of an epoch."""

    def __init__(self, stage: str, epoch: int, step: int):
        self.stage, self.epoch, self.step = stage, epoch, step
        super().__init__(
            f"{stage} diverged: the loss of epoch {epoch}, step {step} is not finite; what was saved is kept"
        )


class Stage:
    """One training within a run: its epochs and steps, which can be interrupted and resumed anywhere.

    `parts` are the objects with a `state_dict` that training changes. A stage that resumes loads them, the sums of the
    epoch under way and the random states, and continues with the next step, so that the result is that of a run that
    never stopped. Networks start alike in all processes of a group.

    `batches` has `steps` (of an epoch), `batch_size`, and `shuffled(seed, epoch, start)`, an epoch's batches from a
    step on. `score_name` is the name, in the log, of the score that `is_best` gets; it shows without the minus sign
    that makes larger scores better where `less_is_better`.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        epochs: int,
        batches: Any,
        parts: dict[str, Any],
        score_name: str,
        less_is_better: bool = False,
    ):
        self.run, self.name, self.epochs, self.batches, self.parts = run, name, epochs, batches, parts
        self.score_name, self.sign = score_name, -1 if less_is_better else 1
        self.score: float | None = None  # of the epoch under way, once it is judged
        self.epoch, self.step = 0, 0  # epochs done; steps done in the one under way
        self.best: float | None = None
        self.names: list[str] = []  # of the values that `add` gets
        self.sums = self.first_bad = torch.zeros(())  # of this epoch: their sums; the first step with one not finite
        self.resumed = bool(run.state and run.state["stage"] == name)
        if self.resumed:
            self._load(run.state)
        if dist.is_initialized():
            for part in self.parts.values():
                if isinstance(part, torch.nn.Module):
                    for tensor in (*part.parameters(), *part.buffers()):
                        dist.broadcast(tensor.detach(), 0)
        self.pace = Pace(epochs)
        self.table = StepTable(run.folder / f"steps_{name}.csv", self.epoch, self.step) if run.main else None

    @property
    def steps_done(self) -> int:
        """Over all epochs."""
        return self.epoch * self.batches.steps + self.step

    @property
    def total_steps(self) -> int:
        return self.epochs * self.batches.steps

    def _load(self, state: dict[str, Any]) -> None:
        try:
            for name, part in self.parts.items():
                restore(part, state["parts"][name])
            self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
            if state["sums"]:
                self.names, sums = list(state["sums"]), torch.stack(list(state["sums"].values()))
                self.sums, self.first_bad = sums.to(compute.communication_device()), torch.full((), NEVER)
            torch.set_rng_state(state["rng"])
        except checkpoint.MISFITS as error:
            raise InputError(f"last.pth in {self.run.folder} doesn't fit its config.json: {error}") from error
        if torch.cuda.is_available() and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"])
        if not self.run.main:  # the saved random states are the first process's
            torch.manual_seed(1000 * self.steps_done + dist.get_rank())
        self.run.log(f"{self.name}: resuming after epoch {self.epoch}, step {self.step}")

    def save(self) -> None:
        """Write last.pth; the one before it stays as previous.pth. Raises InputError when a loss was not finite.

        All processes call it together: the sums of the epoch under way are saved as the mean of theirs.
        """
        self.check_finite()
        sums = dict(zip(self.names, compute.mean(self.sums).unbind(), strict=True)) if self.names else {}
        self.run.saved_at = time.monotonic()
        if not self.run.main:
            return
        folder = self.run.folder
        self.table.write()
        state = {
            "kind": "run",
            "stage": self.name,
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "rows": self.run.rows,
            "sums": sums,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        }
        checkpoint.save(folder / "next.pth", state)
        if (folder / "last.pth").exists():
            os.replace(folder / "last.pth", folder / "previous.pth")
        os.replace(folder / "next.pth", folder / "last.pth")

    def remaining_epochs(self) -> Iterator[int]:
        """Numbers, from 1, of the epochs still to do."""
        while self.epoch < self.epochs:
            yield self.epoch + 1

    def steps(self, seed: int) -> Iterator:
        """The remaining batches of the epoch under way, behind a progress bar; between two, save or stop if due."""
        began, first = time.monotonic(), self.step
        size, steps = self.batches.batch_size, self.batches.steps
        label, hidden = f"{self.name} {self.epoch + 1}/{self.epochs}", None if self.run.main else True
        bar = tqdm(total=steps * size, initial=first * size, desc=label, unit=" slices", disable=hidden)
        with self.run.signals.postponed(), bar:
            for batch in self.batches.shuffled(seed, self.epoch, first):
                yield batch
                self.step += 1
                bar.update(size)
                if self.step % FINITE_STEPS == 0:
                    self.check_finite()
                    bar.set_postfix({name: short(value) for name, value in self.means().items()})
                if self.pace.step(place := self.epoch + self.step / steps):
                    self._announce(place)
                if not dist.is_initialized() or self.step % AGREE_STEPS == 0:
                    self._save_or_stop(self.run.save_seconds)
            self.pace.slices_a_second = (self.step - first) * size / max(time.monotonic() - began, 1e-9)
            self.check_finite()  # before anything is made of weights that aren't numbers
            self._save_or_stop(UNSAVED_SECONDS)  # what follows is no step, and nothing of it can be saved

    def _announce(self, place: float) -> None:
        """After the first steps: how long the stage will take, and roughly the whole run."""
        self.check_finite()  # waits until a GPU has done its queue
        sizes = (self.epochs, "epoch"), (self.batches.steps, "step"), (self.batches.batch_size, "slice")
        plan = " of ".join(counted(*each) for each in sizes)
        text, work = f"{self.name}: {plan}, about {self.pace.left(place)} left", self.run.work
        if later := [*work][[*work].index(self.name) + 1 :] if self.name in work else []:
            share = sum(work[name] for name in later) / work[self.name]
            text += f"; roughly {self.pace.left(place, share)} with {' and '.join(later)}"
        self.run.log(text)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Around a long operation within a step: saves what was done before, and a signal ends the run at once."""
        self._save_or_stop(UNSAVED_SECONDS)
        with self.run.signals.postponed(False):
            yield

    def _save_or_stop(self, unsaved: float) -> None:
        """Save when the last save is more than `unsaved` seconds ago, or, when it is time to, save and stop."""
        stop, save = self._any_process(self._must_stop(), time.monotonic() - self.run.saved_at > unsaved)
        if stop or save:
            self.save()
        if stop:
            self.run.signals.leave()

    def _must_stop(self) -> bool:
        return self.run.signals.received is not None or time.monotonic() > self.run.deadline

    def _any_process(self, *flags: bool) -> list[bool]:
        """Which of the flags any process has set: all must leave at the same step, or the others wait for ever."""
        if not dist.is_initialized():
            return list(flags)
        any_set = torch.tensor(flags, dtype=torch.float32, device=compute.communication_device())
        dist.all_reduce(any_set, op=dist.ReduceOp.MAX)
        return any_set.bool().tolist()

    def add(self, **values: torch.Tensor | float) -> None:
        """Add up scalars over the steps of an epoch, on their device: reading them would wait for the GPU."""
        device = next(value.device for value in values.values() if isinstance(value, torch.Tensor))
        row = [
            v.detach().float() if isinstance(v, torch.Tensor) else torch.full((), v, device=device)
            for v in values.values()
        ]
        row = torch.stack(row)
        if not self.names:
            self.names, self.sums = list(values), torch.zeros_like(row)
            self.first_bad = torch.full((), NEVER, device=device)
        elif self.sums.device != device:  # just loaded
            self.sums, self.first_bad = self.sums.to(device), self.first_bad.to(device)
        if self.table:
            self.table.add(self.epoch + 1, self.step, self.names, row)
        self.sums = self.sums + row
        self.first_bad = torch.where(row.sum().isfinite(), NEVER, self.step).minimum(self.first_bad)

    def check_finite(self) -> None:
        """Raise InputError with the step, counted from 0, when a value given to `add` was not a finite number."""
        if self.names and (step := int(self.first_bad)) <= self.step:
            raise NotFiniteError(self.name, self.epoch + 1, step)

    def means(self) -> dict[str, float]:
        """Mean over the steps of this epoch so far, and over all processes, of the values given to `add`."""
        if not self.names:
            return {}
        means = compute.mean(self.sums) / max(self.step, 1)
        return dict(zip(self.names, means.tolist(), strict=True))

    def is_best(self, score: float) -> bool:
        """Whether `score` (larger is better) beats all before it; it is then the one to beat."""
        self.score = score
        if not score > (-math.inf if self.best is None else self.best):  # NaN is never the best
            return False
        self.best = float(score)
        return True

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Close the epoch: a row in metrics.csv and on the board, a line in the log, then last.pth."""
        self.check_finite()
        means = self.names
        with self.run.signals.postponed():
            self.epoch, self.step, self.names = self.epoch + 1, 0, []
            self.run.rows.append({"stage": self.name, "epoch": self.epoch, **row})
            if self.run.main:
                self.run.write_metrics()
            if self.run.board:
                self.run.board.add(self.run.rows[-1])
            score = None
            if self.score is not None:
                best = math.nan if self.best is None else self.best
                score = self.score_name, self.sign * self.score, self.sign * best
            line = [*describe_epoch(row, means, score), *self.pace.describe(self.epoch)]
            self.run.log(f"{self.name} {self.epoch}/{self.epochs}: {', '.join(line)}")
            self.score = None
            self.save()
            if any(self._any_process(self._must_stop())):
                self.run.signals.leave()
