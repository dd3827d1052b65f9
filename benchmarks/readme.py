"""Which numbers stand in the README? Those that this command measures with the pretrained models.

    python benchmarks/readme.py --data DIR          # what `make results DATA=DIR` does; about 20 minutes on two cores
    python benchmarks/readme.py --data DIR --train  # trains the models that are not in the repository, too; hours
    python benchmarks/readme.py                     # fills the tables from resources/results.json

Scores every checkpoint with predict.py and codecs.py on the test split, writes resources/results.json, copies the
figures to resources/, and fills the tables of README.md and of the model card. Checkpoints that are too many to be
part of the repository are looked for in --runs, and keep the numbers that they have in results.json where they are
not there. A test compares the tables with results.json.
"""

import json
import math
import platform
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runtime.environment  # noqa: F401, before PyTorch

# isort: split
import torch

import dataset
from benchmarks import covariates, others, painter
from benchmarks.tables import markdown
from benchmarks.trained import ROOT, call, finished, run_folder
from inference.codec import to_uint8
from inference.loading import load_autoencoder
from inference.model import TrainedModel
from inference.sampling import Sampler
from report import plots
from runtime import cli, compute
from runtime.cli import Settings, option
from runtime.errors import InputError, exit_on_input_error
from runtime.files import atomic
from scoring import tissue
from scoring.judge import Judge

RESOURCES = ROOT / "resources"
PRETRAINED = RESOURCES / "pretrained"
DEFAULT = PRETRAINED / "vqvae.pth"  # all priors model its codes
PAGES = (ROOT / "README.md", RESOURCES / "RESULTS.md", PRETRAINED / "README.md")
SAMPLES = 1000
VOLUMES = 32
FAST = "--precision", "auto"  # samples needn't be the same to the bit on every machine
BYTES = (4608, 1782, 1152)  # 64x64 codes of 512, the course baseline's network here, 32x32 codes of 512


@dataclass(frozen=True)
class Trained:
    """A checkpoint: its label in the tables, how train.py made it, and where it lies in resources/pretrained, if so."""

    label: str
    training: str
    epochs: int
    file: str = ""
    codes: int | None = None  # per position that are decoded, where not all are


FINER = "--downsample 4 --depth 2 --codebook-size 2048 --epochs 12 --painter-slices 0"
AUTOENCODERS = {
    "rqvae": Trained("`rqvae`, the default", "", 24, "vqvae.pth"),
    "rqvae_4": Trained("its first 4 codes per position", "", 24, "vqvae.pth", codes=4),
    "rqvae_2": Trained("its first 2", "", 24, "vqvae.pth", codes=2),
    "rqvae_1": Trained("its first", "", 24, "vqvae.pth", codes=1),
    "rqvae_4356": Trained("`rqvae`, finer grid", FINER, 12, "best/vqvae.pth"),
    "vqvae": Trained("`vqvae`, the course baseline", "--model vqvae --epochs 6 --augment off", 6, "course/vqvae.pth"),
    "vqvae2": Trained("`vqvae2`", "--model vqvae2 --epochs 6 --augment off", 6),
}
PRIORS = {
    "transformer": Trained("transformer", "--prior transformer --prior-epochs 19", 8, "transformer.pth"),
    "dcgan": Trained("DCGAN, the default of `train.py`", "--prior-epochs 80", 80, "dcgan.pth"),
    "pixelcnn": Trained("PixelCNN, two codes", "--prior pixelcnn --prior-codes 2 --prior-epochs 5", 5, "pixelcnn.pth"),
    "course_gan": Trained(
        "the course baseline's GAN", "--gan baseline --prior-codes 2 --prior-epochs 3", 3, "course_gan.pth"
    ),
}
FIGURES = {  # file of predict.py or codecs.py for a model -> file in resources/
    ("rqvae", "reconstructions_worst.png"): "reconstructions_worst.png",
    ("rqvae", "codes.png"): "codes.png",
    ("transformer", "samples_beside_real.png"): "samples_beside_real.png",
    ("transformer", "nearest_training.png"): "nearest_training.png",
    ("dcgan", "samples.png"): "samples_dcgan.png",
    ("dcgan", "walk.gif"): "walk.gif",
    ("pixelcnn", "samples.png"): "samples_pixelcnn.png",
    ("course_gan", "samples.png"): "samples_course_gan.png",
    ("volumes", "volumes.png"): "volumes.png",
    ("volumes", "volume_levels.gif"): "volume_levels.gif",
    ("volumes", "volume_curves.png"): "volume_curves.png",
    ("codecs", "rate_distortion.png"): "rate_distortion.png",
    ("codecs", "side_by_side_rqvae_4356.png"): "side_by_side.png",
}
FIGURES_OF_RUNS = {  # file of train.py for a model whose run is in --runs -> file in resources/
    ("rqvae_4356", "progress.gif"): "progress.gif",
    ("rqvae_4356", "training_curves.png"): "training_curves.png",
    ("transformer", "transformer_curves.png"): "transformer_curves.png",
    ("course_gan", "dcgan_curves.png"): "dcgan_curves_course_gan.png",
}

