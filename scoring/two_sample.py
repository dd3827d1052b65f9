"""Can a network tell two sets of slices apart? A classifier two-sample test (Lopez-Paz and Oquab 2017).

A small convolutional network learns to tell the sets apart for as long as it gets better on people whom it doesn't
learn from, and is tested on yet other people. The area under its ROC curve is 0.5 where both sets follow one
distribution, and 1 where each slice gives itself away. A distance in a fixed feature space sees what that space was
made to see; a network looks for whatever the difference is: at full size that can be the finest texture, at half size
it has to be anatomy. A network learns less from fewer slices: only areas from equal numbers can be compared.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.utils import skip_init
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dataset import content_box
from runtime.compute import Compute, cpu_has_bf16
from scoring.batches import on_all_cores, unit_batch

POOLING = {"full": 1, "half": 2}  # name of a size -> side, in pixels, of the squares whose mean the network sees
FOLDS = 3  # networks, each tested on another third of the people
PARTS = 2 * FOLDS  # of the people: three to learn from, one for validation, two for the test
MAX_EPOCHS = 16
PATIENCE = 4  # epochs without a better area on the validation people
BATCH = 32  # slices, half of them from each set
LEARNING_RATE = 2e-3
AVERAGE_DECAY = 0.98  # per step, of the average of the weights, which is what is validated and tested
CHANNELS = (48, 96, 128)
BLOCK = 4  # side, in pixels, of the squares whose pixels are the first layer's channels
DETAIL_GAIN = 8  # without it the network would see fine texture only after many epochs


class Classifier(nn.Module):
    """Slices, float32 [B, 1, H, W] in [0, 1] -> logits [B], large for those of the second set."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        widths = (2 * BLOCK**2, *CHANNELS)
        # PyTorch's own initialisation would draw from the global generator.
        self.convolutions = nn.ModuleList(
            skip_init(nn.Conv2d, a, b, 3, stride=1 if i == 0 else 2, padding=1)
            for i, (a, b) in enumerate(zip(widths, CHANNELS, strict=False))
        )
        self.head = skip_init(nn.Linear, 2 * CHANNELS[-1], 1)
        for layer in (*self.convolutions, self.head):
            nn.init.kaiming_normal_(layer.weight, 0.2, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, -x.shape[-1] % BLOCK, 0, -x.shape[-2] % BLOCK))
        detail = x - F.avg_pool2d(x, 3, stride=1, padding=1)
        x = F.pixel_unshuffle(torch.cat((x - 0.5, DETAIL_GAIN * detail), dim=1), BLOCK)  # [B, 32, H/4, W/4]
        for convolution in self.convolutions:
            x = F.leaky_relu(convolution(x), 0.2)
        return self.head(torch.cat((x.mean(dim=(2, 3)), x.amax(dim=(2, 3))), dim=1))[:, 0]


def two_sample_test(
    first: np.ndarray, first_people: Sequence[str], second: np.ndarray, second_people: Sequence[str], seed: int = 0
) -> dict[str, dict[str, float]]:
    """How well networks tell two sets of slices apart.

    Args:
        first, second: uint8 [N, H, W] and [M, H, W], with the same mix of levels.
        first_people, second_people: whom each slice shows, at least `PARTS` people in each set.
    Returns:
        For each size of `POOLING` the area under the ROC curve: `mean`, `min` and `max` over the three networks. The
        same arguments give the same figures on the same machine.
    """
    box = content_box(second, least=content_box(first))
    pooled = {
        size: [F.avg_pool2d(unit_batch(box.crop(images)), side) for images in (first, second)]
        for size, side in POOLING.items()
    }
    parts = parts_by_person(first_people, second_people, seed)
    tasks = [(size, fold) for size in POOLING for fold in range(FOLDS)]
    areas = on_all_cores(lambda task: area_of_fold(pooled[task[0]], parts, task[1], seed), tasks, "two-sample test")
    summary = {"mean": np.mean, "min": np.min, "max": np.max}
    rows = zip(POOLING, np.reshape(areas, (len(POOLING), FOLDS)), strict=True)
    return {size: {key: float(f(row)) for key, f in summary.items()} for size, row in rows}


def parts_by_person(first: Sequence[str], second: Sequence[str], seed: int) -> list[np.ndarray]:
    """The part, 0 to 5, of each slice in both sets: one for all of a person's slices, whichever set they are in."""
    generator = np.random.default_rng(seed)
    part_of: dict[str, int] = {}
    for people in (set(first), set(second) - set(first)):
        part_of |= {person: i % PARTS for i, person in enumerate(generator.permutation(sorted(people)).tolist())}
    return [np.array([part_of[person] for person in people]) for people in (first, second)]


def area_of_fold(sets: Sequence[Tensor], parts: Sequence[np.ndarray], fold: int, seed: int) -> float:
    """Area under the ROC curve of one network on the people of two parts of the six, from slices [N, 1, H, W]."""
    test, validation = [2 * fold, 2 * fold + 1], [(2 * fold + 2) % PARTS]
    learn = sorted(set(range(PARTS)) - {*test, *validation})
    learn, validation, test = (
        [torch.from_numpy(np.flatnonzero(np.isin(part, own))) for part in parts] for own in (learn, validation, test)
    )
    network = train_classifier(sets, learn, validation, seed * FOLDS + fold)
    return area_under_curve(network, sets, test)


def train_classifier(
    sets: Sequence[Tensor], learn: Sequence[Tensor], validation: Sequence[Tensor], seed: int
) -> nn.Module:
    """The network that tells the `validation` rows of both sets apart best, of those that `learn` leads to."""
    generator = torch.Generator().manual_seed(seed)
    network = Classifier(generator).to(memory_format=torch.channels_last)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE_DECAY))
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    n = min(map(len, learn))
    half = min(BATCH // 2, n)
    labels = torch.tensor((0.0, 1.0)).repeat_interleave(half)
    best, best_epoch, weights = -1.0, 0, {}
    for epoch in range(MAX_EPOCHS):
        orders = [rows[torch.randperm(len(rows), generator=generator)].split(half)[: n // half] for rows in learn]
        for batch in zip(*orders, strict=True):
            x = torch.cat([images[rows] for images, rows in zip(sets, batch, strict=True)])
            # Mirrored at random: the network would soon know so few people by heart.
            mirrored = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
            with bf16():
                logits = network(torch.where(mirrored, x.flip(2), x))
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(logits.float(), labels).backward()
            optimizer.step()
            average.update_parameters(network)
        if (area := area_under_curve(average, sets, validation)) > best:
            best, best_epoch = area, epoch
            weights = {name: value.clone() for name, value in average.state_dict().items()}
        elif epoch - best_epoch == PATIENCE:
            break
    average.load_state_dict(weights)
    return average


@torch.inference_mode()
def area_under_curve(network: nn.Module, sets: Sequence[Tensor], rows: Sequence[Tensor]) -> float:
    """Area under the network's ROC curve on these rows of both sets."""
    with bf16():
        logits = [
            torch.cat([network(images[some]).float() for some in own.split(BATCH)])
            for images, own in zip(sets, rows, strict=True)
        ]
    labels = np.repeat((0, 1), [len(part) for part in logits])
    return float(roc_auc_score(labels, torch.cat(logits).numpy()))


def bf16() -> torch.autocast:
    """Half of the time of float32 on processors that have it."""
    return Compute(torch.device("cpu"), cpu_has_bf16()).autocast()
