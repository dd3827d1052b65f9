"""What does a GPU answer? The parts of gpu.sh: each leaves a JSON file, and README.md's tables are made of these."""

import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runtime.environment  # noqa: F401, before PyTorch

# isort: split
import torch

from benchmarks import speed
from benchmarks.tables import markdown
from benchmarks.trained import ROOT, finished
from runtime import cli, compute
from runtime.cli import Settings, option
from runtime.errors import InputError, exit_on_input_error
from runtime.files import atomic

PAGE = Path(__file__).parent / "README.md"
TESTS = ("tests/test_cuda.py", "tests/test_fake_cuda.py", "tests/test_dataset.py")
MINUTES = 7  # of training in one call of `train`: the rest of the nine is for its start, and what is under way
Numbers = dict[str, Any]


class GPUSettings(Settings):
    """what to measure"""

    part: Literal["tests", "speed", "precision", "whole", "two_processes", "train", "page"] = option(..., "of gpu.sh")
    data: str = option("demo", "data set", "DIR")
    out: Path = option(Path(__file__).parent / "gpu", "folder of the JSON files, and of the training", "DIR")
    device: Literal["cuda", "cpu"] = option("cuda", "where to compute")
    quick: bool = option(False, "tiny sizes, whose figures mean nothing")


def run(*command: object, statuses: tuple[int, ...] = (0,)) -> int:
    """Run Python with these arguments in the repository; its status. Raises InputError where that isn't expected."""
    print("python", *command, flush=True)
    status = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT).returncode
    if status not in statuses:
        raise InputError(f"{command[0]} ended with status {status}: see above")
    return status


# ----------------------------------------------------------------------------------------------------
# The parts


def tests(settings: GPUSettings, work: Path) -> Numbers:
    """The tests of what only a GPU shows; those of other devices are skipped."""
    report = work / "tests.xml"
    run("-m", "pytest", "-q", *TESTS, f"--junitxml={report}", statuses=(0, 1))
    cases = list(ElementTree.parse(report).iter("testcase"))
    bad = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case.get("name") for case in cases if case.find("skipped") is not None]
    return {"passed": len(cases) - len(bad) - len(skipped), "failed": bad, "skipped": skipped}


def by_speed(*options: object) -> Callable[[GPUSettings, Path], Numbers]:
    """A part that speed.py measures with these options."""

    def measured(settings: GPUSettings, work: Path) -> Numbers:
        out, quick = work / "speed.json", ["--quick"] if settings.quick else []
        run("benchmarks/speed.py", "--data", settings.data, "--device", settings.device, *quick, *options, "--out", out)
        return json.loads(out.read_text())

    return measured


def two_processes(settings: GPUSettings, work: Path) -> Numbers:
    """The same training in one process and in two, which share the GPU where there is one: its SSIM and its time."""
    rows = []
    for processes in (1, 2):
        out, size = work / str(processes), ["--limit-people", 2] if settings.quick else []
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "train.py"]
        command += ["--data", settings.data, *size, "--model", "vqvae", "--optimizer", "adam", "--prior", "none"]
        command += ["--epochs", 2, "--batch-size", 32, "--device", settings.device, "--precision", "fp32"]
        began = time.monotonic()
        run(*command, "--out", out)
        seconds = time.monotonic() - began
        scores = [float(row["validation_ssim"]) for row in metrics_of(finished(out))]
        rows.append({"processes": processes, "seconds": seconds, "validation_ssim": scores})
    return {"two_processes": rows}


def train(settings: GPUSettings, work: Path) -> Numbers | None:
    """The default training, as long as it takes: `MINUTES` a call. None where it isn't finished."""
    runs = settings.out / "runs"
    tiny = ["--limit-people", 4, "--depth", 3, "--width", 16, "--epochs", 1]
    tiny += ["--painter-slices", 64, "--painter-width", 8, "--prior-epochs", 1]
    new = ["--data", settings.data, "--device", settings.device, "--out", runs, *(tiny if settings.quick else [])]
    begun = next(iter(sorted(runs.glob("[!.]*"))), None)
    if (done := finished(runs)) is None:
        how = ["--resume", begun] if begun else new
        if run("train.py", *how, "--time-limit", MINUTES, statuses=(0, 143)):
            return None
        done = finished(runs)
    return {"rows": metrics_of(done)}


