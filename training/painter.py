"""How does the painter learn? It follows a flow from noise to the slice; then a student learns its way in a few steps.

Encoder, codebooks and decoder are done by then, and stay as they are: so codes, and priors over them, stay valid.
"""

from collections.abc import Iterator
from itertools import count, islice, pairwise
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from dataset import Batches, Box, DataSet, Slices
from inference.codec import Codec
from inference.loading import load_painter
from modules import Autoencoder
from networks.painter import BLOCK, Painter, flow_loss, jump_loss
from runtime import checkpoint, compute
from runtime.compute import Compute
from scoring import tissue
from training import figures
from training.optim import MovingAverage, Muon, held, set_rate
from training.run import Run, Stage, progress
from training.settings import TrainSettings

EPOCHS, STUDENT_EPOCHS = 20, 6  # at most, of a pass over the training slices or more: then validation people are judged
STUDENT = 0.28  # of the teacher's slices, so many jumps does the student see
RATE, STUDENT_RATE = 1e-3, 5e-4
WARM_UP, FALL = 200, 0.5  # steps until the rate is reached; part of the training in which it falls at last
CLIP, INERTIA = 1.0, 0.999  # largest norm of the gradient; how slowly the average that is kept follows
TEACHER_STEPS = 24  # of Euler's method
SHIFT, SHIFTED = 4, 0.4  # pixels that slices are moved by at most, and share of those that are
EXAMPLES = 160  # slices that losses are measured on, of each split
LEVELS = 0.125, 0.375, 0.625, 0.875  # times at which they are
SIZES = np.linspace(0.9, 1.2, 7)  # of the starting noise, of which the right one is looked for


class Given(NamedTuple):
    """A batch of slices, as the painter sees them."""

    residual: Tensor  # float32 [B, 1, H, W]: (slice - plain picture) / scale
    plain: Tensor  # float32 [B, 1, H, W] in [0, 1], the decoder's picture of the first codes
    z_q: Tensor  # float32 [B, dim, h, w], their vectors
    phase: Tensor | None = None  # int64 [B], see `Painter.forward`

    @classmethod
    def of(
        cls, autoencoder: Autoencoder, scale: float, images: Tensor, on: Compute, phase: Tensor | None = None
    ) -> Self:
        """Of images [B, 1, H, W] in [0, 1]."""
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), on.autocast():
            z_q = autoencoder.embed(autoencoder.encode(images)[:1])
            plain = autoencoder.decode_latents(z_q, 1).float().clamp(0, 1)
        return cls((images - plain) / scale, plain, z_q, phase)


def train_painter(run: Run, data: DataSet, settings: TrainSettings, codec: Codec, identity: str) -> None:
    """Train teacher and student; painter.pth holds the best one on validation people, at last the student."""
    on, path = codec.on, run.folder / "painter.pth"
    batches = Batches(data.splits["train"], settings.painter_batch_size, on.device, None, on.rank, on.world_size)
    known = examples(codec, data.splits["train"])
    scale = round(float((known - decoded_plainly(codec, known)).std()), 4) or 1.0

    def new(steps: int) -> Painter:
        return Painter(codec.autoencoder.quantizers[0].dim, settings.painter_width, scale=scale, steps=steps)

    if not run.is_past("painter"):
        train_teacher(run, data, settings, batches, PainterLearner(new(TEACHER_STEPS), codec, RATE), identity)
    teacher = load_painter(path, codec.autoencoder)
    learner = PainterLearner(new(settings.painter_steps), codec, STUDENT_RATE, teacher)
    train_student(run, data, settings, batches, learner, identity)
    compute.from_first(lambda: fit_noise(run, codec, data.splits["validate"]))


