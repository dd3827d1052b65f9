"""DICOM files and series made on the spot: order, place in space, intensities, and what is no volume."""

import re

import nibabel as nib
import numpy as np
import pytest
from scans import refused

import dataset
from reading import dicom, nifti
from reading.nifti import Cut

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEGLSLossless  # noqa: E402

TURN = [0.8, 0.6, 0, 0, 0, -1]  # along a row, along a column: a coronal slice, turned about the vertical
NORMAL = np.cross(TURN[:3], TURN[3:])
CORNER = np.array([-80.0, 40.0, 60.0])
STEP = 3.0
ROWS, COLUMNS, SLICES = 20, 24, 11


def volume() -> np.ndarray:
    """12-bit values, uint16 [slices, rows, columns]."""
    return np.random.default_rng(0).integers(0, 4096, (SLICES, ROWS, COLUMNS), np.uint16)


def write(path, values, position=None, **changes):
    """A file with these stored values: [rows, columns], [frames, rows, columns], or [rows, columns, 3]."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = changes.pop("syntax", ExplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", "1.2.3"
    header = Dataset()
    header.file_meta = meta
    header.SOPClassUID, header.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    header.SeriesInstanceUID, header.SeriesDescription = "1.2.3.4", "T1"
    colour = values.shape[-1] == 3
    header.Rows, header.Columns = values.shape[-3:-1] if colour else values.shape[-2:]
    header.SamplesPerPixel = 3 if colour else 1
    header.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        header.PlanarConfiguration = 0
    if values.ndim == 3 and not colour:
        header.NumberOfFrames = len(values)
    header.BitsAllocated = 8 * values.dtype.itemsize
    header.BitsStored = 12 if values.dtype == np.uint16 else header.BitsAllocated
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(values.dtype.kind == "i")
    if position is not None:
        header.ImagePositionPatient = list(position)
        header.ImageOrientationPatient = TURN
        header.PixelSpacing, header.SliceThickness = [1.5, 2.0], 2.5
    header.PixelData = values.tobytes()
    for name, value in changes.items():
        if value is None:
            delattr(header, name)
        else:
            setattr(header, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return path


def write_series(folder, shuffled=True, **changes):
    """`volume()` in files whose names and numbers are not in the order of space."""
    order = np.random.default_rng(1).permutation(SLICES) if shuffled else range(SLICES)
    for number, i in enumerate(order):
        position = CORNER + i * STEP * NORMAL
        write(folder / f"1.2.840.{number}", volume()[i], position, InstanceNumber=number, **changes)
    return folder


# ------------------------------------------------------------------------------------------- series


def test_a_series_is_ordered_along_its_normal_and_lies_where_it_says(tmp_path):
    image = nifti.load(write_series(tmp_path / "T1"))
    np.testing.assert_array_equal(image.dataobj, np.moveaxis(volume(), 0, -1))
    for row, column, i in ((0, 0, 0), (19, 3, 7), (4, 23, 10)):
        left, back, up = CORNER + i * STEP * NORMAL + column * 2.0 * np.array(TURN[:3]) + row * 1.5 * np.array(TURN[3:])
        np.testing.assert_allclose(image.affine @ [row, column, i, 1], [-left, -back, up, 1], atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_series_is_cut_like_the_same_volume_in_nifti(tmp_path, axis):
    folder = write_series(tmp_path / "T1")
    nib.save(nifti.load(folder), tmp_path / "same.nii")
    slices, same = (dataset.read_files([path], Cut(axis, "2:9")) for path in (folder, tmp_path / "same.nii"))
    np.testing.assert_array_equal(slices.images, same.images)
    np.testing.assert_array_equal(slices.ranges, same.ranges)
    np.testing.assert_array_equal(slices.levels, range(2, 9))
    assert slices.names[0] == "T1_slice_2.dcm"
    assert slices.paths == [folder] * 7
    assert slices.notes == [
        f"T1: DICOM of {ROWS}x{COLUMNS}x{SLICES}, values {same.ranges[0][0]:.6g} to {same.ranges[0][1]:.6g}"
        " (percentiles 0.5 and 99.5) scaled to 8-bit"
    ]


@pytest.mark.parametrize("spacing", [None, 2.0])
def test_a_series_is_written_back_as_nifti(tmp_path, spacing):
    folder = write_series(tmp_path / "T1")
    cut = Cut(axis=1, spacing=spacing)
    slices = dataset.read_files([folder], cut)
    (path,) = nifti.write_all(tmp_path / "out", slices.paths, slices.images / 255, slices.ranges, cut)
    assert path.name == "T1.nii.gz"
    before, after = nifti.load(folder), nib.load(path)
    assert after.shape == before.shape
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-4)
    assert (int(after.header["sform_code"]), int(after.header["qform_code"])) == (1, 1)
    low, high = slices.ranges[0]
    if spacing is None:
        assert np.abs(after.get_fdata() - np.asarray(before.dataobj).clip(low, high)).max() <= (high - low) / 255 * 0.51


def test_each_file_is_rescaled_by_its_own_slope_and_intercept(tmp_path):
    for i in range(3):
        changes = {"RescaleSlope": i + 0.5, "RescaleIntercept": -1000 * i}
        write(tmp_path / "s" / f"{i}.dcm", volume()[i], CORNER + i * STEP * NORMAL, **changes)
    voxels = np.asarray(nifti.load(tmp_path / "s").dataobj)
    for i in range(3):
        np.testing.assert_allclose(voxels[..., i], volume()[i] * (i + 0.5) - 1000 * i, rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"SeriesInstanceUID": "1.2.3.5", "SeriesDescription": "T2"}, r"holds 2 series, 'T1' \(10\), 'T2' \(1\)"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}, "different directions or pixel sizes"),
        ({"PixelSpacing": [1.5, 1.9]}, "different directions or pixel sizes"),
        ({"Rows": ROWS // 2}, "different sizes"),
        ({"ImagePositionPatient": list(CORNER + 9 * STEP * NORMAL)}, "several pictures at one place"),
        ({"ImagePositionPatient": list(CORNER + 20 * STEP * NORMAL)}, "3 to 33 mm apart, so some are missing"),
        ({"ImagePositionPatient": None}, "doesn't say where its slices lie"),
        ({"ImagePositionPatient": [0, 0]}, "can't be read as DICOM"),
        ({"RescaleSlope": "1e999"}, "can't be read as DICOM"),
        ({"PixelData": bytes(100)}, "can't be read as DICOM"),
    ],
)
def test_what_is_no_volume_is_one_line(tmp_path, changed, says):
    write_series(tmp_path / "T1", shuffled=False)
    with pydicom.config.disable_value_validation():
        write(tmp_path / "T1" / "1.2.840.10", volume()[10], CORNER + 10 * STEP * NORMAL, **changed)
        assert re.search(says, refused(dataset.read_files, [tmp_path / "T1"]))


def test_what_else_lies_in_the_folder_of_a_series(tmp_path):
    folder = write_series(tmp_path / "T1")
    (folder / "readme.txt").write_text("nothing to see")
    write(folder / "DICOMDIR", volume()[0], SeriesInstanceUID="9.9")
    report = write(folder / "report.dcm", volume()[0], SeriesInstanceUID="9.8", Rows=None)
    assert len(dataset.read_files([folder])) == ROWS
    report.unlink()
    (folder / "preview.nii").write_bytes(b"")
    assert "a series needs a folder of its own" in refused(dataset.read_files, [folder])


# ------------------------------------------------------------------------------------------- single files


def test_single_files_are_slices_as_they_are_seen(tmp_path):
    values = (np.arange(ROWS * COLUMNS, dtype=np.uint16) + 500).reshape(ROWS, COLUMNS)
    path = write(tmp_path / "1.2.840.7", values, CORNER)
    slices = dataset.read_files([path])
    low, high = np.percentile(values, (0.5, 99.5))
    expected = ((values - low) / (high - low) * 255).clip(0, 255)
    assert slices.images.shape == (1, 32, 32)
    assert np.abs(slices.images[0, 6:26, 4:28] - expected).max() <= 0.51
    np.testing.assert_allclose(slices.ranges, [[low, high]])
    assert (slices.names, slices.people) == (["1_2_840_7.dcm"], ["1_2_840_7"])
    assert slices.notes == [
        f"1.2.840.7: DICOM of 20x24, values {low:.6g} to {high:.6g} (percentiles 0.5 and 99.5) scaled to 8-bit"
    ]
    (back,) = nifti.write_all(tmp_path / "out", slices.paths, slices.images / 255, slices.ranges)
    assert back.name == "1.2.840.7.nii.gz"
    after = nib.load(back)
    assert np.abs(after.get_fdata()[..., 0] - values.clip(low, high)).max() <= (high - low) / 255 * 0.51
    left, back_, up = CORNER
    np.testing.assert_allclose(after.affine[:3, 3], [-left, -back_, up], atol=1e-4)


@pytest.mark.parametrize(("dtype", "least_and_most"), [(np.uint8, 255), (np.uint16, 4095), (np.int16, -1)])
def test_monochrome1_is_inverted(tmp_path, dtype, least_and_most):
    values = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS).astype(dtype)
    changes = {"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": 2, "RescaleIntercept": 10}
    voxels = np.asarray(nifti.load(write(tmp_path / "a.dcm", values, **changes)).dataobj)[..., 0]
    np.testing.assert_array_equal(voxels, (least_and_most - values.astype(int)) * 2 + 10)


@pytest.mark.parametrize("implicit", [True, False])
def test_a_data_set_without_preamble_is_read(tmp_path, implicit):
    header = pydicom.dcmread(write(tmp_path / "new.dcm", volume()[0], CORNER))
    bare = Dataset({tag: header[tag] for tag in header.keys()})  # noqa: SIM118
    pydicom.dcmwrite(tmp_path / "old.dcm", bare, implicit_vr=implicit, little_endian=True)
    assert (tmp_path / "old.dcm").read_bytes()[128:132] != b"DICM"
    (tmp_path / "old.dcm").rename(tmp_path / "IM0001")
    found, same = (nifti.load(tmp_path / name) for name in ("IM0001", "new.dcm"))
    np.testing.assert_array_equal(found.dataobj, same.dataobj)
    np.testing.assert_array_equal(found.affine, same.affine)


def test_declared_padding_is_as_dark_as_the_darkest_of_the_rest(tmp_path):
    values = volume()[0].astype(np.int16) + 100
    values[:, :5], values[:, 5:8] = -2000, -1999
    changes = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}
    voxels = np.asarray(nifti.load(write(tmp_path / "a.dcm", values, **changes)).dataobj)[..., 0]
    np.testing.assert_array_equal(voxels[:, 8:], values[:, 8:])
    np.testing.assert_array_equal(voxels[:, :8], values[:, 8:].min())


def test_8_bits_are_taken_as_they_are_and_colour_becomes_grey(tmp_path):
    grey = np.random.default_rng(0).integers(50, 80, (ROWS, COLUMNS), np.uint8)
    slices = dataset.read_files([write(tmp_path / "grey.dcm", grey)])
    np.testing.assert_array_equal(slices.images[0, 6:26, 4:28], grey)
    assert slices.notes == ["grey.dcm: DICOM of 20x24, 8-bit"]
    colours = np.dstack([grey, grey // 2, grey // 4])
    slices = dataset.read_files([write(tmp_path / "colour.dcm", colours)])
    assert np.abs(slices.images[0, 6:26, 4:28] - colours @ np.array([0.299, 0.587, 0.114])).max() <= 0.51
    assert slices.notes[1] == "colour.dcm: colour, converted to grey"


def test_frames_of_one_file_without_a_place_are_slices_in_their_order(tmp_path):
    slices = dataset.read_files([write(tmp_path / "m.dcm", volume())])
    voxels = np.asarray(nifti.load(tmp_path / "m.dcm").dataobj)
    np.testing.assert_array_equal(voxels, np.moveaxis(volume(), 0, -1))
    assert slices.names[:2] == ["m_slice_0.dcm", "m_slice_1.dcm"]


def test_frames_of_one_file_with_places_are_a_volume(tmp_path):
    """An enhanced file keeps what is common to all frames, and what is each one's own, in sequences."""

    def item(**values):
        made = Dataset()
        for name, value in values.items():
            setattr(made, name, value)
        return made

    frames = np.random.default_rng(2).permutation(SLICES)
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=TURN)],
        PixelMeasuresSequence=[item(PixelSpacing=[1.5, 2.0], SliceThickness=2.5)],
    )
    own = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=list(CORNER + i * STEP * NORMAL))],
            PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=int(i))],
        )
        for i in frames
    ]
    sequences = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": own}
    image = nifti.load(write(tmp_path / "enhanced.dcm", volume()[frames], **sequences))
    np.testing.assert_array_equal(image.dataobj, np.moveaxis(volume() * 2.0 + np.arange(SLICES)[:, None, None], 0, -1))
    np.testing.assert_allclose(image.affine, nifti.load(write_series(tmp_path / "T1")).affine, atol=1e-6)
    sequences["PerFrameFunctionalGroupsSequence"] = own[:3]
    write(tmp_path / "short.dcm", volume(), **sequences)
    assert "claims 11 frames, and describes 3" in refused(dataset.read_files, [tmp_path / "short.dcm"])


