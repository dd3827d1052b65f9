"""The judge against closed forms, and against samples that are bad in one way each."""

import json
from urllib.error import URLError

import numpy as np
import pytest
import scipy.linalg
import torch
from prdc import compute_prdc
from scipy.ndimage import gaussian_filter
from skimage.feature import structure_tensor, structure_tensor_eigenvalues

from dataset import Slices, content_box
from runtime.errors import InputError
from scoring import features
from scoring.features import SCALES, FeatureSpace, Folds, RandomNet, unit_batch
from scoring.judge import (
    Judge,
    code_histogram_distance,
    frechet_distance,
    mean_pairwise_ms_ssim,
    precision_to_coverage,
    staggered,
    table,
)
from scoring.metrics import SSIMToEach, ssim, ssim_in_black
from scoring.nearest import best_of
from scoring.two_sample import SIZES, Classifier, Kind, area_under_curve, halves, two_sample_test

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
    names = [f"case_{seed:03d}_slice_{level}.nii.png" for seed in seeds for level in range(LEVELS)]
    return Slices(
        images=np.concatenate([person(seed) for seed in seeds]),
        names=names,
        people=[name[:8] for name in names],
        levels=np.tile(np.arange(LEVELS), len(seeds)),
        paths=[],
    )


@pytest.fixture(scope="module")
def train() -> Slices:
    return slices(range(80))


@pytest.fixture(scope="module")
def judge(train) -> Judge:
    return Judge(train, slices(range(100, 130)))


@pytest.fixture(scope="module")
def fresh() -> np.ndarray:
    """What a perfect sampler makes: 160 slices, each of a person of its own."""
    return np.stack([person(seed)[seed % LEVELS] for seed in range(1000, 1160)])


@pytest.fixture(scope="module")
def verdict(judge, fresh) -> dict:
    return judge.score(fresh, judge.nearest(fresh))


# --------------------------------------------------------------------------------------------- formulas


def test_frechet_distance_of_diagonal_gaussians_in_closed_form():
    signs = np.array([[a, b] for a in (-1, 1) for b in (-1, 1)], float)  # uncorrelated, variance 4/3
    a, b = signs * [1, 2], signs * [3, 5] + [10, 0]
    expected = 100 + 4 / 3 * ((3 - 1) ** 2 + (5 - 2) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_frechet_distance_agrees_with_the_matrix_square_root():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((50, 6)) @ rng.standard_normal((6, 6)), rng.standard_normal((40, 6)) + 0.3
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = np.trace(scipy.linalg.sqrtm(cov_a @ cov_b).real)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_to_one_repeated_point():
    a = np.random.default_rng(0).standard_normal((50, 6))
    point = np.full((30, 6), 2.0)
    expected = np.sum((a.mean(0) - 2) ** 2) + np.trace(np.cov(a.T))
    assert frechet_distance(a, point) == pytest.approx(expected)


def test_precision_to_coverage_is_prdcs_on_equal_numbers(capsys):
    rng = np.random.default_rng(0)
    real, fake = rng.standard_normal((60, 4)), rng.standard_normal((60, 4)) + 0.5
    got = precision_to_coverage(real, fake)
    assert capsys.readouterr().out == ""
    assert got == pytest.approx(compute_prdc(real, fake, 5))
    assert precision_to_coverage(real, real)["precision"] == 1
    few = precision_to_coverage(real, fake[:20])
    assert few == precision_to_coverage(real, fake[:20])
    with pytest.raises(InputError, match="more than 6 slices"):
        precision_to_coverage(real, fake[:6])


def test_staggered_takes_one_in_eight_and_all_levels():
    people = [f"case_{i:03d}" for i in range(8) for _ in range(32)]
    levels = np.concatenate([np.random.default_rng(i).permutation(32) for i in range(8)])
    chosen = staggered(people, levels)
    assert len(chosen) == 8 * 4
    assert sorted(levels[chosen]) == list(range(32))
    own = np.sort(levels[chosen[:4]])
    assert (np.diff(own) == 8).all()
    shuffled = np.random.default_rng(9).permutation(len(people))
    again = staggered([people[i] for i in shuffled], levels[shuffled])
    assert set(shuffled[again]) == set(chosen)


@pytest.mark.parametrize("size", [(256, 256), (256, 128), (96, 100), (88, 88), (44, 50), (22, 30), (16, 16)])
def test_ms_ssim_at_every_size(size):
    image = (gaussian_filter(np.random.default_rng(0).standard_normal((1, *size)), 2) * 900).clip(0, 255)
    image = image.astype(np.uint8)
    assert mean_pairwise_ms_ssim(np.concatenate([image, image])) == pytest.approx(1)
    assert mean_pairwise_ms_ssim(np.concatenate([image, 255 - image])) < 0.9


def test_code_histogram_distance_in_closed_form():
    a, b = torch.tensor([[0, 0, 1, 1]]), torch.tensor([0, 1, 1, 1, 2, 2, 2, 2])
    assert code_histogram_distance(a, b, 4) == pytest.approx((3 / 8 + 1 / 8 + 4 / 8) / 2)
    assert code_histogram_distance(b, a, 4) == code_histogram_distance(a, b, 4)
    assert code_histogram_distance(a, a.repeat(3, 1), 4) == 0
    assert code_histogram_distance(a, a + 2, 4) == 1


# ---------------------------------------------------------------------------------------------- features


def test_random_net_is_fixed_and_leaves_global_randomness_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = RandomNet()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
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


def test_folds_of_stripes_of_mottle_and_of_nothing():
    stripes = (torch.sin(torch.arange(64.0)) / 2 + 0.5).expand(1, 1, 64, 64).clamp_min(0.1)
    noise = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)).clamp_min(0.1)
    coherence = Folds()(torch.cat([stripes, noise, torch.zeros(1, 1, 64, 64)]))[:, ::2]  # means
    assert (coherence[0] > 0.98).all()
    assert (coherence[1] < 0.3).all()
    assert (coherence[2] == 0).all()


