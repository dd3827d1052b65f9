"""What does the project lose when it is killed, fed rubbish, or out of disk? Nothing, or this says what.

    python benchmarks/faults.py [--kills 32] [--seed 0] [--json FILE]

On a small made-up set, with train.py and predict.py as they are, each run in a process of its own:
kills    SIGKILL at random moments of building the cache, training the VQ-VAE, training a prior, and writing
         checkpoints, each followed by a resume, all without figures. All files must be readable, and the metrics and
         weights in the end must be those of the run that was never killed, to the bit.
inputs   bad folders, pictures, NIfTI files, checkpoints and options, many made by changing bytes at random. Each must
         end with exit status 2 and one line, without a traceback, and with nothing written.
disk     a file system that is too small (where one can be mounted), and writes that fail. The run must end with
         status 2 and one line, and go on from what was saved once there is room.
Prints the counts, writes them as JSON, and exits with status 1 if there was any failure.
"""

import argparse
import ctypes
import errno
import inspect
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import predict
import train
from benchmarks.bad_inputs import Case, bad_inputs, write_set
from report import page, plots
from runtime import checkpoint
from runtime.errors import InputError

TIMEOUT = 600  # seconds, after which a run counts as hung
QUICK = [
    "--model=vqvae",
    "--device=cpu",
    "--precision=fp32",
    "--batch-size=16",
    "--codebook-size=16",
    "--prior-batch-size=16",
]
PLANS = {  # what is killed -> the options of its run
    "cache": ["--epochs=1", "--prior=none"],
    "vqvae": ["--epochs=4", "--prior=none"],
    "vqvae2": ["--epochs=2", "--prior=none", "--model=vqvae2"],
    "dcgan": ["--epochs=1", "--prior=dcgan", "--prior-epochs=2"],
    "pixelcnn": ["--epochs=1", "--prior=pixelcnn", "--prior-epochs=2"],
    "writing": ["--epochs=2", "--prior=none", "--save-minutes=0"],
}


# ----------------------------------------------------------------------------------------------------
# Processes


class Process:
    """A command line in a forked process: nothing of it is shared but the imports, which take seconds."""

    def __init__(self, main: Callable[[], int], arguments: list, folder: Path, cache: Path, before=lambda: None):
        self.output = folder.parent / f"{folder.name}.output"
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._be(main, arguments, folder, cache, before)

    def _be(self, main, arguments, folder, cache, before) -> None:
        status = 1
        try:
            with open(self.output, "w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os.chdir(folder)
            os.environ["XDG_CACHE_HOME"] = str(cache)
            torch.set_num_threads(1)  # the parent's threads are not in this process
            sys.argv = [main.__module__ + ".py", *map(str, arguments)]
            before()
            status = main()
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def wait(self, until: float = TIMEOUT) -> int | None:
        """Exit status (negative: the signal), or None when it had to be killed."""
        deadline = time.monotonic() + until
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        self.kill()
        return None

    def kill(self) -> int:
        os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def said(self) -> list[str]:
        return self.output.read_text(errors="replace").splitlines()


def without_figures() -> None:
    """In a process that is about something else: figures take most of a tiny run's time."""
    for name, function in inspect.getmembers(plots, inspect.isfunction):
        if function.__module__ == plots.__name__ and not name.startswith("_"):
            setattr(plots, name, lambda *_, **__: None)
    page.write_report = lambda *_, **__: None
    predict.Results.draw = lambda results, name, *_, **__: results.figures.update({name: results.folder / name})


def contents(*folders: Path) -> dict[str, bytes]:
    """Every file and folder below, but for locks, and for the log, which tells of the attempt."""
    found = sorted(path for folder in folders for path in folder.rglob("*"))
    found = [path for path in found if not path.name.endswith(".lock") and path.name != "log.txt"]
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in found}


# ----------------------------------------------------------------------------------------------------
# Kills


