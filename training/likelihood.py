"""How do the autoregressive priors learn? By likelihood; the best has the fewest bits on the validation people."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dataset import DataSet
from inference.codec import Codec
from modules import Autoencoder
from networks.pixelcnn import PixelCNN
from networks.transformer import FARTHEST, Neighbours, Transformer
from report import plots
from runtime import checkpoint, compute
from runtime.errors import InputError
from training.codes import CodeBatches, Given, VariedCodes, rows_beside
from training.optim import MovingAverage, Muon, falling, set_rate
from training.run import Run, Stage, progress
from training.settings import TrainSettings

CLIP = 1.0  # largest norm of the gradient
INERTIA = 0.998  # how slowly the average that samples follows the network that learns
PATIENCE = 5  # epochs without progress on validation people, after which training stops
LEVELS_HIDDEN = 0.1  # share of the slices whose level the prior isn't told, so that it draws without one, too


# ----------------------------------------------------------------------------------------------------
# Two networks


def make_pixelcnn(autoencoder: Autoencoder, batches: CodeBatches) -> PixelCNN:
    """A PixelCNN for the codes of `batches`."""
    grids = [list(grid.shape[1:]) for grid in batches.codes]
    prior = PixelCNN(grids, autoencoder.codebook_sizes[: len(grids)], batches.unknown)
    prior.fit(batches.levels)
    return prior


def make_transformer(autoencoder: Autoencoder, batches: CodeBatches) -> Transformer:
    """A transformer for the codes of `batches`, which knows where in latent space each code lies.

    Raises InputError when they are of grids that differ in size.
    """
    shapes = {tuple(grid.shape[1:]) for grid in batches.codes}
    if len(shapes) > 1:
        raise InputError("--prior transformer draws codes of one grid, and a vqvae2 has two; give --prior pixelcnn")
    codebooks = [quantizer.codebook for quantizer in autoencoder.quantizers][: len(batches.codes)]
    sizes, dim = [len(codebook) for codebook in codebooks], codebooks[0].shape[1]
    prior = Transformer(*shapes, sizes, dim, batches.unknown)
    prior.fit(codebooks, batches.levels)
    return prior


def adamw(prior: nn.Module, rate: float) -> torch.optim.Optimizer:
    """For the PixelCNN's convolutions."""
    return torch.optim.AdamW(prior.parameters(), rate, (0.9, 0.99), fused=True)


