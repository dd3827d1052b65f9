"""How does the painter learn? A teacher follows a flow from noise to the slice; a student jumps along its path.

Encoder, codebooks and decoder are trained by then, and stay as they are: so codes, and priors over them, stay valid.
"""

from collections.abc import Iterator
from functools import partial
from itertools import count, islice, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dataset import Batches, Box, DataSet, Slices
from inference.codec import Codec
from inference.loading import load_painter
from networks.painter import BLOCK, Painter, flow_loss, jump_loss
from runtime import checkpoint, compute
from runtime.compute import Compute
from runtime.replay import Replay
from scoring import tissue
from training import figures, setup
from training.optim import MovingAverage, Muon, constant_then_linear, muon, set_rate, update
from training.run import Run, Stage
from training.settings import TrainSettings

TEACHER_EPOCHS, STUDENT_EPOCHS = 20, 6  # at most; an epoch is a pass over the training slices, or several
TEACHER_RATE, STUDENT_RATE = 1e-3, 5e-4
TEACHER_STEPS = 24  # of Euler's method
STUDENT_SHARE = 0.28  # of the teacher's slices: updates of the student, times the batch size
WARM_UP, FALL = 200, 0.5  # steps; share of the training at whose end the rate falls
CLIP, AVERAGE_DECAY = 1.0, 0.999  # largest norm of the gradient; decay of the average that is kept
MAX_SHIFT, SHIFTED = 4, 0.4  # pixels; share of the slices that are shifted
LOSS_SLICES = 160  # of each split, that losses are measured on
LOSS_TIMES = 0.125, 0.375, 0.625, 0.875
NOISE_SCALES = np.linspace(0.9, 1.2, 7)  # of the starting noise, among which each person's is interpolated


class PainterBatch(NamedTuple):
    """What the painter learns from a batch of slices."""

    residual: Tensor  # float32 [B, 1, H, W]: (slice - plain picture) / scale
    plain: Tensor  # float32 [B, 1, H, W] in [0, 1], the decoder's picture of the first codes
    z_q: Tensor  # float32 [B, dim, h, w], their vectors
    phase: Tensor | None = None  # int64 [B], see `Painter.forward`


def painter_batch(codec: Codec, scale: float, images: Tensor, phase: Tensor | None = None) -> PainterBatch:
    """The batch of images [B, 1, H, W] in [0, 1]."""
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), codec.on.autocast(codec.autoencoder):
        codes = codec.autoencoder.quantizer.encode(codec.autoencoder.latents(images), depth=1)
        z_q = codec.autoencoder.embed(codes)
        plain = codec.autoencoder.decode_latents(z_q, 1).float().clamp(0, 1)
    return PainterBatch((images - plain) / scale, plain, z_q, phase)


class Passes:
    """Epochs of `steps` steps, each of which may be several passes over `batches`."""

    def __init__(self, batches: Batches, steps: int):
        self.batches, self.steps, self.batch_size = batches, steps, batches.batch_size

    def shuffled(self, seed: int, epoch: int, start: int = 0) -> Iterator[Tensor]:
        """An epoch's whole slices [B, 1, H, W] from step `start` on; the same for the same arguments."""
        first, skipped = divmod(epoch * self.steps + start, self.batches.steps)
        passes = (self.batches.shuffled(seed, n, skipped if n == first else 0) for n in count(first))
        return islice((images for batches in passes for images, _ in batches), self.steps - start)


def train_painter(run: Run, data: DataSet, settings: TrainSettings, codec: Codec, identity: str) -> None:
    """Train teacher and student; painter.pth holds the best one on validation people, in the end the student."""
    on, path = codec.on, run.folder / "painter.pth"
    batches = Batches(data.splits["train"], settings.painter_batch_size, on.device, None, on.rank, on.world_size)
    residuals = [painter_batch(codec, 1.0, part).residual for part in examples(codec, data.splits["train"]).split(32)]
    scale = round(float(torch.cat(residuals).std()), 4) or 1.0

    def new(steps: int) -> Painter:
        painter = Painter(codec.autoencoder.quantizer.dim, settings.painter_width, scale=scale, steps=steps)
        return painter.to(on.device, memory_format=torch.channels_last)

    if not run.is_past("painter"):
        train_teacher(run, data, settings, batches, codec, new(TEACHER_STEPS), identity)
    teacher = load_painter(path, codec.autoencoder).to(on.device, memory_format=torch.channels_last)
    train_student(run, data, settings, batches, codec, new(settings.painter_steps), teacher, identity)
    compute.from_first(lambda: fit_noise_scale(run, codec, data.splits["validate"]))


