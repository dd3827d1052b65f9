"""How does the decoder learn to draw texture? Against a critic, on the codes that priors draw; the codes stay.

A few codes per position leave open where each fold's edge lies. A decoder trained by distance alone answers with the
mean of what could be, which is a blur; one that has a critic to please draws one of the pictures that could be.
Encoder and codebooks are frozen, so that codes, and priors over them, stay valid. Of more codes than priors draw the
decoder goes on reconstructing by distance.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset import Batches, Box, DataSet, content_box
from inference.loading import load_autoencoder
from modules import RQVAE
from networks.critic import PatchCritic, feature_distance, hinge
from runtime import checkpoint, compute
from runtime.compute import Compute
from training.augment import Draws, augment
from training.losses import l1_ssim
from training.optim import MovingAverage
from training.run import Run, Stage, progress
from training.settings import TrainSettings
from training.validation import validation_ssim

DRAWN = 2  # codes per position, up to which the decoder draws texture
FEWEST = 0.6  # share of those pictures that are decoded from one code
OTHERS = 2  # in a batch's every so many slices, one is reconstructed from more codes
RATES = 1e-4, 2e-4  # Adam's, of decoder and critic: at 3e-4 the decoder runs away from its critic
BETAS = (0.5, 0.99)
FALL = 0.5  # of the training, at whose end the rates fall
INERTIA = 0.999  # how slowly the average that is kept follows the decoder that learns
MARGIN = 1.0  # between the scores of real and fake, at which the critic counts fully
CLIP = 5.0  # largest norm of a gradient
WEIGHTS = {"reconstruction": 0.25, "features": 0.15, "critic": 1.5, "all_codes": 3.0}


def train_texture(run: Run, data: DataSet, settings: TrainSettings, on: Compute) -> None:
    """Train the decoder of the run's vqvae.pth; the best is the one with the best validation SSIM of all codes."""
    train = data.splits["train"]
    box = content_box(train.images)
    batches = Batches(train, 2 * settings.batch_size, on.device, None, on.rank, on.world_size)
    path = run.folder / "vqvae.pth"
    autoencoder, _ = load_autoencoder(path)
    learner = TextureLearner(autoencoder, on)
    stage = Stage(run, "texture", settings.texture_epochs, learner.parts(), "validation SSIM")
    if not stage.resumed:
        stage.save()  # before the vqvae.pth that it began with is replaced

    for epoch in stage.remaining_epochs():
        shuffled = batches.shuffled(settings.seed, epoch, stage.step)
        for images, _ in stage.steps(progress(shuffled, stage, batches.steps, batches.batch_size)):
            done = stage.epoch * batches.steps + stage.step
            learner.set_rates(done / (stage.epochs * batches.steps))
            number = int(np.random.default_rng([settings.seed, epoch, stage.step]).integers(2**63))
            draw = Draws(len(images), torch.Generator().manual_seed(number), on.device, on.rank, on.world_size)
            stage.add(**learner.step(*share_out(images, box, draw, autoencoder.depth)))
        with learner.averaged() as model:
            row = {"validation_ssim": validation_ssim(model, data, box, on)}
            row |= {f"validation_ssim_{n}": validation_ssim(model, data, box, on, n) for n in range(1, DRAWN + 1)}
            if stage.is_best(row["validation_ssim"]):
                content = checkpoint.load(path, "autoencoder")
                content |= {"validation_ssim": row["validation_ssim"], "state": model.state_dict()}
                run.save("vqvae.pth", content)
        stage.end_epoch(stage.means() | row)