def muon(prior: Transformer, rate: float) -> torch.optim.Optimizer:
    """For the transformer's matrices; by Adam what is looked up in a table, row by row."""
    matrices = [module.weight for module in prior.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    chosen = {id(weight) for weight in matrices}
    others = [parameter for parameter in prior.parameters() if id(parameter) not in chosen]
    return Muon([{"params": matrices}, {"params": others, "matrices": "adam"}], rate, betas=(0.9, 0.98))


class Recipe(NamedTuple):
    """What a network is built and trained with."""

    make: Callable[[Autoencoder, CodeBatches], PixelCNN | Transformer]
    optimizer: Callable[[Any, float], torch.optim.Optimizer]
    rate: float
    beside: bool  # whether it is shown slices of the same brain


RECIPES = {
    "pixelcnn": Recipe(make_pixelcnn, adamw, 1e-3, beside=False),
    "transformer": Recipe(make_transformer, muon, 2e-3, beside=True),
}


# ----------------------------------------------------------------------------------------------------
# One way to train them


def train_by_likelihood(run: Run, data: DataSet, settings: TrainSettings, codec: Codec, description: dict) -> None:
    """Train the prior of --prior; its <name>.pth is the one with the fewest bits on validation people."""
    name = settings.prior
    how = description["data"]["levels"], settings.prior_batch, codec.on, settings.prior_codes
    train, held_out = (CodeBatches(codec, data.splits[split], *how) for split in ("train", "validate"))
    varied = VariedCodes(codec, data.splits["train"], train, settings.seed)
    between = rows_beside(data.splits["validate"])
    recipe = RECIPES[name]
    rate = recipe.rate if settings.prior_lr is None else settings.prior_lr
    learner = LikelihoodLearner(recipe, codec.autoencoder, train, rate)
    score = "validation bits per code"
    stage = Stage(run, name, settings.prior_epochs, learner.parts(), score, less_is_better=True)

    for epoch in stage.remaining_epochs():
        history = [row["validation_bits"] for row in run.rows_of(name)]
        if history and len(history) - history.index(min(history)) > PATIENCE:
            run.log(f"{name}: no progress on validation people for {PATIENCE} epochs, stopping")
            break
        learner.prior.train()
        batches = varied.shuffled(epoch, stage.step)
        for given in stage.steps(progress(batches, stage, train.steps, train.batch_size)):
            done = stage.epoch * train.steps + stage.step
            now = falling(rate, done, settings.prior_epochs * train.steps)
            bits = learner.step(given, now)
            stage.add(train_bits=bits, learning_rate=torch.full((), now, device=codec.on.device))
        row = stage.means()
        row["validation_bits"] = held_out_bits(learner.sampler, held_out)
        if recipe.beside:
            row["validation_bits_between"] = held_out_bits(learner.sampler, held_out, between)
        if stage.is_best(-row["validation_bits"]):
            prior = learner.sampler
            content = {"kind": "prior", "model": name, "arguments": prior.arguments, "epoch": epoch, **row}
            content |= {"autoencoder": description["identity"], "state": checkpoint.halved(prior.state_dict())}
            run.save(f"{name}.pth", content)
        stage.end_epoch(row)
    if run.main:
        plots.likelihood_curves(run.rows_of(name), run.folder / f"{name}.png", data.title)


class LikelihoodLearner:
    """An autoregressive prior that learns: the prior, its optimiser, and the average of the prior that samples."""

    def __init__(self, recipe: Recipe, autoencoder: Autoencoder, batches: CodeBatches, rate: float):
        self.on = batches.on
        self.prior = recipe.make(autoencoder, batches).to(self.on.device, memory_format=torch.channels_last)
        self.average = MovingAverage(self.prior, INERTIA).eval()
        self.optimizer = recipe.optimizer(self.prior, rate)
        self.beside = recipe.beside

    @property
    def sampler(self) -> PixelCNN | Transformer:
        """The averaged prior, in eval mode."""
        return self.average.module

    def parts(self) -> dict[str, Any]:
        """Everything that learning changes, for `Stage`."""
        return {"prior": self.prior, "average": self.average, "optimizer": self.optimizer}

    def step(self, given: Given, rate: float) -> Tensor:
        """One step; the mean bits per code."""
        set_rate(self.optimizer, rate)
        hidden = torch.rand(self.on.world_size, len(given.levels), device=self.on.device)[self.on.rank] < LEVELS_HIDDEN
        told = [torch.where(hidden, self.prior.levels, given.levels), given.changed]
        if self.beside:
            told.append(given.neighbours)
        with self.on.autocast():
            bits = self.prior(given.codes, *told)
        bits = bits.mean() / sum(grid[0].numel() for grid in given.codes)
        self.optimizer.zero_grad()
        bits.backward()
        compute.average_gradients(self.prior)
        nn.utils.clip_grad_norm_(self.prior.parameters(), CLIP)
        self.optimizer.step()
        self.average.update_parameters(self.prior)
        return bits


@torch.inference_mode()
def held_out_bits(prior: PixelCNN | Transformer, batches: CodeBatches, beside: np.ndarray | None = None) -> float:
    """Mean bits per code of a whole split, with the levels known.

    `beside`: as `rows_beside`, of the same slices; the prior is then shown those one level below and above each.
    """
    on = batches.on
    total = torch.zeros((), dtype=torch.float64, device=on.device)
    for indices in torch.arange(batches.size).split(batches.batch_size)[on.rank :: on.world_size]:
        codes, *told = batches.at(indices)
        if beside is not None:
            rows = torch.from_numpy(beside[indices][:, [FARTHEST - 1, FARTHEST + 1]]).to(on.device)
            offsets = torch.tensor([-1, 1], device=on.device) * (rows >= 0)
            told += [None, Neighbours([grid[rows.clamp_min(0)].long() for grid in batches.codes], offsets)]
        with on.autocast():
            total += prior(codes, *told).sum()
    return compute.mean(total).item() * on.world_size / batches.size / batches.codes_per_image
