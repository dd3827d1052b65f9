"""Does a sampled brain have what was asked for, and can a classifier of real people learn from such brains?

    python benchmarks/covariates.py resources/pretrained/vqvae.pth DIR --out OUT

For a data set whose participants.tsv has the dementia rating `cdr`, and a transformer that learnt it and the measured
sizes. Brains are asked for sizes of the ventricles, then of the brain, and measured as training people are; the
ventricles of brains that are asked for a rating stand beside those of training people with it. Then classifiers of
rating 0 against higher ones learn from real people, from sampled brains, and from both, and are tested on real people.
That asks whether samples carry what real slices do; it is no diagnosis.

Tables go to --out as covariates.md and covariates.json, one seed's brains to asked.png, and all brains to --out/brains,
where a rerun finds them: with the defaults 208 brains, which took 40 minutes on two cores with bf16.
"""

import hashlib
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runtime.environment  # noqa: F401, before PyTorch

# isort: split
import torch
import torch.nn.functional as F
from scipy.stats import wasserstein_distance
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import dataset
from benchmarks import tables
from inference.codec import MARGIN, to_uint8
from inference.model import TrainedModel
from report import plots
from runtime import cli
from runtime.cli import Device, Precision, Settings, option
from runtime.errors import InputError, exit_on_input_error
from runtime.files import atomic
from scoring.volumes import DRAWS, SizeMeasure, areas, volumes_of

RATING = "cdr"
COMPARED = (0, 0.5, 1)  # ratings that enough people have
MEASURED = {"ventricles": "ventricles, share of the brain", "brain": "brain, pixels a slice"}
PERCENTILES = (5, 95)  # of training people's sizes, between which brains are asked for
TOGETHER = 16  # brains drawn at once
POOLED = 4  # side, in pixels, of the squares whose mean the network sees
FOLDS, SEEDS, STEPS, BATCH, RATE = 5, 3, 200, 16, 1e-3
RESAMPLED, INTERVAL = 2000, (2.5, 97.5)


class CovariateSettings(Settings):
    """what to draw"""

    checkpoint: Path = option(..., "vqvae.pth")
    data: str = option(..., "the data set that it was trained on", "DIR")
    prior: Path | None = option(None, "the transformer (default: the one beside the checkpoint)")
    out: Path = option(Path("covariates"), "folder for tables and brains", "DIR")
    brains: int = option(96, "that are asked for a size of the ventricles; a third as many, of the brain", ge=6)
    rated: int = option(20, "that are asked for each rating, for 0 twice as many", ge=2)
    device: Device = option("auto", "where to draw")
    precision: Precision = option("auto", "in which")


class Brains(NamedTuple):
    """What is kept of V brains of L levels."""

    tissue: np.ndarray  # pixels, int [V, L]
    ventricles: np.ndarray
    pooled: np.ndarray  # float32 [V, L, h, w] in [0, 1]
    rating: np.ndarray  # float64 [V], found or asked for

    @classmethod
    def of(cls, images: np.ndarray, rating: np.ndarray, core: np.ndarray) -> Self:
        """`images`: uint8 [V, L, H, W]."""
        pooled = F.avg_pool2d(torch.from_numpy(images).float() / 255, POOLED).numpy()
        return cls(*areas(images, core), pooled, rating)

    def rows(self, rows: np.ndarray) -> Self:
        return Brains(*(column[rows] for column in self))

    def and_(self, *others: Self) -> Self:
        return Brains(*map(np.concatenate, zip(self, *others, strict=True)))


# ------------------------------------------------------------------------------------------- drawing


class Drawing:
    """Draws brains, and keeps them in a folder for the next run."""

    def __init__(self, model: TrainedModel, measure: SizeMeasure, folder: Path):
        paths = model.path, model.sampler.path, model.path.parent / "painter.pth"
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths if path.is_file())).hexdigest()
        self.model, self.box, self.folder = model, measure.box, folder / digest[:12]
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, values: np.ndarray, first_seed: int) -> np.ndarray:
        """Brains that are asked for values [V] of a covariate, one a seed: uint8 [V, L, H, W], cropped to the box."""
        parts = []
        for start in range(0, len(values), TOGETHER):
            asked = values[start : start + TOGETHER]
            seeds = range(first_seed + start, first_seed + start + len(asked))
            path = self.folder / f"{name}_{asked[0]:.6g}_to_{asked[-1]:.6g}_{seeds[0]}_{len(asked)}.npy"
            if not path.is_file():
                images = self.box.crop(to_uint8(self.model.sample_volumes(seeds, where={name: asked})))
                with atomic(path) as file:
                    np.save(file, images)
            parts.append(np.load(path))
        return np.concatenate(parts)


