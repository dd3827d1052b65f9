"""Figures: every pixel of a picture survives, nothing is mirrored or rescaled, captions say what must be said."""

import json

import matplotlib
import numpy as np
import pytest
from PIL import Image

from report import plots
from report.plots import ERROR_GAIN

TITLE = "synthetic demo set, test split"


def pictures(n=4, height=64, width=64, seed=0):
    """Noise: no two places of it are alike, so a picture found in a figure is found right side up and unsmoothed."""
    return np.random.default_rng(seed).integers(0, 256, (n, height, width), dtype=np.uint8)


def drawn(path):
    """The figure as uint8 [H, W, 3]."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def find(figure, picture, zoom=1):
    """(row, column) of the gray `picture`, enlarged `zoom` times, in `figure`; fails where it is not to the pixel."""
    tile = picture.repeat(zoom, 0).repeat(zoom, 1)
    gray = figure[..., 0]
    height, width = tile.shape
    candidates = np.argwhere(gray[: gray.shape[0] - height + 1, : gray.shape[1] - width + 1] == tile[0, 0])
    row = tile[0]
    for y, x in candidates:
        window = figure[y : y + height, x : x + width]
        if np.array_equal(gray[y, x : x + width], row) and (window == tile[..., None]).all():
            return int(y), int(x)
    raise AssertionError("the picture is not in the figure, pixel for pixel")


def description(path):
    with Image.open(path) as image:
        return image.text["Description"]


def epochs(n=3, levels=1):
    rows = []
    for epoch in range(n):
        row = {"epoch": epoch, "train_reconstruction": 0.2 / (epoch + 1), "train_commitment": 0.01 / (epoch + 1)}
        row["validation_ssim"] = 0.9 + 0.01 * epoch
        for level in range(levels):
            row |= {f"perplexity_{level}": 100 + epoch, f"codes_used_{level}": 200 + epoch}
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

FIGURES = {  # name -> (call, numbers that the caption must give)
    "training_curves": (lambda path: plots.training_curves(epochs(), path, TITLE), ["3 epochs"]),
    "gan_curves": (lambda path: plots.gan_curves(GAN_ROWS, path, TITLE), ["4 epochs"]),
    "likelihood_curves": (
        lambda path: plots.likelihood_curves(
            [{"epoch": e, "train_bits": 5 - e, "validation_bits": abs(e - 2) + 4.5} for e in range(4)], path, TITLE
        ),
        ["4.500 bits per code in epoch 2"],
    ),
    "reconstructions": (
        lambda path: plots.reconstructions(pictures(2), pictures(2, seed=1), ["a", "b"], path, TITLE),
        ["2 slices", "5 x"],
    ),
    "code_map": (
        lambda path: plots.code_map(pictures()[0], [pictures(height=16, width=16)[0]], pictures()[1], path, TITLE),
        ["1 slice"],
    ),
    "code_depths": (
        lambda path: plots.code_depths(pictures()[0], pictures(2), ["1 code", "2 codes"], path, TITLE),
        ["1 slice,", "first of its codes"],
    ),
    "ssim_distribution": (
        lambda path: plots.ssim_distribution([0.5, 0.7, 0.9], path, TITLE),
        ["3 slices", "Mean 0.7000", "deviation 0.1633", "lowest 0.5000", "highest 0.9000", "2 of 3 at or above 0.6"],
    ),
    "sample_grid": (lambda path: plots.sample_grid(pictures(), path, TITLE), ["4 samples"]),
    "samples_beside_real": (
        lambda path: plots.samples_beside_real(pictures(), pictures(seed=1), path, TITLE),
        ["4 samples", "4 real slices"],
    ),
    "beside_template": (
        lambda path: plots.samples_beside_real(pictures(1), pictures(1, seed=1), path, TITLE, kind="template slice"),
        ["1 sample, 1 template slice."],
    ),
    "nearest_training": (
        lambda path: plots.nearest_training(pictures(2), pictures(2, seed=1), [0.5, 0.6], ["a", "b"], path, TITLE),
        ["2 samples", "training slice"],
    ),
    "memorisation": (
        lambda path: plots.memorisation([0.1, 0.2, 0.3, 0.9], np.linspace(0, 0.5, 101), path, TITLE),
        ["4 samples", "101 held-out slices", "SSIM 0.495", "25.0 %"],
    ),
    "code_usage": (
        lambda path: plots.code_usage(2 * [np.array([4, 3, 0, 0])], path, TITLE),
        ["14 codes", "2 of 4 used at each level"],
    ),
    "rate_distortion": (
        lambda path: plots.rate_distortion(
            [{"name": "JPEG", "bytes": b, "ssim": 1 - 100 / b} for b in (500, 1000)]
            + [{"name": "VQ-VAE", "bytes": 700, "ssim": 0.95}],
            path,
            TITLE,
        ),
        ["bytes per image"],
    ),
    "three_planes": (
        lambda path: plots.three_planes(
            pictures(20).reshape(2, 10, 64, 64), path, TITLE, pictures(30, seed=1).reshape(3, 10, 64, 64)
        ),
        ["2 samples", "axial at the middle level, sagittal beside the middle", "2 real brains"],
    ),
    "volume_curves": (
        lambda path: plots.volume_curves(VOLUMES, path, TITLE),
        ["155 training, 10 held-out, 32 samples", "10th to 90th percentile"],
    ),
    "epoch_frame": (
        lambda path: plots.epoch_frame(pictures(2), pictures(2, seed=1), 3, "SSIM 0.5", path, TITLE, "reconstruction"),
        ["2 slices"],
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_a_png_that_names_its_data_and_number(tmp_path, name):
    draw, said = FIGURES[name]
    path = tmp_path / f"{name}.png"
    draw(path)
    caption = description(path)
    assert TITLE in caption
    for words in said:
        assert words in caption
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # no temporary file is left
    assert drawn(path).std() > 0


@pytest.mark.parametrize("name", ["likelihood_curves", "reconstructions", "code_map"])
def test_the_same_data_make_the_same_file(tmp_path, name):
    first, second = tmp_path / "1.png", tmp_path / "2.png"
    FIGURES[name][0](first)
    FIGURES[name][0](second)
    assert first.read_bytes() == second.read_bytes()


def test_figures_keep_no_global_state(tmp_path):
    def settings():
        return {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}

    before = settings()
    plots.sample_grid(pictures(), tmp_path / "grid.png", TITLE)
    plots.ssim_distribution([0.5, 0.9], tmp_path / "ssim.png", TITLE)
    assert settings() == before


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "grid.png"
    plots.sample_grid(pictures(), path, TITLE)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="pair up"):
        plots.reconstructions(pictures(2), pictures(3), ["a", "b"], path, TITLE)
    with pytest.raises(ValueError, match="no column of a GAN"):
        plots.gan_curves(epochs(), path, TITLE)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


# ------------------------------------------------------------------------------------- pictures, exactly


@pytest.mark.parametrize(("height", "width", "zoom"), [(256, 256, 1), (256, 128, 1), (64, 64, 4), (50, 70, 3)])
def test_samples_are_drawn_to_the_pixel_in_reading_order(tmp_path, height, width, zoom):
    samples = pictures(5, height, width)
    plots.sample_grid(samples, tmp_path / "grid.png", TITLE, labels=[f"seed {i}" for i in range(5)])
    figure = drawn(tmp_path / "grid.png")
    places = [find(figure, sample, zoom) for sample in samples]
    assert places == sorted(places)


def test_uint8_and_float_give_the_same_figure(tmp_path):
    plots.sample_grid(pictures(), tmp_path / "bytes.png", TITLE)
    plots.sample_grid(pictures() / 255, tmp_path / "floats.png", TITLE)
    assert (tmp_path / "bytes.png").read_bytes() == (tmp_path / "floats.png").read_bytes()


def test_gray_is_not_stretched_to_the_pictures_own_range(tmp_path):
    dim = np.full((1, 64, 64), 40, np.uint8)
    dim[0, 10, 20] = 60
    plots.sample_grid(dim, tmp_path / "grid.png", TITLE)
    find(drawn(tmp_path / "grid.png"), dim[0], zoom=4)


def test_reconstructions_stand_below_their_originals_and_errors_below_both(tmp_path):
    originals, reconstructions = pictures(3, 256, 128), pictures(3, 256, 128, seed=1)
    reconstructions[2] = originals[2] - np.minimum(originals[2], 10)
    plots.reconstructions(originals, reconstructions, ["a", "b", "c"], tmp_path / "figure.png", TITLE)
    figure = drawn(tmp_path / "figure.png")
    tops = [find(figure, picture) for picture in originals]
    middles = [find(figure, picture) for picture in reconstructions]
    assert [x for _, x in tops] == [x for _, x in middles] == sorted(x for _, x in tops)
    assert len({y for y, _ in tops}) == len({y for y, _ in middles}) == 1

    step = middles[0][0] - tops[0][0]
    for (y, x), original, reconstruction in zip(middles, originals, reconstructions, strict=True):
        error = np.abs(original / 255 - reconstruction / 255)
        expected = matplotlib.colormaps["magma"](np.clip(ERROR_GAIN * error, 0, 1), bytes=True)[..., :3]
        shown = figure[y + step : y + step + 256, x : x + 128].astype(int)
        assert np.abs(shown - expected).max() <= 4  # a neighbour in the colour map, by rounding


def test_samples_stand_left_of_real_slices(tmp_path):
    samples, real = pictures(6, 128, 128), pictures(6, 128, 128, seed=1)
    plots.samples_beside_real(samples, real, tmp_path / "figure.png", TITLE)
    figure = drawn(tmp_path / "figure.png")
    left, right = ([find(figure, picture, 2) for picture in stack] for stack in (samples, real))
    assert [y for y, _ in left] == [y for y, _ in right]
    assert max(x for _, x in left) < min(x for _, x in right)


def parts(path):
    """The parts that the file names: (label, its pixels put together, uint8 [H, W, 3])."""
    with Image.open(path) as image:
        layout, figure = json.loads(image.text["Parts"]), np.asarray(image.convert("RGB"))
    found = []
    for part in layout["parts"]:
        size = next(np.subtract(tile[2:], tile[:2])[::-1] for line in part["tiles"] for tile in line if tile)
        black = np.zeros((*size, 3), np.uint8)
        lines = [[figure[t[1] : t[3], t[0] : t[2]] if t else black for t in line] for line in part["tiles"]]
        found.append((part["label"], np.vstack([np.hstack(line) for line in lines])))
    return found


def test_parts_are_tiles_columns_or_halves_to_the_pixel(tmp_path):
    a, b = pictures(5, 256, 128), pictures(5, 256, 128, seed=1)
    plots.sample_grid(a, tmp_path / "tiles.png", TITLE, labels=[f"seed {i}" for i in range(5)])
    found = parts(tmp_path / "tiles.png")
    assert [label for label, _ in found] == [f"seed {i}" for i in range(5)]
    assert np.array_equal([pixels[..., 0] for _, pixels in found], a)

    plots.reconstructions(a[:2], b[:2], ["first", "second"], tmp_path / "columns.png", TITLE)
    for (label, pixels), name, top, middle in zip(
        parts(tmp_path / "columns.png"), ["first", "second"], a, b, strict=False
    ):
        assert label == name
        assert pixels.shape == (3 * 256, 128, 3)
        assert np.array_equal(pixels[:512, :, 1], np.vstack([top, middle]))

    plots.samples_beside_real(a, b, tmp_path / "halves.png", TITLE, kind="template slice")
    for (label, pixels), name, own in zip(
        parts(tmp_path / "halves.png"), ["samples", "template slices"], (a, b), strict=True
    ):
        assert label == name
        rest = np.zeros((3, 256, 128), np.uint8)
        assert np.array_equal(pixels[..., 2], np.vstack([np.hstack(own[:4]), np.hstack([own[4], *rest])]))


@pytest.mark.parametrize(("name", "number"), [("training_curves", 5), ("gan_curves", 3), ("volume_curves", 4)])
def test_parts_of_a_chart_are_its_panels_whole_and_apart(tmp_path, name, number):
    FIGURES[name][0](tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as image:
        panels = [part["tiles"][0][0] for part in json.loads(image.text["Parts"])["parts"]]
        width, height = image.size
    assert len(panels) == number
    covered = np.zeros((height, width), int)
    for left, top, right, bottom in panels:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        covered[top:bottom, left:right] += 1
    assert covered.max() == 1
    outside = drawn(tmp_path / "chart.png").min(axis=2)[covered == 0] < 128
    text = int(0.12 * height)  # heading at the top and caption at the bottom are in no panel
    between = covered[text:-text] == 0
    assert outside.any()
    assert (drawn(tmp_path / "chart.png").min(axis=2)[text:-text][between] == 255).all()


def test_figures_of_one_frame_carry_no_caption_in_their_pixels(tmp_path):
    plots.epoch_frame(pictures(2), pictures(2), 3, "SSIM 0.5", tmp_path / "long.png", TITLE * 20, "reconstruction")
    plots.epoch_frame(pictures(2), pictures(2), 3, "SSIM 0.5", tmp_path / "short.png", "", "reconstruction")
    assert np.array_equal(drawn(tmp_path / "long.png"), drawn(tmp_path / "short.png"))
    assert TITLE in description(tmp_path / "long.png")


def test_slices_by_rank_fill_their_panel(tmp_path):
    plots.ssim_distribution(np.linspace(0.99, 0.995, 100), tmp_path / "ssim.png", TITLE)
    pixels = parts(tmp_path / "ssim.png")[1][1]
    line = np.argwhere((pixels == [0, 114, 178]).all(axis=2))[:, 0]
    assert np.ptp(line) > 0.6 * len(pixels)


def test_what_never_changes_in_training_is_a_sentence_and_no_panel(tmp_path):
    rows = [row | {"codes_used_0": 512, "codes_used_1": 512} for row in epochs(4, levels=2)]
    plots.training_curves(rows, tmp_path / "curves.png", TITLE)
    assert len(parts(tmp_path / "curves.png")) == 4
    assert "Codes used in every epoch, at each level: 512." in description(tmp_path / "curves.png")


def test_codes_fill_the_slice_that_they_stand_for(tmp_path):
    image, decoded = pictures(2, 256, 128)
    codes = np.zeros((64, 32), int)
    codes[0, 0], codes[63, 0] = 511, 300
    plots.code_map(image, [codes, codes[::2, ::2]], decoded, tmp_path / "figure.png", TITLE)
    figure = drawn(tmp_path / "figure.png")
    (y, x), (_, last) = find(figure, image), find(figure, decoded)
    step = (last - x) // 3  # image, two grids, decoded
    grid = figure[y : y + 256, x + step : x + step + 128]
    corner = grid[:4, :4].reshape(-1, 3)
    assert (corner == corner[0]).all()  # one code is one block of 4 x 4, in the corner that it belongs to
    assert (grid[:4, 4:8] != corner[0]).any()
    assert (grid[252:, :4] != grid[:4, :4]).any()
    assert (grid[252:, :4] != grid[:4, 4:8]).any()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"\[N, H, W\]"),
        (np.zeros((0, 4, 4), np.uint8), r"\[N, H, W\]"),
        (np.full((1, 4, 4), 1.01), r"\[0, 1\]"),
        (np.full((1, 4, 4), -0.01), r"\[0, 1\]"),
        (np.full((1, 4, 4), np.nan), r"\[0, 1\]"),
        (np.zeros((1, 4, 4), np.int64), "uint8 or float"),
    ],
)
def test_pictures_of_another_kind_are_refused(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        plots.sample_grid(bad, tmp_path / "grid.png", TITLE)
    assert not list(tmp_path.iterdir())


def test_any_name_can_be_a_label(tmp_path):
    names = ["$x^$_{.png", "a" * 300]  # no mathematics, and no text that runs into its neighbour
    plots.reconstructions(pictures(2), pictures(2, seed=1), names, tmp_path / "figure.png", TITLE)
    figure = drawn(tmp_path / "figure.png")
    [first, second] = [find(figure, picture, 4) for picture in pictures(2)]
    between = figure[40 : first[0], first[1] + 256 : second[1]]
    assert (between == 0).all()  # the ground, and nothing else


# ----------------------------------------------------------------------------------------------- curves


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rows", [epochs(1), epochs(60, levels=8)], ids=["one", "many"])
def test_training_of_any_length_and_depth(tmp_path, rows):
    plots.training_curves(rows, tmp_path / "curves.png", TITLE)


def test_rows_may_have_gaps(tmp_path):
    rows = epochs(3)
    rows[1]["validation_ssim"] = ""
    rows[2]["train_commitment"] = "0.0"  # has no logarithm
    plots.training_curves(rows, tmp_path / "curves.png", TITLE)


@pytest.mark.filterwarnings("error")
def test_scores_that_are_all_alike(tmp_path):
    plots.ssim_distribution([0.97] * 5, tmp_path / "ssim.png", TITLE)
    assert "standard deviation 0.0000" in description(tmp_path / "ssim.png")


# ------------------------------------------------------------------------------------------- animations


def frames(folder, ssims):
    paths = []
    for epoch, ssim in enumerate(ssims):
        paths.append(folder / f"epoch_{epoch:03d}.png")
        plots.epoch_frame(
            pictures(2), pictures(2, seed=epoch + 1), epoch, f"SSIM {ssim}", paths[-1], TITLE, "reconstruction"
        )
    return paths


def test_frames_have_one_size_whatever_the_epoch_says(tmp_path):
    paths = frames(tmp_path, [0.0, 0.12345, float("nan")])
    plots.epoch_frame(pictures(2), pictures(2), 1000, "SSIM 0.9", tmp_path / "epoch_1000.png", TITLE, "reconstruction")
    assert len({drawn(path).shape for path in [*paths, tmp_path / "epoch_1000.png"]}) == 1


def test_progress_shows_every_epoch_and_rests_on_the_last(tmp_path):
    paths = frames(tmp_path, [0.1, 0.2, 0.3])
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


def test_frames_of_two_sizes_or_none_make_no_animation(tmp_path):
    [path] = frames(tmp_path, [0.1])
    plots.epoch_frame(pictures(3), pictures(3), 1, "SSIM 0.2", tmp_path / "wider.png", TITLE, "reconstruction")
    for chosen in ([path, tmp_path / "wider.png"], []):
        with pytest.raises(ValueError, match="one size"):
            plots.animate(chosen, tmp_path / "progress.gif", 0.5)
    assert not (tmp_path / "progress.gif").exists()


def test_walk_goes_there_and_back_with_exact_pictures(tmp_path):
    walk = pictures(4, 256, 128)
    plots.walk_gif(walk, tmp_path / "walk.gif")
    with Image.open(tmp_path / "walk.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (6, (128, 256), 0)
        for number, step in enumerate([0, 1, 2, 3, 2, 1]):
            gif.seek(number)
            assert np.array_equal(np.asarray(gif.convert("L")), walk[step])


def test_planes_are_cuts_of_the_volume():
    volume = np.random.default_rng(0).random((6, 20, 30), np.float32)
    tile = plots._planes(volume)[:: plots.ENLARGED, :: plots.ENLARGED]
    assert np.array_equal(tile[:20], volume[3])
    sagittal, coronal = tile[20 + plots.SEAM : 26 + plots.SEAM], tile[26 + 2 * plots.SEAM :]
    assert np.array_equal(sagittal, volume[::-1, round(plots.OFF_MIDDLE * 20)])  # the highest level on top
    assert np.array_equal(coronal[:, :20], volume[::-1, :, 15])
    assert not coronal[:, 20:].any()
