"""What kind of file is this? Its first bytes decide; its name does where they are unknown."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reading.names import PICTURES, is_volume

PICTURE, VOLUME, DICOM, CODES = "picture", "volume", "DICOM", "codes"
CODES_MAGIC = b"BVQ1"


@contextmanager
def decoding_errors(formats: str, file: str = "") -> Iterator[None]:
    """Turn whatever a decoder raises on damaged bytes, which is nearly anything, into a ValueError with the reason."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"can't be read as {formats} ({file}{type(error).__name__})") from error


def kind_of(path: Path) -> str | None:
    """`PICTURE`, `VOLUME` (NIfTI, Analyze, MGH), `DICOM` (a folder is a series), `CODES`, or None. Raises OSError."""
    if path.is_dir():
        return DICOM
    if kind := kind_of_bytes(path):
        return kind
    name = path.name.lower()
    if is_volume(name) or name.endswith((".hdr", ".hdr.gz")):
        return VOLUME
    if name.endswith((".dcm", ".dicom", ".ima")):
        return DICOM
    return PICTURE if name.endswith(PICTURES) else None


def kind_of_bytes(path: Path) -> str | None:
    """`kind_of` a file, whatever its name."""
    with open(path, "rb") as file:
        start = file.read(352)
    if start.startswith(CODES_MAGIC):
        return CODES
    if start[128:132] == b"DICM" or _is_bare_dicom(start):
        return DICOM
    nifti = start[344:348] in (b"n+1\0", b"ni1\0") or start[4:8] in (b"n+2\0", b"ni2\0")
    if start[:2] == b"\x1f\x8b" or nifti or start[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c"):  # 348: Analyze
        return VOLUME  # gzip is taken for a packed volume: nothing else that is read here comes in it
    signatures = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    bitmap = start[:2] == b"BM" and start[6:10] == bytes(4)  # two letters alone begin many a text
    webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    return PICTURE if start.startswith(signatures) or bitmap or webp else None


def _is_bare_dicom(start: bytes) -> bool:
    """Whether a DICOM data set begins here without preamble: with an element of group 2 or 8, and a short value."""
    order = {b"\2\0": "little", b"\10\0": "little", b"\0\2": "big", b"\0\10": "big"}.get(start[:2])
    if order is None or len(start) < 132 or int.from_bytes(start[2:4], order) > 0x1200:
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    return explicit or int.from_bytes(start[4:8], order) <= 1024
