import contextlib
import gzip

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dataset
from reading import images, nifti
from reading.intensity import robust_range, scale_to_uint8
from reading.names import volume_of
from runtime.errors import InputError

same_each_run = settings(derandomize=True, deadline=None, max_examples=60)  # no chance, no clock
OBLIQUE = nib.affines.from_matvec(
    np.diag([1.1, 0.9, 2.0]) @ np.array([[0.98, -0.199, 0], [0.199, 0.98, 0], [0, 0, 1]]), [-90, -126, -72]
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def save(path, voxels, affine=OBLIQUE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def volume(seed=0, shape=(20, 24, 16)) -> np.ndarray:
    """Random float32 voxels about 500, some of them 0."""
    rng = np.random.default_rng(seed)
    return (rng.gamma(5, 100, shape) * (rng.random(shape) > 0.2)).astype(np.float32)


def stored_as(voxels: np.ndarray, affine: np.ndarray, axes: str) -> nib.Nifti1Image:
    """The same volume in space (RAS voxels and affine), stored with other axes, such as "PIR"."""
    ras = nib.Nifti1Image(voxels, affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes))
    return ras.as_reoriented(turn)


# ------------------------------------------------------------------------------------------- HipMRI slices


def hipmri(root, counts=(("train", 2), ("validate", 1), ("test", 1)), shape=(256, 128)):
    person = 3
    for split, people in counts:
        for _ in range(people):
            person += 1
            for level in range(3):
                name = f"case_{person:03d}_week_0_slice_{level}.nii.gz"
                save(root / f"keras_slices_{split}" / name, volume(10 * person + level, shape).astype(np.int16))
    return root


def test_slices_are_recognised_and_scaled_by_their_volume(tmp_path):
    data = dataset.load(str(hipmri(tmp_path / "HipMRI")))
    train = data.splits["train"]
    assert train.images.shape == (6, 256, 128)
    assert train.images.dtype == np.uint8
    assert train.names[:2] == ["case_004_week_0_slice_0.nii.gz", "case_004_week_0_slice_1.nii.gz"]
    assert set(train.people) == {"case_004", "case_005"}
    np.testing.assert_array_equal(train.levels, [0, 1, 2] * 2)
    voxels = np.stack([volume(40 + level, (256, 128)).astype(np.int16) for level in range(3)])
    low, high = np.percentile(voxels, (0.5, 99.5))
    np.testing.assert_allclose(train.ranges[:3], [[low, high]] * 3)  # one range, recorded, for all three
    assert train.ranges[3, 1] != high
    expected = np.clip((voxels - low) / (high - low), 0, 1) * 255
    assert np.abs(train.images[:3] - expected).max() <= 0.5001
    assert data.title == "HipMRI"


def test_week_and_case_make_the_volume_the_case_alone_the_person(tmp_path):
    assert volume_of("case_004_week_0_slice_3.nii.gz") == "case_004_week_0"
    root = hipmri(tmp_path / "set")
    save(root / "keras_slices_test/case_004_week_1_slice_0.nii.gz", volume(1, (256, 128)))
    with pytest.raises(InputError, match="case_004 is in train and test"):
        dataset.load(str(root))


def test_one_canvas_for_all_splits_the_most_frequent_size(tmp_path):
    root = hipmri(tmp_path / "set")
    save(root / "keras_slices_test/case_009_week_0_slice_0.nii.gz", volume(1, (256, 144)))
    data = dataset.load(str(root))
    assert data.splits["test"].notes == ["test: 1 slice shrunk to fit 256x128"]
    assert {part.images.shape[1:] for part in data.splits.values()} == {(256, 128)}


@pytest.mark.parametrize("value", [0, 7, -3])
def test_flat_slices_are_black_and_come_back_flat(tmp_path, value):
    path = save(tmp_path / "flat.nii.gz", np.full((16, 16), value, np.float32))
    slices = dataset.read_files([path])
    assert (slices.images == 0).all()
    np.testing.assert_array_equal(slices.ranges, [[value, value]])
    (back,) = nifti.write_all(tmp_path / "out", slices.paths, slices.images / 255, slices.ranges)
    assert (nib.load(back).get_fdata() == value).all()


def test_nearly_empty_volumes_use_their_extremes():
    voxels = np.zeros((100, 100), np.float32)
    voxels[3, 4] = 9
    assert robust_range([voxels]) == (0, 9)


def test_voxels_that_are_no_numbers_are_left_out_and_black():
    voxels = np.array([[np.nan, np.inf, -np.inf, 0, 10, 5]], np.float32)
    low, high = robust_range([voxels])
    assert 0 <= low < high <= 10
    np.testing.assert_array_equal(scale_to_uint8(voxels, 0, 10), [[0, 255, 0, 0, 255, 128]])
    assert robust_range([np.full((2, 2), np.nan)]) == (0, 0)


# ------------------------------------------------------------------------------------------- volumes


def test_a_volume_is_cut_into_axial_slices_whatever_way_it_is_stored(tmp_path):
    """Rows go from left to right of the person, columns to anterior: the front is on the picture's right."""
    voxels = volume()
    for axes in ("RAS", "LPS", "PIR", "SAL", "ASR"):
        path = tmp_path / f"{axes}.nii.gz"
        nib.save(stored_as(voxels, OBLIQUE, axes), path)
        assert nib.aff2axcodes(nib.load(path).affine) == tuple(axes)
        np.testing.assert_array_equal(nifti.cut(nifti.load(path), 2, None), voxels.transpose(2, 0, 1))
        named, shape = nifti.slices_of(nifti.load(path, voxels=False), path.name, 2, None)
        assert shape == (20, 24)
        assert named[3] == (f"{axes}_slice_3.nii.gz", 3)
        assert len(named) == 16


def test_axis_and_slices(tmp_path):
    voxels, image = volume(), nifti.load(save(tmp_path / "v.nii", volume()))
    np.testing.assert_array_equal(nifti.cut(image, 0, "4:9"), voxels[4:9])
    np.testing.assert_array_equal(nifti.cut(image, 1, "2::3"), voxels.transpose(1, 0, 2)[2::3])
    np.testing.assert_array_equal(nifti.cut(image, 2, "-5:"), voxels.transpose(2, 0, 1)[-5:])
    assert [level for _, level in nifti.slices_of(image, "v.nii", 1, "2::3")[0]] == list(range(2, 24, 3))
    assert nifti.slices_of(image, "v.nii", 0, "4:9")[1] == (24, 16)


@pytest.mark.parametrize("text", ["5", "a:b", "::0", "1:2:-1", "1:2:3:4", "1;2", "9999999999:"])
def test_slices_that_make_no_sense(text):
    with pytest.raises(InputError, match="60:92"):
        nifti.parse_slices(text)


def test_a_set_of_volumes(tmp_path):
    root = tmp_path / "volumes"
    for split, person in (("train", 1), ("train", 2), ("validate", 3), ("test", 4)):
        save(root / split / f"case_{person:03d}.nii.gz", volume(person))
    data = dataset.load(str(root), slices="4:12")
    train = data.splits["train"]
    assert train.images.shape == (16, 32, 32)
    assert train.names[8:10] == ["case_002_slice_4.nii.gz", "case_002_slice_5.nii.gz"]
    assert train.people == ["case_001"] * 8 + ["case_002"] * 8
    assert train.levels.tolist() == [*range(4, 12)] * 2
    assert train.paths[8] == root / "train/case_002.nii.gz"
    assert len(dataset.load(str(root), limit_people=1, slices="4:12").splits["train"]) == 8
    assert dataset.load(str(root), axis=0).splits["train"].images.shape == (40, 32, 16)  # a cache of its own
    with pytest.raises(InputError, match="none of them in 50:60"):
        dataset.load(str(root), slices="50:60")
    with pytest.raises(InputError, match="axis must be"):
        dataset.load(str(root), axis=3)


def test_pictures_and_nifti_do_not_mix(tmp_path):
    save(tmp_path / "train/case_001.nii.gz", volume())
    (tmp_path / "train/case_002_slice_0.png").touch()
    with pytest.raises(InputError, match="keep one kind"):
        dataset.load(str(tmp_path), splits=("train",))


# ------------------------------------------------------------------------------------------- and back


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAL"])
@pytest.mark.parametrize(("axis", "shape"), [(0, (20, 24, 16)), (1, (91, 109, 91)), (2, (5, 7, 3))])
def test_affine_orientation_and_range_survive_the_round_trip(tmp_path, axes, axis, shape):
    path = tmp_path / "in.nii.gz"
    nib.save(stored_as(volume(shape=shape), OBLIQUE, axes), path)
    before = nib.load(path)
    slices = dataset.read_files([path], axis=axis)
    (written,) = nifti.write_all(tmp_path / "out", slices.paths, slices.images / 255, slices.ranges, axis)
    after = nib.load(written)
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-4)
    assert after.shape == before.shape
    assert after.get_data_dtype() == np.float32
    for code in ("sform_code", "qform_code"):
        assert after.header[code] == before.header[code]
    low, high = slices.ranges[0]
    clipped = before.get_fdata().clip(low, high)
    assert np.abs(after.get_fdata() - clipped).max() <= (high - low) / 255 * 0.51  # what 8 bits keep


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR"])
@pytest.mark.parametrize("chosen", ["4:12", "3::4", "-6:-1"])
def test_chosen_slices_lie_where_they_were_in_space(tmp_path, axes, chosen):
    path = tmp_path / "in.nii.gz"
    nib.save(stored_as(volume(), OBLIQUE, axes), path)
    slices = dataset.read_files([path], slices=chosen)
    how = {"slices": chosen}
    (written,) = nifti.write_all(tmp_path / "out", slices.paths, slices.images / 255, slices.ranges, **how)
    after = nib.load(written)
    assert nib.aff2axcodes(after.affine) == tuple(axes)
    ras = nib.as_closest_canonical(after)
    for row, level in enumerate(slices.levels):  # the same point of each slice, in mm
        np.testing.assert_allclose(ras.affine @ [5, 7, row, 1], OBLIQUE @ [5, 7, level, 1], atol=1e-3)
    low, high = slices.ranges[0]
    expected = volume()[:, :, nifti.parse_slices(chosen)].clip(low, high)
    assert np.abs(ras.get_fdata() - expected).max() <= (high - low) / 255 * 0.51


