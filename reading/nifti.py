"""What is in a volume? NIfTI, Analyze, MGH or DICOM: slices, where they lie in space, and the way back to NIfTI."""

import gzip
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.nifti1 import Nifti1PairHeader
from nibabel.nifti2 import Nifti2PairHeader
from nibabel.spaces import vox2out_vox
from nibabel.spm2analyze import Spm2AnalyzeHeader

from reading import dicom, images
from reading.intensity import fill_padding, padding_of, robust_range
from reading.kinds import DICOM, decoding_errors, kind_of
from reading.names import NIFTI, is_volume, level_of, stem
from runtime.errors import InputError
from runtime.files import atomic
from runtime.wording import counted

# nibabel prints its doubts about a header; those that matter are raised too, and become one line here.
nib.imageglobals.logger.disabled = True

FORMATS = "NIfTI, Analyze or MGH"
# A header of 348 bytes can claim any size. 2**28 voxels is 645^3, or 1 GiB as float32.
MAX_VOXELS = 2**28
MAX_OFFSET = 2**20  # bytes before the voxels, or after them, which have to be unpacked to be skipped
SPACINGS = (0.1, 20.0)  # mm: the least and the largest voxel that slices can be resampled to
HEADERS = {  # by the four bytes at 344 (NIfTI-1) or at 4 (NIfTI-2)
    b"n+1\0": nib.Nifti1Header,
    b"ni1\0": Nifti1PairHeader,
    b"n+2\0": nib.Nifti2Header,
    b"ni2\0": Nifti2PairHeader,
}
AnyHeader = nib.Nifti1Header | Spm2AnalyzeHeader | MGHHeader
ANALYZE_AXES = {b"\1": (0, 2, 1), b"\2": (1, 2, 0)}  # coronal, sagittal: the axes of space of the stored ones


class Cut(NamedTuple):
    """How a volume becomes slices."""

    axis: int = 2  # of its RAS+ orientation: 0 sagittal, 1 coronal, 2 axial
    slices: str | None = None  # "start:stop[:step]"; None takes every slice
    spacing: float | None = None  # mm, from 0.1 to 20: of the cubes that it is resampled to first

    def check(self) -> None:
        """Raises InputError when volumes can't be cut so."""
        if self.axis not in (0, 1, 2):
            raise InputError(f"axis must be 0 (sagittal), 1 (coronal) or 2 (axial), not {self.axis}")
        parse_slices(self.slices)
        least, most = SPACINGS
        if self.spacing is not None and not least <= self.spacing <= most:
            raise InputError(f"the spacing must be from {least:g} to {most:g} mm, not {self.spacing:g}")

    def levels(self, shape: tuple[int, ...]) -> range:
        """Where along the axis the slices of a volume [x, y, z] are taken."""
        return range(shape[self.axis])[parse_slices(self.slices)]


WHOLE = Cut()  # every axial slice


def parse_slices(text: str | None) -> slice:
    """`"60:92"` or `"60:92:2"`, Python's slice notation, as a slice; None means every slice."""
    if text is None:
        return slice(None)
    if not re.fullmatch(r"\s*(-?[0-9]{1,6})?\s*:\s*(-?[0-9]{1,6})?\s*(:\s*[1-9][0-9]{0,5}\s*)?", text):
        raise InputError(f"slices must look like 60:92 or 60:92:2 (start:stop[:step]), not {text!r}")
    return slice(*(int(part) if part.strip() else None for part in text.split(":")))


# ------------------------------------------------------------------------------------------- opening files


def load(path: Path, voxels: bool = True) -> nib.Nifti1Image:
    """The picture in a volume's file or a folder with a DICOM series, with float32 voxels, padding replaced by the
    least of the other values.

    `voxels=False` reads the header alone; the voxels are then zeros that take no memory. The sum of a gzip file is
    compared. `extra["notes"]` of the result says what was done to it. Raises ValueError with the reason when the file
    is no 2-D or 3-D picture, or damaged.
    """
    extra = {"notes": []}
    if kind_of(path) == DICOM:
        stack = extra["stack"] = dicom.scan(path)
        _check_shape(stack.shape)
        values = dicom.voxels(stack) if voxels else np.broadcast_to(np.float32(0), stack.shape)
        header, affine = nib.Nifti1Header(), stack.affine
        _check_directions(affine)
        for set_affine in (header.set_qform, header.set_sform):
            set_affine(affine, "scanner")
        header.set_xyzt_units("mm")
    else:
        header_path, voxel_path = _header_and_voxels(path)
        if not (header_path.stat().st_size and voxel_path.stat().st_size):
            raise ValueError("is empty")
        with _opened(header_path) as file:
            header = _header(file)
        if header_path == voxel_path and not getattr(header, "is_single", True):
            raise ValueError("is one half of a NIfTI pair (.hdr and .img), and is named like neither")
        values = np.broadcast_to(np.float32(0), header.get_data_shape())
        if voxels:
            with _opened(voxel_path) as file:
                values = _voxels(header, file)
        with decoding_errors(FORMATS):
            affine = _affine(header)
        if isinstance(header, Spm2AnalyzeHeader):
            extra["notes"].append("Analyze, which doesn't say which side is left")
    if len(values.shape) > 2:
        _check_directions(affine)
    if voxels and (padding := padding_of(values)) is not None:
        values = fill_padding(values, padding)
        extra["notes"].append(f"value {padding:g} taken for padding outside of the picture")
    with decoding_errors(FORMATS):
        return nib.Nifti1Image(values, affine, header, extra)