def train_teacher(
    run: Run, data: DataSet, settings: TrainSettings, batches: Batches, learner: "PainterLearner", identity: str
) -> None:
    """Follow the flow from noise to slices; judged by its loss at the times `LEVELS`."""
    known, held_out = (examples(learner.codec, data.splits[name]) for name in ("train", "validate"))
    epochs, steps = share_out(settings.painter_slices, EPOCHS, batches)
    stage = Stage(run, "painter", epochs, learner.parts(), "validation loss", less_is_better=True)
    if not stage.resumed:
        weights, scale = sum(p.numel() for p in learner.painter.parameters()), learner.painter.scale
        run.log(f"painter: {weights:,} weights; what the plain decoder lacks has a standard deviation of {scale:.3f}")
    for _ in stage.remaining_epochs():
        for images in stage.steps(epoch_of(batches, stage, steps, settings.seed)):
            given = learner.given(*moved(images, learner.codec.box))
            rate = learner.anneal(stage.epoch * steps + stage.step, epochs * steps)
            stage.add(train_loss=learner.follow(given), learning_rate=rate)
        row = stage.means()
        for name, slices in (("train", known), ("validation", held_out)):
            losses = learner.losses(slices)
            row |= {f"{name}_loss_at_{t:g}": loss for t, loss in zip(LEVELS, losses, strict=True)}
        end_epoch(run, data, stage, learner, identity, row | {"validation_loss": sum(losses) / len(losses)})


def train_student(
    run: Run, data: DataSet, settings: TrainSettings, batches: Batches, learner: "PainterLearner", identity: str
) -> None:
    """Learn to jump along the teacher's paths; judged by the loss on those for validation people."""
    held_out = examples(learner.codec, data.splits["validate"])
    epochs, steps = share_out(int(STUDENT * settings.painter_slices), STUDENT_EPOCHS, batches, learner.painter.steps)
    stage = Stage(run, "student", epochs, learner.parts(), "validation loss", less_is_better=True)
    for _ in stage.remaining_epochs():
        for images in stage.steps(epoch_of(batches, stage, steps, settings.seed)):
            rate = learner.anneal(stage.epoch * steps + stage.step, epochs * steps)
            given = learner.given(upright_or_mirrored(learner.codec.box.crop(images)))
            stage.add(train_loss=learner.jump(given), learning_rate=rate)
        row = stage.means() | {"validation_loss": learner.jump_loss(held_out)}
        end_epoch(run, data, stage, learner, identity, row)