def test_slices_come_back_at_their_own_size_and_range(tmp_path):
    sources = [save(tmp_path / f"case_00{i}_slice_0.nii.gz", volume(i, (32, 16))) for i in (1, 2, 3)]
    sources.append(save(tmp_path / "case_004_slice_0.nii.gz", volume(4, (24, 16, 1))))
    slices = dataset.read_files(sources)
    assert slices.images.shape == (4, 32, 16)  # the smallest canvas that holds all
    written = nifti.write_all(tmp_path / "out", slices.paths, slices.images / 255, slices.ranges)
    for source, path, (low, high) in zip(sources, written, slices.ranges, strict=True):
        before, after = nib.load(source), nib.load(path)
        assert path.name == source.name
        assert after.shape == before.shape
        np.testing.assert_allclose(after.affine, before.affine)
        assert np.abs(after.get_fdata() - before.get_fdata().clip(low, high)).max() <= (high - low) / 255 * 0.51


def test_two_sources_of_one_name_are_refused(tmp_path):
    sources = [save(tmp_path / folder / "x.nii", volume(0, (8, 8))) for folder in ("a", "b")]
    slices = dataset.read_files(sources)
    with pytest.raises(InputError, match=r"several NIfTI files are called x\.nii"):
        nifti.write_all(tmp_path / "out", slices.paths, slices.images / 255, slices.ranges)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------- bad files


