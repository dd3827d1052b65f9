"""What did it learn? Scores of a split's reconstructions, novel brains, and a verdict on them.

    python predict.py runs/<run>/vqvae.pth                      score the test split, sample 64 slices
    python predict.py runs/<run>/vqvae.pth --samples 1000       sample more, and judge them
    python predict.py runs/<run>/vqvae.pth --slice 12           sample at one axial slice level
    python predict.py runs/<run>/vqvae.pth --volumes 4          sample whole brains, too: all levels of one person
    python predict.py runs/<run>/vqvae.pth --input scan.png     reconstruct just these files; --save-codes compresses
                                                                them, and --input decodes such codes

Everything goes to predict/ beside the checkpoint (--out), all at once; report.html there shows it.
"""

import runtime.environment  # noqa: F401, before PyTorch

# isort: split
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

import dataset
from dataset import DataSet, Slices
from inference.codec import MARGIN, to_uint8
from inference.compression import Coder
from inference.depths import draw_codes
from inference.model import TrainedModel
from inference.reconstruction import Reconstruction, reconstruct
from inference.sampling import Sampler
from inference.settings import NO_VOLUMES, PredictSettings
from inference.volumes import VolumeSampler, write_volume
from reading import images, inputs, nifti
from reading.kinds import CODES
from reading.names import stem
from report import plots
from report.results import Results, replacing
from runtime import cli
from runtime.errors import InputError, exit_on_input_error, visible
from runtime.signals import StopSignals
from runtime.wording import counted
from scoring import judge
from scoring import volumes as volume_judge
from scoring.enough import MIN_SAMPLES
from scoring.metrics import code_counts, code_usage, summarise
from scoring.scores import score_table

COLUMNS = 6  # slices in a figure of reconstructions
MAX_SAMPLES_SHOWN = 32
MAX_VOLUMES_SHOWN = 4
JUDGED = {  # the least number, what to give for it, and options that leave samples of some levels or people only
    "samples": (MIN_SAMPLES, "--samples 1000", ("slice", "where")),
    "whole brains": (16, "--volumes 32", ("around", "where")),
}
SAMPLING_OPTIONS = {"samples_only", "volumes", "slice", "where", "temperature", "nucleus", "ceiling"}


@dataclass
class Context:
    """What every part of a prediction works with."""

    settings: PredictSettings
    model: TrainedModel
    data: DataSet | None  # the split to score, and the training split of the model's own data; None for samples alone
    results: Results

    @property
    def slices(self) -> Slices | None:
        """The slices to score."""
        return self.data and self.data.splits[self.settings.split]

    @property
    def source(self) -> str:
        """The prior and its training data, for figures of samples."""
        asked = "".join(f", {text}" for text in self.settings.where)
        return f"{self.model.sampler.title} trained on {self.model.description['data']['title']}{asked}"


# ----------------------------------------------------------------------------------------------------
# Loading


def load_model(settings: PredictSettings) -> TrainedModel:
    """The model, with the prior asked for, or the one beside it, if samples are wanted.

    Raises InputError when the options don't fit the model.
    """
    prior = settings.prior if (settings.samples or settings.volumes) and not settings.input else "none"
    model = TrainedModel.load(settings.checkpoint, prior, settings.device, settings.precision)
    if settings.codes and settings.codes > (depth := model.codec.autoencoder.depth):
        raise InputError(f"--codes {settings.codes}: {settings.checkpoint} has {depth} per position")
    if model.sampler is None:
        for name in sorted(SAMPLING_OPTIONS & settings.model_fields_set):
            raise InputError(
                f"{cli.flag(name)} is about samples, and there is no prior to sample from: give one with --prior, "
                "and neither --input nor --samples 0"
            )
        return model
    model.sampler.check(settings.slice, settings.temperature, settings.nucleus)
    model.sampler.covariates(settings.asked, 1)
    if settings.volumes:
        VolumeSampler(model.sampler)
    if settings.ceiling and (settings.samples < MIN_SAMPLES or settings.slice is not None or settings.where):
        raise InputError(f"--ceiling: only {MIN_SAMPLES} samples or more, of all levels and people, are judged")
    return model


