"""Which numbers stand in the README? Those that this command measures with the pretrained models.

    python benchmarks/readme.py --data DIR          # what `make results DATA=DIR` does; about 20 minutes on two cores

Scores every checkpoint with predict.py and codecs.py on the test split, writes resources/results.json, copies the
figures to resources/, and fills the tables of README.md and of the model card. Checkpoints that are too many to be
part of the repository are looked for in --runs, and keep the numbers that they have in results.json where they are
not there. A test compares the tables with results.json.
"""

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import checkpoint
import compute
from checkpoint import atomic
from errors import InputError, Parser, exit_on_input_error

ROOT = Path(__file__).resolve().parents[1]
RESOURCES = ROOT / "resources"
PRETRAINED = RESOURCES / "pretrained"
DEFAULT = PRETRAINED / "vqvae.pth"  # whose codes all priors speak
PAGES = (ROOT / "README.md", PRETRAINED / "README.md")
SAMPLES = 1000
BYTES = (4608, 1782, 1152)  # 64x64 codes of 512, the report's network here, 32x32 codes of 512


@dataclass(frozen=True)
class Trained:
    """A checkpoint: its label in the tables, where it lies, and how it was trained."""

    label: str
    file: str  # in resources/pretrained, or else in --runs
    training: str  # options of train.py
    epochs: int


AUTOENCODERS = {
    "rqvae": Trained("`rqvae`, the default", "vqvae.pth", "", 12),
    "rqvae_4356": Trained(
        "`rqvae`, finer grid", "best/vqvae.pth", "--downsample 4 --depth 2 --codebook-size 2048 --epochs 16", 16
    ),
    "rqvae_1089": Trained(
        "`rqvae`, 2 codes a place", "small/vqvae.pth", "--depth 2 --codebook-size 2048 --epochs 8", 8
    ),
    "vqvae": Trained("`vqvae`, the report's", "report/vqvae.pth", "--model vqvae --epochs 6", 6),
    "vqvae2": Trained("`vqvae2`", "vqvae2/vqvae.pth", "--model vqvae2 --epochs 6", 6),
}
PRIORS = {
    "dcgan": Trained("DCGAN, the default", "dcgan.pth", "--prior-epochs 6", 6),
    "dcgan_1": Trained("DCGAN, seed 1", "dcgan_1/dcgan.pth", "--prior-epochs 2 --seed 1", 2),
    "dcgan_2": Trained("DCGAN, seed 2", "dcgan_2/dcgan.pth", "--prior-epochs 1 --seed 2", 1),
    "pixelcnn": Trained("PixelCNN", "pixelcnn.pth", "--prior pixelcnn --prior-epochs 8", 8),
    "report_gan": Trained("the report's GAN", "report_gan.pth", "--gan-loss bce --prior-epochs 4", 4),
}
FIGURES = {  # file of predict.py for a model -> file in resources/
    ("rqvae", "worst.png"): "reconstructions.png",
    ("rqvae", "code_map.png"): "codes.png",
    ("dcgan", "samples_beside_real.png"): "samples.png",
    ("dcgan", "nearest_training.png"): "nearest_training.png",
    ("dcgan", "walk.gif"): "walk.gif",
    ("pixelcnn", "samples.png"): "samples_pixelcnn.png",
    ("report_gan", "samples.png"): "samples_report_gan.png",
    ("codecs", "rate_distortion.png"): "rate_distortion.png",
    ("codecs", "side_by_side_best.png"): "side_by_side.png",
}

# ----------------------------------------------------------------------------------------------------
# Measuring


def find(trained: Trained, runs: Path) -> Path | None:
    """Where the checkpoint lies, None where it isn't there."""
    return next((path for folder in (PRETRAINED, runs) if (path := folder / trained.file).is_file()), None)


def call(*command: object) -> None:
    """Run one of the repository's own commands; raises InputError when it fails."""
    print("python", *command, flush=True)
    if subprocess.run([sys.executable, *map(str, command)], cwd=ROOT).returncode:
        raise InputError(f"{command[0]} failed: see above")


def scored(path: Path, data: str, out: Path) -> dict:
    """What predict.py says of an autoencoder's reconstructions of the test split."""
    call("predict.py", path, "--data", data, "--prior", "none", "--out", out)
    metrics = json.loads((out / "metrics.json").read_text())
    model, about = checkpoint.load_autoencoder(path)
    codes = metrics["codes"]
    return {key: metrics[key] for key in ("data", "images", "ssim", "foreground_ssim", "gaussian_ssim", "psnr")} | {
        "bytes": metrics["bytes_per_image"],
        "codes_used": sum(one["codes_used"] for one in codes),
        "codes": sum(one["codebook_size"] for one in codes),
        "parameters": sum(p.numel() for p in model.parameters()),
        "epoch": about["epoch"],
        "order_0_bits": sum(torch.tensor(one["perplexity"]).log2().item() * eval_grid(one["grid"]) for one in codes),
    }


