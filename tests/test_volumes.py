"""Whole brains: the order of drawing, what each slice is shown, and that a brain depends on its own seed."""

import json
import math
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
import tiny
import torch
from nilearn.datasets import load_mni152_brain_mask, load_mni152_template
from PIL import Image

import dataset
import predict
import train
from inference.codec import Codec, to_uint8
from inference.model import TrainedModel
from inference.sampling import Sampler
from inference.volumes import NEIGHBOURS, VolumeSampler, plan
from modules import RQVAE
from networks.transformer import MAX_OFFSET, Transformer
from reading import nifti
from runtime.compute import Compute
from runtime.errors import InputError
from training import likelihood
from training.codes import AugmentedCodes, EncodedSplit, brain_of_slice, choose_neighbours, neighbour_rows

CPU = Compute(torch.device("cpu"), False)


# ------------------------------------------------------------------------------------------- the order


@pytest.mark.parametrize(("levels", "start"), [(range(32), 16), (range(3, 60), 5), (range(9, 11), 10), (range(7), 0)])
def test_every_level_is_drawn_once_beside_what_is_there(levels, start):
    known = {start}
    for places in plan(levels, start):
        for place in places:
            assert place.level not in known
            assert 1 <= len(place.neighbours) <= NEIGHBOURS
            assert set(place.neighbours) <= known
            assert all(abs(other - place.level) <= MAX_OFFSET for other in place.neighbours)
        known |= {place.level for place in places}
    assert known == set(levels)


def test_most_slices_lie_between_two_and_few_rounds_are_needed():
    rounds = list(plan(range(32), 16))
    assert len(rounds) == 5
    last = {place.level: place.neighbours for place in rounds[-1]}
    assert last == {level: [level - 1, level + 1] for level in range(1, 31, 2)}
    assert {place.level: place.neighbours for place in rounds[1]} == {0: [8, 16], 31: [24, 16]}


# --------------------------------------------------------------------------------- what training shows


def test_rows_beside_are_of_the_same_brain_at_their_distance():
    slices = tiny.slices(3, 5)
    beside = neighbour_rows(slices)
    assert beside.shape == (15, 2 * MAX_OFFSET + 1)
    for row, others in enumerate(beside):
        for by, other in zip(range(-MAX_OFFSET, MAX_OFFSET + 1), others, strict=True):
            if 0 <= slices.levels[row] + by < 5:
                assert slices.people[other] == slices.people[row]
                assert slices.levels[other] == slices.levels[row] + by
            else:
                assert other == -1


def test_scans_of_one_person_are_different_brains():
    slices = tiny.slices(1, 4)
    slices.names[:] = [f"case_001_week_{week}_slice_{level}.nii.gz" for week in (0, 1) for level in (0, 1)]
    assert brain_of_slice(slices).tolist() == [0, 0, 1, 1]


def test_chosen_neighbours_are_there_and_differ():
    beside = neighbour_rows(tiny.slices(20, 32))
    rows, offsets = choose_neighbours(beside, np.random.default_rng(0))
    shown = offsets != 0
    assert np.array_equal(rows[shown], np.take_along_axis(beside, offsets + MAX_OFFSET, axis=1)[shown])
    assert 0.4 < (~shown.any(axis=1)).mean() < 0.6  # nearly half of all slices are learnt alone
    both = shown.all(axis=1)
    assert 0.1 < both.mean() < 0.4
    assert (offsets[both, 0] != offsets[both, 1]).all()
    assert (np.sign(offsets[both, 0]) != np.sign(offsets[both, 1])).mean() > 0.7
    assert set(np.abs(offsets[shown])) == set(range(1, MAX_OFFSET + 1))


@pytest.fixture
def codec() -> Codec:
    torch.manual_seed(0)
    model = RQVAE(codebook_size=16, depth=2, width=8, blocks=1, dim=4)
    torch.nn.init.normal_(model.quantizer.codebooks)
    return Codec(model, {"box": [0, 0, tiny.SIZE, tiny.SIZE], "size": [tiny.SIZE, tiny.SIZE]}, CPU)


def test_a_brain_is_varied_as_a_whole_and_the_same_for_the_same_epoch(codec):
    slices = tiny.slices(8, 4)
    plain = EncodedSplit(codec, slices, 4, 1)
    varied = AugmentedCodes(codec, slices, plain, 8)
    codes, variation = varied._augmented(0, 2)
    changed = variation.augmented.flatten()
    assert changed.view(8, 4).unique(dim=1).shape[1] == 1
    assert 0 < changed.float().mean() < 1
    same = (codes[0] == plain.codes[0]).flatten(1).all(1)
    assert same[~changed].all()
    assert not same[changed].all()
    first, other, later = (list(varied.shuffled(0, epoch, start=start)) for epoch, start in ((1, 0), (2, 0), (1, 2)))
    assert not all(torch.equal(a.codes[0], b.codes[0]) for a, b in zip(first, other, strict=True))
    for a, b in zip(later, first[2:], strict=True):
        assert torch.equal(a.codes[0], b.codes[0])
        assert torch.equal(a.neighbours.offsets, b.neighbours.offsets)
        assert torch.equal(a.neighbours.codes[0], b.neighbours.codes[0])


