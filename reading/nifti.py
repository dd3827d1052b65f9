"""What is in a NIfTI file? Slices or volumes, scaled to 8 bits by robust percentiles, and the way back."""

import os
import re
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from reading import images
from reading.names import level_of, stem
from runtime.errors import InputError

PERCENTILES = (0.5, 99.5)  # of a volume's voxels: what becomes 0 and 255

# nibabel prints its doubts about a header; those that matter are raised too, and become one line here.
nib.imageglobals.logger.disabled = True

# A header of 348 bytes can claim any size. 2**28 voxels is 645^3, or 1 GiB as float32.
MAX_VOXELS = 2**28
MAX_OFFSET = 2**20  # bytes before the voxels, which have to be unpacked to be skipped


def parse_slices(text: str | None) -> slice:
    """`"60:92"` or `"60:92:2"`, Python's slice notation, as a slice; None means every slice."""
    if text is None:
        return slice(None)
    if not re.fullmatch(r"\s*(-?[0-9]{1,6})?\s*:\s*(-?[0-9]{1,6})?\s*(:\s*[1-9][0-9]{0,5}\s*)?", text):
        raise InputError(f"slices must look like 60:92 or 60:92:2 (start:stop[:step]), not {text!r}")
    return slice(*(int(part) if part.strip() else None for part in text.split(":")))


def _open(path: Path) -> nib.Nifti1Pair:
    """Open a file (header only; voxels are read later) and check that it claims a real 2-D or 3-D picture."""
    if path.stat().st_size == 0:
        raise ValueError("is empty")
    try:
        image = nib.load(path)
        shape, kind = image.shape, image.get_data_dtype().kind
        oriented = len(shape) < 3 or np.isfinite(nib.io_orientation(image.affine)).all()
    except Exception as error:  # a decoder fed with damaged bytes raises nearly anything
        raise ValueError(f"can't be read as NIfTI ({type(error).__name__})") from error
    if not isinstance(image, nib.Nifti1Pair):
        raise ValueError("is not NIfTI")
    if kind not in "iufb":
        raise ValueError("holds colours or complex numbers, not intensities")
    if 0 in shape or np.prod(shape, dtype=np.float64) > MAX_VOXELS or image.dataobj.offset > MAX_OFFSET:
        raise ValueError(f"claims a shape of {shape} at byte {image.dataobj.offset}, more than any scan has")
    if sum(side > 1 for side in shape) not in (2, 3) or (len(shape) > 3 and max(shape[3:]) > 1):
        raise ValueError(f"has shape {shape}: not a slice, nor one 3-D volume")
    if not oriented:
        raise ValueError("has an affine that names no direction for some axis")
    return image


def _is_volume(image: nib.Nifti1Pair) -> bool:
    return sum(side > 1 for side in image.shape) == 3


def _canonical_volume(image: nib.Nifti1Pair) -> nib.Nifti1Pair:
    """The volume with its axes towards right, anterior and superior (RAS+), 3-D."""
    return nib.as_closest_canonical(nib.squeeze_image(image))


def contents(path: Path, axis: int, slices: str | None) -> tuple[list[tuple[str, int]], tuple[int, int]]:
    """What `read` will give, from the header alone: ([(name, level) of each slice], (h, w)).

    Raises ValueError with the reason when the file is no slice or volume.
    """
    image = _open(path)
    if not _is_volume(image):
        return [(path.name, level_of(path.name))], tuple(side for side in image.shape if side > 1)
    order = nib.io_orientation(image.affine)[:, 0].argsort()  # turning the volume itself would read it all
    shape = tuple(image.shape[i] for i in order)
    levels = range(shape[axis])[parse_slices(slices)]
    if not levels:
        raise ValueError(f"has {shape[axis]} slices along axis {axis}: none of them in {slices}")
    named = [(f"{stem(path.name)}_slice_{level}.nii.gz", level) for level in levels]
    return named, tuple(side for i, side in enumerate(shape) if i != axis)