# ----------------------------------------------------------------------------------------------------
# Measuring


class ReadmeSettings(Settings):
    """what to measure"""

    data: str | None = option(None, "data set that the models were trained on; without it, tables only", "DIR")
    train: bool = option(False, "train what isn't in the repository or in --runs")
    published: Path | None = option(None, "folder with PNG slices of the published OASIS set, to reconstruct", "DIR")
    runs: Path = option(Path("runs/results"), "folder of those trainings", "DIR")


def find(name: str, settings: ReadmeSettings) -> Path | None:
    """Where a model's checkpoint lies, None where it isn't there; with --train it is made."""
    trained = (AUTOENCODERS | PRIORS)[name]
    if trained.file:
        return PRETRAINED / trained.file
    folder = settings.runs / name
    autoencoder = ["--prior", "none"] if name in AUTOENCODERS else ["--autoencoder", str(DEFAULT)]
    options = ["--data", settings.data, *autoencoder, *trained.training.split()]
    run = run_folder(folder, options) if settings.train else finished(folder)
    return run and run / ("vqvae.pth" if name in AUTOENCODERS else "dcgan.pth")


def score_autoencoder(path: Path, data: str, out: Path, codes: int | None) -> dict:
    """Scores by predict.py of an autoencoder's reconstructions of the test split, from `codes` per position."""
    some = ["--codes", codes] if codes else []
    call("predict.py", path, "--data", data, "--prior", "none", "--out", out, *some)
    metrics = json.loads((out / "metrics.json").read_text())
    model, about = load_autoencoder(path)
    used = metrics["codes"]
    return {key: metrics[key] for key in ("data", "images", "ssim", "foreground_ssim", "gaussian_ssim", "psnr")} | {
        "bytes": metrics["bytes_per_image"],
        "codes_used": sum(one["codes_used"] for one in used),
        "codes": sum(one["codebook_size"] for one in used),
        "parameters": sum(p.numel() for p in model.parameters()),
        "epoch": about["epoch"],
        "order_0_bits": sum(math.log2(one["perplexity"]) * math.prod(map(int, one["grid"].split("x"))) for one in used),
    }