# ------------------------------------------------------------------------------------------- asked and measured


def ask(draw: Callable, measure: Callable, real: dict[str, np.ndarray], number: int) -> dict[str, dict[str, float]]:
    """`agreement` for each measured covariate, of `number` brains; `real`: training people's sizes, [P] each."""
    found = {}
    for name, count, first_seed in (("ventricles", number, 0), ("brain", number // 3, number)):
        values = np.linspace(*np.percentile(real[name], PERCENTILES), count)
        sizes = measure(draw(name, values, first_seed))[name]
        found[name] = agreement(values, sizes) | {"spread": float(real[name].std())}
    return found


def agreement(asked: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """How what was found follows what was asked for, [V] each: `correlation`, `slope` of the line through the points,
    mean and standard deviation of the `error`, found - asked, and what was asked, from `low` to `high`."""
    error = found - asked
    figures = {"low": asked.min(), "high": asked.max(), "correlation": np.corrcoef(asked, found)[0, 1]}
    figures |= {"slope": np.polyfit(asked, found, 1)[0], "error": error.mean(), "deviation": error.std()}
    return {name: float(value) for name, value in figures.items()} | {"brains": len(asked)}


def compare_ratings(real: Brains, sampled: Brains) -> list[dict[str, float]]:
    """For each rating the ventricles, in pixels of a whole brain, of people and of sampled brains: their means, how
    well they tell the rating from the lowest, and the Wasserstein distance. `floor`: mean distance of two halves of
    the people over ten draws."""
    found = []
    sides = [{r: brains.ventricles[brains.rating == r].sum(axis=1) for r in COMPARED} for brains in (real, sampled)]
    for rating in COMPARED:
        people, brains = (side[rating] for side in sides)
        halves = [np.array_split(np.random.default_rng(i).permutation(people), 2) for i in range(DRAWS)]
        row = {"rating": rating, "distance": wasserstein_distance(people, brains)}
        row["floor"] = float(np.mean([wasserstein_distance(*pair) for pair in halves]))
        for kind, side in zip(("people", "brains"), sides, strict=True):
            auc = order(side[COMPARED[0]], side[rating]).mean()
            row |= {kind: len(side[rating]), f"mean_{kind}": float(side[rating].mean()), f"auc_{kind}": float(auc)}
        found.append(row)
    return found


def order(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """[N], [P] -> [N, P]: 1 where the value of the second kind is the larger, 0.5 where equal; the mean is the AUC."""
    return (np.sign(high[None] - low[:, None]) + 1) / 2


# ------------------------------------------------------------------------------------------- learning from samples


def linear_scores(train: Brains, test: Brains) -> np.ndarray:
    """Logits [V] of a rating above 0, by logistic regression on areas of tissue and ventricles along the levels."""
    x, y = (np.concatenate([brains.tissue, brains.ventricles], axis=1) for brains in (train, test))
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000))
    return regression.fit(x, train.rating > 0).decision_function(y)


def network_scores(train: Brains, test: Brains) -> np.ndarray:
    """The same by convolutional networks on pooled brains, whose levels are channels: the mean of three trainings."""
    mean = train.pooled.mean(axis=0)
    x, y = (torch.from_numpy((brains.pooled - mean) / (train.pooled - mean).std()) for brains in (train, test))
    labels = torch.from_numpy(train.rating > 0).float()
    with torch.random.fork_rng(devices=[]):
        return np.mean([_train(x, labels, seed)(y)[:, 0].detach().numpy() for seed in range(SEEDS)], axis=0)


def _train(x: torch.Tensor, labels: torch.Tensor, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = [(nn.LazyConv2d(n, 3, stride=2, padding=1), nn.GroupNorm(4, n), nn.SiLU()) for n in (32, 64, 64)]
    network = nn.Sequential(*chain(*layers), nn.Flatten(), nn.Dropout(0.5), nn.LazyLinear(1))
    network(x[:1])  # tells the layers their sizes
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(x), (BATCH,))
        mirrored = torch.rand(BATCH, 1, 1, 1) < 0.5  # rows go from left to right
        logits = network(torch.where(mirrored, x[rows].flip(2), x[rows]))[:, 0]
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits, labels[rows]).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


CLASSIFIERS = {"logistic regression on areas": linear_scores, "network on slices": network_scores}


def learn(real: Brains, new: np.ndarray, sampled: Brains) -> Iterator[dict]:
    """`intervals` for both classifiers by what they learnt from: real people, sampled brains, or both. Tested on people
    of no training, bool `new` [V], and on everybody in five folds."""
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(new, real.rating > 0)
    tests = {"new": [(np.flatnonzero(~new), np.flatnonzero(new))], "folds": list(folds)}
    for classifier, scores in CLASSIFIERS.items():
        from_brains = scores(sampled, real)
        for test, parts in tests.items():
            rows = np.concatenate([tested for _, tested in parts])
            found = {"people": [scores(real.rows(a), real.rows(b)) for a, b in parts]}
            found["brains"] = [from_brains[rows]]
            found["both"] = [scores(real.rows(a).and_(sampled), real.rows(b)) for a, b in parts]
            found = {name: np.concatenate(values) for name, values in found.items()}
            yield {"classifier": classifier, "test": test, **intervals(found, real.rating[rows] > 0)}


def intervals(scores: dict[str, np.ndarray], labels: np.ndarray) -> dict:
    """`auc` of each kind of scores, [V], and its `difference` from the first kind's: value and 95 % interval of 2,000
    samples of the people, drawn with replacement within each label; `numbers` of people of both labels."""
    numbers = np.bincount(labels, minlength=2).tolist()
    generator = np.random.default_rng(0)
    drawn = [[np.arange(n) for n in numbers]]
    drawn += [[generator.integers(n, size=n) for n in numbers] for _ in range(RESAMPLED)]
    pairs = {name: order(values[~labels], values[labels]) for name, values in scores.items()}
    areas = {name: np.array([own[np.ix_(*rows)].mean() for rows in drawn]) for name, own in pairs.items()}
    differences = {name: own - areas[next(iter(areas))] for name, own in areas.items()}

    def summary(values: np.ndarray) -> list[float]:
        return [float(value) for value in (values[0], *np.percentile(values[1:], INTERVAL))]

    kinds = {"auc": areas, "difference": differences}
    return {"numbers": numbers} | {
        kind: {name: summary(values) for name, values in own.items()} for kind, own in kinds.items()
    }


# ------------------------------------------------------------------------------------------- tables


def asked_table(found: dict) -> str:
    """What was asked for beside what was measured."""
    keys = ("low", "high", "correlation", "slope", "error", "deviation", "spread")
    heads = ["asked for", "brains", "from", "to", "correlation", "slope", "mean error", "its deviation"]
    rows = []
    for name, one in found.items():
        digits = ",.0f" if one["high"] > 100 else ".4f"
        ratios = ("correlation", "slope")
        cells = [f"{one[key]:{'.3f' if key in ratios else digits}}" for key in keys]
        rows.append([MEASURED[name], str(one["brains"]), *cells])
    return tables.markdown([*heads, "deviation of training people"], rows)


def rating_table(found: list[dict]) -> str:
    """Ventricles of people and of brains by rating."""
    heads = ["CDR", "people", "brains", "people's ventricles", "brains'", "distance", "floor"]
    rows = []
    for one in found:
        areas_under = [f"{one[key]:.3f}" if one["rating"] else "-" for key in ("auc_people", "auc_brains")]
        keys = ("people", "brains", "mean_people", "mean_brains", "distance", "floor")
        rows.append([f"{one['rating']:g}", *(f"{one[key]:,.0f}" for key in keys), *areas_under])
    return tables.markdown([*heads, "AUC from CDR 0, people", "brains"], rows)


def learning_table(found: list[dict]) -> str:
    """AUC with its interval by what a classifier learnt from, and the difference from learning from people."""
    tests = {"new": "people of no training", "folds": "everybody, five folds"}
    heads = ["classifier", "tested on", "people of CDR 0, above", "learnt from people", "brains", "difference"]
    rows = []
    for one in found:
        auc, difference = one["auc"], one["difference"]
        shown = auc["people"], auc["brains"], difference["brains"], auc["both"]
        cells = ["{:.3f} ({:.3f} to {:.3f})".format(*each) for each in shown]
        rows.append([one["classifier"], tests[one["test"]], ", ".join(map(str, one["numbers"])), *cells])
    return tables.markdown([*heads, "people and brains"], rows)


def draw_asked(model: TrainedModel, path: Path, sizes: np.ndarray, seed: int = 0) -> None:
    """One seed's brain through ratings and through ventricles between the percentiles of training people's `sizes`."""
    asked = [{RATING: rating} for rating in COMPARED]
    asked += [{"ventricles": float(size)} for size in np.percentile(sizes, (PERCENTILES[0], 50, PERCENTILES[1]))]
    names = [" ".join(f"{name} {value:.2g}" for name, value in where.items()) for where in asked]
    brains = np.concatenate([model.sample_volumes([seed], where=where) for where in asked])
    data = model.description["data"]
    title = f"{model.sampler.title} trained on {data['title']}, seed {seed}"
    plots.volumes(
        model.codec.box.around(MARGIN, model.codec.size).crop(brains), path, title, axis=data["axis"], names=names
    )


# ------------------------------------------------------------------------------------------- the command line


def rated_people(data: dataset.DataSet, measure: SizeMeasure) -> tuple[Brains, np.ndarray, dict[str, np.ndarray]]:
    """People whose rating is known, who of them aren't of the training split, bool [V], and training people's sizes.

    Raises InputError when the data set has no ratings.
    """
    known = data.participants.covariates if data.participants else []
    column = next((i for i, each in enumerate(known) if each.name == RATING and not each.categories), None)
    if column is None:
        raise InputError(f"participants.tsv of {data.root} has no numbers {RATING}: give a data set that has them")
    parts, of_split = [], []
    for split, slices in data.splits.items():
        volumes = volumes_of(slices, measure.levels.tolist(), measure.box)
        if split == "train":
            sizes = measure(volumes.images)
        rating = [data.participants.values[person][column] for person in volumes.people]
        parts.append(Brains.of(volumes.images, np.array(rating), measure.core))
        of_split += [split] * len(rating)
    people = parts[0].and_(*parts[1:])
    known = ~np.isnan(people.rating)
    return people.rows(known), (np.array(of_split) != "train")[known], sizes


@exit_on_input_error
def main() -> int:
    settings = cli.parse(CovariateSettings, __doc__)
    model = TrainedModel.load(settings.checkpoint, settings.prior, settings.device, settings.precision)
    if missing := {RATING, *MEASURED} - model.covariates.keys():
        raise InputError(f"the prior can't be asked for {', '.join(sorted(missing))}: train one on a set that has them")
    data = dataset.load(settings.data)
    measure = SizeMeasure(data.splits["train"])
    people, new, sizes = rated_people(data, measure)
    draw, train = Drawing(model, measure, settings.out / "brains"), people.rows(~new)
    found = {"data": data.title, "asked": ask(draw, measure, sizes, settings.brains)}
    ratings = np.sort(np.repeat([0, *COMPARED], settings.rated))
    sampled = Brains.of(draw(RATING, ratings, 2 * settings.brains), ratings, measure.core)
    found["ratings"] = compare_ratings(train, sampled)
    found["learning"] = list(learn(people, new, sampled))
    parts = asked_table(found["asked"]), rating_table(found["ratings"]), learning_table(found["learning"])
    print(text := "\n\n".join(parts))
    tables.save(settings.out, "covariates", text, found)
    draw_asked(model, settings.out / "asked.png", sizes["ventricles"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
