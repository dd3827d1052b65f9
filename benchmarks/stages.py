"""What is measured? The stages of training and sampling, each the plain way and this repository's."""

import contextlib
import io
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

import dataset
import train
from benchmarks import plain
from benchmarks.measure import Way
from dataset import Batches, Box, DataSet
from inference.codec import Codec
from modules import DCGAN, VQVAE, Autoencoder
from runtime.cli import Device, Precision, Settings, option
from runtime.compute import Compute
from training import dcgan
from training.codes import CodeBatches, EmbeddedCodes, Given, VariedLatents
from training.likelihood import RECIPES, LikelihoodLearner
from training.settings import TrainSettings

Stage = Literal["decoding", "batches", "autoencoder", "validation", "gan", "pixelcnn", "whole"]
SAMPLING_BATCH = 32  # sampling.py's


class SpeedSettings(Settings):
    """what to measure"""

    data: str | None = option(None, "folder of PNG slices, or 'demo'; else $OASIS_DIR, then the usual places", "DIR")
    stages: list[Stage] = option([], f"of {', '.join(get_args(Stage))} (default: all)", "STAGE")
    images: int = option(384, "training slices, repeated to that number; the rest in proportion", ge=1, le=1_000_000)
    batch_size: int = option(32, "slices a step", ge=1, le=1_000_000)
    steps: int = option(1, "training steps a round", ge=1, le=1_000_000)
    rounds: int = option(5, "of each way, in turn; with --both-precisions, seeds", ge=1, le=1000)
    samples: int = option(32, "drawn together from a prior", ge=1, le=100_000)
    codes: int = option(2, "that the plain way samples of each grid; the time of all follows", ge=1, le=4096)
    epochs: int = option(1, "of the autoencoder, in the whole training and with --both-precisions", ge=1, le=1000)
    prior_epochs: int = option(0, "of the DCGAN in the whole training", ge=0, le=1000)
    workers: int = option(0, "of the plain way's loader", ge=0, le=256)
    device: Device = option("auto", "where to compute")
    precision: Precision = option("auto", "of this repository's way")
    out: Path = option(Path("speed.json"), "file for the figures", "FILE")
    quick: bool = option(False, "tiny sizes, one round")
    growth: bool = option(False, "measure that instead of the stages")
    second_start: bool = option(False, "measure that instead of the stages")
    both_precisions: bool = option(False, "measure that instead of the stages")


@dataclass(frozen=True)
class Bench:
    """What all stages work on."""

    args: SpeedSettings
    folder: Path  # for everything temporary
    data: DataSet
    box: Box
    on: Compute

    @property
    def device(self) -> torch.device:
        return self.on.device

    def paths(self, split: str) -> list[Path]:
        return self.data.splits[split].paths

    def pictures(self, box: Box | None) -> list[Tensor]:
        """`steps` batches of training slices on the device."""
        batches = Batches(self.data.splits["train"], self.args.batch_size, self.device, box)
        epochs = (batches.shuffled(0, epoch) for epoch in itertools.count(1))
        return [images for images, _ in itertools.islice(itertools.chain.from_iterable(epochs), self.args.steps)]

    def loader(self, split: str, shuffle: bool) -> torch.utils.data.DataLoader:
        """The plain way's."""
        return plain.loader(self.paths(split), self.args.batch_size, self.device, self.args.workers, shuffle)

    def autoencoder(self) -> Autoencoder:
        """The course baseline's, its codebook set from the data."""
        model = VQVAE().to(self.device, memory_format=torch.channels_last)
        train.start_codebooks(model, self.data.splits["train"], self.box, 0, self.on)
        return model

    def codes(self) -> tuple[Codec, CodeBatches]:
        """An autoencoder, and the training slices as its codes."""
        slices = self.data.splits["train"]
        codec = Codec(self.autoencoder(), {"box": self.box, "size": slices.images.shape[1:]}, self.on)
        levels = int(slices.levels.max()) + 1
        return codec, CodeBatches(codec, slices, levels, self.args.batch_size, self.on)