def share_out(images: Tensor, box: Box, draw: Draws, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Whole slices [B, 1, H, W] -> what `TextureLearner.step` takes.

    The critic sees slices as they are, or mirrored; the others are varied as the autoencoder was trained with them, and
    reconstructed from all codes, or a third of them from any number above `DRAWN`.
    """
    n = max(len(images) // OTHERS, 1)
    drawn = box.crop(images[n:])
    drawn = torch.where(draw.chance(0.3)[n:], drawn.flip(2), drawn)
    kept = torch.where(draw.chance(1 / 3), draw.uniform(DRAWN + 1, depth + 1), depth).flatten().long()[:n]
    return drawn, augment(images[:n], box, draw.of(n)), kept


class TextureLearner:
    """Decoder, critic, their optimisers, and the average of the decoder, which is kept."""

    def __init__(self, autoencoder: RQVAE, on: Compute):
        self.on = on
        self.autoencoder = autoencoder.to(on.device, memory_format=torch.channels_last).eval()
        self.decoder = autoencoder.decoder.train()
        for parameter in autoencoder.parameters():
            parameter.requires_grad_(False)
        for parameter in self.decoder.parameters():
            parameter.requires_grad_(True)
        self.critic = PatchCritic().to(on.device, memory_format=torch.channels_last)
        self.average = MovingAverage(self.decoder, INERTIA)
        self.optimizers = [
            torch.optim.Adam(network.parameters(), rate, BETAS, fused=True)
            for network, rate in zip((self.decoder, self.critic), RATES, strict=True)
        ]

    def parts(self) -> dict[str, Any]:
        """Everything that learning changes, for `Stage`."""
        optimizers = dict(zip(("decoder_optimizer", "critic_optimizer"), self.optimizers, strict=True))
        return {"decoder": self.decoder, "critic": self.critic, "average": self.average, **optimizers}

    def set_rates(self, done: float) -> None:
        """The learning rates after `done`, in [0, 1], of the training: they fall at its end."""
        share = min(1.0, 0.03 + 0.97 * (1 - done) / FALL)
        for optimizer, rate in zip(self.optimizers, RATES, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * share

    @contextmanager
    def averaged(self) -> Iterator[RQVAE]:
        """The autoencoder with the average of its decoder, in eval mode."""
        self.autoencoder.decoder = self.average.module
        try:
            yield self.autoencoder.eval()
        finally:
            self.autoencoder.decoder = self.decoder

    def step(self, drawn: Tensor, others: Tensor, kept: Tensor) -> dict[str, Tensor]:
        """One step of the decoder, and one of the critic; what to log.

        Args:
            drawn: [B, 1, H, W] in [0, 1], decoded from one code or two, which the critic judges.
            others: [b, 1, h, w] in [0, 1], reconstructed from `kept` codes, int64 [b].
        """
        few = torch.where(torch.rand(len(drawn), device=drawn.device) < FEWEST, 1, DRAWN)
        made, fewer = self._decode(drawn, few), self._decode(others, kept)
        picture, other = (each.detach().float().requires_grad_() for each in (made, fewer))
        with self.on.autocast():
            (real_scores, wanted), (scores, features) = self.critic(drawn), self.critic(picture.clamp(0, 1))
        critic_loss, lead = hinge(real_scores, scores), lead_of(real_scores, scores)
        losses = {
            "reconstruction": blurred_l1(picture, drawn),
            "features": feature_distance([feature.detach() for feature in wanted], features),
            "critic": -torch.stack([score.float().mean() for score in scores]).mean(),
        }
        weights = WEIGHTS | {"critic": WEIGHTS["critic"] * lead}
        gradient = sum(weights[name] * direction(loss, picture) for name, loss in losses.items())
        losses["all_codes"] = l1_ssim(other, others).mean()

        self.optimizers[0].zero_grad()
        fewer.backward(WEIGHTS["all_codes"] * direction(losses["all_codes"], other).to(fewer.dtype))
        made.backward(gradient.to(made.dtype))
        self._descend(0, self.decoder)
        self.average.update_parameters(self.decoder)
        self.optimizers[1].zero_grad()
        critic_loss.backward(inputs=list(self.critic.parameters()))
        self._descend(1, self.critic)
        return {**losses, "critic_loss": critic_loss, "critic_lead": lead}

    def _decode(self, images: Tensor, kept: Tensor) -> Tensor:
        """Pictures of the first `kept` codes, not clamped."""
        with self.on.autocast():
            with torch.no_grad():
                z_q = self.autoencoder.quantise(images, kept)[0]
            return self.decoder(z_q, kept)

    def _descend(self, i: int, network: nn.Module) -> None:
        compute.average_gradients(network)
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        self.optimizers[i].step()


def blurred_l1(picture: Tensor, image: Tensor) -> Tensor:
    """Mean absolute error at full size, half of it, and at a quarter of the size, where no texture is left."""
    return 0.5 * F.l1_loss(picture, image) + F.l1_loss(F.avg_pool2d(picture, 4), F.avg_pool2d(image, 4))


def lead_of(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """How well the critic knows what is real, from 0 (not at all) to 1 (by `MARGIN`).

    A critic that knows nothing points anywhere, and what it says is brought to norm 1: a decoder that followed it from
    the start would undo whatever the critic is about to learn.
    """
    margins = [r.detach().float().mean() - f.detach().float().mean() for r, f in zip(real, fake, strict=True)]
    return (torch.stack(margins).mean() / MARGIN).clamp(0, 1)


def direction(loss: Tensor, picture: Tensor) -> Tensor:
    """The loss's gradient on the picture, of norm 1: what a loss weighs is then its weight's say alone.

    The loss balancer of Défossez et al. 2022, section 3.4.
    """
    (gradient,) = torch.autograd.grad(loss, picture, retain_graph=True)
    return gradient / gradient.norm().clamp_min(1e-12)
