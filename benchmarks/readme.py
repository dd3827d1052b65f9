"""Which numbers stand in the README? Those that this command measures with the pretrained models.

    python benchmarks/readme.py --data DIR          # what `make results DATA=DIR` does; about 30 minutes on two cores
    python benchmarks/readme.py --data DIR --train  # trains the model that is not in the repository, too; hours
    python benchmarks/readme.py                     # fills the tables from resources/results.json

Scores every checkpoint with predict.py and codecs.py on the test split, writes resources/results.json, copies the
figures to resources/, and fills the tables of README.md and of the model card. A checkpoint that is not part of the
repository is looked for in --runs, and keeps the numbers that it has in results.json where it is not there. A test
compares the tables with results.json.
"""

import json
import math
import platform
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runtime.environment  # noqa: F401, before PyTorch

# isort: split
import torch

from benchmarks import covariates, others, painter
from benchmarks.tables import markdown
from benchmarks.trained import ROOT, call, finished, run_folder
from inference.loading import load_autoencoder
from runtime import cli, compute
from runtime.cli import Settings, option
from runtime.errors import InputError, exit_on_input_error
from runtime.files import atomic
from scoring import tissue

RESOURCES = ROOT / "resources"
PRETRAINED = RESOURCES / "pretrained"
DEFAULT = PRETRAINED / "vqvae.pth"  # all priors model its codes
PAGES = (ROOT / "README.md", RESOURCES / "RESULTS.md", PRETRAINED / "README.md")
SAMPLES = 1000
VOLUMES = {"transformer": 32}  # whole brains that a prior draws
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
    "transformer": Trained("transformer", "--prior transformer --prior-epochs 40", 13, "transformer.pth"),
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
    ("transformer", "volumes.png"): "volumes.png",
    ("transformer", "volume_levels.gif"): "volume_levels.gif",
    ("transformer", "volume_curves.png"): "volume_curves.png",
    ("codecs", "rate_distortion.png"): "rate_distortion.png",
    ("codecs", "side_by_side_rqvae_4356.png"): "side_by_side.png",
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
    options = ["--data", settings.data, "--prior", "none", *trained.training.split()]
    folder = settings.runs / name
    run = run_folder(folder, options) if settings.train else finished(folder)
    return run and run / "vqvae.pth"


def predict(checkpoint: Path, data: str, out: Path, *options: object) -> dict:
    """What predict.py writes to metrics.json in the folder `out`."""
    call("predict.py", checkpoint, "--data", data, "--out", out, *options)
    return json.loads((out / "metrics.json").read_text())


def score_autoencoder(path: Path, data: str, out: Path, codes: int | None) -> dict:
    """Scores of an autoencoder's reconstructions of the test split, from `codes` per position."""
    metrics = predict(path, data, out, "--prior", "none", *(["--codes", codes] if codes else []))
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


def score_prior(name: str, data: str, out: Path) -> dict[str, dict]:
    """The verdicts on a prior's `samples`, with its bits a slice where it has any, and on the `volumes` it draws."""
    options = "--samples", SAMPLES, "--volumes", VOLUMES.get(name, 0), *FAST
    metrics = predict(DEFAULT, data, out, "--prior", PRETRAINED / PRIORS[name].file, *options)
    if "judge" not in metrics:
        raise InputError(f"samples can't be judged: {data} isn't the data set that {DEFAULT} was trained on")
    verdicts = {"samples": metrics["judge"] | {"epoch": metrics["settings"]["prior"]["epoch"]}}
    del verdicts["samples"]["memorisation"]["closest"]
    if "entropy_coded_bytes" in metrics:
        verdicts["samples"]["entropy_coded_bits"] = 8 * metrics["entropy_coded_bytes"]
    if "volume_judge" in metrics:
        verdicts["volumes"] = metrics["volume_judge"]
        del verdicts["volumes"]["curves"]
    return verdicts


