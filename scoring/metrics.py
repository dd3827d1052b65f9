"""How good is a reconstruction? SSIM as a loss and as a score, PSNR, and the use of the codebook.

All images lie in [0, 1] and SSIM's `data_range` is 1.0, always: taken from the image at hand it would be a
different yardstick for every image.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from scoring.scores import SCORES, SSIM_PASS

WINDOW = 7  # pixels; the side of SSIM's uniform window
SAMPLE_COVARIANCE = WINDOW**2 / (WINDOW**2 - 1)  # 49/48: scikit-image's default divides by n - 1
C1, C2 = 0.01**2, 0.03**2  # (K1 L)^2 and (K2 L)^2 of Wang et al. 2004, with L = data_range = 1
FOREGROUND = 10  # a slice's pixel is foreground when its 8-bit value exceeds this
PSNR_CEILING = 100.0  # dB; an exact copy's PSNR is infinite, which has no mean and no place in JSON


# ------------------------------------------------------------------------------------------------- SSIM


def _sliding_sum(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Sums of 7 neighbours along `dim` (n -> n - 6) in three additions: by twos, by fours, 4 + 2 + 1."""
    n = x.shape[dim]
    twos = x.narrow(dim, 0, n - 1) + x.narrow(dim, 1, n - 1)
    fours = twos.narrow(dim, 0, n - 3) + twos.narrow(dim, 2, n - 3)
    return fours.narrow(dim, 0, n - 6) + twos.narrow(dim, 4, n - 6) + x.narrow(dim, 6, n - 6)


def _window_mean(x: torch.Tensor) -> torch.Tensor:
    return _sliding_sum(_sliding_sum(x, -2), -1) / WINDOW**2


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (of the population) of every 7x7 window."""
    mean = _window_mean(x)
    return mean, _window_mean(x * x) - mean * mean


class _WindowMean(torch.autograd.Function):
    """Means over 7x7 windows, [..., H, W] -> [..., H-6, W-6]; on CPU five times as fast as `avg_pool2d`."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        return _window_mean(x)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        # Each pixel is in the windows that start up to 6 before it: the adjoint is the same sum, padded.
        margin = WINDOW - 1
        return _WindowMean.apply(F.pad(gradient, (margin, margin, margin, margin)))


