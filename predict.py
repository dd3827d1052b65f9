"""What did it learn? Scores of a split's reconstructions, novel brains, and a verdict on them.

    python predict.py runs/<run>/vqvae.pth                      score the test split, sample 64 brains
    python predict.py runs/<run>/vqvae.pth --samples 1000       sample more, and judge them
    python predict.py runs/<run>/vqvae.pth --slice 12           sample at one axial slice level
    python predict.py runs/<run>/vqvae.pth --volumes 4          draw whole brains, too: all levels of one person
    python predict.py runs/<run>/vqvae.pth --input scan.png     reconstruct just these files

Everything goes to predict/ beside the checkpoint (--out), all at once; report.html there shows it.
"""

import sys

from inference.settings import PredictSettings, check_files
from runtime import cli

if __name__ == "__main__":  # a command line that can't be right is refused before the imports below take their seconds
    cli.refuse_early(PredictSettings, __doc__, check_files)

from functools import partial
from pathlib import Path

import numpy as np
import torch

import dataset
from dataset import DataSet, Slices
from inference.codec import MARGIN, to_uint8
from inference.depths import draw_codes
from inference.model import TrainedModel
from inference.reconstruction import Reconstruction, reconstruct
from inference.sampling import Sampler
from inference.settings import NO_VOLUMES
from inference.volumes import VolumeSampler, write_volume
from reading import images, nifti
from reading.names import stem
from report import plots
from report.results import Results, replacing
from runtime.errors import InputError, exit_on_input_error, visible
from runtime.signals import StopSignals
from runtime.wording import counted
from scoring import judge
from scoring import volumes as volume_judge
from scoring.enough import MIN_SAMPLES
from scoring.metrics import code_counts, code_usage, summarise
from scoring.scores import score_table

COLUMNS = 6  # slices in a figure of reconstructions
SHOWN = 32  # samples in a figure
VOLUMES_SHOWN = 4  # whole brains in a figure
VOLUMES_JUDGED = 16  # at least

# ----------------------------------------------------------------------------------------------------
# What it needs


def open_model(settings: PredictSettings) -> tuple[TrainedModel, Sampler | None]:
    """The model, with the prior asked for, or else the one beside it, if any; and the prior of --ceiling.

    Raises InputError when the options ask for samples that can't be made.
    """
    sampled = (settings.samples or settings.volumes) and not settings.input
    prior = settings.prior if sampled else "none"
    model = TrainedModel.load(settings.checkpoint, prior, settings.device, settings.precision)
    if settings.codes and settings.codes > (depth := model.codec.autoencoder.depth):
        raise InputError(f"--codes {settings.codes}: {settings.checkpoint} has {depth} per position")
    if model.sampler is None:
        if settings.samples_only:
            raise InputError(f"--samples-only: there is no prior beside {settings.checkpoint}; give one with --prior")
        if settings.volumes:
            raise InputError(f"--volumes: there is no prior beside {settings.checkpoint}; give one with --prior")
        for name in ("slice", "temperature", "nucleus", "features", "ceiling"):
            if getattr(settings, name) is not None:
                raise InputError(f"--{name} is about samples: give a --prior, and neither --input nor --samples 0")
        return model, None
    model.sampler.check(settings.slice, settings.temperature, settings.nucleus)
    if settings.volumes:
        VolumeSampler(model.sampler)
    for name in ("features", "ceiling"):
        if getattr(settings, name) and (settings.samples < MIN_SAMPLES or settings.slice is not None):
            raise InputError(f"--{name}: only {MIN_SAMPLES} samples or more, of all levels, are judged")
    return model, Sampler(settings.ceiling, model.codec) if settings.ceiling else None


def load_data(settings: PredictSettings, model: TrainedModel, splits: tuple[str, ...]) -> DataSet:
    """Splits of the data set given, else of the one that the checkpoint was trained on; or the files of --input.

    Raises InputError when it isn't there or can't be read.
    """
    trained_on, cut = model.description["data"], model.cut(settings.axis, settings.slices)
    if settings.input:
        files = dataset.read_files(settings.input, **cut, spacing=settings.spacing)
        names = list(dict.fromkeys(visible(path.name) for path in files.paths))
        title = names[0] if len(names) == 1 else f"{names[0]} and {counted(len(names) - 1, 'other file')}"
        data = DataSet(title, settings.input[0].parent, False, dict.fromkeys(splits, files), "")
    else:
        root = settings.data or trained_on["root"]
        if not settings.data and not Path(root).is_dir():
            if not trained_on["synthetic"]:
                raise InputError(f"{root}, which this checkpoint was trained on, isn't here: give --data")
            root = "demo"
        data = dataset.load(root, splits, settings.allow_overlap, **cut)
    return data


