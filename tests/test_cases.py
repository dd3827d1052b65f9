"""What people bring, as they bring it: names of every set, odd files, masks among scans, folders without splits."""

import os
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from scans import OBLIQUE, refused, run, save, volume, write_set

import dataset
from reading import nifti, splitting
from reading.intensity import looks_like_labels, padding_of
from reading.names import level_of, person_of, volume_of
from reading.nifti import WHOLE, Cut

pytestmark = pytest.mark.usefixtures("own_cache")
CUBES = np.diag([4.0, 4, 4, 1])  # mm


def head(level=8, shift=0, size=(48, 40)) -> np.ndarray:
    """A head drawn from ellipses, uint8: nobody's."""
    y, x = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    x = x - shift / 50
    pixels = np.where(np.hypot(x / 0.85, y / 0.9) < 1, 150 + 25 * np.sin(9 * x + level / 3) * np.cos(11 * y), 0)
    return pixels.round().astype(np.uint8)


def scan(person=0) -> np.ndarray:
    """int16 [48, 40, 16], 0 to about 1750."""
    return np.stack([head(level, person) for level in range(16)], -1).astype(np.int16) * 10


def picture_set(root: Path, change=lambda pixels: pixels, suffix=".png") -> Path:
    """Three people to train on, one each to validate and test on, three slices each."""

    def made(person: int, level: int, path: Path) -> None:
        Image.fromarray(change(head(level, person))).save(path)

    people = {"train": 3, "validate": 1, "test": 1}
    return write_set(root, people, name="{}/case_{:03}_slice_{}" + suffix, made=made)


def volume_set(root: Path, name="case_{:03}.nii.gz", voxels=scan, affine=CUBES) -> Path:
    def made(person: int, _, path: Path) -> None:
        save(path, voxels(person), affine)

    return write_set(root, slices=1, name=f"{{}}/{name}", made=made)


# ------------------------------------------------------------------------------------------- who is who


@pytest.mark.parametrize(
    ("person", "names"),
    [
        ("OAS1_0061", ["OAS1_0061_MR2_mpr-1_anon.img", "oas1_61_slice_3.png", "OAS1_0061_MR1_mpr-1_100.jpg"]),
        ("OAS2_0001", ["OAS2_0001_MR1.nii", "OAS2_0001_MR2_mpr-3.img"]),
        ("OAS30001", ["OAS30001_MR_d0129.nii.gz", "OAS30001_MR_d0757_slice_7.png"]),
        ("002_S_0295", ["ADNI_002_S_0295_MR_MPR.nii", "002_S_0295_bl.nii", "002_S_0295_m12_slice_3.png"]),
        ("IXI002", ["IXI002-Guys-0828-T1.nii.gz", "IXI002-Guys-0828-T2.nii.gz", "IXI002.png"]),
        ("100307", ["100307_3T_T1w_MPR1.nii.gz", "100307_T1w_acpc_dc_restore_brain.nii.gz"]),
        ("HCA6002236", ["HCA6002236_V1_MR_T1w.nii.gz", "HCA6002236_V2_MR.nii.gz"]),
        ("BraTS20_Training_001", ["BraTS20_Training_001_t1.nii.gz", "BraTS20_Training_001_flair_slice_3.png"]),
        ("BraTS2021_00000", ["BraTS2021_00000_t1.nii.gz", "BraTS2021_00000_t1ce.nii.gz"]),
        ("BraTS-GLI-00000", ["BraTS-GLI-00000-000-t1n.nii.gz", "BraTS-GLI-00000-001-t1n.nii.gz"]),
        ("Brats18_TCIA02_117", ["Brats18_TCIA02_117_1_flair.nii.gz", "Brats18_TCIA02_117_2_t1.nii.gz"]),
        ("case_004", ["Case_004_Week0_LFOV.nii.gz", "case_004_week_3_slice_7.nii.gz", "case_4.png"]),
        ("sub-07", ["sub-07_ses-1_run-2_T1w.nii.gz", "sub-7_T1w.nii", "sub-007.nii"]),
        ("sub-OAS30001", ["sub-OAS30001_ses-d0129_run-01_T1w.nii.gz", "sub-OAS30001_T2w.nii.gz"]),
        ("patient12", ["patient12_T1.nii.gz", "patient12_visit2_FLAIR.nii.gz", "patient12_baseline.nii"]),
    ],
)
def test_visits_and_modalities_make_no_other_person(person, names):
    assert {person_of(name) for name in names} == {person}