def share_out(slices: int, most: int, batches: Batches, updates: int = 1) -> tuple[int, int]:
    """Epochs, `most` at most and no shorter than a pass over the set, and steps of each, of so many updates."""
    epochs = min(most, max(slices // batches.size, 1))
    return epochs, max(slices // epochs // batches.batch_size // updates, 1)


def epoch_of(batches: Batches, stage: Stage, steps: int, seed: int) -> Iterator[Tensor]:
    """Whole slices [B, 1, H, W] of what is left of an epoch of so many steps, which may be several passes."""
    done = stage.epoch * steps + stage.step

    def images() -> Iterator[Tensor]:
        first, start = divmod(done, batches.steps)
        for number in count(first):
            yield from (images for images, _ in batches.shuffled(seed, number, start if number == first else 0))

    return progress(islice(images(), steps - stage.step), stage, steps, batches.batch_size)


def end_epoch(run: Run, data: DataSet, stage: Stage, learner: "PainterLearner", identity: str, row: dict) -> None:
    """Keep the painter if it is the best so far, show what it paints, and close the epoch with its row."""
    painter, epoch, loss = learner.average.module, stage.epoch + 1, row["validation_loss"]
    if stage.is_best(-loss):
        content = {"kind": "painter", "autoencoder": identity, "epoch": epoch, "validation_loss": loss}
        state = checkpoint.halved(painter.state_dict())
        run.save("painter.pth", content | {"arguments": painter.arguments, "state": state})
    figures.draw_painted(run, learner.codec, painter, data, stage.name, epoch, loss)
    stage.end_epoch(row)


def examples(codec: Codec, slices: Slices) -> Tensor:
    """Up to `EXAMPLES` slices, evenly chosen, float32 [n, 1, *box] in [0, 1] on the device."""
    chosen = np.unique(np.linspace(0, len(slices) - 1, EXAMPLES).round().astype(int))
    images = torch.from_numpy(np.array(slices.images[chosen]))[:, None]
    return codec.box.crop(images).to(codec.on.device).float() / 255


def decoded_plainly(codec: Codec, images: Tensor) -> Tensor:
    """What the decoder makes of the first codes of images [N, 1, H, W], in parts that fit into memory."""
    parts = images.split(32)
    return torch.cat([Given.of(codec.autoencoder, 1.0, part, codec.on).plain for part in parts])


def moved(images: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """Whole slices [B, 1, H, W] -> [B, 1, *box], half of them mirrored, some shifted; and by how much, as `phase`."""
    n, (height, width), device = len(images), images.shape[2:], images.device
    by = torch.randint(-SHIFT, SHIFT + 1, (n, 2), device=device) * (torch.rand(n, 1, device=device) < SHIFTED)
    rows = (torch.arange(box.top, box.top + box.height, device=device) - by[:, :1]) % height  # [B, h]
    columns = (torch.arange(box.left, box.left + box.width, device=device) - by[:, 1:]) % width
    shifted = images[torch.arange(n, device=device)[:, None, None], 0, rows[:, :, None], columns[:, None]][:, None]
    mirrored = torch.rand(n, device=device) < 0.5
    down = torch.where(mirrored, -by[:, 0], by[:, 0])
    return torch.where(mirrored[:, None, None, None], shifted.flip(2), shifted), BLOCK * (down % BLOCK) + by[
        :, 1
    ] % BLOCK


def upright_or_mirrored(images: Tensor) -> Tensor:
    """Slices [B, 1, h, w], half of them mirrored."""
    return torch.where(torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5, images.flip(2), images)


class PainterLearner:
    """A painter that learns, its optimiser, and the average of the painter, which is kept; a student's teacher, too."""

    def __init__(self, painter: Painter, codec: Codec, rate: float, teacher: Painter | None = None):
        self.codec, self.on, self.rate = codec, codec.on, rate
        self.painter = painter.to(self.on.device, memory_format=torch.channels_last)
        self.teacher = teacher and teacher.to(self.on.device, memory_format=torch.channels_last).eval()
        if teacher:
            self.painter.load_state_dict(self.teacher.state_dict())
        self.average = MovingAverage(self.painter, INERTIA).eval()
        ends = {id(p) for layer in (self.painter.fold, self.painter.unfold) for p in layer.parameters()}
        convolutions = [
            m.weight for m in self.painter.modules() if isinstance(m, nn.Conv2d) and id(m.weight) not in ends
        ]
        chosen = {id(weight) for weight in convolutions}
        others = [p for p in self.painter.parameters() if id(p) not in chosen]
        self.optimizer = Muon([{"params": convolutions}, {"params": others, "matrices": "adam"}], rate)

    def parts(self) -> dict[str, Any]:
        """Everything that learning changes, for `Stage`; and a student's teacher, which painter.pth holds no longer."""
        parts = {"painter": self.painter, "average": self.average, "optimizer": self.optimizer}
        return parts | ({"teacher": self.teacher} if self.teacher else {})

    def given(self, images: Tensor, phase: Tensor | None = None) -> Given:
        """What the painter sees of images [B, 1, H, W]."""
        return Given.of(self.codec.autoencoder, self.painter.scale, images, self.on, phase)

    def anneal(self, step: int, total: int) -> Tensor:
        """Set the learning rate for step `step` of `total`; the rate, to log."""
        rate = self.rate * held(step, total, min(WARM_UP, total / 10), FALL)
        set_rate(self.optimizer, rate)
        return torch.full((), rate, device=self.on.device)

    def follow(self, given: Given) -> Tensor:
        """A teacher's step: of the flow, at times between noise and slice, most of them in the middle; the loss."""
        n, noise = len(given.residual), torch.randn_like(given.residual)
        t = torch.randn(n, device=self.on.device).sigmoid()  # Esser et al. 2024, section 3.1
        with self.on.autocast():
            loss = flow_loss(self.painter, given.residual, t, noise, *given[1:]).mean()
        return self._update(loss)

    def jump(self, given: Given) -> Tensor:
        """A student's steps, one for each part of a path that the teacher goes from noise; the mean loss."""
        states = self._landmarks(given, torch.randn_like(given.residual))
        losses = []
        for start, end in pairwise(states):
            with self.on.autocast():
                losses.append(self._update(jump_loss(self.painter, start, end, given.plain, given.z_q).mean()))
        return torch.stack(losses).mean()

    def _landmarks(self, given: Given, noise: Tensor) -> list[tuple[float, Tensor]]:
        """Times and states along the teacher's path that the student has to jump between."""
        each = max(TEACHER_STEPS // self.painter.steps, 1)
        with torch.no_grad(), self.on.autocast():
            return list(self.teacher.path(given.plain, given.z_q, noise, each * self.painter.steps))[::each]

    def _update(self, loss: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss.backward()
        compute.average_gradients(self.painter)
        nn.utils.clip_grad_norm_(self.painter.parameters(), CLIP)
        self.optimizer.step()
        self.average.update_parameters(self.painter)
        return loss.detach()

    @torch.no_grad()
    def losses(self, images: Tensor) -> list[float]:
        """The average's loss on images [N, 1, H, W] at each of the times `LEVELS`, always of the same noise."""
        totals = torch.zeros(len(LEVELS), device=self.on.device)
        for given, noise in self._with_noise(images):
            for i, t in enumerate(LEVELS):
                times = torch.full((len(noise),), t, device=self.on.device)
                with self.on.autocast():
                    totals[i] += flow_loss(self.average.module, given.residual, times, noise, *given[1:]).sum()
        return (totals / len(images)).tolist()

    @torch.no_grad()
    def jump_loss(self, images: Tensor) -> float:
        """The average's loss on the teacher's paths for images [N, 1, H, W], always of the same noise."""
        total = torch.zeros((), device=self.on.device)
        for given, noise in self._with_noise(images):
            states = self._landmarks(given, noise)
            for start, end in pairwise(states):
                with self.on.autocast():
                    total += (
                        jump_loss(self.average.module, start, end, given.plain, given.z_q).sum() / self.painter.steps
                    )
        return float(total / len(images) / self.painter.steps)

    def _with_noise(self, images: Tensor) -> Iterator[tuple[Given, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for part in images.split(32):
            yield self.given(part), torch.randn(part.shape, generator=generator).to(self.on.device)


def fit_noise(run: Run, codec: Codec, slices: Slices) -> None:
    """Fit how large the starting noise has to be for each validation person's grain; painter.pth keeps the spread.

    A scan's grain is its own, and codes don't tell it. For each person that size is found at which the painted slices
    have the grain of the real ones, in deep white matter; its mean and standard deviation over people are what
    `Painter.noise` draws from.
    """
    content = checkpoint.load(run.folder / "painter.pth", "painter")
    painter = load_painter(run.folder / "painter.pth", codec.autoencoder)
    mean, spread = noise_size(
        Codec(codec.autoencoder, {"box": codec.box, "size": codec.size}, codec.on, painter), slices
    )
    content["state"]["noise_size"] = torch.tensor([mean, spread]).half()
    run.save("painter.pth", content)
    run.log(f"student: starting noise times {mean:.3f} +- {spread:.3f}, drawn once a brain")


def noise_size(codec: Codec, slices: Slices) -> tuple[float, float]:
    """Mean and standard deviation, over people, of the size of noise that gives painted slices their grain.

    (1, 0) where fewer than two people show white matter.
    """
    codes, people = codec.encode(slices.images, codec.box)[:1], np.array(slices.people)
    where = [tissue.deep_white(image) for image in slices.images]

    def grains(pictures: np.ndarray) -> np.ndarray:
        """Mean grain of each person, NaN where none of the slices shows white matter."""
        each = np.array([tissue.grain(*pair) for pair in zip(pictures, where, strict=True)])
        persons = [each[people == person] for person in np.unique(people)]
        return np.array([np.nanmean(own) if np.isfinite(own).any() else np.nan for own in persons])

    painted = []
    for size in SIZES:
        codec.painter.noise_size.copy_(torch.tensor([size, 0.0]))
        painted.append(grains((codec.paint(codes, range(len(slices))) * 255).round()))
    sizes = [
        np.interp(own, np.maximum.accumulate(grain), SIZES)
        for own, grain in zip(grains(slices.images), np.stack(painted, axis=1), strict=True)
        if np.isfinite(own)
    ]
    return (float(np.mean(sizes)), float(np.std(sizes))) if len(sizes) > 1 else (1.0, 0.0)
