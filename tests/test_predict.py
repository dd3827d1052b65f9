"""Prediction through its command line: every number and file, samples by seed, bad input, nothing half written."""

import csv
import json
import os
import re
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import LEVELS, blob, run_script
from PIL import Image
from skimage.metrics import structural_similarity
from tiny import content_of

import dataset
import predict
from inference.codec import Codec
from inference.loading import load_autoencoder
from inference.sampling import WALK, Sampler
from networks.pixelcnn import PixelCNN
from runtime import checkpoint, compute


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tiny_cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny_cache))


@pytest.fixture
def call(monkeypatch, capsys, tiny_run, tmp_path):
    """`predict.py vqvae.pth *arguments --device cpu` in this process: (status, stdout, stderr, output folder)."""

    def called(*arguments, model=tiny_run / "vqvae.pth"):
        out = tmp_path / "out"
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, (model, "--device=cpu", *arguments)), f"--out={out}"])
        status = predict.main()
        return status, *capsys.readouterr(), out

    return called


def open_codec(run):
    autoencoder, about = load_autoencoder(run / "vqvae.pth")
    return Codec(autoencoder, about["data"], compute.choose("cpu", "fp32"))


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)


def read_scores(folder):
    with open(folder / "ssim_scores.csv", newline="") as file:
        return list(csv.DictReader(file))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def judged(tiny_run, tiny_cache):
    """(stdout, output folder) of the command `predict.py vqvae.pth --samples 100`, nothing else given."""
    done = run_script("predict.py", tiny_run / "vqvae.pth", "--samples", 100, cache=tiny_cache)
    assert done.returncode == 0, done.stderr
    return done.stdout, tiny_run / "predict"