@pytest.mark.parametrize("name", ["pca", "randconv", "folds"])
def test_scaled_training_features_have_unit_variance_spread_evenly(judge, name):
    space = judge.spaces[name]
    variance = (space.train / space.scale).var(axis=0)
    np.testing.assert_allclose(variance, 1 / len(variance), rtol=1e-6)
    np.testing.assert_allclose(space.features(judge.train.images[:20]), space.train[:20], atol=1e-3)


def test_threads_are_given_back(train):
    before = torch.get_num_threads()
    FeatureSpace("pca", train.images)
    assert torch.get_num_threads() == before


# --------------------------------------------------------------------------------- nearest slices, fast


def test_nearest_is_brute_force_over_the_candidates(judge, train, fresh):
    """Every training slice and every mirror image, by the SSIM that training and scores have."""
    images = fresh[:4]
    found = judge.nearest(images)
    x, mirrored = unit_batch(images), unit_batch(judge.search.mirrored(images))
    y = unit_batch(train.images)
    for i in range(len(images)):
        for view, index, value in ((x, found.index, found.ssim), (mirrored, found.mirrored_index, found.mirrored_ssim)):
            values = ssim(view[i].expand_as(y), y)
            assert value[i] == pytest.approx(values[index[i]].item(), abs=1e-5)
            assert values.max() - value[i] < 0.05  # features leave 16 of 640 to SSIM


def test_ssim_to_each_is_ssim():
    x, y = torch.rand(2, 1, 1, 30, 40, generator=torch.Generator().manual_seed(0))
    y = (x + 0.2 * y).clamp(0, 1)
    windows = (30 - 6) * (40 - 6)
    assert SSIMToEach(x, windows)(y) == pytest.approx(ssim(x, y).item(), abs=1e-6)
    assert SSIMToEach(x, windows)(x) == 1
    assert SSIMToEach(x, 2 * windows)(y) == pytest.approx(ssim_in_black(x, y, 2 * windows).item(), abs=1e-6)


def test_mirror_images_are_within_the_box_and_mirrored_twice_are_the_slices(judge, train):
    mirrored = judge.search.mirrored(train.images[:9])
    assert content_box(mirrored, least=judge.search.box) == judge.search.box
    assert (mirrored != train.images[:9]).any()
    assert (judge.search.mirrored(mirrored) == train.images[:9]).all()


def test_people_of_the_nearest_five_are_counted_by_slice_whether_mirrored_or_not():
    people = np.array(list("AAAAABBBBB"))
    plain, mirrored = np.array([0, 1, 2, 3, 5]), np.array([0, 1, 2, 4, 6])

    def row(of_3: float) -> tuple:
        return best_of([plain, mirrored], [[0.9, 0.8, 0.7, of_3, 0.5], [0.95, 0.6, 0.5, 0.6, 0.4]], people)

    assert row(0.65) == (0, 0.9, 0, 0.95, True)  # 0, 1, 2, 3 and 4, though 0 and 1 are there twice
    assert row(0.45) == (0, 0.9, 0, 0.95, False)  # 5 is nearer than 3


# ---------------------------------------------------------------------------------------- a classifier


def kind(seeds: range) -> Kind:
    made = slices(seeds)
    return Kind(made.images, made.people)


def test_halves_share_nobody_even_where_both_kinds_have_the_same_people():
    one, other = kind(range(6)), kind(range(3, 9))
    learnt, tried = halves(one, other, np.random.default_rng(0))
    for parts in (learnt, tried):
        assert len(parts[0]) == len(parts[1]) > 0
    owners = {
        picture.tobytes(): person for k in (one, other) for picture, person in zip(k.images, k.people, strict=True)
    }
    people = [{owners[picture.tobytes()] for part in parts for picture in part} for parts in (learnt, tried)]
    assert not people[0] & people[1]


