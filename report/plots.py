"""What does it look like? Every figure of the project, each a function from plain data to a file.

Pictures are numpy arrays [N, H, W] of any H and W, either uint8 in [0, 255] or float in [0, 1]; anything
else is a `ValueError`. They are drawn with row 0 at the top, in gray from 0 (black) to 1 (white), and every
pixel of a picture becomes a whole number of pixels of the figure.

`title` is the line that says what the figure was made from: data set, split, model ("synthetic demo set, test
split"). It opens the caption; each function adds the number of images and what the reader must know.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from PIL import Image

from report.style import (
    BLUE,
    GRID,
    INK,
    ORANGE,
    VERMILION,
    Pictures,
    chart,
    chart_of,
    log_scale,
    whole_numbers,
    write_head,
)
from runtime.files import atomic
from runtime.wording import counted
from scoring.scores import SSIM_PASS

PANEL_COLUMNS = 4  # tiles beside each other in one of two panels
ERROR_GAIN = 5  # error maps show this many times the absolute error, since the error itself is all but black


def unit_range(pictures: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W] in [0, 255] or float in [0, 1] -> float32 in [0, 1]; `ValueError` for anything else."""
    pictures = np.asarray(pictures)
    if pictures.ndim != 3 or not len(pictures):
        raise ValueError(f"pictures must be [N, H, W] with N >= 1, got shape {list(pictures.shape)}")
    if pictures.dtype == np.uint8:
        return pictures.astype(np.float32) / 255
    if not np.issubdtype(pictures.dtype, np.floating):
        raise ValueError(f"pictures must be uint8 or float, got {pictures.dtype}")
    if not (pictures.min() >= 0 and pictures.max() <= 1):  # NaN compares false, so it ends here too
        raise ValueError(f"float pictures must lie in [0, 1], got [{pictures.min():g}, {pictures.max():g}]")
    return pictures.astype(np.float32)


def _pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as `unit_range` gives them; `ValueError` when their shapes differ."""
    first, second = unit_range(first), unit_range(second)
    if first.shape != second.shape:
        raise ValueError(f"pictures must pair up, got shapes {list(first.shape)} and {list(second.shape)}")
    return first, second


# ----------------------------------------------------------------------------------------------- curves


def _series(rows: Sequence[Mapping], key: str) -> tuple[list[float], list[float]]:
    """Epochs and values of the rows that have `key`; a CSV's cell is empty where there was nothing to say."""
    pairs = [(float(row["epoch"]), float(row[key])) for row in rows if row.get(key) not in (None, "")]
    return [epoch for epoch, _ in pairs], [value for _, value in pairs]


def _levels(rows: Sequence[Mapping], name: str) -> dict[str, str]:
    """The keys `name_0`, `name_1`, ... that the rows have, each with its label; no label for a single one."""
    found = {int(key[len(name) + 1 :]) for row in rows for key in row if key.startswith(f"{name}_")}
    return {f"{name}_{i}": f"level {i}" if len(found) > 1 else "" for i in sorted(found)}


def _panel(
    axes: Axes, rows: Sequence[Mapping], heading: str, unit: str, lines: Mapping[str, str], log: bool = False
) -> None:
    """Draw each key of `lines` (key -> label) over the epochs."""
    for key, label in lines.items():
        epochs, values = _series(rows, key)
        # Few epochs are shown as points too: one epoch alone would be an invisible line.
        axes.plot(epochs, values, label=label, marker="o" if len(epochs) <= 40 else None)
    whole_numbers(axes.xaxis)
    axes.set(xlabel="epoch", ylabel=unit)
    if log:
        log_scale(axes)
    write_head(axes, heading)