def header_that_claims(shape: tuple[int, ...], offset: float = 352) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header["dim"][: len(shape) + 1] = [len(shape), *shape]
    header["vox_offset"] = offset
    header["magic"] = b"n+1"
    return header.binaryblock + bytes(4)


def test_bad_files_are_named_with_the_reason(tmp_path):
    save(tmp_path / "whole.nii.gz", volume())
    whole = (tmp_path / "whole.nii.gz").read_bytes()
    bad = {
        "empty.nii": (b"", "is empty"),
        "text.nii": (b"hello" * 100, "can't be read as NIfTI"),
        "text.nii.gz": (b"hello", "can't be read as NIfTI"),
        "truncated.nii.gz": (whole[: len(whole) // 2], "can't be read as NIfTI"),
        "bomb.nii.gz": (gzip.compress(header_that_claims((30000, 30000, 30000))), "more than any scan has"),
        "far.nii.gz": (gzip.compress(header_that_claims((8, 8), 2e9)), "more than any scan has"),
        "line.nii": (header_that_claims((64,)) + bytes(64), "not a slice"),
    }
    nib.save(nib.Nifti1Image(volume(0, (4, 5, 6, 7)), OBLIQUE), tmp_path / "series.nii")
    nib.save(nib.Nifti1Image(volume(0, (4, 5, 6)).astype(np.complex64), OBLIQUE), tmp_path / "complex.nii")
    for name, (content, reason) in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=reason) as error:
            dataset.read_files([tmp_path / name])
        assert name in str(error.value)
    for name, reason in (("series.nii", "nor one 3-D volume"), ("complex.nii", "not intensities")):
        with pytest.raises(InputError, match=reason):
            dataset.read_files([tmp_path / name])


@same_each_run
@given(st.binary(min_size=1, max_size=8), st.integers(0, 400))
def test_damaged_bytes_raise_only_value_error(tmp_path_factory, junk, at):
    path = save(tmp_path_factory.getbasetemp() / "fuzzed.nii", volume(0, (6, 5, 4)))
    content = path.read_bytes()
    path.write_bytes(content[:at] + junk + content[at + len(junk) :])
    with contextlib.suppress(ValueError):
        slices = nifti.cut(nifti.load(path), 2, None)
        assert slices.dtype == np.float32
        assert slices.ndim == 3


def test_check_reports_a_packed_volume_with_a_changed_voxel(tmp_path):
    for split, person in (("train", 1), ("validate", 2), ("test", 3)):
        save(tmp_path / split / f"case_00{person}.nii.gz", volume(person))
    assert dataset.check(str(tmp_path)) == ([], [])
    path = tmp_path / "test/case_003.nii.gz"
    voxels = bytearray(gzip.decompress(path.read_bytes()))
    voxels[-100] ^= 1
    changed = gzip.compress(bytes(voxels), compresslevel=0)
    path.write_bytes(changed[:-8] + path.read_bytes()[-8:])  # sum and length of what it was
    [problem], _ = dataset.check(str(tmp_path))
    assert problem == f"{path} can't be read as NIfTI, Analyze or MGH (BadGzipFile)"
    with pytest.raises(InputError, match=r"case_003\.nii\.gz can't be read as NIfTI"):
        dataset.load(str(tmp_path))


def test_check_reports_nifti(tmp_path, capsys):
    root = hipmri(tmp_path / "set")
    assert dataset.check(str(root)) == ([], [])
    assert "train: 6 files of 2 people; 6 of 256x128, slices of volumes" in capsys.readouterr().out
    (root / "keras_slices_test/case_007_week_0_slice_0.nii.gz").write_bytes(b"junk")
    assert len(dataset.check(str(root))[0]) == 1


@pytest.mark.parametrize(("axis", "chosen"), [(2, None), (2, "-9:-1:2"), (0, "3:"), (1, None)])
def test_a_stack_lies_where_the_volume_does_that_it_is_like(tmp_path, axis, chosen):
    """Slices of a volume, put on a canvas and written with `affine_of`, have every voxel where it was."""
    voxels = volume()
    path = tmp_path / "scan.nii.gz"
    save(path, voxels)
    canonical = nib.as_closest_canonical(nib.load(path))
    pictures = np.stack(
        [images.fit(picture, (32, 32)) for picture in nifti.cut(nifti.load(path), axis, chosen).astype(np.uint8)]
    )
    nifti.write_stack(tmp_path / "stack.nii.gz", pictures, axis, nifti.affine_of(path, (32, 32), axis, chosen, None))
    written = nib.load(tmp_path / "stack.nii.gz")
    to_source = np.linalg.inv(canonical.affine) @ written.affine
    values = np.asarray(written.dataobj)
    filled = np.argwhere(values)
    places = nib.affines.apply_affine(to_source, filled)
    np.testing.assert_allclose(places, places.round(), atol=1e-3)
    found = np.asarray(canonical.dataobj)[tuple(places.round().astype(int).T)]
    assert np.array_equal(found.astype(np.uint8), values[tuple(filled.T)])
    assert len(filled)


def test_single_slices_tell_no_place_of_a_stack(tmp_path):
    save(tmp_path / "slice.nii.gz", volume()[:, :, 0])
    assert nifti.affine_of(tmp_path / "slice.nii.gz", (32, 32), 2, None, None) is None