def train_teacher(
    run: Run, data: DataSet, settings: TrainSettings, batches: Batches, codec: Codec, painter: Painter, identity: str
) -> None:
    """Learn the flow from noise to slices; scored by its loss at `LOSS_TIMES`."""
    training, validation = (examples(codec, data.splits[name]) for name in ("train", "validate"))
    epochs, passes = divide(settings.painter_slices, TEACHER_EPOCHS, batches)
    average, optimizer = MovingAverage(painter, AVERAGE_DECAY), make_optimizer(painter, TEACHER_RATE)
    parts = {"painter": painter, "average": average, "optimizer": optimizer}
    stage = Stage(run, "painter", epochs, passes, parts, "validation loss", less_is_better=True)
    if not stage.resumed:
        if before := setup.painter_to_go_on_from(settings):
            painter.load_state_dict(before.state_dict())
        weights = sum(p.numel() for p in painter.parameters())
        run.log(f"painter: {weights:,} weights; standard deviation of slice - plain picture: {painter.scale:.3f}")

    @partial(Replay, codec.on)
    def step(images: Tensor) -> Tensor:
        batch = painter_batch(codec, painter.scale, *shift_and_mirror(images, codec.box))
        return teacher_step(painter, optimizer, batch, codec.on)

    for epoch in stage.remaining_epochs():
        for images in stage.steps(settings.seed):
            rate = anneal(optimizer, TEACHER_RATE, stage)
            loss = step(images)
            average.update_parameters(painter)
            stage.add(train_loss=loss, learning_rate=rate)

        row = stage.means()
        for name, slices in (("train", training), ("validation", validation)):
            losses = teacher_losses(average.module, codec, slices)
            row |= {f"{name}_loss_at_{t:g}": loss for t, loss in zip(LOSS_TIMES, losses, strict=True)}
        row["validation_loss"] = sum(losses) / len(losses)
        end_epoch(run, data, stage, codec, average.module, identity, epoch, row)


def train_student(
    run: Run,
    data: DataSet,
    settings: TrainSettings,
    batches: Batches,
    codec: Codec,
    painter: Painter,
    teacher: Painter,
    identity: str,
) -> None:
    """Learn to jump along the teacher's paths; scored by the loss on those for validation people."""
    validation = examples(codec, data.splits["validate"])
    epochs, passes = divide(int(STUDENT_SHARE * settings.painter_slices), STUDENT_EPOCHS, batches, painter.steps)
    painter.load_state_dict(teacher.state_dict())
    average, optimizer = MovingAverage(painter, AVERAGE_DECAY), make_optimizer(painter, STUDENT_RATE)
    # The teacher is saved, too: painter.pth will hold the student.
    parts = {"painter": painter, "average": average, "optimizer": optimizer, "teacher": teacher}
    stage = Stage(run, "student", epochs, passes, parts, "validation loss", less_is_better=True)

    @partial(Replay, codec.on)
    def walk(images: Tensor) -> tuple[PainterBatch, list[tuple[float, Tensor]]]:
        images = codec.box.crop(images)
        mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        batch = painter_batch(codec, painter.scale, torch.where(mirrored, images.flip(2), images))
        return batch, teacher_path(teacher, painter.steps, batch, codec.on)

    @partial(Replay, codec.on)
    def step(start: tuple[float, Tensor], end: tuple[float, Tensor], batch: PainterBatch) -> Tensor:
        return student_step(painter, optimizer, start, end, batch, codec.on)

    for epoch in stage.remaining_epochs():
        for images in stage.steps(settings.seed):
            rate = anneal(optimizer, STUDENT_RATE, stage)
            (batch, path), losses = walk(images), []
            for start, end in pairwise(path):
                losses.append(step(start, end, batch))
                average.update_parameters(painter)
            stage.add(train_loss=torch.stack(losses).mean(), learning_rate=rate)

        row = stage.means() | {"validation_loss": student_loss(average.module, teacher, codec, validation)}
        end_epoch(run, data, stage, codec, average.module, identity, epoch, row)


