"""What does the project run on when there is no data? Synthetic people, drawn from the MNI152 brain template.

Each person is the template (Fonov et al. 2011, "Unbiased average age-appropriate atlases for pediatric studies",
which nilearn carries, skull-stripped, at 1 mm) under a size, a turn, and a smooth random deformation of its own,
with its own ventricles, depth of sulci, tissue contrast, bias field and noise. These are no one's brains, and
nothing measured on them says how a model does on real ones: every figure and table on this set says so.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from runtime.cli import LARGEST_SEED
from runtime.errors import InputError
from runtime.files import BUILD_TIMEOUT, locked, whole_folder

PEOPLE, SEED = 40, 0
MOST_PEOPLE = 100_000
LEVELS = 32  # axial slices a person, 1 mm apart
BOTTOM = -7.0  # mm, the lowest slice in MNI space: midbrain; the highest cuts the bodies of the lateral ventricles
CANVAS, TOP, LEFT = (256, 256), 40, 24
SHAPE = (176, 208, LEVELS)  # x (left to right) down the rows 40-215, y (to anterior) along the columns 24-231
CENTRE = np.array([0.0, -18.0, 0.0])  # mm, the point of MNI space in the middle of the picture
MARKER = "synthetic.json"  # in a data set's folder: says that it is synthetic, and how it was made
VERSION = 1  # raise it when the same people and seed would give other pictures


def is_demo(root: Path) -> bool:
    """Whether a data set's folder was made by `make`."""
    return (root / MARKER).is_file()


def ensure(cache_root: Path) -> Path:
    """The default demo set in the cache folder, made when it isn't there. Safe in several processes at once."""
    folder = cache_root / f"demo-{VERSION}"
    if is_demo(folder):
        return folder
    try:
        cache_root.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.lock"), BUILD_TIMEOUT):
            if not is_demo(folder):  # else another process made it while this one waited
                make(folder)
    except OSError as error:
        raise InputError(f"can't write the demo set to {cache_root} ({error}): set XDG_CACHE_HOME elsewhere") from error
    return folder


def make(folder: Path, people: int = PEOPLE, seed: int = SEED) -> None:
    """Write a synthetic set in the OASIS PNG layout: 32 slices a person, a tenth of the people each to validate and
    test on. The same `people` and `seed` give the same pictures. All of it appears at `folder`, or nothing.

    Raises InputError when `people` or `seed` is out of its range, or `folder` exists and isn't empty.
    """
    if not (3 <= people <= MOST_PEOPLE and 0 <= seed <= LARGEST_SEED):
        ranges = f"3 to {MOST_PEOPLE:,} people and a seed from 0 to {LARGEST_SEED:,}"
        raise InputError(f"the demo set takes {ranges}, not {people} and {seed}")
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and isn't empty: give a new folder for the demo set")
    held_out = max(1, people // 10)
    splits = ["train"] * (people - 2 * held_out) + ["validate"] * held_out + ["test"] * held_out
    template = Template()

    def write(number: int) -> None:
        target = new / f"keras_png_slices_{splits[number]}"
        target.mkdir(exist_ok=True)
        for level, picture in enumerate(person(template, np.random.default_rng([seed, number]))):
            Image.fromarray(picture).save(target / f"case_{number + 1:03d}_slice_{level}.nii.png")

    try:
        with whole_folder(folder) as new:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                list(tqdm(pool.map(write, range(people)), "synthetic people", people, unit="person", disable=None))
            made = {"synthetic": True, "source": "MNI152 template", "people": people, "seed": seed, "version": VERSION}
            (new / MARKER).write_text(json.dumps(made) + "\n")
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"can't write the demo set to {folder} ({reason}): free space or choose another") from error


