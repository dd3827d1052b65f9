"""How does a decoder learn to draw texture? Against a critic, on the codes that priors draw.

A few codes per position leave open where each fold's edge lies. A decoder trained by distance alone answers with the
mean of what could be, which is a blur; one that has a critic to please draws one of the pictures that could be. That is
a second decoder, the painter: the first one goes on reconstructing from more codes, by distance. Encoder and codebooks
are frozen, so that codes, and priors over them, stay valid.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset import Batches, Box, DataSet, content_box
from inference.loading import load_autoencoder
from modules import RQVAE
from networks.critic import PatchCritic
from runtime import checkpoint, compute
from runtime.compute import Compute
from training.augment import Draws, augment, generator_of
from training.losses import gradient_penalty, l1_ssim, r3gan_losses
from training.optim import MovingAverage, held, set_rate
from training.run import Run, Stage, progress
from training.settings import TrainSettings
from training.validation import validation_ssim

DRAWN = 2  # codes per position, up to which the painter draws
FEWEST = 0.65  # share of those pictures that are decoded from one code
OTHERS = 8  # in a batch's every so many slices, one is as other sources have them
SHIFT = 4  # pixels, by which half of the batches that the critic sees are moved at most
RATES = 1e-4, 2e-4  # Adam's, of painter and critic
BETAS = (0.0, 0.99)
ALONE, WARM_UP = 100, 100  # steps: of the critic alone, and until the rates are reached
FALL = 0.4  # of the training, at whose end the rates fall
GAMMA = 0.003  # weight of the critic's gradient penalties; in the first `SETTLED` of the training it falls to a third
SETTLED = 0.6
INERTIA = 0.998  # how slowly the average that is kept follows the painter that learns
WEIGHTS = {"reconstruction": 6.0, "others": 0.2}  # beside the critic's 1


def train_texture(run: Run, data: DataSet, settings: TrainSettings, on: Compute) -> None:
    """Train the painter of the run's vqvae.pth, and put it in there after every epoch: SSIM would choose a blur."""
    train = data.splits["train"]
    box = content_box(train.images)
    batches = Batches(train, 2 * settings.batch_size, on.device, None, on.rank, on.world_size)
    path = run.folder / "vqvae.pth"
    autoencoder, _ = load_autoencoder(path)
    learner = TextureLearner(autoencoder, on)
    stage = Stage(run, "texture", settings.texture_epochs, learner.parts())
    if not stage.resumed:
        stage.save()  # before the vqvae.pth that it began with is replaced

    for epoch in stage.remaining_epochs():
        shuffled = batches.shuffled(settings.seed, epoch, stage.step)
        for images, _ in stage.steps(progress(shuffled, stage, batches.steps, batches.batch_size)):
            learner.anneal(stage.epoch * batches.steps + stage.step, stage.epochs * batches.steps)
            generator = generator_of(settings.seed, epoch, stage.step)
            draw = Draws(len(images), generator, on.device, on.rank, on.world_size)
            stage.add(**learner.step(*share_out(images, box, draw)))
        with learner.averaged() as model:
            row = {f"validation_ssim_{n}": validation_ssim(model, data, box, on, n) for n in range(1, DRAWN + 1)}
            content = checkpoint.load(path, "autoencoder")
            run.save("vqvae.pth", content | {"arguments": model.arguments, "state": model.state_dict()})
        stage.end_epoch(stage.means() | row)


