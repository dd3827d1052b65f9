import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scans import picture, png_that_claims, refused, run, write_set

import dataset
from dataset import Batches, Box, Slices, content_box
from reading import cache, images, places
from runtime.errors import InputError
from runtime.files import locked

same_each_run = settings(derandomize=True, deadline=None)  # no chance, no clock
pytestmark = pytest.mark.usefixtures("own_cache")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def made_up(n: int, shape=(8, 8)) -> Slices:
    names = [f"case_{i // 4:03d}_slice_{i % 4}.nii.png" for i in range(n)]
    return Slices(picture(0, (n, *shape)), names, [x[:8] for x in names], np.arange(n) % 4, [Path(x) for x in names])


def cached_folders() -> list[Path]:
    return [entry for entry in cache.cache_root().glob("*") if entry.is_dir()]


# ------------------------------------------------------------------------------------------- layout and names


def test_pixels_names_people_levels_in_natural_order(tmp_path):
    data = dataset.load(str(write_set(tmp_path / "set", slices=12)))
    train = data.splits["train"]
    assert train.names[:3] == [f"case_001_slice_{i}.nii.png" for i in range(3)]
    assert train.names[10] == "case_001_slice_10.nii.png"  # not between 1 and 2
    assert train.people == ["case_001"] * 12 + ["case_002"] * 12
    np.testing.assert_array_equal(train.levels, list(range(12)) * 2)
    np.testing.assert_array_equal(train.images, [picture(100 * p + s) for p in (1, 2) for s in range(12)])
    assert train.paths[13] == tmp_path / "set/keras_png_slices_train/case_002_slice_1.nii.png"
    assert train.ranges is None
    assert [len(data.splits[split]) for split in data.splits] == [24, 12, 12]
    assert (data.title, data.root, data.synthetic) == ("set", tmp_path / "set", False)
    assert train.images.dtype == np.uint8
    assert isinstance(train.images.base, np.memmap)  # never all of it in memory
    assert not train.images.flags.writeable
    some = dataset.load(str(data.root), limit_people=1)
    np.testing.assert_array_equal(some.splits["train"].images, train.images[:12])
    assert [set(part.people) for part in some.splits.values()] == [{"case_001"}, {"case_003"}, {"case_004"}]
    assert (some.splits["train"].level_count, some.title) == (12, "set, first 1 person of each split")


def test_folder_above_and_plain_split_names(tmp_path):
    write_set(tmp_path / "above/keras_png_slices_data")
    assert dataset.load(str(tmp_path / "above")).title == "keras_png_slices_data"
    plain = tmp_path / "above/keras_png_slices_data"
    for split in dataset.SPLITS:
        (plain / f"keras_png_slices_{split}").rename(plain / split)
    assert len(dataset.load(str(plain)).splits["train"]) == 6


def test_usual_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "USUAL_PLACES", places.USUAL_PLACES[:-1])  # a cluster may have the last one
    with pytest.raises(InputError, match=r"OASIS_DIR.*\./keras_png_slices_data.*--data demo"):
        dataset.load(None)
    write_set(tmp_path / "data/keras_png_slices_data")
    assert dataset.load(None).root == tmp_path / "data/keras_png_slices_data"  # found from anywhere later
    monkeypatch.setenv("OASIS_DIR", str(write_set(tmp_path / "mine")))
    assert dataset.load(None).title == "mine"
    monkeypatch.setenv("OASIS_DIR", str(tmp_path / "nowhere"))
    assert "OASIS_DIR names " in refused(dataset.load, None)


