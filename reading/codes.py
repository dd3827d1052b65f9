"""What is in a file of codes? A header that says whose they are and where they lie, and an entropy coder's bytes.

4 bytes     MAGIC
4 bytes     CRC-32 of the header and of all codes: a decode that went wrong is noticed
deflated    the header, as JSON
the rest    the codes, see `inference.compression`
"""

import base64
import zlib
from pathlib import Path
from typing import Annotated, Literal, Self

import nibabel as nib
from pydantic import Field, ValidationError, model_validator

from reading import nifti
from reading.inputs import MAX_SIDE
from reading.kinds import CODES_MAGIC as MAGIC
from runtime.schema import Schema, complaints

MAX_HEADER = 2**24  # bytes that a file may unpack to
USUAL = b'"volume":"boxes":[["canvas":[256,256],{"autoencoder":"","prior":"","grids":8,"shape":[256,256],"levels":[1]}'
Name = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]  # how a SHA-256 begins
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Block = Annotated[int, Field(ge=16, le=MAX_SIDE, multiple_of=16)]
Offset = Annotated[int, Field(ge=0, le=MAX_SIDE)]


class Volume(Schema):
    """The volume that slices came from, as `nifti.put_back` needs it."""

    header: str  # NIfTI-1, Base64
    span: tuple[float, float]  # the intensities of 0 and 1
    cut: tuple[Literal[0, 1, 2], str | None, float | None]  # axis, slices, spacing

    @property
    def image(self) -> nib.Nifti1Image:
        """The volume with voxels of zero. Raises ValueError when the header is damaged."""
        return nifti.from_header(base64.b64decode(self.header))


class Header(Schema):
    """Whose codes they are, and where they lie."""

    autoencoder: Name
    prior: Name | None = None  # the file of the transformer that gave probabilities; None where none did
    grids: Annotated[int, Field(ge=1, le=16)]  # of the autoencoder's, coarse to fine
    shape: tuple[Side, Side]  # of each slice
    levels: Annotated[list[Annotated[int, Field(ge=-1, le=1024)]], Field(min_length=1)]  # of each slice
    # The canvas that the slices lie in the middle of, and what is coded of each; None for the training's.
    canvas: tuple[Block, Block] | None = None
    boxes: list[tuple[Offset, Offset, Block, Block]] | None = None
    volume: Volume | None = None

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        height, width = self.canvas or self.shape
        if len(self.levels) * height * width > nifti.MAX_VOXELS:
            raise ValueError("claims more pixels than any scan has")
        number = len(self.levels) if self.canvas else 0
        inside = all(top + h <= height and left + w <= width for top, left, h, w in self.boxes or [])
        if len(self.boxes or []) != number or not inside:
            raise ValueError("has boxes that don't fit its canvas")
        return self

    def packed(self) -> bytes:
        return self.model_dump_json(exclude_defaults=True).encode()


def pack(header: Header, codes: bytes, payload: bytes) -> bytes:
    """A file of `codes`, which the checksum is of, and which an entropy coder has made the `payload`."""
    deflate = zlib.compressobj(9, wbits=-15, zdict=USUAL)
    head = deflate.compress(header.packed()) + deflate.flush()
    return MAGIC + checksum(header, codes) + head + payload


def unpack(path: Path) -> tuple[Header, bytes, bytes]:
    """The header of a file, its checksum, and the payload. Raises ValueError with the reason when it is damaged."""
    content = path.read_bytes()
    inflate = zlib.decompressobj(wbits=-15, zdict=USUAL)
    try:
        text = inflate.decompress(content[8:], MAX_HEADER)
        header = Header.model_validate_json(text)
    except zlib.error as error:
        raise ValueError("is damaged") from error
    except ValidationError as error:
        raise ValueError(f"is damaged ({complaints(error)})") from error
    return header, content[4:8], inflate.unused_data


def checksum(header: Header, codes: bytes) -> bytes:
    return zlib.crc32(header.packed() + codes).to_bytes(4, "little")