def eval_grid(grid: str) -> int:
    """Places of a grid that is written as "18x22"."""
    height, width = map(int, grid.split("x"))
    return height * width


def judged(path: Path, data: str, out: Path) -> dict:
    """The judge's verdict on a prior's samples, and its bits a slice where it is a PixelCNN."""
    call("predict.py", DEFAULT, "--data", data, "--prior", path, "--samples", SAMPLES, "--out", out)
    metrics = json.loads((out / "metrics.json").read_text())
    verdict = metrics["judge"]
    verdict["memorisation"].pop("closest")
    bits = {"entropy_coded_bits": 8 * metrics["entropy_coded_bytes"]} if "entropy_coded_bytes" in metrics else {}
    return verdict | bits | {"epoch": metrics["settings"]["prior"]["epoch"]}


def measure(settings: argparse.Namespace, work: Path, results: dict) -> dict:
    """All numbers; what isn't there stays as it is in `results`."""
    found = {name: find(one, settings.runs) for name, one in (AUTOENCODERS | PRIORS).items()}
    for name, path in found.items():
        if path is None:
            print(f"{name}: no {(AUTOENCODERS | PRIORS)[name].file}, keeping its numbers")
            continue
        kind, how = ("autoencoders", scored) if name in AUTOENCODERS else ("priors", judged)
        results.setdefault(kind, {})[name] = how(path, settings.data, work / name)
    checkpoints = [path for name in AUTOENCODERS if (path := found[name])]
    out = work / "codecs"
    call(
        "benchmarks/codecs.py", "--data", settings.data, "--out", out, "--checkpoints", *checkpoints, "--bytes", *BYTES
    )
    results["codecs"] = json.loads((out / "codecs.json").read_text())["rows"]
    ablations = settings.runs / "ablations" / "ablations.json"
    if ablations.is_file():
        results["ablations"] = json.loads(ablations.read_text())
    on = compute.choose("auto", "fp32")
    results["machine"] = f"{platform.machine()}, {on.describe()}, PyTorch {torch.__version__}"
    return results


# ----------------------------------------------------------------------------------------------------
# Tables


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows])


def reconstruction_table(results: dict) -> str:
    heads = ["model", "bytes a slice", "SSIM (lowest)", "Gaussian SSIM", "foreground SSIM", "PSNR", "codes used"]
    heads += ["weights", "`train.py`"]
    rows = []
    for name, one in AUTOENCODERS.items():
        if row := results["autoencoders"].get(name):
            ssim = f"{row['ssim']['mean']:.4f} ({row['ssim']['min']:.4f})"
            means = [f"{row[key]['mean']:.4f}" for key in ("gaussian_ssim", "foreground_ssim")]
            used = f"{row['codes_used']:,} of {row['codes']:,}"
            rest = [f"{row['psnr']['mean']:.1f} dB", used, f"{row['parameters']:,}", f"`{one.training}`"]
            rows.append([one.label, f"{row['bytes']:,.0f}", ssim, *means, *rest])
    return table(heads, [[cell.replace("``", "defaults") for cell in row] for row in rows])


def codec_table(results: dict) -> str:
    names = ["JPEG", "JPEG 2000", "WebP", "AVIF"]
    at = {(row["budget"], row["name"]): row["ssim"] for row in results["codecs"]}
    ours = [(row["bytes"], row["ssim"]["mean"]) for row in results["autoencoders"].values()]
    rows = []
    for budget in BYTES:
        size, best = max((one for one in ours if one[0] <= budget), key=lambda one: one[1])
        cells = [f"{at[budget, name]:.4f}" for name in names]
        rows.append([f"at most {budget:,}", *cells, f"{best:.4f} with {size:,.0f}"])
    return table(["bytes", *names, "best of this repository"], rows)


def prior_table(results: dict, space: str) -> str:
    heads = ["", "Frechet", "Frechet, held out", "precision", "recall", "density", "coverage"]
    keys = ("frechet", "frechet_held_out", "precision", "recall", "density", "coverage")
    floor = next(iter(results["priors"].values()))["floor"][space]
    lines = [("real slices (floor)", floor)]
    lines += [
        (one.label, results["priors"][name]["fidelity"][space])
        for name, one in PRIORS.items()
        if name in results["priors"]
    ]
    return table(heads, [[label, *(f"{row[key]:.3f}" for key in keys)] for label, row in lines])


