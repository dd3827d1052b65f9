import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scans import OBLIQUE, refused, save, volume, write_set

import dataset
from reading import images, nifti
from reading.intensity import robust_range, scale_to_uint8
from reading.nifti import WHOLE, Cut

pytestmark = pytest.mark.usefixtures("own_cache")


def stored_as(voxels: np.ndarray, affine: np.ndarray, axes: str) -> nib.Nifti1Image:
    """The same volume in space (RAS voxels and affine), stored with other axes, such as "PIR"."""
    ras = nib.Nifti1Image(voxels, affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes))
    return ras.as_reoriented(turn)


# ------------------------------------------------------------------------------------------- HipMRI slices


def hipmri(root: Path) -> Path:
    def made(person: int, level: int, path: Path) -> None:
        save(path, volume(10 * person + level, (256, 128)).astype(np.int16))

    return write_set(root, name="keras_slices_{}/case_{:03}_week_0_slice_{}.nii.gz", made=made)


def test_slices_are_recognised_and_scaled_by_their_volume(tmp_path, capsys):
    data = dataset.load(str(hipmri(tmp_path / "HipMRI")))
    assert dataset.check(str(data.root)) == ([], [])
    assert "train: 6 files of 2 people; 6 of 256x128, slices of volumes" in capsys.readouterr().out
    train = data.splits["train"]
    assert train.images.shape == (6, 256, 128)
    assert train.images.dtype == np.uint8
    assert train.names[:2] == ["case_001_week_0_slice_0.nii.gz", "case_001_week_0_slice_1.nii.gz"]
    assert set(train.people) == {"case_001", "case_002"}
    np.testing.assert_array_equal(train.levels, [0, 1, 2] * 2)
    voxels = np.stack([volume(10 + level, (256, 128)).astype(np.int16) for level in range(3)])
    low, high = np.percentile(voxels, (0.5, 99.5))
    np.testing.assert_allclose(train.ranges[:3], [[low, high]] * 3)  # one range, recorded, for all three
    assert train.ranges[3, 1] != high
    expected = np.clip((voxels - low) / (high - low), 0, 1) * 255
    assert np.abs(train.images[:3] - expected).max() <= 0.5001
    assert data.title == "HipMRI"


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


def test_voxels_that_are_no_numbers_are_left_out_and_black():
    voxels = np.array([[np.nan, np.inf, -np.inf, 0, 10, 5]], np.float32)
    low, high = robust_range([voxels])
    assert 0 <= low < high <= 10
    assert robust_range([np.eye(1, 10_000)]) == (0, 1)  # nearly empty: the extremes
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
        np.testing.assert_array_equal(nifti.cut_slices(nifti.load(path), WHOLE), voxels.transpose(2, 0, 1))
        named, shape = nifti.slices_of(nifti.load(path, voxels=False), path.name, WHOLE)
        assert shape == (20, 24)
        assert named[3] == (f"{axes}_slice_3.nii.gz", 3)
        assert len(named) == 16


def test_axis_and_slices(tmp_path):
    voxels, image = volume(), nifti.load(save(tmp_path / "v.nii", volume()))
    np.testing.assert_array_equal(nifti.cut_slices(image, Cut(0, "4:9")), voxels[4:9])
    np.testing.assert_array_equal(nifti.cut_slices(image, Cut(1, "2::3")), voxels.transpose(1, 0, 2)[2::3])
    np.testing.assert_array_equal(nifti.cut_slices(image, Cut(2, "-5:")), voxels.transpose(2, 0, 1)[-5:])
    assert [level for _, level in nifti.slices_of(image, "v.nii", Cut(1, "2::3"))[0]] == list(range(2, 24, 3))
    assert nifti.slices_of(image, "v.nii", Cut(0, "4:9"))[1] == (24, 16)
    for text in ("5", "a:b", "::0", "1:2:-1", "1:2:3:4", "1;2", "9999999999:"):
        assert "60:92" in refused(nifti.parse_slices, text)


