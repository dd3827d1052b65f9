"""What is in a volume? A NIfTI file, or DICOM as one: slices, where they lie in space, and the way back."""

import gzip
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.spaces import vox2out_vox

from reading import dicom, images
from reading.intensity import robust_range
from reading.kinds import DICOM, kind_of
from reading.names import is_nifti, level_of, stem
from runtime.errors import InputError
from runtime.wording import counted

# nibabel prints its doubts about a header; those that matter are raised too, and become one line here.
nib.imageglobals.logger.disabled = True

# A header of 348 bytes can claim any size. 2**28 voxels is 645^3, or 1 GiB as float32.
MAX_VOXELS = 2**28
MAX_OFFSET = 2**20  # bytes before the voxels, or after them, which have to be unpacked to be skipped
SPACINGS = (0.1, 20.0)  # mm: the least and the largest voxel that slices can be resampled to


def parse_slices(text: str | None) -> slice:
    """`"60:92"` or `"60:92:2"`, Python's slice notation, as a slice; None means every slice."""
    if text is None:
        return slice(None)
    if not re.fullmatch(r"\s*(-?[0-9]{1,6})?\s*:\s*(-?[0-9]{1,6})?\s*(:\s*[1-9][0-9]{0,5}\s*)?", text):
        raise InputError(f"slices must look like 60:92 or 60:92:2 (start:stop[:step]), not {text!r}")
    return slice(*(int(part) if part.strip() else None for part in text.split(":")))


# ------------------------------------------------------------------------------------------- opening files


def load(path: Path, voxels: bool = True) -> nib.Nifti1Image:
    """The picture in a NIfTI file, a DICOM file, or a folder with a DICOM series, with float32 voxels.

    `voxels=False` reads the header alone; the voxels are then zeros that take no memory. The sum of a gzip file is
    compared. Raises ValueError with the reason when the file is no 2-D or 3-D picture, or damaged.
    """
    if kind_of(path) == DICOM:
        stack = dicom.scan(path)
        _check_shape(stack.shape)
        values = dicom.voxels(stack) if voxels else np.broadcast_to(np.float32(0), stack.shape)
        return _as_nifti(stack, values)
    if path.stat().st_size == 0:
        raise ValueError("is empty")
    with open(path, "rb") as packed, _unpacked(packed) as file:
        image = _open(file)
        values = _voxels(image, file) if voxels else np.broadcast_to(np.float32(0), image.shape)
    with _damage_is_a_value_error():
        return nib.Nifti1Image(values, image.affine, image.header)


def _as_nifti(stack: dicom.Stack, values: np.ndarray) -> nib.Nifti1Image:
    """A DICOM volume as NIfTI, with `extra` to say so."""
    _check_directions(stack.affine)
    image = nib.Nifti1Image(values, stack.affine, extra={"stack": stack})
    for set_affine in (image.set_qform, image.set_sform):
        set_affine(stack.affine, "scanner")
    image.header.set_xyzt_units("mm")
    return image


@contextmanager
def _unpacked(file: BinaryIO) -> Iterator[BinaryIO]:
    is_packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if is_packed:
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield unpacked
    else:
        yield file


@contextmanager
def _damage_is_a_value_error() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a decoder fed with damaged bytes raises nearly anything
        raise ValueError(f"can't be read as NIfTI ({type(error).__name__})") from error


def _open(file: BinaryIO) -> nib.Nifti1Image:
    """Read a header, and check that it claims a real 2-D or 3-D picture."""
    with _damage_is_a_value_error():
        start = file.read(348)
        file.seek(0)
    if start[344:347] == b"ni1" or start[4:7] == b"ni2":
        raise ValueError("is one half of a NIfTI pair (.hdr and .img): save it as one .nii file")
    with _damage_is_a_value_error():
        version_2 = start[:4] in (b"\x1c\2\0\0", b"\0\0\2\x1c")  # 540, the size of its header
        image = (nib.Nifti2Image if version_2 else nib.Nifti1Image).from_stream(file)
        shape, offset, kind = image.shape, image.dataobj.offset, image.get_data_dtype().kind
    if kind not in "iufb":
        raise ValueError("holds colours or complex numbers, not intensities")
    if offset > MAX_OFFSET:
        raise ValueError(f"claims a shape of {shape} at byte {offset}, more than any scan has")
    _check_shape(shape)
    if len(shape) > 2:
        _check_directions(image.affine)
    return image


def _check_shape(shape: tuple[int, ...]) -> None:
    if 0 in shape or np.prod(shape, dtype=np.float64) > MAX_VOXELS:
        raise ValueError(f"claims a shape of {shape}, more than any scan has")
    if sum(side > 1 for side in shape) not in (2, 3) or (len(shape) > 3 and max(shape[3:]) > 1):
        raise ValueError(f"has shape {shape}: not a slice, nor one 3-D volume")


def _check_directions(affine: np.ndarray) -> None:
    with _damage_is_a_value_error():
        named = np.isfinite(nib.io_orientation(affine)).all()
    if not named:
        raise ValueError("has an affine that names no direction for some axis")