# ------------------------------------------------------------------------------------------- drawing


AGE = {"name": "age", "unit": "years", "categories": None, "low": 20.0, "high": 90.0, "mean": 50.0, "deviation": 10.0}
SEX = {"name": "sex", "unit": None, "categories": ["F", "M"], "low": 0.0, "high": 1.0, "mean": 0.0, "deviation": 1.0}
COVARIATES = [AGE | {"values": [-2.0, 3.0]}, SEX | {"values": [0.0, 1.0]}]


@pytest.fixture
def model(codec, tmp_path) -> TrainedModel:
    """One that draws 12 levels, 2 to 13, with random weights."""
    prior = Transformer((4, 4), [16], 4, 14, width=24, layers=2, heads=3, inner=8, covariates=COVARIATES).eval()
    torch.manual_seed(0)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    prior.level_share.copy_(torch.tensor([0, 0, *[1 / 12] * 12, 0]))
    sampler = object.__new__(Sampler)
    sampler.prior, sampler.path, sampler.codec, sampler.is_gan = prior, tmp_path / "transformer.pth", codec, False
    sampler.title, sampler.levels, sampler.description = prior.title, prior.levels, {}
    return TrainedModel(codec, {}, sampler, tmp_path / "vqvae.pth")


def test_a_brain_depends_on_its_own_seed_only(model):
    together = model.sample_volumes([4, 7])
    assert together.shape == (2, 12, tiny.SIZE, tiny.SIZE)
    assert together.dtype == np.float32
    assert (model.sample_volume(7) == together[1]).mean() > 0.95  # rounding may tip a code
    assert (together[0] == together[1]).mean() < 0.5


def test_brains_that_are_asked_for(model):
    assert model.covariates == {"age": (20.0, 90.0), "sex": ["F", "M"]}
    codes = VolumeSampler(model.sampler).sample
    [anyone], [old], [young] = codes([3]), codes([3], where={"age": 90}), codes([3], where={"age": 20, "sex": "M"})
    assert not torch.equal(old, anyone)
    assert not torch.equal(old, young)
    assert torch.equal(codes([3], where={"sex": "M", "age": "20.0"})[0], young)
    expected = torch.tensor([[math.nan, 1.0], [math.nan, 1.0]])
    torch.testing.assert_close(model.sampler.covariates({"sex": "M"}, 2), expected, equal_nan=True)
    assert model.sampler.covariates({"age": 70}, 1)[0, 0] == (70 - 50) / 10
    [both] = codes([2, 3], where={"age": [30, 20], "sex": ["F", "M"]})
    assert torch.equal(both[1:], young)
    [drawn], [asked] = model.sample_codes([3], 5), model.sample_codes([3], 5, where={"age": 90})
    assert not np.array_equal(drawn, asked)
    for where, message in (
        ({"cdr": 1}, "can be asked for age, sex"),
        ({"age": 91}, "age=91: it can be from 20 to 90"),
        ({"age": "old"}, "age=old: it can be from 20 to 90"),
        ({"age": math.nan}, "age=nan: it can be from 20 to 90"),
        ({"sex": "f"}, "sex=f: it can be F, M"),
        ({"age": [30, 40]}, "age: give one value, or 1, not 2"),
    ):
        for call in (model.sample, model.sample_volumes):
            with pytest.raises(InputError, match=message):
                call([0], where=where)


def test_each_slice_is_drawn_given_the_codes_beside_it(model):
    """The codes of a brain are those that the prior draws, slice by slice, given what the plan shows."""
    volumes = VolumeSampler(model.sampler)
    [codes] = volumes.sample([3])
    assert codes.shape == (1, 12, 4, 4)
    assert volumes.levels == range(2, 14)
    for place in (place for places in plan(volumes.levels, volumes.middle) for place in places):
        seed, level = 3 + ((place.level + 2) << 32), torch.tensor([place.level])
        given = volumes._conditioning([codes], [(0, place)])
        assert given.offsets[0, : len(place.neighbours)].tolist() == [other - place.level for other in place.neighbours]
        for i, other in enumerate(place.neighbours):
            assert torch.equal(given.codes[0][0, i], codes[0, other - 2])
        prior = model.sampler.prior
        [sampled] = prior.sample([seed], level, neighbours=given)
        assert torch.equal(sampled[0], codes[0, place.level - 2])