def by_default(run: Callable[[], object]) -> Callable[[], None]:
    """`run` with PyTorch's own settings: this repository's would make the plain way faster."""

    def wrapped() -> None:
        with plain.torch_defaults():
            run()

    return wrapped


def decoding(bench: Bench) -> dict[str, dict[str, Way]]:
    """Every file of two splits: plain, decoded to floats as in each epoch; ours, decoded to the cache, once for all."""
    paths = bench.paths("train") + bench.paths("validate")
    pictures = plain.Pictures(paths)
    pixels = sum(part.images.nbytes for part in bench.data.splits.values())
    files = sum(path.stat().st_size for path in paths)

    def read() -> None:
        for i in range(len(pictures)):
            pictures[i]

    def build() -> None:
        shutil.rmtree(os.environ["XDG_CACHE_HOME"])
        with contextlib.redirect_stdout(io.StringIO()):
            dataset.load(str(bench.data.root), ("train", "validate"))

    return {
        "decoding and cache": {
            "plain": Way(read, len(paths), files + 4 * pixels),
            "ours": Way(build, len(paths), files + pixels),
        }
    }


def batches(bench: Bench) -> dict[str, dict[str, Way]]:
    """An epoch of shuffled batches on the device, nothing done with them."""
    loader = bench.loader("train", shuffle=True)
    ours = Batches(bench.data.splits["train"], bench.args.batch_size, bench.device, bench.box)
    images, (height, width) = ours.steps * ours.batch_size, bench.data.splits["train"].images.shape[1:]
    epochs = itertools.count(1)

    def load() -> None:
        for pictures in loader:
            pictures.to(bench.device)

    return {
        "batches": {
            "plain": Way(
                lambda: [None for b in loader if b.to(bench.device) is None], images, 5 * images * height * width
            ),
            "ours": Way(
                lambda: [None for _ in ours.shuffled(0, next(epochs))],
                images,
                5 * images * bench.box.height * bench.box.width,
            ),
        }
    }


def autoencoder_steps(bench: Bench) -> dict[str, dict[str, Way]]:
    """Training steps of the course baseline's VQ-VAE on batches that wait on the device."""
    whole, cropped = bench.pictures(None), bench.pictures(bench.box)
    report = plain.PlainVQVAE().to(bench.device).train()
    report_adam = torch.optim.Adam(report.parameters(), 1e-3)
    model = bench.autoencoder().train()
    adam = torch.optim.Adam(model.parameters(), 1e-3, betas=(0.9, 0.99), fused=True)

    def step(images: Tensor) -> None:
        train.autoencoder_step(model, adam, images, None, train.l1_ssim, bench.on)

    number = sum(map(len, cropped))
    return {
        "VQ-VAE step": {
            "plain": Way(by_default(lambda: [plain.vqvae_step(report, report_adam, b) for b in whole]), number),
            "ours": Way(lambda: [step(b) for b in cropped], number),
        }
    }


def validation(bench: Bench) -> dict[str, dict[str, Way]]:
    """Reconstruction and mean SSIM of the whole validation split, from the files or the cache on."""
    loader = bench.loader("validate", shuffle=False)
    report, model = plain.PlainVQVAE().to(bench.device), bench.autoencoder()
    number = len(bench.data.splits["validate"])
    return {
        "validation with SSIM": {
            "plain": Way(by_default(lambda: plain.validation_ssim(report, loader, bench.device)), number),
            "ours": Way(lambda: train.validation_ssim(model, bench.data, bench.box, bench.on), number),
        }
    }