def read(path: Path, axis: int, slices: str | None) -> np.ndarray:
    """The slices in one file, float32 [n, h, w] in the file's own intensities.

    A 2-D file is one slice, as it is stored. A 3-D one is cut along `axis` of its RAS+ orientation (0 sagittal,
    1 coronal, 2 axial); axial slices come out with anterior to the right. Raises ValueError with the reason.
    """
    image = _open(path)
    try:
        if not _is_volume(image):
            return np.asarray(image.dataobj, np.float32).squeeze()[None]
        voxels = np.asarray(_canonical_volume(image).dataobj, np.float32)
    except Exception as error:  # truncated or damaged voxels: gzip, zlib, mmap and numpy each raise their own
        raise ValueError(f"can't be read as NIfTI ({type(error).__name__})") from error
    return np.moveaxis(voxels, axis, 0)[parse_slices(slices)]


def robust_range(voxels: list[np.ndarray]) -> tuple[float, float]:
    """The (0.5, 99.5) percentiles of a volume's finite voxels; min and max where those two are equal."""
    values = np.concatenate([part.ravel() for part in voxels])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 0.0
    low, high = np.percentile(values, PERCENTILES)
    if low == high:  # almost everything is background, or the volume is flat
        low, high = values.min(), values.max()
    return float(low), float(high)


def scale_to_uint8(voxels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Intensities -> uint8, low to 0 and high to 255, clipped. Flat volumes and non-finite voxels become 0."""
    if high <= low:
        return np.zeros(voxels.shape, np.uint8)
    scaled = (np.nan_to_num(voxels, nan=low, posinf=high, neginf=low) - low) * (255 / (high - low))
    return scaled.clip(0, 255).round().astype(np.uint8)


def write(
    path: Path,
    source: Path,
    pictures: np.ndarray,
    intensity_range: tuple[float, float],
    axis: int = 2,
    slices: str | None = None,
) -> None:
    """Write slices back as NIfTI: where `source` has them in space, and in its intensities.

    `pictures`: float [n, H, W] in [0, 1], one for each slice that `read(source, axis, slices)` gives, on the canvas
    that `images.fit` put it. `intensity_range`: the (low, high) that 0 and 1 stand for. The file has the source's
    affine and orientation (moved to the slices chosen, where not all were) and float32 voxels; it appears whole.
    """
    image = _open(source)
    low, high = intensity_range
    named, shape = contents(source, axis, slices)
    if len(named) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures for the {len(named)} slices of {source.name}")
    voxels = np.stack([images.unfit(picture, shape) for picture in pictures]) * (high - low) + low
    if _is_volume(image):
        canonical = _canonical_volume(image)
        chosen = [slice(None)] * 3  # nibabel's slicer puts negative starts elsewhere, so they are resolved here
        chosen[axis] = slice(*parse_slices(slices).indices(canonical.shape[axis]))
        canonical = canonical.slicer[tuple(chosen)]
        written = nib.Nifti1Image(np.moveaxis(voxels, 0, axis), canonical.affine)
        back = nib.orientations.ornt_transform(*map(nib.io_orientation, (canonical.affine, image.affine)))
        turned = written.as_reoriented(back)
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


def write_all(
    folder: Path,
    sources: list[Path],
    pictures: np.ndarray,
    ranges: np.ndarray,
    axis: int = 2,
    slices: str | None = None,
) -> list[Path]:
    """`write` for many sources at once, each to `folder` under its own name; returns the files written.

    `sources` [N], `pictures` [N, H, W] and `ranges` [N, 2] have a row for each slice, as `dataset.Slices` has.
    Raises InputError when two sources in different folders have one name.
    """
    rows: dict[Path, list[int]] = {}
    for row, source in enumerate(sources):
        rows.setdefault(source, []).append(row)
    names = [source.name for source in rows]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"several NIfTI files are called {', '.join(doubled)}: give one of them at a time")
    for source, own in rows.items():
        write(folder / source.name, source, pictures[own], tuple(ranges[own[0]]), axis, slices)
    return [folder / name for name in names]