# ----------------------------------------------------------------------------------------------------
# Reconstructions


def score(
    results: Results, settings: PredictSettings, model: TrainedModel, slices: Slices, made: Reconstruction
) -> list[dict]:
    """Put the scores into the results; returns each slice's name and scores."""
    results.metrics |= summarise(made.scores) | {"bytes_per_image": made.bytes_per_image}
    counted = zip(made.flat_codes(), model.codec.autoencoder.codebook_sizes, strict=False)
    usage = zip(made.grid_sizes(), (code_usage([codes], [size])[0] for codes, size in counted), strict=True)
    results.metrics["codes"] = [{"grid": grid} | one for grid, one in usage]
    # Of fewer codes nothing is told by the SSIM of all of them.
    if not settings.codes and len(unlike := made.unlike(model.description["validation_ssim"])):
        some = ", ".join(slices.names[i] for i in unlike[:3])
        more = f" and {len(unlike) - 3} more" if len(unlike) > 3 else ""
        results.note(f"{some}{more}: reconstructed far worse than any like the training slices; is this a brain?")
    columns = np.stack(list(made.scores.values()), axis=1).tolist()
    rows = [dict(zip(made.scores, row, strict=True)) for row in columns]
    return [{"name": name} | row for name, row in zip(slices.names, rows, strict=True)]


def entropy_coded_bytes(model: TrainedModel, made: Reconstruction, slices: Slices) -> float:
    """Mean bytes of a slice's codes after an entropy coder that has the prior."""
    bits = [
        len(rows)
        * model.sampler.bits([torch.from_numpy(grid) for grid in codes], torch.from_numpy(slices.levels[rows]))
        for rows, codes in made.groups
    ]
    return sum(bits) / len(slices) / 8


