"""Reconstruction scores against scikit-image, closed forms and a plain implementation."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from runtime.errors import InputError
from scoring.metrics import (
    code_histogram_distance,
    code_usage,
    perplexity,
    reconstruction_scores,
    ssim,
    ssim_in_black,
    ssim_map,
    summarise,
)
from scoring.scores import SCORES, score_table


def blobs(n: int, height: int, width: int, seed: int) -> np.ndarray:
    """Smooth bright shapes on exact black, float64 [n, height, width] in [0, 1]."""
    noise = np.random.default_rng(seed).standard_normal((n, height, width))
    smooth = gaussian_filter(noise, (0, 4, 4)) * 12
    return np.clip(smooth, 0, 1)


def pair(n: int = 4, height: int = 48, width: int = 40) -> tuple[np.ndarray, np.ndarray]:
    x = blobs(n, height, width, seed=0)
    noise = np.random.default_rng(1).standard_normal(x.shape)
    return x, np.clip(gaussian_filter(x, (0, 0.7, 0.7)) + 0.03 * noise, 0, 1)


def tensor(x: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(x)[:, None].to(dtype)


def plain_ssim_map(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Equation 13 of Wang et al. 2004 as it stands, with 7x7 means by avg_pool2d."""

    def mean(z: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(z, 7, 1)

    ux, uy = mean(x), mean(y)
    vx, vy, vxy = (49 / 48 * (mean(a * b) - c) for a, b, c in ((x, x, ux**2), (y, y, uy**2), (x, y, ux * uy)))
    c1, c2 = 0.01**2, 0.03**2
    return (2 * ux * uy + c1) * (2 * vxy + c2) / ((ux**2 + uy**2 + c1) * (vx + vy + c2))


# ------------------------------------------------------------------------------------------------- SSIM


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("shape", [(48, 40), (7, 7), (33, 65)])
def test_ssim_is_scikit_images_default_and_data_range_is_one_whatever_the_image_holds(dtype, tolerance, shape):
    brightness = np.array([1, 1, 0.5, 0.2])[:, None, None]
    x, y = (brightness * images for images in pair(4, *shape))
    expected = [structural_similarity(a, b, data_range=1.0) for a, b in zip(x, y, strict=True)]
    got = ssim(tensor(x, dtype), tensor(y, dtype))
    assert got.dtype == dtype
    np.testing.assert_allclose(got.numpy(), expected, atol=tolerance, rtol=0)  # a mean of `ssim_map`


def test_autocast_and_half_precision_do_not_touch_it():
    x, y = (tensor(image) for image in pair())
    with torch.autocast("cpu", torch.bfloat16):
        inside = ssim(x, y)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, ssim(x, y))
    x16, y16 = x.bfloat16(), y.bfloat16()
    assert torch.equal(ssim(x16, y16), ssim(x16.float(), y16.float()))


def test_gradient_is_that_of_the_plain_formula():
    x, y = (tensor(image, torch.float64) for image in pair(2))
    gradients = []
    for function in (ssim_map, plain_ssim_map):
        leaf = y.clone().requires_grad_()
        weights = torch.linspace(-1, 2, 2 * 42 * 34, dtype=torch.float64).view(2, 1, 42, 34)
        (function(x, leaf) * weights).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, atol=1e-10, rtol=1e-8)


def test_shapes_that_have_no_ssim():
    for first, second in (((6, 9), (6, 9)), ((9, 9), (9, 8))):
        with pytest.raises(ValueError, match="SSIM needs"):
            ssim_map(torch.zeros(1, 1, *first), torch.zeros(1, 1, *second))
    with pytest.raises(InputError, match="slices of 10x40 pixels are too small to score: SSIM needs 11 pixels a side"):
        reconstruction_scores(np.zeros((1, 10, 40), np.uint8), np.zeros((1, 10, 40)))


# ---------------------------------------------------------------------------------------------- scores


