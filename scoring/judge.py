"""How good are sampled slices? Fidelity, coverage, tissue and copies, beside what real slices get.

    judge = Judge(data.splits["train"], data.splits["validate"])
    verdict = judge.score(samples)      # uint8 [N, H, W] -> plain numbers for metrics.json
    print(table(verdict))

Slices are compared in the feature spaces of features.py, which are fitted to the training slices alone, by their
tissues (tissue.py), and by networks that learn to tell samples from them (two_sample.py).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
from scipy.spatial.distance import cdist

from dataset import Slices
from runtime.errors import InputError
from scoring import tissue
from scoring.enough import MIN_SAMPLES, MIN_TWO_SAMPLE, check_enough, check_size
from scoring.features import SPACES, FeatureSpace
from scoring.nearest import NearestSearch, NearestSlices, data_copying, shared_codes
from scoring.two_sample import PARTS, POOLING, two_sample_test

NEIGHBOURS = 5  # k of precision, recall, density and coverage
STRIDE = 8  # one slice in eight of each person
HALVINGS = 5  # random splits of the training people whose mean is the floor
MAX_TWO_SAMPLE = 1000  # slices of a kind: more make the test sharper and slower
TISSUE_SLICES = 1000  # training slices whose tissues are measured
CLOSEST = 6  # samples that the verdict names, for the figure


# -------------------------------------------------------------------------------------------- single numbers


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance of two Gaussians fitted to features [N, D] and [M, D] (Heusel et al. 2017).

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)); the root's trace is the sum of the root eigenvalues of the
    symmetric C_a^(1/2) C_b C_a^(1/2), which exists where C_a C_b is singular and `sqrtm` fails, as it is for one slice
    repeated. With few samples it is biased upwards: 1,000 from the very same Gaussian get 0.02 at D = 64, 100 get 0.2.
    """
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    roots = np.sqrt(np.linalg.eigvalsh(root_a @ cov_b @ root_a).clip(min=0))
    distance = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + np.trace(cov_a) + np.trace(cov_b)
    return max(float(distance - 2 * roots.sum()), 0.0)


