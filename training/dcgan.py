"""How does the GAN learn? Against a discriminator of latents; the best is the one nearest to the validation people."""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset import DataSet
from inference.codec import Codec, to_uint8
from modules import DCGAN, Autoencoder
from networks.prior import Codes
from report import plots
from runtime import checkpoint, compute
from runtime.compute import Compute
from training.codes import CodeBatches
from training.optim import MovingAverage
from training.run import Run, Stage, progress
from training.settings import TrainSettings

if TYPE_CHECKING:
    from scoring.judge import Judge

LEARNING_RATE = 2e-4
DIVERGED = 10  # times the best distance from validation people: the GAN won't come back from there
SAMPLES = 320  # judged after each epoch


class Recipe(NamedTuple):
    """What a pair of networks is trained with."""

    loss: Literal["r3gan", "bce"]
    betas: tuple[float, float]  # Adam's
    inertia: float  # how slowly the generator that samples follows the one that learns


RECIPES = {  # of DCGAN's networks
    "refiner": Recipe("r3gan", (0.0, 0.99), 0.999),
    "baseline": Recipe("bce", (0.5, 0.999), 0.0),  # sampled as it is
}


def train_dcgan(run: Run, data: DataSet, settings: TrainSettings, codec: Codec, description: dict) -> None:
    """Train the GAN over the autoencoder's latents; dcgan.pth is the one nearest to the validation people."""
    from scoring.judge import Judge  # here, since it takes seconds to import, and training starts without it

    how = description["data"]["levels"], settings.prior_batch_size, codec.on, settings.prior_codes
    batches = CodeBatches(codec, data.splits["train"], *how)
    rate = LEARNING_RATE if settings.prior_lr is None else settings.prior_lr
    learner = DCGANLearner(batches, codec.autoencoder, settings.gan, rate)
    stage = Stage(run, "dcgan", settings.prior_epochs, learner.parts(), "Frechet distance", less_is_better=True)
    judge = Judge(data.splits["train"], data.splits["validate"]) if run.main else None

    for epoch in stage.remaining_epochs():
        if compute.from_first(partial(diverged, run.rows_of("dcgan"))):
            run.log(
                f"dcgan: diverged: its samples are {DIVERGED} times as far from validation people as the best, which "
                "are kept; stopping. A larger --gan-gamma or a smaller --prior-lr holds it back"
            )
            break
        learner.prior.train()
        shuffled = batches.shuffled(settings.seed, epoch, stage.step)
        for codes, levels in stage.steps(progress(shuffled, stage, batches.steps, batches.batch_size)):
            stage.add(**learner.step(codes, levels, settings.gan_gamma))
        row = stage.means()
        if run.main:
            prior = learner.sampler
            row |= score_samples(prior.sample(range(SAMPLES)), batches, codec, judge)
            if stage.is_best(-distance(row)):
                content = {"kind": "prior", "model": "dcgan", "arguments": prior.arguments, "epoch": epoch, **row}
                content |= {"autoencoder": description["identity"], "state": checkpoint.halved(prior.state_dict())}
                run.save("dcgan.pth", content)
        stage.end_epoch(row)
    if run.main:
        plots.gan_curves(run.rows_of("dcgan"), run.folder / "dcgan.png", f"{data.title}, training split")


