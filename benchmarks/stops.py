"""How soon does a training answer SIGTERM? At random moments of a whole run, the judge's stage included.

    python benchmarks/stops.py --data DIR [--stops 20] [--people 4] [--seed 0] [--json FILE]

train.py with a small network and a GAN, an epoch of each stage, on so many people of a data set, one thread each run.
Every run gets SIGTERM at a moment of its own, one in each twentieth of the time that a whole run takes. It must end
with status 143, having said how to go on if there is a run folder, within 10 s. Exits with status 1 otherwise.
"""

import argparse
import faulthandler
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from benchmarks.faults import Process
from reading.cache import cache_root

SECONDS = 10.0  # that an answer may take
SMALL = [
    "--depth=3",
    "--width=16",
    "--epochs=1",
    "--painter-slices=64",
    "--painter-width=8",
    "--prior-epochs=1",
    "--device=cpu",
]
PLACES = {  # sign of it in a line of the stack, the innermost line first -> what the run was at
    " in start_codebooks": "k-means",
    "/training/validation.py": "validation",
    "/scoring/": "the judge",
    "/report/": "figures",
    " in fit": "the prior's start",
    "/runtime/checkpoint.py": "saving",
    "/training/painter.py": "painter",
    "/training/dcgan.py": "the prior",
    " in train_autoencoder": "the autoencoder",
    "/train.py": "the start",
}


class Stops:
    """Trainings that are asked to stop."""

    def __init__(self, place: Path, data: Path, people: int):
        self.place, self.cache = place, cache_root().parent
        self.options = ["--data", data.resolve(), f"--limit-people={people}", *SMALL]
        self.failures: list[str] = []
        self.answers: list[tuple[str, float]] = []  # what each was at, and the seconds until it had ended
        folder, began = place / "whole", time.monotonic()
        process = self.start(folder)
        if process.wait() != 0:
            raise SystemExit("\n".join(["the run that nobody stops failed:", *process.said()]))
        self.seconds = time.monotonic() - began
        print(f"a whole run takes {self.seconds:.0f} s", flush=True)

    def start(self, folder: Path) -> Process:
        folder.mkdir()

        def before() -> None:
            stack = os.open(folder / "stack.txt", os.O_WRONLY | os.O_CREAT)
            faulthandler.register(signal.SIGUSR1, stack)  # of all threads: any of them may be the one that gets it

        return Process(train.main, self.options, folder, self.cache, before)

    def one(self, number: int, share: float) -> None:
        """Stop a run after that share of its time."""
        folder = self.place / f"stop-{number}"
        process = self.start(folder)
        time.sleep(0.1 + share * self.seconds)  # so that it can tell where it is
        os.kill(process.pid, signal.SIGUSR1)
        began = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        status = process.wait(6 * SECONDS)
        seconds, said, where = time.monotonic() - began, process.said(), at_work(folder / "stack.txt")
        if status == 0:
            print(f"  {share:.2f}: it had ended before it could be stopped", flush=True)
            self.seconds *= 0.9  # the machine is less busy than it was
            return shutil.rmtree(folder)
        self.answers.append((where, seconds))
        print(f"stop {len(self.answers)}: {where}, answered after {seconds:.1f} s", flush=True)
        told = any("go on with: python train.py --resume" in line for line in said)
        if status != 143 or seconds > SECONDS or told != any((folder / "runs").glob("[!.]*")):
            self.failures.append(f"stop {number} ({where}): status {status} after {seconds:.1f} s: {said[-2:]}")
            print(self.failures[-1], flush=True)
        shutil.rmtree(folder)


def at_work(stack: Path) -> str:
    """What a stack tells of the run, by its innermost line that is known."""
    lines = re.findall("^ +File .+$", stack.read_text(), flags=re.MULTILINE)
    return next(
        (place for line in lines for sign, place in PLACES.items() if sign in line.replace('"', "")),
        "before or after all of them",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data set")
    parser.add_argument("--stops", type=int, default=20, help="(default: 20)")
    parser.add_argument("--people", type=int, default=4, help="of each split (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of moments (default: 0)")
    parser.add_argument("--json", type=Path, help="also write the counts there")
    settings = parser.parse_args()
    place, rng = Path(tempfile.mkdtemp(prefix="stops-")), random.Random(settings.seed)
    made, number = Stops(place, settings.data, settings.people), 0
    while len(made.answers) < settings.stops and number < 2 * settings.stops:
        made.one(number, (len(made.answers) + rng.random()) / settings.stops)
        number += 1
    counts = {
        "stops": len(made.answers),
        "people": settings.people,
        "at": {where: sum(at == where for at, _ in made.answers) for where in dict(made.answers)},
        "slowest_seconds": max(seconds for _, seconds in made.answers),
        "failures": made.failures,
    }
    print(json.dumps(counts, indent=2))
    if settings.json:
        settings.json.write_text(json.dumps(counts, indent=2) + "\n")
    shutil.rmtree(place)
    return 1 if made.failures else 0


if __name__ == "__main__":
    sys.exit(main())