def measure(settings: ReadmeSettings, work: Path, results: dict) -> None:
    """Puts all numbers in `results`, where those of a checkpoint that isn't there stay."""
    data, checkpoints = settings.data, []
    (work / "checkpoints").mkdir()
    for name, one in AUTOENCODERS.items():
        if not (path := find(name, settings)):
            print(f"neither in {PRETRAINED} nor in {settings.runs}, so the numbers stay: {name}")
            continue
        results["autoencoders"][name] = score_autoencoder(path, data, work / name, one.codes)
        if not one.codes:  # codecs.py names a checkpoint by its folder, and looks for a prior there
            (folder := work / "checkpoints" / name).symlink_to(path.parent.resolve())
            checkpoints.append(folder / "vqvae.pth")
    for name in PRIORS:
        verdicts = score_prior(name, data, work / name)
        results["priors"][name] = verdicts["samples"]
        results["volumes"] = verdicts.get("volumes", results["volumes"])

    call("benchmarks/painter.py", DEFAULT, data, "--out", work / "painter.json")
    results["painter"] = json.loads((work / "painter.json").read_text())
    options = "--checkpoints", *checkpoints, "--bytes", *BYTES
    call("benchmarks/codecs.py", "--data", data, "--out", work / "codecs", *options)
    results["codecs"] = json.loads((work / "codecs/codecs.json").read_text())["rows"]
    asked = settings.runs / "covariates"  # the brains are kept for the next time
    call("benchmarks/covariates.py", DEFAULT, data, *FAST, "--out", asked)
    results["covariates"] = json.loads((asked / "covariates.json").read_text())
    shutil.copy(asked / "asked.png", RESOURCES)
    published = ["--published", settings.published] if settings.published else []
    call("benchmarks/others.py", DEFAULT, "--data", data, "--out", work / "others.json", *published)
    rows = results["others"] + json.loads((work / "others.json").read_text())["rows"]
    results["others"] = list({row["name"]: row for row in rows}.values())
    results["machine"] = f"{platform.machine()}, {compute.choose('auto').describe()}, PyTorch {torch.__version__}"


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
    rows = []
    for name, one in AUTOENCODERS.items():
        row = results["autoencoders"][name]
        ssim = f"{row['ssim']['mean']:.4f} ({row['ssim']['min']:.4f})"
        means = [f"{row[key]['mean']:.4f}" for key in ("gaussian_ssim", "foreground_ssim")]
        used = f"{row['codes_used']:,} of {row['codes']:,}"
        how = f"`{one.training}`" if one.training else "defaults, in parts: see the model card"
        rest = [f"{row['psnr']['mean']:.2f} dB", used, f"{row['parameters']:,}", how]
        rows.append([one.label, *sizes(results, name), ssim, *means, *rest])
    return markdown([*heads, "codes used", "weights", "`train.py`"], rows)


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


def of_priors(results: dict, part: str) -> dict[str, dict]:
    """A part of the verdict on each prior, by the prior's label."""
    return {one.label: results["priors"][name][part] for name, one in PRIORS.items()}


def real_slices(results: dict, part: str) -> dict:
    """A part of any prior's verdict: what it says of real slices is the same in all."""
    return results["priors"]["transformer"][part]


def prior_table(results: dict, space: str) -> str:
    keys = ("frechet", "frechet_held_out", "precision", "recall", "density", "coverage")
    lines = {"real slices (floor)": real_slices(results, "floor")} | of_priors(results, "fidelity")
    rows = [[label, *(f"{found[space][key]:.3f}" for key in keys)] for label, found in lines.items()]
    return markdown(["", "Frechet", "Frechet, held out", *keys[2:]], rows)


def copies_table(results: dict) -> str:
    """How near samples are to training slices."""

    def shares(near: dict, suffix: str = "") -> list[str]:
        found = [near[f"share{suffix}"], near["mirrored"][f"share{suffix}"], near[f"one_person{suffix}"]]
        return [f"{share:.1%}" for share in (*found, near["codes"][f"median{suffix}"])]

    rows = [["real slices", *shares(real_slices(results, "memorisation"), "_held_out"), "", "", ""]]
    for name, one in PRIORS.items():
        near, epoch = (results["priors"][name][part] for part in ("memorisation", "epoch"))
        copying = [f"{each['data_copying']:.2f}" for each in (near, near["codes"])]
        rows.append([one.label, *shares(near), *copying, f"{epoch} of {one.epochs}"])
    heads = ["", "nearer to a training slice than 99 % of held-out slices are", "to a mirrored one"]
    heads += ["nearest five of one person", "median share of codes in common", "C_T by SSIM", "by codes"]
    return markdown([*heads, "epoch chosen"], rows)