def from_header(block: bytes) -> nib.Nifti1Image:
    """What `load(..., voxels=False)` gives of a file with this NIfTI header. Raises ValueError when it is damaged."""
    header = _header(io.BytesIO(block))
    affine = _affine(header)
    _check_directions(affine)
    return nib.Nifti1Image(np.broadcast_to(np.float32(0), header.get_data_shape()), affine, header)


def partner(path: Path) -> Path | None:
    """The .img file of an Analyze or NIfTI pair to its .hdr, or the other way round; None where there is none."""
    base, found, _ = re.match(r"(.*?)(\.hdr|\.img)?(\.gz)?$", path.name, re.IGNORECASE).groups()
    other = {".hdr": ".img", ".img": ".hdr"}.get(found and found.lower())
    files = [path.with_name(base + end) for end in (other, f"{other}.gz", other.upper())] if other else []
    return next((file for file in files if file.is_file()), None)


def _header_and_voxels(path: Path) -> tuple[Path, Path]:
    """The files with the header and the voxels: the same one, but for pairs."""
    if not re.search(r"\.(hdr|img)(\.gz)?$", path.name, re.IGNORECASE):
        return path, path
    if (other := partner(path)) is None:
        raise ValueError("is one half of a pair: there is no .hdr and .img of this name")
    return (other, path) if is_volume(path.name) else (path, other)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file, unpacked where its first bytes say that it is packed."""
    with open(path, "rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        yield gzip.GzipFile(fileobj=file) if is_packed else file


def _header(file: BinaryIO) -> AnyHeader:
    """Read a header, and check that it claims a real 2-D or 3-D picture."""
    with decoding_errors(FORMATS):
        start = file.read(348)
        file.seek(0)
        kind = HEADERS.get(start[344:348]) or HEADERS.get(start[4:8])
        if kind is None and start[:4] == b"\0\0\0\1":
            kind, dimensions = MGHHeader, np.frombuffer(start[4:20], ">i4")
    if kind is MGHHeader:
        _check_shape(tuple(dimensions.tolist()))  # before nibabel seeks beyond that many voxels
    with decoding_errors(FORMATS):
        header = (kind or Spm2AnalyzeHeader).from_fileobj(file)
        if getattr(header, "is_single", False) and header.get_data_offset() == 0:
            header.set_data_offset(header.single_vox_offset)  # some programs leave it out
        shape, offset, values = header.get_data_shape(), header.get_data_offset(), header.get_data_dtype().kind
    if values not in "iufb":
        raise ValueError("holds colours or complex numbers, not intensities")
    if offset > MAX_OFFSET:
        raise ValueError(f"claims a shape of {shape} at byte {offset}, more than any scan has")
    _check_shape(shape)
    return header


def _affine(header: AnyHeader) -> np.ndarray:
    """Voxel to mm: the first of sform, qform and voxel sizes that makes sense."""
    if isinstance(header, Spm2AnalyzeHeader):
        affine, shape = np.diag([0.0, 0, 0, 1]), (*header.get_data_shape(), 1)
        axes = ANALYZE_AXES.get(header["orient"].item(), (0, 1, 2))
        for stored, (to, zoom) in enumerate(zip(axes, (*header.get_zooms(), 1.0), strict=False)):
            affine[to, stored] = -zoom if to == 0 else zoom  # from right to left, as nibabel has it
            affine[to, 3] = -affine[to, stored] * (shape[stored] - 1) / 2
        return affine
    if not isinstance(header, nib.Nifti1Header):
        return header.get_affine()
    names = [f"quatern_{part}" for part in "bcd"]
    quaternion = np.array([header[name] for name in names], np.float64)
    if 1 < (length := np.linalg.norm(quaternion)) < 1.01:  # rounded to few digits
        for name, part in zip(names, quaternion / length, strict=True):
            header[name] = part
    choices = [header.get_sform] * bool(header["sform_code"]) + [header.get_qform] * bool(header["qform_code"])
    for affine in (choice() for choice in choices):
        if np.isfinite(affine).all() and np.linalg.det(affine) != 0:
            return affine
    return header.get_base_affine()


def _check_shape(shape: tuple[int, ...]) -> None:
    if 0 in shape or np.prod(shape, dtype=np.float64) > MAX_VOXELS:
        raise ValueError(f"claims a shape of {shape}, more than any scan has")
    if sum(side > 1 for side in shape) not in (2, 3) or (len(shape) > 3 and max(shape[3:]) > 1):
        raise ValueError(f"has shape {shape}: not a slice, nor one 3-D volume")


def _check_directions(affine: np.ndarray) -> None:
    with decoding_errors(FORMATS):
        named = np.isfinite(nib.io_orientation(affine)).all()
    if not named:
        raise ValueError("has an affine that names no direction for some axis")


def _voxels(header: AnyHeader, file: BinaryIO) -> np.ndarray:
    """All voxels as float32, and then the file to its end: a gzip's sum stands there, and is compared."""
    with decoding_errors(FORMATS):
        values = np.asarray(ArrayProxy(file, header), np.float32)
        rest = file.read(MAX_OFFSET + 1) if isinstance(file, gzip.GzipFile) else b""
    if len(rest) > MAX_OFFSET:
        raise ValueError("has far more bytes after its voxels than any scan")
    return values