def share_out(images: Tensor, box: Box, draw: Draws) -> tuple[Tensor, Tensor]:
    """Whole slices [B, 1, H, W] -> what `TextureLearner.step` takes.

    The critic sees slices as they are, mirrored, or moved a little; the others are changed, as they were when the
    autoencoder was trained.
    """
    n = max(len(images) // OTHERS, 1)
    by = [draw.whole(-SHIFT, SHIFT + 1) * draw.whole(0, 2) for _ in range(2)]
    drawn = box.crop(images[n:].roll(by, dims=(2, 3)))
    drawn = torch.where(draw.chance(0.3)[n:], drawn.flip(2), drawn)
    return drawn, augment(images[:n], box, draw.of(n), share=1.0)


class TextureLearner:
    """Painter, critic, their optimisers, and the average of the painter, which is kept."""

    def __init__(self, autoencoder: RQVAE, on: Compute):
        self.on = on
        if not autoencoder.drawn:  # one that is gone on with has its painter already
            autoencoder.add_painter(DRAWN)
        self.autoencoder = autoencoder.to(on.device, memory_format=torch.channels_last).eval()
        self.painter = autoencoder.painter.train()
        for parameter in autoencoder.parameters():
            parameter.requires_grad_(False)
        for parameter in self.painter.parameters():
            parameter.requires_grad_(True)
        self.critic = PatchCritic().to(on.device, memory_format=torch.channels_last)
        self.average = MovingAverage(self.painter, INERTIA)
        self.alone, self.gamma = False, GAMMA
        self.optimizers = [
            torch.optim.Adam(network.parameters(), rate, BETAS, fused=True)
            for network, rate in zip((self.painter, self.critic), RATES, strict=True)
        ]

    def parts(self) -> dict[str, Any]:
        """Everything that learning changes, for `Stage`."""
        optimizers = dict(zip(("painter_optimizer", "critic_optimizer"), self.optimizers, strict=True))
        return {"painter": self.painter, "critic": self.critic, "average": self.average, **optimizers}

    def anneal(self, step: int, total: int) -> None:
        """Set learning rates and the penalties' weight for step `step` of `total`."""
        done = step / total
        self.alone = step < min(ALONE, total / 10)
        self.gamma = GAMMA * (1 / 3) ** min(1.0, done / SETTLED)
        for optimizer, rate in zip(self.optimizers, RATES, strict=True):
            set_rate(optimizer, rate * held(step, total, WARM_UP, FALL))

    @contextmanager
    def averaged(self) -> Iterator[RQVAE]:
        """The autoencoder with the average of its painter, in eval mode."""
        self.autoencoder.painter = self.average.module
        try:
            yield self.autoencoder.eval()
        finally:
            self.autoencoder.painter = self.painter

    def step(self, drawn: Tensor, others: Tensor) -> dict[str, Tensor]:
        """One step of the critic, and one of the painter, both of one code or two; what to log.

        Args:
            drawn: [B, 1, H, W] in [0, 1], whose pictures the critic judges.
            others: [b, 1, h, w] in [0, 1], whose pictures are to be near them.
        """
        made, other = self._paint(drawn), self._paint(others)
        picture = made.clamp(0, 1)
        real_scores, values = self._step_critic(drawn, picture.detach())
        with self.on.autocast():
            scores = self.critic(picture)
        pairs = zip(real_scores, scores, strict=True)
        losses = {
            "critic_says": torch.stack([r3gan_losses(real.detach(), fake)[0] for real, fake in pairs]).mean(),
            "reconstruction": blurred_l1(made, drawn),
            "others": l1_ssim(other, others).mean(),
        }
        if not self.alone:
            self.optimizers[0].zero_grad()
            total = losses["critic_says"] + sum(weight * losses[name] for name, weight in WEIGHTS.items())
            total.backward(inputs=list(self.painter.parameters()))
            compute.average_gradients(self.painter)
            self.optimizers[0].step()
            self.average.update_parameters(self.painter)
        return losses | values

    def _step_critic(self, drawn: Tensor, picture: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """One step on real slices and pictures of theirs; its scores of the real ones before, and what to log."""
        drawn, picture = drawn.detach().requires_grad_(), picture.requires_grad_()
        with self.on.autocast():
            real, fake = self.critic(drawn), self.critic(picture)
        loss = torch.stack([r3gan_losses(*pair)[1] for pair in zip(real, fake, strict=True)]).mean()
        r1, r2 = (
            torch.stack([gradient_penalty(score, seen) for score in scores]).mean()
            for scores, seen in ((real, drawn), (fake, picture))
        )
        self.optimizers[1].zero_grad()
        (loss + self.gamma / 2 * (r1 + r2)).backward(inputs=list(self.critic.parameters()))
        compute.average_gradients(self.critic)
        self.optimizers[1].step()
        return real, {"critic_loss": loss, "r1": r1, "r2": r2}

    def _paint(self, images: Tensor) -> Tensor:
        """Pictures of their first code or two per position, float32, not clamped."""
        kept = torch.where(torch.rand(len(images), device=images.device) < FEWEST, 1, DRAWN)
        with self.on.autocast():
            with torch.no_grad():
                z_q = self.autoencoder.quantise(images, kept)[0]
            return self.painter(z_q, kept).float()


def blurred_l1(picture: Tensor, image: Tensor) -> Tensor:
    """Mean absolute error at full size, half of it, and at a quarter of the size, where no texture is left."""
    return 0.5 * F.l1_loss(picture, image) + F.l1_loss(F.avg_pool2d(picture, 4), F.avg_pool2d(image, 4))
