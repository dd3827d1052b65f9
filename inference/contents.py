"""What may a checkpoint hold? Typed models, with ranges, of what a file says of its network and of its data.

The ranges are what training can be asked for. `inference.loading` checks that the weights in the file fit the network.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
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
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # SHA-256
Grid = Annotated[list[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=2, max_length=2)]
Millimetres = Annotated[float, Field(ge=-1e5, le=1e5)]
Row = Annotated[list[Millimetres], Field(min_length=4, max_length=4)]


class CovariateContent(Schema):
    """What a prior knows of a covariate, see `training.covariates`."""

    name: str
    unit: str | None
    categories: Annotated[list[str], Field(min_length=2, max_length=100)] | None
    low: float
    high: float
    mean: float
    deviation: Annotated[float, Field(gt=0)]
    values: Annotated[list[Annotated[float, Field(allow_inf_nan=True)]], Field(min_length=1)]  # NaN: unknown


class Arguments(Schema):
    """What any network's constructor takes; each file has those of its own network."""

    beta: Annotated[float, Field(ge=0, le=1000)] = None
    blocks: Layers = None
    channels: Width = None
    codebook_size: CodebookSize = None
    codes: Depth = None
    covariates: Annotated[list[CovariateContent], Field(max_length=100)] = None
    depth: Depth = None
    dim: Width = None
    downsample: Literal[4, 8, 16] = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = None
    ema: bool = None
    grid: Grid = None
    grids: Annotated[list[Grid], Field(min_length=1, max_length=16)] = None
    heads: Layers = None
    inner: Width = None
    layers: Layers = None
    levels: Levels = None
    network: Literal["residual", "baseline"] = None
    scale: Annotated[float, Field(gt=0, le=1)] = None
    sizes: Annotated[list[CodebookSize], Field(min_length=1, max_length=16)] = None
    steps: Annotated[int, Field(ge=1, le=1000)] = None
    width: Width = None


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
    # Of the first training volume, voxel to mm; None where slices come one by one.
    affine: Annotated[list[Row], Field(min_length=4, max_length=4)] | None = None

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        parse_slices(self.slices)
        top, left, height, width = self.box
        if top + height > self.size[0] or left + width > self.size[1]:
            raise ValueError(f"data.box {self.box} is not inside of data.size {self.size}")
        if not height or not width or height % 16 or width % 16:
            raise ValueError(f"data.box {self.box} has sides that are no multiples of 16")
        return self


class Content(Schema, extra="allow"):  # the scores of its epoch
    """What every file with a network holds."""

    arguments: Arguments
    epoch: Annotated[int, Field(ge=0, le=1_000_000)]
    state: dict[str, Tensor]


class AutoencoderContent(Content):
    """A vqvae.pth."""

    model: Literal["vqvae", "vqvae2", "rqvae"]
    data: Data
    validation_ssim: Annotated[float, Field(ge=-1, le=1)]


class PainterContent(Content):
    """A painter.pth."""

    autoencoder: Hash


class PriorContent(PainterContent):
    """A prior's file, such as dcgan.pth."""

    model: Literal["dcgan", "pixelcnn", "transformer"]