# ------------------------------------------------------------------------------------------- cutting volumes


def _is_volume(image: nib.Nifti1Image) -> bool:
    return sum(side > 1 for side in image.shape) == 3


def _canonical_volume(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The volume with its axes towards right, anterior and superior (RAS+), 3-D."""
    with decoding_errors(FORMATS):
        return nib.as_closest_canonical(nib.squeeze_image(image))


def _grid(volume: nib.Nifti1Image, spacing: float | None) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of a RAS+ volume, or those of the isotropic one, along the axes of space, that holds it."""
    if spacing is None:
        return volume.shape, volume.affine
    with decoding_errors(FORMATS):  # the affine may not be finite
        shape, affine = vox2out_vox(volume, 3 * (spacing,))
    if np.prod(shape, dtype=np.float64) > MAX_VOXELS:
        raise ValueError(f"would have a shape of {shape} at a spacing of {spacing:g} mm, more than any scan has")
    return shape, affine


def _resampled(volume: nib.Nifti1Image, like: object, outside: float) -> nib.Nifti1Image:
    """The volume on the grid of an image, or of (shape, affine)."""
    from nibabel.processing import resample_from_to  # brings SciPy's filters, which few need

    return resample_from_to(volume, like, order=1, cval=outside)  # linear: a background of zeros stays zero


def slices_of(image: nib.Nifti1Image, name: str, cut: Cut) -> tuple[list[tuple[str, int]], tuple[int, int]]:
    """What `cut_slices` gives, from the header alone: the name and level of each slice, and (h, w).

    `name` is the file's. Raises ValueError with the reason when there is no such slice.
    """
    base, suffix = stem(name), ".nii.gz"
    if "stack" in image.extra:
        base, suffix = base.replace(".", "_"), ".dcm"  # DICOM files are often called 1.2.840.113619
        name = base + suffix
    if not _is_volume(image):
        return [(name, level_of(name))], tuple(side for side in image.shape if side > 1)
    shape, _ = _grid(_canonical_volume(image), cut.spacing)
    levels = cut.levels(shape)
    if not levels:
        number = counted(shape[cut.axis], "slice")
        raise ValueError(f"has {number} along axis {cut.axis}: none of them in {cut.slices}")
    return [(f"{base}_slice_{level}{suffix}", level) for level in levels], shape[: cut.axis] + shape[cut.axis + 1 :]


def cut_slices(image: nib.Nifti1Image, cut: Cut) -> np.ndarray:
    """The slices of a picture with its voxels, float32 [n, h, w] in its own intensities.

    A 2-D one is one slice, as it is stored. Axial slices of a 3-D one come out with anterior to the right.
    """
    if not _is_volume(image):
        return np.asarray(image.dataobj).squeeze()[None]
    volume = _canonical_volume(image)
    if cut.spacing is not None:
        outside, _ = robust_range([np.asarray(volume.dataobj)])
        volume = _resampled(volume, _grid(volume, cut.spacing), outside)
    return np.moveaxis(np.asarray(volume.dataobj), cut.axis, 0)[parse_slices(cut.slices)]


def voxel_sizes(image: nib.Nifti1Image) -> tuple[float, ...] | None:
    """mm to the right, to anterior and up; None of a single slice."""
    return tuple(nib.affines.voxel_sizes(_canonical_volume(image).affine).tolist()) if _is_volume(image) else None


# ------------------------------------------------------------------------------------------- and back


def write_all(
    folder: Path, sources: list[Path], pictures: np.ndarray, ranges: np.ndarray, cut: Cut = WHOLE
) -> list[Path]:
    """Write slices back as NIfTI files in `folder`, each source under its own name; returns the files written.

    `sources` [N], `pictures` (float [N, H, W] in [0, 1], on the canvas of `images.fit`) and `ranges` (float [N, 2], the
    intensities of 0 and 1) have a row for each slice, as `dataset.Slices` has. A file has its source's affine and
    orientation, moved to the chosen slices, and float32 voxels; resampled slices are resampled back to all of the
    source's voxels. Raises InputError when two sources would be written to one file.
    """
    rows: dict[Path, list[int]] = {}
    for row, source in enumerate(sources):
        rows.setdefault(source, []).append(row)
    names = [source.name if source.name.lower().endswith(NIFTI) else f"{stem(source.name)}.nii.gz" for source in rows]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"several NIfTI files are called {', '.join(doubled)}: give one of them at a time")
    for (source, own), name in zip(rows.items(), names, strict=True):
        put_back(folder / name, load(source, voxels=False), pictures[own], tuple(ranges[own[0]]), cut)
    return [folder / name for name in names]