def test_a_set_of_volumes(tmp_path):
    root = tmp_path / "volumes"
    write_set(root, slices=1, name="{}/case_{:03}.nii.gz", made=lambda person, _, path: save(path, volume(person)))
    data = dataset.load(str(root), cut=Cut(slices="4:12"))
    train = data.splits["train"]
    assert train.images.shape == (16, 32, 32)
    assert train.names[8:10] == ["case_002_slice_4.nii.gz", "case_002_slice_5.nii.gz"]
    assert train.people == ["case_001"] * 8 + ["case_002"] * 8
    assert train.levels.tolist() == [*range(4, 12)] * 2
    assert train.paths[8] == root / "train/case_002.nii.gz"
    assert len(dataset.load(str(root), limit_people=1, cut=Cut(slices="4:12")).splits["train"]) == 8
    assert dataset.load(str(root), cut=Cut(0)).splits["train"].images.shape == (40, 32, 16)  # a cache of its own
    assert "none of them in 50:60" in refused(dataset.load, str(root), cut=Cut(slices="50:60"))
    assert "axis must be" in refused(dataset.load, str(root), cut=Cut(3))


# ------------------------------------------------------------------------------------------- and back


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAL"])
@pytest.mark.parametrize(("axis", "shape"), [(0, (20, 24, 16)), (1, (23, 27, 21)), (2, (5, 7, 3))])
def test_affine_orientation_and_range_survive_the_round_trip(tmp_path, axes, axis, shape):
    path = tmp_path / "in.nii.gz"
    nib.save(stored_as(volume(shape=shape), OBLIQUE, axes), path)
    before = nib.load(path)
    slices = dataset.read_files([path], Cut(axis))
    (written,) = nifti.write_all(tmp_path / "out", slices.paths, slices.images / 255, slices.ranges, Cut(axis))
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
    cut = Cut(slices=chosen)
    slices = dataset.read_files([path], cut)
    (written,) = nifti.write_all(tmp_path / "out", slices.paths, slices.images / 255, slices.ranges, cut)
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
    slices = dataset.read_files([sources[0], save(tmp_path / "b" / sources[0].name, volume(0, (8, 8)))])
    message = refused(nifti.write_all, tmp_path / "b/out", slices.paths, slices.images / 255, slices.ranges)
    assert f"several NIfTI files are called {sources[0].name}" in message
    assert not (tmp_path / "b/out").exists()


# ------------------------------------------------------------------------------------------- bad files


def test_check_reports_a_packed_volume_with_a_changed_voxel(tmp_path):
    write_set(tmp_path, slices=1, name="{}/case_{:03}.nii.gz", made=lambda person, _, path: save(path, volume(person)))
    assert dataset.check(str(tmp_path)) == ([], [])
    path = tmp_path / "test/case_004.nii.gz"
    voxels = bytearray(gzip.decompress(path.read_bytes()))
    voxels[-100] ^= 1
    changed = gzip.compress(bytes(voxels), compresslevel=0)
    path.write_bytes(changed[:-8] + path.read_bytes()[-8:])  # sum and length of what it was
    [problem], _ = dataset.check(str(tmp_path))
    assert problem == f"{path} can't be read as NIfTI, Analyze or MGH (BadGzipFile)"
    assert "case_004.nii.gz can't be read as NIfTI" in refused(dataset.load, str(tmp_path))


@pytest.mark.parametrize(("axis", "chosen"), [(2, None), (2, "-9:-1:2"), (0, "3:"), (1, None)])
def test_a_stack_lies_where_the_volume_does_that_it_is_like(tmp_path, axis, chosen):
    """Slices of a volume, put on a canvas and written with `affine_of`, have every voxel where it was."""
    path, cut = save(tmp_path / "scan.nii.gz", volume()), Cut(axis, chosen)
    canonical = nib.as_closest_canonical(nib.load(path))
    slices = nifti.cut_slices(nifti.load(path), cut).astype(np.uint8)
    pictures = np.stack([images.fit(picture, (32, 32)) for picture in slices])
    nifti.write_stack(tmp_path / "stack.nii.gz", pictures, axis, nifti.affine_of(path, (32, 32), cut))
    written = nib.load(tmp_path / "stack.nii.gz")
    to_source = np.linalg.inv(canonical.affine) @ written.affine
    values = np.asarray(written.dataobj)
    filled = np.argwhere(values)
    places = nib.affines.apply_affine(to_source, filled)
    np.testing.assert_allclose(places, places.round(), atol=1e-3)
    found = np.asarray(canonical.dataobj)[tuple(places.round().astype(int).T)]
    assert np.array_equal(found.astype(np.uint8), values[tuple(filled.T)])
    assert len(filled)
    assert nifti.affine_of(save(tmp_path / "slice.nii.gz", volume()[:, :, 0]), (32, 32), cut) is None