def test_names_that_only_look_alike_are_different_people():
    names = [
        "OAS30001_MR.nii",
        "OAS30002_MR.nii",
        "OAS40001.nii",
        "IXI0021-T1.nii",
        "sub-07a.nii",
        "sub-07.nii",
        "T1.nii",
    ]
    assert len({person_of(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("name", "volume", "level"),
    [
        ("case_441_slice_31.nii.png", "case_441", 31),
        ("case_004_week_0_slice_7.nii.gz", "case_004_week_0", 7),
        ("OAS1_0028_MR1_mpr-1_100.jpg", "OAS1_0028_MR1_mpr-1", 100),
        ("sub-07_ses-1_T1w.nii.gz", "sub-07_ses-1_T1w", -1),
    ],
)
def test_names_of_slices_tell_volume_and_level(name, volume, level):
    assert (volume_of(name), level_of(name)) == (volume, level)


@pytest.mark.parametrize("name", ["OAS30001_MR_d{:04}.nii.gz", "Case_004_Week{}_LFOV.nii.gz", "sub-x_ses-{}_T1w.nii"])
def test_visits_of_one_person_in_all_splits_are_an_error(tmp_path, name):
    for visit, split in enumerate(("train", "validate", "test")):
        save(tmp_path / split / name.format(visit), scan())
    assert "is in train and validate and test" in refused(dataset.load, str(tmp_path))
    assert "is in train" in dataset.check(str(tmp_path))[0][0]


@pytest.mark.parametrize("name", ["12", "0 (1)", "img_3", "mildDem12", "slice_7"])
def test_bare_numbers_make_no_overlap_but_a_note(tmp_path, name):
    for split in dataset.SPLITS:
        (tmp_path / split).mkdir()
        Image.fromarray(head()).save(tmp_path / split / f"{name}.png")
    data = dataset.load(str(tmp_path))
    assert len({slices.people[0] for slices in data.splits.values()}) == 3
    note = data.splits["train"].notes[0]
    assert note.startswith(f"3 of 3 people have one file, such as {name}.png: where names hide")


def test_people_are_found_by_a_regular_expression(tmp_path, monkeypatch, capsys):
    for number, split in enumerate(("train", "train", "validate", "test")):
        (tmp_path / split).mkdir(exist_ok=True)
        Image.fromarray(head()).save(tmp_path / split / f"scan{number}-P{min(number, 2)}.png")
    assert dataset.load(str(tmp_path)).splits["train"].people == ["scan0-P0", "scan1-P1"]
    assert "2 is in validate and test" in refused(dataset.load, str(tmp_path), person="-P([0-9]+)")
    data = dataset.load(str(tmp_path), allow_overlap=True, person="-P([0-9]+)")
    assert data.splits["train"].people == ["0", "1"]
    assert "P9 is not found in 2 names, such as scan" in refused(dataset.load, str(tmp_path), person="P9")
    assert "is no regular expression" in refused(dataset.load, str(tmp_path), person="(")
    assert run(monkeypatch, "check", tmp_path, "--person", "P[0-9]") == 1
    out = capsys.readouterr().out
    assert "people: P0, P1; 1 file each" in out
    assert "P2 is in validate and test" in out


# ------------------------------------------------------------------------------------------- a look at the values


def test_12_bits_in_16_get_one_range_for_the_whole_set(tmp_path):
    root = picture_set(tmp_path / "set", lambda pixels: pixels.astype(np.uint16) * 16)
    for _ in range(2):  # decoded, and from the cache
        data = dataset.load(str(root))
        assert data.splits["train"].notes[0].startswith("pictures of more than 8 bits, values 0 to 2")
        high = float(data.splits["train"].notes[0].split(" to ")[1].split()[0])
        for split, person, level in (("train", 1, 0), ("test", 5, 2)):
            found = data.splits[split].images[level, 104:152, 108:148]
            expected = (head(level, person) * 16.0 / high * 255).clip(0, 255)
            assert np.abs(found - expected).max() <= 0.6
    assert dataset.check(str(root)) == ([], data.splits["train"].notes[:1])


@pytest.mark.parametrize("hidden", [255, 200])
def test_a_brain_in_alpha_is_laid_over_black(tmp_path, hidden):
    def made(pixels):
        white = [np.full_like(pixels, 255)] * 3 + [pixels]  # all of it is in alpha
        cut_out = [np.where(pixels, pixels, 200)] * 3 + [(pixels > 0) * np.uint8(255)]  # the rest is still there
        return np.dstack(white if hidden == 255 else cut_out)

    root = picture_set(tmp_path / "set", made)
    data = dataset.load(str(root))
    np.testing.assert_array_equal(data.splits["test"].images[1, 104:152, 108:148], head(1, 5))
    problems, notes = dataset.check(str(root))
    assert problems == []
    assert "train: 9 of 9 files (such as case_001_slice_0.png) are transparent in places, laid over black" in notes
    assert set(notes) <= set(data.splits["train"].notes)


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("desc-brain_mask", lambda person: (scan(person) > 300).astype(np.uint8)),
        ("dseg", lambda person: (scan(person) // 700).astype(np.uint8)),
        ("aseg", lambda person: (np.arange(48 * 40 * 16).reshape(48, 40, 16) // 400).astype(np.int16)),
        ("probseg", lambda person: (scan(person) > 300).astype(np.float32)),
    ],
)
def test_masks_and_labels_beside_volumes_are_a_problem(tmp_path, monkeypatch, capsys, kind, made):
    root = volume_set(tmp_path / "set", "sub-{:02}_ses-1_T1w.nii.gz")
    assert run(monkeypatch, "check", root) == 0
    volume_set(root, f"sub-{{:02}}_ses-1_{kind}.nii.gz", made)
    assert run(monkeypatch, "check", root) == 1
    which = f"2 of 4 files (such as sub-01_ses-1_{kind}.nii.gz)"
    line = f"train: {which} are like a mask or labels: move such files elsewhere"
    assert line in capsys.readouterr().out.splitlines()
    assert not any(map(looks_like_labels, (scan(), head(), np.zeros((9, 9), np.uint8))))
    assert line in dataset.load(str(root)).splits["train"].notes


def test_flat_and_dark_files_are_reported(tmp_path):
    root = picture_set(tmp_path / "black", lambda pixels: pixels * 0)
    problems, _ = dataset.check(str(root))
    assert problems[0] == "train: 9 of 9 files (such as case_001_slice_0.png) are one value all over"
    root = picture_set(tmp_path / "dark", lambda pixels: pixels // 8)
    assert dataset.check(str(root)) == (["the largest value of all pictures is 21 of 255: scale them up"], [])
    assert dataset.load(str(root)).splits["train"].notes[0] == dataset.check(str(root))[0][0]
    Image.fromarray(head() * 0).save(root / "train/case_001_slice_9.png")
    assert "train: 1 of 10 files (such as case_001_slice_9.png) is one value all over" in dataset.check(str(root))[1]


@pytest.mark.parametrize("value", [-32768, 32767, -2000.0, np.float32(-1e30), 65535])
def test_padding_is_left_out_of_the_range(tmp_path, value):
    voxels = scan().astype(np.float32)
    voxels[:4] = 0
    without = dataset.read_files([save(tmp_path / "without.nii.gz", voxels)])
    voxels[:4] = value
    padded = dataset.read_files([save(tmp_path / "with.nii.gz", voxels)])
    if value == -2000:  # not far enough from a range of 1750 to be certain
        assert padded.notes == []
        return
    np.testing.assert_array_equal(padded.images, without.images)
    np.testing.assert_array_equal(padded.ranges, without.ranges)
    assert padded.notes == [f"with.nii.gz: value {value:g} taken for padding outside of the picture"]


def test_what_is_no_padding():
    skull_stripped = np.where(scan() > 0, scan() // 20 + 1000, 0)
    assert padding_of(skull_stripped) is None  # 0 is background
    assert padding_of(np.array([0.0] * 99 + [1e6])) is None  # one bright voxel
    assert padding_of(scan()) is None
    assert padding_of(np.full((9, 9), -32768)) is None
    assert padding_of(np.array([np.nan, np.inf])) is None


def test_voxels_of_different_sizes_are_reported_and_made_alike_by_spacing(tmp_path):
    root = volume_set(tmp_path / "set", affine=OBLIQUE)
    train = dataset.load(str(root)).splits["train"]
    assert train.level_count == 16
    np.testing.assert_allclose(train.affine, nifti.affine_of(train.paths[0], (48, 48), WHOLE))
    volume_set(root)
    save(root / "train/case_009.nii.gz", scan(), np.diag([4, 4, 8, 1]))
    [note] = dataset.check(str(root))[1]
    assert note == "voxels of 2 sizes: 4x4x4 mm in 4 volumes, 4x4x8 mm in 1 volume; --spacing 1 makes them alike"
    data = dataset.load(str(root), cut=Cut(spacing=4))
    assert data.spacing == 4
    assert np.bincount(data.splits["train"].levels).tolist() == [3] * 16 + [1] * 15
    np.testing.assert_allclose(np.abs(np.linalg.det(data.splits["train"].affine)), 64)
    assert len(dataset.load(str(root)).splits["train"]) == 48  # a cache of its own


# ------------------------------------------------------------------------------------------- sound files


def analyze(path: Path, voxels: np.ndarray, orient=b"") -> Path:
    """A big-endian Analyze 7.5 pair, 4-D of one volume, as OASIS-1 comes."""
    header = nib.AnalyzeHeader(endianness=">")
    header.set_data_shape((*voxels.shape, 1))
    header.set_data_dtype(np.int16)
    header.set_zooms((1, 2, 3, 1))
    block = bytearray(header.binaryblock)
    block[252 : 252 + len(orient)] = orient
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".hdr").write_bytes(bytes(block))
    path.with_suffix(".img").write_bytes(voxels.astype(">i2").tobytes(order="F"))
    return path.with_suffix(".img")


def test_oasis_1_as_it_is_downloaded(tmp_path):
    for split, person in (("train", 1), ("validate", 2), ("test", 3)):
        analyze(tmp_path / split / f"OAS1_{person:04}_MR1_mpr-1_anon", scan(person))
    data = dataset.load(str(tmp_path))
    assert data.splits["test"].people == ["OAS1_0003"] * 16
    stored = nib.load(tmp_path / "test/OAS1_0003_MR1_mpr-1_anon.hdr")
    np.testing.assert_array_equal(np.asarray(stored.dataobj)[..., 0], scan(3))
    low, high = data.splits["test"].ranges[0]
    expected = (scan(3)[::-1] - low).clip(0, high) / (high - low) * 255  # nibabel: stored from right to left
    assert np.abs(data.splits["test"].images[:, :, 4:44] - np.moveaxis(expected, 2, 0)).max() <= 0.51
    assert "train: 1 file: Analyze, which doesn't say which side is left" in dataset.check(str(tmp_path))[1]


def test_an_analyze_pair_is_read_by_either_name_and_turned_as_it_says(tmp_path):
    path = analyze(tmp_path / "a", scan())
    for given in ([path], [path.with_suffix(".hdr")], [tmp_path], [path, path.with_suffix(".hdr")]):
        assert len(dataset.read_files(given)) == 16
    sagittal = np.transpose(scan(), (1, 2, 0))  # stored from back to front, up, right to left
    turned = nifti.load(analyze(tmp_path / "s/b", sagittal, b"\2"))
    assert nib.aff2axcodes(turned.affine) == ("A", "S", "L")
    np.testing.assert_array_equal(nifti.cut_slices(turned, WHOLE), np.moveaxis(scan()[::-1], 2, 0))
    path.with_suffix(".hdr").unlink()
    assert "a.img is one half of a pair" in refused(dataset.read_files, [path])


@pytest.mark.parametrize("name", ["x.mgz", "x.mgh"])
def test_freesurfer_volumes(tmp_path, name):
    nib.save(nib.MGHImage(volume(), OBLIQUE.astype(np.float32)), tmp_path / name)
    nib.save(nib.Nifti1Image(volume(), OBLIQUE), tmp_path / "same.nii")
    found, same = (dataset.read_files([tmp_path / file]) for file in (name, "same.nii"))
    np.testing.assert_array_equal(found.images, same.images)
    np.testing.assert_array_equal(found.levels, same.levels)
    (back,) = nifti.write_all(tmp_path / "out", found.paths, found.images / 255, found.ranges)
    assert back.name == "x.nii.gz"
    np.testing.assert_allclose(nib.load(back).affine, OBLIQUE, atol=1e-4)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:200])
    assert "can't be read as NIfTI, Analyze or MGH" in refused(dataset.read_files, [tmp_path / name])


def changed(path: Path, **fields) -> Path:
    """A NIfTI file with other values in its header."""
    content = path.read_bytes()
    header = nib.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + content[348:])
    return path


def test_odd_headers_of_sound_nifti_files(tmp_path):
    turned = np.eye(4)
    turned[:2, :2] = [[0.6, -0.8], [0.8, 0.6]]
    affine = turned @ np.diag([1, 2, 3, 1])
    image = nib.Nifti1Image(scan(), affine)
    image.set_qform(affine, 1)
    nib.save(image, tmp_path / "v.nii")

    def same(path: Path) -> None:
        found = nifti.load(path)
        np.testing.assert_array_equal(found.dataobj, scan())
        np.testing.assert_allclose(found.affine, affine, atol=1e-3)

    same(changed(tmp_path / "v.nii", vox_offset=0))
    same(changed(tmp_path / "v.nii", srow_x=0, srow_y=0, srow_z=0))  # the qform is still there
    half = np.float32(np.sqrt(0.5) + 1e-6)
    path = changed(tmp_path / "v.nii", quatern_b=half, quatern_c=half, quatern_d=0, sform_code=0)  # length over 1
    assert nib.aff2axcodes(nifti.load(path).affine) == ("A", "R", "I")
    path = changed(tmp_path / "v.nii", quatern_b=0, quatern_c=0, qform_code=0, sform_code=0)
    np.testing.assert_array_equal(nib.affines.voxel_sizes(nifti.load(path).affine), [1, 2, 3])


def test_large_texts_and_turned_pictures(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "x" * 2**21, zip=True)
    Image.fromarray(head()).save(tmp_path / "xmp.png", pnginfo=text)
    np.testing.assert_array_equal(dataset.read_files([tmp_path / "xmp.png"]).images[0, :, 4:44], head())
    turned = Image.Exif()
    turned[0x0112] = 6  # the first row is on the right
    for name in ("turned.png", "turned.tif", "turned.webp"):
        options = {"lossless": True} if name.endswith("webp") else {}
        Image.fromarray(np.rot90(head())).save(tmp_path / name, exif=turned, **options)
        np.testing.assert_array_equal(dataset.read_files([tmp_path / name]).images[0, :, 4:44], head())


# ------------------------------------------------------------------------------------------- what lies there


def test_messages_count_what_lies_there(tmp_path):
    root = picture_set(tmp_path / "set", suffix=".tif")
    assert len(dataset.load(str(root)).splits["train"]) == 9  # TIFF is a picture like others
    (root / "validate").rename(root / "val")
    assert f"no folder validate in {root}; there is val: rename it" in refused(dataset.load, str(root))
    for entry in (root / "train").iterdir():
        entry.rename(entry.with_suffix(".dcm"))
    line = refused(dataset.load, str(root))
    assert "train holds 9 .dcm, no picture or volume: convert DICOM to NIfTI first" in line
    for entry in [*(root / "train").iterdir()]:
        (root / "train" / entry.stem[:8]).mkdir(exist_ok=True)
        entry.rename(root / "train" / entry.stem[:8] / f"{entry.stem}.png")
    line = refused(dataset.load, str(root))
    assert "holds 3 folders (case_001, case_002, case_003), no picture or volume: python dataset.py split" in line
    (root / "test/case_005.nii").touch()
    assert "both pictures and volumes" in refused(dataset.load, str(root))


# ------------------------------------------------------------------------------------------- splits by person


def flat(root: Path) -> int:
    picture_set(root)
    for path in root.glob("*/*"):
        path.rename(root / path.name)
        with suppress(OSError):
            path.parent.rmdir()
    return 15


def bids(root: Path) -> int:
    for person in range(1, 6):
        mask = (scan(person) > 300).astype(np.uint8)
        for session in (1, 2):
            base = f"sub-{person:02}_ses-{session}"
            save(root / f"sub-{person:02}/ses-{session}/anat/{base}_T1w.nii.gz", scan(person))
            save(root / f"sub-{person:02}/ses-{session}/anat/{base}_T2w.nii.gz", scan(person))
            save(root / f"derivatives/masks/sub-{person:02}/{base}_desc-brain_mask.nii.gz", mask)
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t20\n")
    return 10


def classes(root: Path) -> int:
    for label, people in (("NonDemented", range(1, 6)), ("MildDemented", range(6, 11))):
        (root / label).mkdir(parents=True)
        for person in people:
            for level in (100, 120):
                Image.fromarray(head(level, person)).save(root / label / f"OAS1_{person:04}_MR1_mpr-1_{level}.jpg")
    return 20


def oasis_1(root: Path) -> int:
    for person in range(1, 5):
        for session in ("MR1", "MR2"):
            name = f"OAS1_{person:04}_{session}"
            for number in (1, 2):
                analyze(root / f"disc1/{name}/RAW/{name}_mpr-{number}_anon", scan(person))
            segmented = f"{name}_mpr_n4_anon_111_t88_masked_gfc_fseg"
            analyze(root / f"disc1/{name}/FSL_SEG/{segmented}", scan(person) // 700)
    return 16


@pytest.mark.parametrize("layout", [flat, bids, classes, oasis_1])
def test_split_makes_a_sound_set_by_person_of_links(tmp_path, monkeypatch, capsys, layout):
    number = layout(tmp_path / "in")
    assert "make them by person with python" in refused(dataset.load, str(tmp_path / "in"))
    assert run(monkeypatch, "split", tmp_path / "in", tmp_path / "out") == 0
    assert "warning" not in capsys.readouterr().out
    data = dataset.load(str(tmp_path / "out"))
    files = {split: set(slices.paths) for split, slices in data.splits.items()}
    assert sum(map(len, files.values())) == number
    people = [set(slices.people) for slices in data.splits.values()]
    assert sum(map(len, people)) == len(set.union(*people))  # nobody is in two splits
    assert all(path.samefile(next((tmp_path / "in").rglob(path.name))) for own in files.values() for path in own)
    assert (tmp_path / "out/participants.tsv").exists() == (layout is bids)
    assert "isn't empty" in refused(splitting.split, tmp_path / "in", tmp_path / "out")
    splitting.split(tmp_path / "in", tmp_path / "again")
    for split in dataset.SPLITS:
        assert set(os.listdir(tmp_path / "out" / split)) == set(os.listdir(tmp_path / "again" / split))


def test_split_where_names_do_not_tell(tmp_path, monkeypatch, capsys):
    for split in ("train", "val", "test"):
        for number, label in enumerate(("Mild_Demented", "Non_Demented")):
            (tmp_path / "in" / split / label).mkdir(parents=True)
            Image.fromarray(head(8, number)).save(tmp_path / "in" / split / label / f"{number} (1).jpg")
    assert run(monkeypatch, "split", tmp_path / "in", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "warning: 6 of 6 people have one file, such as 0 (1)_test_Mild_Demented.jpg: where names hide" in out
    assert sum(len(part) for part in dataset.load(str(tmp_path / "out")).splits.values()) == 6


def test_split_by_folders_that_are_people_or_by_an_expression(tmp_path):
    for person in range(4):
        for visit in ("2006", "2007"):
            path = tmp_path / f"adni/00{person}_S_029{person}/MPRAGE/{visit}/I{person}{visit}.nii"
            save(path, scan(person))
            save(tmp_path / f"own/p{person}/v{visit}/scan.nii", scan(person))
    splitting.split(tmp_path / "adni", tmp_path / "a")
    assert set(dataset.load(str(tmp_path / "a")).splits["test"].people) < {f"00{i}_S_029{i}" for i in range(4)}
    splitting.split(tmp_path / "own", tmp_path / "b", "p[0-9]")
    data = dataset.load(str(tmp_path / "b"), person="p[0-9]")
    assert sorted(len(set(part.people)) for part in data.splits.values()) == [1, 1, 2]
    assert sum(len(set(part.paths)) for part in data.splits.values()) == 8
    assert "is not found in" in refused(splitting.split, tmp_path / "own/p1", tmp_path / "c", "p[0-9]")
    few = refused(splitting.split, tmp_path / "adni/000_S_0290", tmp_path / "c", "I[0-9]")
    assert "holds files of 1 person, and splits need three" in few
    assert not (tmp_path / "c").exists()
    assert "no folder" in refused(splitting.split, tmp_path / "nowhere", tmp_path / "c")