def score_prior(path: Path, judge: Judge, model: TrainedModel, settings: ReadmeSettings, out: Path) -> dict:
    """The judge's verdict on a prior's samples, and its bits a slice if it has any; predict.py draws the figures."""
    call("predict.py", DEFAULT, "--data", settings.data, "--prior", path, *FAST, "--out", out)
    metrics = json.loads((out / "metrics.json").read_text())
    sampler, seeds = Sampler(path, model.codec), range(SAMPLES)
    pictures = to_uint8(model.codec.paint(sampler.sample(seeds), seeds))
    verdict = judge.score(pictures)
    closest = verdict["memorisation"].pop("closest")
    columns = {key: [one[key] for one in closest] for key in closest[0]}
    pairs = pictures[columns["sample"]], judge.as_nearest(columns["train_index"], columns["mirrored"])
    names = ["mirrored " * one["mirrored"] + one["train_name"] for one in closest]
    cropped = (model.codec.box.crop(pair) for pair in pairs)
    plots.nearest_training(*cropped, columns["ssim"], names, out / "nearest_training.png", sampler.title)
    bits = {"entropy_coded_bits": 8 * metrics["entropy_coded_bytes"]} if "entropy_coded_bytes" in metrics else {}
    return verdict | bits | {"epoch": metrics["settings"]["prior"]["epoch"]}


def score_volumes(path: Path, data: str, out: Path) -> dict:
    """The verdict on whole brains that a transformer draws."""
    options = ["--samples", 0, "--volumes", VOLUMES, *FAST]
    call("predict.py", DEFAULT, "--data", data, "--prior", path, *options, "--out", out)
    verdict = json.loads((out / "metrics.json").read_text())["volume_judge"]
    verdict.pop("curves")
    return verdict


def named_checkpoints(found: dict[str, Path | None], folder: Path) -> list[Path]:
    """The autoencoders in folders that bear their names, which codecs.py gives them; the default beside its prior."""
    paths = []
    for name, one in AUTOENCODERS.items():
        if (path := found[name]) and not one.codes:
            (folder / name).mkdir(parents=True)
            paths.append(shutil.copy(path, folder / name))
    shutil.copy(found["transformer"], folder / "rqvae")
    return paths


def measure(settings: ReadmeSettings, work: Path, results: dict) -> dict:
    """All numbers; what isn't there stays as it is in `results`."""
    found = {name: find(name, settings) for name in AUTOENCODERS | PRIORS}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        print(f"neither in {PRETRAINED} nor in {settings.runs}, so their numbers stay: {', '.join(missing)}")
    for name in AUTOENCODERS.keys() - missing:
        row = score_autoencoder(found[name], settings.data, work / name, AUTOENCODERS[name].codes)
        results.setdefault("autoencoders", {})[name] = row
    model, splits = TrainedModel.load(DEFAULT, "none"), dataset.load(settings.data, ("train", "test")).splits

    def first_codes(images: np.ndarray) -> np.ndarray:
        return model.codec.encode(images, model.codec.box)[0].cpu().numpy()

    judge = Judge(splits["train"], splits["test"], encode=first_codes)  # of all priors: the floors are measured once
    for name in PRIORS.keys() - missing:
        row = score_prior(found[name], judge, model, settings, work / name)
        results.setdefault("priors", {})[name] = row
    painted = work / "painter.json"
    call("benchmarks/painter.py", DEFAULT, settings.data, "--out", painted)
    results["painter"] = json.loads(painted.read_text())
    results["volumes"] = score_volumes(found["transformer"], settings.data, work / "volumes")
    out, files = work / "codecs", named_checkpoints(found, work / "checkpoints")
    call("benchmarks/codecs.py", "--data", settings.data, "--out", out, "--checkpoints", *files, "--bytes", *BYTES)
    results["codecs"] = json.loads((out / "codecs.json").read_text())["rows"]
    asked = settings.runs / "covariates"  # the brains are kept for the next time
    call("benchmarks/covariates.py", DEFAULT, settings.data, *FAST, "--out", asked)
    results["covariates"] = json.loads((asked / "covariates.json").read_text())
    shutil.copy(asked / "asked.png", RESOURCES)
    rows, published = work / "others.json", ["--published", settings.published] if settings.published else []
    call("benchmarks/others.py", DEFAULT, "--data", settings.data, "--out", rows, *published)
    made = {row["name"]: row for row in json.loads(rows.read_text())["rows"]}
    kept = {row["name"]: row for row in results.get("others", [])}
    results["others"] = list((kept | made).values())
    results["machine"] = f"{platform.machine()}, {compute.choose('auto').describe()}, PyTorch {torch.__version__}"
    return results


