"""Tissue: figures of made-up brains whose classes, thickness and grain are known."""

import numpy as np
import pytest
from scipy import ndimage

from scoring import tissue


def brain(ribbon=8, noise=0.0, white=200):
    """uint8 [96, 96]: a disc of fluid (40) at the heart of white matter, in a ribbon of grey (120) on black."""
    y, x = np.mgrid[-48:48, -48:48] + 0.5
    r = np.hypot(y, x)
    image = np.select([r < 10, r < 32, r < 32 + ribbon], [40.0, white, 120.0], 0.0)
    grain = np.random.default_rng(0).standard_normal(image.shape) * noise
    return np.where(image > 0, image + grain, 0).clip(0, 255).round().astype(np.uint8)


def figures_of(image):
    return dict(zip(tissue.FIGURES, tissue.figures(image), strict=True))


def test_shares_and_ribbon():
    found = figures_of(brain())
    inner, outer, whole = np.pi * 10**2, np.pi * 32**2, np.pi * 40**2
    assert found["fluid"] == pytest.approx(inner / whole, abs=0.01)
    assert found["white"] == pytest.approx((outer - inner) / whole, abs=0.01)
    assert found["grey"] == pytest.approx(1 - outer / whole, abs=0.01)
    assert found["ribbon"] == pytest.approx(8, abs=1)
    assert figures_of(brain(ribbon=5))["ribbon"] == pytest.approx(5, abs=1)


def test_grain_is_that_of_deep_white_matter_alone():
    assert figures_of(brain())["grain"] < 0.5
    image = brain(noise=4)
    noise = np.random.default_rng(0).standard_normal((512, 512)) * 4
    expected = np.abs(noise - ndimage.gaussian_filter(noise, 1)).mean()
    assert tissue.grain(image, tissue.deep_white(image)) == pytest.approx(expected, rel=0.1)


def test_a_slice_without_tissues_has_no_figures():
    for image in (np.zeros((32, 32), np.uint8), np.full((32, 32), 90, np.uint8)):
        assert all(np.isnan(value) for name, value in figures_of(image).items() if name in ("ribbon", "grain"))


def test_comparison_is_cohens_d_and_a_ratio_of_deviations():
    rng = np.random.default_rng(1)
    few, many = (np.stack([brain(noise=n) for n in rng.uniform(low, low + 2, 20)]) for low in (2, 4))
    few_measured, many_measured = tissue.measure(few), tissue.measure(many)
    same, found = (tissue.compare(some, few_measured)["grain"] for some in (few_measured, many_measured))
    assert (same["d"], same["spread"]) == (0, 1)
    a, b = (np.array([figures_of(image)["grain"] for image in stack]) for stack in (many, few))
    assert found["d"] == pytest.approx((a.mean() - b.mean()) / np.sqrt((a.var() + b.var()) / 2))
    assert found["spread"] == pytest.approx(a.std() / b.std())