def precision_to_coverage(real: np.ndarray, fake: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Precision, recall (Kynkaanniemi et al. 2019), density, coverage (Naeem et al. 2020), k = 5.

    A point's ball reaches to its fifth neighbour on its own side. Recall and coverage depend on the number of points,
    so the larger side is cut to the number of the smaller by a draw from `seed`. A perfect sampler's coverage is
    1 - 2^-5 = 0.97.

    Args:
        real, fake: [N, D] and [M, D], each without near repeats of one person (see `staggered`).
    Raises:
        InputError: a side has no more than k + 1 points.
    """
    n = min(len(real), len(fake))
    if n <= NEIGHBOURS + 1:
        raise InputError(f"the judge needs more than {NEIGHBOURS + 1} slices a side, not {n}: add people")
    generator = np.random.default_rng(seed)
    real, fake = (side[generator.permutation(len(side))[:n]] for side in (real, fake))
    real_radius, fake_radius = (np.sort(cdist(side, side), axis=1)[:, NEIGHBOURS] for side in (real, fake))
    distances = cdist(real, fake)
    in_real_ball = distances < real_radius[:, None]
    return {
        "precision": float(in_real_ball.any(axis=0).mean()),
        "recall": float((distances < fake_radius).any(axis=1).mean()),
        "density": float(in_real_ball.sum(axis=0).mean() / NEIGHBOURS),
        "coverage": float(in_real_ball.any(axis=1).mean()),
    }


def staggered(people: Sequence[str], levels: np.ndarray) -> np.ndarray:
    """One slice in eight of each person, as sorted indices; the first person's start at their first slice, the next
    one's at their second, and so on, so that all levels appear.

    Among all slices the nearest neighbours of one are the same person's next ones: the neighbourhoods are then so small
    that real slices of other people fall outside them.
    """
    people = np.asarray(people)
    chosen = []
    for start, person in enumerate(np.unique(people)):
        own = np.flatnonzero(people == person)
        own = own[np.argsort(levels[own], kind="stable")]
        chosen.append(own[start % STRIDE :: STRIDE])
    return np.sort(np.concatenate(chosen))


def likeness(samples: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """Compares how like samples [N] and held-out slices [M] are to what is nearest to each in training.

    Returns `median` and `median_held_out`; `share`, that of the samples above `threshold`, which 1 % of the held-out
    slices exceed, hence `share_held_out`, about 0.01.
    """
    threshold = float(np.quantile(held_out, 0.99))
    return {
        "share": float(np.mean(samples > threshold)),
        "share_held_out": float(np.mean(held_out > threshold)),
        "threshold": threshold,
        "median": float(np.median(samples)),
        "median_held_out": float(np.median(held_out)),
    }


# ---------------------------------------------------------------------------------------------- judge


class Judge:
    """Measures samples against training people's slices, and against people held out from training.

    What needs no samples is measured once, so one judge for several priors is fastest.
    """

    def __init__(
        self,
        train: Slices,
        held_out: Slices,
        seed: int = 0,
        encode: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        """Fits the feature spaces: about 12 s for 4,960 slices on two cores.

        Args:
            train, held_out: slices of different people and one size.
            seed: of the halves, cuts and rows that are drawn; not of the feature spaces.
            encode: uint8 [N, H, W] -> their first codes, integers [N, h, w]; without it codes are not compared.
        Raises:
            InputError: fewer than four people or 64 slices to train on, fewer than two slices held out, or sizes that
                differ.
        """
        check_enough(train, held_out)
        self.train, self.held_out, self.seed, self.encode = train, held_out, seed, encode
        self.people = np.asarray(train.people)
        self.sparse = staggered(train.people, train.levels)
        check_size(held_out.images, train)
        self.spaces = {name: FeatureSpace(name, train.images) for name in SPACES}
        self.search = NearestSearch(train, self.spaces["pca"])
        self._held_out_features = {name: s.features(held_out.images) for name, s in self.spaces.items()}

    def score(self, samples: np.ndarray, nearest: NearestSlices | None = None) -> dict:
        """All figures of samples, uint8 [N, H, W], N at least 100, as plain numbers for `metrics.json`.

        `nearest`: what `self.search` finds for the samples, if it is known already.

        Returns:
            `samples`, `train`, `held_out`: numbers of slices;
            `fidelity`: see there; `floor`: the same for real slices, see there;
            `tissue`: see there; `memorisation`: see there;
            `two_sample`: see there; missing where `missing` says so.
        Raises:
            InputError: fewer than 100 samples, or not of the training slices' size.
        """
        verdict = {
            "samples": len(samples),
            "train": len(self.train),
            "held_out": len(self.held_out),
            "fidelity": self.fidelity(samples),
            "floor": self.floor,
            "tissue": self.tissue(samples),
            "memorisation": self.memorisation(samples, nearest or self.search(samples)),
        }
        return verdict if self.missing(len(samples)) else verdict | {"two_sample": self.two_sample(samples)}

    def missing(self, samples: int) -> str | None:
        """The reason why this number of samples gets no two-sample test, or None."""
        n, people = min(samples, len(self.train)), len(np.unique(self.people))
        if n >= MIN_TWO_SAMPLE and people >= 2 * PARTS:  # the floor's halves are divided into parts, too
            return None
        needed = f"{MIN_TWO_SAMPLE} samples, {MIN_TWO_SAMPLE} training slices and {2 * PARTS} training people"
        return f"no network was tried on the samples: fewer than {needed} flatter them"

    # ------------------------------------------------------------------------------------ features

    def frechet(self, samples: np.ndarray) -> dict[str, float]:
        """Frechet distance of samples and held-out people's slices in each space: to choose a checkpoint by."""
        return {
            name: frechet_distance(self._held_out_features[name] / space.scale, fake / space.scale)
            for name, space, fake in self._each_space(samples)
        }

    def fidelity(self, samples: np.ndarray) -> dict[str, dict[str, float]]:
        """For each space `frechet` (from all training slices), `precision`, `recall`, `density` and `coverage` (beside
        `staggered` training slices), and `frechet_held_out` (from held-out people)."""
        figures = {}
        for name, space, fake in self._each_space(samples):
            held_out = self._held_out_features[name]
            figures[name] = {
                "frechet": frechet_distance(space.train / space.scale, fake / space.scale),
                **precision_to_coverage(space.train[self.sparse], fake, self.seed),
                "frechet_held_out": frechet_distance(held_out / space.scale, fake / space.scale),
            }
        return figures

    @cached_property
    def floor(self) -> dict[str, dict[str, float]]:
        """The `fidelity` of real slices: one half of the training people against the other half, the mean over five
        random halvings; under `frechet_held_out`, all training slices against held-out people."""
        figures = {}
        for name, space in self.spaces.items():
            rounds = []
            for seed in range(self.seed, self.seed + HALVINGS):
                halves = self._halves(seed)
                sparse = (space.train[np.intersect1d(rows, self.sparse)] for rows in halves)
                frechet = frechet_distance(*(space.train[rows] / space.scale for rows in halves))
                rounds.append({"frechet": frechet, **precision_to_coverage(*sparse, seed)})
            figures[name] = {key: float(np.mean([r[key] for r in rounds])) for key in rounds[0]}
            scaled = space.train / space.scale, self._held_out_features[name] / space.scale
            figures[name]["frechet_held_out"] = frechet_distance(*scaled)
        return figures

    # ------------------------------------------------------------------------------------ tissue

    def tissue(self, samples: np.ndarray) -> dict[str, dict[str, dict[str, float]]]:
        """How the tissues of `samples`, of `held_out` slices, and of one half of the training people (`floor`, beside
        the other half) differ from training slices', see `tissue.compare`."""
        train, half, held_out = self._tissues
        return {
            "samples": tissue.compare(tissue.measure(samples), train),
            "held_out": tissue.compare(held_out, train),
            "floor": tissue.compare(train[half], train[~half]),
        }

    @cached_property
    def _tissues(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Measures of training slices, which of these are of one half of the people, and measures of held-out slices"""
        rows = self._rows_of_all_levels(TISSUE_SLICES, self.seed)
        half = np.isin(rows, self._halves(self.seed)[0])
        return tissue.measure(self.train.images[rows]), half, tissue.measure(self.held_out.images)

    # ------------------------------------------------------------------------------------ copies

    @cached_property
    def held_out_nearest(self) -> NearestSlices:
        """The training slices nearest to the held-out people's slices."""
        return self.search(self.held_out.images)

    def memorisation(self, samples: np.ndarray, nearest: NearestSlices) -> dict:
        """Are samples nearer to training slices than held-out people's slices are?

        Returns:
            `likeness` by the nearest slice's SSIM, and under `mirrored` by its mirror image's; `one_person`, the share
            of the samples whose five nearest slices, mirrored or not, are of one person, and `one_person_held_out`;
            `data_copying`, see there, by SSIM; where the judge can encode, under `codes` the `likeness` and
            `data_copying` by the codes shared with the slice that shares most, mirrored or not; `closest`, the six
            nearest samples with `sample`, `train_index`, `train_name`, `mirrored` (whether its mirror image is meant)
            and `ssim`.
        """
        held_out = self.held_out_nearest
        index, ssims = nearest.nearest
        levels = self.train.levels[index], self.train.levels[held_out.nearest[0]]
        figures = {
            **likeness(nearest.ssim, held_out.ssim),
            "mirrored": likeness(nearest.mirrored_ssim, held_out.mirrored_ssim),
            "one_person": float(np.mean(nearest.one_person)),
            "one_person_held_out": float(np.mean(held_out.one_person)),
            "data_copying": data_copying(1 - ssims, 1 - held_out.nearest[1], *levels),
        }
        if self.encode:
            shares = self._shared_codes(samples), self._held_out_shared_codes
            figures["codes"] = likeness(*shares) | {"data_copying": data_copying(*(1 - s for s in shares), *levels)}
        closest = [
            {
                "sample": i,
                "train_index": int(index[i]),
                "train_name": self.train.names[index[i]],
                "mirrored": bool(nearest.mirrored[i]),
                "ssim": float(ssims[i]),
            }
            for i in np.argsort(-ssims, kind="stable")[:CLOSEST].tolist()
        ]
        return figures | {"closest": closest}

    @cached_property
    def train_codes(self) -> np.ndarray:
        """The training slices' first codes, [N, h, w]."""
        return self.encode(self.train.images)

    @cached_property
    def _held_out_shared_codes(self) -> np.ndarray:
        return self._shared_codes(self.held_out.images)

    def _shared_codes(self, images: np.ndarray) -> np.ndarray:
        views = images, self.search.mirror(images)
        return np.maximum(*(shared_codes(self.encode(view), self.train_codes) for view in views))

    def as_nearest(self, rows: Sequence[int], mirrored: Sequence[bool]) -> np.ndarray:
        """The training slices at `rows`, as mirror images where `mirrored`, uint8 [N, H, W]."""
        slices = self.train.images[list(rows)]
        return np.where(np.array(mirrored)[:, None, None], self.search.mirror(slices), slices)

    # ------------------------------------------------------------------------------------ two-sample test

    def two_sample(self, samples: np.ndarray) -> dict[str, dict[str, dict[str, float]]]:
        """How well networks tell the samples, 1,000 at most, from as many training slices of the same mix of levels.

        Returns:
            For "full" and "half" size the area under the ROC curve, `mean`, `min` and `max` over three networks, of
            `samples`; of `real` slices, 500 of one half of the training people beside 500 of the other half; and of
            `held_out` slices, if they show six people or more, beside as many training slices. Few people scatter.
        """
        names = [f"sample {i}" for i in range(len(samples))]
        tests = {"samples": self.distinguish(samples[:MAX_TWO_SAMPLE], names[:MAX_TWO_SAMPLE])}
        tests |= self._two_sample_floors
        return {size: {kind: test[size] for kind, test in tests.items()} for size in POOLING}

    @cached_property
    def _two_sample_floors(self) -> dict[str, dict[str, dict[str, float]]]:
        halves = (self._rows_of_all_levels(MIN_TWO_SAMPLE, self.seed, rows) for rows in self._halves(self.seed))
        one, other = ((self.train.images[rows], self.people[rows].tolist()) for rows in halves)
        floors = {"real": two_sample_test(*one, *other, self.seed)}
        if len(set(self.held_out.people)) >= PARTS:
            floors["held_out"] = self.distinguish(self.held_out.images, self.held_out.people)
        return floors

    def distinguish(self, images: np.ndarray, people: Sequence[str]) -> dict[str, dict[str, float]]:
        """The `two_sample_test` of images, uint8 [N, H, W], which show N `people`, beside as many training slices."""
        rows = self._rows_of_all_levels(len(images), self.seed)
        return two_sample_test(self.train.images[rows], self.people[rows].tolist(), images, people, self.seed)

    # ------------------------------------------------------------------------------------ rows and checks

    def _rows_of_all_levels(self, n: int, seed: int, rows: np.ndarray | None = None) -> np.ndarray:
        """Rows of `n` training slices, or of all at `rows` if those are fewer, drawn evenly from all levels."""
        rows = np.arange(len(self.train)) if rows is None else rows
        chance = np.random.default_rng(seed).random(len(rows))
        rows = rows[np.lexsort((chance, self.train.levels[rows]))]
        return np.sort(rows[np.linspace(0, len(rows) - 1, min(n, len(rows))).round().astype(int)])

    def _halves(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of one half of the training people and of the other, as `seed` draws them."""
        people = np.random.default_rng(seed).permutation(np.unique(self.people))
        first = np.isin(self.people, people[: len(people) // 2])
        return np.flatnonzero(first), np.flatnonzero(~first)

    def _each_space(self, samples: np.ndarray) -> Iterator[tuple[str, FeatureSpace, np.ndarray]]:
        check_size(samples, self.train)
        if len(samples) < MIN_SAMPLES:
            raise InputError(f"{len(samples)} samples are too few to judge: make at least {MIN_SAMPLES}")
        return ((name, space, space.features(samples)) for name, space in self.spaces.items())


def table(verdict: dict) -> str:
    """A verdict of `Judge.score` for the terminal: each figure beside what real slices get.

    Where the verdict has a "ceiling", the `fidelity` of another prior, that stands below the floor.
    """

    def row(label: str, cells: Iterable[str]) -> str:
        return f"{label:24}" + "".join(f"{cell:>18}" for cell in cells)

    heads = ("frechet", "frechet_held_out", "precision", "recall", "density", "coverage")
    lines = [row("", (head.replace("_", " ") for head in heads))]
    kinds = {"samples": verdict["fidelity"], "real (floor)": verdict["floor"]}
    kinds |= {"ceiling": verdict["ceiling"]} if "ceiling" in verdict else {}
    for space in verdict["fidelity"]:
        lines += [row(f"{space}, {kind}", (f"{by[space][h]:.3f}" for h in heads)) for kind, by in kinds.items()]
    lines += ["tissue beside training slices, Cohen's d and ratio of spreads:", row("", tissue.FIGURES)]
    labels = {"samples": "samples", "held_out": "held-out people", "floor": "half of the people"}
    for kind, label in labels.items():
        lines.append(row(label, tissue.cells(verdict["tissue"][kind])))
    copies = verdict["memorisation"]
    for kind, alike in {"a training slice": copies, "a mirrored training slice": copies["mirrored"]}.items():
        shares = f"samples {alike['share']:.1%}, held-out slices {alike['share_held_out']:.1%}"
        lines.append(f"nearer to {kind} than SSIM {alike['threshold']:.3f}: {shares}")
    shares = f"samples {copies['one_person']:.1%}, held-out slices {copies['one_person_held_out']:.1%}"
    lines.append(f"five nearest slices are of one person: {shares}")
    copying = f"by SSIM {copies['data_copying']:.2f}"
    if codes := copies.get("codes"):
        shares = f"samples {codes['median']:.1%}, held-out slices {codes['median_held_out']:.1%}"
        lines.append(f"codes shared with the nearest training slice, median: {shares}")
        copying += f", by codes {codes['data_copying']:.2f}"
    lines.append(f"data copying (C_T; copies are below 0): {copying}")
    for size, tests in verdict.get("two_sample", {}).items():
        areas = (f"{kind} {test['mean']:.3f} ({test['min']:.3f} to {test['max']:.3f})" for kind, test in tests.items())
        lines.append(f"two-sample test at {size} size, area under the ROC curve: {', '.join(areas)}")
    counts = f"{verdict['samples']} samples, {verdict['train']} training and {verdict['held_out']} held-out slices"
    return "\n".join([*lines, f"{counts}; other numbers of samples give other figures"])