@pytest.fixture(scope="module")
def areas() -> dict:
    """Of people against other people, who are of one distribution, and against blurred ones."""
    one, other = kind(range(24)), kind(range(24, 48))
    blurred = Kind(gaussian_filter(other.images, (0, 0.7, 0.7)), other.people)
    return {name: two_sample_test(lambda seed, k=k: (one, k)) for name, k in (("same", other), ("blurred", blurred))}


@pytest.mark.parametrize("size", SIZES)
def test_equal_distributions_have_an_area_of_a_half_and_blurred_slices_give_themselves_away(areas, size):
    assert areas["same"][size]["mean"] == pytest.approx(0.5, abs=0.2)
    assert areas["same"][size]["min"] <= areas["same"][size]["mean"] <= areas["same"][size]["max"]
    if size == "full":
        assert areas["blurred"][size]["min"] > 0.9


def test_the_same_seed_gives_the_same_area_and_leaves_global_randomness_alone():
    one, other = kind(range(8)), kind(range(8, 16))
    state = torch.get_rng_state()
    first = area_under_curve(one, other, 2, 7)
    assert torch.equal(torch.get_rng_state(), state)
    assert area_under_curve(one, other, 2, 7) == first


def test_the_network_takes_slices_of_odd_sides():
    network = Classifier(torch.Generator().manual_seed(0))
    assert network(torch.rand(2, 1, 25, 31)).shape == (2,)


# --------------------------------------------------------------------------------------- good samples


def test_real_against_real_gives_the_floor(judge, verdict):
    for name, floor in judge.floor.items():
        figures = verdict["fidelity"][name]
        assert floor["precision"] > 0.75
        assert floor["coverage"] > 0.9
        assert figures["frechet"] < (2 if name == "folds" else 1.5) * floor["frechet"]
        for key in ("precision", "recall", "coverage"):
            assert figures[key] > 0.8 * floor[key], (name, key)


def test_perfect_samples_are_diverse_and_not_memorised(verdict):
    diversity, memorisation = verdict["diversity"], verdict["memorisation"]
    assert diversity["ms_ssim"] == pytest.approx(diversity["ms_ssim_train"], abs=0.06)
    assert memorisation["share_held_out"] == pytest.approx(0.01, abs=0.005)
    assert memorisation["share"] < 0.05
    assert memorisation["mirrored"]["share"] < 0.05
    assert memorisation["of_one_person"] == pytest.approx(memorisation["of_one_person_held_out"], abs=0.1)


def test_verdict_is_plain_json_and_a_table(verdict):
    assert json.loads(json.dumps(verdict, allow_nan=False)) == verdict
    text = table(verdict)
    assert f"{verdict['fidelity']['pca']['frechet']:.3f}" in text
    assert f"{verdict['floor']['randconv']['recall']:.3f}" in text
    assert f"area under the ROC curve: samples {verdict['two_sample']['half']['samples']['mean']:.3f}" in text
    assert "160 samples, 640 training and 240 held-out slices" in text


def test_samples_are_told_from_real_slices_beside_what_real_slices_and_reconstructions_get(train, fresh):
    asked = []

    def reconstruct(rows: np.ndarray) -> np.ndarray:
        asked.append(rows)
        return gaussian_filter(train.images[rows], (0, 0.7, 0.7))

    judge = Judge(train, train, features=("pca",), reconstruct=reconstruct)
    tests = judge.two_sample(fresh[:100])
    assert set(tests) == set(SIZES)
    assert set(tests["full"]) == {"samples", "real", "reconstructions"}
    assert set(judge.two_sample(fresh[:100])["half"]) == set(tests["half"])
    [rows] = asked  # once
    assert len(rows) == 100
    assert set(train.levels[rows]) == set(range(LEVELS))


def test_same_seed_same_verdict(judge, fresh):
    again = Judge(judge.train, judge.held_out, features=("pca",))
    assert again.fidelity(fresh)["pca"] == pytest.approx(judge.fidelity(fresh)["pca"], rel=1e-6)
    assert again.floor["pca"] == pytest.approx(judge.floor["pca"], rel=1e-6)


def test_frechet_for_checkpoints_is_that_of_the_verdict(judge, fresh, verdict):
    expected = {name: figures["frechet_held_out"] for name, figures in verdict["fidelity"].items()}
    assert judge.frechet(fresh) == pytest.approx(expected)


# --------------------------------------------------------------------------- bad samples, each caught


def test_shuffled_noise_is_caught_by_fidelity(judge, fresh):
    rng = np.random.default_rng(0)
    noise = rng.permuted(fresh.reshape(len(fresh), -1), axis=1).reshape(fresh.shape)
    for name, figures in judge.fidelity(noise).items():
        assert figures["frechet"] > 4 * judge.floor[name]["frechet"]
        assert figures["precision"] == 0