def test_what_cannot_be_loaded_is_one_line(tmp_path):
    def load(folder: object, *arguments, **options) -> str:
        return refused(dataset.load, str(folder), *arguments, **options)

    assert "no folder" in load(tmp_path / "nowhere")
    assert "no such user" in load("~nobody-of-this-name/x")
    assert "holds no data set" in load(tmp_path)
    root = write_set(tmp_path / "a", {"test": 1})
    assert "at least 1" in load(root, limit_people=0)
    assert len(dataset.load(str(root), splits=("test",)).splits["test"]) == 3
    assert "train split is missing" in load(root)
    (root / "keras_png_slices_train").mkdir()
    assert "train split is empty" in load(root)
    write_set(tmp_path / "b")
    assert "several data sets" in load(tmp_path)
    (root / "train").mkdir()
    assert "two layouts" in load(root)


def test_only_image_files_count(tmp_path):
    root = write_set(tmp_path / "set")
    for name in ("notes.txt", "._case_001_slice_0.nii.png", ".DS_Store", "Thumbs.db"):
        (root / "keras_png_slices_train" / name).write_text("not a picture")
    (root / "keras_png_slices_train/folder.png").mkdir()
    assert len(dataset.load(str(root)).splits["train"]) == 6


def test_a_person_in_two_splits_is_an_error_that_names_the_person(tmp_path):
    root = write_set(tmp_path / "set")
    Image.fromarray(picture(0)).save(root / "keras_png_slices_test/case_002_slice_9.nii.png")
    for splits in (dataset.SPLITS, ("test",)):  # scoring alone must notice too
        assert "case_002 is in train and test" in refused(dataset.load, str(root), splits)
    assert len(dataset.load(str(root), allow_overlap=True).splits["test"]) == 4


def test_links_to_nothing_are_named(tmp_path, monkeypatch, capsys):
    """A set under git-annex whose files were never fetched is full of them."""
    root = write_set(tmp_path / "set")
    link = root / "keras_png_slices_train/case_002_slice_1.nii.png"
    link.rename(tmp_path / "elsewhere.png")
    link.symlink_to(tmp_path / "elsewhere.png")
    assert len(dataset.load(str(root)).splits["train"]) == 6
    (tmp_path / "elsewhere.png").unlink()
    assert "case_002_slice_1.nii.png is a link to nothing" in refused(dataset.load, str(root), ("test",))
    assert run(monkeypatch, "check", root) == 1
    assert "1 problem\n" in capsys.readouterr().out
    shutil.rmtree(root / "keras_png_slices_train")
    (root / "keras_png_slices_train").mkdir()
    link.symlink_to(tmp_path / "elsewhere.png")
    assert "is a link to nothing" in refused(dataset.load, str(root))  # not "is empty"


def test_a_large_slice_number_is_no_known_level(tmp_path):
    """A prior keeps a matrix for each level up to the largest."""
    root = write_set(tmp_path / "set")
    folder = root / "keras_png_slices_train"
    (folder / "case_001_slice_2.nii.png").rename(folder / "case_001_slice_200000.png")
    data = dataset.load(str(root))
    assert data.splits["train"].notes == ["train: 1 slice with a number of 1,024 or more, taken as of no known level"]
    assert data.splits["train"].levels.tolist() == [0, 1, -1, 0, 1, 2]


def test_names_of_any_bytes_are_read_and_shown_escaped(tmp_path):
    root = write_set(tmp_path / "set \x1b[2J")
    odd = os.fsencode(root / "keras_png_slices_train") + b"/case_001_slice_\xff\x1b.png"
    os.rename(root / "keras_png_slices_train/case_001_slice_2.nii.png", odd)
    for _ in range(2):  # decoded, and from the cache
        data = dataset.load(str(root))
        assert data.title == "set \\x1b[2J"
        assert data.splits["train"].names[2] == "case_001_slice_\\udcff\\x1b.png"
        np.testing.assert_array_equal(data.splits["train"].images[2], picture(102))
    assert dataset.read_files([Path(os.fsdecode(odd))]).names == ["case_001_slice_\\udcff\\x1b.png"]
    os.rename(root, os.fsencode(tmp_path) + b"/\xff")
    assert "is no UTF-8" in refused(dataset.load, os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))


