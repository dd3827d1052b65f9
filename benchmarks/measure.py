"""How is speed measured? Two ways in turn, their peak memory, and the limit that the machine sets."""

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from reading.listing import scan
from reading.names import person_of
from runtime.errors import InputError

ROOT = Path(__file__).parent.parent

# ------------------------------------------------------------------------------------------- rounds


@dataclass(frozen=True)
class Way:
    """One way of doing a stage."""

    run: Callable[[], object]  # a round
    images: float  # pictures a round
    moved: int = 0  # bytes that a round must move outside matrix products and convolutions


@dataclass
class Measured:
    """What the rounds of one way took."""

    images: float
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0  # beyond what was held when the stage began

    def rate(self) -> float:
        """Median of the images/s."""
        return self.images / statistics.median(self.seconds)

    def plain(self) -> dict:
        """For JSON."""
        return {
            "images_per_round": self.images,
            "seconds": self.seconds,
            "images_per_second": self.rate(),
            "images_per_second_min": self.images / max(self.seconds),
            "images_per_second_max": self.images / min(self.seconds),
            "peak_bytes": self.peak_bytes,
        }


def synchronise(device: torch.device) -> None:
    """Wait for what a GPU has been given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turn(ways: dict[str, Way], rounds: int, device: torch.device, held: int) -> dict[str, Measured]:
    """Rounds of all ways in turn, so that what else the machine does meets them alike; warm them up before.

    `held`: bytes in use when the stage began. Memory is taken in a round of its own, since giving what is free
    back to the system, so that one way's memory isn't taken for the other's, costs time in the round after it.
    """
    measured = {name: Measured(way.images) for name, way in ways.items()}
    for name, way in ways.items():
        in_use(device)
        reset_peak(device)
        way.run()
        measured[name].peak_bytes = max(peak(device) - held, 0)
    for _ in range(rounds):
        for name, way in ways.items():
            synchronise(device)
            start = time.perf_counter()
            way.run()
            synchronise(device)
            measured[name].seconds.append(time.perf_counter() - start)
    return measured


# ------------------------------------------------------------------------------------------- memory


def _status(key: str) -> int:
    """A line of Linux's /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise InputError(f"/proc/self/status has no {key}: the benchmark runs on Linux only")


def in_use(device: torch.device) -> int:
    """Bytes of GPU memory allocated; on a CPU, of this process's resident memory, mapped files included."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    ctypes.CDLL(None).malloc_trim(0)  # else what earlier stages freed would count as held
    return _status("VmRSS")


def reset_peak(device: torch.device) -> None:
    """Begin a new peak at what is in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Most bytes in use since `reset_peak`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


# ------------------------------------------------------------------------------------------- the limit


class Ledger(TorchDispatchMode):
    """Counts a run's matrix products and convolutions: operations and bytes by type, backward passes included.

    Operations are those of `torch.utils.flop_counter`. Bytes are the arguments and results of these operators
    alone, each read or written once: as if all between them were fused into them, which no code can beat while
    the activations don't stay in a cache.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[torch.dtype] = Counter()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        count = flop_registry.get(func._overloadpacket)
        if count is None:
            with self:  # without gradients a `conv2d` arrives whole, and the convolution is inside
                out = func.decompose(*args, **kwargs)
            return out if out is not NotImplemented else func(*args, **kwargs)
        out = func(*args, **kwargs)
        operands = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        self.operations[operands[0].dtype] += count(*args, **kwargs, out_val=out)
        self.bytes += sum(operand.nbytes for operand in operands)
        return out


@dataclass(frozen=True)
class Machine:
    """What the device reaches on square matrices and on a copy."""

    operations: dict[torch.dtype, float]  # per second
    copy: float  # bytes per second, read and written

    def limit(self, ledger: Ledger, moved: int) -> float:
        """Seconds below which no run with these operations and bytes can come here (Williams et al. 2009)."""
        # A type that the machine has no rate for is computed no faster than float32.
        rate = {dtype: self.operations.get(dtype, self.operations[torch.float32]) for dtype in ledger.operations}
        computing = sum(number / rate[dtype] for dtype, number in ledger.operations.items())
        return max(computing, (ledger.bytes + moved) / self.copy)


def machine_rates(device: torch.device, bf16: bool, side: int, copied: int) -> Machine:
    """Best of ten products of matrices with `side` rows, and of ten copies of `copied` bytes."""

    def best(run: Callable[[], object]) -> float:
        run()
        seconds = []
        for _ in range(10):
            synchronise(device)
            start = time.perf_counter()
            run()
            synchronise(device)
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    operations = {}
    for dtype in (torch.float32, torch.bfloat16) if bf16 else (torch.float32,):
        a, b, out = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
        operations[dtype] = 2 * side**3 / best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return Machine(operations, 2 * copied / best(lambda: target.copy_(source)))


# ------------------------------------------------------------------------------------------- child processes


@dataclass(frozen=True)
class Child:
    """What a finished script took (benchmarks/watched.py)."""

    seconds: float  # from its start to its end
    peak_bytes: int  # most memory resident
    gpu_bytes: int  # most GPU memory allocated, 0 without a GPU
    torch_seconds: float  # of these, importing torch
    torch_peak_bytes: int  # resident after importing torch
    first_step_seconds: float  # from its start to the end of the first step of an optimiser
    first_step_at: float  # when that was, in seconds since the epoch


def run_script(arguments: list[str], folder: Path, cache_home: Path, until: str = "end") -> Child:
    """Run a script of this repository to its end, or `until` its "first-step".

    Raises InputError with what it said when it fails.
    """
    report = folder / "watched.json"
    environment = os.environ | {"XDG_CACHE_HOME": str(cache_home)}
    command = [sys.executable, "benchmarks/watched.py", str(report), str(time.time()), until, *arguments]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise InputError(f"{arguments[0]} ended with status {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return Child(seconds, **json.loads(report.read_text()))


# ------------------------------------------------------------------------------------------- data


def repeated_set(source: Path, folder: Path, counts: dict[str, int]) -> Path:
    """A data set of `counts` pictures a split in `folder`: links to those of `source`, over and over.

    Each repetition's people are new ones. Links are symbolic: hard ones can't leave a file system. Raises
    InputError when `source` holds no pictures.
    """
    listing = scan(source)
    if listing.is_nifti:
        raise InputError(f"{source} holds NIfTI files, which the plain way can't read: give a set of PNG files")
    person, last = 0, None
    for split, count in counts.items():
        files = listing.files.get(split)
        if not files:
            raise InputError(f"the {split} split is missing in {source}")
        target = folder / f"keras_png_slices_{split}"
        target.mkdir(parents=True)
        for i in range(count):
            file = files[i % len(files)]
            owner = person_of(file)
            if i % len(files) == 0 or owner != last:
                person, last = person + 1, owner
            rest = file.removeprefix(owner).lstrip("_")
            (target / f"case_{person:05d}_{rest}").symlink_to(listing.folders[split].resolve() / file)
    return folder
