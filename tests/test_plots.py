"""Figures: every pixel of a picture survives, nothing is mirrored or rescaled, captions say what must be said."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from report import plots

TITLE = "synthetic demo set, test split"


def pictures(n=4, height=64, width=64, seed=0):
    """Noise: no two places of it are alike, so a picture found in a figure is found right side up and unsmoothed."""
    return np.random.default_rng(seed).integers(0, 256, (n, height, width), dtype=np.uint8)


def pixels(path):
    """The figure as uint8 [H, W, 3]."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def find(figure, picture, zoom=1):
    """(row, column) of the gray `picture`, enlarged `zoom` times, in `figure`; fails where it is not to the pixel."""
    tile = picture.repeat(zoom, 0).repeat(zoom, 1)
    gray = figure[..., 0]
    height, width = tile.shape
    candidates = np.argwhere(gray[: gray.shape[0] - height + 1, : gray.shape[1] - width + 1] == tile[0, 0])
    for y, x in candidates:
        window = figure[y : y + height, x : x + width]
        if np.array_equal(gray[y, x : x + width], tile[0]) and (window == tile[..., None]).all():
            return int(y), int(x)
    raise AssertionError("the picture is not in the figure, pixel for pixel")


def description(path):
    with Image.open(path) as image:
        return image.text["Description"]


def epochs(n=3, codebooks=1):
    rows = []
    for epoch in range(n):
        row = {"epoch": epoch, "train_reconstruction": 1 / (epoch + 5), "train_commitment": 1 / (epoch + 100)}
        row |= {"validation_ssim": 0.9 + 0.001 * epoch}
        row |= {f"{name}_{i}": 100 + epoch for name in ("perplexity", "codes_used") for i in range(codebooks)}
        rows.append({key: str(value) for key, value in row.items()})
    return rows


GAN_ROWS = [
    {"epoch": epoch, "generator_loss": 0.7, "discriminator_loss": 1.3, "r1": 0.1 / epoch, "accuracy_real": 0.8}
    for epoch in range(1, 5)
]
CURVE = {"mean": [3, 4, 5, 4], "low": [2, 3, 4, 3], "high": [4, 5, 6, 5]}
VOLUMES = {
    "levels": [3, 4, 5, 6],
    **{"train": 155, "held_out": 10, "sampled": 32},
    "curves": {
        kind: dict.fromkeys(("tissue", "ventricle"), CURVE)
        | {key: {name: line[:-1] for name, line in CURVE.items()} for key in ("ventricle_jump", "neighbour_ssim")}
        for kind in ("train", "held_out", "sampled")
    },
}
BRAINS = pictures(30).reshape(3, 10, 64, 64)
RATES = [{"name": "JPEG", "bytes": b, "ssim": 1 - 100 / b} for b in (500, 1000)]
BITS = [{"epoch": e, "train_bits": 5 - e, "validation_bits": abs(e - 2) + 4.5} for e in range(4)]

