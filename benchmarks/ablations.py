"""What makes a good autoencoder? `train.py` on one budget of images, one option changed at a time.

    python benchmarks/ablations.py --data DIR

For each row: validation SSIM, bytes a slice, codes used, parameters, training speed. A row whose training is in --out
already is not trained again, so that the command goes on where it was stopped. The table (ablations.md, ablations.json)
goes to --out.
"""

import csv
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from benchmarks import tables
from benchmarks.trained import run_folder
from inference.codec import Codec
from inference.loading import load_autoencoder
from runtime import cli, compute
from runtime.cli import Device, Settings, option
from runtime.errors import exit_on_input_error
from training.settings import TrainSettings

TIMED_STEPS = 10
ROWS = {  # name -> the options that differ from train.py's defaults
    "default": [],
    "Adam instead of Muon": ["--optimizer", "adam"],
    "squared error instead of L1 + SSIM": ["--loss", "mse"],
    "batches of 32": ["--batch-size", "32"],
    "codebooks learn by gradient": ["--codebook", "gradient"],
    "commitment weight 1": ["--beta", "1"],
    "learning rate doubled": ["--lr", "0.002"],
    "half the width": ["--width", "32"],
    "one residual block, not two": ["--blocks", "1"],
    "three residual blocks": ["--blocks", "3"],
    "same bytes: quarter of the size, 2 codes per position": ["--downsample", "4", "--depth", "2"],
    "4,356 bytes: quarter of the size, 2 of 2,048": ["--downsample", "4", "--depth", "2", "--codebook-size", "2048"],
    "1,089 bytes: 2 codes of 2,048 per position": ["--depth", "2", "--codebook-size", "2048"],
    "1,040 bytes: 3 codes of 128 per position": ["--depth", "3", "--codebook-size", "128"],
    "sixteenth of the size, 16 codes per position": ["--downsample", "16", "--depth", "16"],
    "course baseline `vqvae`": ["--model", "vqvae"],
    "`vqvae2`": ["--model", "vqvae2"],
}


class AblationSettings(Settings):
    """what to train"""

    data: str | None = option(None, "data set, or 'demo' (default: the usual places)", "DIR")
    epochs: int = option(1, "of each training", ge=1, le=1000)
    seed: int = option(0, "of each training", ge=0, le=2**31)
    rows: int = option(len(ROWS), "the first N rows only", ge=1, le=len(ROWS))
    out: Path = option(Path("runs/ablations"), "folder of the runs and the table", "DIR")
    device: Device = option("auto", "where to compute")


def measured_row(run: Path, changed: list[str], on: compute.Compute) -> dict:
    """A row of the table."""
    settings = cli.parse(TrainSettings, "", changed)
    model, description = load_autoencoder(run / "vqvae.pth")
    codec = Codec(model, description["data"], on)
    with open(run / "metrics.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    used = [int(last[key]) for key in last if key.startswith("codes_used") and last[key]]
    return {
        "validation_ssim": description["validation_ssim"],
        "bytes": codec.bytes_per_image(),
        "codes_used": f"{sum(used)} of {sum(model.codebook_sizes)}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "images_per_second": images_per_second(model, settings, codec, on),
    }


def images_per_second(model: torch.nn.Module, settings: TrainSettings, codec: Codec, on: compute.Compute) -> float:
    """Of training steps alone, on random pictures of the box's size."""
    model.train().to(memory_format=torch.channels_last)
    optimizer = train.make_optimizer(model, settings)
    images = torch.rand(settings.batch_size, 1, codec.box.height, codec.box.width, device=on.device)
    times = []
    for _ in range(TIMED_STEPS + 1):
        start = time.perf_counter()
        loss = train.autoencoder_step(model, optimizer, images, None, train.LOSSES[settings.loss], on)
        loss["train_reconstruction"].item()  # waits for the device
        times.append(time.perf_counter() - start)
    return settings.batch_size / sorted(times[1:])[TIMED_STEPS // 2]


def ablation_table(rows: dict[str, dict]) -> str:
    """For a README."""
    heads = ["changed", "validation SSIM", "bytes", "codes used", "weights", "images/s"]
    cells = []
    for name, row in rows.items():
        sizes = [f"{row['bytes']:,.0f}", row["codes_used"], f"{row['parameters']:,}"]
        cells.append([name, f"{row['validation_ssim']:.4f}", *sizes, f"{row['images_per_second']:.0f}"])
    return tables.markdown(heads, cells)


@exit_on_input_error
def main() -> int:
    settings = cli.parse(AblationSettings, __doc__)
    on = compute.choose(settings.device)
    shared = [
        "--prior",
        "none",
        "--painter-slices",
        "0",
        "--epochs",
        str(settings.epochs),
        "--seed",
        str(settings.seed),
    ]
    shared += ["--device", settings.device, *(["--data", settings.data] if settings.data else [])]
    rows = {}
    for i, (name, changed) in enumerate(list(ROWS.items())[: settings.rows]):
        folder = settings.out / f"{i:02d}_epochs{settings.epochs}_seed{settings.seed}"
        run = run_folder(folder, [*shared, *changed])
        rows[name] = measured_row(run, changed, on)
        print(f"{name}: validation SSIM {rows[name]['validation_ssim']:.4f}", flush=True)
    _, description = load_autoencoder(run / "vqvae.pth")
    title = f"{description['data']['title']}, {settings.epochs} epochs, seed {settings.seed}, {on.describe()}"
    text = f"{title}\n\n{ablation_table(rows)}"
    tables.save(settings.out, "ablations", text, {"title": title, "rows": rows})
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