def _voxels(image: nib.Nifti1Image, file: BinaryIO) -> np.ndarray:
    """All voxels as float32, and then the file to its end: a gzip's sum stands there, and is compared."""
    with _damage_is_a_value_error():
        values = np.asarray(image.dataobj, np.float32)
        if not isinstance(file, gzip.GzipFile):
            return values
        rest = file.read(MAX_OFFSET + 1)
    if len(rest) > MAX_OFFSET:
        raise ValueError("goes on after its voxels for longer than any scan does")
    return values


# ------------------------------------------------------------------------------------------- cutting volumes


def _is_volume(image: nib.Nifti1Image) -> bool:
    return sum(side > 1 for side in image.shape) == 3


def _canonical_volume(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The volume with its axes towards right, anterior and superior (RAS+), 3-D."""
    with _damage_is_a_value_error():
        return nib.as_closest_canonical(nib.squeeze_image(image))


def _grid(volume: nib.Nifti1Image, spacing: float | None) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of a RAS+ volume, or those of the isotropic one, along the axes of space, that holds it."""
    if spacing is None:
        return volume.shape, volume.affine
    try:
        shape, affine = vox2out_vox(volume, 3 * (spacing,))
    except (OverflowError, ValueError) as error:
        raise ValueError("has an affine that isn't finite") from error
    if np.prod(shape, dtype=np.float64) > MAX_VOXELS:
        raise ValueError(f"would have a shape of {shape} at a spacing of {spacing:g} mm, more than any scan has")
    return shape, affine


def _resampled(volume: nib.Nifti1Image, grid: tuple[tuple[int, ...], np.ndarray], outside: float) -> nib.Nifti1Image:
    from nibabel.processing import resample_from_to  # brings SciPy's filters, which few need

    return resample_from_to(volume, grid, order=1, cval=outside)  # linear: a background of zeros stays zero


def slices_of(image: nib.Nifti1Image, name: str, axis: int, slices: str | None, spacing: float | None = None) -> tuple:
    """What `cut` gives, from the header alone: ([(name, level) of each slice], (h, w)). `name` is the file's.

    Raises ValueError with the reason when there is no such slice.
    """
    is_dicom = "stack" in image.extra
    base = stem(name).replace(".", "_") if is_dicom else stem(name)  # DICOM files are often called 1.2.840.113619
    suffix = ".dcm" if is_dicom else ".nii.gz"
    if not _is_volume(image):
        if spacing is not None:
            raise ValueError("is one slice, not a volume: only volumes can be resampled (--spacing)")
        own = f"{base}{suffix}" if is_dicom else name
        return [(own, level_of(name))], tuple(side for side in image.shape if side > 1)
    shape, _ = _grid(_canonical_volume(image), spacing)
    levels = range(shape[axis])[parse_slices(slices)]
    if not levels:
        raise ValueError(f"has {counted(shape[axis], 'slice')} along axis {axis}: none of them in {slices}")
    named = [(f"{base}_slice_{level}{suffix}", level) for level in levels]
    return named, tuple(side for i, side in enumerate(shape) if i != axis)


def cut(image: nib.Nifti1Image, axis: int, slices: str | None, spacing: float | None = None) -> np.ndarray:
    """The slices of a picture with its voxels, float32 [n, h, w] in its own intensities.

    A 2-D one is one slice, as it is stored. A 3-D one is cut along `axis` of its RAS+ orientation (0 sagittal,
    1 coronal, 2 axial), after resampling to cubes of `spacing` mm where that is given; axial slices come out with
    anterior to the right.
    """
    if not _is_volume(image):
        return np.asarray(image.dataobj).squeeze()[None]
    volume = _canonical_volume(image)
    if spacing is not None:
        outside, _ = robust_range([np.asarray(volume.dataobj)])
        volume = _resampled(volume, _grid(volume, spacing), outside)
    return np.moveaxis(np.asarray(volume.dataobj), axis, 0)[parse_slices(slices)]


def contents(path: Path, axis: int, slices: str | None) -> tuple[list[tuple[str, int]], tuple[int, int]]:
    """`slices_of` a file. Raises ValueError with the reason when the file is no slice or volume."""
    return slices_of(load(path, voxels=False), path.name, axis, slices)


def read(path: Path, axis: int, slices: str | None) -> np.ndarray:
    """`cut` of a file. Raises ValueError with the reason when the file is no slice or volume."""
    return cut(load(path), axis, slices)


# ------------------------------------------------------------------------------------------- and back


def write(
    path: Path,
    source: Path,
    pictures: np.ndarray,
    intensity_range: tuple[float, float],
    axis: int = 2,
    slices: str | None = None,
    spacing: float | None = None,
) -> None:
    """Write slices back as NIfTI: where `source` has them in space, and in its intensities.

    `pictures`: float [n, H, W] in [0, 1], one for each slice that `source` gives for this axis, slices and spacing,
    on the canvas that `images.fit` put it. `intensity_range`: the (low, high) that 0 and 1 stand for. The file has
    the source's affine and orientation (moved to the slices chosen, where not all were) and float32 voxels; slices
    that were resampled are resampled back to all of the source's voxels, `low` where none was chosen. It appears
    whole.
    """
    image = load(source, voxels=False)
    low, high = intensity_range
    named, shape = slices_of(image, source.name, axis, slices, spacing)
    if len(named) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures for the {len(named)} slices of {source.name}")
    voxels = np.stack([images.unfit(picture, shape) for picture in pictures]) * (high - low) + low
    if _is_volume(image):
        volume = _put_back(voxels, _canonical_volume(image), low, axis, slices, spacing)
        back = nib.orientations.ornt_transform(*map(nib.io_orientation, (volume.affine, image.affine)))
        turned = volume.as_reoriented(back)
        voxels, affine = np.asarray(turned.dataobj), turned.affine
    else:
        voxels, affine = voxels.reshape(image.shape), image.affine
    written = nib.Nifti1Image(voxels.astype(np.float32), affine, image.header, dtype=np.float32)
    written.header.set_slope_inter(1, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".nifti-") as folder:
        temporary = Path(folder) / f"volume{'.nii.gz' if path.name.lower().endswith('.gz') else '.nii'}"
        nib.save(written, temporary)
        os.replace(temporary, path)


def _put_back(
    voxels: np.ndarray, source: nib.Nifti1Image, low: float, axis: int, slices: str | None, spacing: float | None
) -> nib.Nifti1Image:
    """Slices [n, h, w] as a RAS+ volume in the place of those that `cut` took from `source`, which is RAS+, too."""
    shape, affine = _grid(source, spacing)
    chosen = [slice(None)] * 3  # nibabel's slicer puts negative starts elsewhere, so they are resolved here
    chosen[axis] = slice(*parse_slices(slices).indices(shape[axis]))
    voxels = np.moveaxis(voxels, 0, axis)
    if spacing is None:
        return nib.Nifti1Image(voxels, source.slicer[tuple(chosen)].affine)
    whole = np.full(shape, low, np.float32)
    whole[tuple(chosen)] = voxels
    return _resampled(nib.Nifti1Image(whole, affine), (source.shape, source.affine), low)


def write_all(
    folder: Path,
    sources: list[Path],
    pictures: np.ndarray,
    ranges: np.ndarray,
    axis: int = 2,
    slices: str | None = None,
    spacing: float | None = None,
) -> list[Path]:
    """`write` for many sources at once, each to `folder` under its own name; returns the files written.

    `sources` [N], `pictures` [N, H, W] and `ranges` [N, 2] have a row for each slice, as `dataset.Slices` has.
    Raises InputError when two sources would be written to one file.
    """
    rows: dict[Path, list[int]] = {}
    for row, source in enumerate(sources):
        rows.setdefault(source, []).append(row)
    names = [source.name if is_nifti(source.name) else f"{stem(source.name)}.nii.gz" for source in rows]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"several NIfTI files are called {', '.join(doubled)}: give one of them at a time")
    for (source, own), name in zip(rows.items(), names, strict=True):
        write(folder / name, source, pictures[own], tuple(ranges[own[0]]), axis, slices, spacing)
    return [folder / name for name in names]


