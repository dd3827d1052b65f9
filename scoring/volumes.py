"""Are sampled volumes whole brains? Whether neighbouring slices are of one person, beside what real people's get.

    judge = VolumeJudge(data.splits["train"], data.splits["validate"])
    verdict = judge.score(volumes, baseline)    # uint8 [V, L, H, W], a slice for each of `judge.levels`
    print(table(verdict))

A volume is a stack of axial slices of one person, in order of level. The slices alone are for judge.py to score; here
it is what runs from slice to slice, which slices that were each drawn alone lack however good they are. Volumes are
compared within the content box of the training slices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from scipy.ndimage import binary_fill_holes, distance_transform_edt
from scipy.stats import wasserstein_distance
from sklearn.neighbors import NearestNeighbors

from dataset import Box, Slices
from reading.names import volume_of
from runtime.errors import InputError
from runtime.wording import counted
from scoring.batches import on_all_cores, unit_batch
from scoring.enough import MIN_PEOPLE, MIN_VOLUMES, check_size
from scoring.features import FeatureSpace, Pixels
from scoring.judge import CLOSEST, frechet_distance, likeness
from scoring.metrics import C2, FOREGROUND, ssim

MIN_LEVELS = 2  # a slice has a neighbour
DRAWS = 10  # of real people, against the others: their mean is the floor

SPACES = ("pca", "randconv")  # in which reslices are compared
DIRECTIONS = {"sagittal": -2, "coronal": -1}  # slices lie on their side: rows go from left to right
PLANE_STEP = 8  # pixels from one reslice to the next

DARK = 0.5  # of the upper quartile of a slice's foreground, which is white matter: fluid has less, cortex more
CORE = 1 / 3  # of the greatest depth: sulci lie outside, ventricles and cisterns inside

MAX_PAIRS = 500  # of volumes, for the mean SSIM of their middle slices
CANDIDATES = 4  # nearest people by structure, among whom SSIM decides
BAND = (10, 90)  # percentiles over people

Measures = dict[str, np.ndarray]  # of V volumes, each [V, ...]: see `VolumeJudge.measure`


# -------------------------------------------------------------------------------------------- real volumes


@dataclass(frozen=True)
class Volumes:
    """Whole stacks of real slices, one for each scan."""

    images: np.ndarray  # uint8 [P, L, H, W]
    names: list[str]  # P, of the scans
    people: list[str]  # P; a person with two scans is there twice
    levels: np.ndarray  # int64 [L], consecutive


def volumes_of(slices: Slices, levels: Sequence[int] | None = None, box: Box | None = None) -> Volumes:
    """All scans that have a slice for each of `levels`, by default the range that holds the most slices of whole scans.

    `box` crops the slices before they are copied.

    Raises:
        InputError: fewer than four people have two consecutive levels in common, or nobody has `levels`.
    """
    scans: dict[str, dict[int, int]] = {}
    people: dict[str, str] = {}
    for row, (name, person, level) in enumerate(zip(slices.names, slices.people, slices.levels.tolist(), strict=True)):
        if level >= 0:
            scans.setdefault(scan := volume_of(name), {})[level] = row
            people[scan] = person
    if levels is None:
        levels = common_levels([(people[scan], list(rows)) for scan, rows in scans.items()])
    whole = [scan for scan, rows in scans.items() if all(level in rows for level in levels)]
    if not whole:
        raise InputError(f"nobody has slices of all levels from {levels[0]} to {levels[-1]}")
    rows = np.array([[scans[scan][level] for level in levels] for scan in whole])
    pictures = slices.images if box is None else box.crop(slices.images)
    return Volumes(pictures[rows], whole, [people[scan] for scan in whole], np.array(levels))


def common_levels(scans: Sequence[tuple[str, Sequence[int]]]) -> range:
    """The consecutive levels that make the most slices of scans that have them all, of four people or more.

    Args:
        scans: the person and the levels of each.
    Raises:
        InputError: there is no such range of two levels or more.
    """
    sets = [(person, set(levels)) for person, levels in scans]
    every = sorted(set().union(*(levels for _, levels in sets)))
    best, most = range(0), 0
    for first in every:
        having = sets
        for last in range(first, every[-1] + 1):
            having = [(person, levels) for person, levels in having if last in levels]
            if len({person for person, _ in having}) < MIN_PEOPLE:
                break
            levels = range(first, last + 1)
            if len(levels) >= MIN_LEVELS and len(levels) * len(having) > most:
                best, most = levels, len(levels) * len(having)
    if not best:
        raise InputError(f"whole volumes need {MIN_PEOPLE} people with the same consecutive levels: add people")
    return best


# ------------------------------------------------------------------------------------------- measures


def neighbour_likeness(volumes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SSIM and mean absolute difference, in [0, 1], of slices l and l + 1: uint8 [V, L, H, W] -> two of [V, L - 1]."""

    def of_volume(volume: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = unit_batch(volume)
        # One pair at a time: SSIM's temporaries stay in the processor's cache.
        ssims = [ssim(x[[level]], x[[level + 1]]).item() for level in range(len(x) - 1)]
        return np.array(ssims), (x[1:] - x[:-1]).abs().mean(dim=(1, 2, 3)).numpy()

    ssims, differences = zip(*on_all_cores(of_volume, volumes, "neighbouring slices"), strict=True)
    return np.stack(ssims), np.stack(differences)


def core_of(mean: np.ndarray) -> np.ndarray:
    """Where ventricles are looked for: bool [L, H, W], from the mean of the training people's volumes, [L, H, W].

    The pixels of a level's mean slice, holes filled, at least a third as far from its outside as the farthest one.
    """
    brains = [np.pad(binary_fill_holes(foreground), 1) for foreground in mean > FOREGROUND]
    depths = [distance_transform_edt(brain)[1:-1, 1:-1] for brain in brains]
    return np.stack([(depth > 0) & (depth >= CORE * depth.max()) for depth in depths])


def areas(volumes: np.ndarray, core: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of tissue and of ventricles in every slice, two int arrays [V, L].

    The threshold between tissue and fluid is half the upper quartile of the slice's own foreground, since slices differ
    in brightness. Tissue is the foreground above it; all of the foreground would say nothing where brains were cut out
    with one mask. Ventricles, with cisterns and the inner ends of fissures, are what is darker, background too, in the
    core, which is the same for all: outside of it, sulci would outweigh them.

    Args:
        volumes: uint8 [V, L, H, W]. core: see `core_of`.
    """

    def of_slice(picture: np.ndarray, inside: np.ndarray) -> tuple[int, int]:
        foreground = picture[picture > FOREGROUND]
        threshold = DARK * np.percentile(foreground, 75) if foreground.size else 0
        return np.count_nonzero(foreground >= threshold), np.count_nonzero(picture[inside] < threshold)

    def of_volume(volume: np.ndarray) -> list[tuple[int, int]]:
        return [of_slice(*level) for level in zip(volume, core, strict=True)]

    tissue, ventricles = np.moveaxis(np.array(on_all_cores(of_volume, volumes, "areas")), -1, 0)
    return tissue, ventricles


class SizeMeasure:
    """How large brains and their ventricles are, measured alike for all: where ventricles lie, training people say."""

    def __init__(self, train: Slices):
        """Raises InputError when too few training people have the same levels."""
        real = volumes_of(train, box=train.box)
        self.levels, self.box, self.core = real.levels, train.box, core_of(real.images.mean(axis=0))

    def __call__(self, volumes: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 [V, L, H, W], cropped to `box`, a slice for each of `levels` -> float64 [V] each: `ventricles`, share
        of the brain, and `brain`, tissue and ventricles in pixels a slice."""
        tissue, ventricles = (each.sum(axis=1) for each in areas(volumes, self.core))
        return {"ventricles": ventricles / (tissue + ventricles), "brain": (tissue + ventricles) / len(self.levels)}

    def of_slices(self, slices: Slices) -> dict[str, np.ndarray]:
        """The same of the scan that each slice belongs to, float64 [N] each; NaN where it lacks some of `levels`."""
        try:
            whole = volumes_of(slices, self.levels.tolist(), self.box)
        except InputError:  # nobody has all levels
            return {name: np.full(len(slices), np.nan) for name in ("ventricles", "brain")}
        row = {scan: i for i, scan in enumerate(whole.names)}
        index = [row.get(volume_of(name), len(whole.names)) for name in slices.names]
        return {name: np.append(values, np.nan)[index] for name, values in self(whole.images).items()}


def planes_of(mean: np.ndarray, axis: int) -> np.ndarray:
    """Every 8th plane across `axis` (-2 or -1) that has tissue in the mean volume [L, H, W]."""
    other = -3 - axis
    filled = np.flatnonzero((mean > FOREGROUND).any(axis=(0, other)))
    return filled[min(PLANE_STEP // 2, len(filled) // 2) :: PLANE_STEP]


def reslices(volumes: np.ndarray, axis: int, planes: np.ndarray) -> np.ndarray:
    """Planes across the slices: uint8 [V, L, H, W] -> [V x planes, k L, W] (axis -2) or [V x planes, k L, H] (-1).

    Each level is repeated k times, a whole number that makes the reslice nearly as high as a slice is wide: where
    slices don't fit together, the steps stay sharp, and are wide enough not to be averaged away by `pca`'s 64x64
    pixels, or by the strides of `randconv`.
    """
    zoom = max(1, min(volumes.shape[2:]) // volumes.shape[1])
    stacks = np.moveaxis(np.take(volumes, planes, axis=axis), axis, 1)  # [V, planes, L, side]
    return stacks.reshape(-1, *stacks.shape[2:]).repeat(zoom, axis=1)


def middle_likeness(volumes: np.ndarray, seed: int = 0) -> float:
    """Mean SSIM of the middle slices of up to 500 random pairs of volumes; 1 if all volumes are one."""
    pairs = np.stack(np.triu_indices(len(volumes), 1), axis=1)
    pairs = pairs[np.random.default_rng(seed).permutation(len(pairs))[:MAX_PAIRS]]
    middle = unit_batch(volumes[:, volumes.shape[1] // 2])
    return float(np.mean(on_all_cores(lambda pair: ssim(middle[pair[:1]], middle[pair[1:]]).item(), pairs, "pairs")))


def distances(some: Measures, others: Measures) -> dict[str, float]:
    """How far the measures of some volumes are from those of others.

    Returns:
        `neighbour_ssim`, `neighbour_difference`: Wasserstein distance over all volumes and levels;
        `tissue_jump`, `ventricle_jump`: the same of the area's absolute change from level to level, in pixels;
        `tissue_mean`, `ventricle_mean`: Wasserstein distance over volumes of the mean area over levels. A person's
            ventricles are large or small at all levels; slices that are each drawn on their own average that out;
        `sagittal_pca` and so on: Frechet distance of the reslices.
    """
    figures = {}
    for name, a in some.items():
        b = others[name]
        if name in ("tissue", "ventricle"):
            figures[f"{name}_jump"] = wasserstein_distance(*(np.abs(np.diff(side)).ravel() for side in (a, b)))
            figures[f"{name}_mean"] = wasserstein_distance(a.mean(axis=1), b.mean(axis=1))
        elif name.startswith("neighbour"):
            figures[name] = wasserstein_distance(a.ravel(), b.ravel())
        else:
            figures[name] = frechet_distance(*(side.reshape(-1, side.shape[-1]) for side in (a, b)))
    return {name: float(figure) for name, figure in figures.items()}


def curves(measures: Measures) -> dict[str, dict[str, list[float]]]:
    """For what is measured at each level its `mean`, and the 10th and 90th percentile (`low`, `high`), over volumes."""
    by_level = {name: values for name, values in measures.items() if values.ndim == 2}
    by_level["ventricle_jump"] = np.abs(np.diff(measures["ventricle"]))
    found = {}
    for name, values in by_level.items():
        low, high = np.percentile(values, BAND, axis=0)
        found[name] = {"mean": values.mean(axis=0).tolist(), "low": low.tolist(), "high": high.tolist()}
    return found


# ------------------------------------------------------------------------------------------- copies


class PersonSearch:
    """Finds the training volume that a volume is most like, by the mean over levels of the slices' SSIM."""

    def __init__(self, train: np.ndarray) -> None:
        """`train`: uint8 [P, L, H, W], cropped."""
        self.train = train
        candidates = min(CANDIDATES, len(train))
        self.candidates = NearestNeighbors(n_neighbors=candidates, metric="cosine").fit(self._structure(train))

    def __call__(self, volumes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each volume's nearest person: of the four nearest by `_structure`, and of the four nearest to its mirror
        image, the one of highest SSIM. Index [V], whether the mirror image is meant, and that SSIM."""
        views = volumes, volumes[:, :, ::-1].copy()  # axial slices lie on their side: that swaps left and right
        near = [self.candidates.kneighbors(self._structure(view), return_distance=False) for view in views]

        def of_volume(row: int) -> tuple[float, int, bool]:
            pairs = [(mirrored, int(person)) for mirrored in (False, True) for person in near[mirrored][row]]
            return max((self._ssim(views[mirrored][row], person), person, mirrored) for mirrored, person in pairs)

        ssims, index, mirrored = zip(*on_all_cores(of_volume, range(len(volumes)), "nearest people"), strict=True)
        return np.array(index), np.array(mirrored), np.array(ssims)

    def _ssim(self, volume: np.ndarray, person: int) -> float:
        levels = zip(unit_batch(volume).split(1), unit_batch(self.train[person]).split(1), strict=True)
        return float(np.mean([ssim(*level).item() for level in levels]))

    @staticmethod
    def _structure(volumes: np.ndarray) -> np.ndarray:
        """float32 [V, L x 4096]: the slices at 64x64 pixels, each pixel less the mean of those around it and over their
        deviation. Such pictures' cosine follows SSIM, which is of structure more than of brightness: of eight OASIS
        people held out, the one of highest SSIM was among the four nearest for all, by plain pixels for five."""

        def of_volume(volume: np.ndarray) -> np.ndarray:
            x = Pixels()(unit_batch(volume)).view(-1, 1, 64, 64)
            mean, power = (F.avg_pool2d(y, 3, stride=1, padding=1) for y in (x, x * x))
            return ((x - mean) / ((power - mean * mean).clamp_min(0) + C2).sqrt()).flatten().numpy()

        return np.stack([of_volume(volume) for volume in volumes])


# -------------------------------------------------------------------------------------------- judge


class VolumeJudge:
    """Compares sampled volumes with training people's, and with those of people held out from training."""

    def __init__(self, train: Slices, held_out: Slices, seed: int = 0) -> None:
        """Fits the reslices' feature spaces, and measures the real volumes.

        Args:
            train, held_out: slices of different people and one size.
            seed: of the draws of people and pairs; not of the feature spaces.
        Raises:
            InputError: fewer than four training people or two held-out scans have the same consecutive levels, or
                sizes differ.
        """
        self.seed, self.slices, self.box = seed, train, train.box
        self.real = volumes_of(train, box=self.box)
        self.levels = self.real.levels
        check_size(held_out.images, train)
        unseen = volumes_of(held_out, self.levels.tolist(), self.box).images
        self._check_number(len(unseen), "held-out")
        mean = self.real.images.mean(axis=0)
        self.core = core_of(mean)
        self.planes = {direction: planes_of(mean, axis) for direction, axis in DIRECTIONS.items()}
        self.spaces = {
            f"{direction}_{name}": FeatureSpace(name, self._reslices(self.real.images, direction))
            for direction in DIRECTIONS
            for name in SPACES
        }
        self.train, self.held_out = self.measure(self.real.images), self.measure(unseen)
        self.search = PersonSearch(self.real.images)
        self.held_out_ssims = self.search(unseen)[2]
        real = {"train": self.real.images, "held_out": unseen}
        self.likeness = {kind: middle_likeness(images, seed) for kind, images in real.items()}

    def measure(self, images: np.ndarray) -> Measures:
        """`neighbour_ssim`, `neighbour_difference` [V, L - 1]; `tissue`, `ventricle` [V, L], in pixels; and features of
        the reslices, scaled, [V, planes, D], `sagittal_pca` and so on."""
        found = dict(zip(("neighbour_ssim", "neighbour_difference"), neighbour_likeness(images), strict=True))
        found |= dict(zip(("tissue", "ventricle"), areas(images, self.core), strict=True))
        for name, space in self.spaces.items():
            features = space.features(self._reslices(images, name.split("_")[0])) / space.scale
            found[name] = features.reshape(len(images), -1, features.shape[1])
        return found

    def score(self, volumes: np.ndarray, baseline: np.ndarray | None = None) -> dict:
        """All figures of sampled volumes, as plain numbers for `metrics.json`.

        Args:
            volumes: uint8 [V, L, H, W], a slice for each of `levels`.
            baseline: others to stand beside them, usually of slices that were each drawn on their own.
        Returns:
            `levels`; `sampled`, `train`, `held_out` and, if there is one, `baseline`: numbers of volumes;
            `distances`: from training people of `sampled`, `baseline` and `held_out`, see `distances`; `floor` and
                `floor_highest`, mean and highest over ten draws of as many training people as there are samples, half
                of them at most, from the others. Few held-out people are as far away as few draws are;
            `curves`: for each kind, see `curves`;
            `diversity`: for each kind, see `middle_likeness`;
            `copies`: `likeness` of the volumes, and of held-out ones, to the person each is most like, mirrored or not
                (with M held-out volumes about 1 new person in M + 1 lies above the threshold, too); with a baseline,
                `share_baseline`; and `closest`, the six likest, with `volume`, `person`, `mirrored`, `ssim`.
        Raises:
            InputError: fewer than two volumes, or not of the training volumes' size and number of levels.
        """
        kinds = {"sampled": volumes} | ({} if baseline is None else {"baseline": baseline})
        for kind, images in kinds.items():
            self._check(images, kind)
        kinds = {kind: np.ascontiguousarray(self.box.crop(images)) for kind, images in kinds.items()}
        measured = {kind: self.measure(images) for kind, images in kinds.items()} | {"held_out": self.held_out}
        beside_train = {kind: distances(own, self.train) for kind, own in measured.items()}
        return {
            "levels": self.levels.tolist(),
            "train": len(self.real.images),
            **{kind: len(own["tissue"]) for kind, own in measured.items()},
            "distances": beside_train | self.floor(len(volumes)),
            "curves": {kind: curves(own) for kind, own in (measured | {"train": self.train}).items()},
            "diversity": {kind: middle_likeness(images, self.seed) for kind, images in kinds.items()} | self.likeness,
            "copies": self.copies(**kinds),
        }

    def floor(self, number: int) -> dict[str, dict[str, float]]:
        """Distances of `number` real people, half of them at most, from the others: mean and highest of ten draws."""
        people = np.asarray(self.real.people)
        names = np.unique(people)
        rounds = []
        for i in range(DRAWS):
            order = np.random.default_rng(self.seed + i).permutation(names)
            drawn = np.isin(people, order[: min(number, len(names) // 2)])
            sides = ({name: values[rows] for name, values in self.train.items()} for rows in (drawn, ~drawn))
            rounds.append(distances(*sides))
        summary = {"floor": np.mean, "floor_highest": np.max}
        return {kind: {key: float(f([r[key] for r in rounds])) for key in rounds[0]} for kind, f in summary.items()}

    def copies(self, sampled: np.ndarray, baseline: np.ndarray | None = None) -> dict:
        """The `copies` part of `score`, of cropped volumes."""
        index, mirrored, ssims = self.search(sampled)
        figures = likeness(ssims, self.held_out_ssims)
        if baseline is not None:
            figures["share_baseline"] = float(np.mean(self.search(baseline)[2] > figures["threshold"]))
        closest = [
            {"volume": i, "person": self.real.people[index[i]], "mirrored": bool(mirrored[i]), "ssim": float(ssims[i])}
            for i in np.argsort(-ssims, kind="stable")[:CLOSEST].tolist()
        ]
        return figures | {"closest": closest}

    def _reslices(self, images: np.ndarray, direction: str) -> np.ndarray:
        return reslices(images, DIRECTIONS[direction], self.planes[direction])

    def _check(self, images: np.ndarray, kind: str) -> None:
        check_size(images, self.slices)
        self._check_number(len(images), kind)
        if images.shape[1] != len(self.levels):
            levels = f"{len(self.levels)} levels, {self.levels[0]} to {self.levels[-1]}"
            raise InputError(f"{kind} volumes of {images.shape[1]} slices can't be judged beside real ones of {levels}")

    @staticmethod
    def _check_number(number: int, kind: str) -> None:
        if number < MIN_VOLUMES:
            raise InputError(f"{counted(number, f'{kind} volume')} can't be judged: it takes {MIN_VOLUMES} or more")


def table(verdict: dict) -> str:
    """A verdict of `VolumeJudge.score` for the terminal: each figure beside what real volumes get."""
    kinds = [kind for kind in ("sampled", "baseline", "held_out") if kind in verdict]
    columns = [*kinds, "floor", "floor_highest"]
    lines = [f"{'distance from training people':30}" + "".join(f"{kind.replace('_', ' '):>15}" for kind in columns)]
    for measure in verdict["distances"]["floor"]:
        cells = "".join(f"{verdict['distances'][kind][measure]:15.4g}" for kind in columns)
        lines.append(f"{measure.replace('_', ' '):30}" + cells)
    diversity, copies = verdict["diversity"], verdict["copies"]
    alike = (f"{kind.replace('_', ' ')} {diversity[kind]:.3f}" for kind in (*kinds, "train"))
    lines.append(f"SSIM of two volumes' middle slices, mean: {', '.join(alike)}")
    shares = {"sampled": "share", "baseline": "share_baseline", "held_out": "share_held_out"}
    above = (f"{kind.replace('_', ' ')} {copies[shares[kind]]:.1%}" for kind in kinds)
    lines.append(f"more like a training person than SSIM {copies['threshold']:.3f}: {', '.join(above)}")
    counts = (f"{verdict[kind]} {kind.replace('_', ' ')}" for kind in (*kinds, "train"))
    return "\n".join([*lines, f"volumes of {len(verdict['levels'])} levels: {', '.join(counts)}"])
