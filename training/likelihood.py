"""How do the autoregressive priors learn? By likelihood; the best has the fewest bits on the validation people."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dataset import DataSet
from inference.codec import Codec
from inference.loading import load_prior
from modules import Autoencoder, Prior
from networks.pixelcnn import PixelCNN
from networks.transformer import MAX_OFFSET, Neighbours, Transformer
from report import plots
from runtime import compute
from runtime.compute import Compute
from runtime.errors import InputError
from runtime.replay import Replay
from runtime.wording import counted
from training import figures
from training.codes import AugmentedCodes, CodeBatch, EncodedSplit, neighbour_rows
from training.covariates import Covariates, hide
from training.optim import MovingAverage, cosine, muon, set_rate, update
from training.run import Run, Stage
from training.settings import TrainSettings

CLIP = 1.0  # largest norm of the gradient
AVERAGE_DECAY = 0.998  # of the average that samples
PATIENCE = 5  # epochs without progress on validation people, after which training stops
LEVEL_DROPOUT = 0.1  # share of the slices whose level is hidden, so that the prior can sample without one

# ----------------------------------------------------------------------------------------------------
# Two networks


def make_pixelcnn(autoencoder: Autoencoder, encoded: EncodedSplit, described: list[dict]) -> PixelCNN:
    """A PixelCNN for these codes."""
    grids = [list(grid.shape[1:]) for grid in encoded.codes]
    return PixelCNN(grids, autoencoder.codebook_sizes[: len(grids)], encoded.unknown)


def make_transformer(autoencoder: Autoencoder, encoded: EncodedSplit, described: list[dict]) -> Transformer:
    """A transformer for these codes, its embeddings based on their code vectors.

    Raises InputError when their grids differ in size.
    """
    shapes = {tuple(grid.shape[1:]) for grid in encoded.codes}
    if len(shapes) > 1:
        raise InputError("--prior transformer models one grid of codes, and vqvae2 has two; use --prior pixelcnn")
    codebooks = autoencoder.codebooks[: len(encoded.codes)]
    sizes, dim = [len(codebook) for codebook in codebooks], codebooks[0].shape[1]
    prior = Transformer(*shapes, sizes, dim, encoded.unknown, covariates=described)
    prior.fit(codebooks)
    return prior


def by_adamw(prior: PixelCNN, rate: float, on: Compute) -> torch.optim.Optimizer:
    return torch.optim.AdamW(prior.parameters(), rate, (0.9, 0.99), fused=True, capturable=on.graphs)


def by_muon(prior: Transformer, rate: float, on: Compute) -> torch.optim.Optimizer:
    return muon(prior, rate, betas=(0.9, 0.98))


class Recipe(NamedTuple):
    """How a network is built and trained."""

    make: Callable[[Autoencoder, EncodedSplit, list[dict]], PixelCNN | Transformer]
    optimizer: Callable[[Any, float, Compute], torch.optim.Optimizer]
    rate: float
    conditional: bool  # whether covariates and slices of the same brain condition it


RECIPES = {
    "pixelcnn": Recipe(make_pixelcnn, by_adamw, 1e-3, conditional=False),
    "transformer": Recipe(make_transformer, by_muon, 2e-3, conditional=True),
}


# ----------------------------------------------------------------------------------------------------
# One way to train them


def train_by_likelihood(run: Run, data: DataSet, settings: TrainSettings, codec: Codec, description: dict) -> None:
    """Train the prior of --prior; its <name>.pth is the one with the fewest bits on validation people."""
    name, recipe, on = settings.prior, RECIPES[settings.prior], codec.on
    number = counted(len(data.splits["train"]), "slice")
    run.log(f"{name}: encoding {number}; before each epoch they are varied and encoded anew")
    covariates = Covariates(data, settings.covariates if recipe.conditional else "none")
    train, held_out = (
        EncodedSplit(codec, data.splits[split], description["data"]["levels"], settings.prior_codes, values)
        for split, values in covariates.values.items()
    )
    adjacent = neighbour_rows(data.splits["validate"])[:, [MAX_OFFSET - 1, MAX_OFFSET + 1]]
    batches = AugmentedCodes(codec, data.splits["train"], train, settings.prior_batch, covariates)
    peak_rate = recipe.rate if settings.prior_lr is None else settings.prior_lr
    prior = recipe.make(codec.autoencoder, train, covariates.described).to(on.device, memory_format=torch.channels_last)
    prior.fit_levels(train.levels)
    if settings.prior_from:
        go_on_from(prior, load_prior(settings.prior_from, codec.autoencoder)[0], settings.prior_from)
    average, optimizer = MovingAverage(prior, AVERAGE_DECAY), recipe.optimizer(prior, peak_rate, on)
    parts = {"prior": prior, "average": average, "optimizer": optimizer}
    stage = Stage(run, name, settings.prior_epochs, batches, parts, "validation bits per code", less_is_better=True)

    @partial(Replay, on)
    def step(batch: CodeBatch) -> Tensor:
        return likelihood_step(prior, optimizer, batch, recipe.conditional, on)

    for epoch in stage.remaining_epochs():
        history = [row["validation_bits"] for row in run.rows_of(name)]
        if history and len(history) - history.index(min(history)) > PATIENCE:
            run.log(f"{name}: no progress on validation people for {PATIENCE} epochs, stopping")
            break
        prior.train()
        for batch in stage.steps(settings.seed):
            rate = peak_rate * cosine(stage.steps_done, stage.total_steps)
            set_rate(optimizer, rate)
            bits = step(batch)
            average.update_parameters(prior)
            stage.add(train_bits=bits, learning_rate=rate)

        row = stage.means() | {"validation_bits": held_out_bits(average.module, held_out, on)}
        if recipe.conditional:
            row["validation_bits_between"] = held_out_bits(average.module, held_out, on, adjacent)
        if stage.is_best(-row["validation_bits"]):
            run.save_prior(name, average.module, description["identity"], epoch, row)
        if run.main:
            with torch.no_grad(), on.autocast():
                codes = average.module.sample(range(figures.EPOCH_SAMPLES))
            figures.draw_sampled(run, codec, codes, data, stage, epoch)
        stage.end_epoch(row)
    if run.main:
        plots.likelihood_curves(run.rows_of(name), run.folder / f"{name}_curves.png", data.title)


def go_on_from(prior: PixelCNN | Transformer, trained: Prior, path: Path) -> None:
    """Start with a trained prior's weights, which may know other covariates. Raises InputError if it is another."""
    own = {name: tensor for name, tensor in trained.state_dict().items() if "covariate_embedding" not in name}
    expected = [name for name in prior.state_dict() if "covariate_embedding" not in name]
    if type(trained) is not type(prior) or list(own) != expected:
        raise InputError(f"--prior-from: {path} holds another prior than --prior asks for")
    prior.load_state_dict(own, strict=False)