def test_a_brain_around_a_given_slice_holds_it(model):
    given = np.random.default_rng(0).integers(0, 256, (tiny.SIZE, tiny.SIZE), np.uint8)
    volume = model.sample_volume(0, around=given, level=5)
    volumes, codes = VolumeSampler(model.sampler), model.codec.encode(given[None])[:1]
    sampled = volumes.sample([0], (5, codes))
    assert torch.equal(sampled[0][0, 5 - 2], codes[0][0].long())
    np.testing.assert_array_equal(volumes.paint(sampled, [0])[0], volume)
    assert not np.array_equal(volume, model.sample_volume(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"around": np.zeros((32, 32), np.uint8)}, "goes with its level"),
        ({"level": 4}, "goes with its level"),
        ({"around": np.zeros((16, 32), np.uint8), "level": 4}, "is 32x32, as in training"),
        ({"around": np.full((32, 32), 2.0), "level": 4}, r"float in \[0, 1\]"),
        ({"around": np.zeros((32, 32), np.uint8), "level": 1}, "draws brains of levels 2 to 13"),
    ],
)
def test_what_cannot_be_drawn_is_said(model, options, message):
    with pytest.raises(InputError, match=message):
        model.sample_volume(0, **options)


# ------------------------------------------------------------------------------------- the whole way


def write_scans(root: Path) -> None:
    """A data set of small 3-D volumes: the MNI152 template, each person's moved and dimmed, 6 mm voxels."""
    image = load_mni152_template(resolution=6)
    voxels = np.asarray(image.dataobj, np.float32) * np.asarray(load_mni152_brain_mask(resolution=6).dataobj)
    for person, split in enumerate(["train"] * 5 + ["validate"] * 2 + ["test"] * 2, 1):
        moved = np.roll(voxels, (person % 3 - 1, person % 2), (0, 1)) * (1 - 0.05 * person)
        path = root / split / f"case_{person:03d}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(moved, image.affine), path)


def test_volumes_in_brains_out(tmp_path, monkeypatch, capsys):
    """train.py on 3-D volumes, then predict.py --volumes: NIfTI files that lie where the training's do."""
    write_scans(tmp_path / "scans")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(likelihood, "Transformer", partial(Transformer, width=24, layers=2, inner=8))

    def run(script: ModuleType, *arguments: object) -> str:
        """What a command prints."""
        monkeypatch.setattr(sys, "argv", ["", "--device=cpu", *map(str, arguments)])
        assert script.main() == 0
        return capsys.readouterr().out

    small = ["--width=8", "--blocks=1", "--depth=2", "--codebook-size=16", "--painter-slices=0", "--batch-size=12"]
    prior = ["--prior=transformer", "--prior-epochs=1", "--prior-batch-size=12", "--epochs=1", "--slices=8:20"]
    run(train, "--data", tmp_path / "scans", *small, *prior, "--out", tmp_path / "runs")
    [weights] = tmp_path.glob("runs/*/vqvae.pth")

    out = tmp_path / "out"
    assert "2 whole brains of 12 levels each" in run(predict, weights, "--volumes=2", "--samples=0", "--out", out)
    scan = nib.load(tmp_path / "scans/train/case_001.nii.gz")
    made = to_uint8(TrainedModel.load(weights, device="cpu").sample_volumes([0, 1]))
    for seed, expected in enumerate(made):
        brain = nib.load(out / f"volumes/seed_{seed:05d}.nii.gz")
        assert nib.aff2axcodes(brain.affine) == ("R", "A", "S")
        np.testing.assert_allclose(brain.header.get_zooms(), 6)
        assert (brain.affine @ [0, 0, 0, 1])[2] == pytest.approx((scan.affine @ [0, 0, 8, 1])[2])
        assert np.asarray(brain.dataobj).dtype == np.uint8
        assert np.array_equal(nifti.cut_slices(brain, nifti.WHOLE), expected)
    page = (out / "report.html").read_text()
    for name, heading in (
        ("volumes.png", "Whole brains in three planes"),
        ("volume_levels.gif", "Volume levels"),
    ):
        assert (out / name).is_file()
        assert heading in page
    about = json.loads((out / "metrics.json").read_text())["volumes"]
    assert (about["number"], about["levels"]) == (2, 12)

    scan = tmp_path / "scans/test/case_008.nii.gz"
    picture = dataset.read_files([scan], nifti.Cut(slices="10:11")).images[0]
    Image.fromarray(picture).save(given := tmp_path / "case_008_slice_10.png")
    around = ["--volumes=1", "--samples-only", "--samples=0", "--around", given, "--out", tmp_path / "around"]
    assert "invented around level 10 of case_008_slice_10.png" in run(predict, weights, *around)