def load_data(settings: PredictSettings, model: TrainedModel) -> DataSet | None:
    """The split to score, of the data set given or the model's own, or the files of --input; None for samples alone.

    The training split comes with it if these are the model's own data. Raises InputError when there are no such data.
    """
    trained_on, cut = model.description["data"], model.cut(settings.axis, settings.slices, settings.spacing)
    if settings.samples_only:
        return None
    if settings.input:
        files = dataset.read_files(settings.input, cut)
        if settings.spacing and files.ranges is None:
            raise InputError("--spacing is about volumes: these are pictures, whose pixels have no size in mm")
        names = list(dict.fromkeys(visible(path.name) for path in files.paths))
        title = names[0] if len(names) == 1 else f"{names[0]} and {counted(len(names) - 1, 'other file')}"
        return DataSet(title, settings.input[0].parent, False, {settings.split: files}, "")
    root = settings.data or trained_on["root"]
    if not settings.data and not Path(root).is_dir():
        if not trained_on["synthetic"]:
            raise InputError(f"{root}, which this checkpoint was trained on, isn't here: give --data")
        root = "demo"
    person = settings.person or (None if settings.data else trained_on["person"])
    load = partial(dataset.load, root, allow_overlap=settings.allow_overlap, cut=cut, person=person)
    data = load((settings.split,))
    return data if data.fingerprint != trained_on["fingerprint"] else load(dict.fromkeys((settings.split, "train")))


def load_central_slice(settings: PredictSettings, model: TrainedModel) -> tuple[np.ndarray, int] | tuple[None, None]:
    """The slice of --around, uint8 [H, W] on the training's canvas, and its level: --slice, or from the file's name.

    Raises InputError when it can't be read, or its level isn't known.
    """
    if not settings.around:
        return None, None
    found = dataset.read_files([settings.around])
    if len(found) > 1:
        raise InputError(f"--around: {settings.around} has {len(found)} slices: give one")
    level = int(found.levels[0]) if settings.slice is None else settings.slice
    if level < 0:
        raise InputError(f"--around: the name of {settings.around} has no slice level: give it with --slice")
    return images.fit(found.images[0][found.frames[0]], model.codec.size), level


# ----------------------------------------------------------------------------------------------------
# Reconstructions


def reconstruct_slices(context: Context) -> tuple[list[dict], np.ndarray]:
    """Reconstruct, score and show slices; returns each one's name and scores, and the reconstructions."""
    settings, model, results, slices = context.settings, context.model, context.results, context.slices
    if settings.save_nifti and slices.ranges is None:
        raise InputError(NO_VOLUMES)
    files = named(slices.names, ".png") if settings.input and not settings.save_nifti else []
    coder = Coder(model, settings.prior) if settings.save_codes else None
    print(f"{results.title}: {counted(len(slices), 'slice')}, {model.codec.on.describe()}")
    for note in slices.notes:
        results.note(note)
    trained_on = model.description["data"]
    if not settings.input and context.data.fingerprint != trained_on["fingerprint"]:
        results.note(f"not the data set that the model was trained on, which was {trained_on['title']}")

    made = reconstruct(model, slices.images, settings.codes, slices.frames)
    results.metrics |= summarise(made.scores) | {"bytes_per_image": made.bytes_per_image}
    used = code_usage(made.flat_codes(), model.codec.autoencoder.codebook_sizes[: settings.codes])
    results.metrics["codes"] = [{"grid": grid} | one for grid, one in zip(made.grid_sizes(), used, strict=True)]
    if model.sampler and (size := made.entropy_coded_bytes(model.sampler, slices.levels)):
        results.metrics["entropy_coded_bytes"] = size
    if not settings.codes:  # validation was with all codes
        note_outliers(context, made)
    print(score_table(results.metrics))
    columns = {"name": slices.names} | {key: values.tolist() for key, values in made.scores.items()}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    draw_reconstructions(context, made)
    if coder:
        save_codes(context, coder, made)
    if settings.save_nifti:
        decoded = np.empty(slices.images.shape, np.float32)
        for indices, codes in made.groups:
            decoded[indices] = model.decode(codes)
        cut = model.cut(settings.axis, settings.slices, settings.spacing)
        nifti.write_all(results.folder / "reconstructions", slices.paths, decoded, slices.ranges, cut)
    elif files:
        own = [picture[frame] for picture, frame in zip(made.pictures, slices.frames, strict=True)]
        results.save_pictures("reconstructions", own, files, f"{results.title}, reconstruction")
    return rows, made.pictures


