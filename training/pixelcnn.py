"""How does the PixelCNN learn? By likelihood; the best is the one with the fewest bits on the validation people."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dataset import DataSet
from inference.codec import Codec
from networks.pixelcnn import PixelCNN
from networks.prior import Codes
from report import plots
from runtime import checkpoint, compute
from training.codes import CodeBatches
from training.optim import moving_average
from training.run import Run, Stage, progress
from training.settings import TrainSettings

LEARNING_RATE = 1e-3
CLIP = 1.0  # largest norm of the gradient
INERTIA = 0.995  # how slowly the average that samples follows the network that learns
PATIENCE = 5  # epochs without progress on validation people, after which training stops


def train_pixelcnn(run: Run, data: DataSet, settings: TrainSettings, codec: Codec, description: dict) -> None:
    """Train the autoregressive prior; pixelcnn.pth is the one with the fewest bits on validation people."""
    how = description["data"]["levels"], settings.prior_batch_size, codec.on, settings.prior_codes
    train, held_out = (CodeBatches(codec, data.splits[split], *how) for split in ("train", "validate"))
    rate = LEARNING_RATE if settings.prior_lr is None else settings.prior_lr
    learner = PixelCNNLearner(train, codec.autoencoder.codebook_sizes, rate)
    stage = Stage(run, "pixelcnn", settings.prior_epochs, learner.parts())

    for epoch in stage.remaining_epochs():
        history = [row["validation_bits"] for row in run.rows_of("pixelcnn")]
        if history and len(history) - history.index(min(history)) > PATIENCE:
            run.log(f"pixelcnn: no progress on validation people for {PATIENCE} epochs, stopping")
            break
        learner.prior.train()
        shuffled = train.shuffled(settings.seed, epoch, stage.step)
        for codes, levels in stage.steps(progress(shuffled, stage, train.steps, train.batch_size)):
            stage.add(train_bits=learner.step(codes, levels))
        row = stage.means()
        row["validation_bits"] = held_out_bits(learner.sampler, held_out) / held_out.codes_per_image
        if stage.is_best(-row["validation_bits"]):
            prior = learner.sampler
            content = {"kind": "prior", "model": "pixelcnn", "arguments": prior.arguments, "epoch": epoch, **row}
            content |= {"autoencoder": description["identity"], "state": checkpoint.halved(prior.state_dict())}
            run.save("pixelcnn.pth", content)
        stage.end_epoch(row)
    if run.main:
        plots.pixelcnn_curves(run.rows_of("pixelcnn"), run.folder / "pixelcnn.png", data.title)


class PixelCNNLearner:
    """A PixelCNN that learns: the prior, its optimiser, and the average of the prior that samples."""

    def __init__(self, batches: CodeBatches, codebook_sizes: list[int], rate: float):
        """`codebook_sizes`: K of each grid of codes, of which `batches` has the first ones or all."""
        self.on = batches.on
        grids = [list(grid.shape[1:]) for grid in batches.codes]
        prior = PixelCNN(grids, codebook_sizes[: len(grids)], batches.unknown)
        self.prior = prior.to(self.on.device, memory_format=torch.channels_last)
        self.prior.level_share.copy_(torch.bincount(batches.levels, minlength=batches.unknown + 1) / batches.size)
        self.average = AveragedModel(self.prior, avg_fn=moving_average(INERTIA)).eval()
        self.optimizer = torch.optim.AdamW(self.prior.parameters(), rate, (0.9, 0.99), fused=True)

    @property
    def sampler(self) -> PixelCNN:
        """The averaged prior, in eval mode."""
        return self.average.module

    def parts(self) -> dict[str, Any]:
        """Everything that learning changes, for `Stage`."""
        return {"prior": self.prior, "average": self.average, "optimizer": self.optimizer}

    def step(self, codes: Codes, levels: Tensor) -> Tensor:
        """One step on code grids [B, h, w] and levels [B]; the mean bits per code."""
        with self.on.autocast():
            bits = self.prior(codes, levels).mean() / sum(grid[0].numel() for grid in codes)
        self.optimizer.zero_grad()
        bits.backward()
        compute.average_gradients(self.prior)
        nn.utils.clip_grad_norm_(self.prior.parameters(), CLIP)
        self.optimizer.step()
        self.average.update_parameters(self.prior)
        return bits


@torch.inference_mode()
def held_out_bits(prior: PixelCNN, batches: CodeBatches) -> float:
    """Mean bits per image of a whole split, with the levels known."""
    on = batches.on
    total = torch.zeros((), dtype=torch.float64, device=on.device)
    for indices in torch.arange(batches.size).split(batches.batch_size)[on.rank :: on.world_size]:
        codes, levels = batches.at(indices)
        with on.autocast():
            total += prior(codes, levels).sum()
    return compute.mean(total).item() * on.world_size / batches.size