def two_sample_table(results: dict) -> str:
    """Areas under the ROC curve of networks that tell samples from real slices."""
    kinds = {"real people, from others": "real", "people never trained on": "held_out"}
    real = real_slices(results, "two_sample")
    rows = {label: [test[kind] for test in real.values()] for label, kind in kinds.items()}
    for label, tests in of_priors(results, "two_sample").items():
        rows[label] = [test["samples"] for test in tests.values()]
    cells = [
        [label, *("{mean:.3f} ({min:.3f} to {max:.3f})".format(**test) for test in row)] for label, row in rows.items()
    ]
    return markdown(["", *(f"{size} size" for size in real)], cells)


def tissue_table(results: dict) -> str:
    """Samples' tissues beside training slices': Cohen's d and ratio of the spreads."""
    real = real_slices(results, "tissue")
    rows = {"half of the people, from the others": real["floor"], "held-out people": real["held_out"]}
    rows |= {label: found["samples"] for label, found in of_priors(results, "tissue").items()}
    return markdown(["", *tissue.FIGURES], [[label, *tissue.cells(found)] for label, found in rows.items()])


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
    bits, codes = results["priors"]["transformer"]["entropy_coded_bits"], results["autoencoders"]["rqvae"]
    plain, order_0 = 8 * codes["bytes"], codes["order_0_bits"]
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
        if name != "vqvae2":
            means = [f"{results['autoencoders'][name][key]['mean']:.4f}" for key in ("ssim", "foreground_ssim")]
            rows.append([one.label, *sizes(results, name), *means])
    return markdown(["model", "bytes a slice", "in files", "SSIM", "foreground SSIM"], rows)


def samples_in_brief(results: dict) -> str:
    """Samples, for the README: the distance in each space, and what the classifier makes of them."""
    spaces = ("pca", "randconv", "folds")
    found = {"real slices": (real_slices(results, "floor"), real_slices(results, "two_sample")["half"]["real"])}
    tests = of_priors(results, "two_sample")
    found |= {label: (by, tests[label]["half"]["samples"]) for label, by in of_priors(results, "fidelity").items()}
    rows = [
        [label, *(f"{by[space]['frechet']:.3f}" for space in spaces), f"{test['mean']:.3f}"]
        for label, (by, test) in found.items()
    ]
    return markdown(["", *spaces, "AUC"], rows)


BLOCKS = {
    "headline": headline,
    "brief": brief_table,
    "samples in brief": samples_in_brief,
    "reconstruction": reconstruction_table,
    "codecs": codec_table,
    **{f"priors, {space}": partial(prior_table, space=space) for space in ("pca", "randconv", "folds")},
    "copies": copies_table,
    "two-sample test": two_sample_table,
    "tissue": tissue_table,
    "bits": bits_sentence,
    "painter": lambda results: painter.painter_table(results["painter"]),
    "known by heart": lambda results: painter.known_by_heart(results["painter"]),
    "volumes": volume_table,
    "volume copies": volume_copies,
    "others": lambda results: others.others_table(results["others"]),
    "asked": lambda results: covariates.asked_table(results["covariates"]["asked"]),
    "ratings": lambda results: covariates.rating_table(results["covariates"]["ratings"]),
    "learning": lambda results: covariates.learning_table(results["covariates"]["learning"]),
}


def filled(page: str, results: dict) -> str:
    """A page with each `<!-- results: NAME -->` ... `<!-- end -->` holding what BLOCKS says."""
    return re.sub(
        r"(<!-- results: (.+?) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}{BLOCKS[match[2]](results)}\n{match[3]}",
        page,
        flags=re.DOTALL,
    )


# ----------------------------------------------------------------------------------------------------
# The command line


@exit_on_input_error
def main() -> int:
    settings = cli.parse(ReadmeSettings, __doc__)
    stored = RESOURCES / "results.json"
    results = json.loads(stored.read_text())
    if settings.data:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            measure(settings, work, results)
            for (model, figure), name in FIGURES.items():
                shutil.copyfile(work / model / figure, RESOURCES / name)
        with atomic(stored) as file:
            file.write(json.dumps(results, indent=1).encode() + b"\n")
    for page in PAGES:
        with atomic(page) as file:
            file.write(filled(page.read_text(encoding="utf-8"), results).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
