import filecmp
import json
import os
import sys

import numpy as np
import pytest
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


@pytest.fixture
def quick(monkeypatch):
    """People of one white slice."""
    monkeypatch.setattr(demo, "Template", lambda: None)
    monkeypatch.setattr(demo, "person", lambda template, rng: np.ones((1, 256, 256), np.uint8))


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
    assert (people[:, ::8, 110:146, 90:166] > 0).all()  # inside the brain


def test_people_differ_and_neighbouring_slices_of_one_do_not(people):
    def likeness(a: np.ndarray, b: np.ndarray) -> float:
        return np.corrcoef(a.ravel(), b.ravel())[0, 1]

    central = people[:, :, 60:196, 50:210].astype(np.float32)
    between = [likeness(central[i, 16], central[j, 16]) for i, j in ((0, 1), (0, 2), (1, 2))]
    within = [likeness(person[16], person[17]) for person in central]
    assert max(between) < 0.85 < 0.93 < min(within)


def test_set_has_the_published_layout_and_says_that_it_is_synthetic(made, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = dataset.load(str(made))
    people = [sorted(set(data.splits[split].people)) for split in dataset.SPLITS]
    assert people == [["case_001"], ["case_002"], ["case_003"]]
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
def test_a_tenth_of_the_people_to_validate_and_to_test(people, split, tmp_path, quick):
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


def test_ensure_makes_it_once(tmp_path, quick, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    leftover = tmp_path / "brain-vqvae" / f".demo-{demo.VERSION}.1a2b3c4d{UNFINISHED}"
    leftover.mkdir(parents=True)
    os.utime(leftover, (0, 0))
    data = dataset.load("demo")
    assert data.synthetic
    assert len(data.splits["train"]) == 32
    assert not leftover.exists()
    monkeypatch.setattr(demo, "make", lambda *_: pytest.fail("made again"))
    assert dataset.load("demo").fingerprint == data.fingerprint


def test_command_line(tmp_path, quick, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dataset.py", "demo", str(tmp_path / "set"), "--people", "4", "--seed", "3"])
    assert dataset.main() == 0
    assert "synthetic set of 4 people, seed 3" in capsys.readouterr().out
    assert dataset.main() == 2  # it exists now
