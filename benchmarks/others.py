"""How well does an autoencoder reconstruct pictures that are unlike its training slices?

    python benchmarks/others.py CHECKPOINT                     pictures that can be made from packages alone
    python benchmarks/others.py CHECKPOINT --data DIR          and the test split of a data set, dimmed
    python benchmarks/others.py CHECKPOINT --published DIR     and the PNG files in a folder

Prints a row for each source (number of slices, mean and lowest SSIM), and writes the rows to --out as JSON.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runtime.environment  # noqa: F401, before PyTorch

# isort: split
import dataset
from benchmarks.tables import markdown
from inference.model import TrainedModel
from inference.reconstruction import reconstruct
from reading.intensity import robust_range, scale_to_uint8
from runtime import cli
from runtime.cli import Settings, option
from runtime.errors import exit_on_input_error
from runtime.files import atomic

GREYS = (1, 10, 40, 80, 120, 160, 200, 255)


class OthersSettings(Settings):
    """pictures"""

    checkpoint: Path = option(..., "vqvae.pth of a run")
    data: str | None = option(None, "data set whose test split is dimmed", "DIR")
    published: Path | None = option(None, "folder with PNG slices of another set", "DIR")
    out: Path = option(Path("others.json"), "file for the rows", "FILE.json")


def sources(settings: OthersSettings) -> Iterator[tuple[str, np.ndarray]]:
    """Name and slices, uint8 [N, H, W], of each source."""
    if settings.published:
        slices = dataset.read_files(sorted(settings.published.rglob("*.png"))).images
        yield f"{len(slices)} slices of the published OASIS PNG set", slices
        yield "the same at a tenth of their intensity", dimmed(slices, 0.1)
    for axis, name in enumerate(("sagittal", "coronal", "axial")):
        yield f"MNI152 T1 template, 1 mm, all {name} slices", mni152(axis)
    yield "demo set, test split", dataset.load("demo", ("test",)).splits["test"].images
    if settings.data:
        slices = dataset.load(settings.data, ("test",)).splits["test"].images
        for factor in (0.5, 0.1):
            yield f"test split at {factor:g} of its intensity", dimmed(slices, factor)
    yield "all black", np.zeros((1, 256, 256), np.uint8)
    yield "constant greys", np.stack([np.full((256, 256), grey, np.uint8) for grey in GREYS])


def dimmed(slices: np.ndarray, factor: float) -> np.ndarray:
    return np.round(factor * slices).astype(np.uint8)


def mni152(axis: int) -> np.ndarray:
    """Slices across `axis` of the skull-stripped template (Fonov et al. 2011), which nilearn contains."""
    from nilearn.datasets import load_mni152_template  # takes a second to import

    voxels = load_mni152_template(resolution=1).get_fdata(dtype=np.float32)
    return np.moveaxis(scale_to_uint8(voxels, *robust_range([voxels])), axis, 0)


def others_table(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    cells = [[row["name"], f"{row['slices']:,}", f"{row['ssim']:.4f}", f"{row['lowest']:.4f}"] for row in rows]
    return markdown(["pictures", "slices", "SSIM", "lowest"], cells)


@exit_on_input_error
def main() -> int:
    settings = cli.parse(OthersSettings, __doc__)
    model, rows = TrainedModel.load(settings.checkpoint, "none"), []
    for name, slices in sources(settings):
        ssim = reconstruct(model, slices).scores["ssim"]
        rows.append({"name": name, "slices": len(slices), "ssim": float(ssim.mean()), "lowest": float(ssim.min())})
    print(others_table(rows))
    with atomic(settings.out) as file:
        file.write(json.dumps({"rows": rows}, indent=1).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
