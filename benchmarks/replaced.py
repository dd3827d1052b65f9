"""Are old or new results lost when predict.py is killed? Neither may be, whatever it is at.

    python benchmarks/replaced.py [--kills 32] [--seed 0] [--json FILE]

predict.py, which is to replace a folder of older results by newer ones, gets SIGKILL: at a random moment, or just where
one folder takes the other's place, on systems that exchange two folders in one step and on those that don't. Then it
is started again with another --out beside that one. The folder must hold the older results or the newer ones, all of
them, and nothing unfinished may be left. Between the two renames of a system without an exchange nothing stands in
its place; the next start puts the older results back. Exits with status 1 if there was any failure.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import predict
from benchmarks.faults import Kills, Process, contents, without_figures
from runtime import files

ANY, BETWEEN = "at a random moment", "between two renames"
MOMENTS = (ANY, "before the exchange", ANY, "after the exchange", ANY, BETWEEN, ANY, "after two renames")


def killed_at(moment: str) -> Callable[[], None]:
    """What makes the process kill itself at one of the `MOMENTS` that aren't random."""

    def prepare() -> None:
        without_figures()
        exchange, rename = files._exchange, Path.rename

        def die() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def exchanged(one: Path, other: Path) -> bool:
            if moment == "before the exchange":
                die()
            if moment == "after the exchange":
                exchange(one, other)
                die()
            return False  # as on a system that has none

        def renamed(path: Path, target: Path) -> None:
            rename(path, target)
            if (moment == BETWEEN) == (path.name == "out"):
                die()

        files._exchange, Path.rename = exchanged, renamed

    return prepare


class Replacements:
    """A trained model, its results for two seeds, and what kills have done to them."""

    def __init__(self, place: Path, rng: random.Random):
        self.place, self.rng = place, rng
        self.kills = Kills(place, rng)
        self.model = self.kills.reference("dcgan")[0] / "vqvae.pth"
        self.older, _ = self.whole("older", seed=0)
        self.newer, self.seconds = self.whole("newer", seed=1)
        self.done: Counter = Counter()
        self.failures: list[str] = []

    def start(self, folder: Path, seed: int, out: str = "out", before: Callable = without_figures) -> Process:
        options = ["--data", self.kills.data, "--samples=2", f"--seed={seed}", "--device=cpu", f"--out={out}"]
        return Process(predict.main, [self.model, *options], folder, self.kills.cache, before)

    def whole(self, name: str, seed: int) -> tuple[dict[str, bytes], float]:
        """What a start that nobody kills leaves, and its seconds."""
        folder, began = self.place / name, time.monotonic()
        folder.mkdir()
        process = self.start(folder, seed)
        if process.wait() != 0:
            raise SystemExit("\n".join(["the start that nobody kills failed:", *process.said()]))
        return held(folder / "out"), time.monotonic() - began

    def one(self, moment: str, number: int) -> None:
        folder = self.place / f"kill-{number}"
        shutil.copytree(self.place / "older", folder)
        if moment == ANY:
            process = self.start(folder, seed=1)
            time.sleep(self.rng.random() * self.seconds)
            status = process.kill()
        else:
            status = self.start(folder, seed=1, before=killed_at(moment)).wait()
        if status != -signal.SIGKILL:
            print(f"  {moment}: it had ended before it could be killed")
            return shutil.rmtree(folder)
        self.done[moment] += 1
        if problem := self._problem(moment, folder):
            self.failures.append(f"kill {number} ({moment}): {problem}")
            print(self.failures[-1], flush=True)
        else:
            shutil.rmtree(folder)

    def _problem(self, moment: str, folder: Path) -> str | None:
        """What is wrong after a kill, and after the next start, beside it."""
        if (folder / "out").exists() == (moment == BETWEEN):
            return "out is gone" if moment != BETWEEN else "out is there"
        if moment != BETWEEN and held(folder / "out") not in (self.older, self.newer):
            return "out holds neither the older nor the newer results"
        process = self.start(folder, seed=1, out="beside")
        if (status := process.wait()) != 0:
            return f"started again with status {status}: {process.said()[-1:]}"
        if left := {path.name for path in folder.iterdir()} - {"out", "beside"}:
            return f"left behind: {left}"
        if held(folder / "out") not in (self.older, self.newer):
            return "out holds neither the older nor the newer results after another start"
        return None


def held(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path from there."""
    return {str(Path(path).relative_to(folder)): data for path, data in contents(folder).items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=32, help="(default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="of moments (default: 0)")
    parser.add_argument("--json", type=Path, help="also write the counts there")
    settings = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="replaced-"))
    made, number = Replacements(place, random.Random(settings.seed)), 0
    while made.done.total() < settings.kills and number < 3 * settings.kills:
        made.one(MOMENTS[made.done.total() % len(MOMENTS)], number)
        number += 1
        print(f"kill {made.done.total()} of {settings.kills}, {len(made.failures)} failures", flush=True)
    counts = {"kills": made.done.total(), "killed": dict(made.done), "failures": made.failures}
    print(json.dumps(counts, indent=2))
    if settings.json:
        settings.json.write_text(json.dumps(counts, indent=2) + "\n")
    if not made.failures:
        shutil.rmtree(place)
    return 1 if made.failures else 0


if __name__ == "__main__":
    sys.exit(main())
