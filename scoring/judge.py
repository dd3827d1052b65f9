"""How good are sampled slices? Fidelity, coverage, diversity and memorisation, beside what real slices get.

    judge = Judge(data.splits["train"], data.splits["validate"])
    verdict = judge.score(samples, judge.nearest(samples))      # uint8 [N, H, W] -> plain numbers for metrics.json
    print(table(verdict))

Slices are compared in the feature spaces of features.py, which are fitted on the training slices alone, and by a
network that learns to tell samples from them (two_sample.py).
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from prdc import compute_prdc
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim

from dataset import Slices
from runtime.errors import InputError
from scoring.enough import MIN_SAMPLES, check_enough
from scoring.features import SPACES, FeatureSpace, on_all_cores, unit_batch
from scoring.metrics import code_counts
from scoring.nearest import Neighbours, Search
from scoring.two_sample import LIMIT, SEEDS, SIZES, Kind, two_sample_test

NEIGHBOURS = 5  # k of precision, recall, density and coverage
STRIDE = 8  # one slice in eight of each person
HALVINGS = 5  # random splits of the training people whose mean is the floor

PAIRS = 200  # of slices, for the mean MS-SSIM
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, from fine to coarse
MS_SSIM_KERNEL = 11  # pixels; the coarsest scale has to hold it

CLOSEST = 6  # samples that the verdict names, for the figure
PERCENTILES = range(0, 101, 5)


# -------------------------------------------------------------------------------------------- single numbers


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance of two Gaussians fitted to features [N, D] and [M, D] (Heusel et al. 2017).

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)); the root's trace is the sum of the root eigenvalues of
    the symmetric C_a^(1/2) C_b C_a^(1/2), which exists where C_a C_b is singular and `sqrtm` fails, as it is
    for one slice repeated. With few samples it is biased upwards: 1,000 from the very same Gaussian get 0.02
    at D = 64, and 100 get 0.2.
    """
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    roots = np.sqrt(np.linalg.eigvalsh(root_a @ cov_b @ root_a).clip(min=0))
    distance = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + np.trace(cov_a) + np.trace(cov_b)
    return max(float(distance - 2 * roots.sum()), 0.0)