def metrics_of(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv, without what a stage doesn't have."""
    with open(folder / "metrics.csv", newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


STAGES = ("decoding", "batches", "autoencoder", "validation", "gan", "pixelcnn")
LARGER = ("--images", 4096, "--steps", 50, "--samples", 64, "--codes", 64, "--workers", 8)
PARTS: dict[str, Callable[[GPUSettings, Path], Numbers | None]] = {
    "tests": tests,
    "speed": by_speed(*LARGER, "--stages", *STAGES),
    "precision": by_speed("--both-precisions", "--images", 4096, "--epochs", 5, "--rounds", 3),
    "whole": by_speed(
        *("--stages", "whole", "--images", 9664, "--epochs", 6, "--prior-epochs", 12, "--workers", 8, "--rounds", 1)
    ),
    "two_processes": two_processes,
    "train": train,
}

# ----------------------------------------------------------------------------------------------------
# The page


def tests_table(numbers: Numbers) -> str:
    cells = [str(numbers["passed"]), *(str(len(numbers[key])) for key in ("failed", "skipped"))]
    return markdown(["passed", "failed", "skipped"], [cells])


def two_processes_table(numbers: Numbers) -> str:
    rows = numbers["two_processes"]
    cells = [[str(row["processes"]), f"{row['validation_ssim'][-1]:.4f}", f"{row['seconds']:.0f}"] for row in rows]
    return markdown(["processes", "validation SSIM", "s"], cells)


def train_table(numbers: Numbers) -> str:
    """Each stage's epochs and the last of its numbers."""
    last = {row["stage"]: row for row in numbers["rows"]}
    cells = [
        [
            stage,
            row["epoch"],
            ", ".join(f"{key} {float(value):.4g}" for key, value in row.items() if key not in ("stage", "epoch")),
        ]
        for stage, row in last.items()
    ]
    return markdown(["stage", "epochs", "in the last one"], cells)


TABLES: dict[str, Callable[[Numbers], str]] = {
    "tests": tests_table,
    "speed": lambda n: f"{speed.speed_table(n['stages'])}\n\n{speed.limit_table(n['stages'])}",
    "precision": lambda n: speed.precision_table(n["both_precisions"]),
    "whole": lambda n: speed.speed_table(n["stages"]),
    "two_processes": two_processes_table,
    "train": train_table,
}


def filled(page: str, folder: Path) -> str:
    """A page with each `<!-- gpu: PART -->` ... `<!-- end -->` holding what the part's JSON file says."""

    def block(match: re.Match) -> str:
        path = folder / f"{match[1]}.json"
        numbers = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if numbers and not numbers["quick"]:
            text = f"{numbers['device']}, PyTorch {numbers['torch']}:\n\n{TABLES[match[1]](numbers)}"
        else:
            text = f"Not measured yet: no GPU was at hand. `benchmarks/gpu.sh {match[1]} --data DIR` does it."
        return f"<!-- gpu: {match[1]} -->\n{text}\n<!-- end -->"

    return re.sub(r"<!-- gpu: (\w+) -->\n.*?<!-- end -->", block, page, flags=re.DOTALL)


@exit_on_input_error
def main() -> int:
    settings = cli.parse(GPUSettings, __doc__)
    if settings.part == "page":
        with atomic(PAGE) as file:
            file.write(filled(PAGE.read_text(encoding="utf-8"), settings.out).encode())
        return 0
    on = compute.choose(settings.device, "auto")
    settings.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        numbers = PARTS[settings.part](settings, Path(work))
    if numbers is None:
        print(f"{settings.part} isn't finished: start it again, and it goes on")
        return 143
    about = {"device": on.describe(), "cores": os.cpu_count(), "torch": torch.__version__, "quick": settings.quick}
    with atomic(settings.out / f"{settings.part}.json") as file:
        file.write(json.dumps(about | numbers, indent=1).encode() + b"\n")
    return 1 if numbers.get("failed") else 0


if __name__ == "__main__":
    sys.exit(main())
