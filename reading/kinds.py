"""What kind of file is this? Its first bytes decide; its name does where they are unknown."""

from pathlib import Path

from reading.names import is_nifti

PICTURE, NIFTI, DICOM = "picture", "NIfTI", "DICOM"
SUFFIXES = {
    PICTURE: (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"),
    DICOM: (".dcm", ".dicom", ".ima"),
}


def kind_of(path: Path) -> str | None:
    """`PICTURE`, `NIFTI`, `DICOM` (a folder is a series), or None for anything else. Raises OSError."""
    if path.is_dir():
        return DICOM
    with open(path, "rb") as file:
        start = file.read(352)
    return _kind_of_bytes(start) or _kind_of_name(path.name)


def _kind_of_bytes(start: bytes) -> str | None:
    if start[128:132] == b"DICM":
        return DICOM
    if start[:2] == b"\x1f\x8b" or start[344:347] in (b"n+1", b"ni1") or start[4:7] in (b"n+2", b"ni2"):
        return NIFTI  # gzip is taken for packed NIfTI: nothing else that is read here comes in it
    signatures = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    bitmap = start[:2] == b"BM" and start[6:10] == bytes(4)  # two letters alone begin many a text
    webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    return PICTURE if start.startswith(signatures) or bitmap or webp else None


def _kind_of_name(name: str) -> str | None:
    if is_nifti(name):
        return NIFTI
    return next((kind for kind, suffixes in SUFFIXES.items() if name.lower().endswith(suffixes)), None)