def test_one_repeated_slice_is_caught_by_recall_and_coverage(judge, train):
    # a slice of the sparse reference itself, so that precision has nothing to say against it
    repeated = np.repeat(train.images[judge.sparse[:1]], 120, axis=0)
    for figures in judge.fidelity(repeated).values():
        assert figures["precision"] == 1
        assert figures["recall"] < 0.05
        assert figures["coverage"] < 0.2
    assert mean_pairwise_ms_ssim(repeated) == pytest.approx(1)


def test_blur_is_caught_by_precision(judge, fresh):
    blurred = gaussian_filter(fresh, (0, 2, 2))
    figures, floor = judge.fidelity(blurred)["randconv"], judge.floor["randconv"]
    assert figures["precision"] < 0.5 * floor["precision"]
    assert figures["frechet"] > 3 * floor["frechet"]


def test_a_texture_that_does_not_run_as_it_should_is_caught_by_folds(judge):
    streaked = np.stack([person(seed, grain=(1.4, 0.35))[seed % LEVELS] for seed in range(1000, 1160)])
    figures, floor = judge.fidelity(streaked)["folds"], judge.floor["folds"]
    assert figures["precision"] < 0.5 * floor["precision"]
    assert figures["frechet"] > 10 * floor["frechet"]


def test_the_nearest_five_are_counted_by_person():
    """Each slice once, as near as it or its mirror image is."""
    people = np.array(list("aaaaab"))
    near, ssims = [np.array([0, 1, 2]), np.array([3, 4, 5])], [[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]]
    assert best_of(near, ssims, people) == (0, 0.9, 3, 0.6, True)
    assert best_of(near, [[0.9, 0.8, 0.3], [0.6, 0.5, 0.4]], people) == (0, 0.9, 3, 0.6, False)
    again = [np.array([0, 1, 2]), np.array([0, 3, 5])]  # slice 0 and its mirror image count once
    assert best_of(again, [[0.9, 0.8, 0.7], [0.85, 0.6, 0.1]], people) == (0, 0.9, 0, 0.85, False)


def test_copies_are_caught_by_memorisation_alone(judge, train):
    half = len(train.images) // 2
    copies = train.images[half:]  # whole people: `folds` tells levels apart
    memorisation = judge.memorisation(judge.nearest(copies))
    assert memorisation["share"] == 1
    assert memorisation["closest"][0]["ssim"] == 1
    for closest in memorisation["closest"]:
        assert closest["train_index"] == half + closest["sample"]
        assert closest["train_name"] == train.names[closest["train_index"]]
    for name, figures in judge.fidelity(copies).items():
        assert figures["frechet"] < judge.floor[name]["frechet"]


def test_mirrored_copies_are_caught_as_such(judge, train):
    copies = judge.search.mirrored(train.images[:40])
    memorisation = judge.memorisation(judge.nearest(copies))
    assert memorisation["mirrored"]["share"] == 1
    assert memorisation["share"] < 0.2
    for closest in memorisation["closest"]:
        assert closest["mirrored"]
        assert closest["ssim"] == 1
        assert closest["train_index"] == closest["sample"]


# ------------------------------------------------------------------------------------------- bad input


def test_samples_that_can_not_be_judged(judge, fresh):
    with pytest.raises(InputError, match="99 samples are too few"):
        judge.score(fresh[:99], None)
    with pytest.raises(InputError, match="can't be judged beside"):
        judge.score(fresh[:, :32], None)
    with pytest.raises(ValueError, match="need uint8"):
        judge.score(fresh / 255, None)


def test_too_few_people_and_unknown_space(train):
    with pytest.raises(InputError, match="4 training people"):
        Judge(slices(range(3)), train)
    with pytest.raises(InputError, match="no feature space 'clip'"):
        Judge(train, train, features=("clip",))


def test_inception_without_its_weights_says_what_to_do(train, monkeypatch):
    def offline(**_):
        raise URLError("no route to host")

    monkeypatch.setattr(features, "inception_v3", offline)
    with pytest.raises(InputError, match=r"leave out --features inception, or copy https://.*\.pth to"):
        FeatureSpace("inception", train.images)


def test_inception_features_are_the_pooled_ones(train, monkeypatch):
    build = features.inception_v3

    def untrained(weights):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(weights=None, init_weights=False, transform_input=True)

    monkeypatch.setattr(features, "inception_v3", untrained)
    space = FeatureSpace("inception", train.images[:3])
    assert space.train.shape == (3, 2048)
    assert space.scale == 1
    np.testing.assert_allclose(space.features(train.images[1:2]), space.train[1:2], rtol=1e-3, atol=1e-5)
