"""Anybody's pictures and volumes: every format, size and range of intensities, and what is wrong with bad ones."""

import gzip
import io
import re
import resource
import struct
import sys

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from scans import OBLIQUE, png_that_claims, refused, save, volume, write_set

import dataset
import predict
from reading import nifti
from reading.intensity import nominal_range
from reading.nifti import Cut

pytestmark = pytest.mark.usefixtures("own_cache")


def smooth(height: int, width: int) -> np.ndarray:
    """A slope of greys from 0 to 255, uint8: what lossy formats keep nearly."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return ((y + x) * 127.5).round().astype(np.uint8)


# ------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize(
    ("name", "options", "off"),
    [
        ("x.png", {}, 0),
        ("x.jpg", {"quality": 95}, 3),
        ("x.jpeg", {"quality": 95, "progressive": True}, 3),
        ("x.tif", {}, 0),
        ("x.tiff", {"compression": "tiff_lzw"}, 0),
        ("x.TIF", {"compression": "tiff_adobe_deflate"}, 0),
        ("x.bmp", {}, 0),
        ("x.webp", {"lossless": True}, 0),
        ("x.webp", {"quality": 95}, 6),
    ],
)
def test_every_format_of_pictures(tmp_path, name, options, off):
    gray = smooth(40, 60)
    Image.fromarray(gray).save(tmp_path / name, **options)
    slices = dataset.read_files([tmp_path / name])
    assert slices.images.shape == (1, 48, 64)
    assert slices.images.dtype == np.uint8
    inner = slices.images[0, 4:44, 2:62]
    assert np.abs(inner.astype(int) - gray).max() <= off
    assert int(slices.images[0].astype(int).sum() - inner.astype(int).sum()) == 0  # black around it
    assert (slices.names, slices.paths, slices.ranges) == ([name], [tmp_path / name], None)
    assert slices.notes == []


def test_first_bytes_decide_over_the_name(tmp_path):
    Image.fromarray(smooth(16, 16)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "case_007_slice_3.jpg")
    (tmp_path / "b").write_bytes((tmp_path / "case_007_slice_3.jpg").read_bytes())
    slices = dataset.read_files([tmp_path / "b", tmp_path / "case_007_slice_3.jpg"])
    np.testing.assert_array_equal(slices.images, [smooth(16, 16)] * 2)
    assert (slices.people, slices.levels.tolist()) == (["b", "case_007"], [-1, 3])  # as given
    nib.save(nib.Nifti2Image(volume(), OBLIQUE), tmp_path / "2.nii")
    save(tmp_path / "v.nii", volume())
    (tmp_path / "v.nii").rename(tmp_path / "v.nii.gz")  # not packed
    save(tmp_path / "w.nii.gz", volume())
    (tmp_path / "w.nii.gz").rename(tmp_path / "w.png")
    slices = dataset.read_files([tmp_path / "v.nii.gz", tmp_path / "w.png", tmp_path / "2.nii"])
    np.testing.assert_array_equal(slices.images[:16], slices.images[16:32])
    np.testing.assert_array_equal(slices.images[:16], slices.images[32:])
    assert slices.names[3] == "v_slice_3.nii.gz"
    assert slices.notes == []
    written = nifti.write_all(tmp_path / "out", slices.paths, slices.images / 255, slices.ranges)
    assert [path.name for path in written] == ["v.nii.gz", "w.png.nii.gz", "2.nii"]


# ------------------------------------------------------------------------------------------- sizes and folders


def test_each_slice_keeps_its_pixels_on_the_smallest_canvas_that_holds_all(tmp_path):
    for name, shape in (("a.png", (176, 208)), ("b.png", (181, 100)), ("c.png", (1, 217))):
        Image.fromarray(smooth(*shape)).save(tmp_path / name)
    slices = dataset.read_files(sorted(tmp_path.iterdir()))
    assert slices.images.shape == (3, 192, 224)
    np.testing.assert_array_equal(slices.images[0, 8:184, 8:216], smooth(176, 208))
    np.testing.assert_array_equal(slices.images[1, 5:186, 62:162], smooth(181, 100))
    np.testing.assert_array_equal(slices.images[2, 95:96, 3:220], smooth(1, 217))


def test_1024_pixels_a_side_are_the_most(tmp_path):
    Image.fromarray(smooth(1024, 16)).save(tmp_path / "most.png")
    assert dataset.read_files([tmp_path / "most.png"]).images.shape == (1, 1024, 16)
    Image.fromarray(smooth(16, 1025)).save(tmp_path / "more.png")
    line = refused(dataset.read_files, [tmp_path / "more.png"])
    assert "more.png has slices of 16x1025, and 1024 a side is the most" in line
    save(tmp_path / "more.nii", np.ones((1100, 2, 3), np.float32), np.eye(4))
    assert "slices of 1100x2" in refused(dataset.read_files, [tmp_path / "more.nii"])
    assert dataset.read_files([tmp_path / "more.nii"], Cut(0)).images.shape == (1100, 16, 16)


def test_a_folder_is_the_readable_files_in_it(tmp_path):
    for name in ("s_10.png", "s_2.tif", "s_1.jpg", ".hidden.png"):
        Image.fromarray(smooth(16, 16)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("BMI and more")
    (tmp_path / "deeper").mkdir()
    Image.fromarray(smooth(16, 16)).save(tmp_path / "deeper/s_3.png")
    slices = dataset.read_files([tmp_path])
    assert slices.names == ["s_1.jpg", "s_2.tif", "s_10.png"]
    assert slices.paths[0] == tmp_path / "s_1.jpg"
    (tmp_path / "empty").mkdir()
    kinds = "PNG, JPEG, TIFF, BMP, WebP, NIfTI, Analyze, MGH or DICOM"
    assert f"empty holds no {kinds} file" in refused(dataset.read_files, [tmp_path / "empty"])
    (tmp_path / "s_4.png").write_bytes(b"")  # readable by its name: not passed over
    assert "s_4.png is empty" in refused(dataset.read_files, [tmp_path])
    save(tmp_path / "v.nii", volume())
    assert "pictures and volumes" in refused(dataset.read_files, [tmp_path])
    assert "at least one" in refused(dataset.read_files, [])


# ------------------------------------------------------------------------------------------- intensities


@pytest.mark.parametrize(
    ("values", "span"),
    [
        (np.array([[0, 5]], np.uint8), (0, 255)),
        (np.array([[0, 32768]], np.uint16), (0, 65535)),
        (np.array([[12, 1021]], np.uint16), None),  # 10 bits
        (np.array([[0, 32767]], np.uint16), None),
        (np.array([[0, 40000]], np.int32), None),
        (np.array([[0, 0.6]], np.float32), (0, 1)),
        (np.array([[0, 1.0]], np.float32), (0, 1)),
        (np.array([[0, 0.5]], np.float32), None),
        (np.array([[-0.1, 1]], np.float32), None),
        (np.array([[0, 1.1]], np.float32), None),
        (np.array([[0, np.nan]], np.float32), None),
    ],
)
def test_the_range_of_a_type_counts_where_values_span_it(values, span):
    assert nominal_range(values) == span


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_10_bits_in_16_are_scaled_by_percentiles_with_a_note(tmp_path, name):
    values = np.arange(1001, dtype=np.uint16).reshape(7, 143) + 12  # percentiles 0.5 and 99.5: 5 from either end
    Image.fromarray(values).save(tmp_path / name)
    slices = dataset.read_files([tmp_path / name])
    expected = ((values - 17.0) / 990 * 255).clip(0, 255).round()
    np.testing.assert_array_equal(slices.images[0, 4:11, :143], expected)
    assert slices.notes == [f"{name}: 16-bit, values 17 to 1007 (percentiles 0.5 and 99.5) scaled to 8-bit"]


def test_16_bits_that_span_their_range_are_scaled_by_it_with_rounding(tmp_path):
    values = np.array([[0, 128, 129, 32768, 65406, 65407, 65535]], np.uint16)
    write_set(tmp_path, slices=1, made=lambda person, level, path: Image.fromarray(values).save(path))
    train = dataset.load(str(tmp_path)).splits["train"]
    assert train.notes == ["train: 2 slices padded to fit 256x256"]
    Image.fromarray(values).save(tmp_path / "x.tif")
    alone = dataset.read_files([tmp_path / "x.tif", *train.paths[:1]])
    assert alone.notes == []
    for row in (*train.images[:, 127, 124:131], *alone.images[:, 7, 4:11]):
        np.testing.assert_array_equal(row, [0, 0, 1, 128, 254, 255, 255])


def test_floats_and_big_integers(tmp_path):
    unit = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(unit).save(tmp_path / "unit.tif")
    Image.fromarray(unit * 2000 - 1000).save(tmp_path / "ct.tif")
    Image.fromarray((unit * 1e6).astype(np.int32)).save(tmp_path / "int.tif")
    Image.fromarray(np.where(unit < 0.5, np.nan, unit * 7).astype(np.float32)).save(tmp_path / "nan.tif")
    slices = dataset.read_files([tmp_path / f"{name}.tif" for name in ("unit", "ct", "int", "nan")])
    np.testing.assert_array_equal(slices.images[0].ravel(), np.arange(256))
    expected = ((np.linspace(0, 1, 256) - 0.005) / 0.99 * 255).clip(0, 255)
    for picture in slices.images[1:3]:
        assert np.abs(picture.ravel() - expected).max() <= 0.51  # rounded, of float32
    assert (slices.images[3][:8] == 0).all()
    assert slices.images[3].max() == 255
    assert [re.sub(r"values .* scaled", "scaled", note) for note in slices.notes] == [
        "ct.tif: floating-point, scaled to 8-bit",
        "int.tif: integer, scaled to 8-bit",
        "nan.tif: floating-point, scaled to 8-bit",
    ]


@pytest.mark.parametrize("how", ["RGB", "tinted", "CMYK", "palette", "jpeg"])
def test_colour_becomes_grey_with_a_note(tmp_path, how):
    y = smooth(16, 16)
    channels = np.stack([y, y // 2, y // 4], axis=2) if how != "tinted" else np.stack([y, y, y // 2 + y // 4], axis=2)
    picture, name = Image.fromarray(channels), "x.png"
    if how == "CMYK":
        picture, name = picture.convert("CMYK"), "x.tif"
    elif how == "palette":
        picture = picture.quantize(256)
    elif how == "jpeg":
        name = "x.jpg"
    picture.save(tmp_path / name)
    slices = dataset.read_files([tmp_path / name])
    expected = channels @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert np.abs(slices.images[0] - expected).max() <= (6 if how in ("palette", "jpeg") else 1)
    assert slices.notes == [f"{name}: colour, converted to grey"]


def test_grey_stored_as_colour_is_exact_and_transparency_is_laid_over_black(tmp_path):
    gray = smooth(16, 16)
    rgba = np.dstack([gray, gray, gray, np.full_like(gray, 255)])
    Image.fromarray(rgba).save(tmp_path / "opaque.png")
    rgba[-1, -1, 3] = 51
    Image.fromarray(rgba).save(tmp_path / "see-through.png")
    Image.fromarray(gray).convert("P").save(tmp_path / "palette.png")
    slices = dataset.read_files([tmp_path])
    np.testing.assert_array_equal(slices.images[:2], [gray] * 2)
    gray[-1, -1] = 51  # of white, a fifth is seen
    np.testing.assert_array_equal(slices.images[2], gray)
    assert slices.notes == ["see-through.png: transparency laid over black"]


def test_of_several_pages_the_first_is_taken_with_a_note(tmp_path):
    first, second = Image.fromarray(smooth(16, 16)), Image.fromarray(255 - smooth(16, 16))
    first.save(tmp_path / "x.tif", save_all=True, append_images=[second])
    slices = dataset.read_files([tmp_path / "x.tif"])
    np.testing.assert_array_equal(slices.images, [smooth(16, 16)])
    assert slices.notes == ["x.tif: the first of its 2 pages"]


# ------------------------------------------------------------------------------------------- volumes


def test_spacing_resamples_to_cubes_and_back(tmp_path):
    """A linear function of space is the same function after linear interpolation, so that all is known."""
    shape, affine = (20, 24, 16), np.array([[0, 0, -2.0, 30], [1.5, 0, 0, -18], [0, 1.0, 0, 5], [0, 0, 0, 1]])
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    x, y, z = np.moveaxis(nib.affines.apply_affine(affine, indices), -1, 0)
    path = save(tmp_path / "v.nii.gz", (3 * x + 2 * y + z).astype(np.float32), affine)
    slices = dataset.read_files([path], Cut(spacing=1.0))
    assert slices.images.shape == (24, 32, 32)  # 31 x 30 x 24 mm, as right, anterior and superior have it
    assert slices.notes == ["v.nii.gz: resampled from voxels of 2x1.5x1 mm to 1 mm"]
    low, high = slices.ranges[0]
    picture = slices.images[10, :31, 1 : 1 + 30].astype(float) / 255 * (high - low) + low
    right, anterior = np.mgrid[0:31, 0:30]
    expected = 3 * right + 2 * (anterior - 18) + 15
    inside = (expected > low) & (expected < high)
    inside[:, 29] = False  # beyond the last voxel
    assert np.abs(picture - expected)[inside].max() <= (high - low) / 255
    (back,) = nifti.write_all(tmp_path / "out", slices.paths, slices.images / 255, slices.ranges, Cut(spacing=1.0))
    before, after = nib.load(path), nib.load(back)
    assert after.shape == before.shape
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)
    difference = np.abs(after.get_fdata() - before.get_fdata().clip(low, high))
    assert np.median(difference) <= (high - low) / 255
    assert np.abs(difference[:-1, :, 1:-1]).max() <= (high - low) / 50  # near 0 and 255, clipping bends the function


def test_chosen_slices_of_a_resampled_volume_come_back_among_background(tmp_path):
    voxels = np.full((8, 8, 8), 7.0, np.float32)
    voxels[0, 0, 0] = 0
    path = save(tmp_path / "v.nii.gz", voxels, np.diag([1, 1, 2, 1]))
    cut = Cut(slices="0:7", spacing=1.0)
    slices = dataset.read_files([path], cut)
    assert len(slices) == 7
    (back,) = nifti.write_all(tmp_path / "out", slices.paths, slices.images / 255, slices.ranges, cut)
    after = nib.load(back).get_fdata()
    assert after.shape == (8, 8, 8)
    np.testing.assert_allclose(after[1:, 1:, :4], 7)
    np.testing.assert_array_equal(after[:, :, 4:], slices.ranges[0][0])


def test_spacing_that_makes_no_sense(tmp_path):
    Image.fromarray(smooth(16, 16)).save(tmp_path / "a.png")
    save(tmp_path / "slice.nii", volume(0, (16, 16)))
    save(tmp_path / "huge.nii", volume(), np.diag([50, 50, 50, 1]))
    for name in ("a.png", "slice.nii"):  # whose pixels are as they are
        assert dataset.read_files([tmp_path / name], Cut(spacing=1.0)).images.shape == (1, 16, 16)
    huge = [tmp_path / "huge.nii"]
    assert "at a spacing of 0.1 mm, more than any scan has" in refused(dataset.read_files, huge, Cut(spacing=0.1))
    for spacing in (0, -1, 0.01, 50, float("nan"), float("inf")):
        assert "must be from 0.1 to 20 mm" in refused(dataset.read_files, huge, Cut(spacing=spacing))


# ------------------------------------------------------------------------------------------- damaged files


def tiff_that_claims(width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 2**31)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


def nifti_that_claims(shape: tuple[int, ...], offset: float = 352) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header["dim"][: len(shape) + 1] = [len(shape), *shape]
    header["vox_offset"], header["magic"] = offset, b"n+1"
    return header.binaryblock + bytes(4)


def encoded(kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(smooth(64, 64)).save(file, kind, **options)
    return file.getvalue()


def hostile() -> dict[str, tuple[bytes, str]]:
    """File name -> what is in it, and what the line about it says."""
    whole = {
        "png": encoded("PNG"),
        "jpg": encoded("JPEG"),
        "tif": encoded("TIFF"),
        "bmp": encoded("BMP"),
        "webp": encoded("WEBP"),
        "nii": nib.Nifti1Image(volume(), np.eye(4)).to_bytes(),
    }
    whole["nii.gz"] = gzip.compress(whole["nii"])
    half = nib.Nifti1Pair(volume(), np.eye(4)).header.binaryblock
    packed = encoded("TIFF", compression="tiff_lzw")
    packed = packed[:10] + b"\xff" * 90 + packed[100:]  # can't be unpacked: libtiff would say so on its own
    cases = {f"torn.{kind}": (content[: len(content) // 2], "can't be read as") for kind, content in whole.items()}
    cases |= {f"empty.{kind}": (b"", "is empty") for kind in whole}
    cases |= {f"text.{kind}": (b"Dear Sir or Madam, " * 40, "can't be read as") for kind in whole}
    return cases | {
        "huge.tif": (tiff_that_claims(60_000, 60_000), "claims 60000x60000 pixels|can't be read as"),
        "damaged.tif": (packed, "can't be read as"),
        "large.tif": (tiff_that_claims(12_000, 10_000), "claims 12000x10000 pixels"),
        "huge.png": (png_that_claims(60_000, 60_000), "claims 60000x60000 pixels|can't be read as"),
        "no.txt": (b"hello", "is no PNG, JPEG, TIFF, BMP, WebP, NIfTI, Analyze, MGH or DICOM file"),
        "no": (b"", "is no PNG"),
        "pair.img": (half, "one half of a pair"),
        "packed.nii.gz": (gzip.compress(b"hello " * 100), "can't be read as NIfTI"),
        "endless.nii.gz": (gzip.compress(whole["nii"] + bytes(2**21)), "has far more bytes after its voxels"),
        "doubled.nii.gz": (whole["nii.gz"] + b"more", "can't be read as NIfTI"),
        "huge.nii.gz": (gzip.compress(nifti_that_claims((30000, 30000, 30000))), "more than any scan has"),
        "far.nii.gz": (gzip.compress(nifti_that_claims((8, 8), 2e9)), "more than any scan has"),
        "line.nii": (nifti_that_claims((64,)) + bytes(64), "not a slice"),
        "times.nii": (nib.Nifti1Image(volume(0, (4, 5, 6, 7)), OBLIQUE).to_bytes(), "nor one 3-D volume"),
        "complex.nii": (nib.Nifti1Image(volume().astype(np.complex64), OBLIQUE).to_bytes(), "not intensities"),
        "animated.gif": (encoded("GIF"), "is no PNG"),
        "gif.png": (encoded("GIF"), "can't be read as PNG"),
    }


def test_hostile_files_are_one_line_and_take_no_memory(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("warnings.showwarning", lambda *args: pytest.fail(f"warns: {args}"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, (content, says) in hostile().items():
        (tmp_path / name).write_bytes(content)
        line = refused(dataset.read_files, [tmp_path / name])
        assert re.search(says, line), line
        assert name in line
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB
    assert capfd.readouterr() == ("", "")
    model, out = ROOT / "resources/pretrained/vqvae.pth", tmp_path / "out"
    arguments = [model, "--input", tmp_path / "damaged.tif", "--out", out]
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
    assert predict.main() == 2
    assert re.fullmatch(r"error: [^\n]+damaged.tif can't be read[^\n]+\n", capfd.readouterr().err)
    assert not out.exists()


@pytest.mark.parametrize("name", ["localizer.nii.gz", "strip.png"])
def test_sides_shorter_than_the_windows_of_ssim_are_reconstructed(tmp_path, name, monkeypatch):
    if name == "strip.png":
        Image.fromarray(smooth(5, 60)).save(tmp_path / name)
    else:
        save(tmp_path / name, volume(0, (3, 32, 4)), np.eye(4))
    model = ROOT / "resources/pretrained/vqvae.pth"
    arguments = [model, "--input", tmp_path / name, "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
    assert predict.main() == 0
    assert (tmp_path / "out/metrics.json").exists()
