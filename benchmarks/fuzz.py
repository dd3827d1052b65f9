"""What do changed files and command lines do to train.py and predict.py? Nothing worse than one line.

    python benchmarks/fuzz.py [--examples 2000] [--seed 0] [--json FILE]

Hypothesis changes valid checkpoints, states, configs, cache indexes, PNG and NIfTI files and command lines, anywhere: a
value for an odd one, a part left out, bytes flipped. Each is given to the command that reads it, in a process of its
own, without figures. It must end with status 0, or 143 where it was to stop; with 2 and one line, having written
nothing; or with 1 and one line; within 20 s of a processor and 2 GiB.
"""

import argparse
import gc
import gzip
import json
import math
import os
import resource
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import nibabel
import numpy as np
import torch
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import predict
import train
from benchmarks.bad_inputs import blob, png, saved, write_set
from benchmarks.faults import QUICK, Process, contents, without_figures
from runtime.cli import flag
from training.settings import TrainCommand

SECONDS, BYTES = 20, 2 * 2**30  # that an example may take
KEPT = 5  # failures whose folders are kept, 100 MB each
STOP = ["--device=cpu", "--precision=fp32", "--time-limit=0"]
MAINS = {"train": train.main, "predict": predict.main}


@dataclass(frozen=True)
class Example:
    """Files to put into a folder that has `data` and `run` in it, and what to call there."""

    kind: str
    files: dict[str, bytes]
    program: str
    arguments: list[str]


# ----------------------------------------------------------------------------------------------------
# Changes

NUMBERS = [-1, 0, 1, 3, 17, 2**31, 2**63, -(10**18), 10**400, 0.5, -0.5, 1e308, math.nan, math.inf, -math.inf]
VALUES = [None, True, False, "", "x", "\x1b[2J", "\udcff", "9" * 5000, [], [1], [[]], {}, {"x": 1}, *NUMBERS]
TENSORS = [lambda t: t * math.nan, lambda t: t.float() * 1e30, lambda t: t[:0], lambda t: t[None], lambda t: t.bool()]


