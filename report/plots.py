"""What does it look like? Every figure of the project, each a function from plain data to a file of the same name.

Pictures are numpy arrays [N, H, W] of any H and W, either uint8 in [0, 255] or float in [0, 1]. Row 0 is drawn at the
top, in gray from black (0) to white (1).

`title` says what the figure was made from: data set, split, model ("synthetic demo set, test split"). It opens the
caption; each function adds the number of images and what the reader must know.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from report.style import (
    BLUE,
    GRID,
    INK,
    MARGIN,
    ORANGE,
    VERMILION,
    chart,
    coloured,
    finish,
    log_scale,
    save_tiles,
    tile,
    whole_numbers,
    write_on,
)
from runtime.files import atomic
from runtime.wording import counted
from scoring.scores import SSIM_PASS

PANEL_COLUMNS = 4  # tiles beside each other in one of two panels
ERROR_GAIN = 5  # error maps show this many times the absolute error, since the error itself is all but black


def to_bytes(pictures: np.ndarray) -> np.ndarray:
    """uint8, or float in [0, 1], as uint8."""
    return pictures if pictures.dtype == np.uint8 else np.round(255 * pictures).astype(np.uint8)


def gray(pictures: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W] as RGB [N, H, W, 3]."""
    return pictures[..., None].repeat(3, -1)