def gan(bench: Bench) -> dict[str, dict[str, Way]]:
    """Training steps of the course baseline's GAN, ours from codes; of the default, residual networks; and sampling."""
    whole = bench.pictures(None)
    report = plain.PlainVQVAE().to(bench.device).eval()
    networks, adams = plain.make_gan(bench.device)
    codec, codes = bench.codes()
    number, samples = sum(map(len, whole)), bench.args.samples
    how, learners = (dcgan.LEARNING_RATE, TrainSettings().gan_gamma), {}
    sources = {
        name: recipe.learns_from(codec, bench.data.splits["train"], codes, 0) for name, recipe in dcgan.RECIPES.items()
    }
    for name, source in sources.items():
        learners[name] = dcgan.DCGANLearner(source, codec.autoencoder, name, *how)

    def steps(name: str) -> None:
        for drawn in _batches_of(sources[name], bench.args.steps):
            learners[name].step(drawn)

    def sample(prior: DCGAN) -> None:
        with torch.inference_mode(), bench.on.autocast():
            codec.decode(prior.sample(range(samples)))

    def plain_sample() -> Tensor:
        networks[0].eval()
        pictures = plain.gan_sample(report, networks[0], samples, bench.device).cpu()
        networks[0].train()
        return pictures

    return {
        "DCGAN step": {
            "plain": Way(by_default(lambda: [plain.gan_step(report, networks, adams, b) for b in whole]), number),
            "ours": Way(lambda: steps("baseline"), number),
        },
        "DCGAN step, residual": {"ours": Way(lambda: steps("residual"), number)},
        "DCGAN sampling": {
            "plain": Way(by_default(plain_sample), samples),
            "ours": Way(lambda: sample(learners["baseline"].sampler), samples),
        },
        "DCGAN sampling, residual": {"ours": Way(lambda: sample(learners["residual"].sampler), samples)},
    }


def _batches_of(source: EmbeddedCodes | VariedLatents, steps: int) -> Iterator:
    """The first `steps` batches of latents, of as many epochs as that takes."""
    epochs = (source.shuffled(epoch) for epoch in itertools.count(1))
    return itertools.islice(itertools.chain.from_iterable(epochs), steps)


def _code_batches(codes: CodeBatches, steps: int) -> Iterator:
    """The first `steps` batches of codes and levels, of as many epochs as that takes."""
    epochs = (codes.shuffled(0, epoch, 0) for epoch in itertools.count(1))
    return itertools.islice(itertools.chain.from_iterable(epochs), steps)


def pixelcnn(bench: Bench) -> dict[str, dict[str, Way]]:
    """Training steps and sampling of the autoregressive prior, 8 layers of width 96, over one code grid."""
    codec, codes = bench.codes()
    whole = [torch.randint(plain.CODES, (codes.batch_size, *plain.GRID), device=bench.device)] * bench.args.steps
    masked = plain.MaskedPixelCNN().to(bench.device)
    masked_adam = torch.optim.Adam(masked.parameters(), 1e-3)
    recipe = RECIPES["pixelcnn"]
    learner = LikelihoodLearner(recipe, codec.autoencoder, codes, recipe.rate)
    unchanged = torch.zeros(codes.batch_size, dtype=torch.bool, device=bench.device)

    def steps() -> None:
        for grids, levels in _code_batches(codes, bench.args.steps):
            learner.step(Given(grids, levels, unchanged, None), recipe.rate)

    def plain_steps() -> None:
        masked.train()
        for grids in whole:
            plain.pixelcnn_step(masked, masked_adam, grids)

    def sample() -> None:
        for seeds in torch.arange(bench.args.samples).split(SAMPLING_BATCH):
            with torch.inference_mode(), bench.on.autocast():
                learner.sampler.sample(seeds.tolist())

    def plain_sample() -> None:
        plain.pixelcnn_sample(masked, bench.args.samples, plain.GRID, bench.args.codes, bench.device)

    # Every code costs the plain way the same, a pass over the whole grid, so a few of them tell the cost of all.
    share = bench.args.codes / (plain.GRID[0] * plain.GRID[1])
    number, samples = codes.batch_size * bench.args.steps, bench.args.samples
    return {
        "PixelCNN step": {
            "plain": Way(by_default(plain_steps), number),
            "ours": Way(steps, number),
        },
        "PixelCNN sampling": {"plain": Way(by_default(plain_sample), samples * share), "ours": Way(sample, samples)},
    }


STAGES = {
    "decoding": decoding,
    "batches": batches,
    "autoencoder": autoencoder_steps,
    "validation": validation,
    "gan": gan,
    "pixelcnn": pixelcnn,
}