def places(tree: Any, path: tuple = ()) -> list[tuple]:
    """The path of everything in nested dicts and lists."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in inside for place in places(value, (*path, key)))]


def copied(tree: Any) -> Any:
    """Nested dicts and lists, new; what is in them is the same."""
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    return [copied(value) for value in tree] if isinstance(tree, list) else tree


@st.composite
def changed_tree(draw: Callable, tree: Any) -> Any:
    """One to three things in a tree replaced, left out, renamed, or doubled."""
    tree = copied(tree)
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from([place for place in places(tree) if place] or [(None,)]))
        if last is None:
            return tree
        where = tree
        for key in path:
            where = where[key]
        how = draw(st.sampled_from(["value", "value", "value", "left out", "renamed", "deep"]))
        old = where[last]
        if how == "left out":
            del where[last]
        elif how == "renamed" and isinstance(where, dict):
            where[f"{last}_"] = where.pop(last)
        elif how == "deep":
            for _ in range(draw(st.sampled_from([2, 50, 300]))):
                old = [old]
            where[last] = old
        elif isinstance(old, torch.Tensor) and draw(st.booleans()):
            where[last] = draw(st.sampled_from(TENSORS))(old) if old.ndim else old * math.nan
        else:
            where[last] = draw(st.sampled_from(VALUES))
    return tree


@st.composite
def changed_bytes(draw: Callable, data: bytes, most: int | None = None) -> bytes:
    """Bytes flipped, left out or doubled, or the rest cut off, within the first `most`."""
    data, end = bytearray(data), min(most or len(data), len(data))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, end - 1))
        match draw(st.sampled_from(["flip", "flip", "flip", "cut", "double", "leave out"])):
            case "flip":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "cut" if at:
                del data[at:]
            case "double":
                data[at:at] = data[at : at + 40]
            case "leave out":
                del data[at : at + draw(st.integers(1, 8))]
        end = min(end, len(data))
        if not end:
            break
    return bytes(data)


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


# ----------------------------------------------------------------------------------------------------
# Examples


class Examples:
    """Strategies for what is given to which command, from valid files."""

    def __init__(self, run: Path, index: Path):
        """`run`: a finished run with a dcgan.pth; `index`: the index.json of its data's cache."""
        self.run, self.index = run, index
        self.of_kind = {
            "checkpoint": self.checkpoint("vqvae.pth", ["vqvae.pth", "--prior=none"]),
            "prior": self.checkpoint(
                "dcgan.pth", ["run/vqvae.pth", "--prior=dcgan.pth", "--samples=2", "--samples-only"]
            ),
            "state": self.state(),
            "config": self.config(),
            "cache": self.cache(),
            "picture": self.picture(),
            "volume": self.volume(),
            "options of train.py": self.options(TrainCommand, "train", ["--data=data", *QUICK, *STOP]),
            "options of predict.py": self.options(
                predict.PredictSettings, "predict", ["run/vqvae.pth", "--samples=2", "--device=cpu"]
            ),
        }

    def any(self) -> st.SearchStrategy[Example]:
        return st.one_of(*self.of_kind.values())

    def _changed(self, name: str) -> st.SearchStrategy[bytes]:
        data = (self.run / name).read_bytes()
        content = torch.load(self.run / name, weights_only=True)
        return st.one_of(changed_tree(content).map(saved), changed_tree(content).map(saved), changed_bytes(data))

    def checkpoint(self, name: str, arguments: list[str]) -> st.SearchStrategy[Example]:
        arguments = [*arguments, "--device=cpu"]
        return self._changed(name).map(lambda data: Example(name, {name: data}, "predict", arguments))

    def state(self) -> st.SearchStrategy[Example]:
        def example(data: bytes) -> Example:
            names = ("run/last.pth", "run/previous.pth")
            return Example("last.pth", dict.fromkeys(names, data), "train", ["--resume=run", *STOP[2:]])

        return self._changed("last.pth").map(example)

    def config(self) -> st.SearchStrategy[Example]:
        data = (self.run / "config.json").read_bytes()
        changed = st.one_of(changed_tree(json.loads(data)).map(as_json), changed_bytes(data))
        resumed = changed.map(
            lambda data: Example("config.json", {"run/config.json": data}, "train", ["--resume=run", "--time-limit=0"])
        )
        started = changed.map(
            lambda data: Example("config.json", {"c.json": data}, "train", ["--config=c.json", "--data=data", *STOP])
        )
        return st.one_of(resumed, started)

    def cache(self) -> st.SearchStrategy[Example]:
        def example(name: str) -> Callable[[bytes], Example]:
            return lambda data: Example("cache", {f"cache/{name}": data}, "train", ["--data=data", *QUICK, *STOP])

        index, array = self.index.read_bytes(), self.index.with_name("train.npy").read_bytes()
        changed = st.one_of(changed_tree(json.loads(index)).map(as_json), changed_bytes(index))
        return st.one_of(changed.map(example("index.json")), changed_bytes(array, 400).map(example("train.npy")))

    def picture(self) -> st.SearchStrategy[Example]:
        changed = changed_bytes(png(blob(1)))
        name = "data/keras_png_slices_train/case_001_slice_1.nii.png"
        in_set = changed.map(lambda data: Example("PNG", {name: data}, "train", ["--data=data", *QUICK, *STOP]))
        return st.one_of(changed.map(lambda data: self._input("a.png", data)), in_set)

    def volume(self) -> st.SearchStrategy[Example]:
        voxels = np.stack([blob(seed) for seed in range(8)], axis=2).astype(np.int16)
        good = nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes()
        plain = changed_bytes(good, 352).map(lambda data: self._input("a.nii", data))
        packed = changed_bytes(gzip.compress(good)).map(lambda data: self._input("a.nii.gz", data))
        inside = changed_bytes(good, 352).map(lambda data: self._input("a.nii.gz", gzip.compress(data)))
        return st.one_of(plain, packed, inside)

    @staticmethod
    def _input(name: str, data: bytes) -> Example:
        kind = "PNG" if name.endswith("png") else "NIfTI"
        return Example(kind, {name: data}, "predict", ["run/vqvae.pth", "--device=cpu", f"--input={name}"])

    @staticmethod
    def options(kind: type, program: str, before: list[str]) -> st.SearchStrategy[Example]:
        """One to four options more, each with an odd value, or a small number, or none."""
        texts = [str(value).replace("\0", "") for value in VALUES] + [
            "2",
            "1e-400",
            "--",
            "½",
            "~nobody/x",
            "a b",
            "1:2",
        ]
        options = [flag(name) for name in kind.model_fields if name != "checkpoint"] + ["--no-such-option", "-x"]
        one = st.tuples(st.sampled_from(options), st.sampled_from([*texts, None])).map(
            lambda pair: pair[0] if pair[1] is None else "=".join(pair)
        )
        given = st.lists(one, min_size=1, max_size=4)
        return given.map(lambda more: Example(f"options of {program}.py", {}, program, [*before, *more]))


# ----------------------------------------------------------------------------------------------------
# Trying them


