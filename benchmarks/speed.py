"""How fast is a training step of each stage, and what does it cost?

    python benchmarks/speed.py --data DIR                       on CUDA if there is any
    python benchmarks/speed.py --data DIR --cuda-graphs         by replayed steps
    python benchmarks/speed.py --device cpu --quick             a check that it runs; its figures mean nothing

Runs train.py's own stages on the data for a while: autoencoder, painter, its student, each prior, and the course
baseline's VQ-VAE at each of --batch-sizes. Once a stage is warm (convolutions chosen, codebooks set), so many of its
steps are timed together, data and augmentation included; one more is profiled.

Of each: ms a step and slices/s, and on CUDA peak memory of the allocator, what the profiled step launched, and how
often it waited for the GPU. Prints a table and writes it as JSON to --out.
"""

import itertools
import json
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
from benchmarks.tables import markdown
from runtime import cli, compute
from runtime.cli import Device, Settings, option
from runtime.errors import exit_on_input_error
from training.run import Stage

WARM_UP = 110  # steps: the codebooks are set after 100 at most, or in the middle of a short epoch
LAUNCHES = {"cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch"}
WAITS = {"cudaStreamSynchronize", "cudaEventSynchronize"}
QUICK_AUTOENCODER = "--width=8", "--depth=2", "--codebook-size=16", "--batch-size=4"
QUICK = "--limit-people=4", "--painter-width=8", "--painter-batch-size=4", "--prior-batch-size=4"


class SpeedSettings(Settings):
    """what to time"""

    data: str = option("demo", "data set", "DIR")
    device: Device = option("auto", "where to train")
    steps: int = option(50, "that are timed, at most", ge=2)
    batch_sizes: list[int] = option([32, 128], "of the course baseline's VQ-VAE")
    cuda_graphs: bool = option(False, "replay steps")
    quick: bool = option(False, "tiny networks and few steps")
    out: Path = option(Path("speed.json"), "file for the figures", "FILE.json")


class Measured(SystemExit):
    """Ends a training whose last stage is measured."""


class Meter:
    """Times steps, and profiles one."""

    def __init__(self, cuda: bool, steps: int):
        self.cuda, self.steps, self.rows = cuda, steps, []

    def measure(self, name: str, batches: Iterator, batch_size: int, epoch: int) -> Iterator:
        """`batches` of an epoch of so many, until enough of them are measured. Adds a row of figures."""
        warm_up = min(WARM_UP, epoch // 2 + 2, epoch - 2)
        steps = min(self.steps, epoch - warm_up - 1)
        yield from itertools.islice(batches, warm_up)
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start = time.perf_counter()
        yield from itertools.islice(batches, steps)
        if self.cuda:
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - start) / steps
        row = {"stage": name, "batch_size": batch_size, "ms": 1000 * seconds, "slices_per_second": batch_size / seconds}
        if self.cuda:
            row["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
            with torch.profiler.profile() as profile:
                yield from itertools.islice(batches, 1)
            calls = {event.key: event.count for event in profile.key_averages()}
            row["launches"] = sum(calls.get(call, 0) for call in LAUNCHES)
            row["waits"] = sum(calls.get(call, 0) for call in WAITS)
        self.rows.append(row)
        print(f"{name}: {row['slices_per_second']:.1f} slices/s", flush=True)


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


def table(rows: list[dict]) -> str:
    """Markdown."""
    heads = {"batch_size": "slices a step", "ms": "ms", "slices_per_second": "slices/s"}
    heads |= {"peak_mib": "peak MiB", "launches": "launches", "waits": "waits"}
    cells = [[row["stage"], *(f"{row[key]:,.4g}" if key in row else "-" for key in heads)] for row in rows]
    return markdown(["stage", *heads.values()], cells)


@exit_on_input_error
def main() -> int:
    settings = cli.parse(SpeedSettings, __doc__)
    on = compute.choose(settings.device, graphs=settings.cuda_graphs)
    meter = Meter(on.device.type == "cuda", 2 if settings.quick else settings.steps)
    batch_sizes = [2] if settings.quick else settings.batch_sizes
    slices = dataset.load(settings.data, ("train",)).splits["train"]
    painted = 256 if settings.quick else 8 * len(slices)  # so that the student has some steps
    with tempfile.TemporaryDirectory() as folder:
        shared = ["--data", settings.data, "--device", on.device.type, "--out", folder]
        shared += [*(QUICK if settings.quick else ()), *(["--cuda-graphs"] if settings.cuda_graphs else ())]
        stages = {"autoencoder": "rqvae", "painter": "painter", "student": "its student", "dcgan": "DCGAN"}
        options = ["--epochs=1", "--prior-epochs=1", "--painter-slices", painted]
        measure_training(meter, stages, *shared, *options, *(QUICK_AUTOENCODER if settings.quick else ()))
        [run] = Path(folder).glob("*/")
        prior = [*shared, "--prior-epochs=1", "--autoencoder", run / "vqvae.pth"]
        measure_training(meter, {"dcgan": "DCGAN of the course baseline"}, *prior, "--gan=baseline")
        for name in ("transformer", "pixelcnn"):
            measure_training(meter, {name: name}, *prior, "--prior", name)
        for batch_size in batch_sizes:
            options = ["--model=vqvae", "--augment=off", "--batch-size", batch_size, "--prior=none", "--epochs=1"]
            measure_training(meter, {"autoencoder": "vqvae"}, *shared, *options)
    about = {"machine": on.describe(), "torch": torch.__version__, "data": settings.data}
    settings.out.write_text(json.dumps(about | {"rows": meter.rows}, indent=1) + "\n")
    print(f"{', '.join(about.values())}\n\n{table(meter.rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