class Kills:
    """Kills runs at random moments, and resumes them."""

    def __init__(self, place: Path, rng: random.Random):
        self.place, self.rng = place, rng
        self.data, self.cache = write_set(place / "data"), place / "cache"
        self.whole: dict[str, tuple[Path, float]] = {}  # plan -> folder of the run that nobody killed, its seconds
        self.done: Counter = Counter()
        self.stages: Counter = Counter()  # what the killed runs were at
        self.failures: list[str] = []

    def start(self, plan: str, folder: Path, cache: Path) -> Process:
        folder.mkdir(parents=True)
        return Process(train.main, ["--data", self.data, *QUICK, *PLANS[plan]], folder, cache, without_figures)

    def reference(self, plan: str) -> tuple[Path, float]:
        if plan not in self.whole:
            folder, began = self.place / f"whole-{plan}", time.monotonic()
            process = self.start(plan, folder, self.cache)
            if process.wait() != 0:
                raise SystemExit("\n".join(["the run that nobody kills failed:", *process.said()]))
            [run] = (folder / "runs").iterdir()
            self.whole[plan] = run, time.monotonic() - began
        return self.whole[plan]

    def one(self, plan: str, number: int) -> None:
        whole, seconds = self.reference(plan)
        folder = self.place / f"kill-{number}"
        cache = folder.with_suffix(".cache") if plan == "cache" else self.cache
        process = self.start(plan, folder, cache)
        self.until(plan, folder, cache, seconds)
        if process.kill() != -signal.SIGKILL:
            print(f"  {plan}: it had ended before it could be killed")
            return shutil.rmtree(folder)
        runs = list((folder / "runs").glob("[!.]*"))
        self.stages[at_work(runs[0]) if runs else "before the run folder"] += 1
        problem = unreadable(runs[0]) if runs else None
        if not problem:
            again = ["--resume", runs[0]] if runs else ["--data", self.data, *QUICK, *PLANS[plan]]
            process = Process(train.main, again, folder, cache, without_figures)
            status = process.wait()
            problem = f"resumed with status {status}: {process.said()[-1:]}" if status != 0 else None
        if not problem:
            [run] = (folder / "runs").glob("[!.]*")
            problem = unreadable(run) or difference(whole, run)
        self.done[plan] += 1
        if problem:
            self.failures.append(f"kill {number} ({plan}): {problem}")
        else:
            shutil.rmtree(folder)
        shutil.rmtree(folder.with_suffix(".cache"), ignore_errors=True)

    def until(self, plan: str, folder: Path, cache: Path, seconds: float) -> None:
        """Wait for the moment to kill: a random one of what the plan is about."""

        def seen(where: Path, pattern: str) -> bool:
            return any(where.glob(pattern))

        deadline = time.monotonic() + 2 * seconds
        wait_for = {
            "cache": lambda: seen(cache, "brain-vqvae/.*.unfinished"),
            "writing": lambda: seen(folder, "runs/*/.next.pth.*"),
            "dcgan": lambda: seen(folder, "runs/*/vqvae.pth"),
            "pixelcnn": lambda: seen(folder, "runs/*/vqvae.pth"),
        }.get(plan, lambda: seen(folder, "runs/*/config.json"))
        skip = self.rng.randrange(12) if plan == "writing" else 0  # checkpoints, each of which is written slowly
        while time.monotonic() < deadline:
            if wait_for():
                if skip == 0:
                    break
                skip -= 1
                while wait_for() and time.monotonic() < deadline:
                    pass
            time.sleep(0.0005)
        latest = {"cache": 0.1, "writing": 0.01 / seconds, "dcgan": 0.6, "pixelcnn": 0.6}.get(plan, 0.8)
        time.sleep(self.rng.random() * latest * seconds)


def at_work(run: Path) -> str:
    """What a killed run was doing, from what it left."""
    if any(run.glob(".*.partial")):
        return "writing a file"
    last = next((run / name for name in ("next.pth", "last.pth") if (run / name).exists()), None)
    if last is None:
        return "first epoch"
    state, config = checkpoint.load(last, "run"), json.loads((run / "config.json").read_text())
    if config["prior"] != "none" and state["stage"] == "autoencoder" and state["epoch"] == config["epochs"]:
        return f"first epoch of the prior, {config['prior']}"
    return f"{state['stage']}, after epoch {state['epoch']}"


def unreadable(run: Path) -> str | None:
    """What of a run folder can't be read."""
    kinds = {"vqvae.pth": "autoencoder", "dcgan.pth": "prior", "pixelcnn.pth": "prior"}
    try:
        for path in run.glob("*.pth"):
            checkpoint.load(path, kinds.get(path.name, "run"))
        json.loads((run / "config.json").read_text())
    except (InputError, OSError, ValueError) as error:
        return str(error)
    return None


def difference(a: Path, b: Path) -> str | None:
    """How two finished runs differ: in metrics.csv, or in any checkpoint."""
    if (a / "metrics.csv").read_text() != (b / "metrics.csv").read_text():
        return "metrics.csv differs"
    for path in a.glob("*.pth"):
        if path.name != "previous.pth" and not same(*(torch.load(f / path.name, weights_only=True) for f in (a, b))):
            return f"{path.name} differs"
    return None


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# ----------------------------------------------------------------------------------------------------
# Bad inputs


def try_input(case: Case, place: Path, cache: Path) -> str:
    """Run one bad input; "refused", "accepted" (of changed bytes, some change nothing), or what went wrong."""
    folder = place / "input"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    arguments = case.make(folder)
    before = contents(folder, cache)
    process = Process({"train": train.main, "predict": predict.main}[case.program], arguments, folder, cache)
    status, said = process.wait(), process.said()
    if status is None:
        return "hung"
    if case.may_be_fine and status in (0, 143):
        return "accepted"
    if status != 2:
        return f"status {status}: {said[-1:]}"
    errors = [line for line in said if line.startswith("error: ")]
    if len(errors) != 1 or said[-1] != errors[0] or any("Traceback" in line for line in said):
        return f"not one line: {said}"
    if changed := [path for path, data in contents(folder, cache).items() if before.get(path) != data]:
        return f"wrote {changed}"
    return "refused"


# ----------------------------------------------------------------------------------------------------
# A full disk