def training_curves(rows: Sequence[Mapping], path: Path, title: str) -> None:
    """The autoencoder's training: losses and SSIM in log scale, use of the codes.

    rows: one mapping an epoch, as `csv.DictReader` reads metrics.csv, with `epoch`, `train_reconstruction`,
        `train_commitment`, `validation_ssim`, `perplexity_0`, `codes_used_0` and so on for each level. Cells
        may be strings; empty ones are left out. The scale of SSIM is the log of 1 - SSIM, the part still missing.
        A number of codes used that never changes is told in the caption.
    """
    epochs, ssims = _series(rows, "validation_ssim")
    missing = [{"epoch": epoch, "missing": 1 - ssim} for epoch, ssim in zip(epochs, ssims, strict=True)]
    panels = [  # rows, heading, unit, lines, log scale
        (rows, "Reconstruction loss (train)", "loss per pixel (log scale)", {"train_reconstruction": ""}, True),
        (rows, "Commitment loss (train)", "loss per latent (log scale)", {"train_commitment": ""}, True),
        (missing, "SSIM (validation)", "SSIM", {"missing": ""}, True),
        (rows, "Perplexity of the codes", "codes", _levels(rows, "perplexity"), False),
    ]
    caption = f"{title}; {counted(len(rows), 'epoch')}. The scale of SSIM is log of 1 - SSIM."
    used = _levels(rows, "codes_used")
    if len(numbers := {value for key in used for value in _series(rows, key)[1]}) == 1:
        caption += f" Codes used in every epoch{', at each level' if len(used) > 1 else ''}: {numbers.pop():,.0f}."
    elif numbers:
        panels.append((rows, "Codes used in an epoch", "codes", used, False))
    with chart_of(path, "Training the autoencoder", caption, len(panels)) as grid:
        for axes, (its_rows, heading, unit, lines, log) in zip(grid, panels, strict=True):
            _panel(axes, its_rows, heading, unit, lines, log)
            if unit == "SSIM":
                _as_ssim(axes)