def named(sources: list[str], suffix: str) -> list[str]:
    """Names of files to write, after those they come from. Raises InputError when two would be alike."""
    files = [(stem(name) if stem(name) != name else Path(name).stem) + suffix for name in sources]
    if doubled := sorted({file for file in files if files.count(file) > 1}):
        raise InputError(f"several files would be called {doubled[0]}: give one of them at a time")
    return files


def save_codes(context: Context, coder: Coder, made: Reconstruction) -> None:
    """Write a file of codes for each file of --input, and say how large they are."""
    settings, results, slices = context.settings, context.results, context.slices
    names = named([path.name for path in dict.fromkeys(slices.paths)], ".codes")
    cut = context.model.cut(settings.axis, settings.slices, settings.spacing)
    written = coder.write(slices, made, cut)
    (results.folder / "codes").mkdir()
    for name, content in zip(names, written, strict=True):
        (results.folder / "codes" / name).write_bytes(content)
    size = results.metrics["bytes_in_files"] = sum(map(len, written)) / len(slices)
    print(f"{counted(len(names), 'file')} of codes: {size:,.0f} bytes a slice, headers and all")


def files_of_codes(settings: PredictSettings) -> list[Path]:
    """The files of --input if they are codes to decode. Raises InputError when options don't fit that."""
    sources, kinds = inputs.expand(settings.input) if settings.input else ([], set())
    if kinds != {CODES}:
        return []
    for name in ("axis", "slices", "spacing", "save_codes"):
        if name in settings.model_fields_set:
            raise InputError(f"{cli.flag(name)}: codes are decoded as they were written: leave it out")
    return sources


def decode(context: Context, sources: list[Path]) -> None:
    """Decode files of codes, and save the pictures as `reconstruct_slices` does."""
    settings, results = context.settings, context.results
    coder, folder = Coder(context.model, settings.prior), results.folder / "reconstructions"
    for source, name in zip(sources, named([path.name for path in sources], ".nii.gz"), strict=True):
        header, groups = coder.read(source)
        pictures = np.empty((len(header.levels), *groups[0][1].size), np.float32)
        for own, codes in groups:
            pictures[own] = context.model.decode(codes[: settings.codes])
        volume, title = header.volume, f"{source.name}, decoded by {settings.checkpoint.name}"
        if settings.save_nifti and volume is None:
            raise InputError(NO_VOLUMES)
        if settings.save_nifti:
            nifti.put_back(folder / name, volume.image, pictures, volume.span, nifti.Cut(*volume.cut))
            continue
        cut = [(source.name, -1)] if volume is None else nifti.slices_of(volume.image, name, nifti.Cut(*volume.cut))[0]
        files = named([one for one, _ in cut], ".png")
        _, frame = images.placement(header.shape, pictures.shape[1:])
        results.save_pictures("reconstructions", to_uint8(pictures)[:, *frame], files, title)
    print(f"{counted(len(sources), 'file')} of codes decoded")


def note_outliers(context: Context, made: Reconstruction) -> None:
    """A note where slices are reconstructed much worse than slices like the training's are."""
    settings, slices, description = context.settings, context.slices, context.model.description
    names = [slices.names[i] for i in made.outliers(description["validation_ssim"])]
    if not names:
        return
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    note = f"{', '.join(names[:3])}{more}: far worse than slices like the training's: is this a brain?"
    if settings.input and slices.ranges is not None and not settings.spacing:
        affine = np.array(description["data"]["affine"] or np.eye(4))
        spacing = f"{abs(np.linalg.det(affine[:3, :3])) ** (1 / 3):.3g}"
        note += f" If its voxels aren't of {spacing} mm, try --spacing {spacing}"
    context.results.note(note)


