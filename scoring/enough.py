"""When are there enough slices and samples to judge? Known before training, without the judge's slow imports."""

import numpy as np

from dataset import Slices
from runtime.errors import InputError

MIN_PEOPLE = 4  # to train on: the floor compares one half of them with the other, and a half needs two people
MIN_SLICES = 64  # to train on: as many as the principal components that are fitted to them
MIN_HELD_OUT = 2  # slices: fewer have no covariance
MIN_SAMPLES = 100  # fewer make every Frechet distance large
MIN_TWO_SAMPLE = 500  # samples, and training slices: from fewer a network learns too little, which flatters the samples
MIN_VOLUMES = 2  # sampled or held out: fewer have no covariance and no pairs


def check_size(images: np.ndarray, train: Slices) -> None:
    """Raises InputError when images [..., H, W] aren't of the training slices' size."""
    size, needed = ("x".join(map(str, array.shape[-2:])) for array in (images, train.images))
    if size != needed:
        raise InputError(f"slices of {size} pixels can't be judged beside training slices of {needed}")


def check_enough(train: Slices, held_out: Slices) -> None:
    """Raises InputError when samples can't be judged beside so few slices."""
    people, slices = len(set(train.people)), len(train)
    if people < MIN_PEOPLE or slices < MIN_SLICES or len(held_out) < MIN_HELD_OUT:
        needed = f"{MIN_PEOPLE} training people, {MIN_SLICES} training slices and {MIN_HELD_OUT} held-out slices"
        raise InputError(f"the judge needs {needed}, and there are {people}, {slices} and {len(held_out)}: add people")