def put_back(path: Path, image: nib.Nifti1Image, pictures: np.ndarray, span: tuple[float, float], cut: Cut) -> None:
    """Write one of the files of `write_all`: pictures float [n, H, W] in the place of `image`'s slices."""
    low, high = span
    named, shape = slices_of(image, path.name, cut)
    if len(named) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures for the {len(named)} slices of {path.name}")
    voxels = np.stack([images.unfit(picture, shape) for picture in pictures]) * (high - low) + low
    if _is_volume(image):
        canonical = _canonical_volume(image)
        whole, affine = _grid(canonical, cut.spacing)
        levels, chosen = cut.levels(whole), [slice(None)] * 3
        chosen[cut.axis] = slice(levels.start, levels.stop, levels.step)
        filled = np.full(whole, low, np.float32)
        filled[*chosen] = np.moveaxis(voxels, 0, cut.axis)
        volume = nib.Nifti1Image(filled, affine)
        volume = volume.slicer[*chosen] if cut.spacing is None else _resampled(volume, canonical, low)
        back = nib.orientations.ornt_transform(*map(nib.io_orientation, (volume.affine, image.affine)))
        turned = volume.as_reoriented(back)
        voxels, affine = np.asarray(turned.dataobj), turned.affine
    else:
        voxels, affine = voxels.reshape(image.shape), image.affine
    written = nib.Nifti1Image(voxels.astype(np.float32), affine, image.header, dtype=np.float32)
    written.header.set_slope_inter(1, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        content = written.to_bytes()
        file.write(gzip.compress(content, 1, mtime=0) if path.name.lower().endswith(".gz") else content)


def affine_of(path: Path, canvas: tuple[int, int], cut: Cut) -> np.ndarray | None:
    """Voxel to mm, [4, 4], of the slices `cut` takes of a volume, on a canvas [H, W]; None of a single slice."""
    image = load(path, voxels=False)
    if not _is_volume(image):
        return None
    shape, affine = _grid(_canonical_volume(image), cut.spacing)
    levels, sides = cut.levels(shape), [i for i in range(3) if i != cut.axis]
    scale, start = np.ones(3), np.zeros(3)
    scale[cut.axis], start[cut.axis] = levels.step, levels.start
    for i, pixels, where in zip(sides, *images.placement(tuple(shape[i] for i in sides), canvas), strict=True):
        scale[i] = shape[i] / pixels
        start[i] = (0.5 - where.start) * scale[i] - 0.5  # of the middle of the canvas's first pixel, in voxels
    return affine @ nib.affines.from_matvec(np.diag(scale), start)


def write_stack(path: Path, pictures: np.ndarray, axis: int = 2, affine: np.ndarray | None = None) -> None:
    """Write slices uint8 [n, H, W] as a NIfTI file, along `axis` of its RAS+ orientation; `cut_slices` gives them back.

    `affine` [4, 4]: voxel to mm; None for voxels of 1 mm.
    """
    image = nib.Nifti1Image(np.moveaxis(pictures, 0, axis), np.eye(4) if affine is None else affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
