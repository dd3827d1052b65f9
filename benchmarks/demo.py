"""How much can be shown in five minutes here? The whole way on a synthetic set, sized by its first steps.

    make demo

A few training steps are timed; people and epochs follow from them, so that data, training, scores and samples take
about five minutes on any two cores. Then train.py and predict.py run as anybody would run them. What so short a
training samples is shown above what the weights of this repository sample, which took hours.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from PIL import Image

import dataset
import train
from dataset import Batches, DataSet
from inference.codec import to_uint8
from inference.model import TrainedModel
from report import plots
from runtime import cli, compute
from runtime.cli import Device, Precision, Settings, option
from runtime.compute import Compute
from runtime.errors import InputError, exit_on_input_error
from runtime.wording import counted, duration
from training.augment import augment
from training.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[1]
TIMED_STEPS = 6  # after two that aren't
TRAINING = 180.0  # seconds of training that are aimed at: on a slow machine, the rest takes as long
LEVELS = 32  # slices a person
BATCH, PRIOR_BATCH = 8, 16
# What else takes time in training, in steps of the autoencoder: measured on one core, in bf16 and in fp32.
ONCE = 45  # k-means, and fitting the judge
VALIDATION = 6  # a pass over the validation people, and the picture of the epoch
PRIOR_STEP = 1.7
SAMPLES = 18  # those that each epoch of the prior is judged by
PAINTER_SLICE = 0.06  # of the painter's training, its student's among it
PAINTER_WIDTH = 16
SHOWN = 8  # samples of each model
SHIPPED = ROOT / "resources/pretrained/vqvae.pth"


class DemoSettings(Settings):
    """the demo"""

    out: Path = option(Path("runs/demo"), "folder in which the run's own folder is made", "DIR")
    device: Device = option("auto", "where to compute")
    precision: Precision = option("auto", "fp32 is what older processors compute in")


class Size(NamedTuple):
    """How much is trained."""

    people: int
    epochs: int
    prior_epochs: int
    painter: int  # slices that it learns from

    @property
    def work(self) -> float:
        """In steps of the autoencoder."""
        epoch = self.people * LEVELS / BATCH + VALIDATION
        prior_epoch = self.people * LEVELS / PRIOR_BATCH * PRIOR_STEP + SAMPLES
        return ONCE + self.epochs * epoch + self.prior_epochs * prior_epoch + self.painter * PAINTER_SLICE


MOST, LEAST = 32, 8  # people: the demo set has 32 to train on, and fewer than 8 show nothing
SIZES = [  # from the best on; fewer epochs only with the fewest people
    *(Size(people, 4, 3, 64 * people) for people in range(MOST, LEAST - 1, -1)),
    *(Size(LEAST, *epochs, 256) for epochs in ((3, 2), (2, 2), (2, 1), (1, 1))),
]


def seconds_of_a_step(data: DataSet, settings: TrainSettings, on: Compute) -> float:
    """Of the autoencoder's training, once memory and kernels are ready."""
    slices = data.splits["train"]
    box = dataset.content_box(slices.images)
    model = train.make_autoencoder(settings).to(on.device, memory_format=torch.channels_last)
    optimizer = train.make_optimizer(model, settings)
    batches = Batches(slices, BATCH, on.device).shuffled(0, 1)
    for step, (images, _) in zip(range(TIMED_STEPS + 2), batches, strict=False):
        if step == 2:
            began = time.monotonic()
        draw = train.draws_of_step(len(images), 0, step, on)
        pictures = augment(images, box, draw)
        values = train.autoencoder_step(model, optimizer, pictures, None, train.LOSSES[settings.loss], on)
        values["train_reconstruction"].item()  # a GPU has then done the step
    return (time.monotonic() - began) / TIMED_STEPS


def size_for(step: float) -> Size:
    """The most that there is time for where a step takes so many seconds."""
    return next((size for size in SIZES if size.work * step <= TRAINING), SIZES[-1])


def run(command: Sequence[str]) -> None:
    """Show a command, and run it. Raises InputError when it fails, which has then said why."""
    print(f"\n$ {' '.join(['python', *command])}", flush=True)
    done = subprocess.run([sys.executable, *command], cwd=ROOT, check=False)
    if done.returncode:
        raise InputError(f"{command[0]} ended with exit status {done.returncode}; what it said stands above")


def show(folder: Path, size: Size, device: str) -> Path:
    """Samples of the run above those of the weights in resources/, in one picture; returns its path."""
    trained = f"Trained here on {size.people} synthetic people, for a few minutes"
    sources = {
        folder / "vqvae.pth": trained,
        SHIPPED: "The weights of this repository, trained on slices of 155 real people, for hours",
    }
    drawn = []
    for number, (weights, title) in enumerate(sources.items()):
        pictures = to_uint8(TrainedModel.load(weights, device=device).sample(range(SHOWN)))
        plots.sample_grid(pictures, path := folder / f"samples_{number}.png", title)
        with Image.open(path) as picture:
            drawn.append(picture.convert("RGB"))
        path.unlink()
    whole = Image.new("RGB", (max(one.width for one in drawn), sum(one.height for one in drawn)), "white")
    whole.paste(drawn[0], (0, 0))
    whole.paste(drawn[1], (0, drawn[0].height))
    whole.save(path := folder / "samples_here_and_shipped.png")
    return path


@exit_on_input_error
def main() -> int:
    began = time.monotonic()
    settings = cli.parse(DemoSettings, __doc__)
    how = [f"--device={settings.device}", f"--precision={settings.precision}"]
    data = dataset.load("demo", ("train", "validate"))
    on = compute.choose(settings.device, settings.precision)
    step = seconds_of_a_step(data, TrainSettings(data="demo"), on)
    size = size_for(step)
    print(
        f"a step takes {step:.2f} s here, {on.describe()}: {size.people} of {MOST} people,"
        f" {counted(size.epochs, 'epoch')} of the autoencoder, {size.prior_epochs} of the prior,"
        f" {size.painter:,} slices for the painter"
    )
    options = {"limit-people": size.people, "epochs": size.epochs}
    options |= {"painter-slices": size.painter, "painter-width": PAINTER_WIDTH, "painter-batch-size": BATCH}
    options |= {"prior": "dcgan", "prior-epochs": size.prior_epochs, "prior-batch-size": PRIOR_BATCH}
    chosen = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    before = set(settings.out.glob("*"))
    run(["train.py", "--data", "demo", *chosen, "--out", str(settings.out.absolute()), *how])
    [folder] = set(settings.out.glob("*")) - before
    run(["predict.py", str(folder.absolute() / "vqvae.pth"), "--samples", "16", *how])
    picture = show(folder, size, settings.device)
    print(f"\nthe demo took {duration(time.monotonic() - began)}. To look at:")
    print(f"  {picture}: what this training samples, above what the weights of this repository do")
    print(f"  {folder / 'predict/report.html'}: scores and figures of this training")
    return 0


if __name__ == "__main__":
    sys.exit(main())