# ------------------------------------------------------------------------------------------- bad files


def packed_badly(path, good):
    """A file whose pixels are said to be JPEG-LS, and aren't: one fragment of zeros, and the end."""
    header = pydicom.dcmread(good)
    header.file_meta.TransferSyntaxUID = JPEGLSLossless
    header.PixelData = bytes.fromhex("feff00e004000000 00000000 feffdde000000000")
    header["PixelData"].is_undefined_length = True
    header.save_as(path)


@pytest.mark.filterwarnings("ignore")
def test_bad_files_are_one_line(tmp_path, capfd):
    path = write(tmp_path / "good.dcm", volume()[0], CORNER)
    good = path.read_bytes()
    packed_badly(tmp_path / "packed.dcm", path)
    cases = {
        "packed.dcm": (None, "JPEG-LS Lossless.*damaged, or needs pip install pylibjpeg"),
        "torn.dcm": (good[: len(good) // 2], "can't be read as DICOM"),
        "head.dcm": (good[:140], "can't be read as DICOM|holds no DICOM picture"),
        "empty.dcm": (b"", "can't be read as DICOM"),
        "text.dcm": (b"Dear Sir or Madam, " * 20, "can't be read as DICOM"),
        # SeriesInstanceUID of another type
        "unknown.dcm": (good.replace(b"\x20\0\x0e\0UI", b"\x20\0\x0e\0DI"), "can't be read as DICOM"),
        "huge.dcm": ({"Rows": 60_000, "Columns": 60_000}, r"claims a shape of \(60000, 60000, 1\)"),
        "long.dcm": ({"NumberOfFrames": 2_000_000_000}, "claims 2000000000 frames"),
        "flat.dcm": ({"ImageOrientationPatient": [0] * 6}, "names no direction"),
        "report.dcm": ({"Rows": None}, "holds no DICOM picture"),
        "deflated.dcm": ({"syntax": DeflatedExplicitVRLittleEndian}, "is deflated"),
    }
    for name, (made, says) in cases.items():
        if isinstance(made, dict):
            write(tmp_path / name, volume()[0], CORNER, **made)
        elif made is not None:
            (tmp_path / name).write_bytes(made)
        line = refused(dataset.read_files, [tmp_path / name])
        assert re.search(says, line), (name, line)
        assert name in line
    assert capfd.readouterr() == ("", "")


def test_without_pydicom_one_line_says_what_to_install(tmp_path, monkeypatch):
    path = write(tmp_path / "a.dcm", volume()[0], CORNER)
    monkeypatch.setattr(dicom, "find_spec", lambda name: None)
    assert "a.dcm is DICOM: pip install pydicom (requirements-extra.txt)" in refused(dataset.read_files, [path])