class Template:
    """The template, and what of it every person is made from. Arrays [x, y, z] of 1 mm, towards RAS."""

    def __init__(self) -> None:
        # Imported here since it takes over a second, and every training run imports this file.
        from nilearn.datasets import load_mni152_brain_mask, load_mni152_template

        image = load_mni152_template(resolution=1)
        inside = np.asarray(load_mni152_brain_mask(resolution=1).dataobj) > 0
        brain = np.asarray(image.dataobj, np.float32)  # CSF 0.3 to 0.5, gray matter about 0.7, white about 0.87
        self.origin = image.affine[:3, 3]  # mm, of voxel (0, 0, 0)
        self.brain = np.where(inside, brain.clip(0.25), 0)
        # Darker than its surroundings by more than gray matter is: sulci, which averaging 152 people has filled.
        self.sulci = np.where(inside, (brain - ndimage.gaussian_filter(brain, 3) + 0.06).clip(None, 0), 0)
        self.towards_ventricles = self._towards_ventricles()

    def _towards_ventricles(self) -> np.ndarray:
        """float32 [3, x, y, z]: a smooth field that points to the ventricles from around them, at most 1 mm long."""
        x, y, z = np.ogrid[tuple(slice(0, n) for n in self.brain.shape)]
        x, y, z = (axis + start for axis, start in zip((x, y, z), self.origin, strict=True))
        central = (abs(x) < 34) & (y > -50) & (y < 36) & (z > -8) & (z < 32)
        dark = central & (self.brain > 0) & (self.brain < 0.6)
        labels, _ = ndimage.label(ndimage.binary_opening(dark))
        ventricles = labels == np.bincount(labels[labels > 0]).argmax()
        field = np.stack(np.gradient(ndimage.gaussian_filter(ventricles.astype(np.float32), 5)))
        return (field / np.linalg.norm(field, axis=0).max()).astype(np.float32)


def smooth_field(rng: np.random.Generator, spacing: float) -> np.ndarray:
    """A smooth random field, float32 of SHAPE, about N(0, 1) everywhere: a cubic B-spline, knots `spacing` mm apart."""
    bases = []
    for n in SHAPE:
        knots = np.arange(-3, n / spacing + 4) * spacing
        basis = BSpline.design_matrix(np.arange(n) + 0.5, knots, 3).toarray()
        bases.append((basis / np.sqrt((basis**2).sum(axis=1, keepdims=True))).astype(np.float32))
    weights = rng.standard_normal([basis.shape[1] for basis in bases], dtype=np.float32)
    return np.einsum("xa,yb,zc,abc->xyz", *bases, weights, optimize=True)


def person(template: Template, rng: np.random.Generator) -> np.ndarray:
    """One person's axial slices, uint8 [32, 256, 256], lowest first, anterior to the right, background exactly 0."""
    where = _anatomy(template, rng)
    depth = rng.uniform(2.0, 6.0)  # of the sulci
    brain = ndimage.map_coordinates(template.brain + depth * template.sulci, where, order=1)
    inside = ndimage.map_coordinates(template.brain, where, order=1) > 0.2

    # From the template's intensities of CSF, gray and white matter to this person's.
    tissues = [rng.uniform(0.08, 0.16), rng.uniform(0.50, 0.62), rng.uniform(0.80, 0.92)]
    brain = np.interp(brain, [0.35, 0.70, 0.88, 1.0], [*tissues, 1.0])
    brain *= np.exp(rng.uniform(0.02, 0.08) * smooth_field(rng, 80))  # the coil's bias
    brain += rng.uniform(0.01, 0.025) * rng.standard_normal(SHAPE, dtype=np.float32)

    pictures = np.zeros((LEVELS, *CANVAS), np.uint8)
    head = np.where(inside, (brain * 255).clip(1, 255).round(), 0).astype(np.uint8)
    pictures[:, TOP : TOP + SHAPE[0], LEFT : LEFT + SHAPE[1]] = head.transpose(2, 0, 1)
    return pictures


def _anatomy(template: Template, rng: np.random.Generator) -> np.ndarray:
    """Where in the template each voxel of this person comes from: float32 [3, *SHAPE], in voxels."""
    middle = np.array(SHAPE)[:, None, None, None] / 2
    grid = np.indices(SHAPE, dtype=np.float32) - middle.astype(np.float32) + 0.5
    grid[2] += SHAPE[2] / 2 + BOTTOM  # mm above the commissures
    size = rng.normal(1, [0.035, 0.035, 0.05])
    turns = np.radians(rng.normal(0, [2.5, 2.0, 2.0]))  # about z, x and y
    where = np.tensordot(Rotation.from_euler("ZXY", turns).as_matrix() / size, grid, axes=1).astype(np.float32)
    where[2] += rng.normal(0, 2)
    for spacing, amplitude in ((50, 2.2), (22, 1.5), (11, 0.8)):  # mm: the lobes, the gyri, their edges
        for part in where:
            part += amplitude * smooth_field(rng, spacing)
    where += (CENTRE - template.origin)[:, None, None, None].astype(np.float32)

    # To widen the ventricles is to look up, around them, what lies nearer to them.
    nearest = [part.round().astype(np.intp).clip(0, n - 1) for part, n in zip(where, template.brain.shape, strict=True)]
    return where + rng.uniform(-2.0, 5.0) * template.towards_ventricles[:, *nearest]