# ----------------------------------------------------------------------------------------------------
# Tables


def file_bytes(results: dict, name: str) -> float | None:
    """A slice's share of files of codes; None where there were no weights to write them."""
    folder, plain = "rqvae" if AUTOENCODERS[name].codes else name, results["autoencoders"][name]["bytes"]
    rows = [row for row in results["codecs"] if row["name"].startswith(f"VQ-VAE {folder},") and row["bytes"] == plain]
    return next((row["file_bytes"] for row in rows if "file_bytes" in row), None)


def sizes(results: dict, name: str) -> list[str]:
    """Bytes a slice, plain and in files."""
    found = results["autoencoders"][name]["bytes"], file_bytes(results, name)
    return ["" if size is None else f"{size:,.0f}" for size in found]


def reconstruction_table(results: dict) -> str:
    heads = ["model", "bytes a slice", "in files", "SSIM (lowest)", "Gaussian SSIM", "foreground SSIM", "PSNR"]
    heads += ["codes used", "weights", "`train.py`"]
    rows = []
    for name, one in AUTOENCODERS.items():
        if row := results["autoencoders"].get(name):
            ssim = f"{row['ssim']['mean']:.4f} ({row['ssim']['min']:.4f})"
            means = [f"{row[key]['mean']:.4f}" for key in ("gaussian_ssim", "foreground_ssim")]
            used = f"{row['codes_used']:,} of {row['codes']:,}"
            rest = [f"{row['psnr']['mean']:.2f} dB", used, f"{row['parameters']:,}", f"`{one.training}`"]
            rows.append([one.label, *sizes(results, name), ssim, *means, *rest])
    defaults = "defaults, in parts: see the model card"
    return markdown(heads, [[cell.replace("``", defaults) for cell in row] for row in rows])


def codec_table(results: dict) -> str:
    names = ["JPEG", "JPEG 2000", "WebP", "AVIF"]
    at = {(row["budget"], row["name"]): row["ssim"] for row in results["codecs"]}
    found = results["autoencoders"].items()
    ours = [(file_bytes(results, name) or row["bytes"], row["ssim"]["mean"]) for name, row in found]
    rows = []
    for budget in BYTES:
        size, best = max((one for one in ours if one[0] <= budget), key=lambda one: one[1])
        cells = [f"{at[budget, name]:.4f}" for name in names]
        rows.append([f"at most {budget:,}", *cells, f"{best:.4f} with {size:,.0f}"])
    return markdown(["bytes", *names, "best of this repository"], rows)


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
    return markdown(heads, [[label, *(f"{row[key]:.3f}" for key in keys)] for label, row in lines])


def copies_table(results: dict) -> str:
    """How near samples are to training slices."""
    heads = ["", "nearer to a training slice than 99 % of held-out slices are", "to a mirrored one"]
    heads += [
        "nearest five of one person",
        "median share of codes in common",
        "C_T by SSIM",
        "by codes",
        "epoch chosen",
    ]
    real = next(iter(results["priors"].values()))["memorisation"]

    def cells(near: dict, suffix: str = "") -> list[str]:
        shares = [near[f"share{suffix}"], near["mirrored"][f"share{suffix}"], near[f"one_person{suffix}"]]
        codes = near.get("codes")
        return [*(f"{share:.1%}" for share in shares), f"{codes[f'median{suffix}']:.1%}" if codes else ""]

    rows = [["real slices", *cells(real, "_held_out"), "", "", ""]]
    for name, one in PRIORS.items():
        if row := results["priors"].get(name):
            near = row["memorisation"]
            copying = [near.get("data_copying"), near.get("codes", {}).get("data_copying")]
            copying = ["" if value is None else f"{value:.2f}" for value in copying]
            rows.append([one.label, *cells(near), *copying, f"{row['epoch']} of {one.epochs}"])
    return markdown(heads, rows)