def error_maps(originals: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """`ERROR_GAIN` x |original - reconstruction| of uint8 [...] in colour, uint8 [..., 3]; 1 and above are alike."""
    return coloured(ERROR_GAIN * np.abs(originals / np.float32(255) - reconstructions / np.float32(255)), "magma")


# ----------------------------------------------------------------------------------------------- curves

Rows = Sequence[Mapping]  # one an epoch with `epoch`, as metrics.csv has them: cells may be strings, or empty
AUTOENCODER_PANELS = [  # (heading, unit, log scale, {key of metrics.csv: label})
    ("Reconstruction loss (train)", "loss per pixel", True, {"train_reconstruction": ""}),
    ("Commitment loss (train)", "loss per latent", True, {"train_commitment": ""}),
    ("SSIM (validation)", "SSIM", True, {"validation_ssim": ""}),
]
GAN_PANELS = [
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


def _series(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values of the rows that have `key`."""
    pairs = [(float(row["epoch"]), float(row[key])) for row in rows if row.get(key) not in (None, "")]
    return tuple(np.array(pairs).reshape(-1, 2).T)


def _ordered_colours(n: int) -> np.ndarray:
    """Colours for codebooks, the first dark and the last light."""
    return matplotlib.colormaps["viridis"](np.linspace(0, 0.9, n))


def _panel(axes: Axes, rows: Rows, heading: str, unit: str, log: bool, lines: Mapping[str, str]) -> None:
    """Draw each key of `lines` (key -> label) over the epochs."""
    of_codebooks = len(lines) > 1 and "1" in lines.values()
    colours = _ordered_colours(len(lines)) if of_codebooks else [None] * len(lines)
    for (key, label), colour in zip(lines.items(), colours, strict=True):
        epochs, values = _series(rows, key)
        values = 1 - values if unit == "SSIM" else values
        # Few epochs are shown as points too: one epoch alone would be an invisible line.
        axes.plot(epochs, values, label=label, color=colour, marker="o" if len(epochs) <= 40 else None)
    whole_numbers(axes.xaxis)
    axes.set(xlabel="epoch", ylabel=f"{unit} (log scale)" if log and unit != "SSIM" else unit)
    if log:
        log_scale(axes)
    if unit == "SSIM":
        _label_as_ssim(axes)
    elif unit in ("share of images", "total variation"):
        axes.set_ylim(-0.03, 1.03)
    finish(axes, heading, "codebook" if of_codebooks else None)


def _label_as_ssim(axes: Axes) -> None:
    """Label an axis in log of 1 - SSIM with the SSIM, the best at the top."""
    axes.yaxis.set_major_formatter(lambda missing, _: f"{1 - missing:.4g}")
    axes.invert_yaxis()


def training_curves(rows: Rows, path: Path, title: str) -> None:
    """The autoencoder's training: losses, SSIM on a log scale of 1 - SSIM, use of each codebook."""
    panels = AUTOENCODER_PANELS[:]
    for name, heading in (("perplexity", "Perplexity of the codes"), ("codes_used", "Codes used in an epoch")):
        n = len({key for row in rows for key in row if key.startswith(f"{name}_")})
        panels.append((heading, "codes", False, {f"{name}_{i}": str(i + 1) if n > 1 else "" for i in range(n)}))
    caption = f"{title}; {counted(len(rows), 'epoch')}. The scale of SSIM is log of 1 - SSIM."
    with chart(path, "Training the autoencoder", caption, len(panels)) as grid:
        for axes, panel in zip(grid, panels, strict=True):
            _panel(axes, rows, *panel)


def dcgan_curves(rows: Rows, path: Path, title: str) -> None:
    """The GAN's training: those of the `GAN_PANELS` that the rows have; not every loss has gradient penalties."""
    panels = [panel for panel in GAN_PANELS if any(len(_series(rows, key)[0]) for key in panel[-1])]
    with chart(path, "Training the GAN", f"{title}; {counted(len(rows), 'epoch')}.", len(panels)) as grid:
        for axes, panel in zip(grid, panels, strict=True):
            _panel(axes, rows, *panel)


def likelihood_curves(rows: Rows, path: Path, title: str) -> None:
    """Bits per code on training and validation people, of a transformer or a PixelCNN.

    rows: with `train_bits`, `validation_bits`, and `validation_bits_between` where the prior is also given the slices
        below and above.
    """
    epochs, bits = _series(rows, "validation_bits")
    best = int(np.argmin(bits))
    lowest = f"Lowest on validation: {bits[best]:.3f} in epoch {epochs[best]:g}."
    lines = {"train_bits": "train", "validation_bits": "validation"}
    if any(row.get("validation_bits_between") for row in rows):
        lines = {"train_bits": "train, half given neighbours", "validation_bits": "validation, single slices"}
        lines["validation_bits_between"] = "validation, given neighbours"
    caption = f"{title}; {counted(len(rows), 'epoch')}. {lowest}"
    with chart(path, "Training the autoregressive prior", caption) as [axes]:
        axes.plot(epochs[best], bits[best], "o", markersize=9, fillstyle="none", color=INK, label="lowest")
        _panel(axes, rows, "Cost of a code", "bits per code", False, lines)


# -------------------------------------------------------------------------------------- reconstructions


def reconstructions(
    originals: np.ndarray, made: np.ndarray, labels: Sequence[str], path: Path, title: str, heading="Reconstructions"
) -> None:
    """Rows of originals [N, H, W], below N labels, their reconstructions and error maps."""
    originals, made = to_bytes(originals), to_bytes(made)
    n, gain = len(originals), f"{ERROR_GAIN} x"
    tiles = np.concatenate([gray(originals), gray(made), error_maps(originals, made)])
    labels = [f"original {labels[0]}", *labels[1:], "reconstruction", *[""] * (n - 1), f"{gain} error"]
    rows = f"From top to bottom: original, reconstruction, {gain} |original - reconstruction|, black (0) to pale (1)."
    save_tiles(tile(tiles, n, labels), path, heading, f"{title}; {counted(n, 'slice')}. {rows}")


def codes(pictures: Sequence[np.ndarray], labels: Sequence[str], path: Path, title: str) -> None:
    """A slice and what its codes are or become, uint8 [H, W, 3] each, in a row below their labels."""
    grids = any(label.startswith("codes") for label in labels)
    note = " Code grids: colour is the code's index, and near indices need not look alike." if grids else ""
    caption = f"{title}; 1 slice.{note}"
    save_tiles(tile(np.stack(pictures), len(pictures), labels), path, "A slice and its codes", caption)


def ssim_distribution(scores: Sequence[float], path: Path, title: str) -> None:
    """Histogram of the slices' SSIM [N], and every slice from lowest to highest."""
    scores = np.sort(np.asarray(scores, dtype=np.float64))
    n, passed = len(scores), int((scores >= SSIM_PASS).sum())
    caption = (
        f"{title}; {counted(n, 'slice')}. Mean {scores.mean():.4f}, standard deviation {scores.std():.4f}, "
        f"lowest {scores[0]:.4f}, highest {scores[-1]:.4f}; {passed:,} of {n:,} at or above {SSIM_PASS}."
    )
    with chart(path, "SSIM of the reconstructions", caption, 2) as (left, right):
        left.hist(scores, bins=min(40, max(5, n // 8)), color=BLUE, edgecolor="white", linewidth=0.5)
        left.axvline(scores.mean(), color=INK, linestyle="--", linewidth=1.2, label="mean")
        left.set(xlabel="SSIM", ylabel="slices")
        whole_numbers(left.yaxis)
        right.plot(np.arange(1, n + 1), scores, marker="o" if n <= 40 else None)
        if passed < n:  # else the line would lie far below all slices, which would look alike
            right.axhline(SSIM_PASS, color=VERMILION, linestyle="--", linewidth=1.2, label=f"{SSIM_PASS}")
        right.set(xlabel="rank of the slice", ylabel="SSIM")
        whole_numbers(right.xaxis)
        finish(left, "Distribution")
        finish(right, "Every slice, lowest first")


def code_usage(histograms: Sequence[np.ndarray], path: Path, title: str) -> None:
    """How often each code is used, most frequent first; a line for each codebook's counts (int [K])."""
    number = sum(int(np.sum(counts)) for counts in histograms)
    with chart(path, "Use of the codebook", f"{title}; {counted(number, 'code')} counted.") as [axes]:
        for i, (counts, colour) in enumerate(zip(histograms, _ordered_colours(len(histograms)), strict=True), start=1):
            share = np.sort(counts[counts > 0])[::-1] / np.sum(counts)
            perplexity = math.exp(-(share * np.log(share)).sum())
            label = f"{i}: {len(share):,} of {len(counts):,} used, perplexity {perplexity:.0f}"
            marker = "o" if len(share) == 1 else None
            axes.plot(np.arange(1, len(share) + 1), share, color=colour, marker=marker, label=label)
        for size in {len(counts) for counts in histograms}:
            axes.axhline(1 / size, color=INK, linestyle=":", linewidth=1.2, label=f"uniform use of {size:,}")
        axes.set(xlabel="rank of the code", ylabel="share of all codes (log scale)")
        log_scale(axes)
        finish(axes, "Share of each code, most frequent first", "codebook")


def rate_distortion(rows: Sequence[Mapping], path: Path, title: str) -> None:
    """SSIM over bytes per image; rows with `name` (codec or model), `bytes` and `ssim` (means over images).

    Rows of one name make one line. A name with "VQ-VAE" in it is one of this project's models and drawn bold.
    """
    what = "Mean SSIM (7x7 uniform window) over mean bytes per image; the scale of SSIM is log of 1 - SSIM."
    with chart(path, "Quality at a given rate", f"{title}. {what}") as [axes]:
        for number, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
            points = sorted((float(row["bytes"]), 1 - float(row["ssim"])) for row in rows if row["name"] == name)
            ours = "vqvae" in name.lower().replace("-", "")
            style = {"linewidth": 2.4, "markersize": 10} if ours else {"linewidth": 1.2, "markersize": 5}
            marker = "*" if ours else "osD^vP"[number % 6]  # shape as well as colour tells the lines apart
            axes.plot(*zip(*points, strict=True), label=name, marker=marker, **style)
        axes.set(xlabel="bytes per image (log scale)", ylabel="SSIM")
        log_scale(axes, "x")
        log_scale(axes, "y")
        _label_as_ssim(axes)
        finish(axes, "Up and left is better")


# ---------------------------------------------------------------------------------------------- samples


def samples(images: np.ndarray, path: Path, title: str) -> None:
    """Samples [N, H, W] in reading order, in about a square."""
    images = to_bytes(images)
    n, height, width = images.shape
    columns = min(n, math.ceil(math.sqrt(n * height / width)))
    save_tiles(tile(images, columns), path, "Samples", f"{title}; {counted(n, 'sample')}.")


def samples_beside_real(
    samples: np.ndarray, others: np.ndarray, path: Path, title: str, kind: str = "real slice"
) -> None:
    """Samples [N, H, W] on the left, as many other slices of one `kind` on the right, both in reading order."""
    samples, others = to_bytes(samples), to_bytes(others)
    n = len(samples)
    halves = [tile(pictures, min(n, PANEL_COLUMNS)) for pictures in (samples, others)]
    gap = np.zeros((halves[0].shape[0], 2 * MARGIN, 3), np.uint8)
    tiles = np.concatenate([halves[0], gap, halves[1]], axis=1)
    caption = f"{title}; left {counted(n, 'sample')}, right {counted(n, kind)}."
    save_tiles(tiles, path, f"Samples (left) beside {kind}s (right)", caption)


def nearest_training(
    samples: np.ndarray, nearest: np.ndarray, ssims: Sequence[float], names: Sequence[str], path: Path, title: str
) -> None:
    """Samples [N, H, W] above the training slices nearest to them, with the pairs' SSIMs and the names."""
    n, labels = len(samples), [*(f"sample, SSIM {ssim:.3f} with" for ssim in ssims), *names]
    caption = f"{title}; {counted(n, 'sample')} above the training slice nearest to each, or its mirror image."
    tiles = tile(np.concatenate([to_bytes(samples), to_bytes(nearest)]), n, labels)
    save_tiles(tiles, path, "Closest samples beside training slices", caption)


def memorisation(samples: Sequence[float], held_out: Sequence[float], path: Path, title: str) -> None:
    """SSIM of samples [N] and of held-out slices [M] with their nearest training slices, as distributions.

    The line is the threshold of memorisation, above which 1 % of the held-out slices lie.
    """
    threshold = float(np.quantile(held_out, 0.99))
    share = 100 * float(np.mean(np.asarray(samples) > threshold))
    counts = f"{counted(len(samples), 'sample')}, {counted(len(held_out), 'held-out slice')}"
    above = f"{share:.1f} % of the samples lie above it, and 1 % of the held-out slices"
    caption = f"{title}; {counts}. Dashed: SSIM {threshold:.3f}; {above}."
    bins = np.linspace(min(*samples, *held_out), max(*samples, *held_out), 41)
    with chart(path, "Likeness to the training slices", caption) as [axes]:
        for values, label, colour in ((held_out, "held-out slices", VERMILION), (samples, "samples", BLUE)):
            weights = np.full(len(values), 100 / len(values))
            axes.hist(values, bins, weights=weights, histtype="step", linewidth=1.8, color=colour, label=label)
        axes.axvline(threshold, color=INK, linestyle="--", linewidth=1.2, label=f"SSIM {threshold:.3f}")
        axes.set(xlabel="SSIM with the nearest training slice", ylabel="share, %")
        finish(axes, "Nearest training slice")


# ------------------------------------------------------------------------------------------ whole brains

OFF_MIDDLE = 0.38  # where the sagittal plane lies: beside the cleft between the hemispheres
PLANES = {"axial": "APLR", "coronal": "SILR", "sagittal": "SIPA"}  # letters at the top, bottom, left, right


def three_planes(volume: np.ndarray, axis: int) -> dict[str, np.ndarray]:
    """The planes of a brain [levels, H, W], upright: anterior, or superior, at the top and the left hand at the left.

    `axis`: the axis of RAS+ voxels that the levels follow; the other two are the rows and columns of each slice.
    """
    brain = np.moveaxis(volume, 0, axis)
    x, y, z = round(OFF_MIDDLE * brain.shape[0]), brain.shape[1] // 2, brain.shape[2] // 2
    planes = {"axial": brain[:, :, z], "coronal": brain[:, y], "sagittal": brain[x]}
    return {name: np.rot90(plane) for name, plane in planes.items()}


def with_letters(plane: np.ndarray, name: str, zoom: int = 2) -> np.ndarray:
    """A plane of `three_planes`, uint8 [h, w], enlarged, with letters for the directions: uint8 [h, w, 3]."""
    large = gray(np.pad(plane.repeat(zoom, 0).repeat(zoom, 1), 16))
    (height, width), letters = large.shape[:2], PLANES[name]
    middle, centre = height // 2, width // 2
    places = [(centre, 1, "ma"), (centre, height - 2, "md"), (2, middle, "lm"), (width - 2, middle, "rm")]
    return write_on(large, [(*place, letter) for place, letter in zip(places, letters, strict=True)])


def _stacked(volume: np.ndarray, axis: int) -> np.ndarray:
    """All three planes of a brain, one below the other, in the middle: uint8 [h, w, 3]."""
    planes = [with_letters(plane, name) for name, plane in three_planes(volume, axis).items()]
    width = max(plane.shape[1] for plane in planes)
    spaces = [width - plane.shape[1] for plane in planes]
    sides = [((0, 0), (space // 2, space - space // 2), (0, 0)) for space in spaces]
    return np.concatenate([np.pad(plane, side) for plane, side in zip(planes, sides, strict=True)])


def volumes(
    volumes: np.ndarray,
    path: Path,
    title: str,
    others: np.ndarray | None = None,
    axis: int = 2,
    kind: str = "real",
    names: Sequence[str] = (),
) -> None:
    """Brains [V, levels, H, W] in `three_planes`, each above one of `others`, of a `kind`, where there are any."""
    n = len(volumes)
    brains, labels = [to_bytes(volume) for volume in volumes], [*names] or ["sample"] * n
    caption = f"{title}; {counted(n, 'sample')}, axial and coronal in the middle, sagittal beside it."
    if others is not None and len(others):
        brains += [to_bytes(other) for other in others[:n]]
        labels += [f"{kind} brain"] * (len(brains) - n)
        caption += f" Below: {counted(len(brains) - n, f'{kind} brain')}."
    tiles = tile(np.stack([_stacked(brain, axis) for brain in brains]), n, labels)
    letters = "Letters: anterior, posterior, superior, inferior, left, right."
    save_tiles(tiles, path, "Whole brains in three planes", f"{caption} {letters}")


VOLUME_PANELS = {  # key of the curves -> heading, unit
    "tissue": ("Tissue", "pixels"),
    "ventricle": ("Ventricles", "pixels"),
    "ventricle_jump": ("Ventricles, change to the next level", "pixels"),
    "neighbour_ssim": ("Likeness to the next level", "SSIM"),
}
VOLUME_LINES = {  # kind of volume in the verdict -> label, colour
    "train": ("training", INK),
    "held_out": ("held-out", VERMILION),
    "baseline": ("independent slices", ORANGE),
    "sampled": ("samples", BLUE),
}


def volume_curves(verdict: Mapping, path: Path, title: str) -> None:
    """What runs from level to level, real and sampled: the `curves` of `VolumeJudge.score`'s verdict."""
    kinds = {kind: line for kind, line in VOLUME_LINES.items() if kind in verdict["curves"]}
    counts = ", ".join(f"{verdict[kind]:,} {label}" for kind, (label, _) in kinds.items())
    bands = "10th to 90th percentile: gray for training, dotted for samples."
    caption = f"{title}; volumes: {counts}. Lines: means at each slice level. {bands}"
    with chart(path, "Whole brains, level by level", caption, 4) as grid:
        for axes, (key, (heading, unit)) in zip(grid, VOLUME_PANELS.items(), strict=True):
            for kind, (label, colour) in kinds.items():
                mean, low, high = (verdict["curves"][kind][key][name] for name in ("mean", "low", "high"))
                levels = verdict["levels"][: len(mean)]
                axes.plot(levels, mean, color=colour, label=label)
                if kind == "train":
                    axes.fill_between(levels, low, high, color=GRID)
                if kind == "sampled":
                    axes.plot(levels, np.transpose([low, high]), ":", color=colour, linewidth=1)
            whole_numbers(axes.xaxis)
            axes.set(xlabel="slice level", ylabel=unit)
            finish(axes, heading)


# ------------------------------------------------------------------------------------------- animations


def epoch_frame(rows: Mapping[str, np.ndarray], heading: str, path: Path, title: str) -> None:
    """A frame of a training's animation: rows of pictures [N, H, W], all of one size, each below its label."""
    n = len(next(iter(rows.values())))
    labels = [text for label in rows for text in (label, *[""] * (n - 1))]
    tiles = tile(np.concatenate([to_bytes(row) for row in rows.values()]), n, labels)
    save_tiles(tiles, path, heading, f"{title}, the same in every frame.", foot=False)


def _save_gif(frames: list[Image.Image], path: Path, milliseconds: int | list[int], caption: str) -> None:
    """An endless GIF with its caption as comment."""
    options = {"append_images": frames[1:], "duration": milliseconds, "loop": 0, "comment": caption.encode()}
    with atomic(path) as file:
        frames[0].save(file, "GIF", save_all=True, **options)


def animate(frame_paths: Sequence[Path], path: Path, seconds_per_frame: float) -> None:
    """The frames of `epoch_frame`, all of one size, as an endless GIF that rests four frames' time on the last."""
    with Image.open(frame_paths[0]) as first:
        caption = first.info["Description"]
    frames = [Image.open(frame_path).convert("L") for frame_path in frame_paths]  # a GIF has 256 grays, so all of them
    step = round(1000 * seconds_per_frame)
    _save_gif(frames, path, [step] * (len(frames) - 1) + [4 * step], caption)


def walk(images: np.ndarray, path: Path, title: str = "") -> None:
    """A walk through pictures [N, H, W] as an endless GIF, there and back, 80 ms a picture."""
    caption = f"{title}{'; ' if title else ''}{counted(len(images), 'picture')}, there and back."
    pixels = to_bytes(images)
    zoom = max(1, 256 // max(pixels.shape[1:]))
    frames = [Image.fromarray(picture.repeat(zoom, 0).repeat(zoom, 1)) for picture in pixels]
    frames += frames[-2:0:-1]
    _save_gif(frames, path, 80, caption)


def volume_levels(volume: np.ndarray, path: Path, title: str = "") -> None:
    """The axial slices of a brain [levels, H, W], anterior at the top, as `walk` shows pictures."""
    walk(np.rot90(volume, axes=(1, 2)), path, title)
