"""Is anything lost when training is killed? Stops train.py at random moments, resumes it, and compares the results.

    python benchmarks/kills.py [--kills 20] [--seed 0]

A small run on the demo set (autoencoder, painter, PixelCNN; one thread, fp32) goes through once without a stop. Further
runs get SIGKILL or SIGTERM, in turn, at moments spread over that time. SIGTERM has to end a run with status 143 within
ten seconds. Each run is then resumed, or started again if it had no folder yet; metrics.csv and every tensor in every
checkpoint must be those of the first run, to the bit. Prints the counts; exits with status 1 if anything failed.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
ANSWER = 10.0  # seconds that a run may take to end after SIGTERM
OPTIONS = [
    *("--data=demo", "--limit-people=2", "--device=cpu", "--precision=fp32", "--save-minutes=0.1"),
    *("--depth=2", "--width=8", "--codebook-size=16", "--epochs=2"),
    *("--painter-slices=64", "--painter-width=8", "--painter-batch-size=8", "--prior=pixelcnn", "--prior-epochs=2"),
]


def start(folder: Path, *arguments: object) -> subprocess.Popen:
    """train.py with its output in folder/output.txt and its runs in folder/runs."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, ROOT / "train.py", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(folder / "output.txt", "a") as output:
        return subprocess.Popen(list(map(str, command)), cwd=folder, env=environment, stdout=output, stderr=output)


def run_folder(folder: Path) -> Path | None:
    """The run in `folder`, None where there is none yet."""
    return next((folder / "runs").glob("[!.]*/"), None)


def stage_of(folder: Path) -> str:
    """What the run in `folder` is doing, by the last row that it wrote."""
    table = next((folder / "runs").glob("*/metrics.csv"), None)
    rows = table.read_text().splitlines()[1:] if table else []
    return f"after epoch {rows[-1].split(',')[1]} of {rows[-1].split(',')[0]}" if rows else "before the end of an epoch"


def stop_and_resume(folder: Path, reference: Path, wait: float, kind: signal.Signals) -> tuple[str, float, str | None]:
    """Where the signal came, the seconds until the run had ended, and what went wrong, if anything."""
    process = start(folder, *OPTIONS)
    time.sleep(wait)
    process.send_signal(kind)
    sent = time.monotonic()
    status = process.wait()
    seconds, stage = time.monotonic() - sent, stage_of(folder)
    if status == 0:
        return "finished before it was stopped", seconds, None
    if kind == signal.SIGTERM and (seconds > ANSWER or status not in (143, -signal.SIGTERM)):
        return stage, seconds, f"SIGTERM was answered with status {status} after {seconds:.1f} s"
    run = run_folder(folder)
    status = start(folder, *(["--resume", run] if run else OPTIONS)).wait()
    if status:
        return stage, seconds, f"resuming ended with status {status}"
    return stage, seconds, difference(reference, run_folder(folder))


def difference(a: Path, b: Path) -> str | None:
    """What of two finished runs isn't the same: metrics.csv or a checkpoint."""
    if (a / "metrics.csv").read_text() != (b / "metrics.csv").read_text():
        return "metrics.csv differs"
    for name in [path.name for path in a.glob("*.pth") if path.name != "previous.pth"]:
        first, second = (torch.load(run / name, weights_only=True) for run in (a, b))
        if not same(first, second):
            return f"{name} differs"
    return None


def same(a: object, b: object) -> bool:
    """Whether nested dicts, lists and tensors are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="(default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    settings = parser.parse_args()
    rng, counts, slowest, failures = random.Random(settings.seed), Counter(), 0.0, []
    with tempfile.TemporaryDirectory() as place:
        whole, began = Path(place) / "whole", time.monotonic()
        if start(whole, *OPTIONS).wait():
            sys.exit((whole / "output.txt").read_text())
        duration = time.monotonic() - began
        for number in range(settings.kills):
            kind = (signal.SIGKILL, signal.SIGTERM)[number % 2]
            folder = Path(place) / str(number)
            wait = (number + rng.random()) / settings.kills * duration
            stage, seconds, problem = stop_and_resume(folder, run_folder(whole), wait, kind)
            print(f"{kind.name} {stage}: {problem or 'equal to the uninterrupted run'}", flush=True)
            counts[kind.name if stage.startswith(("after", "before")) else stage] += 1
            slowest = max(slowest, seconds if kind == signal.SIGTERM else 0)
            if problem:
                failures.append(problem)
                print((folder / "output.txt").read_text()[-2000:])
            shutil.rmtree(folder)
    print(f"{dict(counts)}, {len(failures)} failed; the slowest answer to SIGTERM took {slowest:.1f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