def limited() -> None:
    """In a process of an example: what a figure shows is none of its business, and its time is limited."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))  # a process that is forked starts at 0
    without_figures()


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Trial:
    """A folder with data, a run and a cache, and what examples have done there."""

    def __init__(self, place: Path, report: Path | None):
        self.place, self.folder, self.cache, self.report = place, place / "try", place / "cache", report
        self.whole, self.outcomes, self.failures = place / "whole", Counter(), []
        write_set(self.whole / "data")
        options = ["--data=data", *QUICK, "--epochs=1", "--prior=dcgan", "--prior-epochs=1"]
        process = Process(train.main, options, self.whole, self.cache)
        if process.wait() != 0:
            raise SystemExit("\n".join(["the run that is valid failed:", *process.said()]))
        [run] = (self.whole / "runs").iterdir()
        for figure in [*run.glob("*.png"), *run.glob("*.gif"), run / "report.html"]:
            figure.unlink()
        run.rename(self.whole / "run")
        (self.whole / "runs").rmdir()
        [self.index] = self.cache.rglob("index.json")
        self.examples = Examples(self.whole / "run", self.index)
        self.resident = resident()

    def __call__(self, example: Example) -> None:
        outcome, problem = self._outcome(example)
        self.outcomes[f"{example.kind}, {outcome}"] += 1
        if (number := self.outcomes.total()) % 20 == 0:
            print(f"{number} examples, {len(self.failures)} failures", flush=True)
            self.write()
            gc.collect()  # of examples that were drawn, which hold each other
        if problem:
            self.failures.append(f"{example.kind}: {example.arguments}: {problem}")
            print(self.failures[-1], flush=True)
            if len(self.failures) <= KEPT:
                shutil.copytree(self.folder, self.place / f"failure-{len(self.failures)}")

    def write(self) -> dict:
        """The counts so far, which are also written to the report."""
        counts = {"examples": self.outcomes.total(), "outcomes": dict(sorted(self.outcomes.items()))}
        counts["failures"] = self.failures
        if self.report:
            self.report.write_text(json.dumps(counts, indent=2) + "\n")
        return counts

    def _outcome(self, example: Example) -> tuple[str, str | None]:
        """How it ended, and what is wrong with that."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.whole / "run", self.folder / "run")
        shutil.copytree(self.cache, self.folder / "cache-home")
        if any(name.startswith("data/") for name in example.files):
            shutil.copytree(self.whole / "data", self.folder / "data")
        else:
            (self.folder / "data").symlink_to(self.whole / "data")  # the same set, so that its cache is the same, too
        for name, data in example.files.items():
            path = self.folder / name
            if name.startswith("cache/"):
                path = self.folder / "cache-home" / self.index.parent.relative_to(self.cache) / path.name
            path.unlink(missing_ok=True)
            path.write_bytes(data)
        before = contents(self.folder)
        drawn = resident() - self.resident  # since the first example: the process that is forked begins with it
        process = Process(MAINS[example.program], example.arguments, self.folder, self.folder / "cache-home", limited)
        _, status, usage = os.wait4(process.pid, 0)
        status, said = os.waitstatus_to_exitcode(status), process.said()
        outcome = f"status {status}"
        if status < 0:
            return outcome, f"killed by signal {-status}: {said[-1:]}"
        if (taken := usage.ru_maxrss * 1024 - drawn) > BYTES:
            return outcome, f"took {taken / 2**30:.1f} GiB"
        if any("Traceback" in line for line in said):
            return outcome, f"a traceback: {said[-1:]}"
        if status not in (0, 1, 2, 143):
            return outcome, f"{said[-1:]}"
        errors = [line for line in said if line.startswith("error: ")]
        if status in (1, 2) and (len(errors) != 1 or said[-1] != errors[0] or not said[-1].isprintable()):
            return outcome, f"not one line: {said}"
        if status == 2 and contents(self.folder) != before:
            return outcome, f"wrote {sorted(set(contents(self.folder)) ^ set(before))}"
        return outcome, None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=2000, help="(default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the changes (default: 0)")
    parser.add_argument("--json", type=Path, help="also write the counts there, those so far every 20 examples")
    settings = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="fuzz-"))
    trial = Trial(place, settings.json)

    @hypothesis.seed(settings.seed)
    @hypothesis.settings(
        max_examples=settings.examples,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(trial.examples.any())
    def try_all(example: Example) -> None:
        trial(example)

    try_all()
    print(json.dumps(trial.write(), indent=2))
    if not trial.failures:
        shutil.rmtree(place)
    return 1 if trial.failures else 0


if __name__ == "__main__":
    sys.exit(main())
