"""What does it look like in five minutes? Training, scores and samples on a synthetic set, sized to this machine.

    make demo

Times a few training steps, chooses the number of people and epochs by that, so that everything takes about five minutes
on any two cores, and calls train.py and predict.py as anybody would. In the end one picture shows what so short a
training samples above what the weights of this repository sample, which took hours to train.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runtime.environment  # noqa: F401, before PyTorch

# isort: split
import torch
from PIL import Image

import dataset
from inference.codec import to_uint8
from inference.model import TrainedModel
from modules import RQVAE
from report import plots
from runtime import cli, compute
from runtime.cli import Device, Precision, Settings, option
from runtime.compute import Compute
from runtime.errors import InputError, exit_on_input_error
from runtime.wording import counted, duration
from training.optim import muon

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "resources/pretrained/vqvae.pth"
SHOWN_SAMPLES = 8  # of each model

TRAINING_SECONDS = 180.0  # all else takes about as long on a slow machine
TIMED_STEPS = 6
LEVELS = 32  # slices a person in the demo set
BATCH_SIZE, PRIOR_BATCH_SIZE, PAINTER_WIDTH = 8, 16, 16
# Time of everything in training but the autoencoder's steps, in such steps; measured on one core in bf16 and fp32.
ONCE = 45  # k-means, and fitting the judge
VALIDATION = 6  # of an epoch, and its picture
PRIOR_STEP = 1.7
JUDGED_SAMPLES = 18  # of an epoch of the prior
PAINTER_SLICE = 0.06  # of the painter's training and its student's


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
        """Training time in steps of the autoencoder."""
        epoch = self.people * LEVELS / BATCH_SIZE + VALIDATION
        prior_epoch = self.people * LEVELS / PRIOR_BATCH_SIZE * PRIOR_STEP + JUDGED_SAMPLES
        painter = self.painter_slices * PAINTER_SLICE
        return ONCE + self.epochs * epoch + self.prior_epochs * prior_epoch + painter


MOST_PEOPLE, FEWEST_PEOPLE = 32, 8  # the demo set has 32 for training; fewer than 8 show nothing
SIZES = [  # the best one first; fewer epochs only with the fewest people
    *(Size(people, 4, 3, 64 * people) for people in range(MOST_PEOPLE, FEWEST_PEOPLE - 1, -1)),
    *(Size(FEWEST_PEOPLE, *epochs, 256) for epochs in ((3, 2), (2, 2), (2, 1), (1, 1))),
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


def run(*command: str) -> None:
    """Show a command and run it. Raises InputError when it fails; it has then printed why."""
    print(f"\n$ {' '.join(['python', *command])}", flush=True)
    if status := subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
        raise InputError(f"{command[0]} ended with exit status {status}: see above")


def draw_comparison(folder: Path, people: int, device: str) -> Path:
    """Samples of the run above those of the shipped weights, in one picture; returns its path."""
    titles = {
        folder / "vqvae.pth": f"Trained here on {people} synthetic people, for a few minutes",
        SHIPPED: "The weights of this repository, trained on slices of 155 real people, for hours",
    }
    grids, path = [], folder / "samples_here_and_shipped.png"
    for weights, title in titles.items():
        pictures = to_uint8(TrainedModel.load(weights, device=device).sample(range(SHOWN_SAMPLES)))
        plots.samples(pictures, path, title)
        with Image.open(path) as picture:
            grids.append(picture.convert("RGB"))
    above, below = grids
    both = Image.new("RGB", (max(above.width, below.width), above.height + below.height), "white")
    both.paste(above, (0, 0))
    both.paste(below, (0, above.height))
    both.save(path)
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
        f"a step takes {seconds:.2f} s here, {on.describe()}: {size.people} of {MOST_PEOPLE} people,"
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
        "out": settings.out.absolute(),
    }
    where = [f"--device={settings.device}", f"--precision={settings.precision}"]
    before = set(settings.out.glob("*/"))
    run("train.py", *(f"--{name}={value}" for name, value in options.items()), *where)
    [folder] = set(settings.out.glob("*/")) - before
    run("predict.py", str(folder.absolute() / "vqvae.pth"), "--samples=16", *where)
    picture = draw_comparison(folder, size.people, settings.device)
    print(f"\nthe demo took {duration(time.monotonic() - start)}. To look at:")
    print(f"  {picture}: samples of this training, above samples of the weights of this repository")
    print(f"  {folder / 'predict/report.html'}: scores and figures of this training")
    return 0


if __name__ == "__main__":
    sys.exit(main())