def fill_disk(kills: Kills, after: int) -> str | None:
    """From the sync number `after` on, no write succeeds; returns what went wrong."""

    def before() -> None:
        sync, count = os.fsync, [0]

        def fsync(descriptor: int) -> None:
            count[0] += 1
            if count[0] > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(descriptor)

        os.fsync = fsync

    folder = kills.place / f"full-{after}"
    folder.mkdir()
    arguments = ["--data", kills.data, *QUICK, *PLANS["vqvae"]]
    process = Process(train.main, arguments, folder, kills.cache, before)
    return go_on(kills, process.wait(), process.said(), folder)


def small_disk(kills: Kills, kib: int) -> str | None:
    """The run folder on a file system of `kib` KiB that this one process sees; copied out of it in the end."""
    folder = kills.place / f"small-{kib}"
    (folder / "small").mkdir(parents=True)

    def main() -> int:
        try:
            return train.main()
        finally:
            shutil.copytree("small/runs", "runs")

    arguments = [*QUICK, *PLANS["vqvae"], "--out=small/runs", "--data", kills.data]
    process = Process(main, arguments, folder, kills.cache, lambda: mount_small(folder / "small", kib))
    return go_on(kills, process.wait(), process.said(), folder)


def mount_small(folder: Path, kib: int) -> None:
    """Mount a tmpfs that this process alone sees, and that is gone with it. Raises OSError where that isn't allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private = 0x20000, 0x4000 | 0x40000  # CLONE_NEWNS; MS_REC | MS_PRIVATE
    calls = (
        lambda: libc.unshare(new_namespace),
        lambda: libc.mount(b"none", b"/", None, ctypes.c_ulong(private), None),
        lambda: libc.mount(b"tmpfs", bytes(folder), b"tmpfs", ctypes.c_ulong(0), f"size={kib}k".encode()),
    )
    for call in calls:
        if call() != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def go_on(kills: Kills, status: int | None, said: list[str], folder: Path) -> str | None:
    """Whether a run ended as it should for want of room, and finishes where there is some."""
    whole, _ = kills.reference("vqvae")
    if status != 2 or not said[-1].startswith("error: ") or any("Traceback" in line for line in said):
        return f"status {status}: {said[-3:]}"
    runs = list((folder / "runs").glob("[!.]*"))
    if not runs:
        return None  # there was no room for config.json
    if problem := unreadable(runs[0]):
        return problem
    process = Process(train.main, ["--resume", runs[0]], folder, kills.cache)
    if (status := process.wait()) != 0:
        return f"resumed with status {status}: {process.said()[-1:]}"
    return difference(whole, runs[0])


def can_mount(place: Path) -> bool:
    folder = place / "mountable"
    folder.mkdir()
    return Process(lambda: 0, [], folder, place, lambda: mount_small(folder, 64)).wait() == 0


# ----------------------------------------------------------------------------------------------------
# The command line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=32, help="(default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and bytes (default: 0)")
    parser.add_argument("--json", type=Path, help="also write the counts there")
    settings = parser.parse_args()
    rng = random.Random(settings.seed)
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    kills = Kills(place, rng)

    plans = list(PLANS)
    number = 0
    while sum(kills.done.values()) < settings.kills and number < 3 * settings.kills:
        plan = min(plans, key=lambda name: kills.done[name])
        kills.one(plan, number)
        number += 1
        print(
            f"kill {sum(kills.done.values())} of {settings.kills}: {plan}, {len(kills.failures)} failures", flush=True
        )

    inputs, failures = Counter(), list(kills.failures)
    for case in bad_inputs(kills.data, kills.reference("dcgan")[0], kills.reference("pixelcnn")[0], rng):
        outcome = try_input(case, place, kills.cache)
        inputs[f"{case.kind}, {outcome if outcome in ('refused', 'accepted') else 'failed'}"] += 1
        if outcome not in ("refused", "accepted"):
            failures.append(f"{case.kind}: {case.name}: {outcome}")
            print(failures[-1], flush=True)

    disks = {f"writes fail after {n}": fill_disk(kills, n) for n in (0, 1, 2, 3, 5, 8)}
    mounted = {}
    if can_mount(place):
        mounted = {f"file system of {kib} KiB": small_disk(kills, kib) for kib in (64, 1200, 3000, 5000, 7000)}
    bad_disks = [f"{name}: {problem}" for name, problem in (disks | mounted).items() if problem]
    failures += bad_disks

    counts = {
        "kills": sum(kills.done.values()),
        "kills_by_plan": dict(kills.done),
        "killed_at": dict(kills.stages),
        "kills_failed": len(kills.failures),
        "bad_inputs_refused": sum(n for name, n in inputs.items() if name.endswith("refused")),
        "inputs": dict(sorted(inputs.items())),
        "full_disks": len(disks | mounted),
        "full_disks_mounted": len(mounted),
        "full_disks_failed": len(bad_disks),
        "failures": failures,
    }
    print(json.dumps(counts, indent=2))
    if settings.json:
        settings.json.write_text(json.dumps(counts, indent=2) + "\n")
    if not failures:
        shutil.rmtree(place)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
