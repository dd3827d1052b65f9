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
from networks.prior import Codes, level_shares
from report import plots
from runtime import checkpoint, compute
from runtime.compute import Compute
from training.codes import CodeBatches, EmbeddedCodes, Latents, VariedLatents
from training.losses import gradient_penalty, r3gan_losses
from training.optim import MovingAverage, held, set_rate
from training.run import Run, Stage, progress
from training.settings import TrainSettings

if TYPE_CHECKING:
    from scoring.judge import Judge

LEARNING_RATE = 2e-4
DIVERGED = 10  # times the best distance from validation people: the GAN won't come back from there
SAMPLES = 320  # judged after each epoch


class Recipe(NamedTuple):
    """What a pair of networks is trained with."""

    learns_from: type[VariedLatents] | type[EmbeddedCodes]
    loss: Literal["r3gan", "bce"]
    betas: tuple[float, float]  # Adam's
    inertia: float  # how slowly the generator that samples follows the one that learns
    anneals: bool  # whether learning rate and gamma fall


RECIPES = {  # of DCGAN's networks
    "residual": Recipe(VariedLatents, "r3gan", (0.0, 0.99), 0.999, anneals=True),
    "baseline": Recipe(EmbeddedCodes, "bce", (0.5, 0.999), 0.0, anneals=False),  # sampled as it is
}
WARM_UP = 200  # steps
FALL = 0.5  # of the training, at whose end the learning rate falls
HALVED = 0.6  # of the training, in which gamma falls to a half


def train_dcgan(run: Run, data: DataSet, settings: TrainSettings, codec: Codec, description: dict) -> None:
    """Train the GAN over the autoencoder's latents; dcgan.pth is the one nearest to the validation people."""
    from scoring.judge import Judge  # here, since it takes seconds to import, and training starts without it

    how = description["data"]["levels"], settings.prior_batch, codec.on, settings.prior_codes
    batches = CodeBatches(codec, data.splits["train"], *how)
    latents = RECIPES[settings.gan].learns_from(codec, data.splits["train"], batches, settings.seed)
    rate = LEARNING_RATE if settings.prior_lr is None else settings.prior_lr
    learner = DCGANLearner(latents, codec.autoencoder, settings.gan, rate, settings.gan_gamma)
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
        shuffled = latents.shuffled(epoch, stage.step)
        for drawn in stage.steps(progress(shuffled, stage, batches.steps, batches.batch_size)):
            learner.anneal(stage.epoch * batches.steps + stage.step, stage.epochs * batches.steps)
            stage.add(**learner.step(drawn))
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

    def __init__(
        self,
        latents: VariedLatents | EmbeddedCodes,
        autoencoder: Autoencoder,
        network: str,
        rate: float,
        gamma: float,
    ):
        """`network`: a name in RECIPES. `rate` and `gamma` are those of the beginning."""
        batches, (examples, levels) = latents.batches, latents.examples()
        self.on, self.recipe, self.rate, self.first_gamma, self.gamma = batches.on, RECIPES[network], rate, gamma, gamma
        prior = DCGAN(
            autoencoder,
            examples.shape[2:],
            examples.shape[1],
            batches.unknown,
            codes=len(batches.codes),
            network=network,
        )
        self.prior = prior.to(self.on.device, memory_format=torch.channels_last)
        self.prior.fit(examples, levels)
        self.prior.level_share.copy_(level_shares(batches.levels, batches.unknown))
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

    def anneal(self, step: int, total: int) -> None:
        """Set learning rate and gamma for step `step` of `total`."""
        if not self.recipe.anneals:
            return
        self.gamma = self.first_gamma * 0.5 ** min(1.0, step / total / HALVED)
        for optimizer in self.optimizers:
            set_rate(optimizer, self.rate * held(step, total, min(WARM_UP, 1 + total / 10), FALL))

    def step(self, drawn: Latents) -> dict[str, Tensor]:
        """One step of both networks; what to log."""
        drawn = drawn._replace(values=self.prior.normalise(drawn.values))
        networks = self.prior.generator, self.discriminator
        values = gan_step(*networks, self.optimizers, drawn, self.on, self.recipe.loss, self.gamma)
        self.average.update_parameters(self.prior)
        return values


# ----------------------------------------------------------------------------------------------------
# A step


def gan_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    drawn: Latents,
    on: Compute,
    loss: Literal["r3gan", "bce"],
    gamma: float,
) -> dict[str, Tensor]:
    """One step of the discriminator and one of the generator on real, normalised latents; what to log.

    `optimizers`: the discriminator's and the generator's. `gamma`: weight of R1 and R2, which "bce" goes without.
    """
    relativistic = loss == "r3gan"
    losses = r3gan_losses if relativistic else bce_losses
    real, *told = drawn
    noise = torch.randn(2, on.world_size, len(real), generator.z_dim, device=real.device)[:, on.rank]

    with torch.no_grad(), on.autocast():
        fake = generator(noise[0], *told).float()
    real, fake = real.detach().requires_grad_(), fake.requires_grad_()
    with on.autocast():
        scores = discriminator(real, *told), discriminator(fake, *told)
    _, discriminator_loss = losses(*scores)
    penalties = {}
    if relativistic:
        penalties = {"r1": gradient_penalty(scores[0], real), "r2": gradient_penalty(scores[1], fake)}
    descend(optimizers[0], discriminator, discriminator_loss + gamma / 2 * sum(penalties.values()))

    with on.autocast():
        fake_score = discriminator(generator(noise[1], *told), *told)
        with torch.no_grad():
            real_score = discriminator(real, *told)
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


def bce_losses(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Generator's (non-saturating) and discriminator's binary cross-entropy (Goodfellow et al. 2014)."""
    return F.softplus(-fake).mean(), F.softplus(-real).mean() + F.softplus(fake).mean()


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

    distances = judge.frechet(to_uint8(codec.paint(samples, range(len(samples[0])))))
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