# ------------------------------------------------------------------------------------------- what a slice can be


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1"])
def test_kinds_of_picture(tmp_path, mode):
    gray = np.where(picture(1, (16, 16)) > 127, 255, 0).astype(np.uint8) if mode == "1" else picture(1, (16, 16))
    Image.fromarray(gray).convert(mode).save(tmp_path / "x.png")
    read = images.read(tmp_path / "x.png")
    np.testing.assert_array_equal(read.values, gray)
    assert (read.values.dtype, read.mode, read.colour, read.transparent) == (np.uint8, mode, False, False)
    Image.fromarray(gray).save(tmp_path / "x.jpg", quality=100)
    assert np.abs(images.read(tmp_path / "x.jpg").values.astype(int) - gray).max() <= 3


def test_other_sizes_are_padded_or_shrunk_with_a_note_that_counts_them(tmp_path):
    root = write_set(tmp_path / "set")
    large, small = picture(1, (512, 512)), picture(2, (176, 208))
    Image.fromarray(large).save(root / "keras_png_slices_train/case_002_slice_3.nii.png")
    Image.fromarray(small).save(root / "keras_png_slices_train/case_002_slice_4.nii.png")
    for _ in range(2):  # when decoded, and from the cache
        data = dataset.load(str(root))
        train = data.splits["train"]
        assert train.notes == ["train: 1 slice padded and 1 slice shrunk to fit 256x256"]
        assert data.splits["test"].notes == []
    means = large.reshape(256, 2, 256, 2).mean(axis=(1, 3))
    assert np.abs(train.images[6] - means).max() <= 1  # the mean of each area, rounded once a direction
    np.testing.assert_array_equal(train.images[7][40:216, 24:232], small)
    assert train.images[7].astype(int).sum() == small.astype(int).sum()


@same_each_run
@given(st.integers(1, 90), st.integers(1, 90))
def test_unfit_undoes_fit(height, width):
    pixels = np.full((height, width), 200, np.uint8)
    fitted = images.fit(pixels, (48, 32))
    assert fitted.shape == (48, 32)
    np.testing.assert_array_equal(images.unfit(fitted, (height, width)), pixels)


