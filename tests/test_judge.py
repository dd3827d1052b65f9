"""The judge against closed forms, and against samples that are bad in one way each."""

import json

import numpy as np
import pytest
import scipy.linalg
import tiny
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import mannwhitneyu
from skimage.feature import structure_tensor, structure_tensor_eigenvalues

from dataset import Slices, content_box
from runtime.errors import InputError
from scoring import judge as judging
from scoring.batches import unit_batch
from scoring.features import SCALES, Folds, RandomNet
from scoring.judge import Judge, frechet_distance, precision_to_coverage, staggered, table
from scoring.metrics import ssim
from scoring.nearest import best_of, data_copying, shared_codes
from scoring.two_sample import PARTS, POOLING, parts_by_person, two_sample_test

SIZE, LEVELS = 64, 8


def person(seed: int, grain: tuple[float, float] = (0.7, 0.7)) -> np.ndarray:
    """Eight slices of an invented brain, uint8 [8, 64, 64]: a bright ellipse with a texture of its own around
    dark ventricles, wider towards the middle levels, on exact black. `grain`: the texture's blur down and across."""
    rng = np.random.default_rng(seed)
    axis = np.linspace(-1, 1, SIZE)
    y, x = axis[:, None], axis[None, :]
    radii, ventricle = rng.uniform(0.7, 0.8, 2), rng.uniform(0.2, 0.25)
    texture = gaussian_filter(rng.standard_normal((LEVELS, SIZE, SIZE)), (1, *grain)) * 0.4
    brightness, tilt = rng.uniform(0.55, 0.65), rng.uniform(-0.05, 0.05)
    width = 1 - 0.4 * np.linspace(-1, 1, LEVELS)[:, None, None] ** 2
    r = np.hypot(y / radii[0], x / radii[1]) / width
    holes = np.exp(-((np.abs(x) - 0.15) ** 2 + y**2) / (ventricle * width) ** 2 * 4)
    brain = (brightness + tilt * x + texture - 0.5 * holes) * (r < 1)
    return np.round(brain.clip(0, 1) * 255).astype(np.uint8)


def slices(seeds: range) -> Slices:
    return tiny.of_people(np.stack([person(seed) for seed in seeds]), seeds[0])


def encode(images: np.ndarray) -> np.ndarray:
    """Some codes of slices: 8x8 blocks' brightness in 16 steps, [N, 8, 8]."""
    return images.reshape(-1, 8, SIZE // 8, 8, SIZE // 8).mean(axis=(2, 4)).astype(int) // 16


@pytest.fixture(scope="module")
def train() -> Slices:
    return slices(range(80))


@pytest.fixture(scope="module")
def judge(train) -> Judge:
    return Judge(train, slices(range(100, 130)), encode=encode)


@pytest.fixture(scope="module")
def fresh() -> np.ndarray:
    """What a perfect sampler makes: 160 slices, each of a person of its own."""
    return np.stack([person(seed)[seed % LEVELS] for seed in range(1000, 1160)])


@pytest.fixture(scope="module")
def verdict(judge, fresh) -> dict:
    return judge.score(fresh)


# --------------------------------------------------------------------------------------------- formulas


def test_frechet_distance_in_closed_form_by_the_matrix_square_root_and_of_a_repeated_point():
    signs = np.array([[a, b] for a in (-1, 1) for b in (-1, 1)], float)  # uncorrelated, variance 4/3
    a, b = signs * [1, 2], signs * [3, 5] + [10, 0]
    assert frechet_distance(a, b) == pytest.approx(100 + 4 / 3 * ((3 - 1) ** 2 + (5 - 2) ** 2))
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((50, 6)) @ rng.standard_normal((6, 6)), rng.standard_normal((40, 6)) + 0.3
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = np.trace(scipy.linalg.sqrtm(cov_a @ cov_b).real)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)
    repeated = np.sum((a.mean(0) - 2) ** 2) + np.trace(cov_a)
    assert frechet_distance(a, np.full((30, 6), 2.0)) == pytest.approx(repeated)


def test_precision_to_coverage_by_brute_force():
    rng = np.random.default_rng(0)
    real, fake = rng.standard_normal((40, 3)), rng.standard_normal((40, 3)) * 0.7 + 0.5

    def balls(points):
        return [sorted(np.linalg.norm(p - q) for q in points)[5] for p in points]  # itself is the first

    far = np.array([[np.linalg.norm(r - f) for f in fake] for r in real])
    in_real = far < np.array(balls(real))[:, None]
    expected = {
        "precision": in_real.any(axis=0).mean(),
        "recall": (far < balls(fake)).any(axis=1).mean(),
        "density": in_real.sum() / (5 * 40),
        "coverage": in_real.any(axis=1).mean(),
    }
    assert precision_to_coverage(real, fake) == pytest.approx(expected)
    assert 0 < expected["recall"] < expected["precision"] < 1
    few = precision_to_coverage(real, fake[:20])  # the larger side is cut
    assert few == precision_to_coverage(real, fake[:20])
    with pytest.raises(InputError, match="more than 6 slices"):
        precision_to_coverage(real, fake[:6])