@pytest.fixture(scope="module")
def pixelcnn(tiny_run, tmp_path_factory):
    """A PixelCNN that holds every code alike, so that it needs log2 K bits a code."""
    autoencoder, about = load_autoencoder(tiny_run / "vqvae.pth")
    _, _, height, width = about["data"]["box"]
    prior = PixelCNN([[height // 4, width // 4]], [64], LEVELS, width=8, layers=1)
    torch.nn.init.zeros_(prior.grids[0].heads[0][-1].weight)
    torch.nn.init.zeros_(prior.grids[0].heads[0][-1].bias)
    path = tmp_path_factory.mktemp("prior") / "pixelcnn.pth"
    checkpoint.save(path, content_of(prior, autoencoder))
    return path


# ------------------------------------------------------------------------------------------------ scores


def test_everything_that_is_promised_is_written(judged):
    _, folder = judged
    expected = ["metrics.json", "ssim_scores.csv", "report.html", "walk.gif", "samples"]
    expected += [f"{name}.png" for name in ("ssim_distribution", "codes", "code_usage", "samples", "memorisation")]
    expected += [f"{name}.png" for name in ("reconstructions_worst", "reconstructions_best", "samples_beside_real")]
    expected += ["nearest_training.png", *(f"samples/seed_{seed:05d}.png" for seed in range(100))]
    assert files(folder) == sorted(expected)
    assert not list(folder.parent.glob(".predict*"))  # no temporary folder is left


def test_scores_are_scikit_images_on_the_whole_test_split(judged, tiny_run, tiny_data, call):
    status, _, _, again = call("--samples=0", "--data", tiny_data)
    assert status == 0
    rows = read_scores(again)
    assert rows == read_scores(judged[1])
    slices = dataset.load(str(tiny_data), ("test",)).splits["test"]
    assert [row["name"] for row in rows] == slices.names
    model, about = load_autoencoder(tiny_run / "vqvae.pth")
    box = dataset.Box(*about["data"]["box"])
    original = torch.from_numpy(np.array(slices.images[[3]]))[:, None] / 255
    with torch.inference_mode():
        decoded = box.paste(model.decode(model.encode(box.crop(original))), (256, 256))
    expected = structural_similarity(original[0, 0].numpy(), decoded[0, 0].numpy(), data_range=1.0)
    assert float(rows[3]["ssim"]) == pytest.approx(expected, abs=1e-5)


def test_metrics_agree_with_the_scores_the_terminal_and_the_grid_that_is_coded(judged, tiny_run):
    out, folder = judged
    metrics, rows = read_metrics(folder), read_scores(folder)
    ssim = np.array([float(row["ssim"]) for row in rows])
    assert metrics["images"] == len(rows) == LEVELS
    expected = {"mean": ssim.mean(), "std": ssim.std(), "min": ssim.min(), "max": ssim.max()}
    expected |= {"passed": (ssim >= 0.6).sum(), "passed_share": (ssim >= 0.6).mean()}
    assert metrics["ssim"] == pytest.approx(expected)
    box = load_autoencoder(tiny_run / "vqvae.pth")[1]["data"]["box"]
    codes = box[2] // 4 * box[3] // 4  # not 64x64: the margins cost nothing
    assert metrics["bytes_per_image"] == codes * 6 / 8  # 64 codes are 6 bits each
    assert metrics["codes"][0]["grid"] == f"{box[2] // 4}x{box[3] // 4}"
    line = next(line for line in out.splitlines() if line.startswith("SSIM  "))
    assert line.split()[1:] == [f"{metrics['ssim'][key]:.4f}" for key in ("mean", "std", "min", "max")]
    assert (metrics["data"], metrics["synthetic"]) == ("synthetic demo set, test split", True)


def test_figures_name_their_data_and_slices(judged):
    _, folder = judged
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            assert "synthetic demo set" in image.text["Description"], path.name
    with Image.open(folder / "samples" / "seed_00007.png") as image:
        assert (image.mode, image.size) == ("L", (256, 256))
        assert "synthetic demo set" in image.text["Description"]
    page = (folder / "report.html").read_text()
    worst = min(read_scores(folder), key=lambda row: float(row["ssim"]))
    assert worst["name"] in page
    assert "Walk" in page
    assert "Progress" in page  # from the run folder


# ----------------------------------------------------------------------------------------------- samples


def test_any_sample_can_be_made_again_from_its_seed(call, pixelcnn):
    def sampled(number, seed):
        status, out, error, folder = call("--prior", pixelcnn, f"--samples={number}", f"--seed={seed}")
        assert status == 0, error
        assert "too few to judge: give --samples 1000" in out
        return {path.name: np.asarray(Image.open(path)).astype(int) for path in (folder / "samples").iterdir()}

    three, one = sampled(3, 40), sampled(1, 41)
    assert sorted(three) == ["seed_00040.png", "seed_00041.png", "seed_00042.png"]
    assert np.abs(one["seed_00041.png"] - three["seed_00041.png"]).max() <= 1
    assert np.abs(three["seed_00040.png"] - three["seed_00041.png"]).max() > 3


def test_a_walk_starts_at_one_seeds_sample_and_ends_at_the_others(tiny_run, pixelcnn):
    codec = open_codec(tiny_run)
    for prior in (tiny_run / "dcgan.pth", pixelcnn):
        sampler = Sampler(prior, codec)
        first = int(sampler.prior.draw_levels([7]))
        for level, meant in ((3, 3), (None, first)):  # a DCGAN's walk stays at the level of the first seed
            [walk] = sampler.walk((7, 8), level)
            [samples] = sampler.sample((7, 8), meant if sampler.is_gan else level)
            assert len(walk) == WALK
            same = [(walk[place] == samples[end]).float().mean() for place, end in ((0, 0), (-1, 1))]
            assert min(same) > 0.99  # a rounding error may tip a code


def test_the_verdict_has_the_floor_beside_it(judged):
    out, folder = judged
    judge = read_metrics(folder)["judge"]
    assert judge["samples"] == 100
    assert set(judge["fidelity"]) == set(judge["floor"]) == {"pca", "randconv", "folds"}
    assert 0 <= judge["memorisation"]["codes"]["median"] <= 1
    assert "real (floor)" in out


def copy_people(data, target, people):
    """A data set of the first `people` of each split, with four slices of each."""
    for split in ("train", "validate", "test"):
        (target / split).mkdir(parents=True)
        files = sorted((data / f"keras_png_slices_{split}").iterdir())
        for person in sorted({path.name[:8] for path in files})[:people]:
            for path in [path for path in files if path.name.startswith(person)][:4]:
                (target / split / path.name).write_bytes(path.read_bytes())


def test_samples_of_a_model_of_other_data_are_not_judged(call, tiny_data, tmp_path):
    copy_people(tiny_data, tmp_path / "other", 1)
    status, out, _, folder = call("--data", tmp_path / "other", "--samples=100")
    assert status == 0
    assert "not the data set that the model was trained on" in out
    assert "the samples are not judged: that takes the data set that the model was trained on" in out
    assert "judge" not in read_metrics(folder)
    assert len(read_metrics(folder)["notes"]) == 2


def test_a_verdict_that_cannot_be_had_is_a_note_and_all_else_is_kept(call, tiny_run, tiny_data, tmp_path):
    """Too few people for the judge: scores and samples stay."""
    copy_people(tiny_data, tmp_path / "few", 2)
    content = torch.load(tiny_run / "vqvae.pth", weights_only=True)
    content["data"]["fingerprint"] = dataset.load(str(tmp_path / "few"), ("test",)).fingerprint
    for name in ("vqvae.pth", "dcgan.pth"):
        torch.save(content if name == "vqvae.pth" else torch.load(tiny_run / name), tmp_path / name)
    status, out, _, folder = call("--data", tmp_path / "few", "--samples=100", model=tmp_path / "vqvae.pth")
    assert status == 0
    assert "note: the samples are not judged: the judge needs 4 training people" in out
    assert len(read_scores(folder)) == 4
    assert len(list((folder / "samples").iterdir())) == 100


def test_without_a_prior_it_scores_only_and_says_so(call, tiny_run, tmp_path):
    alone = tmp_path / "alone" / "vqvae.pth"
    alone.parent.mkdir()
    alone.write_bytes((tiny_run / "vqvae.pth").read_bytes())
    status, out, _, folder = call(model=alone)
    assert status == 0
    assert "no prior beside the checkpoint" in out
    assert "samples" not in files(folder)


def test_a_pixelcnn_gives_entropy_coded_bytes_and_takes_level_and_temperature(call, pixelcnn):
    options = ("--prior", pixelcnn, "--samples=2")
    status, out, _, folder = call(*options, f"--slice={LEVELS - 1}", "--temperature=0.5")
    assert status == 0
    assert "the samples are not judged: leave out --slice" in out
    metrics = read_metrics(folder)
    assert metrics["entropy_coded_bytes"] == pytest.approx(metrics["bytes_per_image"])
    assert metrics["samples"]["source"].endswith(f"slice level {LEVELS - 1}")
    with Image.open(folder / "samples.png") as grid, Image.open(folder / "samples_beside_real.png") as beside:
        assert "seeds 0 to 1;" in grid.text["Description"]
        caption = beside.text["Description"]
    assert f"slice level {LEVELS - 1}, seed 0;" in caption  # the test split has one slice of this level
    assert caption.endswith("left 1 sample, right 1 template slice.")
    status, _, error, _ = call(*options, f"--slice={LEVELS}")
    assert (status, f"slice levels 0 to {LEVELS - 1}" in error) == (2, True)


# ------------------------------------------------------------------------------------------- files given


def test_input_reconstructs_just_those_pictures_whatever_their_names(call, tiny_data, judged, tmp_path):
    given = [tiny_data / "keras_png_slices_test" / f"case_006_slice_{level}.nii.png" for level in (4, 9)]
    names = [path.name for path in given]
    odd = ["a,b.png", "[1].png", '{"x".png']
    for name in odd:
        Image.fromarray(blob(1, 1)).save(tmp_path / name)
    status, _, error, folder = call("--input", *given, *(tmp_path / name for name in odd))
    assert status == 0, error
    assert files(folder / "reconstructions") == sorted([*names, *odd])
    rows, found = ({row["name"]: row for row in read_scores(results)} for results in (judged[1], folder))
    assert list(found) == [*names, *odd]
    for name in names:
        assert float(found[name]["ssim"]) == pytest.approx(float(rows[name]["ssim"]), abs=1e-6)
    assert "samples" not in files(folder)


def test_volumes_come_back_where_they_were_in_their_own_intensities(call, tiny_run, tiny_data, tmp_path):
    slices = dataset.load(str(tiny_data), ("test",)).splits["test"]
    affine = np.array([[0, 0, 1.5, -90], [-2, 0, 0, 120], [0, 3, 0, -70], [0, 0, 0, 1]], float)
    voxels = np.moveaxis(np.array(slices.images[:4]), 0, 2).astype(np.float32) * 10 - 300
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0])), tmp_path / "upright.nii.gz")
    turned = nib.as_closest_canonical(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0]))).as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), nib.io_orientation(affine))
    )
    nib.save(turned, tmp_path / "turned.nii")
    status, _, error, folder = call("--input", *tmp_path.glob("*.nii*"), "--save-nifti")
    assert status == 0, error
    assert files(folder / "reconstructions") == ["turned.nii", "upright.nii.gz"]
    upright = dataset.read_files([tmp_path / "upright.nii.gz"])
    codec = open_codec(tiny_run)
    low, high = upright.ranges[0]
    expected = np.moveaxis(codec.decode(codec.encode(upright.images)), 0, 2) * (high - low) + low
    assert low < expected.min() + 1 < 0 < expected.max()  # the source's own intensities, -300 to 2250
    for name in ("upright.nii.gz", "turned.nii"):
        source, written = nib.load(tmp_path / name), nib.load(folder / "reconstructions" / name)
        assert written.shape == source.shape
        np.testing.assert_array_equal(written.affine, source.affine)
        np.testing.assert_allclose(nib.as_closest_canonical(written).get_fdata(), expected, atol=1)


