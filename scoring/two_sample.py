"""Can a network tell them apart? A classifier two-sample test (Lopez-Paz and Oquab 2017).

A small convolutional network learns two kinds of slices from half of the people, and is tried on the other half. The
area under its ROC curve, the chance that it tells which slice of a pair is of the second kind, is 0.5 where both kinds
are one distribution, and 1 where each slice gives itself away. A distance in a fixed feature space sees what that space
was made to see; a network looks for whatever the difference is. At full size that can be the decoder's finest texture,
at half size it has to be anatomy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn.utils import skip_init

from dataset import content_box
from runtime.compute import Compute, cpu_has_bf16
from scoring.features import on_all_cores, unit_batch

SIZES = {"full": 1, "half": 2}  # name -> pixels down and across whose mean is one that the network sees
SEEDS = 3  # of the slices, of the people learnt from, of the network's weights and of its batches
LIMIT = 1000  # slices of a kind: more make a sharper judge, and a slower one
EPOCHS = 12  # after 5 some differences are not found yet
BATCH = 32  # slices, half of them of each kind
LEARNING_RATE = 2e-3  # at its height
CHANNELS = (24, 48, 96, 128)
DETAIL = 8  # times as large as in the slice: else the network would see fine texture only after many epochs


@dataclass(frozen=True)
class Kind:
    """Slices of one kind: uint8 [N, H, W], and the N people that they are of; each sample is one of its own."""

    images: np.ndarray
    people: Sequence[str]


class Classifier(nn.Module):
    """Slices, float32 [B, 1, H, W] in [0, 1] -> logits [B], large for those of the second kind."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        inner = (8, *CHANNELS)  # slice and detail, 2x2 pixels of each as channels
        # PyTorch's own initialisation would draw from the global generator.
        self.convolutions = nn.ModuleList(
            skip_init(nn.Conv2d, a, b, 3, stride=1 if i == 0 else 2, padding=1)
            for i, (a, b) in enumerate(zip(inner, CHANNELS, strict=False))
        )
        self.head = skip_init(nn.Linear, 2 * CHANNELS[-1], 1)
        for layer in (*self.convolutions, self.head):
            nn.init.kaiming_normal_(layer.weight, 0.2, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
        detail = x - F.avg_pool2d(x, 3, stride=1, padding=1)
        x = F.pixel_unshuffle(torch.cat((x - 0.5, DETAIL * detail), dim=1), 2)  # [B, 8, H/2, W/2]
        for convolution in self.convolutions:
            x = F.leaky_relu(convolution(x), 0.2)
        return self.head(torch.cat((x.mean(dim=(2, 3)), x.amax(dim=(2, 3))), dim=1))[:, 0]


def two_sample_test(draw: Callable[[int], Sequence[Kind]], seed: int = 0) -> dict[str, dict[str, float]]:
    """How well a network tells two kinds of slices apart.

    Nobody's slices are both learnt from and tried on, even where both kinds have some of the same people. There are as
    many of one kind as of the other. The networks learn on the CPU; the same arguments give the same figures there.

    Args:
        draw: a seed -> slices of either kind, of the same mix of levels.
    Returns:
        For each of `SIZES` the area under the ROC curve: its `mean`, `min` and `max` over `SEEDS` seeds.
    """
    tasks = [(size, seed + i) for size in SIZES.values() for i in range(SEEDS)]
    areas = on_all_cores(lambda task: area_under_curve(*draw(task[1]), *task), tasks, "two-sample test")
    summary = {"mean": np.mean, "min": np.min, "max": np.max}
    rows = zip(SIZES, np.reshape(areas, (len(SIZES), SEEDS)), strict=True)
    return {size: {key: float(f(row)) for key, f in summary.items()} for size, row in rows}


def area_under_curve(first: Kind, second: Kind, size: int, seed: int) -> float:
    """Under the ROC curve of one network that sees the mean of every `size` x `size` pixels."""
    box = content_box(second.images, least=content_box(first.images))
    first, second = (Kind(box.crop(kind.images), kind.people) for kind in (first, second))
    rng = np.random.default_rng(seed)
    learnt, tried = halves(first, second, rng)
    network = learn(learnt, size, rng, seed)
    logits = []
    with torch.inference_mode(), _on().autocast():
        for images in tried:
            parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
            logits.append(torch.cat([network(shrunk(part, size)).float() for part in parts]))
    labels = np.repeat((0, 1), [len(part) for part in logits])
    return float(roc_auc_score(labels, torch.cat(logits).numpy()))


def halves(first: Kind, second: Kind, rng: np.random.Generator) -> list[list[np.ndarray]]:
    """The slices of both kinds to learn from, and those to be tried on, of different people; as many of each kind."""
    learnt: set[str] = set()
    for people in (set(first.people), set(second.people) - set(first.people)):
        learnt.update(rng.permutation(sorted(people))[: len(people) // 2])
    parts = []
    for wanted in (True, False):
        rows = [np.flatnonzero([(person in learnt) == wanted for person in kind.people]) for kind in (first, second)]
        n = min(map(len, rows))
        kinds = zip((first, second), rows, strict=True)
        parts.append([kind.images[np.sort(rng.permutation(own)[:n])] for kind, own in kinds])
    return parts


def learn(kinds: Sequence[np.ndarray], size: int, rng: np.random.Generator, seed: int) -> Classifier:
    """A network that has learnt to tell two kinds of slices apart, uint8 [N, H, W] each."""
    generator = torch.Generator().manual_seed(seed)
    network = Classifier(generator).to(memory_format=torch.channels_last)
    n = len(kinds[0])
    share = min(BATCH // 2, n)  # of a batch
    steps = n // share
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, EPOCHS * steps)
    labels = torch.tensor((0.0, 1.0)).repeat_interleave(share)
    for _ in range(EPOCHS):
        orders = [rng.permutation(n)[: steps * share].reshape(steps, share) for _ in kinds]
        for rows in zip(*orders, strict=True):
            x = shrunk(np.concatenate([kind[own] for kind, own in zip(kinds, rows, strict=True)]), size)
            # Mirrored at random, as training's are: of so few people each would soon be known by heart.
            mirrored = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
            with _on().autocast():
                logits = network(torch.where(mirrored, x.flip(2), x))
            loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network


def shrunk(images: np.ndarray, size: int) -> torch.Tensor:
    """uint8 [N, H, W] -> float32 [N, 1, H / size, W / size] in [0, 1]."""
    return F.avg_pool2d(unit_batch(images), size)


def _on() -> Compute:
    return Compute(torch.device("cpu"), cpu_has_bf16())
