"""What may a checkpoint hold? Typed models, with ranges, of what a file says of its network and of its data.

The ranges are what training can be asked for. They keep a damaged or made-up file from claiming a network that nobody
could build; that the weights in the file are those of the network is checked with it (`inference.loading`).
"""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from torch import Tensor

from reading.nifti import parse_slices
from runtime.schema import Schema

CodebookSize = Annotated[int, Field(ge=2, le=32767)]  # codes are stored as int16
Depth = Annotated[int, Field(ge=1, le=16)]  # codes per position
Width = Annotated[int, Field(ge=1, le=4096)]  # channels
Layers = Annotated[int, Field(ge=1, le=64)]
Levels = Annotated[int, Field(ge=0, le=1024)]  # slice levels; a GAN keeps a matrix for each
Side = Annotated[int, Field(ge=16, le=4096, multiple_of=16)]  # pixels
Offset = Annotated[int, Field(ge=0, le=4096)]
Epoch = Annotated[int, Field(ge=0, le=1_000_000)]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # SHA-256
Grid = Annotated[list[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=2, max_length=2)]
Millimetres = Annotated[float, Field(ge=-1e5, le=1e5)]
Row = Annotated[list[Millimetres], Field(min_length=4, max_length=4)]
Affine = Annotated[list[Row], Field(min_length=4, max_length=4)]
State = dict[str, Tensor]


class VQVAEArguments(Schema):
    """Of `modules.VQVAE`, and of `modules.VQVAE2`."""

    codebook_size: CodebookSize
    beta: Annotated[float, Field(ge=0, le=1000)]
    ema: bool


class RQVAEArguments(VQVAEArguments):
    """Of `modules.RQVAE`."""

    depth: Depth
    downsample: Literal[4, 8, 16]
    width: Width
    blocks: Layers
    dim: Width


class PainterArguments(Schema):
    """Of `networks.painter.Painter`."""

    dim: Width
    width: Width
    blocks: Layers
    scale: Annotated[float, Field(gt=0, le=1)]
    steps: Annotated[int, Field(ge=1, le=1000)]


class DCGANArguments(Schema):
    """Of `modules.DCGAN`."""

    grid: Grid
    channels: Width
    levels: Levels
    codes: Depth
    network: Literal["residual", "baseline"]
    width: Width


class PixelCNNArguments(Schema):
    """Of `networks.pixelcnn.PixelCNN`."""

    grids: Annotated[list[Grid], Field(min_length=1, max_length=16)]
    sizes: Annotated[list[CodebookSize], Field(min_length=1, max_length=16)]
    levels: Levels
    width: Width
    layers: Layers
    dropout: Annotated[float, Field(ge=0, lt=1)]


class TransformerArguments(Schema):
    """Of `networks.transformer.Transformer`."""

    grid: Grid
    sizes: Annotated[list[CodebookSize], Field(min_length=1, max_length=16)]
    dim: Width
    levels: Levels
    width: Width
    layers: Layers
    heads: Annotated[int, Field(ge=1, le=64)]
    inner: Width
    dropout: Annotated[float, Field(ge=0, lt=1)]


class Data(Schema):
    """What an autoencoder was trained on."""

    title: str
    root: str
    synthetic: bool
    fingerprint: Hash
    size: Annotated[list[Side], Field(min_length=2, max_length=2)]  # H, W
    box: Annotated[list[Offset], Field(min_length=4, max_length=4)]  # top, left, height, width, of all their content
    levels: Levels
    axis: Literal[0, 1, 2]
    slices: str | None
    spacing: Annotated[float, Field(ge=0.1, le=20)] | None = None  # mm, to which volumes were resampled
    person: str | None = None  # a regular expression that finds the person in a file's name
    affine: Affine | None = None  # of the first training volume, voxel to mm; None where slices come one by one

    @field_validator("slices")
    @classmethod
    def _can_be_cut(cls, slices: str | None) -> str | None:
        parse_slices(slices)
        return slices

    @model_validator(mode="after")
    def _box_is_inside(self) -> Self:
        top, left, height, width = self.box
        if top + height > self.size[0] or left + width > self.size[1]:
            raise ValueError(f"data.box {self.box} is not inside of data.size {self.size}")
        if not height or not width or height % 16 or width % 16:
            raise ValueError(f"data.box {self.box} has sides that are no multiples of 16")
        return self


class AutoencoderContent(Schema, extra="ignore"):
    """A vqvae.pth."""

    kind: Literal["autoencoder"]
    model: Literal["vqvae", "vqvae2", "rqvae"]
    arguments: dict[str, object]  # checked as `ARGUMENTS` of the model says
    data: Data
    epoch: Epoch
    validation_ssim: Annotated[float, Field(ge=-1, le=1)]
    state: State


class PainterContent(Schema, extra="allow"):  # the losses of its epoch
    """A painter.pth."""

    kind: Literal["painter"]
    arguments: dict[str, object]
    autoencoder: Hash
    epoch: Epoch
    state: State


class PriorContent(Schema, extra="allow"):  # the scores of its epoch
    """A prior's file, such as dcgan.pth."""

    kind: Literal["prior"]
    model: Literal["dcgan", "pixelcnn", "transformer"]
    arguments: dict[str, object]  # checked as `ARGUMENTS` of the model says
    autoencoder: Hash
    epoch: Epoch
    state: State


ARGUMENTS = {
    "vqvae": VQVAEArguments,
    "vqvae2": VQVAEArguments,
    "rqvae": RQVAEArguments,
    "dcgan": DCGANArguments,
    "pixelcnn": PixelCNNArguments,
    "transformer": TransformerArguments,
}