def test_scores_are_the_stated_definitions():
    x, y = pair(3)
    original = np.round(x * 255).astype(np.uint8)
    scores = reconstruction_scores(original, y.astype(np.float32))
    np.testing.assert_allclose(ssim(tensor(original / 255), tensor(y)).numpy(), scores["ssim"], atol=1e-6)  # the loss
    for i in range(3):
        a, b = original[i] / 255, y[i].astype(np.float32).astype(np.float64)
        mean, whole = structural_similarity(a, b, data_range=1.0, full=True)
        wang = structural_similarity(
            a, b, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert scores["ssim"][i] == pytest.approx(mean, abs=1e-12)
        assert scores["gaussian_ssim"][i] == pytest.approx(wang, abs=1e-12)
        assert scores["foreground_ssim"][i] == pytest.approx(whole[original[i] > 10].mean(), abs=1e-12)
        assert scores["psnr"][i] == pytest.approx(-10 * math.log10(np.mean((a - b) ** 2)), abs=1e-9)


def test_exact_copy_and_empty_slice():
    original = np.zeros((2, 16, 16), np.uint8)
    original[0, 4:12, 4:12] = 200
    scores = reconstruction_scores(original, original / 255.0)
    assert scores["ssim"].tolist() == [1, 1]
    assert scores["psnr"].tolist() == [100, 100]
    assert scores["foreground_ssim"][0] == 1
    assert np.isnan(scores["foreground_ssim"][1])


def test_a_crop_on_black_has_the_ssim_of_the_whole_picture():
    x, y = (np.pad(image, ((0, 0), (6, 6), (6, 6))) for image in pair(2, 20, 24))
    whole = [tensor(np.pad(image, ((0, 0), (9, 5), (0, 7)))) for image in (x, y)]
    got = ssim_in_black(tensor(x), tensor(y), (20 + 12 + 14 - 6) * (24 + 12 + 7 - 6))
    torch.testing.assert_close(got, ssim(*whole))


def test_summary_and_table_leave_out_empty_slices_and_count_them():
    nan = float("nan")
    scores = {name: np.array([0.5, 1, 0.6, 0.7]) for name in SCORES} | {"foreground_ssim": np.array([0.1, nan, 0, 0])}
    summary = summarise(scores)
    assert (summary["images"], summary["empty"]) == (4, 1)
    figures = {"mean": 0.6, "std": np.std([0.5, 0.6, 0.7]), "min": 0.5, "max": 0.7}
    assert summary["ssim"] == pytest.approx(figures | {"passed": 2, "passed_share": 2 / 3})  # the bar itself passes
    assert "4 slices" in (table := score_table(summary | {"bytes_per_image": 9, "codes": []}))
    assert "left out of these figures: 1 empty slice\n" in table
    nothing = summarise({"ssim": np.array([1.0]), "foreground_ssim": np.array([nan])})
    assert nothing["ssim"] == {"mean": None, "std": None, "min": None, "max": None, "passed": 0, "passed_share": 0}
    json.dumps([summary, nothing], allow_nan=False)


# -------------------------------------------------------------------------------------------- codebook


def test_perplexity_in_closed_form():
    assert perplexity(torch.tensor([5, 0, 0, 0])) == pytest.approx(1)
    assert perplexity(torch.tensor([3, 3, 3, 3])) == pytest.approx(4)
    assert perplexity(torch.tensor([2, 1, 1])) == pytest.approx(2**1.5)


def test_usage_is_of_the_whole_split_and_of_each_level():
    top = torch.arange(8).view(8, 1, 1).expand(8, 2, 2)  # each image uses one code, the split all eight
    bottom = torch.zeros(8, 4, 4, dtype=torch.int64)
    usage = code_usage([top, bottom], [8, 16])
    assert usage[0] == {"codebook_size": 8, "codes_used": 8, "perplexity": pytest.approx(8)}
    assert usage[1] == {"codebook_size": 16, "codes_used": 1, "perplexity": pytest.approx(1)}
    assert code_usage([top[:1]], [8])[0]["codes_used"] == 1


def test_code_histogram_distance_in_closed_form():
    a, b = torch.tensor([[0, 0, 1, 1]]), torch.tensor([0, 1, 1, 1, 2, 2, 2, 2])
    assert code_histogram_distance(a, b, 4) == code_histogram_distance(b, a, 4) == pytest.approx(1 / 2)
    assert code_histogram_distance(a, a.repeat(3, 1), 4) == 0
    assert code_histogram_distance(a, a + 2, 4) == 1