def _as_ssim(axes: Axes) -> None:
    """Label an axis in log of 1 - SSIM with the SSIM, the best at the top."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda missing, _: f"{1 - missing:.4g}"))
    axes.invert_yaxis()


GAN_PANELS = [  # (heading, unit, log scale, {key of metrics.csv: label})
    ("Losses", "loss", False, {"generator_loss": "generator", "discriminator_loss": "discriminator"}),
    ("Discriminator's scores", "logit", False, {"score_real": "real", "score_fake": "fake"}),
    ("Sign accuracy", "share of images", False, {"accuracy_real": "real", "accuracy_fake": "fake"}),
    ("Gradient penalties", "squared gradient norm", True, {"r1": "R1 (real)", "r2": "R2 (fake)"}),
    ("Code histograms, fake against real", "total variation", False, {"histogram_distance": ""}),
    (
        "Frechet distance to validation people",
        "distance",
        True,
        {"frechet_pca": "PCA", "frechet_randconv": "random network", "frechet_folds": "folds"},
    ),
]


def gan_curves(rows: Sequence[Mapping], path: Path, title: str) -> None:
    """The GAN's training: one panel for each group of `GAN_PANELS` that the rows have.

    rows: one mapping an epoch with `epoch` and any of `generator_loss`, `discriminator_loss`, `score_real`,
        `score_fake` (mean logits), `accuracy_real`, `accuracy_fake` (share given the right sign), `r1`, `r2`
        (mean squared gradient norms), `histogram_distance` (total variation in [0, 1] between the code
        histograms of fakes and reals), `frechet_pca`, `frechet_randconv`, `frechet_folds` (the judge's
        distances by feature space). `ValueError` when none is there.
    """
    present = {key for row in rows for key, value in row.items() if value not in (None, "")}
    panels = [(*panel, {k: label for k, label in keys.items() if k in present}) for *panel, keys in GAN_PANELS]
    panels = [panel for panel in panels if panel[-1]]
    if not panels:
        raise ValueError(f"no column of a GAN's training among {sorted(present)}")
    caption = f"{title}; {counted(len(rows), 'epoch')}."
    with chart_of(path, "Training the GAN", caption, len(panels)) as grid:
        for axes, (heading, unit, log, lines) in zip(grid, panels, strict=True):
            _panel(axes, rows, heading, f"{unit} (log scale)" if log else unit, lines, log)
            if unit in ("share of images", "total variation"):
                axes.set_ylim(-0.03, 1.03)


def likelihood_curves(rows: Sequence[Mapping], path: Path, title: str) -> None:
    """Bits per code on training and validation people; rows with `epoch`, `train_bits`, `validation_bits`.

    And `validation_bits_between`, where the prior is shown the slices below and above.
    """
    epochs, bits = _series(rows, "validation_bits")
    best = int(np.argmin(bits))
    lowest = f"Circle: lowest on validation, {bits[best]:.3f} bits per code in epoch {epochs[best]:g}."
    caption = f"{title}. {lowest}"
    with chart_of(path, "Training the autoregressive prior", caption, 1) as [axes]:
        axes.plot(epochs[best], bits[best], "o", markersize=9, fillstyle="none", color=INK)
        lines = {"train_bits": "train", "validation_bits": "validation"}
        if any(row.get("validation_bits_between") for row in rows):
            lines = {"train_bits": "train, half of them beside others", "validation_bits": "validation, each alone"}
            lines["validation_bits_between"] = "validation, given the slices below and above"
        _panel(axes, rows, "Cost of a code", "bits per code", lines)


# -------------------------------------------------------------------------------------- reconstructions


def reconstructions(
    originals: np.ndarray, reconstructions: np.ndarray, labels: Sequence[str], path: Path, title: str
) -> None:
    """Rows of originals, reconstructions and error maps (5 x absolute error; 1 and above share a colour).

    originals, reconstructions: [N, H, W], a column each; labels: N texts above them (slice name, SSIM).
    """
    originals, reconstructions = _pairs(originals, reconstructions)
    n, gain = len(originals), f"{ERROR_GAIN} x"
    side = ["original", "reconstruction", f"{gain} error"]
    grid = Pictures(originals.shape[1:], 3, n, [list(labels), [""] * n, [""] * n], side, gutter=70)
    for column, (original, reconstruction) in enumerate(zip(originals, reconstructions, strict=True)):
        grid.show(0, column, original)
        grid.show(1, column, reconstruction)
        grid.show_map(2, column, ERROR_GAIN * np.abs(original - reconstruction), "magma", 1)
    rows = f"From top to bottom: original, reconstruction, {gain} |original - reconstruction|, black (0) to pale (1)."
    caption = f"{title}; {counted(n, 'slice')}. {rows}"
    grid.save(path, "Originals and reconstructions", caption, (2, f"{gain} |error|", "magma", 1))


def code_map(image: np.ndarray, codes: Sequence[np.ndarray], decoded: np.ndarray, path: Path, title: str) -> None:
    """A slice [H, W], its code grids (int [h, w], one a level) and the slice decoded from them, [H, W]."""
    image, decoded = _pairs(image[None], decoded[None])
    sizes = [f"{len(grid)} x {len(grid[0])}" for grid in codes]
    names = [f"codes, level {i}, {size}" for i, size in enumerate(sizes)] if len(codes) > 1 else [f"codes, {sizes[0]}"]
    highest = max(1, *(int(grid.max()) for grid in codes))
    grid = Pictures(image.shape[1:], 1, len(codes) + 2, [["slice", *names, "decoded"]], gutter=70)
    grid.show(0, 0, image[0])
    for place, indices in enumerate(codes, start=1):
        grid.show_map(0, place, indices, "viridis", highest)
    grid.show(0, len(codes) + 1, decoded[0])
    caption = f"{title}; 1 slice. Colour is the code's index; codes of near indices need not look alike."
    grid.save(path, "From slice to codes and back", caption, (0, "index of the code", "viridis", highest))


def code_depths(image: np.ndarray, decoded: np.ndarray, labels: Sequence[str], path: Path, title: str) -> None:
    """A slice [H, W], and what the first few of its codes per position become, [N, H, W], with N labels."""
    tiles = np.concatenate([unit_range(image[None]), unit_range(decoded)])
    grid = Pictures(image.shape, 1, len(tiles), [["slice", *labels]])
    for column, tile in enumerate(tiles):
        grid.show(0, column, tile)
    caption = f"{title}; 1 slice, and what is decoded from the first of its codes per position."
    grid.save(path, "What each further code adds", caption)


def ssim_distribution(scores: Sequence[float], path: Path, title: str) -> None:
    """Histogram of the slices' SSIM [N], and every slice from lowest to highest."""
    scores = np.sort(np.asarray(scores, dtype=np.float64))
    n, passed = len(scores), int((scores >= SSIM_PASS).sum())
    caption = (
        f"{title}; {counted(n, 'slice')}. Mean {scores.mean():.4f}, standard deviation {scores.std():.4f}, "
        f"lowest {scores[0]:.4f}, highest {scores[-1]:.4f}; {passed:,} of {n:,} at or above {SSIM_PASS}."
    )
    with chart_of(path, "SSIM of the reconstructions", caption, 2) as (left, right):
        left.hist(scores, bins=min(40, max(5, n // 8)), color=BLUE, edgecolor="white", linewidth=0.5)
        left.axvline(scores.mean(), color=INK, linestyle="--", linewidth=1.2, label=f"mean, {scores.mean():.4f}")
        left.set(xlabel="SSIM", ylabel="slices")
        whole_numbers(left.yaxis)
        right.plot(np.arange(1, n + 1), scores, marker="o" if n <= 40 else None)
        if passed < n:  # else the line would lie far below all slices, which would look alike
            right.axhline(SSIM_PASS, color=VERMILION, linestyle="--", linewidth=1.2, label=f"{SSIM_PASS}")
        right.set(xlabel="rank of the slice", ylabel="SSIM")
        whole_numbers(right.xaxis)
        write_head(left, "Distribution")
        write_head(right, "Every slice, lowest first")


def code_usage(histograms: Sequence[np.ndarray], path: Path, title: str) -> None:
    """How often each code is used, most frequent first; a line for each level's counts (int [K])."""
    number = sum(int(np.sum(counts)) for counts in histograms)
    used = [f"{np.count_nonzero(counts):,} of {len(counts):,} used" for counts in histograms]
    alike = len(used) > 1 and len(set(used)) == 1
    at_each = f" {used[0]} at each level." if alike else ""
    caption = f"{title}; {counted(number, 'code')} counted.{at_each} Dotted: every code used alike."
    with chart_of(path, "Use of the codebook", caption, 1) as [axes]:
        for level, counts in enumerate(histograms):
            share = np.sort(counts[counts > 0])[::-1] / np.sum(counts)
            perplexity = math.exp(-(share * np.log(share)).sum())
            name = f"level {level}: " if len(histograms) > 1 else ""
            label = f"{name}{'' if alike else f'{used[level]}, '}perplexity {perplexity:.0f}"
            axes.plot(np.arange(1, len(share) + 1), share, marker="o" if len(share) == 1 else None, label=label)
        for size in {len(counts) for counts in histograms}:
            axes.axhline(1 / size, color=INK, linestyle=":", linewidth=1.2)
        axes.set(xlabel="rank of the code", ylabel="share of all codes (log scale)")
        log_scale(axes)
        write_head(axes, "Share of each code, most frequent first")


def rate_distortion(rows: Sequence[Mapping], path: Path, title: str) -> None:
    """SSIM over bytes per image; rows with `name` (codec or model), `bytes` and `ssim` (means over images).

    Rows of one name make one line. A name with "VQ-VAE" in it is one of this project's models and drawn bold.
    """
    what = "Mean SSIM (7x7 uniform window) over mean bytes per image; the scale of SSIM is log of 1 - SSIM."
    caption = f"{title}. {what}"
    with chart(path, "Quality at a given rate", caption, 8, 5.4) as figure:
        axes = figure.subplots()
        for number, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
            points = sorted((float(row["bytes"]), 1 - float(row["ssim"])) for row in rows if row["name"] == name)
            ours = "vqvae" in name.lower().replace("-", "")
            style = {"linewidth": 2.4, "markersize": 10} if ours else {"linewidth": 1.2, "markersize": 5}
            marker = "*" if ours else "osD^vP"[number % 6]  # shape as well as colour tells the lines apart
            axes.plot(*zip(*points, strict=True), label=name, marker=marker, **style)
        axes.set(xlabel="bytes per image (log scale)", ylabel="SSIM")
        log_scale(axes, "x")
        log_scale(axes, "y")
        _as_ssim(axes)
        write_head(axes, "Up and left is better")


# ---------------------------------------------------------------------------------------------- samples


def _columns(n: int, shape: tuple[int, ...]) -> int:
    """So many columns that `n` tiles of `shape` (H, W) fill about a square."""
    return min(n, math.ceil(math.sqrt(n * shape[0] / shape[1])))


def sample_grid(images: np.ndarray, path: Path, title: str, labels: Sequence[str] | None = None) -> None:
    """Samples [N, H, W] in reading order; `labels` are N texts above them (their seeds, say)."""
    images = unit_range(images)
    columns = _columns(len(images), images.shape[1:])
    rows = math.ceil(len(images) / columns)
    texts = [*(labels or [""] * len(images)), *[""] * (rows * columns - len(images))]
    texts = [texts[row * columns : (row + 1) * columns] for row in range(rows)]
    grid = Pictures(images.shape[1:], rows, columns, texts)
    for index, image in enumerate(images):
        grid.show(*divmod(index, columns), image)
    grid.save(path, "Samples", f"{title}; {counted(len(images), 'sample')}.")


def samples_beside_real(
    samples: np.ndarray, others: np.ndarray, path: Path, title: str, kind: str = "real slice"
) -> None:
    """Samples [N, H, W] on the left, as many other slices of one `kind` on the right, both in reading order."""
    samples, others = _pairs(samples, others)
    n = len(samples)
    half = min(n, PANEL_COLUMNS)
    rows = math.ceil(n / half)
    head = ["samples", *[""] * (half - 1), f"{kind}s", *[""] * (half - 1)]
    grid = Pictures(samples.shape[1:], rows, 2 * half, [head, *[[""] * 2 * half] * (rows - 1)], split=half)
    for index in range(n):
        row, column = divmod(index, half)
        grid.show(row, column, samples[index])
        grid.show(row, half + column, others[index])
    grid.save(path, f"Samples beside {kind}s", f"{title}; {counted(n, 'sample')}, {counted(n, kind)}.")


def nearest_training(
    samples: np.ndarray,
    neighbours: np.ndarray,
    ssims: Sequence[float],
    names: Sequence[str],
    path: Path,
    title: str,
) -> None:
    """Samples [N, H, W] above the training slices nearest to them, with the pairs' SSIMs and the names."""
    samples, neighbours = _pairs(samples, neighbours)
    n = len(samples)
    labels = [[f"SSIM {ssim:.3f}" for ssim in ssims], list(names)]
    grid = Pictures(samples.shape[1:], 2, n, labels, ["sample", "nearest slice"])
    for column in range(n):
        grid.show(0, column, samples[column])
        grid.show(1, column, neighbours[column])
    caption = f"{title}; {counted(n, 'sample')}, each above the training slice nearest to it, or its mirror image."
    grid.save(path, "Closest samples beside training slices", caption)


def memorisation(samples: Sequence[float], held_out: Sequence[float], path: Path, title: str) -> None:
    """SSIM of samples [N] and of held-out slices [M] with their nearest training slices, as distributions.

    The line is the threshold of memorisation, above which 1 % of the held-out slices lie.
    """
    threshold = float(np.quantile(held_out, 0.99))
    share = 100 * float(np.mean(np.asarray(samples) > threshold))
    counts = f"{counted(len(samples), 'sample')}, {counted(len(held_out), 'held-out slice')}"
    caption = f"{title}; {counts}. Dashed: SSIM {threshold:.3f}; {share:.1f} % of the samples lie above it."
    bins = np.linspace(min(*samples, *held_out), max(*samples, *held_out), 41)
    with chart_of(path, "Likeness to the training slices", caption, 1) as [axes]:
        for values, label, colour in ((held_out, "held-out slices", VERMILION), (samples, "samples", BLUE)):
            weights = np.full(len(values), 100 / len(values))
            axes.hist(values, bins, weights=weights, histtype="step", linewidth=1.8, color=colour, label=label)
        axes.axvline(threshold, color=INK, linestyle="--", linewidth=1.2, label="nearest 1 % of held-out slices")
        axes.set(xlabel="SSIM with the nearest training slice", ylabel="share, %")
        write_head(axes, "Nearest training slice")


# ------------------------------------------------------------------------------------------ whole brains

SEAM, ENLARGED = 2, 2  # pixels between planes, and how large each pixel is shown
PLANES = ("sagittal", "coronal", "axial")  # by the axis that each is a slice along
OFF_MIDDLE = 0.38  # where the first of the two other planes lies: beside the cleft between the hemispheres


def three_planes(
    volumes: np.ndarray, path: Path, title: str, others: np.ndarray | None = None, axis: int = 2, kind: str = "real"
) -> None:
    """Brains [V, levels, H, W] in three planes, each above one of `others`, of a `kind`, where there are any.

    `axis`: what the levels follow, 0 to the right, 1 to the front, 2 upwards.
    """
    tiles = [_planes(unit_range(volume)) for volume in volumes]
    n, there = len(tiles), others is not None and len(others) > 0
    rows = ["sample", *([f"{kind} brain"] if there else [])]
    grid = Pictures(tiles[0].shape, len(rows), n, side=rows)
    for column, tile in enumerate(tiles):
        grid.show(0, column, tile)
    for column, other in enumerate(others[:n] if there else ()):
        grid.show(1, column, _planes(unit_range(other)))
    own, (first, second) = PLANES[axis], (plane for i, plane in enumerate(PLANES) if i != axis)
    which = f"from above: {own} at the middle level, {first} beside the middle, {second} in the middle"
    below = f" Below: {counted(n, f'{kind} brain')}." if there else ""
    grid.save(path, "Whole brains in three planes", f"{title}; {counted(n, 'sample')}, each {which}.{below}")


def _planes(volume: np.ndarray) -> np.ndarray:
    """A brain [levels, H, W] as one picture: its middle slice, below it two cuts across all levels, the last on top."""
    levels, height, width = volume.shape
    across = [volume[::-1, round(OFF_MIDDLE * height)], volume[::-1, :, width // 2]]
    gap = np.zeros((SEAM, max(height, width)), volume.dtype)
    parts = []
    for plane in (volume[levels // 2], *across):
        parts += [np.pad(plane, ((0, 0), (0, gap.shape[1] - plane.shape[1]))), gap]
    return np.concatenate(parts[:-1]).repeat(ENLARGED, 0).repeat(ENLARGED, 1)


VOLUME_PANELS = {  # key of the curves -> heading, unit
    "tissue": ("Tissue", "pixels"),
    "ventricle": ("Ventricles", "pixels"),
    "ventricle_jump": ("Ventricles, change to the next level", "pixels"),
    "neighbour_ssim": ("Likeness to the next level", "SSIM"),
}
VOLUME_LINES = {"train": ("training", INK), "held_out": ("held-out", VERMILION), "baseline": ("baseline", ORANGE)}


def volume_curves(verdict: Mapping, path: Path, title: str) -> None:
    """What runs from level to level, real and sampled: the `curves` of `VolumeJudge.score`'s verdict."""
    kinds = VOLUME_LINES | {"sampled": ("samples", BLUE)}
    kinds = {kind: line for kind, line in kinds.items() if kind in verdict["curves"]}
    counts = ", ".join(f"{verdict[kind]:,} {label}" for kind, (label, _) in kinds.items())
    bands = "10th to 90th percentile: gray for training, dotted for samples."
    caption = f"{title}; volumes: {counts}. Lines: means at each level. {bands}"
    with chart_of(path, "Whole brains, level by level", caption, 4) as grid:
        for axes, (key, (heading, unit)) in zip(grid, VOLUME_PANELS.items(), strict=True):
            for kind, (label, colour) in kinds.items():
                mean, low, high = (verdict["curves"][kind][key][name] for name in ("mean", "low", "high"))
                levels = verdict["levels"][: len(mean)]
                axes.plot(levels, mean, color=colour, label=label)
                if kind == "train":
                    axes.fill_between(levels, low, high, color=GRID)
                if kind == "sampled":
                    axes.plot(levels, np.transpose([low, high]), ":", color=colour, linewidth=1)
            axes.set(xlabel="level", ylabel=unit)
            write_head(axes, heading)


# ------------------------------------------------------------------------------------------- animations


def epoch_frame(
    originals: np.ndarray, made: np.ndarray, epoch: int, score: str, path: Path, title: str, what: str
) -> None:
    """One frame of a training's animation: originals [N, H, W] above what is `made` of them, and the epoch's score.

    `what` says of each row below what it is. For one N, H, W and title every epoch's frame has the same size.
    """
    originals, made = _pairs(originals, made)
    n = len(originals)
    labels = [["original", *[""] * (n - 1)], [what, *[""] * (n - 1)]]
    grid = Pictures(originals.shape[1:], 2, n, labels)
    for column in range(n):
        grid.show(0, column, originals[column])
        grid.show(1, column, made[column])
    caption = f"{title}; {counted(n, 'slice')}, the same in every frame; the score is of the whole validation split."
    grid.save(path, f"Epoch {epoch}, {score}", caption, foot=False)


def _save_gif(frames: list[Image.Image], path: Path, milliseconds: list[int], caption: str) -> None:
    """An endless GIF with its caption as comment."""
    options = {"save_all": True, "append_images": frames[1:], "duration": milliseconds, "loop": 0}
    with atomic(path) as file:
        frames[0].save(file, "GIF", comment=caption.encode(), **options)


def animate(frame_paths: Sequence[Path], path: Path, seconds_per_frame: float) -> None:
    """The frames of `epoch_frame` as one endless GIF that rests four frames' time on the last.

    Raises `ValueError` when there are no frames or they differ in size.
    """
    frames = []
    for frame_path in frame_paths:
        with Image.open(frame_path) as frame:
            caption = frame.info.get("Description", "")
            frames.append(frame.convert("L"))  # 256 grays are the GIF's whole palette, so slices stay exact
    sizes = {frame.size for frame in frames}
    if len(sizes) != 1:
        raise ValueError(f"an animation needs frames of one size, got {sorted(sizes)}")
    step = round(1000 * seconds_per_frame)
    _save_gif(frames, path, [step] * (len(frames) - 1) + [4 * step], caption)


def walk_gif(images: np.ndarray, path: Path, title: str = "") -> None:
    """A walk through pictures [N, H, W] as an endless GIF, there and back, 80 ms a picture."""
    caption = f"{title}{'; ' if title else ''}{counted(len(images), 'picture')}, there and back."
    pixels = np.round(255 * unit_range(images)).astype(np.uint8)
    zoom = max(1, 256 // max(pixels.shape[1:]))
    frames = [Image.fromarray(picture.repeat(zoom, 0).repeat(zoom, 1)) for picture in pixels]
    frames += frames[-2:0:-1]
    _save_gif(frames, path, [80] * len(frames), caption)