def test_one_error_names_every_bad_file_and_nothing_is_cached(tmp_path):
    root = write_set(tmp_path / "set")
    good = (root / "keras_png_slices_train/case_001_slice_0.nii.png").read_bytes()
    bad = {"torn": good[: len(good) // 2], "text": b"hello", "bomb": png_that_claims(8192, 8192)}
    for name, content in bad.items():
        (root / f"keras_png_slices_train/{name}.png").write_bytes(content)
    Image.fromarray(picture(0, (16, 16, 3))).save(root / "keras_png_slices_test/colour.png")
    line = refused(dataset.load, str(root))
    assert "4 of the files can't be used" in line
    assert all(f"{name}.png" in line for name in [*bad, "colour"])
    assert cached_folders() == []


# ------------------------------------------------------------------------------------------- the cache


def test_second_load_decodes_nothing(tmp_path, monkeypatch):
    root = write_set(tmp_path / "set")
    first = dataset.load(str(root))
    monkeypatch.setattr(images, "read", lambda path: pytest.fail("decoded again"))
    second = dataset.load(str(root))
    assert first.fingerprint == second.fingerprint
    np.testing.assert_array_equal(first.splits["test"].images, second.splits["test"].images)


def test_fingerprint_is_of_names_and_pixels_not_of_place_or_time(tmp_path):
    one, two = write_set(tmp_path / "one"), write_set(tmp_path / "two")
    prints = [dataset.load(str(root)).fingerprint for root in (one, two)]
    assert prints[0] == prints[1]
    assert dataset.load(str(two), splits=("test",), limit_people=1).fingerprint == prints[0]
    folder = two / "keras_png_slices_test"
    (folder / "case_004_slice_2.nii.png").rename(folder / "case_004_slice_5.nii.png")
    assert dataset.load(str(two)).fingerprint != prints[0]


def zeroed(folder: Path) -> None:
    """The array as a crash of the machine can leave it: of its size, but black."""
    array = np.load(folder / "train.npy", mmap_mode="r+")
    array[1:] = 0
    array.flush()


def renamed(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    index["splits"]["train"]["names"].reverse()
    (folder / "index.json").write_text(json.dumps(index))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated array": lambda folder: os.truncate(folder / "train.npy", 1000),
    "no array": lambda folder: (folder / "test.npy").unlink(),
    "zeroed pixels": zeroed,
    "another name": renamed,
    "half an index": lambda folder: os.truncate(folder / "index.json", 100),
    "a list for an index": lambda folder: (folder / "index.json").write_text("[1]"),
    "a nested index": lambda folder: (folder / "index.json").write_text("[" * 10**5),
    "no index": lambda folder: (folder / "index.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_cache_that_is_not_as_it_was_written_is_built_again_with_a_note(tmp_path, damage, capsys):
    root = write_set(tmp_path / "set")
    before = dataset.load(str(root))
    (folder,) = cached_folders()
    capsys.readouterr()
    DAMAGE[damage](folder)
    after = dataset.load(str(root))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"the cache in {folder} is not as it was written: ")
    assert lines[1].startswith("decoding")
    assert after.fingerprint == before.fingerprint
    np.testing.assert_array_equal(after.splits["train"].images[1], picture(101))
    assert cached_folders() == [folder]


def test_a_file_that_is_replaced_with_its_size_and_time_kept_is_decoded_again(tmp_path):
    path = write_set(tmp_path / "set") / "keras_png_slices_train/case_001_slice_1.nii.png"
    root = path.parents[1]
    Image.fromarray(picture(101)).save(path, compress_level=0)
    before, old = dataset.load(str(root)), path.stat()
    Image.fromarray(255 - picture(101)).save(path, compress_level=0)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (old.st_size, old.st_mtime_ns)
    after = dataset.load(str(root))
    np.testing.assert_array_equal(after.splits["train"].images[1], 255 - picture(101))
    assert before.fingerprint != after.fingerprint


def test_without_a_home_the_place_of_the_cache_has_to_be_given(tmp_path, monkeypatch):
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    root = write_set(tmp_path / "set")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nobody)
    assert "set XDG_CACHE_HOME" in refused(dataset.load, str(root))


def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path, monkeypatch):
    root = write_set(tmp_path / "set")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    line = refused(dataset.load, str(root))
    assert "No space left on device" in line
    assert "XDG_CACHE_HOME" in line
    assert cached_folders() == []


def test_processes_that_start_at_once_build_one_cache(tmp_path):
    root = write_set(tmp_path / "set", slices=40)
    code = (
        "import sys, json, pathlib; from reading import cache, listing; "
        "index, folder = cache.open_or_build(listing.scan(pathlib.Path(sys.argv[1])), (2, None, None)); "
        "print(json.dumps([index['fingerprint'], str(folder)]))"
    )
    command = [sys.executable, "-c", code, str(root)]
    runs = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [run.communicate(timeout=60)[0].strip().splitlines() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sum("decoding" in line for lines in outputs for line in lines) == 1
    assert len({lines[-1] for lines in outputs}) == 1
    fingerprint, folder = json.loads(outputs[0][-1])
    assert cached_folders() == [Path(folder)]
    assert dataset.load(str(root)).fingerprint == fingerprint


# ------------------------------------------------------------------------------------------- the content box


def test_content_box_in_known_cases():
    pictures = np.zeros((5, 256, 256), np.uint8)
    assert content_box(pictures) == Box(0, 0, 16, 16)  # nothing to code
    assert content_box(pictures, least=Box(48, 32, 80, 96)) == Box(48, 32, 80, 96)
    pictures[1, 40, 100] = pictures[4, 215, 100] = pictures[3, 90, 24] = pictures[2, 90, 231] = 1
    assert content_box(pictures) == Box(40, 24, 176, 208)  # the published slices' content: 56 % of the canvas
    pictures[0, 39, 100] = 1
    assert content_box(pictures) == Box(31, 24, 192, 208)
    pictures[0, 0, 0] = pictures[0, -1, -1] = 1
    assert content_box(pictures) == Box(0, 0, 256, 256)
    assert content_box(np.ones((1, 20, 40), np.uint8)) == Box(0, 0, 20, 40)
    inside = np.zeros((1, 256, 256), np.uint8)
    inside[0, 60, 40] = 1
    assert content_box(inside, least=Box(48, 32, 80, 96)) == Box(48, 32, 80, 96)
    inside[0, 40, 40] = 1  # 8 rows more take 16
    assert content_box(inside, least=Box(48, 32, 80, 96)) == Box(36, 32, 96, 96)


@same_each_run
@given(arrays(np.uint8, (3, 40, 56), elements=st.sampled_from([0] * 400 + [9]), fill=st.just(0)))
def test_content_box_holds_everything_and_paste_undoes_crop(pictures):
    box = content_box(pictures)
    assert box.height % 16 == 0 or box.height == 40
    assert box.width % 16 == 0 or box.width == 56
    assert np.shares_memory(box.crop(pictures), pictures)
    np.testing.assert_array_equal(box.paste(box.crop(pictures), (40, 56)), pictures)
    tensor = torch.from_numpy(pictures).float()[:, None]
    assert torch.equal(box.paste(box.crop(tensor), (40, 56)), tensor)


# ------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("box", [None, Box(2, 1, 4, 6)])
def test_batches_are_floats_in_0_to_1_of_the_slices_that_they_name(device, resident, box, monkeypatch):
    if not resident:
        monkeypatch.setattr(Batches, "_resident", lambda self: None)
    slices = made_up(10)
    expected = torch.from_numpy(box.crop(slices.images) if box else slices.images)[:, None].float() / 255
    batches = Batches(slices, 4, device, box)
    shuffled, in_order = list(batches.shuffled(seed=0, epoch=0)), list(batches.in_order())
    for pictures, indices in shuffled + in_order:
        assert (pictures.dtype, pictures.device.type, pictures.is_contiguous()) == (torch.float32, device, True)
        assert (indices.dtype, indices.device.type) == (torch.int64, "cpu")
        assert torch.equal(pictures.cpu(), expected[indices])
    assert [len(indices) for _, indices in shuffled] == [4, 4]
    assert indices_of(in_order) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def indices_of(batches) -> list[list[int]]:
    return [indices.tolist() for _, indices in batches]


def flat(parts) -> list[int]:
    return list(chain.from_iterable(parts))


def test_order_is_a_function_of_seed_and_epoch():
    batches = Batches(made_up(40), 4, "cpu")
    epochs = {(s, e): indices_of(batches.shuffled(s, e)) for s in (0, 1) for e in (0, 1)}
    assert indices_of(Batches(made_up(40), 4, "cpu").shuffled(1, 0)) == epochs[1, 0]
    assert len({str(order) for order in epochs.values()}) == 4
    for (seed, epoch), order in epochs.items():
        assert sorted(flat(order)) == list(range(40))
        for start in (7, 10):
            assert indices_of(batches.shuffled(seed, epoch, start)) == order[start:]


def test_incomplete_last_batch_is_dropped_unless_it_is_the_only_one():
    batches = Batches(made_up(11), 4, "cpu")
    order = indices_of(batches.shuffled(0, 0))
    assert [len(part) for part in order] == [4, 4]
    assert batches.steps == 2
    assert len({*flat(order)}) == 8
    small = Batches(made_up(3), 32, "cpu")
    assert small.steps == 1
    assert sorted(flat(indices_of(small.shuffled(0, 0)))) == [0, 1, 2]


@same_each_run
@given(st.integers(3, 50), st.integers(1, 8), st.integers(1, 3))
def test_processes_share_what_one_would_see(n, share, world):
    slices, size = made_up(n, (1, 1)), share * world
    alone = Batches(slices, size, "cpu")
    ranks = [Batches(slices, size, "cpu", None, rank, world) for rank in range(world)]
    together = [flat(parts) for parts in zip(*(indices_of(r.shuffled(0, 1)) for r in ranks), strict=True)]
    if n >= size:  # else the one batch is the share that can be dealt out equally
        assert together == indices_of(alone.shuffled(0, 1))
    assert {len(part) for r in ranks for part in indices_of(r.shuffled(0, 1))} == {len(together[0]) // world}
    assert {rank.steps for rank in ranks} == {len(together)}
    everything = flat(flat(indices_of(rank.in_order())) for rank in ranks)
    assert everything == list(range(n))


def test_impossible_batches():
    for size, world, n in ((0, 1, 8), (-4, 1, 8), (5, 2, 8), (4, 4, 3)):
        with pytest.raises(InputError):
            Batches(made_up(n), size, "cpu", None, 0, world)


# ------------------------------------------------------------------------------------------- single files, CLI


def test_check(tmp_path, monkeypatch, capsys):
    root = write_set(tmp_path / "set")
    assert run(monkeypatch, "check", root) == 0
    out = capsys.readouterr().out
    assert "train: 6 files of 2 people (published OASIS PNG set: 9,664 of 302); 6 of 256x256, mode L" in out
    assert "no problems" in out

    (root / "keras_png_slices_train/case_001_slice_0.nii.png").write_bytes(b"")
    Image.fromarray(picture(0)).save(root / "keras_png_slices_test/case_002_slice_9.nii.png")
    Image.fromarray(picture(0, (100, 90))).save(root / "keras_png_slices_test/case_004_slice_8.nii.png")
    assert run(monkeypatch, "check", root) == 1
    out = capsys.readouterr().out
    assert "1 of 100x90, mode L" in out
    assert "2 problems" in out
    assert "case_002 is in train and test" in out
    assert "case_001_slice_0.nii.png is empty" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the following arguments are required: command; see dataset.py --help"),
        (["check"], "the following arguments are required: dir; see dataset.py check --help"),
        (["demo", "x", "--people", "many"], "--people: invalid int value: 'many'; see dataset.py demo --help"),
        (["check", "nowhere"], "no folder nowhere"),
    ],
)
def test_bad_options_are_one_line(arguments, says, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert says in line
    assert list(tmp_path.iterdir()) == []


def test_cache_says_what_is_kept_and_deletes_it(tmp_path, monkeypatch, capsys):
    dataset.load(str(write_set(tmp_path / "set")))
    capsys.readouterr()
    [folder] = cached_folders()
    (cache.cache_root() / "half").mkdir()
    size = sum(file.stat().st_size for file in folder.iterdir())
    number = sum(len(list(split.iterdir())) for split in (tmp_path / "set").iterdir())
    assert run(monkeypatch, "cache") == 0
    total, whole, half = capsys.readouterr().out.splitlines()
    assert total == f"{cache.cache_root()}: {size / 1e6:.1f} MB"
    assert whole.split(maxsplit=2)[:2] == [f"{size / 1e6:.1f}", "MB"]
    assert f"{folder.name}: {number} slices of 256x256, case_001_slice_0.nii.png to " in whole
    assert half.endswith("half: not whole")

    with locked(folder.with_name(f"{folder.name}.lock")):  # another process is at work there
        assert run(monkeypatch, "cache", "--clear") == 0
        assert cached_folders() == [folder]
        assert capsys.readouterr().out.splitlines()[0].endswith(f"{size / 1e6:.1f} MB, 0.0 MB deleted")
    assert run(monkeypatch, "cache", "--clear") == 0
    assert cached_folders() == []
    assert capsys.readouterr().out == f"{cache.cache_root()}: 0.0 MB, {size / 1e6:.1f} MB deleted\n"
    assert len(dataset.load(str(tmp_path / "set"), ("train",)).splits["train"]) == 6  # made again
