"""How good is a reconstruction? SSIM as a loss and as a score, PSNR, and the use of the codebook.

All images lie in [0, 1] and SSIM's `data_range` is always 1.0: taken from the image at hand it would be a different
yardstick for every image.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from runtime.errors import InputError
from scoring.scores import SCORES, SSIM_PASS

WINDOW = 7  # pixels; side of SSIM's uniform window
MIN_SIDE = 11  # pixels; side of the window of Wang's Gaussian SSIM, so that slices need as much to be scored
SAMPLE_COVARIANCE = WINDOW**2 / (WINDOW**2 - 1)  # 49/48: scikit-image's default divides by n - 1
C1, C2 = 0.01**2, 0.03**2  # (K1 L)^2 and (K2 L)^2 of Wang et al. 2004, with L = data_range = 1
FOREGROUND = 10  # a slice's pixel is foreground when its 8-bit value exceeds this
PSNR_CEILING = 100.0  # dB; an exact copy's PSNR is infinite, which has no mean and no place in JSON


# ------------------------------------------------------------------------------------------------- SSIM


def _sliding_sum(x: Tensor, dim: int) -> Tensor:
    """Sums of 7 neighbours along `dim` (n -> n - 6) in three additions: by twos, by fours, 4 + 2 + 1."""
    n = x.shape[dim]
    twos = x.narrow(dim, 0, n - 1) + x.narrow(dim, 1, n - 1)
    fours = twos.narrow(dim, 0, n - 3) + twos.narrow(dim, 2, n - 3)
    return fours.narrow(dim, 0, n - 6) + twos.narrow(dim, 4, n - 6) + x.narrow(dim, 6, n - 6)


class _WindowMean(torch.autograd.Function):
    """Means over 7x7 windows, [..., H, W] -> [..., H-6, W-6]; on CPU five times as fast as `avg_pool2d`."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return _sliding_sum(_sliding_sum(x, -2), -1) / WINDOW**2

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        # A pixel lies in the windows that start up to 6 pixels before it: the adjoint is the same sum, padded.
        margin = WINDOW - 1
        return _WindowMean.apply(F.pad(gradient, (margin, margin, margin, margin)))


def ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """SSIM (Wang et al. 2004, equation 13) of every 7x7 window that lies inside the image.

    Its mean is scikit-image's `structural_similarity(x, y, data_range=1.0)`, which crops the same 3 pixels from each
    side. Differentiable; computed in float32 even under autocast (float64 stays float64), because a variance is a small
    difference of large numbers.

    With s = x + y and d = x - y, equation 13 needs only the means and variances of s and d: four means over windows
    instead of five, and no cancellation where x and y nearly agree.

    Args:
        x, y: [B, 1, H, W] in [0, 1], or one of them [1, 1, H, W]; H and W at least 7.
    Returns:
        [B, 1, H-6, W-6] in [-1, 1].
    Raises:
        ValueError: the sizes differ, or a side is shorter than 7 pixels.
    """
    if x.shape[-2:] != y.shape[-2:] or min(x.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs two images of one size, sides >= {WINDOW}: {x.shape}, {y.shape}")
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, y = x.to(dtype), y.to(dtype)
    s, d = x + y, x - y
    mean_s, mean_d, mean_ss, mean_dd = _WindowMean.apply(torch.stack((s, d, s * s, d * d)))
    power_s, power_d = mean_s * mean_s, mean_d * mean_d
    var_s = SAMPLE_COVARIANCE * (mean_ss - power_s)
    var_d = SAMPLE_COVARIANCE * (mean_dd - power_d)
    luminance = (power_s - power_d + 2 * C1) / (power_s + power_d + 2 * C1)
    structure = (var_s - var_d + 2 * C2) / (var_s + var_d + 2 * C2)
    return luminance * structure


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean SSIM of each pair of images, [B, 1, H, W] in [0, 1] -> [B]; see `ssim_map`."""
    return ssim_map(x, y).mean(dim=(1, 2, 3))


def ssim_in_black(x: Tensor, y: Tensor, windows: int) -> Tensor:
    """Mean SSIM over `windows` windows of pairs of which only a crop is given, [B, 1, h, w] -> [B].

    Both pictures are black outside the crop and in its outermost 6 pixels, unless the crop ends where the picture
    does: every window outside the crop has an SSIM of 1.
    """
    inside = ssim_map(x, y)
    return (inside.sum(dim=(1, 2, 3)) + (windows - inside[0].numel())) / windows


# ------------------------------------------------------------------------------------ scores for reports


def has_foreground(images: np.ndarray) -> np.ndarray:
    """Which slices aren't empty, uint8 [N, H, W] -> bool [N]. Means leave empty ones out: black on black is perfect."""
    return images.max(axis=(1, 2)) > FOREGROUND


def _scores_of_one(original: np.ndarray, reconstruction: np.ndarray) -> tuple[float, float, float, float]:
    """The four of `SCORES`, in that order, for one slice, uint8 [H, W] and float [H, W]."""
    x, y = original / 255.0, reconstruction.astype(np.float64)
    mean, whole_map = structural_similarity(x, y, data_range=1.0, full=True)
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    gaussian = structural_similarity(x, y, data_range=1.0, **wang)
    foreground = original > FOREGROUND
    inside = whole_map[foreground].mean() if foreground.any() else np.nan
    with np.errstate(divide="ignore"):
        psnr = peak_signal_noise_ratio(x, y, data_range=1.0)
    return mean, inside, gaussian, min(psnr, PSNR_CEILING)


def reconstruction_scores(originals: np.ndarray, reconstructions: np.ndarray) -> dict[str, np.ndarray]:
    """Four scores of every slice, computed by scikit-image in float64.

    Args:
        originals: uint8 [N, H, W].
        reconstructions: float [N, H, W] in [0, 1].
    Returns:
        float64 [N] for each of `SCORES`:
        `ssim`: `structural_similarity(x, y, data_range=1.0)`, uniform 7x7 window, over the full image;
        `foreground_ssim`: mean of that one's map over the pixels where the slice exceeds 10/255; NaN for an empty
            slice, which has no such pixel;
        `gaussian_ssim`: Wang's own, `gaussian_weights=True, sigma=1.5, use_sample_covariance=False`;
        `psnr`: in dB, at most 100, which is what an exact copy gets.
    Raises:
        InputError: a side is shorter than 11 pixels.
    """
    if min(originals.shape[1:]) < MIN_SIDE:
        size = "x".join(map(str, originals.shape[1:]))
        raise InputError(f"slices of {size} pixels are too small to score: SSIM needs {MIN_SIDE} pixels a side")
    with ThreadPoolExecutor() as pool:  # SciPy's filters let go of the interpreter lock
        rows = list(pool.map(_scores_of_one, originals, reconstructions))
    return dict(zip(SCORES, np.array(rows, dtype=np.float64).reshape(-1, len(SCORES)).T.copy(), strict=True))


def summarise(scores: dict[str, np.ndarray]) -> dict:
    """The part of `metrics.json` that is made of `reconstruction_scores`: plain numbers, no NaN.

    Returns:
        `images`, the number of slices; `empty`, how many of them are empty and left out of all that follows: black on
        black is always perfect. For each score `mean`, `std` (of the population), `min` and `max`, each None if no
        slice has the score; under `ssim` also `passed` and `passed_share`, number and share of slices at or above 0.6.
    """
    empty = np.isnan(scores["foreground_ssim"])
    summary: dict = {"images": len(empty), "empty": int(empty.sum())}
    for name, values in scores.items():
        known = values[~empty & ~np.isnan(values)]
        figures = {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max}
        summary[name] = {key: float(f(known)) if known.size else None for key, f in figures.items()}
    passed = int((scores["ssim"][~empty] >= SSIM_PASS).sum())
    summary["ssim"] |= {"passed": passed, "passed_share": passed / max(int((~empty).sum()), 1)}
    return summary


# --------------------------------------------------------------------------------------------- codebook


def code_counts(codes: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs: integers in [0, K) of any shape -> int64 [K]. Counts of batches add up."""
    return torch.bincount(codes.flatten(), minlength=codebook_size)


def code_histogram_distance(codes_a: Tensor, codes_b: Tensor, codebook_size: int) -> float:
    """Total variation of two code histograms: 0 (the same) to 1 (no code in common).

    Args:
        codes_a, codes_b: integers in [0, K), any shapes.
    """
    p, q = (code_counts(codes, codebook_size).double() / codes.numel() for codes in (codes_a, codes_b))
    return (p - q.to(p.device)).abs().sum().item() / 2


def perplexity(counts: Tensor) -> float:
    """exp(entropy) of the codes' distribution: int64 [K] -> 1 (one code for all) to K (all alike)."""
    p = counts.double() / counts.sum().clamp_min(1)
    return torch.special.entr(p).sum().exp().item()


def code_usage(code_grids: Sequence[Tensor], codebook_sizes: Sequence[int]) -> list[dict]:
    """Use of the codebook by a whole split or epoch; over one batch, many codes would look idle that are not.

    Args:
        code_grids: int64 [N, h, w] for each level of the autoencoder, all N images of the split.
        codebook_sizes: K of each level.
    Returns:
        For each level `codebook_size`, `codes_used` (how many occur at all) and `perplexity`.
    """
    usage = []
    for codes, size in zip(code_grids, codebook_sizes, strict=True):
        counts = code_counts(codes, size)
        usage.append({"codebook_size": size, "codes_used": int((counts > 0).sum()), "perplexity": perplexity(counts)})
    return usage