def precision_to_coverage(real: np.ndarray, fake: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Precision, recall (Kynkaanniemi et al. 2019), density, coverage (Naeem et al. 2020), k = 5.

    Recall and coverage depend on the number of points, so the larger side is cut to the number of the smaller
    by a draw from `seed`. A perfect sampler's coverage is 1 - 2^-5 = 0.97.

    Args:
        real, fake: [N, D] and [M, D], each without near repeats of one person (see `staggered`).
    Raises:
        InputError: a side has no more than k + 1 points.
    """
    n = min(len(real), len(fake))
    if n <= NEIGHBOURS + 1:
        raise InputError(f"the judge needs more than {NEIGHBOURS + 1} slices a side, not {n}: give it more people")
    rng = np.random.default_rng(seed)
    real, fake = (side[rng.permutation(len(side))[:n]] for side in (real, fake))
    with contextlib.redirect_stdout(io.StringIO()):  # prdc prints its counts
        figures = compute_prdc(real, fake, NEIGHBOURS)
    return {name: float(value) for name, value in figures.items()}


def staggered(people: Sequence[str], levels: np.ndarray) -> np.ndarray:
    """One slice in eight of each person, as sorted indices; the first starts at the first slice, the next person
    at the second, and so on, so that all levels appear.

    On all slices the nearest neighbours of one are the same person's next ones: the neighbourhoods are then so
    small that real slices of other people fall outside them.
    """
    people = np.asarray(people)
    chosen = []
    for start, person in enumerate(np.unique(people)):
        own = np.flatnonzero(people == person)
        own = own[np.argsort(levels[own], kind="stable")]
        chosen.append(own[start % STRIDE :: STRIDE])
    return np.sort(np.concatenate(chosen))


def mean_pairwise_ms_ssim(images: np.ndarray, seed: int = 0) -> float:
    """Mean MS-SSIM (Wang et al. 2003) of up to 200 random pairs that share no slice; 1 if all slices are one.

    Args:
        images: uint8 [N, H, W]. The five scales need sides of 176 pixels; smaller slices get as many scales as
            hold the 11-pixel window, with the weights of those made to sum to 1.
    """
    side = min(images.shape[1:])  # torchmetrics divides it by the square of the scale, where that is more
    weights = [w for i, w in enumerate(MS_SSIM_WEIGHTS) if side // max(2**i, i**2) >= MS_SSIM_KERNEL]
    betas = tuple(w / sum(weights) for w in weights)
    order = np.random.default_rng(seed).permutation(len(images))[: 2 * PAIRS]

    def of_pair(i: int, j: int) -> float:
        return ms_ssim(unit_batch(images[[i]]), unit_batch(images[[j]]), data_range=1.0, betas=betas).item()

    values = on_all_cores(lambda pair: of_pair(*pair), order[: len(order) // 2 * 2].reshape(-1, 2), "pairs")
    return float(np.mean(values))


def likeness(samples: np.ndarray, held_out: np.ndarray) -> dict:
    """SSIMs [N] and [M] of samples and of held-out slices with what is nearest to each in training, compared.

    Returns `share`, that of the samples above `threshold`, which 1 % of the held-out slices exceed, hence
    `share_held_out`, about 0.01; `percentiles`, and at each of them `ssim` and `ssim_held_out`.
    """
    threshold = float(np.quantile(held_out, 0.99))
    return {
        "share": float(np.mean(samples > threshold)),
        "share_held_out": float(np.mean(held_out > threshold)),
        "threshold": threshold,
        "percentiles": list(PERCENTILES),
        "ssim": np.percentile(samples, PERCENTILES).tolist(),
        "ssim_held_out": np.percentile(held_out, PERCENTILES).tolist(),
    }


def code_histogram_distance(codes_a: torch.Tensor, codes_b: torch.Tensor, codebook_size: int) -> float:
    """Total variation of two code histograms: 0 (the same) to 1 (no code in common).

    Args:
        codes_a, codes_b: integers in [0, K), any shapes.
    """
    p, q = (code_counts(codes, codebook_size).double() / codes.numel() for codes in (codes_a, codes_b))
    return (p - q.to(p.device)).abs().sum().item() / 2


# ---------------------------------------------------------------------------------------------- judge


class Judge:
    """Measures samples against training people's slices, and against people held out from training."""

    def __init__(
        self,
        train: Slices,
        held_out: Slices,
        seed: int = 0,
        features: Sequence[str] = SPACES,
        device: str | torch.device = "cpu",
        reconstruct: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        """Fits the feature spaces: about 12 s for 4,960 slices on two cores.

        Args:
            train, held_out: slices of different people and one size.
            seed: of the halves, cuts and pairs that are drawn; not of the feature spaces.
            features: any of `SPACES` and "inception"; nearest neighbours are looked for in the first.
            device: where Inception runs.
            reconstruct: gives the autoencoder's reconstructions, uint8 [n, H, W], of the training slices at n rows;
                a network tells them from real slices as well as samples of a perfect prior.
        Raises:
            InputError: fewer than four people or 64 slices to train on, nobody held out, sizes that differ,
                an unknown feature space, Inception's weights can't be had.
        """
        check_enough(train, held_out)
        self.train, self.held_out, self.seed, self.reconstruct = train, held_out, seed, reconstruct
        self.people = np.asarray(train.people)
        self.sparse = staggered(train.people, train.levels)
        self._check_size(held_out.images)
        self.spaces = {name: FeatureSpace(name, train.images, device) for name in features}
        self.search = Search(train, next(iter(self.spaces.values())))
        self._two_sample_floors: dict[int, dict] = {}
        self._held_out_features = {name: s.features(held_out.images) for name, s in self.spaces.items()}

    def score(self, samples: np.ndarray, nearest: Neighbours) -> dict:
        """Everything about samples, uint8 [N, H, W], N at least 100, as plain numbers for `metrics.json`.

        `nearest`: what `self.nearest` finds for the samples.

        Returns:
            `samples`, `train`, `held_out`: numbers of slices;
            `fidelity`: for each space `frechet` (against all training slices), `precision`, `recall`, `density`,
                `coverage` (against `staggered` training slices), `frechet_held_out` (against held-out people);
            `floor`: the same for real slices, see `floor`;
            `diversity`: `ms_ssim`, mean over pairs of samples, and `ms_ssim_train`, over training slices;
            `memorisation`: `share` of the samples that are nearer to a training slice than the nearest 1 % of
                held-out slices are, by SSIM, hence `share_held_out`, about 0.01; `threshold`, that SSIM;
                `percentiles` and at each of them `ssim` and `ssim_held_out`, the distributions of the nearest
                slice's SSIM; under `mirrored` the same of the training slices' mirror images; `of_one_person`, the
                share of the samples whose five nearest slices, mirrored or not, are of one person, and
                `of_one_person_held_out`; `closest`, the six nearest samples with `sample`, `train_index`,
                `train_name`, `mirrored` (whether the slice's mirror image is meant), `ssim`;
            `two_sample`: see there.
        Raises:
            InputError: fewer than 100 samples, or not of the training slices' size.
        """
        self._check(samples)
        return {
            "samples": len(samples),
            "train": len(self.train.images),
            "held_out": len(self.held_out.images),
            "fidelity": self.fidelity(samples),
            "floor": self.floor,
            "diversity": {
                "ms_ssim": mean_pairwise_ms_ssim(samples, self.seed),
                "ms_ssim_train": self._train_ms_ssim,
            },
            "memorisation": self.memorisation(nearest),
            "two_sample": self.two_sample(samples),
        }

    def frechet(self, samples: np.ndarray) -> dict[str, float]:
        """Frechet distance of samples and held-out people's slices in each space: to choose a checkpoint by."""
        self._check(samples)
        return {
            name: frechet_distance(self._held_out_features[name] / space.scale, fake / space.scale)
            for name, space, fake in self._each_space(samples)
        }

    def fidelity(self, samples: np.ndarray) -> dict[str, dict[str, float]]:
        """Frechet distances, precision, recall, density and coverage of samples in each space."""
        self._check(samples)
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
        """What real slices get: `fidelity` of one half of the training people against the other half, the mean
        over five random halvings; under `frechet_held_out`, all training slices against held-out people."""
        figures = {}
        for name, space in self.spaces.items():
            rounds = [self._half_against_half(space, self.seed + i) for i in range(HALVINGS)]
            figures[name] = {key: float(np.mean([r[key] for r in rounds])) for key in rounds[0]}
            scaled = space.train / space.scale, self._held_out_features[name] / space.scale
            figures[name]["frechet_held_out"] = frechet_distance(*scaled)
        return figures

    def nearest(self, images: np.ndarray) -> Neighbours:
        """The training slices nearest to each image, and to its mirror image, see `Search`."""
        return self.search(images)

    @cached_property
    def held_out_nearest(self) -> Neighbours:
        """The training slices nearest to the held-out people's slices."""
        return self.nearest(self.held_out.images)

    def memorisation(self, neighbours: Neighbours) -> dict:
        """The `memorisation` part of `score`, from samples' `nearest`."""
        held_out = self.held_out_nearest
        either = np.maximum(neighbours.ssim, neighbours.mirrored_ssim)
        return {
            **likeness(neighbours.ssim, held_out.ssim),
            "mirrored": likeness(neighbours.mirrored_ssim, held_out.mirrored_ssim),
            "of_one_person": float(np.mean(neighbours.of_one)),
            "of_one_person_held_out": float(np.mean(held_out.of_one)),
            "closest": [self._pair(neighbours, int(i)) for i in np.argsort(-either, kind="stable")[:CLOSEST]],
        }

    def two_sample(self, samples: np.ndarray) -> dict[str, dict[str, dict[str, float]]]:
        """How well a network tells the samples, 1,000 at most, from as many training slices of the same mix of levels.

        Returns:
            For "full" and "half" size, `samples`, and what they are to be seen beside: `real`, one half of the
            training people from the other, and where the judge can reconstruct `reconstructions`, of training
            slices from others; each the area under the ROC curve, `mean`, `min` and `max` over three seeds.
        """
        n = min(len(samples), LIMIT, len(self.train))
        drawn = Kind(samples[:n], [f"sample {i}" for i in range(n)])
        tests = {"samples": two_sample_test(lambda seed: (self._real(n, seed), drawn), self.seed)}
        tests |= self._two_sample_floor(n)
        return {size: {who: test[size] for who, test in tests.items()} for size in SIZES}

    def _two_sample_floor(self, n: int) -> dict[str, dict[str, dict[str, float]]]:
        """The tests that samples have no part in, done once for each number of slices."""
        if n not in self._two_sample_floors:
            tests = {"real": lambda seed: [self._real(n, seed, rows) for rows in self._halves(seed)]}
            if self.reconstruct:
                rows = self._spread(n, self.seed + SEEDS)  # of the same people, but mostly other slices
                decoded = Kind(self.reconstruct(rows), self.people[rows].tolist())
                tests["reconstructions"] = lambda seed: (self._real(n, seed), decoded)
            self._two_sample_floors[n] = {who: two_sample_test(draw, self.seed) for who, draw in tests.items()}
        return self._two_sample_floors[n]

    def _real(self, n: int, seed: int, rows: np.ndarray | None = None) -> Kind:
        chosen = self._spread(n, seed, rows)
        return Kind(self.train.images[chosen], self.people[chosen].tolist())

    def _spread(self, n: int, seed: int, rows: np.ndarray | None = None) -> np.ndarray:
        """Rows of `n` training slices, or of all at `rows` if those are fewer, drawn evenly from all levels."""
        rows = np.arange(len(self.train)) if rows is None else rows
        chance = np.random.default_rng(seed).random(len(rows))
        rows = rows[np.lexsort((chance, self.train.levels[rows]))]
        return np.sort(rows[np.linspace(0, len(rows) - 1, min(n, len(rows))).round().astype(int)])

    def _pair(self, neighbours: Neighbours, sample: int) -> dict:
        """A sample and the training slice that it, or the slice's mirror image, is nearest to."""
        mirrored = bool(neighbours.mirrored_ssim[sample] > neighbours.ssim[sample])
        index = int((neighbours.mirrored_index if mirrored else neighbours.index)[sample])
        return {
            "sample": sample,
            "train_index": index,
            "train_name": self.train.names[index],
            "mirrored": mirrored,
            "ssim": float((neighbours.mirrored_ssim if mirrored else neighbours.ssim)[sample]),
        }

    def as_seen(self, rows: Sequence[int], mirrored: Sequence[bool]) -> np.ndarray:
        """The training slices at `rows`, as mirror images where `mirrored` says so, uint8 [N, H, W]."""
        slices = self.train.images[list(rows)]
        return np.where(np.array(mirrored)[:, None, None], self.search.mirrored(slices), slices)

    def _half_against_half(self, space: FeatureSpace, seed: int) -> dict[str, float]:
        half, other = self._halves(seed)
        sparse = (space.train[np.intersect1d(rows, self.sparse)] for rows in (half, other))
        return {
            "frechet": frechet_distance(space.train[half] / space.scale, space.train[other] / space.scale),
            **precision_to_coverage(*sparse, seed),
        }

    def _halves(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of one half of the training people and of the other, as `seed` draws them."""
        people = np.random.default_rng(seed).permutation(np.unique(self.people))
        first = np.isin(self.people, people[: len(people) // 2])
        return np.flatnonzero(first), np.flatnonzero(~first)

    def _each_space(self, samples: np.ndarray) -> Iterator[tuple[str, FeatureSpace, np.ndarray]]:
        return ((name, space, space.features(samples)) for name, space in self.spaces.items())

    @cached_property
    def _train_ms_ssim(self) -> float:
        return mean_pairwise_ms_ssim(self.train.images, self.seed)

    def _check(self, samples: np.ndarray) -> None:
        self._check_size(samples)
        if len(samples) < MIN_SAMPLES:
            raise InputError(f"{len(samples)} samples are too few to judge: make at least {MIN_SAMPLES}")

    def _check_size(self, images: np.ndarray) -> None:
        if images.dtype != np.uint8 or images.ndim != 3:
            raise ValueError(f"need uint8 [N, H, W], not {images.dtype} {images.shape}")
        if images.shape[1:] != (size := self.train.images.shape[1:]):
            raise InputError(f"slices of {images.shape[1:]} can't be judged beside training slices of {size}")


def table(verdict: dict) -> str:
    """A verdict of `Judge.score` for the terminal: each figure beside what real slices get.

    Where the verdict has a "ceiling", the `fidelity` of another prior to compare with, that stands below them.
    """
    heads = ("frechet", "frechet_held_out", "precision", "recall", "density", "coverage")
    lines = [f"{'':24}" + "".join(f"{head.replace('_', ' '):>18}" for head in heads)]
    for space, figures in verdict["fidelity"].items():
        rows = [("samples", figures), ("real (floor)", verdict["floor"][space])]
        if "ceiling" in verdict:
            rows.append(("ceiling", verdict["ceiling"][space]))
        for who, row in rows:
            lines.append(f"{f'{space}, {who}':24}" + "".join(f"{row[head]:18.3f}" for head in heads))
    diversity, memorisation = verdict["diversity"], verdict["memorisation"]
    lines.append(f"mean pairwise MS-SSIM {diversity['ms_ssim']:.3f}, training slices {diversity['ms_ssim_train']:.3f}")
    for what, row in (("training slice", memorisation), ("mirrored training slice", memorisation["mirrored"])):
        lines.append(
            f"nearer to a {what} than SSIM {row['threshold']:.3f}: samples {row['share']:.1%},"
            f" held-out slices {row['share_held_out']:.1%}"
        )
    lines.append(
        f"nearest five slices are of one person: samples {memorisation['of_one_person']:.1%},"
        f" held-out slices {memorisation['of_one_person_held_out']:.1%}"
    )
    for size, tests in verdict["two_sample"].items():
        areas = (f"{who} {test['mean']:.3f} ({test['min']:.3f} to {test['max']:.3f})" for who, test in tests.items())
        lines.append(f"told from real slices at {size} size, area under the ROC curve: {', '.join(areas)}")
    counts = f"{verdict['samples']} samples, {verdict['train']} training and {verdict['held_out']} held-out slices"
    return "\n".join([*lines, counts])