class DCGANLearner:
    """A GAN that learns: the prior, its discriminator, their optimisers, and the average of the prior that samples."""

    def __init__(self, batches: CodeBatches, autoencoder: Autoencoder, network: str, rate: float):
        """`network`: a name in RECIPES. The prior's normalisation is taken from all codes of `batches`."""
        self.autoencoder, self.on, self.recipe = autoencoder, batches.on, RECIPES[network]
        latents = batches.latents(autoencoder)
        prior = DCGAN(
            autoencoder, latents.shape[2:], latents.shape[1], batches.unknown, codes=len(batches.codes), network=network
        )
        self.prior = prior.to(self.on.device, memory_format=torch.channels_last)
        self.prior.fit(latents, batches.levels)
        discriminator = self.prior.make_discriminator()
        self.discriminator = discriminator.to(self.on.device, memory_format=torch.channels_last)
        self.average = MovingAverage(self.prior, self.recipe.inertia).eval()
        networks = (self.discriminator, self.prior.generator)
        self.optimizers = [torch.optim.Adam(n.parameters(), rate, self.recipe.betas, fused=True) for n in networks]

    @property
    def sampler(self) -> DCGAN:
        """The averaged prior, in eval mode."""
        return self.average.module

    def parts(self) -> dict[str, Any]:
        """Everything that learning changes, for `Stage`."""
        parts = {"prior": self.prior, "discriminator": self.discriminator, "average": self.average}
        optimizers = zip(("discriminator_optimizer", "generator_optimizer"), self.optimizers, strict=True)
        return parts | dict(optimizers)

    def step(self, codes: Codes, levels: Tensor, gamma: float) -> dict[str, Tensor]:
        """One step of both networks on code grids [B, h, w] and levels [B]; what to log."""
        real = self.prior.normalise(self.autoencoder.embed(codes))
        networks = self.prior.generator, self.discriminator
        values = gan_step(*networks, self.optimizers, real, levels, self.on, self.recipe.loss, gamma)
        self.average.update_parameters(self.prior)
        return values


# ----------------------------------------------------------------------------------------------------
# A step


def gan_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    real: Tensor,
    levels: Tensor,
    on: Compute,
    loss: Literal["r3gan", "bce"],
    gamma: float,
) -> dict[str, Tensor]:
    """One step of the discriminator and one of the generator on real latents [B, C, h, w]; what to log.

    `optimizers`: the discriminator's and the generator's. `gamma`: weight of R1 and R2, which "bce" goes without.
    """
    relativistic = loss == "r3gan"
    losses = r3gan_losses if relativistic else bce_losses
    noise = torch.randn(2, on.world_size, len(real), generator.z_dim, device=real.device)[:, on.rank]

    with torch.no_grad(), on.autocast():
        fake = generator(noise[0], levels).float()
    real, fake = real.detach().requires_grad_(), fake.requires_grad_()
    with on.autocast():
        scores = discriminator(real, levels), discriminator(fake, levels)
    _, discriminator_loss = losses(*scores)
    penalties = {}
    if relativistic:
        penalties = {"r1": gradient_penalty(scores[0], real), "r2": gradient_penalty(scores[1], fake)}
    descend(optimizers[0], discriminator, discriminator_loss + gamma / 2 * sum(penalties.values()))

    with on.autocast():
        fake_score = discriminator(generator(noise[1], levels), levels)
        with torch.no_grad():
            real_score = discriminator(real, levels)
    generator_loss, _ = losses(real_score, fake_score)
    descend(optimizers[1], generator, generator_loss)
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


# ----------------------------------------------------------------------------------------------------
# A verdict


def score_samples(samples: Codes, batches: CodeBatches, codec: Codec, judge: "Judge") -> dict[str, float]:
    """Frechet distances from validation people, and the mean distance of the code histograms from training's."""
    from scoring.judge import code_histogram_distance

    distances = judge.frechet(to_uint8(codec.decode(samples)))
    histograms = [
        code_histogram_distance(sampled, real.long(), size)
        for sampled, real, size in zip(samples, batches.codes, codec.autoencoder.codebook_sizes, strict=False)
    ]
    named = {f"frechet_{space}": distance for space, distance in distances.items()}
    return named | {"histogram_distance": sum(histograms) / len(histograms)}


def distance(row: Mapping[str, float]) -> float:
    """Of an epoch's samples from validation people: the geometric mean of the judge's Frechet distances."""
    return statistics.geometric_mean(value for key, value in row.items() if key.startswith("frechet_"))


def diverged(rows: Sequence[Mapping[str, float]]) -> bool:
    """Whether the last of the GAN's epochs was that much worse than the best."""
    distances = [distance(row) for row in rows]
    return bool(rows) and distances[-1] > DIVERGED * min(distances)
