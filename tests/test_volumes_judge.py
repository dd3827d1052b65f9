"""The judge of volumes against closed forms, and against volumes that are bad in one way each."""

import json

import numpy as np
import pytest
import tiny
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from dataset import Box, Slices, content_box
from runtime.errors import InputError
from scoring.volumes import (
    PersonSearch,
    VolumeJudge,
    areas,
    common_levels,
    core_of,
    curves,
    distances,
    middle_likeness,
    neighbour_likeness,
    planes_of,
    reslices,
    table,
    volumes_of,
)

SIZE, LEVELS = 64, 8


def person(seed: int) -> np.ndarray:
    """Eight slices of an invented brain, uint8 [8, 64, 64]: a bright disc on exact black, with ventricles that are
    large or small at all levels and a texture that runs on from level to level, more on the left than on the right."""
    rng = np.random.default_rng(seed)
    axis = np.linspace(-1, 1, SIZE)
    y, x = axis[:, None], axis[None, :]
    texture = gaussian_filter(rng.standard_normal((LEVELS, SIZE, SIZE)), (3, 2, 2))
    texture *= (0.15 + 0.15 * (y > 0)) / texture.std()
    height = np.linspace(-1, 1, LEVELS)[:, None, None]
    ventricle = rng.uniform(0.1, 0.4) * (1 - 0.3 * height**2)
    brain = np.where(np.hypot(y, x / 1.2) < ventricle, 0.15, 0.7) + texture
    return np.round(brain.clip(0.06, 1) * (np.hypot(y, x) < 0.8 - 0.1 * height) * 255).astype(np.uint8)


def people(seeds: range) -> np.ndarray:
    return np.stack([person(seed) for seed in seeds])


def slices(seeds: range) -> Slices:
    return tiny.of_people(people(seeds), seeds[0])


def of_names(names: list[str]) -> Slices:
    """Slices of which only the names matter; each slice is its row in gray."""
    levels = np.array([int(name.split("_slice_")[1].split(".")[0]) if "_slice_" in name else -1 for name in names])
    images = np.arange(len(names), dtype=np.uint8)[:, None, None].repeat(16, 1).repeat(16, 2)
    return Slices(images=images, names=names, people=[name[:8] for name in names], levels=levels, paths=[])