def test_staggered_takes_one_in_eight_and_all_levels():
    people = [f"case_{i:03d}" for i in range(8) for _ in range(32)]
    levels = np.concatenate([np.random.default_rng(i).permutation(32) for i in range(8)])
    chosen = staggered(people, levels)
    assert len(chosen) == 8 * 4
    assert sorted(levels[chosen]) == list(range(32))
    assert (np.diff(np.sort(levels[chosen[:4]])) == 8).all()
    shuffled = np.random.default_rng(9).permutation(len(people))
    assert set(shuffled[staggered([people[i] for i in shuffled], levels[shuffled])]) == set(chosen)


def test_data_copying_is_the_mean_z_of_mann_and_whitneys_u():
    rng = np.random.default_rng(0)
    held_out, levels = rng.random(60), np.repeat([0, 1], 30)
    same = data_copying(rng.random(60), held_out, levels, levels)
    assert abs(same) < 2
    nearer = held_out * 0.3
    p = mannwhitneyu(nearer[:30], held_out[:30], alternative="less", method="asymptotic", use_continuity=False).pvalue
    z = scipy.stats.norm.ppf(p)
    assert data_copying(nearer[:30], held_out[:30], levels[:30], levels[:30]) == pytest.approx(z, rel=1e-6)
    assert data_copying(nearer, held_out, levels, levels) < -3
    assert data_copying(held_out / 0.3, held_out, levels, levels) > 3
    assert data_copying(held_out[:30], held_out[30:], levels[:30], levels[30:]) == 0  # no level in common


# ---------------------------------------------------------------------------------------------- features


def test_random_net_is_fixed_and_leaves_global_randomness_alone():
    state = torch.get_rng_state()
    first = RandomNet()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), RandomNet().buffers(), strict=True))
    x = torch.rand(2, 1, 48, 80, generator=torch.Generator().manual_seed(0))
    assert first(x).shape == (2, RandomNet.width)
    hidden = torch.nn.functional.conv2d(x, first.weight0, stride=2, padding=1)
    hidden = torch.where(hidden > 0, hidden, 0.2 * hidden)
    torch.testing.assert_close(first(x)[:, :8], hidden.mean((2, 3)))
    torch.testing.assert_close(first(x)[:, 8:16], hidden.std((2, 3), correction=0))


