import filecmp
import json
import sys

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import dataset
from reading import demo
from runtime.errors import InputError
from runtime.files import UNFINISHED


@pytest.fixture(scope="module")
def template():
    return demo.Template()


@pytest.fixture(scope="module")
def people(template):
    """Three people, uint8 [3, 32, 256, 256]."""
    return np.stack([demo.person(template, np.random.default_rng([0, number])) for number in range(3)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "set"
    demo.make(folder, people=3, seed=5)
    return folder


def test_content_lies_where_the_published_slices_have_it(people):
    assert (people.shape, people.dtype) == ((3, 32, 256, 256), np.uint8)
    content = np.zeros((256, 256), bool)
    content[40:216, 24:232] = True
    assert (people[..., ~content] == 0).all()
    assert (people.any(axis=(1, 2)).sum(axis=1) > 150).all()  # columns: a head fills most of the box
    assert (people.any(axis=(1, 3)).sum(axis=1) > 120).all()  # rows


def test_background_is_exactly_zero_and_surrounds_the_brain(people):
    for picture in people[:, ::8].reshape(-1, 256, 256):
        assert 0.2 < (picture > 0).mean() < 0.4
        inside = picture[110:146, 90:166]
        assert (inside > 0).all()


def test_anterior_is_to_the_right_and_the_sides_above_and_below(people):
    """A brain is widest behind its middle, and its two sides are of one size."""
    picture = people[0, 0] > 0
    columns = np.flatnonzero(picture.any(axis=0))
    widths = picture.sum(axis=0)[columns]
    back, front = np.array_split(widths, 2)
    assert back.max() > front.max()
    assert abs(picture[:128].sum() / picture.sum() - 0.5) < 0.06


def test_people_differ_and_neighbouring_slices_of_one_do_not(people):
    def likeness(a: np.ndarray, b: np.ndarray) -> float:
        return np.corrcoef(a.ravel(), b.ravel())[0, 1]

    central = people[:, :, 60:196, 50:210].astype(np.float32)
    between = [likeness(central[i, 16], central[j, 16]) for i, j in ((0, 1), (0, 2), (1, 2))]
    within = [likeness(person[16], person[17]) for person in central]
    assert max(between) < 0.85 < 0.93 < min(within)


def test_a_person_is_a_function_of_the_seed(template, people):
    again = demo.person(template, np.random.default_rng([0, 1]))
    np.testing.assert_array_equal(again, people[1])


def test_example_of_the_page_is_every_fourth_slice_of_such_a_person(people):
    image = nib.load(ROOT / "resources" / "example.nii.gz")
    assert b"no person" in image.header["descrip"].item()
    assert image.header.get_zooms() == (1, 1, 4)
    shown = np.moveaxis(np.asarray(image.dataobj), 2, 0)
    assert np.abs(shown.astype(int) - people[1, ::4]).max() <= 1


def test_ventricles_grow_towards_their_field(template):
    """Looking things up further along the field must show more CSF around the ventricles, further back less."""

    def dark(step: float) -> int:
        shape = template.brain.shape
        where = [(i + step * part).round().astype(int) for i, part in zip(np.indices(shape), field, strict=True)]
        looked_up = template.brain[tuple(w.clip(0, n - 1) for w, n in zip(where, shape, strict=True))]
        return int(((looked_up < 0.6) & near).sum())

    field = template.towards_ventricles
    near = np.linalg.norm(field, axis=0) > 0.2
    assert np.linalg.norm(field, axis=0).max() == pytest.approx(1, abs=1e-5)
    assert dark(-2) < 0.8 * dark(0) < dark(0) < 0.8 * dark(3)


def test_smooth_field_is_standard_normal_and_smooth():
    fields = np.stack([demo.smooth_field(np.random.default_rng(seed), 22) for seed in range(20)])
    assert fields.shape == (20, *demo.SHAPE)
    assert abs(fields.mean()) < 0.1
    assert fields.std() == pytest.approx(1, abs=0.1)
    assert fields.std(axis=0).min() > 0.4  # as strong at the borders as in the middle
    assert np.abs(np.diff(fields, axis=1)).max() < 0.5  # per mm


def test_rotation():
    turn = demo._rotation(0.1, 0.2, -0.3)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)
    np.testing.assert_allclose(demo._rotation(np.pi / 2, 0, 0) @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_set_has_the_published_layout_and_says_that_it_is_synthetic(made, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = dataset.load(str(made))
    assert {split: sorted(set(part.people)) for split, part in data.splits.items()} == {
        "train": ["case_001"],
        "validate": ["case_002"],
        "test": ["case_003"],
    }
    assert data.splits["train"].names == [f"case_001_slice_{level}.nii.png" for level in range(32)]
    np.testing.assert_array_equal(data.splits["test"].levels, range(32))
    assert data.synthetic
    assert data.title == "synthetic demo set"
    assert json.loads((made / "synthetic.json").read_text())["source"] == "MNI152 template"
    with Image.open(made / "keras_png_slices_train/case_001_slice_0.nii.png") as image:
        assert (image.size, image.mode, image.format) == ((256, 256), "L", "PNG")


def test_same_seed_same_files_other_seed_other_files(made, tmp_path, template, monkeypatch):
    monkeypatch.setattr(demo, "Template", lambda: template)
    demo.make(tmp_path / "same", people=3, seed=5)
    demo.make(tmp_path / "other", people=3, seed=6)
    names = [f"keras_png_slices_test/case_003_slice_{level}.nii.png" for level in range(0, 32, 5)]
    assert filecmp.cmpfiles(made, tmp_path / "same", names, shallow=False)[0] == names
    assert filecmp.cmpfiles(made, tmp_path / "other", names, shallow=False)[1] == names


@pytest.mark.parametrize(("people", "split"), [(3, (1, 1, 1)), (12, (10, 1, 1)), (40, (32, 4, 4))])
def test_a_tenth_of_the_people_to_validate_and_to_test(people, split, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "Template", lambda: None)
    monkeypatch.setattr(demo, "person", lambda template, rng: np.zeros((1, 256, 256), np.uint8))
    demo.make(tmp_path / "set", people)
    counts = [len(list((tmp_path / f"set/keras_png_slices_{name}").iterdir())) for name in dataset.SPLITS]
    assert tuple(counts) == split


def test_nothing_is_written_over(made, tmp_path):
    before = sorted(made.rglob("*"))
    with pytest.raises(InputError, match="isn't empty"):
        demo.make(made)
    assert sorted(made.rglob("*")) == before
    for people, seed in ((2, 0), (-1, 0), (3, -1), (10**11, 0), (3, 10**400)):
        with pytest.raises(InputError, match="3 to 100,000 people and a seed from 0 to 2,147,483,648, not "):
            demo.make(tmp_path / "new", people, seed)
    assert list(tmp_path.iterdir()) == []


def test_all_appears_or_nothing(tmp_path, monkeypatch):
    def full(template, rng):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "Template", lambda: None)
    monkeypatch.setattr(demo, "person", full)
    with pytest.raises(InputError, match="No space left"):
        demo.make(tmp_path / "set", people=3)
    assert list(tmp_path.iterdir()) == []


def test_ensure_makes_it_once(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "Template", lambda: None)
    monkeypatch.setattr(demo, "person", lambda template, rng: np.ones((1, 256, 256), np.uint8))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    leftover = tmp_path / "brain-vqvae" / f".demo-{demo.VERSION}.1a2b3c4d{UNFINISHED}"
    leftover.mkdir(parents=True)
    data = dataset.load("demo")
    assert data.synthetic
    assert len(data.splits["train"]) == 32
    assert not leftover.exists()
    monkeypatch.setattr(demo, "make", lambda *_: pytest.fail("made again"))
    assert dataset.load("demo").fingerprint == data.fingerprint


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "Template", lambda: None)
    monkeypatch.setattr(demo, "person", lambda template, rng: np.ones((1, 256, 256), np.uint8))
    monkeypatch.setattr(sys, "argv", ["dataset.py", "demo", str(tmp_path / "set"), "--people", "4", "--seed", "3"])
    assert dataset.main() == 0
    assert "synthetic set of 4 people, seed 3" in capsys.readouterr().out
    assert dataset.main() == 2  # it exists now