def two_sample_table(results: dict) -> str:
    """Areas under the ROC curve of networks that tell samples from real slices."""
    tests = next(iter(results["priors"].values()))["two_sample"]
    rows = {"real people, from others": [tests[size].get("real") for size in tests]}
    rows["people never trained on"] = [tests[size].get("held_out") for size in tests]
    for name, one in PRIORS.items():
        if row := results["priors"].get(name):
            rows[one.label] = [row["two_sample"][size]["samples"] for size in tests]
    cells = [
        [label, *(f"{test['mean']:.3f} ({test['min']:.3f} to {test['max']:.3f})" for test in row)]
        for label, row in rows.items()
        if all(row)
    ]
    return markdown(["", *(f"{size} size" for size in tests)], cells)


def tissue_table(results: dict) -> str:
    """Samples' tissues beside training slices': Cohen's d and ratio of the spreads."""
    measured = {name: row["tissue"] for name, row in results["priors"].items() if "tissue" in row}
    real = next(iter(measured.values()), {})
    rows = {"half of the people, from the others": real.get("floor"), "held-out people": real.get("held_out")}
    rows |= {one.label: measured[name]["samples"] for name, one in PRIORS.items() if name in measured}
    cells = [
        [
            label,
            *(f"{row[name]['d']:.2f}, {row[name]['spread']:.2f}" if name in row else "-" for name in tissue.FIGURES),
        ]
        for label, row in rows.items()
        if row
    ]
    return markdown(["", *tissue.FIGURES], cells)


MEASURES = {  # of volumes -> what the table calls it
    "neighbour_ssim": "SSIM of neighbouring slices",
    "neighbour_difference": "absolute difference of neighbouring slices",
    "coronal_pca": "coronal cuts, `pca`",
    "coronal_randconv": "coronal cuts, `randconv`",
    "sagittal_pca": "sagittal cuts, `pca`",
    "sagittal_randconv": "sagittal cuts, `randconv`",
    "tissue_jump": "jump of tissue from level to level",
    "ventricle_jump": "jump of ventricles from level to level",
    "tissue_mean": "tissue of a person",
    "ventricle_mean": "ventricles of a person",
}


def volume_table(results: dict) -> str:
    """How far drawn brains are from training people's, beside what independent slices and real people get."""
    found = results["volumes"]["distances"]
    kinds = {"sampled": "drawn brains", "baseline": "independent slices", "held_out": "held-out people"}
    kinds |= {"floor": "training people (floor)", "floor_highest": "highest of ten draws"}
    rows = [[label, *(f"{found[kind][measure]:.3g}" for kind in kinds)] for measure, label in MEASURES.items()]
    return markdown(["", *kinds.values()], rows)


def volume_copies(results: dict) -> str:
    """Whether drawn brains are somebody's, in a sentence."""
    verdict = results["volumes"]
    copies, alike = verdict["copies"], verdict["diversity"]
    return (
        f"Of {verdict['sampled']} drawn brains {copies['share']:.1%} are more like one training person, over all"
        f" levels, than an SSIM of {copies['threshold']:.3f}; of {verdict['held_out']} held-out people"
        f" {copies['share_held_out']:.1%} are. The middle slices of two drawn brains have an SSIM of"
        f" {alike['sampled']:.3f} in the mean, those of two training people {alike['train']:.3f}."
    )


def bits_sentence(results: dict) -> str:
    row, codes = results["priors"]["transformer"], results["autoencoders"]["rqvae"]
    bits, plain, order_0 = row["entropy_coded_bits"], 8 * codes["bytes"], codes["order_0_bits"]
    return (
        f"As an entropy coder the transformer needs {bits:,.0f} bits for a test slice: {bits / plain:.0%} of the"
        f" {plain:,.0f} of plain codes, and fewer than the {order_0:,.0f} of their order-0 entropy. That makes"
        f" {bits / 8:,.0f} bytes at the same SSIM. It gives the first code per position; the other seven cost"
        " what they do without it."
    )