def affine_of(path: Path, axis: int, slices: str | None, canvas: tuple[int, int]) -> np.ndarray | None:
    """Where in space `write_stack` is to put the slices that `cut` takes of a volume, on their canvas [H, W].

    The affine [4, 4] of its RAS+ orientation, voxel to mm; None of a file that is no volume, whose slices have no
    distance from each other.
    """
    image = load(path, voxels=False)
    if not _is_volume(image):
        return None
    volume = _canonical_volume(image)
    chosen = parse_slices(slices).indices(volume.shape[axis])
    beside = [i for i in range(3) if i != axis]
    size, place = images.placement(tuple(volume.shape[i] for i in beside), canvas)
    scale, start = np.ones(3), np.zeros(3)
    scale[axis], start[axis] = chosen[2], chosen[0]
    for i, pixels, where in zip(beside, size, place, strict=True):
        scale[i] = volume.shape[i] / pixels
        start[i] = (0.5 - where.start) * scale[i] - 0.5  # of the canvas's first pixel's middle, in voxels
    to_voxels = np.eye(4)
    to_voxels[:3, :3], to_voxels[:3, 3] = np.diag(scale), start
    return volume.affine @ to_voxels


def write_stack(path: Path, pictures: np.ndarray, axis: int = 2, affine: np.ndarray | None = None) -> None:
    """Write slices that come of no file, uint8 [n, H, W], as one NIfTI file that `cut` gives back.

    They lie along `axis` of its RAS+ orientation, whatever they show: neighbours need not belong together. `affine`
    [4, 4]: voxel to mm; None for voxels of 1 mm.
    """
    image = nib.Nifti1Image(np.moveaxis(pictures, 0, axis), np.eye(4) if affine is None else affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