def draw_reconstructions(
    results: Results, model: TrainedModel, slices: Slices, made: Reconstruction, rows: list[dict]
) -> None:
    """Distribution of the SSIM, worst and best slices, map of the median one's codes, use of the codes."""
    title = results.title
    ranked = sorted(range(len(rows)), key=lambda i: rows[i]["ssim"])
    results.draw("ssim_distribution", plots.ssim_distribution, [row["ssim"] for row in rows], title=title)
    for name, chosen in (("worst", ranked[:COLUMNS]), ("best", ranked[: -COLUMNS - 1 : -1])):
        labels = [f"{rows[i]['name']} SSIM {rows[i]['ssim']:.4f}" for i in chosen]
        which = f"{title}, {'lowest' if name == 'worst' else 'highest'} SSIM first"
        window = model.codec.window(slices.images[chosen])
        pictures = window.crop(slices.images[chosen]), window.crop(made.pictures[chosen])
        results.draw(name, plots.reconstructions, *pictures, labels, title=which)
    median = ranked[len(ranked) // 2]
    which = f"{title}, {rows[median]['name']}, the one of median SSIM"
    draw = partial(draw_codes, kept=len(made.groups[0][1]), frame=slices.frames and slices.frames[median])
    results.draw("code_map", draw, model.codec, slices.images[median], title=which)
    sizes = model.codec.autoencoder.codebook_sizes
    counts = [code_counts(grid, size).numpy() for grid, size in zip(made.flat_codes(), sizes, strict=False)]
    results.draw("code_usage", plots.code_usage, counts, title=title)


def files_to_save(settings: PredictSettings, slices: Slices) -> list[str]:
    """Names of the PNG files that show the reconstructions of --input; none where these become NIfTI files.

    Raises InputError when they can't be saved as the options say.
    """
    if settings.save_nifti and slices.ranges is None:
        raise InputError(NO_VOLUMES)
    if settings.save_nifti or not settings.input:
        return []
    files = [f"{Path(stem(name)).stem}.png" for name in slices.names]
    if doubled := sorted({file for file in files if files.count(file) > 1}):
        raise InputError(f"several reconstructions would be called {doubled[0]}: give one of them at a time")
    return files


# ----------------------------------------------------------------------------------------------------
# Samples


def sample(
    results: Results, settings: PredictSettings, model: TrainedModel, ceiling: Sampler | None, slices: Slices | None
) -> None:
    """Draw samples, keep them, show them beside the slices that were scored, and judge them if there are enough."""
    seeds = range(settings.seed, settings.seed + settings.samples)
    codes = model.sample_codes(seeds, settings.slice, settings.temperature, settings.nucleus)
    pictures = to_uint8(model.codec.paint(codes, seeds))
    level = "" if settings.slice is None else f", slice level {settings.slice}"
    source = f"{model.sampler.title} trained on {model.description['data']['title']}{level}"
    results.metrics["samples"] = {"number": len(seeds), "first_seed": seeds[0], "source": source}
    results.save_pictures("samples", pictures, [f"seed_{seed:05d}.png" for seed in seeds], source)

    draw_samples(results, settings, model, slices, pictures, source)
    if len(seeds) > 1:
        which = f"{source}, from seed {seeds[0]} to seed {seeds[1]}"
        walk = to_uint8(model.walk(seeds[:2], settings.slice))
        results.draw("walk", plots.walk_gif, model.codec.window(walk).crop(walk), title=which)
    print(f"{counted(len(seeds), 'sample')} of the {source}")
    if data := data_to_judge_with(results, settings, model):
        judge_samples(results, settings, data, model, ceiling, codes, pictures)


def draw_samples(
    results: Results,
    settings: PredictSettings,
    model: TrainedModel,
    slices: Slices | None,
    pictures: np.ndarray,
    source: str,
) -> None:
    """The first samples, and as many of them as there are slices of their level beside these."""

    def which(n: int) -> str:
        last = settings.seed + n - 1
        return f"{source}, {f'seeds {settings.seed} to {last}' if n > 1 else f'seed {last}'}"

    shown = pictures[:SHOWN]
    window = model.codec.window(shown)
    results.draw("sample_grid", plots.sample_grid, window.crop(shown), title=which(len(shown)))
    if slices is None or slices.images.shape[1:] != pictures.shape[1:]:
        return
    at_level = np.flatnonzero(slices.levels == settings.slice)
    candidates = at_level if len(at_level) else np.arange(len(slices))
    n = min(len(shown), len(candidates))
    others = slices.images[candidates[np.linspace(0, len(candidates) - 1, n).round().astype(int)]]
    window = model.codec.window(np.concatenate([shown[:n], others]))
    draw = partial(plots.samples_beside_real, kind="template slice" if results.metrics["synthetic"] else "real slice")
    beside = f"{which(n)}; {results.title}"
    results.draw("samples_beside_real", draw, window.crop(shown[:n]), window.crop(others), title=beside)
    if n == len(shown):
        del results.figures["sample_grid"]  # the report needn't show them twice


def data_to_judge_with(results: Results, settings: PredictSettings, model: TrainedModel) -> DataSet | None:
    """The training slices and those that were scored, or None, with a note, where samples aren't to be judged."""
    if settings.samples_only:
        results.note("samples alone are not judged: leave out --samples-only")
    elif settings.split == "train":
        results.note("samples are judged beside people held out from training: use another --split")
    elif settings.slice is not None:
        results.note("samples of one slice level are not judged: leave out --slice")
    elif settings.samples < MIN_SAMPLES:
        results.note(f"fewer than {MIN_SAMPLES} samples are too few to judge: give --samples 1000")
    else:
        return data_of_training(results, settings, model, "samples")
    return None


def data_of_training(results: Results, settings: PredictSettings, model: TrainedModel, judged: str) -> DataSet | None:
    """The training slices and those that were scored, or None, with a note, where the model learnt from others."""
    data = load_data(settings, model, ("train", settings.split))
    if data.fingerprint == model.description["data"]["fingerprint"]:
        return data
    results.note(f"the {judged} are not judged: that takes the data set that the model was trained on")
    return None


def judge_samples(
    results: Results,
    settings: PredictSettings,
    data: DataSet,
    model: TrainedModel,
    ceiling: Sampler | None,
    codes: list[np.ndarray],
    pictures: np.ndarray,
) -> None:
    """The judge's verdict on the samples beside what real slices get: table, numbers and figures."""
    train, held_out = data.splits["train"], data.splits[settings.split]
    print(f"judging them beside {len(train):,} training and {counted(len(held_out), f'{settings.split} slice')}")
    features = (*judge.SPACES, *([settings.features] if settings.features else []))
    known = model.codec.encode(train.images)

    def reconstruct(rows: np.ndarray) -> np.ndarray:
        return to_uint8(model.codec.decode(known.with_grids(grid[rows] for grid in known)))

    judged = judge.Judge(train, held_out, features=features, device=model.codec.on.device, reconstruct=reconstruct)
    near = judged.nearest(pictures)
    verdict = judged.score(pictures, near)
    grids = zip(codes, known, model.codec.autoencoder.codebook_sizes, strict=False)
    distances = [judge.code_histogram_distance(torch.from_numpy(a), b.cpu(), size) for a, b, size in grids]
    verdict["code_histogram_distance"] = distances
    if ceiling:
        seeds = range(settings.seed, settings.seed + settings.samples)
        other = ceiling.draw(seeds)
        verdict["ceiling"] = judged.fidelity(to_uint8(model.codec.paint(other, seeds)))
    results.metrics["judge"] = verdict
    listed = ", ".join(f"{distance:.3f}" for distance in distances)
    print(f"{judge.table(verdict)}\ncode histograms of samples and training slices, total variation: {listed}")

    title = f"{results.metrics['samples']['source']}, beside {data.title}"
    results.draw("memorisation", plots.memorisation, near.ssim, judged.held_out_nearest.ssim, title=title)
    closest = verdict["memorisation"]["closest"]
    columns = {key: [one[key] for one in closest] for key in closest[0]}
    pairs = pictures[columns["sample"]], judged.as_seen(columns["train_index"], columns["mirrored"])
    window = model.codec.window(np.concatenate(pairs))
    pairs = [window.crop(pair) for pair in pairs]
    names = ["mirrored " * one["mirrored"] + one["train_name"] for one in closest]
    results.draw("nearest_training", plots.nearest_training, *pairs, columns["ssim"], names, title=title)


# ----------------------------------------------------------------------------------------------------
# Whole brains


def draw_volumes(results: Results, settings: PredictSettings, model: TrainedModel, slices: Slices | None) -> None:
    """Draw brains, keep them as NIfTI, and show them in three planes beside those of the people that were scored."""
    seeds = range(settings.seed, settings.seed + settings.volumes)
    around, level = slice_to_draw_around(settings, model) if settings.around else (None, None)
    volumes = to_uint8(model.sample_volumes(seeds, around, level, settings.temperature, settings.nucleus))
    trained_on = model.description["data"]
    source = f"{model.sampler.title} trained on {trained_on['title']}"
    if settings.around:
        source += f", invented around level {level} of {visible(settings.around.name)}"
    results.metrics["volumes"] = {"number": len(seeds), "first_seed": seeds[0], "levels": volumes.shape[1]}
    results.metrics["volumes"]["source"] = source
    if trained_on["affine"] is None:
        results.note("the training slices don't tell their distance: the NIfTI files of whole brains have 1 mm voxels")
    for seed, volume in zip(seeds, volumes, strict=True):
        path = results.folder / "volumes" / f"seed_{seed:05d}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        write_volume(path, volume, trained_on)

    last = seeds[:VOLUMES_SHOWN][-1]
    which = f"{source}, {f'seeds {seeds[0]} to {last}' if last > seeds[0] else f'seed {last}'}"
    box = model.codec.box.around(MARGIN, model.codec.size)
    shown, axis = box.crop(volumes[:VOLUMES_SHOWN]), trained_on["axis"]
    real = None
    if slices is not None and slices.images.shape[1:] == volumes.shape[2:]:
        try:
            real = box.crop(volume_judge.volumes_of(slices, VolumeSampler(model.sampler).levels).images[: len(shown)])
        except InputError as nobody:
            results.note(f"no real brains beside the drawn ones: {nobody}")
    kind = "template" if results.metrics.get("synthetic") else "real"
    draw = partial(plots.three_planes, others=real, axis=axis, kind=kind)
    results.draw("volumes", draw, shown, title=f"{which}; {results.title}" if real is not None else which)
    results.draw("volume_scroll", plots.walk_gif, shown[0], title=f"{source}, seed {seeds[0]}, level by level")
    print(f"{counted(len(seeds), 'whole brain')} of {volumes.shape[1]} levels each, of the {source}")
    judge_volumes(results, settings, model, volumes)


def judge_volumes(results: Results, settings: PredictSettings, model: TrainedModel, volumes: np.ndarray) -> None:
    """Whether the slices belong together: beside real people's, and beside slices that were each drawn apart."""
    if settings.samples_only or settings.around or settings.split == "train":
        results.note("whole brains are judged when a held-out split is scored, and not around a given slice")
        return
    if settings.volumes < VOLUMES_JUDGED:
        results.note(f"fewer than {VOLUMES_JUDGED} whole brains are too few to judge: give --volumes 32")
        return
    if (data := data_of_training(results, settings, model, "whole brains")) is None:
        return
    drawn = VolumeSampler(model.sampler)
    seeds = range(settings.seed, settings.seed + len(volumes))
    apart = to_uint8(drawn.paint(drawn.draw_apart(seeds), seeds, apart=True))
    judged = volume_judge.VolumeJudge(data.splits["train"], data.splits[settings.split])
    known = np.isin(np.array(drawn.levels), judged.levels)
    verdict = judged.score(volumes[:, known], apart[:, known])
    results.metrics["volume_judge"] = verdict
    print(volume_judge.table(verdict))
    title = f"{results.metrics['volumes']['source']}, beside {data.title}"
    results.draw("volume_curves", plots.volume_curves, verdict, title=title)


def slice_to_draw_around(settings: PredictSettings, model: TrainedModel) -> tuple[np.ndarray, int]:
    """The slice of --around, uint8 [H, W] on the training's canvas, and its level: --slice, or what its name says.

    Raises InputError when it can't be read, or is at no known level.
    """
    found = dataset.read_files([settings.around])
    if len(found) > 1:
        raise InputError(f"--around: {settings.around} has {len(found)} slices: give one")
    level = int(found.levels[0]) if settings.slice is None else settings.slice
    if level < 0:
        raise InputError(f"--around: the name of {settings.around} tells no level: give it with --slice")
    return images.fit(found.images[0][found.frames[0]], model.codec.size), level


def describe(settings: PredictSettings, model: TrainedModel) -> dict:
    """Everything that made the results, for metrics.json and the report."""
    described = model.description
    checkpoint = {key: described[key] for key in ("model", "epoch", "validation_ssim")}
    prediction = settings.model_copy(update={"out": settings.folder}).model_dump(mode="json")
    made = {"prediction": prediction, "checkpoint": checkpoint, "trained_on": described["data"]}
    if prior := model.sampler:
        made["prior"] = {"file": str(prior.path), "model": prior.title, "epoch": prior.description["epoch"]}
    return made


def reconstruct_slices(
    results: Results, settings: PredictSettings, model: TrainedModel, data: DataSet
) -> tuple[list[dict], np.ndarray]:
    """Reconstruct, score and show slices; returns each one's name and scores, and the reconstructions."""
    slices = data.splits[settings.split]
    files = files_to_save(settings, slices)
    print(f"{results.title}: {counted(len(slices), 'slice')}, {model.codec.on.describe()}")
    for note in slices.notes:
        results.note(note)
    trained_on = model.description["data"]
    if not settings.input and data.fingerprint != trained_on["fingerprint"]:
        results.note(f"not the data set that the model was trained on, which was {trained_on['title']}")

    made = reconstruct(model, slices.images, settings.codes, slices.frames)
    rows = score(results, settings, model, slices, made)
    if model.sampler and model.sampler.can_code([codes for _, codes in made.groups]):
        results.metrics["entropy_coded_bytes"] = entropy_coded_bytes(model, made, slices)
    print(score_table(results.metrics))
    draw_reconstructions(results, model, slices, made, rows)
    if settings.save_nifti:
        where, cut = results.folder / "reconstructions", model.cut(settings.axis, settings.slices)
        decoded = np.empty(slices.images.shape, np.float32)
        for indices, codes in made.groups:
            decoded[indices] = model.decode(codes)
        nifti.write_all(where, slices.paths, decoded, slices.ranges, **cut, spacing=settings.spacing)
    elif files:
        own = [picture[frame] for picture, frame in zip(made.pictures, slices.frames, strict=True)]
        results.save_pictures("reconstructions", own, files, f"{results.title}, reconstruction")
    return rows, made.pictures


@exit_on_input_error
@StopSignals()
def main() -> int:
    settings = cli.parse(PredictSettings, __doc__)
    model, ceiling = open_model(settings)
    with replacing(settings.folder) as folder:
        if settings.samples_only:
            data, slices, rows, images = None, None, [], None
            results = Results(folder, f"{settings.checkpoint.name}, samples")
        else:
            data = load_data(settings, model, (settings.split,))
            slices = data.splits[settings.split]
            results = Results(folder, data.title if settings.input else f"{data.title}, {settings.split} split")
            results.metrics["synthetic"] = data.synthetic
            rows, pictures = reconstruct_slices(results, settings, model, data)
            window = model.codec.window(slices.images)
            images = window.crop(slices.images), window.crop(pictures)
        if model.sampler and model.sampler.drawn < model.codec.autoencoder.depth and not model.codec.painter:
            results.note("no painter.pth beside the checkpoint: the plain decoder makes samples, and blurs them")
        if model.sampler and settings.samples:
            sample(results, settings, model, ceiling, slices)
        elif not settings.input and settings.samples and settings.prior != "none":
            results.note("no prior beside the checkpoint, so nothing is sampled; give one with --prior")
        if settings.volumes:
            draw_volumes(results, settings, model, slices)
        results.write(rows, images, describe(settings, model), settings.checkpoint.parent)
    print(f"report: {visible(settings.folder / 'report.html')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