def test_a_picture_is_scored_and_written_alone_whatever_is_read_with_it(call, tmp_path):
    """Black that a larger neighbour's canvas adds around it is no part of it."""
    small, large = blob(1, 3)[100:160, 100:150], blob(2, 5)[40:220, 60:200]
    for name, picture in (("small.png", small), ("large.png", large)):
        Image.fromarray(picture).save(tmp_path / name)
    _, _, _, results = call("--input", tmp_path / "small.png")
    [alone] = read_scores(results)
    _, _, _, results = call("--input", tmp_path / "small.png", tmp_path / "large.png")
    together = {row["name"]: row for row in read_scores(results)}["small.png"]
    with Image.open(results / "reconstructions" / "small.png") as written:
        made = np.asarray(written)
    assert made.shape == small.shape
    score = structural_similarity(small / 255, made / 255, data_range=1.0)
    assert float(together["ssim"]) == pytest.approx(score, abs=2e-3)  # the file is rounded to 8 bits
    assert float(alone["ssim"]) == pytest.approx(float(together["ssim"]), abs=0.05)  # borders of other boxes


def test_a_black_slice_is_scored_but_not_shown_as_the_best(call, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(predict.plots, "reconstructions", lambda a, *rest, **how: shown.append(a))
    for name, picture in (("black.png", np.zeros((256, 256), np.uint8)), ("brain.png", blob(1, 3))):
        Image.fromarray(picture).save(tmp_path / name)
    status, _, _, results = call("--input", tmp_path / "black.png", tmp_path / "brain.png")
    assert status == 0
    assert {row["name"] for row in read_scores(results)} == {"black.png", "brain.png"}
    assert [(len(pictures), pictures.max() > 0) for pictures in shown] == [(1, True), (1, True)]


def test_a_volume_unlike_the_training_slices_is_noted_with_advice(call, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 2)).astype(np.uint8)
    nib.Nifti1Image(noise, np.diag([2, 2, 2, 1])).to_filename(tmp_path / "coarse.nii")
    _, out, _, _ = call("--input", tmp_path / "coarse.nii")
    assert "is this a brain? If its voxels aren't of 1 mm, try --spacing 1" in " ".join(out.split())
    _, out, _, _ = call("--input", tmp_path / "coarse.nii", "--spacing", "1")
    assert "try --spacing" not in out


