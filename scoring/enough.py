"""When are there enough slices and samples to judge? Known before training, without the judge's slow imports."""

from dataset import Slices
from runtime.errors import InputError

MIN_PEOPLE = 4  # to train on: the floor compares one half of them with the other, and two people are few enough
MIN_SLICES = 64  # to train on: as many as the principal components that are fitted to them
MIN_HELD_OUT = 2  # slices: fewer have no covariance
MIN_SAMPLES = 100  # fewer make every Frechet distance large


def check_enough(train: Slices, held_out: Slices) -> None:
    """Raises InputError when samples can't be judged beside so few slices."""
    people, slices = len(set(train.people)), len(train)
    if people < MIN_PEOPLE or slices < MIN_SLICES or len(held_out) < MIN_HELD_OUT:
        needed = f"{MIN_PEOPLE} training people, {MIN_SLICES} training slices and some held out"
        raise InputError(f"the judge needs {needed}: add people")
