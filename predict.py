"""What did it learn? Scores of a split's reconstructions, novel brains, and a verdict on them.

    python predict.py runs/<run>/vqvae.pth                      score the test split, sample 64 brains
    python predict.py runs/<run>/vqvae.pth --samples 1000       sample more, and judge them
    python predict.py runs/<run>/vqvae.pth --slice 12           sample at one axial slice level
    python predict.py runs/<run>/vqvae.pth --input scan.png     reconstruct just these files

Everything goes to predict/ beside the checkpoint (--out), all at once; report.html there shows it.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import dataset
from dataset import DataSet, Slices
from inference.codec import Codec, to_uint8
from inference.loading import load_autoencoder
from inference.sampling import Sampler, find_prior
from modules import Codes
from reading import nifti
from reading.listing import SPLITS
from reading.names import stem
from report import plots
from report.results import Results, replacing
from runtime import compute
from runtime.errors import InputError, Parser, exit_on_input_error, number
from scoring import judge
from scoring.metrics import code_counts, code_usage, reconstruction_scores, summarise
from scoring.scores import SCORES, SSIM_PASS
from training import options

CHUNK = 128  # slices whose reconstructions are in memory as floats at a time
COLUMNS = 6  # slices in a figure of reconstructions
SHOWN = 64  # samples in a figure

# ----------------------------------------------------------------------------------------------------
# Reconstruction


def how_to_cut(settings: argparse.Namespace, trained_on: Mapping) -> dict:
    """Axis and range of the slices of volumes: as the options say, else as in training."""
    return {
        "axis": trained_on["axis"] if settings.axis is None else int(settings.axis),
        "slices": trained_on["slices"] if settings.slices is None else settings.slices,
    }


def load_data(settings: argparse.Namespace, trained_on: Mapping, splits: tuple[str, ...]) -> DataSet:
    """Splits of the data set given, else of the one that the checkpoint was trained on.

    Raises InputError when it isn't there, or its pictures aren't of the size that the autoencoder takes.
    """
    cut = how_to_cut(settings, trained_on)
    if settings.input:
        files = dataset.read_files(settings.input, **cut)
        names = list(dict.fromkeys(path.name for path in files.paths))
        title = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} other files"
        data = DataSet(title, settings.input[0].parent, False, dict.fromkeys(splits, files), "")
    else:
        root = settings.data or trained_on["root"]
        if not settings.data and not Path(root).is_dir():
            if not trained_on["synthetic"]:
                raise InputError(f"{root}, which this checkpoint was trained on, isn't here: give --data")
            root = "demo"
        data = dataset.load(root, splits, settings.allow_overlap, **cut)
    height, width = data.splits[splits[0]].images.shape[1:]
    if [height, width] != trained_on["size"]:
        expected = "x".join(map(str, trained_on["size"]))
        raise InputError(f"{data.title} has slices of {height}x{width}, this checkpoint takes {expected}: train on it")
    return data


def reconstruct(results: Results, codec: Codec, slices: Slices) -> tuple[Codes, np.ndarray, list[dict]]:
    """Code grids [N, h, w], reconstructions uint8 [N, H, W], and for each slice its name and scores."""
    codes, pictures, scores, beyond = [], np.empty_like(slices.images), [], 0
    with tqdm(total=len(slices), desc="reconstructing", unit=" slices", disable=None) as bar:
        for start in range(0, len(slices), CHUNK):
            images = slices.images[start : start + CHUNK]
            codes.append(codec.encode(images))
            decoded = codec.decode(codes[-1])
            pictures[start : start + CHUNK] = to_uint8(decoded)
            scores.append(reconstruction_scores(images, decoded))
            filled, kept = (np.count_nonzero(part, axis=(1, 2)) for part in (images, codec.box.crop(images)))
            beyond += int((filled > kept).sum())
            bar.update(len(images))
    if beyond:
        box = f"{codec.box.height}x{codec.box.width}"
        results.note(f"{beyond} slices reach beyond the {box} pixels that held the training slices, and are cut there")
    codes = [torch.cat(grids) for grids in zip(*codes, strict=True)]
    scores = {name: np.concatenate([part[name] for part in scores]) for name in SCORES}
    usage = [
        {"grid": "x".join(map(str, grid.shape[1:]))} | one
        for grid, one in zip(codes, code_usage(codes, codec.autoencoder.codebook_sizes), strict=True)
    ]
    results.metrics |= summarise(scores) | {"bytes_per_image": codec.bytes_per_image(), "codes": usage}
    rows = [dict(zip(scores, row, strict=True)) for row in np.stack(list(scores.values()), axis=1).tolist()]
    return codes, pictures, [{"name": name} | row for name, row in zip(slices.names, rows, strict=True)]


def score_table(metrics: Mapping) -> str:
    """The scores for the terminal."""
    columns = ("mean", "std", "min", "max")
    lines = [f"{metrics['images']:,} slices".ljust(17) + "".join(f"{column:>9}" for column in columns)]
    for key, score in SCORES.items():
        cells = (score.text(metrics[key][column]) for column in columns)
        lines.append(f"{score.heading:17}" + "".join(f"{cell:>9}" for cell in cells))
    ssim = metrics["ssim"]
    lines.append(f"SSIM of {SSIM_PASS} or more: {ssim['passed']:,} slices, {ssim['passed_share']:.1%}")
    coded = f", {metrics['entropy_coded_bytes']:,.0f} entropy-coded" if "entropy_coded_bytes" in metrics else ""
    grids = [f"{one['grid']} codes, {one['codes_used']} of {one['codebook_size']} used" for one in metrics["codes"]]
    return "\n".join([*lines, f"{metrics['bytes_per_image']:,.0f} bytes an image{coded}: {'; '.join(grids)}"])


def draw_reconstructions(
    results: Results, codec: Codec, slices: Slices, codes: Codes, pictures: np.ndarray, rows: list[dict]
) -> None:
    """Distribution of the SSIM, worst and best slices, map of the median one's codes, use of the codes."""
    title = results.title
    ranked = sorted(range(len(rows)), key=lambda i: rows[i]["ssim"])
    results.draw("ssim_distribution", plots.ssim_distribution, [row["ssim"] for row in rows], title=title)
    for name, chosen in (("worst", ranked[:COLUMNS]), ("best", ranked[: -COLUMNS - 1 : -1])):
        labels = [f"{rows[i]['name']} SSIM {rows[i]['ssim']:.4f}" for i in chosen]
        which = f"{title}, {'lowest' if name == 'worst' else 'highest'} SSIM first"
        results.draw(name, plots.reconstructions, slices.images[chosen], pictures[chosen], labels, title=which)
    median = ranked[len(ranked) // 2]
    grids = [grid[median].cpu().numpy() for grid in codes]
    image, decoded = (codec.box.crop(images[median]) for images in (slices.images, pictures))
    which = f"{title}, {rows[median]['name']}, the {codec.box.height}x{codec.box.width} pixels that are coded"
    results.draw("code_map", plots.code_map, image, grids, decoded, title=which)
    sizes = codec.autoencoder.codebook_sizes
    counts = [code_counts(grid, size).cpu().numpy() for grid, size in zip(codes, sizes, strict=True)]
    results.draw("code_usage", plots.code_usage, counts, title=title)


def save_reconstructions(
    results: Results,
    settings: argparse.Namespace,
    trained_on: Mapping,
    codec: Codec,
    slices: Slices,
    codes: Codes,
    pictures: np.ndarray,
) -> None:
    """As NIfTI files, in the originals' place and intensities (--save-nifti), or as PNG (of --input alone)."""
    if settings.save_nifti:
        if slices.ranges is None:
            raise InputError("--save-nifti: these are pictures, not NIfTI files; leave it out")
        cut = how_to_cut(settings, trained_on)
        folder = results.folder / "reconstructions"
        nifti.write_all(folder, slices.paths, codec.decode(codes), slices.ranges, **cut)
    elif settings.input:
        files = [f"{Path(stem(name)).stem}.png" for name in slices.names]
        if doubled := sorted({file for file in files if files.count(file) > 1}):
            raise InputError(f"several reconstructions would be called {doubled[0]}: give one of them at a time")
        results.save_pictures("reconstructions", pictures, files, f"{results.title}, reconstruction")


# ----------------------------------------------------------------------------------------------------
# Samples


def find_sampler(settings: argparse.Namespace, codec: Codec) -> Sampler | None:
    """The prior asked for, or else the one beside the checkpoint, if any.

    Raises InputError when the options ask for samples that it can't make.
    """
    path = Path(settings.prior) if settings.prior else find_prior(settings.checkpoint.parent)
    if settings.input or settings.samples == 0 or settings.prior == "none" or path is None:
        for name in ("slice", "temperature", "features", "ceiling"):
            if getattr(settings, name) is not None:
                raise InputError(f"--{name} is about samples: give a --prior, and neither --input nor --samples 0")
        return None
    sampler = Sampler(path, codec)
    sampler.check(settings.slice, settings.temperature)
    for name in ("features", "ceiling"):
        if getattr(settings, name) and (settings.samples < judge.MIN_SAMPLES or settings.slice is not None):
            raise InputError(f"--{name}: only {judge.MIN_SAMPLES} samples or more, of all levels, are judged")
    return sampler


def sample(results: Results, settings: argparse.Namespace, sampler: Sampler, about: Mapping, slices: Slices) -> None:
    """Draw samples, keep them, show them beside the slices that were scored, and judge them if there are enough."""
    seeds = range(settings.seed, settings.seed + settings.samples)
    codes = sampler.draw(seeds, settings.slice, settings.temperature)
    pictures = to_uint8(sampler.codec.decode(codes))
    level = "" if settings.slice is None else f", slice level {settings.slice}"
    source = f"{sampler.name} trained on {about['data']['title']}{level}"
    results.metrics["samples"] = {"number": len(seeds), "first_seed": seeds[0], "source": source}
    results.save_pictures("samples", pictures, [f"seed_{seed:05d}.png" for seed in seeds], source)

    shown = pictures[:SHOWN]
    which = f"{source}, seeds {seeds[0]} to {seeds[len(shown) - 1]}"
    results.draw("sample_grid", plots.sample_grid, shown, title=which)
    at_level = np.flatnonzero(slices.levels == settings.slice)
    candidates = at_level if len(at_level) else np.arange(len(slices))
    n = min(len(shown), len(candidates))
    real = slices.images[candidates[np.linspace(0, len(candidates) - 1, n).round().astype(int)]]
    results.draw("samples_beside_real", plots.samples_beside_real, shown[:n], real, title=f"{which}; {results.title}")
    if len(seeds) > 1:
        steps = sampler.codec.decode(sampler.walk((seeds[0], seeds[1]), settings.slice))
        which = f"{source}, from seed {seeds[0]} to seed {seeds[1]}"
        results.draw("walk", plots.walk_gif, steps, title=which)
    print(f"{len(seeds):,} samples of the {source}")
    if data := data_to_judge_with(results, settings, about["data"]):
        judge_samples(results, settings, data, sampler.codec, codes, pictures)


def data_to_judge_with(results: Results, settings: argparse.Namespace, trained_on: Mapping) -> DataSet | None:
    """The training slices and those that were scored, or None, with a note, where samples aren't to be judged."""
    if settings.split == "train":
        results.note("samples are judged beside people held out from training: use another --split")
    elif settings.slice is not None:
        results.note("samples of one slice level are not judged: leave out --slice")
    elif settings.samples < judge.MIN_SAMPLES:
        results.note(f"{settings.samples} samples are too few to judge: give --samples 1000")
    else:
        data = load_data(settings, trained_on, ("train", settings.split))
        if data.fingerprint == trained_on["fingerprint"]:
            return data
        results.note("the samples are not judged: that takes the data set that the model was trained on")
    return None


def judge_samples(
    results: Results, settings: argparse.Namespace, data: DataSet, codec: Codec, codes: Codes, pictures: np.ndarray
) -> None:
    """The judge's verdict on the samples beside what real slices get: table, numbers and figures."""
    train, held_out = data.splits["train"], data.splits[settings.split]
    print(f"judging them beside {len(train):,} training and {len(held_out):,} {settings.split} slices, a few minutes")
    features = (*judge.SPACES, *([settings.features] if settings.features else []))
    judged = judge.Judge(train, held_out, features=features, device=codec.on.device)
    near = judged.nearest(pictures)
    verdict = judged.score(pictures, near)
    sizes = codec.autoencoder.codebook_sizes
    verdict["code_histogram_distance"] = [
        judge.code_histogram_distance(sampled, real, size)
        for sampled, real, size in zip(codes, codec.encode(train.images), sizes, strict=True)
    ]
    if settings.ceiling:
        other = Sampler(settings.ceiling, codec).draw(range(settings.seed, settings.seed + settings.samples))
        verdict["ceiling"] = judged.fidelity(to_uint8(codec.decode(other)))
    results.metrics["judge"] = verdict
    distances = ", ".join(f"{distance:.3f}" for distance in verdict["code_histogram_distance"])
    print(f"{judge.table(verdict)}\ncode histograms of samples and training slices, total variation: {distances}")

    title = f"{results.metrics['samples']['source']}, beside {data.title}"
    results.draw("memorisation", plots.memorisation, near.ssim, judged.held_out_nearest.ssim, title=title)
    closest = verdict["memorisation"]["closest"]
    columns = {key: [one[key] for one in closest] for key in closest[0]}
    pairs = pictures[columns["sample"]], train.images[columns["train_index"]]
    labels = columns["ssim"], columns["train_name"]
    results.draw("nearest_training", plots.nearest_training, *pairs, *labels, title=title)


# ----------------------------------------------------------------------------------------------------
# The command line


def parse() -> argparse.Namespace:
    """All options; --out and --split are settled here where they depend on others."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="vqvae.pth of a run; it knows its model and its data")
    group = parser.add_argument_group("what to reconstruct")
    group.add_argument("--data", metavar="DIR", help="data set, or 'demo' (default: the checkpoint's own)")
    group.add_argument("--split", choices=SPLITS, default="test", help="(default: test)")
    group.add_argument("--input", type=Path, nargs="+", metavar="FILE", help="just these pictures or NIfTI files")
    group.add_argument("--axis", choices=("0", "1", "2"), help="how volumes are cut (default: as in training)")
    group.add_argument("--slices", metavar="START:STOP", help="of volumes, those to take (default: as in training)")
    group.add_argument("--allow-overlap", action="store_true", help="go on when a person is in two splits")
    group.add_argument("--save-nifti", action="store_true", help="write reconstructions as NIfTI, as the input's were")
    group = parser.add_argument_group("what to sample")
    group.add_argument(
        "--prior", metavar="PATH", help="prior's .pth, or 'none' (default: the DCGAN beside, else the PixelCNN)"
    )
    group.add_argument("--samples", type=number(int, 0), default=64, metavar="N", help="how many (default: 64)")
    group.add_argument("--seed", type=number(int, 0, 2**31), default=0, metavar="X", help="of the first (default: 0)")
    group.add_argument("--slice", type=number(int, 0), metavar="S", help="axial slice level (default: any)")
    group.add_argument("--temperature", type=number(float, 0.01), metavar="X", help="of a PixelCNN (default: 1)")
    group.add_argument(
        "--ceiling", type=Path, metavar="PATH", help="another prior's .pth, the report's GAN say, to judge beside it"
    )
    group.add_argument("--features", choices=("inception",), help="judge in this feature space, too")
    group = parser.add_argument_group("how")
    group.add_argument("--out", type=Path, metavar="DIR", help="folder (default: predict/ beside the checkpoint)")
    group.add_argument(
        "--device", choices=compute.DEVICES, default="auto", help="(default: auto, CUDA if there is any)"
    )
    group.add_argument(
        "--precision", choices=compute.PRECISIONS, default="fp32", help="(default: fp32, for exact scores)"
    )
    settings = parser.parse_args()
    if settings.input and settings.data:
        raise InputError("give --data or --input, not both")
    folder = "predict_input" if settings.input else "predict"
    settings.out = settings.out or settings.checkpoint.parent / folder
    return settings


def describe(settings: argparse.Namespace, about: Mapping, sampler: Sampler | None) -> dict:
    """Everything that made the results, for metrics.json and the report."""
    model = {key: about[key] for key in ("model", "epoch", "validation_ssim")}
    made = {"prediction": options.plain(settings), "checkpoint": model, "trained_on": about["data"]}
    if settings.input:
        made["prediction"]["input"] = [str(path) for path in settings.input]
    if sampler:
        made["prior"] = {"file": str(sampler.path), "model": sampler.name, "epoch": sampler.about["epoch"]}
    return made


@exit_on_input_error
def main() -> int:
    settings = parse()
    on = compute.choose(settings.device, settings.precision)
    torch.backends.cudnn.allow_tf32 = settings.precision != "fp32"  # scores are the same on every device
    autoencoder, about = load_autoencoder(settings.checkpoint)
    codec = Codec(autoencoder, about["data"], on)
    sampler = find_sampler(settings, codec)
    with replacing(settings.out) as folder:
        data = load_data(settings, about["data"], (settings.split,))
        slices = data.splits[settings.split]
        results = Results(folder, data.title if settings.input else f"{data.title}, {settings.split} split")
        results.metrics["synthetic"] = data.synthetic
        print(f"{results.title}: {len(slices):,} slices, {on.describe()}")
        if not settings.input and data.fingerprint != about["data"]["fingerprint"]:
            results.note(f"not the data set that the model was trained on, which was {about['data']['title']}")

        codes, pictures, rows = reconstruct(results, codec, slices)
        if sampler and not sampler.is_gan:
            results.metrics["entropy_coded_bytes"] = sampler.bits(codes, torch.from_numpy(slices.levels)) / 8
        print(score_table(results.metrics))
        draw_reconstructions(results, codec, slices, codes, pictures, rows)
        save_reconstructions(results, settings, about["data"], codec, slices, codes, pictures)
        if sampler:
            sample(results, settings, sampler, about, slices)
        elif not settings.input and settings.samples and settings.prior != "none":
            results.note("no prior beside the checkpoint, so nothing is sampled; give one with --prior")
        made = describe(settings, about, sampler)
        results.write(rows, (slices.images, pictures), made, settings.checkpoint.parent)
    print(f"report: {settings.out / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