def headline(results: dict) -> str:
    """What the default does, in two sentences: the second is where it beats image codecs at the same bytes."""
    avif = next(row["ssim"] for row in results["codecs"] if (row["name"], row["budget"]) == ("AVIF", min(BYTES)))
    default, small = (results["autoencoders"][name] for name in ("rqvae", "rqvae_2"))
    size, small_size = (file_bytes(results, name) for name in ("rqvae", "rqvae_2"))
    return (
        f"On {default['images']} slices of ten people it has never seen, the default reconstructs with a mean SSIM of"
        f" **{default['ssim']['mean']:.4f}** from {size:,.0f} bytes per slice, in files of 32. From {small_size:,.0f}"
        f" bytes it reaches {small['ssim']['mean']:.4f}, where AVIF, a file each, has {avif:.4f} with {min(BYTES):,}."
    )


def brief_table(results: dict) -> str:
    """Reconstruction, for the README: what it costs, and how good it is."""
    rows = []
    for name, one in AUTOENCODERS.items():
        if name != "vqvae2" and (row := results["autoencoders"].get(name)):
            means = [f"{row[key]['mean']:.4f}" for key in ("ssim", "foreground_ssim")]
            rows.append([one.label, *sizes(results, name), *means])
    return markdown(["model", "bytes a slice", "in files", "SSIM", "foreground SSIM"], rows)


def samples_in_brief(results: dict) -> str:
    """Samples, for the README: the distance in each space, and what the classifier makes of them."""
    any_row = next(iter(results["priors"].values()))
    spaces = ("pca", "randconv", "folds")
    floor = [f"{any_row['floor'][space]['frechet']:.3f}" for space in spaces]
    rows = [["real slices", *floor, f"{any_row['two_sample']['half']['real']['mean']:.3f}"]]
    for name, one in PRIORS.items():
        if row := results["priors"].get(name):
            distances = [f"{row['fidelity'][space]['frechet']:.3f}" for space in spaces]
            rows.append([one.label, *distances, f"{row['two_sample']['half']['samples']['mean']:.3f}"])
    return markdown(["", *spaces, "AUC"], rows)


BLOCKS = {
    "headline": headline,
    "brief": brief_table,
    "samples in brief": samples_in_brief,
    "reconstruction": reconstruction_table,
    "codecs": codec_table,
    "priors, pca": lambda results: prior_table(results, "pca"),
    "priors, randconv": lambda results: prior_table(results, "randconv"),
    "priors, folds": lambda results: prior_table(results, "folds"),
    "copies": copies_table,
    "two-sample test": two_sample_table,
    "tissue": tissue_table,
    "bits": bits_sentence,
    "painter": lambda results: painter.painter_table(results["painter"]),
    "known by heart": lambda results: painter.known_by_heart(results["painter"]),
    "volumes": volume_table,
    "volume copies": volume_copies,
    "others": lambda results: others.others_table(results["others"]),
} | {
    name: lambda results, name=name, table=table: table(results["covariates"][name])
    for name, table in covariates.TABLES.items()
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


@exit_on_input_error
def main() -> int:
    settings = cli.parse(ReadmeSettings, __doc__)
    stored = RESOURCES / "results.json"
    results = json.loads(stored.read_text()) if stored.is_file() else {}
    if settings.data:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            results = measure(settings, work, results)
            for (model, figure), name in FIGURES.items():
                if (made := work / model / figure).is_file():
                    shutil.copyfile(made, RESOURCES / name)
        for (model, figure), name in FIGURES_OF_RUNS.items():
            if run := finished(settings.runs / model):
                shutil.copyfile(run / figure, RESOURCES / name)
        with atomic(stored) as file:
            file.write(json.dumps(results, indent=1).encode() + b"\n")
    for page in PAGES:
        with atomic(page) as file:
            file.write(filled(page.read_text(encoding="utf-8"), results).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