def variety_table(results: dict) -> str:
    heads = ["", "mean pairwise MS-SSIM", "nearer to a training slice than 99 % of held-out slices are", "epoch chosen"]
    any_row = next(iter(results["priors"].values()))
    share = f"{any_row['memorisation']['share_held_out']:.1%}"
    rows = [["real slices", f"{any_row['diversity']['ms_ssim_train']:.3f}", share, ""]]
    for name, one in PRIORS.items():
        if row := results["priors"].get(name):
            diversity = f"{row['diversity']['ms_ssim']:.3f}"
            rows.append(
                [one.label, diversity, f"{row['memorisation']['share']:.1%}", f"{row['epoch']} of {one.epochs}"]
            )
    return table(heads, rows)


def bits_sentence(results: dict) -> str:
    row, codes = results["priors"]["pixelcnn"], results["autoencoders"]["rqvae"]
    bits, plain, order_0 = row["entropy_coded_bits"], 8 * codes["bytes"], codes["order_0_bits"]
    return (
        f"As an entropy coder the PixelCNN needs {bits:,.0f} bits for a test slice's codes: {bits / plain:.0%} of the"
        f" {plain:,.0f} of plain codes, and fewer than the {order_0:,.0f} of their order-0 entropy. That makes"
        f" {bits / 8:,.0f} bytes at the same SSIM."
    )


def headline(results: dict) -> str:
    rows, codecs = results["autoencoders"], results["codecs"]
    default, best = rows["rqvae"], rows["rqvae_4356"]
    webp = next(row["ssim"] for row in codecs if row["name"] == "WebP" and row["budget"] == 4608)
    small, avif = (
        rows["rqvae_1089"],
        next(row["ssim"] for row in codecs if row["name"] == "AVIF" and row["budget"] == 1152),
    )
    return (
        f"On {default['images']} slices of ten people it has never seen, the default reaches a mean SSIM of"
        f" **{default['ssim']['mean']:.4f}** (lowest {default['ssim']['min']:.4f}) with {default['bytes']:,.0f} bytes a"
        f" slice. With 4,356 bytes it is {best['ssim']['mean']:.4f}, where WebP's best with 4,608 is {webp:.4f}; with"
        f" 1,089 bytes it is {small['ssim']['mean']:.4f}, where AVIF's best with 1,152 is {avif:.4f}."
    )


def ablation_table(results: dict) -> str:
    rows = results.get("ablations", {}).get("rows", {})
    heads = ["changed", "validation SSIM", "bytes", "codes used", "weights", "images/s"]
    return table(
        heads,
        [
            [
                name,
                f"{row['validation_ssim']:.4f}",
                f"{row['bytes']:,.0f}",
                row["codes_used"],
                f"{row['parameters']:,}",
                f"{row['images_per_second']:.0f}",
            ]
            for name, row in rows.items()
        ],
    )


BLOCKS = {
    "headline": headline,
    "reconstruction": reconstruction_table,
    "codecs": codec_table,
    "priors, pca": lambda results: prior_table(results, "pca"),
    "priors, randconv": lambda results: prior_table(results, "randconv"),
    "variety": variety_table,
    "bits": bits_sentence,
    "ablations": ablation_table,
}


def filled(page: str, results: dict) -> str:
    """A page with each `<!-- results: NAME -->` ... `<!-- end -->` holding what BLOCKS says.

    Raises InputError when it asks for a block that there isn't.
    """

    def block(match: re.Match) -> str:
        if match[1] not in BLOCKS:
            raise InputError(f"no block of results is called {match[1]}: there are {', '.join(BLOCKS)}")
        return f"<!-- results: {match[1]} -->\n{BLOCKS[match[1]](results)}\n<!-- end -->"

    return re.sub(r"<!-- results: (.+?) -->\n.*?<!-- end -->", block, page, flags=re.DOTALL)


# ----------------------------------------------------------------------------------------------------
# The command line


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="DIR", help="data set that the models were trained on; without, tables only")
    parser.add_argument("--runs", type=Path, default=Path("runs/results"), help="(default: runs/results)")
    return parser.parse_args()


@exit_on_input_error
def main() -> int:
    settings = parse()
    stored = RESOURCES / "results.json"
    results = json.loads(stored.read_text()) if stored.is_file() else {}
    if settings.data:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            results = measure(settings, work, results)
            for (model, figure), name in FIGURES.items():
                if (made := work / model / figure).is_file():
                    shutil.copyfile(made, RESOURCES / name)
        with atomic(stored) as file:
            file.write(json.dumps(results, indent=1).encode() + b"\n")
    for page in PAGES:
        with atomic(page) as file:
            file.write(filled(page.read_text(encoding="utf-8"), results).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
