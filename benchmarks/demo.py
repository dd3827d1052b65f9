"""What does it look like in five minutes? Training, scores and samples on a synthetic set, sized to this machine.

    make demo

Times a few training steps, chooses the number of people and epochs by that, so that everything takes about five minutes
on any two cores, and calls train.py and predict.py as anybody would. In the end one picture shows what so short a
training samples beside what the weights of this repository sample, which took hours to train.
"""

import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runtime.environment  # noqa: F401, before PyTorch

# isort: split
import torch

import dataset
from benchmarks.trained import ROOT, call
from inference.codec import to_uint8
from inference.model import TrainedModel
from modules import RQVAE
from report import plots
from runtime import cli, compute
from runtime.cli import Device, Precision, Settings, option
from runtime.compute import Compute
from runtime.errors import exit_on_input_error
from runtime.wording import counted, duration
from training.optim import muon

SHIPPED = ROOT / "resources/pretrained/vqvae.pth"
SHOWN_SAMPLES = 8  # of each model

TRAINING_SECONDS = 180.0  # all else takes about as long on a slow machine
TIMED_STEPS = 6
LEVELS = 32  # slices a person in the demo set
BATCH_SIZE, PRIOR_BATCH_SIZE, PAINTER_WIDTH = 8, 16, 16


class DemoSettings(Settings):
    """the demo"""

    out: Path = option(Path("runs/demo"), "folder in which the run's own folder is made", "DIR")
    device: Device = option("auto", "where to compute")
    precision: Precision = option("auto", "numeric format: fp32 is what older processors compute in")


class Size(NamedTuple):
    """How much is trained."""

    people: int
    epochs: int
    prior_epochs: int
    painter_slices: int

    @property
    def work(self) -> float:
        """Training time in steps of the autoencoder; measured on one core in bf16 and fp32."""
        once = 45  # k-means, and fitting the judge
        epoch = self.people * LEVELS / BATCH_SIZE + 6  # with its validation and its picture
        prior_epoch = 1.7 * self.people * LEVELS / PRIOR_BATCH_SIZE + 18  # with the samples that are judged
        painter = 0.06 * self.painter_slices  # and its student
        return once + self.epochs * epoch + self.prior_epochs * prior_epoch + painter


SIZES = [  # the best one first: the demo set has 32 people for training, and fewer than 8 show nothing
    *(Size(people, 4, 3, 64 * people) for people in range(32, 7, -1)),
    *(Size(8, *epochs, 256) for epochs in ((3, 2), (2, 2), (2, 1), (1, 1))),
]


def size_for(seconds: float) -> Size:
    """The largest size that there is time for, given the seconds of one step of the autoencoder."""
    return next((size for size in SIZES if size.work * seconds <= TRAINING_SECONDS), SIZES[-1])


def seconds_per_step(on: Compute) -> float:
    """Of the default autoencoder's training on pictures of the demo set's size, once warm."""
    model = RQVAE().to(on.device, memory_format=torch.channels_last)
    optimizer = muon(model, 1e-3)
    images = torch.rand(BATCH_SIZE, 1, 160, 208, device=on.device)
    for step in range(2 + TIMED_STEPS):
        if step == 2:
            start = time.monotonic()
        with on.autocast():
            reconstruction, _, latent_loss = model(images)
        optimizer.zero_grad()
        ((reconstruction.float() - images).abs().mean() + latent_loss).backward()
        optimizer.step()
        latent_loss.item()  # waits for a GPU
    return (time.monotonic() - start) / TIMED_STEPS


def draw_comparison(folder: Path, people: int, device: str) -> Path:
    """Samples of the run beside those of the shipped weights, in one picture; returns its path."""
    here, shipped = (
        to_uint8(TrainedModel.load(weights, device=device).sample(range(SHOWN_SAMPLES)))
        for weights in (folder / "vqvae.pth", SHIPPED)
    )
    title = (
        f"Left: trained here on {people} synthetic people, for a few minutes. Right: the weights of this repository,"
        " trained on slices of 155 real people, for hours"
    )
    path = folder / "samples_here_and_shipped.png"
    plots.samples_beside_real(here, shipped, path, title, kind="shipped sample")
    return path


@exit_on_input_error
def main() -> int:
    start = time.monotonic()
    settings = cli.parse(DemoSettings, __doc__)
    dataset.load("demo", ("train", "validate"))  # makes the set where it isn't there yet
    on = compute.choose(settings.device, settings.precision)
    seconds = seconds_per_step(on)
    size = size_for(seconds)
    print(
        f"a step takes {seconds:.2f} s here, {on.describe()}: {size.people} of {SIZES[0].people} people,"
        f" {counted(size.epochs, 'epoch')} of the autoencoder, {size.prior_epochs} of the prior,"
        f" {size.painter_slices:,} slices for the painter"
    )
    options = {
        "data": "demo",
        "limit-people": size.people,
        "epochs": size.epochs,
        "painter-slices": size.painter_slices,
        "painter-width": PAINTER_WIDTH,
        "painter-batch-size": BATCH_SIZE,
        "prior": "dcgan",
        "prior-epochs": size.prior_epochs,
        "prior-batch-size": PRIOR_BATCH_SIZE,
        "out": settings.out,
    }
    where = [f"--device={settings.device}", f"--precision={settings.precision}"]
    call("train.py", *(f"--{name}={value}" for name, value in options.items()), *where)
    folder = max(page.parent for page in settings.out.glob("*/report.html"))  # named by the time
    call("predict.py", folder / "vqvae.pth", "--samples=16", *where)
    picture = draw_comparison(folder, size.people, settings.device)
    print(f"\nthe demo took {duration(time.monotonic() - start)}. To look at:")
    print(f"  {picture}: samples of this training, beside samples of the weights of this repository")
    print(f"  {folder / 'predict/report.html'}: scores and figures of this training")
    return 0


if __name__ == "__main__":
    sys.exit(main())