def likelihood_step(
    prior: PixelCNN | Transformer, optimizer: torch.optim.Optimizer, batch: CodeBatch, conditional: bool, on: Compute
) -> Tensor:
    """One step; the mean bits per code."""
    hidden = torch.rand(len(batch.levels), device=on.device) < LEVEL_DROPOUT
    conditioning = [torch.where(hidden, prior.levels, batch.levels), batch.augmented]
    conditioning += [hide(batch.covariates), batch.neighbours] if conditional else []
    with on.autocast(prior):
        bits = prior(batch.codes, *conditioning)
    loss = bits.mean() / sum(grid[0].numel() for grid in batch.codes)
    update(loss, prior, optimizer, CLIP)
    return loss


@torch.inference_mode()
def held_out_bits(
    prior: PixelCNN | Transformer, encoded: EncodedSplit, on: Compute, adjacent: np.ndarray | None = None
) -> float:
    """Mean bits per code of a whole split, with the levels known.

    `adjacent`: rows int64 [N, 2] of the slices one level below and above each, -1 for none, which condition the prior.
    """
    total = torch.zeros((), dtype=torch.float64, device=on.device)
    for indices in torch.arange(len(encoded)).split(on.scoring_batch)[on.rank :: on.world_size]:
        codes, levels = encoded.at(indices)
        conditioning = [levels]
        if adjacent is not None:
            rows = torch.from_numpy(adjacent[indices]).to(on.device)
            offsets = torch.tensor([-1, 1], device=on.device) * (rows >= 0)
            beside = [grid[rows.clamp_min(0)].long() for grid in encoded.codes]
            conditioning += [None, None, Neighbours(beside, offsets)]
        with on.autocast():
            total += prior(codes, *conditioning).sum()
    return compute.mean(total).item() * on.world_size / len(encoded) / encoded.codes_per_image
