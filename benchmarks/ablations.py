"""What makes a good autoencoder? `train.py` on one budget of images, one option changed at a time.

    python benchmarks/ablations.py --data DIR

For each row: validation SSIM, bytes a slice, codes used, parameters, training speed. A row whose training is in --out
already is not trained again, so that the command goes on where it was stopped. The table (ablations.md, ablations.json)
goes to --out.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import checkpoint
import compute
import options
import train
from checkpoint import atomic
from codec import Codec
from errors import InputError, Parser, exit_on_input_error, number

ROOT = Path(__file__).resolve().parents[1]
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
    "same bytes: quarter of the size, 2 codes a place": ["--downsample", "4", "--depth", "2"],
    "4,356 bytes: quarter of the size, 2 of 2,048": ["--downsample", "4", "--depth", "2", "--codebook-size", "2048"],
    "1,089 bytes: 2 codes of 2,048 a place": ["--depth", "2", "--codebook-size", "2048"],
    "1,040 bytes: 3 codes of 128 a place": ["--depth", "3", "--codebook-size", "128"],
    "sixteenth of the size, 16 codes a place": ["--downsample", "16", "--depth", "16"],
    "report's `vqvae`": ["--model", "vqvae"],
    "`vqvae2`": ["--model", "vqvae2"],
}


def trained(settings: argparse.Namespace, changed: list[str], folder: Path) -> Path:
    """The run folder of a finished training with these options, made now if it isn't there."""
    for run in sorted(folder.glob("*/")):
        if (run / "training.png").is_file():  # the last thing that a training draws
            return run
    command = [sys.executable, str(ROOT / "train.py"), "--prior", "none", "--out", str(folder), *changed]
    command += ["--epochs", str(settings.epochs), "--seed", str(settings.seed), "--device", settings.device]
    command += ["--data", settings.data] if settings.data else []
    if subprocess.run(command).returncode:
        raise InputError(f"train.py {' '.join(changed)} failed: see above")
    return sorted(folder.glob("*/"))[-1]


def measure(run: Path, changed: list[str], on: compute.Compute) -> dict:
    """A row of the table."""
    settings = options.settle(options.parse("", changed)[0], None)
    model, about = checkpoint.load_autoencoder(run / "vqvae.pth")
    codec = Codec(model, about["data"], on)
    with open(run / "metrics.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    used = [int(last[key]) for key in last if key.startswith("codes_used") and last[key]]
    return {
        "validation_ssim": about["validation_ssim"],
        "bytes": codec.bytes_per_image(),
        "codes_used": f"{sum(used)} of {sum(model.codebook_sizes)}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "images_per_second": images_per_second(model, settings, codec, on),
    }


def images_per_second(model: torch.nn.Module, settings: argparse.Namespace, codec: Codec, on: compute.Compute) -> float:
    """Of training steps alone, on random pictures of the box's size."""
    model.train().to(memory_format=torch.channels_last)
    rate = train.BEST[settings.model] if settings.optimizer is None else settings.optimizer
    optimizer = train.OPTIMIZERS[rate](model.parameters(), 0.0)
    images = torch.rand(settings.batch_size, 1, codec.box.height, codec.box.width, device=on.device)
    times = []
    for _ in range(TIMED_STEPS + 1):
        start = time.perf_counter()
        loss = train.autoencoder_step(model, optimizer, images, train.LOSSES[settings.loss], on)
        loss["train_reconstruction"].item()  # waits for the device
        times.append(time.perf_counter() - start)
    return settings.batch_size / sorted(times[1:])[TIMED_STEPS // 2]


def markdown(rows: dict[str, dict], title: str) -> str:
    """The table, for a README."""
    lines = [
        title,
        "",
        "| | validation SSIM | bytes | codes used | parameters | images/s |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = f"{row['validation_ssim']:.4f} | {row['bytes']:,.0f} | {row['codes_used']} | {row['parameters']:,}"
        lines.append(f"| {name} | {cells} | {row['images_per_second']:.0f} |")
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="DIR", help="data set, or 'demo' (default: the usual places)")
    parser.add_argument("--epochs", type=number(int, 1), default=1, help="of each training (default: 1)")
    parser.add_argument("--seed", type=number(int, 0, 2**31), default=0, help="(default: 0)")
    parser.add_argument("--rows", type=number(int, 1, len(ROWS)), default=len(ROWS), help="the first N only")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), help="(default: runs/ablations)")
    parser.add_argument("--device", choices=compute.DEVICES, default="auto", help="(default: auto)")
    return parser.parse_args()


@exit_on_input_error
def main() -> int:
    settings = parse()
    on = compute.choose(settings.device)
    rows = {}
    for number_of_row, (name, changed) in enumerate(list(ROWS.items())[: settings.rows]):
        folder = settings.out / f"{number_of_row:02d}_epochs{settings.epochs}_seed{settings.seed}"
        run = trained(settings, changed, folder)
        rows[name] = measure(run, changed, on)
        print(f"{name}: validation SSIM {rows[name]['validation_ssim']:.4f}", flush=True)
    _, about = checkpoint.load_autoencoder(run / "vqvae.pth")
    title = f"{about['data']['title']}, {settings.epochs} epochs, seed {settings.seed}, {on.describe()}"
    table = markdown(rows, title)
    for name, text in (
        ("ablations.md", table),
        ("ablations.json", json.dumps({"title": title, "rows": rows}, indent=2)),
    ):
        with atomic(settings.out / name) as file:
            file.write(text.encode())
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