def test_no_slice_is_cut(call, tmp_path):
    """What reaches beyond the training's box is coded on a larger grid, and its bytes are that grid's."""
    Image.fromarray(np.full((256, 256), 90, np.uint8)).save(tmp_path / "bright.png")
    status, out, _, results = call("--input", tmp_path / "bright.png")
    assert status == 0
    assert "64x64 codes" in out
    assert json.loads((results / "metrics.json").read_text())["bytes_per_image"] == 64 * 64 * 6 / 8
    with Image.open(results / "reconstructions" / "bright.png") as picture:
        assert np.asarray(picture)[[0, -1]].min() > 10  # nor is its border black


# --------------------------------------------------------------------------------------------- bad input


def test_bad_input_is_one_line_and_nothing_is_written(call, tiny_run, tiny_data, tmp_path, monkeypatch):
    (tmp_path / "text.pth").write_text("no checkpoint")
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.png").write_bytes((tiny_run / "training_curves.png").read_bytes()[:300])
    nib.save(nib.Nifti1Image(np.ones((40, 40, 3), np.float32), np.eye(4)), tmp_path / "small.nii")
    another = torch.load(tiny_run / "dcgan.pth", weights_only=True) | {"autoencoder": "0" * 64}
    torch.save(another, tmp_path / "prior.pth")
    png = tiny_data / "keras_png_slices_test" / "case_006_slice_4.nii.png"
    model = tiny_run / "vqvae.pth"
    cases = [  # arguments, what the line says
        ((model, "--samples", "-1"), "must be greater than or equal to 0"),
        ((tmp_path / "nothing.pth",), "no checkpoint at"),
        ((tmp_path / "text.pth",), "damaged"),
        ((model, "--prior", tmp_path / "prior.pth"), "another autoencoder"),
        ((model, "--data", tmp_path / "empty"), "holds no data set"),
        ((model, "--input", tmp_path / "gone.png"), "no file"),
        ((model, "--input", tmp_path / "torn.png"), "torn.png"),
        ((model, "--samples-only", "--samples", "0"), "leaves nothing to do"),
        ((model, "--samples-only", "--prior", "none"), "there is no prior to sample from"),
        ((model, "--around", png), "--around is about whole brains"),
        ((model, "--volumes", "1", "--around", tmp_path / "gone.png"), "gone.png"),
        ((model, "--volumes", "1", "--input", png), "give one of them"),
        ((model, "--volumes", "1"), "draws single slices"),
        ((model, "--codes", "2"), "has 1 per position"),
        ((model, "--input", png, png, "--samples", "1"), "give one of them at a time"),
        ((model, "--input", png, "--data", tiny_data), "not both"),
        ((model, "--input", png, "--save-nifti"), "not volumes"),
        ((model, "--ceiling", tmp_path / "no.pth", "--samples", "100"), "no checkpoint at"),
        ((model, "--input", png, "--slice", "3"), "is about samples"),
        ((model, "--slice", LEVELS), f"knows slice levels 0 to {LEVELS - 1}"),
        ((model, "--temperature", "0.5"), "a DCGAN has no temperature"),
        ((model, "--ceiling", tmp_path / "no.pth", "--samples", "99"), "are judged"),
        ((model, "--device", "cuda"), "no CUDA device"),
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(predict, "reconstruct", lambda *_: pytest.fail("it worked before it complained"))
    for (first, *rest), words in cases:
        before = files(tmp_path), files(tiny_run)
        status, out, error, _ = call(*rest, model=first)
        assert status == 2, (rest, out)
        assert re.fullmatch(r"error: [^\n]+\n", error), (rest, error)
        assert words in error, (rest, error)
        assert (files(tmp_path), files(tiny_run)) == before, rest


def test_samples_alone_need_no_data_and_a_users_own_files_are_never_deleted(call, tmp_path):
    _, _, _, folder = call("--samples=3", "--samples-only", "--data", tmp_path / "nowhere")
    made = files(folder)
    assert read_metrics(folder)["files"] == [name for name in made if "." in name]
    assert "ssim" not in read_metrics(folder)
    assert "ssim_scores.csv" not in made
    for own in ("thesis.txt", os.path.join("samples", "seed_00009.png")):
        (folder / own).write_text("years of work")
        status, _, error, _ = call("--samples=2", "--samples-only")
        assert (status, f"holds {own}" in error) == (2, True)
        assert files(folder) == sorted([*made, own])
        (folder / own).unlink()
    assert call("--samples=2", "--samples-only")[0] == 0
    assert "samples/seed_00002.png" not in files(folder)
