"""How do files of many people become a data set? In three folders, by person, as links to where they lie."""

import os
import re
from collections import Counter
from pathlib import Path

import numpy as np

from reading.listing import SPLITS, people_of, scan
from reading.names import COUNTER, is_data, is_volume, known_person, natural, person_of, suffix_of
from reading.nifti import partner
from reading.participants import DESCRIPTION, TABLE
from runtime.errors import InputError
from runtime.files import whole_folder
from runtime.wording import counted

HELD_OUT = 0.1  # share of the people to validate on, and to test on
SEED = 0
LABELS = re.compile(r"(^|[-_.])(\w?seg|aseg|mask|labels?|probseg|parcellation|semantic)([-_.]|$)", re.IGNORECASE)


def split(source: Path, out: Path, pattern: str | None = None) -> list[str]:
    """Link the pictures or volumes in `source` and all its folders into `out/{train,validate,test}`, by person.

    Four fifths of the people are to train on, a tenth each to validate and to test on; the same files give the same
    splits. The person is found by `pattern`, a regular expression, in the path from `source`, else in the names of the
    file and its folders. Of BIDS, T1w pictures alone are taken; of OASIS-1, those in atlas space, if they are there;
    masks and maps of labels are left out. All of it appears at `out`, or nothing.

    Returns lines that say what was done. Raises InputError when there are too few people, or `out` isn't empty.
    """
    if not source.is_dir():
        raise InputError(f"no folder {source}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and isn't empty: give a new folder for the splits")
    files = [path for path in source.rglob("*") if is_data(path.name) and path.is_file()]
    files.sort(key=lambda path: natural(str(path)))
    if out.resolve().is_relative_to(source.resolve()):
        files = [path for path in files if not path.is_relative_to(out)]
    chosen, lines = _choose(files)
    inside = {path: path.relative_to(source) for path in chosen}
    if pattern is None:
        people = {path: _person(place) for path, place in inside.items()}
    else:
        found = people_of([place.as_posix() for place in inside.values()], pattern)
        people = {path: found[place.as_posix()] for path, place in inside.items()}
    everyone = sorted(set(people.values()), key=natural)
    if len(everyone) < 3:
        raise InputError(f"{source} holds files of {counted(len(everyone), 'person', 'people')}, and splits need three")
    order = np.random.default_rng(SEED).permutation(everyone).tolist()
    held_out = max(1, round(HELD_OUT * len(order)))
    split_of = dict.fromkeys(order, "train") | dict.fromkeys(order[:held_out], "validate")
    split_of |= dict.fromkeys(order[held_out : 2 * held_out], "test")
    names = _names(source, people)
    try:
        with whole_folder(out) as new:
            for split in SPLITS:
                (new / split).mkdir()
            for path, person in people.items():
                _link(path, new / split_of[person] / names[path])
                if other := partner(path):
                    base = re.sub(r"\.img(\.gz)?$", "", names[path])
                    _link(other, new / split_of[person] / f"{base}{suffix_of(other.name)}")
            for table in (TABLE, DESCRIPTION):
                if (source / table).is_file():
                    _link(source / table, new / table)
    except OSError as error:
        raise InputError(f"can't write {out} ({error.strerror or error}): choose another folder") from error
    for split in SPLITS:
        own = [person for person in people.values() if split_of[person] == split]
        lines.append(f"{out / split}: {counted(len(own), 'file')} of {counted(len(set(own)), 'person', 'people')}")
    if pattern is None and (note := scan(out).note()):
        lines.append(f"warning: {note}")
    return lines


def _choose(files: list[Path]) -> tuple[list[Path], list[str]]:
    """The files to take, and a line for each kind that is left out."""
    left: Counter = Counter()

    def keep(wanted, kind: str) -> None:
        nonlocal files
        taken = [path for path in files if wanted(path)]
        if taken and len(taken) < len(files):
            left[kind] += len(files) - len(taken)
            files = taken

    keep(lambda path: is_volume(path.name), "pictures beside volumes")
    keep(lambda path: not LABELS.search(path.name.split(".")[0]), "masks and labels")
    keep(lambda path: "derivatives" not in path.parts, "derivatives")
    if any(path.name.startswith("sub-") for path in files):
        keep(lambda path: "_T1w." in path.name, "other than T1w")
    if any(path.name.startswith("OAS1_") for path in files):
        keep(lambda path: "_masked_gfc" in path.name, "other than skull-stripped in atlas space (masked_gfc)")
    return files, [f"left out: {number:,} {kind}" for kind, number in left.items()]


def _person(path: Path) -> str:
    """The person of a file in the source folder, by its name, or else by that of a folder which it lies in."""
    known = [person for part in (path.name, *path.parts[:-1]) if (person := known_person(part))]
    own = person_of(path.name)
    if known or not COUNTER.fullmatch(own):
        return known[0] if known else own
    return path.as_posix()


def _names(source: Path, people: dict[Path, str]) -> dict[Path, str]:
    """A name for each file that no other has, which begins with the person where its own doesn't tell."""
    names = {}
    for path, person in people.items():
        tells = "/" in person or person_of(path.name) == person or path.name.startswith(person)
        names[path] = path.name if tells else f"{person}_{path.name}"
    doubled = Counter(names.values())
    for path, name in names.items():
        if doubled[name] > 1:
            suffix = suffix_of(name)
            folders = path.relative_to(source).parent.as_posix().replace("/", "_")
            names[path] = f"{name.removesuffix(suffix)}_{folders}{suffix}"
    return names


def _link(target: Path, path: Path) -> None:
    try:
        os.link(target.resolve(), path)
    except OSError:  # on another disk, or one that has no hard links
        path.symlink_to(target.resolve())