FIGURES = {  # name -> (call, what the caption must say)
    "training_curves": (lambda path: plots.training_curves(epochs(), path, TITLE), ["3 epochs"]),
    "dcgan_curves": (lambda path: plots.dcgan_curves(GAN_ROWS, path, TITLE), ["4 epochs"]),
    "likelihood_curves": (lambda path: plots.likelihood_curves(BITS, path, TITLE), ["4.500 in epoch 2"]),
    "reconstructions": (
        lambda path: plots.reconstructions(pictures(2), pictures(2, seed=1), ["a", "b"], path, TITLE),
        ["2 slices", "5 x"],
    ),
    "codes": (lambda path: plots.codes(plots.gray(pictures(3)), ["slice", "1 code", "2"], path, TITLE), ["1 slice"]),
    "ssim_distribution": (
        lambda path: plots.ssim_distribution([0.5, 0.7, 0.9], path, TITLE),
        ["3 slices", "Mean 0.7000", "deviation 0.1633", "lowest 0.5000", "highest 0.9000", "2 of 3 at or above 0.6"],
    ),
    "samples": (lambda path: plots.samples(pictures(), path, TITLE), ["4 samples"]),
    "samples_beside_real": (
        lambda path: plots.samples_beside_real(pictures(), pictures(seed=1), path, TITLE, kind="template slice"),
        ["4 samples", "4 template slices"],
    ),
    "nearest_training": (
        lambda path: plots.nearest_training(pictures(2), pictures(2, seed=1), [0.5, 0.6], ["a", "b"], path, TITLE),
        ["2 samples", "training slice"],
    ),
    "memorisation": (
        lambda path: plots.memorisation([0.1, 0.2, 0.3, 0.9], np.linspace(0, 0.5, 101), path, TITLE),
        ["4 samples", "101 held-out slices", "SSIM 0.495", "25.0 %"],
    ),
    "code_usage": (lambda path: plots.code_usage(2 * [np.array([4, 3, 0, 0])], path, TITLE), ["14 codes"]),
    "rate_distortion": (
        lambda path: plots.rate_distortion([*RATES, {"name": "VQ-VAE", "bytes": 700, "ssim": 0.95}], path, TITLE),
        ["bytes per image"],
    ),
    "volumes": (
        lambda path: plots.volumes(BRAINS[:2], path, TITLE, BRAINS),
        ["2 samples", "2 real brains", "left, right"],
    ),
    "volume_curves": (
        lambda path: plots.volume_curves(VOLUMES, path, TITLE),
        ["155 training, 10 held-out, 32 samples", "10th to 90th percentile"],
    ),
    "epoch_frame": (
        lambda path: plots.epoch_frame({"a": pictures(2), "b": pictures(2, seed=1)}, "Epoch 3", path, TITLE),
        ["the same in every frame"],
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_a_png_that_names_its_data_and_number(tmp_path, name):
    draw, words = FIGURES[name]
    settings = dict(matplotlib.rcParams)
    draw(path := tmp_path / f"{name}.png")
    caption = description(path)
    assert TITLE in caption
    for word in words:
        assert word in caption
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # no temporary file is left
    assert pixels(path).std() > 0
    assert dict(matplotlib.rcParams) == settings
    draw(again := tmp_path / "again.png")
    assert path.read_bytes() == again.read_bytes()


# ------------------------------------------------------------------------------------- pictures, exactly


@pytest.mark.parametrize(("height", "width", "zoom"), [(256, 256, 1), (256, 128, 1), (64, 64, 4), (50, 70, 3)])
@pytest.mark.parametrize("number", [1, 5])
def test_samples_are_drawn_to_the_pixel_in_reading_order(tmp_path, number, height, width, zoom):
    samples = pictures(number, height, width) // 4  # not stretched to the range that they have
    plots.samples(samples / 255, tmp_path / "samples.png", TITLE)
    figure = pixels(tmp_path / "samples.png")
    places = [find(figure, sample, zoom) for sample in samples]
    assert places == sorted(places)


def test_reconstructions_stand_below_their_originals_and_errors_below_both(tmp_path):
    originals, reconstructions = pictures(3, 256, 128), pictures(3, 256, 128, seed=1)
    reconstructions[2] = originals[2] - np.minimum(originals[2], 10)
    plots.reconstructions(originals, reconstructions, ["a", "b", "c"], tmp_path / "figure.png", TITLE)
    figure = pixels(tmp_path / "figure.png")
    tops = [find(figure, picture) for picture in originals]
    middles = [find(figure, picture) for picture in reconstructions]
    assert [x for _, x in tops] == [x for _, x in middles] == sorted(x for _, x in tops)
    assert len({y for y, _ in tops}) == len({y for y, _ in middles}) == 1

    step = middles[0][0] - tops[0][0]
    for (y, x), original, reconstruction in zip(middles, originals, reconstructions, strict=True):
        error = 5 * np.abs(original / 255 - reconstruction / 255)
        expected = matplotlib.colormaps["magma"](np.clip(error, 0, 1), bytes=True)[..., :3].astype(int)
        shown = figure[y + step : y + step + 256, x : x + 128]
        assert np.abs(shown - expected).max() <= 4  # a neighbour in the colour map, by rounding


def test_samples_stand_left_of_real_slices(tmp_path):
    samples, real = pictures(6, 128, 128), pictures(6, 128, 128, seed=1)
    plots.samples_beside_real(samples, real, tmp_path / "figure.png", TITLE)
    figure = pixels(tmp_path / "figure.png")
    left, right = ([find(figure, picture, 2) for picture in stack] for stack in (samples, real))
    assert [y for y, _ in left] == [y for y, _ in right]
    assert max(x for _, x in left) < min(x for _, x in right)


def test_any_name_can_be_a_label(tmp_path):
    names = ["$x^$_{.png", "a" * 300]  # no mathematics, and no text that runs into its neighbour
    plots.reconstructions(pictures(2), pictures(2, seed=1), names, tmp_path / "figure.png", TITLE)
    figure = pixels(tmp_path / "figure.png")
    first, second = (find(figure, picture, 4) for picture in pictures(2))
    assert (figure[40 : first[0], first[1] + 256 : second[1]] == 0).all()  # the ground, and nothing else


# ----------------------------------------------------------------------------------------------- curves


@pytest.mark.filterwarnings("error")
def test_short_long_and_equal_series(tmp_path):
    plots.training_curves(epochs(1), tmp_path / "one.png", TITLE)
    plots.training_curves(epochs(60, codebooks=8), tmp_path / "many.png", TITLE)
    plots.ssim_distribution([0.97] * 5, tmp_path / "ssim.png", TITLE)
    plots.dcgan_curves([{"epoch": 1, "score_real": 0.1, "r1": ""}], tmp_path / "gan.png", TITLE)
    heights = [pixels(tmp_path / name).shape[0] for name in ("one.png", "gan.png")]
    assert heights[0] > heights[1]  # a panel whose numbers are missing is left out


def test_rows_may_have_gaps(tmp_path):
    rows = epochs(3)
    plots.training_curves([rows[0], rows[2]], tmp_path / "without.png", TITLE)
    rows[1] = {key: value if key == "epoch" else "" for key, value in rows[1].items()}
    plots.training_curves(rows, tmp_path / "gap.png", TITLE)
    curves = [pixels(tmp_path / name)[:-60] for name in ("without.png", "gap.png")]  # not the caption: 2 or 3 epochs
    assert np.array_equal(*curves)


# ------------------------------------------------------------------------------------------- animations


def test_progress_shows_every_epoch_and_rests_on_the_last(tmp_path):
    paths = [tmp_path / f"epoch_{epoch:03d}.png" for epoch in range(3)]
    for epoch, (path, heading) in enumerate(zip(paths, ["SSIM 0.1", "SSIM nan", "SSIM 0.123456"], strict=True)):
        rows = {"original": pictures(2), "reconstruction": pictures(2, seed=epoch + 1)}
        plots.epoch_frame(rows, heading, path, TITLE)
    plots.animate(paths, tmp_path / "progress.gif", 0.5)
    with Image.open(tmp_path / "progress.gif") as gif:
        assert (gif.n_frames, gif.info["loop"]) == (3, 0)
        assert TITLE in gif.info["comment"].decode()
        for number, rest in enumerate([500, 500, 2000]):
            gif.seek(number)
            assert gif.info["duration"] == rest
            figure = np.asarray(gif.convert("RGB"))
            find(figure, pictures(2)[1], zoom=4)
            find(figure, pictures(2, seed=number + 1)[0], zoom=4)


def test_walk_goes_there_and_back_with_exact_pictures(tmp_path):
    walk = pictures(4, 256, 128)
    plots.walk(walk, tmp_path / "walk.gif")
    with Image.open(tmp_path / "walk.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (6, (128, 256), 0)
        for number, step in enumerate([0, 1, 2, 3, 2, 1]):
            gif.seek(number)
            assert np.array_equal(np.asarray(gif.convert("L")), walk[step])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_brains_stand_upright_whichever_axis_they_are_cut_along(axis):
    """In RAS+ voxels x grows to the right, y to the front, z upwards: those ends are at the letters R, A and S."""
    x, y, z = np.meshgrid(np.arange(20), np.arange(30), np.arange(6), indexing="ij")
    planes = {
        name: plots.three_planes(np.moveaxis(value, axis, 0), axis) for name, value in (("x", x), ("y", y), ("z", z))
    }
    for plane, (rows, columns) in {"axial": "yx", "coronal": "zx", "sagittal": "zy"}.items():
        assert (np.diff(planes[rows][plane], axis=0) == -1).all()  # anterior or superior at the top
        assert (np.diff(planes[columns][plane], axis=1) == 1).all()
    assert (planes["z"]["axial"] == 3).all()
    assert (planes["y"]["coronal"] == 15).all()
    assert (planes["x"]["sagittal"] == 8).all()
    assert plots.PLANES == {"axial": "APLR", "coronal": "SILR", "sagittal": "SIPA"}