def draw_reconstructions(context: Context, made: Reconstruction) -> None:
    """Distribution of the SSIM, worst and best slices, the codes of the median one, use of the codes."""
    results, codec, slices = context.results, context.model.codec, context.slices
    title, ssim = results.title, made.scores["ssim"]
    ranked = np.argsort(ssim, kind="stable").tolist()
    ranked = [i for i in ranked if not np.isnan(made.scores["foreground_ssim"][i])] or ranked  # black shows nothing
    results.draw("ssim_distribution.png", plots.ssim_distribution, ssim, title=title)
    for name, which, order in (("worst", "Lowest", ranked), ("best", "Highest", ranked[::-1])):
        of_person: dict[str, int] = {}
        for i in order:
            of_person.setdefault(slices.people[i], i)
        several = len(of_person) >= COLUMNS
        chosen = (list(of_person.values()) if several else order)[:COLUMNS]
        labels = [f"{slices.names[i]} SSIM {ssim[i]:.4f}" for i in chosen]
        window = codec.window(slices.images[chosen])
        pictures = window.crop(slices.images[chosen]), window.crop(made.pictures[chosen])
        draw = partial(plots.reconstructions, heading=f"{which} SSIM{', one slice a person' if several else ''}")
        results.draw(f"reconstructions_{name}.png", draw, *pictures, labels, title=title)
    median = ranked[len(ranked) // 2]
    draw = partial(draw_codes, depth=len(made.groups[0][1]), frame=slices.frames and slices.frames[median])
    what = f"{title}, {slices.names[median]}, the one of median SSIM"
    results.draw("codes.png", draw, codec, slices.images[median], title=what)
    counts = zip(made.flat_codes(), codec.autoencoder.codebook_sizes, strict=False)
    results.draw("code_usage.png", plots.code_usage, [code_counts(*one).numpy() for one in counts], title=title)


# ----------------------------------------------------------------------------------------------------
# Samples


def sample(context: Context, ceiling: Sampler | None) -> None:
    """Sample slices, save and show them, and judge them if there are enough."""
    settings, model, results = context.settings, context.model, context.results
    seeds = range(settings.seed, settings.seed + settings.samples)
    pictures = to_uint8(model.sample(seeds, settings.slice, **settings.drawing))
    source = context.source + ("" if settings.slice is None else f", slice level {settings.slice}")
    results.metrics["samples"] = {"number": len(seeds), "first_seed": seeds[0], "source": source}
    results.save_pictures("samples", pictures, [f"seed_{seed:05d}.png" for seed in seeds], source)
    draw_samples(context, pictures, source)
    if len(seeds) > 1:
        walk = to_uint8(model.walk(seeds[:2], settings.slice))
        which = f"{source}, from seed {seeds[0]} to seed {seeds[1]}"
        results.draw("walk.gif", plots.walk, model.codec.window(walk).crop(walk), title=which)
    print(f"{counted(len(seeds), 'sample')} of the {source}")
    judge_or_note(context, "samples", len(seeds), partial(judge_samples, context, ceiling, pictures))


def judge_or_note(context: Context, what: str, number: int, judge_them: Callable[[], None]) -> None:
    """Call `judge_them`, or note why so many of these samples can't be judged with these options or data."""
    settings, (least, more, narrowing) = context.settings, JUDGED[what]
    if option := next((name for name in narrowing if getattr(settings, name) not in (None, [])), None):
        obstacle = f"leave out --{option}, so that they are of all levels and people"
    elif number < least:
        obstacle = f"fewer than {least} are too few to judge: give {more}"
    elif settings.samples_only:
        obstacle = "leave out --samples-only"
    elif settings.split == "train":
        obstacle = "that takes people held out from training: use another --split"
    elif "train" not in context.data.splits:
        obstacle = "that takes the data set that the model was trained on"
    else:
        try:
            return judge_them()
        except InputError as error:  # too few people, say: what else there is to show stays
            obstacle = str(error)
    context.results.note(f"the {what} are not judged: {obstacle}")


def seeds_title(source: str, seeds: range) -> str:
    """The title of a figure of these seeds' samples."""
    return f"{source}, seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{source}, seed {seeds[0]}"


def draw_samples(context: Context, pictures: np.ndarray, source: str) -> None:
    """The first samples; and beside as many as there are, real slices, of one level where that was asked for."""
    settings, results, slices, codec = context.settings, context.results, context.slices, context.model.codec
    shown, seeds = pictures[:MAX_SAMPLES_SHOWN], range(settings.seed, settings.seed + len(pictures))
    title = seeds_title(source, seeds[: len(shown)])
    results.draw("samples.png", plots.samples, codec.window(shown).crop(shown), title=title)
    if slices is None or slices.images.shape[1:] != pictures.shape[1:]:
        return
    at_level = np.flatnonzero(slices.levels == settings.slice)
    candidates = at_level if len(at_level) else np.arange(len(slices))
    rows = candidates[np.linspace(0, len(candidates) - 1, min(len(shown), len(candidates))).round().astype(int)]
    shown, others = shown[: len(rows)], slices.images[rows]
    window = codec.window(np.concatenate([shown, others]))
    draw = partial(plots.samples_beside_real, kind="template slice" if context.data.synthetic else "real slice")
    title = f"{seeds_title(source, seeds[: len(shown)])}; {results.title}"
    results.draw("samples_beside_real.png", draw, window.crop(shown), window.crop(others), title=title)


def judge_samples(context: Context, ceiling: Sampler | None, pictures: np.ndarray) -> None:
    """The judge's verdict on the samples beside the same numbers of real slices: table, numbers and figures."""
    settings, results, codec = context.settings, context.results, context.model.codec
    train, held_out = context.data.splits["train"], context.slices
    print(f"judging them beside {len(train):,} training and {counted(len(held_out), f'{settings.split} slice')}")

    def first_codes(images: np.ndarray) -> np.ndarray:
        return codec.encode(images, codec.box)[0].cpu().numpy()

    judged = judge.Judge(train, held_out, encode=first_codes)
    near = judged.search(pictures)
    verdict = judged.score(pictures, near)
    if reason := judged.missing(len(pictures)):
        results.note(reason)
    if ceiling:
        seeds = range(settings.seed, settings.seed + settings.samples)
        verdict["ceiling"] = judged.fidelity(to_uint8(codec.paint(ceiling.sample(seeds), seeds)))
    results.metrics["judge"] = verdict
    print(judge.table(verdict))

    title = f"{results.metrics['samples']['source']}, beside {context.data.title}"
    results.draw("memorisation.png", plots.memorisation, near.ssim, judged.held_out_nearest.ssim, title=title)
    closest = verdict["memorisation"]["closest"]
    columns = {key: [one[key] for one in closest] for key in closest[0]}
    pairs = pictures[columns["sample"]], judged.as_nearest(columns["train_index"], columns["mirrored"])
    window = codec.window(np.concatenate(pairs))
    names = ["mirrored " * one["mirrored"] + one["train_name"] for one in closest]
    arguments = *(window.crop(pair) for pair in pairs), columns["ssim"], names
    results.draw("nearest_training.png", plots.nearest_training, *arguments, title=title)


# ----------------------------------------------------------------------------------------------------
# Whole brains


def sample_volumes(context: Context, around: np.ndarray | None, level: int | None) -> None:
    """Sample brains, save them as NIfTI, and show them in three planes beside real ones."""
    settings, model, results, slices = context.settings, context.model, context.results, context.slices
    seeds, trained_on = range(settings.seed, settings.seed + settings.volumes), model.description["data"]
    volumes = to_uint8(model.sample_volumes(seeds, around, level, **settings.drawing))
    source = context.source
    if settings.around:
        source += f", invented around level {level} of {visible(settings.around.name)}"
    about = {"number": len(seeds), "first_seed": seeds[0], "levels": volumes.shape[1], "source": source}
    results.metrics["volumes"] = about
    if trained_on["affine"] is None:
        results.note("the distance of the training slices isn't known: NIfTI files of whole brains have 1 mm voxels")
    (results.folder / "volumes").mkdir()
    for seed, volume in zip(seeds, volumes, strict=True):
        write_volume(results.folder / "volumes" / f"seed_{seed:05d}.nii.gz", volume, trained_on)

    box = model.codec.box.around(MARGIN, model.codec.size)
    shown, real = box.crop(volumes[:MAX_VOLUMES_SHOWN]), None
    if slices is not None and slices.images.shape[1:] == volumes.shape[2:]:
        try:
            real = volume_judge.volumes_of(slices, VolumeSampler(model.sampler).levels, box).images[: len(shown)]
        except InputError as error:
            results.note(f"no real brains beside the samples: {error}")
    kind = "template" if context.data and context.data.synthetic else "real"
    draw = partial(plots.volumes, others=real, axis=trained_on["axis"], kind=kind)
    title = seeds_title(source, seeds[: len(shown)])
    results.draw("volumes.png", draw, shown, title=title if real is None else f"{title}; {results.title}")
    results.draw("volume_levels.gif", plots.volume_levels, shown[0], title=f"{source}, seed {seeds[0]}, level by level")
    print(f"{counted(len(seeds), 'whole brain')} of {volumes.shape[1]} levels each, of the {source}")
    judge_or_note(context, "whole brains", len(seeds), partial(judge_volumes, context, seeds, volumes))


def judge_volumes(context: Context, seeds: range, volumes: np.ndarray) -> None:
    """Whether slices of one brain belong together, beside real brains and slices that were sampled independently."""
    sampler, splits, results = VolumeSampler(context.model.sampler), context.data.splits, context.results
    judged = volume_judge.VolumeJudge(splits["train"], context.slices)
    independent = to_uint8(sampler.paint(sampler.sample_independent(seeds), seeds, independent=True))
    known = np.isin(np.array(sampler.levels), judged.levels)
    verdict = judged.score(volumes[:, known], independent[:, known])
    results.metrics["volume_judge"] = verdict
    print(volume_judge.table(verdict))
    title = f"{context.source}, beside {context.data.title}"
    results.draw("volume_curves.png", plots.volume_curves, verdict, title=title)


# ----------------------------------------------------------------------------------------------------
# All of it


def describe(settings: PredictSettings, model: TrainedModel) -> dict:
    """Everything that made the results, for metrics.json and the report."""
    description, prior = model.description, model.sampler
    about = prior and {"file": str(prior.path), "model": prior.title, "epoch": prior.description["epoch"]}
    return {
        "prediction": settings.model_copy(update={"out": settings.folder}).model_dump(mode="json"),
        "checkpoint": {key: description[key] for key in ("model", "epoch", "validation_ssim")},
        "trained_on": description["data"],
        **({"prior": about} if about else {}),
    }


@exit_on_input_error
@StopSignals()
def main() -> int:
    settings = cli.parse(PredictSettings, __doc__)
    model = load_model(settings)
    ceiling = Sampler(settings.ceiling, model.codec) if settings.ceiling else None
    around, level = load_central_slice(settings, model)
    with replacing(settings.folder) as folder:
        codes, rows, pictures = files_of_codes(settings), [], None
        data = None if codes else load_data(settings, model)
        title = f"{settings.checkpoint.name}, {'codes' if codes else 'samples'}" if data is None else data.title
        results = Results(folder, title if data is None or settings.input else f"{title}, {settings.split} split")
        context = Context(settings, model, data, results)
        if codes:
            decode(context, codes)
        if data is not None:
            results.metrics["synthetic"] = data.synthetic
            rows, reconstructions = reconstruct_slices(context)
            window = model.codec.window(context.slices.images)
            pictures = window.crop(context.slices.images), window.crop(reconstructions)
        if model.sampler is None:
            if settings.samples and not settings.input and settings.prior != "none":
                results.note("no prior beside the checkpoint, so nothing is sampled; give one with --prior")
        elif model.codec.painter is None and model.sampler.num_grids < model.codec.autoencoder.depth:
            results.note("no painter.pth beside the checkpoint: the plain decoder makes samples, and blurs them")
        if model.sampler and settings.samples:
            sample(context, ceiling)
        if settings.volumes:
            sample_volumes(context, around, level)
        results.write(rows, pictures, describe(settings, model), settings.checkpoint.parent)
    print(f"report: {visible(settings.folder / 'report.html')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