def divide(slices: int, max_epochs: int, batches: Batches, updates: int = 1) -> tuple[int, Passes]:
    """The number of epochs, none shorter than a pass over the set, and their steps, each of `updates` updates."""
    epochs = min(max_epochs, max(slices // batches.size, 1))
    return epochs, Passes(batches, max(slices // epochs // batches.batch_size // updates, 1))


def end_epoch(
    run: Run, data: DataSet, stage: Stage, codec: Codec, painter: Painter, identity: str, epoch: int, row: dict
) -> None:
    """Keep the painter if it is the best so far, draw what it paints, and close the epoch with its row."""
    loss = row["validation_loss"]
    if stage.is_best(-loss):
        content = {"kind": "painter", "autoencoder": identity, "epoch": epoch, "validation_loss": loss}
        state = checkpoint.halved(painter.state_dict())
        run.save("painter.pth", content | {"arguments": painter.arguments, "state": state})
    figures.draw_painted(run, codec, painter, data, stage.name, epoch, loss)
    stage.end_epoch(row)


def examples(codec: Codec, slices: Slices) -> Tensor:
    """Up to `LOSS_SLICES` slices, evenly chosen, float32 [n, 1, *box] in [0, 1] on the device."""
    chosen = np.unique(np.linspace(0, len(slices) - 1, LOSS_SLICES).round().astype(int))
    images = torch.from_numpy(np.array(slices.images[chosen]))[:, None]
    return codec.box.crop(images).to(codec.on.device).float() / 255


def shift_and_mirror(images: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """Whole slices [B, 1, H, W] -> [B, 1, *box], half of them mirrored, some shifted; and the shift as `phase` [B]."""
    n, (height, width), device = len(images), images.shape[2:], images.device
    shift = torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (n, 2), device=device)
    shift = shift * (torch.rand(n, 1, device=device) < SHIFTED)
    rows = (torch.arange(box.top, box.top + box.height, device=device) - shift[:, :1]) % height  # [B, h]
    columns = (torch.arange(box.left, box.left + box.width, device=device) - shift[:, 1:]) % width
    shifted = images[torch.arange(n, device=device)[:, None, None], 0, rows[:, :, None], columns[:, None]][:, None]
    mirrored = torch.rand(n, device=device) < 0.5
    down = torch.where(mirrored, -shift[:, 0], shift[:, 0])
    phase = BLOCK * (down % BLOCK) + shift[:, 1] % BLOCK
    return torch.where(mirrored[:, None, None, None], shifted.flip(2), shifted), phase


# ----------------------------------------------------------------------------------------------------
# Steps and losses


def make_optimizer(painter: Painter, rate: float) -> Muon:
    return muon(painter, rate, by_adam=(painter.fold, painter.unfold))


def anneal(optimizer: torch.optim.Optimizer, peak: float, stage: Stage) -> float:
    """Set the learning rate for the stage's next step; the rate, to log."""
    warm_up = min(WARM_UP, stage.total_steps / 10)
    rate = peak * constant_then_linear(stage.steps_done, stage.total_steps, warm_up, FALL)
    set_rate(optimizer, rate)
    return rate


def teacher_step(painter: Painter, optimizer: Muon, batch: PainterBatch, on: Compute) -> Tensor:
    """One step of the flow, at times between noise and slice, most of them in the middle; the loss."""
    residual, *conditioning = batch
    t = torch.randn(len(residual), device=on.device).sigmoid()  # Esser et al. 2024, section 3.1
    with on.autocast(painter):
        loss = flow_loss(painter, residual, t, torch.randn_like(residual), *conditioning).mean()
    update(loss, painter, optimizer, CLIP)
    return loss.detach()


def teacher_path(
    teacher: Painter, steps: int, batch: PainterBatch, on: Compute, noise: Tensor | None = None
) -> list[tuple[float, Tensor]]:
    """Times and states along the teacher's path from noise, `steps` + 1 of them, between which a student jumps."""
    stride = max(TEACHER_STEPS // steps, 1)
    noise = torch.randn_like(batch.residual) if noise is None else noise
    with torch.no_grad(), on.autocast(teacher):
        return list(teacher.path(batch.plain, batch.z_q, noise, stride * steps))[::stride]


def student_step(painter: Painter, optimizer: Muon, start, end, batch: PainterBatch, on: Compute) -> Tensor:
    """One step towards jumping from `start` to `end`, times and states of the teacher's path; the loss."""
    with on.autocast(painter):
        loss = jump_loss(painter, start, end, batch.plain, batch.z_q).mean()
    update(loss, painter, optimizer, CLIP)
    return loss.detach()


@torch.no_grad()
def teacher_losses(painter: Painter, codec: Codec, images: Tensor) -> list[float]:
    """The flow's loss on images [N, 1, H, W] at each of `LOSS_TIMES`, always with the same noise."""
    totals = torch.zeros(len(LOSS_TIMES), device=images.device)
    for (residual, *conditioning), noise in with_fixed_noise(painter, codec, images):
        for i, t in enumerate(LOSS_TIMES):
            times = torch.full((len(noise),), t, device=images.device)
            with codec.on.autocast():
                totals[i] += flow_loss(painter, residual, times, noise, *conditioning).sum()
    return (totals / len(images)).tolist()


@torch.no_grad()
def student_loss(painter: Painter, teacher: Painter, codec: Codec, images: Tensor) -> float:
    """The mean loss of jumps along the teacher's paths for images [N, 1, H, W], always with the same noise."""
    total = torch.zeros((), device=images.device)
    for batch, noise in with_fixed_noise(painter, codec, images):
        for start, end in pairwise(teacher_path(teacher, painter.steps, batch, codec.on, noise)):
            with codec.on.autocast():
                total += jump_loss(painter, start, end, batch.plain, batch.z_q).sum()
    return float(total / len(images) / painter.steps)


def with_fixed_noise(painter: Painter, codec: Codec, images: Tensor) -> Iterator[tuple[PainterBatch, Tensor]]:
    """Batches of images [N, 1, H, W], and starting noise for each."""
    generator = torch.Generator().manual_seed(0)
    for part in images.split(32):
        noise = torch.randn(part.shape, generator=generator).to(images.device)
        yield painter_batch(codec, painter.scale, part), noise


# ----------------------------------------------------------------------------------------------------
# The scale of the starting noise


def fit_noise_scale(run: Run, codec: Codec, slices: Slices) -> None:
    """Fit the scale of the starting noise to the validation people's grain; painter.pth keeps mean and deviation.

    Codes don't tell how grainy a scan is. So for each person that scale is found at which the painted slices have the
    real ones' grain in deep white matter, and `Painter.noise` draws from the distribution over people.
    """
    path = run.folder / "painter.pth"
    content, painter = checkpoint.load(path, "painter"), load_painter(path, codec.autoencoder)
    painting = Codec(codec.autoencoder, {"box": codec.box, "size": codec.size}, codec.on, painter)
    mean, deviation = noise_scale(painting, slices)
    content["state"]["noise_size"] = torch.tensor([mean, deviation]).half()
    run.save("painter.pth", content)
    run.log(f"student: scale of the starting noise {mean:.3f} +- {deviation:.3f}, drawn once per brain")


def noise_scale(codec: Codec, slices: Slices) -> tuple[float, float]:
    """Mean and standard deviation, over people, of the noise scale that gives painted slices the real ones' grain.

    (1, 0) where fewer than two people show white matter.
    """
    codes, people = codec.encode(slices.images, codec.box)[:1], np.array(slices.people)
    white_matter = [tissue.deep_white(image) for image in slices.images]

    def grains(pictures: np.ndarray) -> np.ndarray:
        """Mean grain of each person, NaN where no slice shows white matter."""
        each = np.array([tissue.grain(*pair) for pair in zip(pictures, white_matter, strict=True)])
        persons = [each[people == person] for person in np.unique(people)]
        return np.array([np.nanmean(own) if np.isfinite(own).any() else np.nan for own in persons])

    painted = []
    for scale in NOISE_SCALES:
        codec.painter.noise_size.copy_(torch.tensor([scale, 0.0]))
        painted.append(grains((codec.paint(codes, range(len(slices))) * 255).round()))
    scales = [
        np.interp(real, np.maximum.accumulate(grain), NOISE_SCALES)
        for real, grain in zip(grains(slices.images), np.stack(painted, axis=1), strict=True)
        if np.isfinite(real)
    ]
    return (float(np.mean(scales)), float(np.std(scales))) if len(scales) > 1 else (1.0, 0.0)