def ssim_map(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """SSIM (Wang et al. 2004, equation 13) of every 7x7 window that lies inside the image.

    Its mean is scikit-image's `structural_similarity(x, y, data_range=1.0)`, which crops the same 3 pixels
    from each side. Differentiable; computed in float32 even under autocast (float64 stays float64), because
    a variance is a small difference of large numbers.

    With s = x + y and d = x - y, equation 13 needs the means and variances of s and d alone: four means
    over windows instead of five, and no cancellation where x and y nearly agree.

    Args:
        x, y: [B, 1, H, W] in [0, 1], H and W at least 7.
    Returns:
        [B, 1, H-6, W-6] in [-1, 1].
    Raises:
        ValueError: the shapes differ or a side is below 7.
    """
    if x.shape != y.shape or min(x.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs two images of one shape, sides >= {WINDOW}: {x.shape}, {y.shape}")
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


def ssim(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean SSIM of each pair of images, [B, 1, H, W] in [0, 1] -> [B]; see `ssim_map`."""
    return ssim_map(x, y).mean(dim=(1, 2, 3))


def ssim_in_black(x: torch.Tensor, y: torch.Tensor, windows: int) -> torch.Tensor:
    """Mean SSIM over `windows` windows of pairs of which only parts are here, [B, 1, h, w] -> [B].

    Both pictures must be black from 6 pixels inside the parts' borders on, or end there: every window that isn't
    here then has an SSIM of 1.
    """
    here = ssim_map(x, y)
    return (here.sum(dim=(1, 2, 3)) + (windows - here[0].numel())) / windows


class SSIMToEach:
    """`ssim_in_black` of one picture with each of many, in a third of the time: its own moments are taken once.

    float32 [1, 1, h, w] in [0, 1]; without gradients.
    """

    def __init__(self, x: torch.Tensor, windows: int) -> None:
        self.x, self.windows = x, windows
        self.mean, self.variance = _moments(x)

    def __call__(self, y: torch.Tensor) -> float:
        """SSIM of the picture and `y`, of its shape: equation 13 as it stands."""
        mean, variance = _moments(y)
        means = self.mean * mean
        covariance = _window_mean(self.x * y) - means
        above = (2 * means + C1).mul_(covariance.mul_(2 * SAMPLE_COVARIANCE).add_(C2))
        powers = (self.mean.square() + mean.square()).add_(C1)
        here = above.div_(powers.mul_(variance.add_(self.variance).mul_(SAMPLE_COVARIANCE).add_(C2)))
        return ((here.sum() + (self.windows - here.numel())) / self.windows).item()


# ------------------------------------------------------------------------------------ scores for reports


def _scores_of_one(original: np.ndarray, reconstruction: np.ndarray) -> tuple[float, float, float, float]:
    """The four of `SCORES`, in that order, for one slice, uint8 [H, W] and float [H, W]."""
    x, y = original / 255.0, reconstruction.astype(np.float64)
    mean, whole_map = structural_similarity(x, y, data_range=1.0, full=True)
    gaussian = structural_similarity(
        x, y, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    foreground = original > FOREGROUND
    inside = whole_map[foreground].mean() if foreground.any() else np.nan
    with np.errstate(divide="ignore"):
        psnr = peak_signal_noise_ratio(x, y, data_range=1.0)
    return mean, inside, gaussian, min(psnr, PSNR_CEILING)


def reconstruction_scores(originals: np.ndarray, reconstructions: np.ndarray) -> dict[str, np.ndarray]:
    """Four yardsticks for every slice, computed by scikit-image in float64.

    Args:
        originals: uint8 [N, H, W].
        reconstructions: float [N, H, W] in [0, 1].
    Returns:
        float64 [N] for each of `SCORES`:
        `ssim`: `structural_similarity(x, y, data_range=1.0)`, uniform 7x7 window, over the full image;
        `foreground_ssim`: mean of that one's map over the pixels where the slice exceeds 10/255
            (NaN for a slice that has none: there is nothing to score);
        `gaussian_ssim`: Wang's own, `gaussian_weights=True, sigma=1.5, use_sample_covariance=False`;
        `psnr`: in dB, at most 100, which is what an exact copy gets.
    Raises:
        ValueError: the shapes or the types are not as above.
    """
    if originals.shape != reconstructions.shape or originals.ndim != 3:
        raise ValueError(f"need two arrays [N, H, W]: {originals.shape}, {reconstructions.shape}")
    if originals.dtype != np.uint8 or not np.issubdtype(reconstructions.dtype, np.floating):
        raise ValueError(f"need uint8 and float: {originals.dtype}, {reconstructions.dtype}")
    with ThreadPoolExecutor() as pool:  # SciPy's filters let go of the interpreter lock
        rows = list(pool.map(_scores_of_one, originals, reconstructions))
    return dict(zip(SCORES, np.array(rows, dtype=np.float64).reshape(-1, len(SCORES)).T.copy(), strict=True))


def summarise(scores: dict[str, np.ndarray]) -> dict:
    """What `metrics.json` says of the scores of `reconstruction_scores`: plain numbers, no NaN.

    Returns:
        `images`, the number of slices; for each score `mean`, `std` (of the population), `min` and `max` over
        the slices that have it (a slice without foreground has no foreground SSIM; `None` if none has one);
        under `ssim` also `passed` and `passed_share`, the number and share of slices at or above 0.6.
    """
    summary: dict = {"images": len(scores["ssim"])}
    for name, values in scores.items():
        known = values[~np.isnan(values)]
        figures = {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max}
        summary[name] = {key: float(f(known)) if known.size else None for key, f in figures.items()}
    passed = int((scores["ssim"] >= SSIM_PASS).sum())
    summary["ssim"] |= {"passed": passed, "passed_share": passed / max(len(scores["ssim"]), 1)}
    return summary


# --------------------------------------------------------------------------------------------- codebook


def code_counts(codes: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """How often each code occurs: integers in [0, K) of any shape -> int64 [K]. Counts of batches add up."""
    counts = torch.bincount(codes.flatten(), minlength=codebook_size)
    if len(counts) != codebook_size:
        raise ValueError(f"code {len(counts) - 1} is outside a codebook of {codebook_size}")
    return counts


def perplexity(counts: torch.Tensor) -> float:
    """exp(entropy) of the codes' distribution: int64 [K] -> 1 (one code for all) to K (all alike)."""
    p = counts.double() / counts.sum().clamp_min(1)
    return torch.special.entr(p).sum().exp().item()


def code_usage(code_grids: Sequence[torch.Tensor], codebook_sizes: Sequence[int]) -> list[dict]:
    """Use of the codebook by a whole split or epoch; over one batch, 512 codes may look idle that are not.

    Args:
        code_grids: one int64 [N, h, w] for each level of the autoencoder, all N images of the split.
        codebook_sizes: K of each level.
    Returns:
        For each level `codebook_size`, `codes_used` (how many occur at all) and `perplexity`.
    """
    usage = []
    for codes, size in zip(code_grids, codebook_sizes, strict=True):
        counts = code_counts(codes, size)
        used = int((counts > 0).sum())
        usage.append({"codebook_size": size, "codes_used": used, "perplexity": perplexity(counts)})
    return usage
