"""How fast is a training step of each stage, and what does it cost? Beside it the course baseline's VQ-VAE, plainly.

    python benchmarks/speed.py --data DIR                       on CUDA if there is any
    python benchmarks/speed.py --data DIR --cuda-graphs         by replayed steps
    python benchmarks/speed.py --device cpu --quick             a check that it runs; its figures mean nothing

Runs train.py's own stages on the data for a while: autoencoder, painter, its student, and each prior. Once a stage is
warm (convolutions chosen, codebooks set), so many of its steps are timed together, data and augmentation included; one
more is profiled. The course baseline's VQ-VAE is timed at each of --batch-sizes, by `train.py --model vqvae` and the
plain way (benchmarks/plain.py), whose pictures wait on the device and which has PyTorch's default settings.

Of each: ms a step, slices/s, peak memory (on CUDA of the allocator, else resident memory of the process), and on CUDA
what the profiled step launched, and how often it waited for the GPU. Prints a table and writes it as JSON to --out.
"""

import argparse
import itertools
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runtime.environment  # noqa: F401, before PyTorch

# isort: split
import torch

import dataset
import train
from benchmarks import plain
from benchmarks.tables import markdown
from runtime import compute
from runtime.errors import exit_on_input_error
from training.run import Stage

WARM_UP = 110  # steps: the codebooks are set after 100 at most, or in the middle of a short epoch
LAUNCHES = {"cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch"}
WAITS = {"cudaStreamSynchronize", "cudaEventSynchronize"}
QUICK_AUTOENCODER = "--width=8", "--depth=2", "--codebook-size=16", "--batch-size=4"
QUICK = "--limit-people=4", "--painter-width=8", "--painter-batch-size=4", "--prior-batch-size=4"


class Measured(SystemExit):
    """Ends a training whose last stage is measured."""