def test_folds_are_coherence_by_eigenvalues_whatever_the_direction_and_brightness():
    images = torch.rand(2, 1, 40, 48, generator=torch.Generator().manual_seed(0))
    images[:, :, :, 30:] = 0  # no tissue
    expected = []
    for image in images[:, 0].numpy():
        for scale in SCALES:
            tensor = structure_tensor(image, sigma=scale, mode="nearest", order="rc")
            large, small = structure_tensor_eigenvalues(tensor)[:, image > 10 / 255]
            coherence = (large - small) / (large + small)
            expected += [coherence.mean(), coherence.std()]
    found = Folds()(images)
    torch.testing.assert_close(found, torch.tensor(expected).view(2, -1).float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(Folds()(images.rot90(dims=(2, 3))), found, atol=1e-4, rtol=1e-4)
    clear = images.clamp_min(0.1) * (images > 0)
    torch.testing.assert_close(Folds()(clear / 2), Folds()(clear), atol=1e-4, rtol=1e-4)
    assert not Folds()(torch.zeros(1, 1, 64, 64)).any()


@pytest.mark.parametrize("name", ["pca", "randconv", "folds"])
def test_scaled_training_features_have_unit_variance_spread_evenly(judge, name):
    space = judge.spaces[name]
    variance = (space.train / space.scale).var(axis=0)
    np.testing.assert_allclose(variance, 1 / len(variance), rtol=1e-6)
    np.testing.assert_allclose(space.features(judge.train.images[:20]), space.train[:20], atol=1e-3)


# ---------------------------------------------------------------------------------------- nearest slices


def test_nearest_is_brute_force_over_the_candidates(judge, train, fresh):
    """Every training slice and every mirror image, by the SSIM that training and scores have."""
    images = fresh[:2]
    found = judge.search(images)
    x, mirrored, y = (unit_batch(some) for some in (images, judge.search.mirror(images), train.images))
    for i in range(len(images)):
        for view, index, value in ((x, found.index, found.ssim), (mirrored, found.mirrored_index, found.mirrored_ssim)):
            values = ssim(view[i].expand_as(y), y)
            assert value[i] == pytest.approx(values[index[i]].item(), abs=1e-5)
            assert values.max() - value[i] < 0.05  # features leave 16 of 640 to SSIM


def test_people_of_the_nearest_five_are_counted_by_slice_whether_mirrored_or_not():
    people = np.array(list("AAAAABBBBB"))
    plain, mirrored = np.array([0, 1, 2, 3, 5]), np.array([0, 1, 2, 4, 6])

    def row(of_3: float) -> tuple:
        return best_of([plain, mirrored], [[0.9, 0.8, 0.7, of_3, 0.5], [0.95, 0.6, 0.5, 0.6, 0.4]], people)

    assert row(0.65) == (0, 0.9, 0, 0.95, True)  # 0, 1, 2, 3 and 4, though 0 and 1 are there twice
    assert row(0.45) == (0, 0.9, 0, 0.95, False)  # 5 is nearer than 3


def test_shared_codes_are_those_of_the_slice_that_shares_most():
    train = np.array([[[1, 2], [3, 4]], [[1, 2], [0, 0]], [[9, 9], [9, 4]]])
    codes = np.array([[[1, 2], [3, 9]], [[9, 9], [9, 9]], [[5, 5], [5, 5]]])
    assert shared_codes(codes, train).tolist() == [0.75, 0.75, 0]


# ---------------------------------------------------------------------------------------- two-sample test


def test_a_person_is_in_one_part_even_where_both_sets_have_the_same_people():
    first, second = ([f"p{i}" for i in own for _ in range(3)] for own in (range(12), range(6, 30)))
    parts = parts_by_person(first, second, seed=0)
    found = {}
    for people, part in zip((first, second), parts, strict=True):
        assert set(part) == set(range(PARTS))
        for person, own in zip(people, part.tolist(), strict=True):
            assert found.setdefault(person, own) == own


def test_equal_sets_have_an_area_of_a_half_and_blurred_slices_give_themselves_away():
    one, other = slices(range(24)), slices(range(24, 48))
    state = torch.get_rng_state()
    same = two_sample_test(one.images, one.people, other.images, other.people)
    assert torch.equal(torch.get_rng_state(), state)
    for size in POOLING:
        assert same[size]["mean"] == pytest.approx(0.5, abs=0.2)
        assert same[size]["min"] <= same[size]["mean"] <= same[size]["max"]
    blurred = gaussian_filter(other.images, (0, 0.7, 0.7))
    arguments = one.images[:, 3:, :61], one.people, blurred[:, 3:, :61], other.people, 7  # odd sides
    areas = two_sample_test(*arguments)
    assert areas["full"]["min"] > 0.9
    assert two_sample_test(*arguments) == areas


def test_samples_are_tested_beside_real_people_and_held_out_people(judge, fresh, monkeypatch):
    asked = []

    def test(first, first_people, second, second_people, seed):
        asked.append([(len(first), len(set(first_people))), (len(second), len(set(second_people)))])
        return {size: {"mean": 0.5, "min": 0.4, "max": 0.6} for size in POOLING}

    monkeypatch.setattr(judging, "two_sample_test", test)
    found = judge.two_sample(fresh)
    assert [set(found[size]) for size in POOLING] == [{"samples", "real", "held_out"}] * 2
    samples, real, held_out = asked
    assert samples == [(160, samples[0][1]), (160, 160)]
    assert real == [(320, 40), (320, 40)]  # all slices of either half: there are fewer than 500
    assert held_out == [(240, held_out[0][1]), (240, 30)]
    assert "fewer than 500 samples" in judge.missing(160)
    assert judge.missing(500) is None
    few = Judge(slices(range(11)), slices(range(100, 102)))
    monkeypatch.setattr(judging, "MIN_TWO_SAMPLE", 80)
    assert "12 training people" in few.missing(500)


# --------------------------------------------------------------------------------------- good samples


def test_real_against_real_gives_the_floor(judge, verdict):
    for name, floor in judge.floor.items():
        figures = verdict["fidelity"][name]
        assert floor["precision"] > 0.75
        assert floor["coverage"] > 0.9
        assert figures["frechet"] < (2 if name == "folds" else 1.5) * floor["frechet"]
        for key in ("precision", "recall", "coverage"):
            assert figures[key] > 0.8 * floor[key], (name, key)


def test_perfect_samples_have_real_tissue_and_are_not_memorised(verdict):
    for row in verdict["tissue"]["samples"].values():
        assert abs(row["d"]) < 0.4
        assert row["spread"] == pytest.approx(1, abs=0.35)
    memorisation = verdict["memorisation"]
    for part in (memorisation, memorisation["mirrored"], memorisation["codes"]):
        assert part["share_held_out"] == pytest.approx(0.01, abs=0.012)
        assert part["share"] < 0.05
        assert part["median"] == pytest.approx(part["median_held_out"], abs=0.03)
    assert memorisation["one_person"] == pytest.approx(memorisation["one_person_held_out"], abs=0.1)
    assert abs(memorisation["data_copying"]) < 2
    assert abs(memorisation["codes"]["data_copying"]) < 2


def test_verdict_is_plain_json_and_a_table(verdict):
    assert json.loads(json.dumps(verdict, allow_nan=False)) == verdict
    text = table(verdict | {"two_sample": {"half": {"samples": {"mean": 0.61, "min": 0.5, "max": 0.7}}}})
    for figure in (verdict["fidelity"]["pca"]["frechet"], verdict["floor"]["randconv"]["recall"]):
        assert f"{figure:.3f}" in text
    assert f"{verdict['tissue']['samples']['grey']['d']:.2f}" in text
    assert "half size, area under the ROC curve: samples 0.610 (0.500 to 0.700)" in text


# ------------------------------------------------------------------------------- samples bad in one way


def test_shuffled_pixels_are_far_from_everything(judge, fresh):
    noise = np.random.default_rng(0).permuted(fresh.reshape(len(fresh), -1), axis=1).reshape(fresh.shape)
    for name, figures in judge.fidelity(noise).items():
        assert figures["frechet"] > 4 * judge.floor[name]["frechet"]
        assert figures["precision"] == 0


def test_one_repeated_slice_is_caught_by_recall_and_coverage(judge, train):
    # A slice of the sparse reference itself, so that precision has nothing to say against it.
    repeated = np.repeat(train.images[judge.sparse[:1]], 120, axis=0)
    for figures in judge.fidelity(repeated).values():
        assert figures["precision"] == 1
        assert figures["recall"] < 0.05
        assert figures["coverage"] < 0.2


def test_blur_is_caught_by_precision_and_by_grain(judge, fresh):
    blurred = gaussian_filter(fresh, (0, 2, 2))
    figures, floor = judge.fidelity(blurred)["randconv"], judge.floor["randconv"]
    assert figures["precision"] < 0.5 * floor["precision"]
    assert figures["frechet"] > 3 * floor["frechet"]
    assert judge.tissue(blurred)["samples"]["boundary"]["d"] < -1


def test_a_texture_that_does_not_run_as_it_should_is_caught_by_folds(judge):
    streaked = np.stack([person(seed, grain=(1.4, 0.35))[seed % LEVELS] for seed in range(1000, 1160)])
    figures, floor = judge.fidelity(streaked)["folds"], judge.floor["folds"]
    assert figures["precision"] < 0.5 * floor["precision"]
    assert figures["frechet"] > 10 * floor["frechet"]


@pytest.mark.parametrize("mirrored", [False, True])
def test_copies_are_caught_by_memorisation_alone(judge, train, mirrored):
    half = len(train.images) // 2
    copies = own = train.images[half:]  # whole people: `folds` tells levels apart
    if mirrored:
        copies = judge.search.mirror(own)
        assert content_box(copies, least=judge.search.box) == judge.search.box
        assert (judge.search.mirror(copies) == own).all()
    memorisation = judge.memorisation(copies, judge.search(copies))
    assert (memorisation["mirrored"] if mirrored else memorisation)["share"] == 1
    assert (memorisation if mirrored else memorisation["mirrored"])["share"] < 0.2
    assert memorisation["codes"]["share"] == memorisation["codes"]["median"] == 1
    assert max(memorisation["data_copying"], memorisation["codes"]["data_copying"]) < -5
    for closest in memorisation["closest"]:
        assert closest["mirrored"] == mirrored
        assert closest["ssim"] == 1
        assert closest["train_index"] == half + closest["sample"]
        assert closest["train_name"] == train.names[closest["train_index"]]
    shown = judge.as_nearest([half], [mirrored])
    assert np.array_equal(shown, copies[:1])
    if not mirrored:
        for name, figures in judge.fidelity(copies).items():
            assert figures["frechet"] < judge.floor[name]["frechet"]


# ------------------------------------------------------------------------------------------- bad input


def test_what_cannot_be_judged(judge, fresh, train):
    with pytest.raises(InputError, match="99 samples are too few"):
        judge.score(fresh[:99])
    with pytest.raises(InputError, match="can't be judged beside"):
        judge.score(fresh[:, :32])
    with pytest.raises(InputError, match="4 training people"):
        Judge(slices(range(3)), train)