def shuffled(volumes: np.ndarray, seed: int = 0) -> np.ndarray:
    """At each level the same slices, given to people at random."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(level) for level in volumes.swapaxes(0, 1)], axis=1)


@pytest.fixture(scope="module")
def judge() -> VolumeJudge:
    return VolumeJudge(slices(range(40)), slices(range(100, 120)))


@pytest.fixture(scope="module")
def fresh() -> np.ndarray:
    return people(range(200, 220))


@pytest.fixture(scope="module")
def verdict(judge, fresh) -> dict:
    return judge.score(fresh, shuffled(fresh))


# ------------------------------------------------------------------------------------------- real volumes


def test_volumes_are_in_order_of_level_whatever_the_order_of_the_files():
    names = [f"case_{i:03d}_slice_{level}.nii.png" for i in range(4) for level in (2, 0, 1, 3)]
    volumes = volumes_of(of_names(names))
    assert volumes.levels.tolist() == [0, 1, 2, 3]
    assert volumes.people == ["case_000", "case_001", "case_002", "case_003"]
    assert volumes.images.shape == (4, 4, 16, 16)
    assert volumes.images[1, :, 0, 0].tolist() == [5, 6, 4, 7]


def test_volumes_are_whole_scans_of_common_levels():
    complete = [f"case_{i:03d}_slice_{level}.nii.png" for i in range(4) for level in range(3, 9)]
    gap = [f"case_004_slice_{level}.nii.png" for level in (3, 4, 6, 7, 8)]
    more = [f"case_005_week_{week}_slice_{level}.nii.gz" for week in (0, 1) for level in range(2, 12)]
    volumes = volumes_of(of_names([*complete, *gap, *more, "case_006.png"]))
    assert volumes.levels.tolist() == [3, 4, 5, 6, 7, 8]
    assert volumes.people == ["case_000", "case_001", "case_002", "case_003", "case_005", "case_005"]
    some = volumes_of(of_names([*complete, *gap]), levels=[6, 7, 8], box=Box(0, 0, 8, 16))
    assert len(some.people) == 5
    assert some.images.shape == (5, 3, 8, 16)
    with pytest.raises(InputError, match="all levels from 1 to 8"):
        volumes_of(of_names(complete), levels=range(1, 9))


def test_common_levels_are_those_of_the_most_slices():
    def some(*lengths):
        return [(f"p{i}", range(length)) for i, length in enumerate(lengths)]

    assert common_levels(some(10, 10, 10, 10, 6)) == range(10)  # 40 slices, 30 of five people
    assert common_levels(some(10, 10, 10, 10, 9)) == range(9)
    assert common_levels(some(2, 2, 2, 2)) == range(2)
    for few in (some(10, 10, 10), some(1, 1, 1, 1), [("p", range(9))] * 4, []):
        with pytest.raises(InputError, match="4 people with the same consecutive levels"):
            common_levels(few)


# ------------------------------------------------------------------------------------------- measures


def test_neighbours_are_compared_as_scikit_image_does():
    volumes = people(range(2))
    likenesses, differences = neighbour_likeness(volumes)
    x = volumes / 255
    expected = [[structural_similarity(v[i], v[i + 1], data_range=1.0) for i in range(LEVELS - 1)] for v in x]
    np.testing.assert_allclose(likenesses, expected, atol=1e-5)
    np.testing.assert_allclose(differences, np.abs(np.diff(x, axis=1)).mean(axis=(2, 3)), atol=1e-6)
    middle = structural_similarity(*x[:, LEVELS // 2], data_range=1.0)
    assert middle_likeness(volumes) == pytest.approx(middle, abs=1e-5)


def test_areas_of_a_square_brain_in_closed_form():
    picture = np.zeros((40, 40), np.uint8)
    picture[5:35, 5:35] = 100
    picture[6:9, 6:9] = 49  # a sulcus
    picture[18:22, 16:24] = 49  # a ventricle
    picture[19:21, 19:21] = 0  # with something black in it
    volumes = np.stack([[picture, 2 * picture, 0 * picture]])
    core = core_of(volumes[0] * 1.0)
    assert core.sum(axis=(1, 2)).tolist() == [22**2, 22**2, 0]  # depths are 1 to 15, from 5 on they are core
    tissue, ventricles = areas(volumes, core)
    assert tissue.tolist() == [[30**2 - 9 - 32] * 2 + [0]]
    assert ventricles.tolist() == [[32, 32, 0]]


def test_reslices_keep_every_level_as_a_band():
    volumes = np.random.default_rng(0).integers(11, 256, (2, 3, 12, 20), dtype=np.uint8)
    rows, columns = (planes_of(volumes.mean(axis=0), axis) for axis in (-2, -1))
    assert (rows.tolist(), columns.tolist()) == ([4], [4, 12])
    sagittal, coronal = reslices(volumes, -2, rows), reslices(volumes, -1, columns)
    assert (sagittal.shape, coronal.shape) == ((2, 12, 20), (4, 12, 12))
    assert np.array_equal(sagittal[1], volumes[1, :, 4].repeat(4, axis=0))
    assert np.array_equal(coronal[1], volumes[0, :, :, 12].repeat(4, axis=0))


def measures(volumes: int, shift: float = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = {"neighbour_ssim": (3,), "tissue": (4,), "sagittal_pca": (5, 2)}
    return {name: rng.random((volumes, *size)) + shift for name, size in sizes.items()}


def test_distances_of_what_is_shifted_in_closed_form():
    expected = {"neighbour_ssim": 3, "tissue_jump": 0, "tissue_mean": 3, "sagittal_pca": 2 * 3**2}
    assert distances(measures(6, 3), measures(6)) == pytest.approx(expected, abs=1e-6)


def test_people_shuffled_between_levels_keep_the_areas_but_not_their_means_and_jumps():
    real = {"ventricle": np.array([[10, 10, 10, 10], [2, 2, 2, 2]])}
    mixed = {"ventricle": np.array([[10, 2, 10, 2], [2, 10, 2, 10]])}
    assert distances(mixed, real) == {"ventricle_jump": 8, "ventricle_mean": 4}
    assert curves(mixed)["ventricle_jump"] == {"mean": [8] * 3, "low": [8] * 3, "high": [8] * 3}
    assert curves(real)["ventricle"]["mean"] == [6] * 4
    assert curves(real)["ventricle"]["low"] == pytest.approx([2.8] * 4)


# ------------------------------------------------------------------------------------------- copies


def test_a_copy_is_found_mirrored_or_not_with_its_exact_ssim():
    train = people(range(12))
    copies = np.stack([train[7], train[3, :, ::-1]]).astype(int)
    noisy = (copies + np.random.default_rng(0).integers(-9, 10, copies.shape)).clip(0, 255).astype(np.uint8)
    index, mirrored, ssims = PersonSearch(train)(noisy)
    assert index.tolist() == [7, 3]
    assert mirrored.tolist() == [False, True]
    for volume, copy, found in zip(noisy, copies, ssims, strict=True):
        pairs = zip(volume / 255, copy / 255, strict=True)
        assert found == pytest.approx(
            np.mean([structural_similarity(*pair, data_range=1.0) for pair in pairs]), abs=1e-5
        )


def test_copies_of_training_people_are_named_and_new_people_are_not(judge):
    copied = judge.box.paste(judge.real.images[[5, 9]], (SIZE, SIZE))
    found = judge.score(np.concatenate([copied, people(range(300, 310))]))["copies"]
    assert found["share"] == pytest.approx(2 / 12, abs=1 / 12)
    assert {one["person"] for one in found["closest"][:2]} == {"case_005", "case_009"}
    assert [one["ssim"] for one in found["closest"][:2]] == pytest.approx([1, 1])
    assert found["closest"][2]["ssim"] < 0.9


# ------------------------------------------------------------------------------------------- judge


def test_new_people_are_near_and_slices_of_many_or_upside_down_are_far(judge, fresh, verdict):
    real, mixed, highest = (verdict["distances"][kind] for kind in ("sampled", "baseline", "floor_highest"))
    for measure in mixed:
        assert real[measure] < 1.5 * highest[measure]
        assert mixed[measure] > 1.5 * real[measure]
    for measure in ("neighbour_ssim", "neighbour_difference", "tissue_jump", "ventricle_jump"):
        assert mixed[measure] > 5 * highest[measure]
    assert verdict["copies"]["share_baseline"] == 0
    turned = judge.score(fresh[:, ::-1])["distances"]["sampled"]
    assert turned["sagittal_pca"] > 5 * highest["sagittal_pca"]


def test_the_verdict_is_plain_numbers_of_what_lies_in_the_training_slices_box(judge, fresh, verdict):
    assert json.loads(json.dumps(verdict, allow_nan=False)) == verdict
    marked = fresh.copy()
    marked[:, :, : content_box(slices(range(40)).images).top] = 255
    assert judge.score(marked, shuffled(fresh)) == verdict
    assert verdict["levels"] == list(range(LEVELS))
    assert all(len(verdict["curves"][kind]["tissue"]["mean"]) == LEVELS for kind in ("sampled", "train", "held_out"))


def test_table_sets_every_figure_beside_real_ones(judge, fresh, verdict):
    lines = table(verdict).splitlines()
    assert lines[0].split()[4:] == ["sampled", "baseline", "held", "out", "floor", "floor", "highest"]
    ssim = next(line for line in lines if line.startswith("neighbour ssim")).split()
    assert float(ssim[2]) == pytest.approx(verdict["distances"]["sampled"]["neighbour_ssim"], rel=1e-3)
    assert lines[-1] == "volumes of 8 levels: 20 sampled, 20 baseline, 20 held out, 40 train"


def test_what_cannot_be_judged_is_said_in_a_line(judge, fresh):
    with pytest.raises(InputError, match="1 sampled volume can't"):
        judge.score(fresh[:1])
    with pytest.raises(InputError, match=r"7 slices .* 8 levels, 0 to 7"):
        judge.score(fresh, fresh[:, 1:])
    with pytest.raises(InputError, match="can't be judged beside training slices"):
        judge.score(fresh[..., 1:])
    with pytest.raises(InputError, match="1 held-out volume can't"):
        VolumeJudge(slices(range(4)), slices(range(4, 5)))
    with pytest.raises(InputError, match="4 people"):
        VolumeJudge(slices(range(3)), slices(range(4, 6)))
