"""What can be asked of a trained model? Every option of predict.py, and whether the files that it names are there."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from inference.contents import Depth
from runtime.cli import LARGEST_SEED, Device, Precision, Settings, option
from runtime.errors import InputError

LEAST_TEMPERATURE = 0.01
NO_VOLUMES = "--save-nifti: these are pictures, not volumes or slices of NIfTI or DICOM; leave it out"


class ReconstructionSettings(Settings):
    """What to reconstruct"""

    checkpoint: Path = option(..., "vqvae.pth of a run; it knows its model and its data")
    data: str | None = option(None, "data set, or 'demo' (default: the checkpoint's own)", "DIR")
    split: Literal["train", "validate", "test"] = option("test", "which part of the data set")
    input: list[Path] = option([], "just these: pictures, NIfTI, DICOM, files of codes, or folders of them", "FILE")
    spacing: float | None = option(
        None, "resample 3-D volumes to cubic voxels of this size in mm (default: as in training)", "MM", ge=0.1, le=20
    )
    axis: Literal[0, 1, 2] | None = option(None, "how volumes are cut (default: as in training)")
    slices: str | None = option(None, "of volumes, those to take (default: as in training)", "START:STOP")
    person: str | None = option(None, "finds the person in a file's name (default: as in training)", "REGEX")
    codes: Depth | None = option(None, "decode the first N codes per position only (default: all)")
    allow_overlap: bool = option(False, "go on when a person is in two splits")
    save_nifti: bool = option(False, "write reconstructions as NIfTI, as the input's were")
    save_codes: bool = option(False, "write the codes of --input, too, entropy-coded; --input decodes such files")


class Sampling(Settings):
    """What to sample"""

    prior: str | None = option(None, "prior's .pth, or 'none' (default: the best one beside)", "PATH")
    samples_only: bool = option(False, "reconstruct nothing: no data set is needed")
    samples: int = option(64, "how many", ge=0, le=100_000)
    volumes: int = option(0, "whole brains to draw, all levels (a transformer does)", ge=0, le=1000)
    around: Path | None = option(None, "a real slice to draw the brains around, at --slice", "FILE")
    seed: int = option(0, "of the first", ge=0, le=LARGEST_SEED)
    slice: int | None = option(None, "axial slice level (default: any)", ge=0, le=1023)
    where: list[str] = option([], "samples and brains of such people: cdr=1 ventricles=0.12", "NAME=VALUE")
    temperature: float | None = option(
        None, "of a transformer or a PixelCNN (default: 1)", ge=LEAST_TEMPERATURE, le=100
    )
    nucleus: float | None = option(
        None, "draw from the likeliest codes that hold this probability only (default: 1, all)", gt=0, le=1
    )
    ceiling: Path | None = option(None, "another prior's .pth, the course baseline's say, to judge beside it")


class Computing(Settings):
    """How"""

    device: Device = option("auto", "auto is CUDA if there is any")
    precision: Precision = option("auto", "auto: scores in fp32, samples painted in bf16 where it is fast")


class PredictSettings(Computing, Sampling, ReconstructionSettings):  # --help shows them from the last to the first
    """Where it goes"""

    out: Path | None = option(None, "folder (default: predict/ beside the checkpoint)", "DIR")

    @property
    def asked(self) -> dict[str, str]:
        """The covariates asked for, by name."""
        return dict(text.split("=", 1) for text in self.where)

    @property
    def drawing(self) -> dict[str, Any]:
        """The options of sampling, as `TrainedModel.sample` takes them."""
        return {"temperature": self.temperature, "nucleus": self.nucleus, "where": self.asked}

    @property
    def folder(self) -> Path:
        return self.out or self.checkpoint.parent / ("predict_input" if self.input else "predict")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if wrong := [text for text in self.where if not all(text.partition("="))]:
            raise InputError(f"--where {wrong[0]}: give NAME=VALUE, such as ventricles=0.12")
        if self.input and self.data:
            raise InputError("give --data or --input, not both")
        if self.save_codes and not self.input:
            raise InputError("--save-codes is about files: give them as --input")
        if self.samples_only and (self.input or not (self.samples or self.volumes)):
            raise InputError("--samples-only leaves nothing to do with --input or --samples 0: leave one out")
        if self.around and not self.volumes:
            raise InputError("--around is about whole brains: give --volumes, or leave it out")
        if self.around and not self.around.exists():
            raise InputError(f"--around: no file {self.around}")
        if self.volumes and self.input:
            raise InputError("--volumes draws brains, and --input reconstructs files: give one of them")
        return self