class Meter:
    """Times steps, and profiles one."""

    def __init__(self, device: torch.device, steps: int):
        self.device, self.steps, self.rows = device, steps, []

    def measure(self, name: str, batches: Iterator, batch_size: int, epoch: int) -> Iterator:
        """`batches` of an epoch of so many, until enough of them are measured. Adds a row of figures."""
        warm_up = min(WARM_UP, epoch // 2 + 2, epoch - 2)
        steps = min(self.steps, epoch - warm_up - 1)
        self._reset_peak()
        yield from itertools.islice(batches, warm_up)
        self._synchronise()
        start = time.perf_counter()
        yield from itertools.islice(batches, steps)
        self._synchronise()
        seconds = (time.perf_counter() - start) / steps
        row = {"stage": name, "batch_size": batch_size, "ms": 1000 * seconds, "slices_per_second": batch_size / seconds}
        row |= {"steps": steps, "peak_mib": self._peak() / 2**20}
        if self.device.type == "cuda":
            with torch.profiler.profile() as profile:
                yield from itertools.islice(batches, 1)
            calls = {event.key: event.count for event in profile.key_averages()}
            row["launches"] = sum(calls.get(call, 0) for call in LAUNCHES)
            row["waits"] = sum(calls.get(call, 0) for call in WAITS)
        self.rows.append(row)
        print(f"{name}: {row['slices_per_second']:.1f} slices/s", flush=True)

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif platform.system() == "Linux":
            Path("/proc/self/clear_refs").write_text("5")

    def _peak(self) -> int:
        """Bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        lines = Path("/proc/self/status").read_text().splitlines() if platform.system() == "Linux" else []
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def measure_training(meter: Meter, names: dict[str, str], *options: object) -> None:
    """Run train.py with these options until the last of the stages in `names` is measured; names for the table."""
    steps_of, done = Stage.steps, set()

    def steps(stage: Stage, *arguments: object) -> Iterator:
        batches = steps_of(stage, *arguments)
        if stage.name in done:  # of further epochs one step does
            return itertools.islice(batches, 1)
        done.add(stage.name)
        size, epoch = stage.batches.batch_size, stage.batches.steps
        return end_after_last(stage.name, meter.measure(names[stage.name], batches, size, epoch))

    def end_after_last(name: str, batches: Iterator) -> Iterator:
        yield from batches
        if name == list(names)[-1]:
            raise Measured

    with mock.patch.object(Stage, "steps", steps), mock.patch.object(sys, "argv", ["train.py", *map(str, options)]):
        try:
            if status := train.main():
                sys.exit(status)
        except Measured:
            pass


def measure_plain(meter: Meter, batch_size: int, paths: list[Path]) -> None:
    """Steps of the plain way on pictures that wait on the device."""
    model = plain.PlainVQVAE().to(meter.device).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    pictures = plain.Pictures(paths)
    images = torch.stack([pictures[i % len(paths)] for i in range(batch_size)]).to(meter.device)
    steps = 20 + meter.steps
    for batch in meter.measure("vqvae, the plain way", itertools.repeat(images), batch_size, 2 * steps):
        plain.step(model, optimizer, batch)


def table(rows: list[dict]) -> str:
    """Markdown."""
    numbers = {"batch_size": "d", "ms": ".3g", "slices_per_second": ",.0f", "peak_mib": ",.0f"}
    cells = []
    for row in rows:
        counts = [str(row.get(key, "-")) for key in ("launches", "waits")]
        cells.append([row["stage"], *(f"{row[key]:{how}}" for key, how in numbers.items()), *counts])
    return markdown(["stage", "slices a step", "ms", "slices/s", "peak MiB", "launches", "waits"], cells)


@exit_on_input_error
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo", help="data set (default: demo)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=50, help="that are timed, at most (default: 50)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 128], help="(default: 32 128)")
    parser.add_argument("--cuda-graphs", action="store_true", help="replay steps, without the plain way")
    parser.add_argument("--quick", action="store_true", help="tiny networks and few steps")
    parser.add_argument("--out", type=Path, default=Path("speed.json"), help="(default: speed.json)")
    args = parser.parse_args()
    meter = Meter(torch.device(args.device), 2 if args.quick else args.steps)
    batch_sizes, quick, autoencoder = ([2], QUICK, QUICK_AUTOENCODER) if args.quick else (args.batch_sizes, (), ())
    paths = dataset.load(args.data, ("train",)).splits["train"].paths
    for batch_size in () if args.cuda_graphs else batch_sizes:  # first: train.py changes PyTorch's settings
        measure_plain(meter, batch_size, paths)
    with tempfile.TemporaryDirectory() as folder:
        shared = ["--data", args.data, "--device", args.device, "--out", folder, *quick]
        shared += ["--cuda-graphs"] if args.cuda_graphs else []
        stages = {"autoencoder": "rqvae", "painter": "painter", "student": "its student", "dcgan": "DCGAN"}
        slices = 256 if args.quick else 8 * len(paths)  # so that the student has some steps
        epochs = ["--epochs=1", "--prior-epochs=1", "--painter-slices", slices]
        measure_training(meter, stages, *shared, *autoencoder, *epochs)
        [run] = Path(folder).glob("*/")
        prior = [*shared, "--prior-epochs=1", "--autoencoder", run / "vqvae.pth"]
        measure_training(meter, {"dcgan": "DCGAN of the course baseline"}, *prior, "--gan=baseline")
        for name in ("transformer", "pixelcnn"):
            measure_training(meter, {name: name}, *prior, "--prior", name)
        for batch_size in batch_sizes:
            options = ["--model=vqvae", "--augment=off", "--batch-size", batch_size, "--prior=none", "--epochs=1"]
            measure_training(meter, {"autoencoder": "vqvae"}, *shared, *options)
    about = {
        "machine": compute.choose(args.device, graphs=args.cuda_graphs).describe(),
        "torch": torch.__version__,
        "data": args.data,
    }
    args.out.write_text(json.dumps(about | {"rows": meter.rows}, indent=1) + "\n")
    print(f"{', '.join(about.values())}\n\n{table(meter.rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
