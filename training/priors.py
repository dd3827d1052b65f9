"""How do the priors learn? From the codes of the training slices, which the autoencoder makes once."""

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dataset import DataSet, shuffled_shares
from inference.codec import Codec, to_uint8
from modules import DCGAN, Autoencoder, Codes
from networks.pixelcnn import PixelCNN
from report import plots
from runtime import checkpoint, compute
from runtime.compute import Compute
from runtime.errors import InputError
from training.run import Run, Stage, progress

if TYPE_CHECKING:
    from scoring.judge import Judge

DIVERGED = 10  # times the best distance from validation people: the GAN won't come back from there
SAMPLES = 320  # judged after each epoch of the GAN
PATIENCE = 5  # epochs without progress on validation people, after which the PixelCNN stops
GAN = {  # loss -> Adam's betas, and how slowly the generator that samples follows the one that learns
    "bce": ((0.5, 0.999), 0.0),  # the course report's: sampled as it is
    "r3gan": ((0.0, 0.99), 0.999),
}


NETWORKS = {"r3gan": "refiner", "bce": "baseline"}


class CodeBatches:
    """A split's codes and slice levels, resident on the device; level `levels` is that of slices without one."""

    def __init__(self, codec: Codec, data: DataSet, split: str, levels: int, batch_size: int, on: Compute):
        slices = data.splits[split]
        self.codes = codec.encode(slices.images)
        self.unknown = levels
        known = torch.from_numpy(slices.levels).to(on.device)
        self.levels = torch.where((known < 0) | (known > levels), levels, known)
        if batch_size % on.world_size:
            raise InputError(f"--prior-batch-size {batch_size} can't be shared equally by {on.world_size} processes")
        self.size, self.on = len(slices), on
        self.batch_size = min(batch_size, self.size // on.world_size * on.world_size)
        self.steps = self.size // self.batch_size

    def at(self, indices: Tensor) -> tuple[Codes, Tensor]:
        """Codes, each grid int64 [b, h, w], and levels int64 [b]."""
        indices = indices.to(self.on.device)
        return [grid[indices].long() for grid in self.codes], self.levels[indices]

    def shuffled(self, seed: int, epoch: int, start: int) -> Iterator[tuple[Codes, Tensor]]:
        """An epoch's batches from step `start` on; the same for the same arguments."""
        order = shuffled_shares(self.size, self.batch_size, seed, epoch, self.on.rank, self.on.world_size)
        for indices in order[start:]:
            yield self.at(indices)

    def latents(self, autoencoder: Autoencoder) -> Tensor:
        """What `autoencoder` makes of all codes, float32 [N, C, h, w]."""
        parts = torch.arange(self.size).split(256)
        return torch.cat([autoencoder.embed(self.at(indices)[0]) for indices in parts])


# ----------------------------------------------------------------------------------------------------
# DCGAN


def train_dcgan(run: Run, data: DataSet, settings: argparse.Namespace, on: Compute, codec: Codec, about: dict) -> None:
    """Train the GAN over the autoencoder's latents; dcgan.pth is the one nearest to the validation people."""
    from scoring.judge import Judge  # here, since it takes seconds to import, and training starts without it

    levels = about["data"]["levels"]
    batches = CodeBatches(codec, data, "train", levels, settings.prior_batch_size, on)
    autoencoder = codec.autoencoder
    latents = batches.latents(autoencoder)
    arguments = {"grid": list(latents.shape[2:]), "channels": latents.shape[1], "levels": levels}
    arguments["network"] = NETWORKS[settings.gan_loss]
    prior = DCGAN(autoencoder, **arguments).to(on.device, memory_format=torch.channels_last)
    prior.fit(latents, batches.levels)
    del latents
    discriminator = prior.make_discriminator().to(on.device, memory_format=torch.channels_last)
    rate = 2e-4 if settings.prior_lr is None else settings.prior_lr
    betas, inertia = GAN[settings.gan_loss]
    average = AveragedModel(prior.generator, avg_fn=moving_average(inertia))
    learners = [torch.optim.Adam(net.parameters(), rate, betas, fused=True) for net in (discriminator, prior.generator)]
    parts = {"prior": prior, "discriminator": discriminator, "average": average}
    parts |= {"discriminator_optimizer": learners[0], "generator_optimizer": learners[1]}
    stage = Stage(run, "dcgan", settings.prior_epochs, parts)
    judge = Judge(data.splits["train"], data.splits["validate"]) if run.main else None

    for epoch in stage.remaining_epochs():
        if compute.from_first(partial(diverged, run.rows_of("dcgan"))):
            run.log(
                f"dcgan: the samples are {DIVERGED} times as far from validation people as the best were: diverged,"
            )
            run.log("dcgan: stopping; the best are kept. A larger --gan-gamma or a smaller --prior-lr holds it back")
            break
        prior.train()
        shuffled = batches.shuffled(settings.seed, epoch, stage.step)
        for codes, level in stage.steps(progress(shuffled, stage, batches.steps, batches.batch_size)):
            real = prior.normalise(autoencoder.embed(codes))
            stage.add(**gan_step(prior.generator, discriminator, learners, real, level, settings, on))
            average.update_parameters(prior.generator)
        row = stage.means()
        sampler = DCGAN(autoencoder, **arguments).to(on.device)  # in every process: it draws random numbers
        sampler.load_state_dict(prior.state_dict())
        sampler.generator = average.module
        if run.main:
            samples = sampler.eval().sample(range(SAMPLES))
            verdict = judge_samples(samples, batches, codec, judge)
            row |= verdict
            if stage.is_best(-distance(row)):
                content = {
                    "kind": "prior",
                    "model": "dcgan",
                    "arguments": prior.arguments,
                    "autoencoder": about["identity"],
                }
                run.save(
                    "dcgan.pth", content | {"state": checkpoint.halved(sampler.state_dict()), "epoch": epoch, **row}
                )
        stage.end_epoch(row)
    if run.main:
        plots.gan_curves(run.rows_of("dcgan"), run.folder / "dcgan.png", f"{data.title}, training split")


def distance(row: Mapping[str, float]) -> float:
    """Of an epoch's samples from validation people: the geometric mean of the judge's Frechet distances."""
    return statistics.geometric_mean(value for key, value in row.items() if key.startswith("frechet_"))


def diverged(rows: Sequence[Mapping[str, float]]) -> bool:
    """Whether the last of the GAN's epochs was that much worse than the best."""
    distances = [distance(row) for row in rows]
    return bool(rows) and distances[-1] > DIVERGED * min(distances)


def moving_average(inertia: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """An exponential moving average for `AveragedModel` that forgets where it began: slower and slower up to `inertia`.

    After n updates the newest weighs 9 / (10 + n), at least 1 - inertia.
    """

    def average(averaged: Tensor, newest: Tensor, updates: Tensor) -> Tensor:
        return torch.lerp(averaged, newest, (9 / (10 + updates)).clamp(min=1 - inertia).to(averaged.dtype))

    return average


def gan_step(
    generator: nn.Module,
    discriminator: nn.Module,
    learners: list[torch.optim.Optimizer],
    real: Tensor,
    levels: Tensor,
    settings: argparse.Namespace,
    on: Compute,
) -> dict[str, Tensor]:
    """One step of the discriminator and one of the generator on real latents [B, C, h, w]; what to log."""
    relativistic = settings.gan_loss == "r3gan"
    loss = r3gan_losses if relativistic else bce_losses
    noise = torch.randn(2, on.world_size, len(real), generator.z_dim, device=real.device)[:, on.rank]

    with torch.no_grad(), on.autocast():
        fake = generator(noise[0], levels).float()
    real, fake = real.detach().requires_grad_(), fake.requires_grad_()
    with on.autocast():
        scores = discriminator(real, levels), discriminator(fake, levels)
    _, discriminator_loss = loss(*scores)
    penalties = {}
    if relativistic:
        penalties = {"r1": gradient_penalty(scores[0], real), "r2": gradient_penalty(scores[1], fake)}
    penalty = settings.gan_gamma / 2 * sum(penalties.values())
    descend(learners[0], discriminator, discriminator_loss + penalty)

    with on.autocast():
        fake_score = discriminator(generator(noise[1], levels), levels)
        with torch.no_grad():
            real_score = discriminator(real, levels)
    generator_loss, _ = loss(real_score, fake_score)
    descend(learners[1], generator, generator_loss)
    border = torch.cat(scores).mean() if relativistic else 0  # relativistic scores have no zero of their own
    return {
        "generator_loss": generator_loss,
        "discriminator_loss": discriminator_loss,
        "score_real": scores[0].mean(),
        "score_fake": scores[1].mean(),
        "accuracy_real": (scores[0] > border).float().mean(),
        "accuracy_fake": (scores[1] < border).float().mean(),
        **penalties,
    }


def r3gan_losses(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Generator's and discriminator's relativistic loss for scores [B] (Huang et al. 2024, eq. 2)."""
    return F.softplus(real - fake).mean(), F.softplus(fake - real).mean()


def bce_losses(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Generator's (non-saturating) and discriminator's binary cross-entropy (Goodfellow et al. 2014)."""
    return F.softplus(-fake).mean(), F.softplus(-real).mean() + F.softplus(fake).mean()


def gradient_penalty(scores: Tensor, inputs: Tensor) -> Tensor:
    """Mean over the batch of |d score / d input|^2: R1 on real inputs, R2 on fake ones (Mescheder et al. 2018)."""
    (gradient,) = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def descend(optimizer: torch.optim.Optimizer, network: nn.Module, loss: Tensor) -> None:
    """One optimiser step of `network` alone, on the mean gradient of all processes."""
    optimizer.zero_grad()
    # `backward` stores each gradient in its weight's memory layout; fused optimisers misread any other.
    loss.backward(inputs=list(network.parameters()))
    compute.average_gradients(network)
    optimizer.step()


def judge_samples(samples: Codes, batches: CodeBatches, codec: Codec, judge: "Judge") -> dict[str, float]:
    """Frechet distances from validation people, and the mean distance of the code histograms from training's."""
    from scoring.judge import code_histogram_distance

    distances = judge.frechet(to_uint8(codec.decode(samples)))
    histograms = [
        code_histogram_distance(sampled, real.long(), size)
        for sampled, real, size in zip(samples, batches.codes, codec.autoencoder.codebook_sizes, strict=True)
    ]
    named = {f"frechet_{space}": distance for space, distance in distances.items()}
    return named | {"histogram_distance": sum(histograms) / len(histograms)}


# ----------------------------------------------------------------------------------------------------
# PixelCNN


def train_pixelcnn(
    run: Run, data: DataSet, settings: argparse.Namespace, on: Compute, codec: Codec, about: dict
) -> None:
    """Train the autoregressive prior; pixelcnn.pth is the one with the fewest bits on validation people."""
    levels = about["data"]["levels"]
    train = CodeBatches(codec, data, "train", levels, settings.prior_batch_size, on)
    held_out = CodeBatches(codec, data, "validate", levels, settings.prior_batch_size, on)
    arguments = {"grids": [list(s) for s in codec.grid_shapes()], "sizes": codec.autoencoder.codebook_sizes}
    arguments["levels"] = levels
    prior = PixelCNN(**arguments).to(on.device, memory_format=torch.channels_last)
    prior.level_share.copy_(torch.bincount(train.levels, minlength=levels + 1) / train.size)
    average = AveragedModel(prior, avg_fn=moving_average(0.995))
    rate = 1e-3 if settings.prior_lr is None else settings.prior_lr
    optimizer = torch.optim.AdamW(prior.parameters(), rate, (0.9, 0.99), fused=True)
    parts = {"prior": prior, "average": average, "optimizer": optimizer}
    stage = Stage(run, "pixelcnn", settings.prior_epochs, parts)
    codes_per_image = sum(h * w for h, w in arguments["grids"])

    for epoch in stage.remaining_epochs():
        history = [row["validation_bits"] for row in run.rows_of("pixelcnn")]
        if history and len(history) - history.index(min(history)) > PATIENCE:
            run.log(f"pixelcnn: no progress on validation people for {PATIENCE} epochs, stopping")
            break
        prior.train()
        shuffled = train.shuffled(settings.seed, epoch, stage.step)
        for codes, level in stage.steps(progress(shuffled, stage, train.steps, train.batch_size)):
            bits = pixelcnn_step(prior, average, optimizer, codes, level, on)
            stage.add(train_bits=bits / codes_per_image)
        row = stage.means()
        row["validation_bits"] = held_out_bits(average.module.eval(), held_out, on) / codes_per_image
        if stage.is_best(-row["validation_bits"]):
            content = {
                "kind": "prior",
                "model": "pixelcnn",
                "arguments": prior.arguments,
                "autoencoder": about["identity"],
            }
            content |= {"state": checkpoint.halved(average.module.state_dict()), "epoch": epoch, **row}
            run.save("pixelcnn.pth", content)
        stage.end_epoch(row)
    if run.main:
        plots.pixelcnn_curves(run.rows_of("pixelcnn"), run.folder / "pixelcnn.png", data.title)


def pixelcnn_step(
    prior: PixelCNN,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    codes: Codes,
    levels: Tensor,
    on: Compute,
) -> Tensor:
    """One step on code grids [B, h, w] and levels [B]; the mean bits of an image."""
    with on.autocast():
        bits = prior(codes, levels).mean()
    optimizer.zero_grad()
    (bits / sum(grid[0].numel() for grid in codes)).backward()
    compute.average_gradients(prior)
    nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
    optimizer.step()
    average.update_parameters(prior)
    return bits


@torch.inference_mode()
def held_out_bits(prior: PixelCNN, batches: CodeBatches, on: Compute) -> float:
    """Mean bits per image of a whole split, with the levels known."""
    total = torch.zeros((), dtype=torch.float64, device=on.device)
    for indices in torch.arange(batches.size).split(batches.batch_size)[on.rank :: on.world_size]:
        codes, levels = batches.at(indices)
        with on.autocast():
            total += prior(codes, levels).sum()
    return compute.mean(total).item() * on.world_size / batches.size


PRIORS = {"dcgan": train_dcgan, "pixelcnn": train_pixelcnn}
