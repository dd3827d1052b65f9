"""Which files does a data set hold, and of whom? Folders for its splits, in one of three layouts, and their files."""

import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from reading.names import COUNTER, is_data, is_volume, known_person, natural, person_of, suffix_of
from runtime.errors import InputError
from runtime.wording import counted

SPLITS = ("train", "validate", "test")
LAYOUTS = ("keras_png_slices_{}", "keras_slices_{}", "{}")
OTHER_NAMES = {"train": "tr", "validate": "val|dev", "test": "te|hold"}  # what people call their splits begins so


@dataclass(frozen=True)
class Listing:
    """What a data set's folders hold, from the directory entries alone: nothing has been opened yet."""

    root: Path
    folders: dict[str, Path]  # by split, those that exist
    files: dict[str, list[str]]  # by split, in natural order of person and name
    people: dict[str, dict[str, str]]  # by split, the person of each file
    has_volumes: bool  # all files are volumes, or slices of them; else pictures
    key: str  # SHA-256 of the files' names, sizes and times
    broken: list[str]  # a line for each link to nothing that has a data file's name

    def everyone(self) -> list[str]:
        """The people of all splits."""
        return list(dict.fromkeys(person for own in self.people.values() for person in own.values()))

    def overlap(self) -> list[str]:
        """A line for each person who is in more than one split."""
        places: dict[str, list[str]] = {}
        for split, people in self.people.items():
            for person in dict.fromkeys(people.values()):
                places.setdefault(person, []).append(split)
        return [f"{person} is in {' and '.join(where)}" for person, where in places.items() if len(where) > 1]

    def note(self) -> str | None:
        """A warning where names of no known data set may hide who is who: most people have a single file."""
        names = [(name, person) for people in self.people.values() for name, person in people.items()]
        number = Counter(person for _, person in names)
        unknown = sum(number[person] == 1 and not known_person(name) for name, person in names)
        if 2 * unknown <= len(number) or len(names) < 2:
            return None
        few = f"{unknown:,} of {counted(len(number), 'person', 'people')} have one file, such as {names[0][0]}"
        return f"{few}: where names hide who is who, a person may be in two splits; --person REGEX tells"

    def what_lies_in(self, split: str) -> str:
        """Why there is nothing to read in a split: `no folder validate in DIR; there is val`."""
        if split not in self.folders:
            entries = sorted(entry.name for entry in self.root.iterdir() if entry.is_dir() and entry.name[0] != ".")
            alike = [name for name in entries if re.match(OTHER_NAMES[split], name, re.IGNORECASE)]
            known, folder = next(iter(self.folders.items()))
            name = next(layout for layout in LAYOUTS if layout.format(known) == folder.name).format(split)
            rename = f"; there is {alike[0]}: rename it" if len(alike) == 1 else ""
            return f"the {split} split is missing: no folder {name} in {self.root}{rename}"
        return f"the {split} split is empty: {self.folders[split]} holds {contents_of(self.folders[split])}"


def contents_of(folder: Path) -> str:
    """What a folder without readable files holds, and what to do: `2 folders (AD, CN), 120 .dcm, no picture ...`."""
    with os.scandir(folder) as entries:
        entries = [entry for entry in entries if not entry.name.startswith(".")]
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    suffixes = Counter(suffix_of(entry.name) for entry in entries if not entry.is_dir())
    found = [f"{number:,} {suffix}" for suffix, number in suffixes.most_common(3)]
    is_dicom = ".dcm" in suffixes or ".ima" in suffixes
    hint = ": convert DICOM to NIfTI first, for example with dcm2niix" if is_dicom else ""
    if folders:
        names = ", ".join(folders[:4]) + (", ..." if len(folders) > 4 else "")
        found.insert(0, f"{counted(len(folders), 'folder')} ({names})")
        hint = hint or ": python dataset.py split DIR OUT makes splits by person of what lies in folders"
    return ", ".join([*found, "no picture or volume"]) + hint


def holds_splits(folder: Path) -> bool:
    """Whether a folder has a folder for some split, in any layout."""
    return any((folder / layout.format(split)).is_dir() for layout in LAYOUTS for split in SPLITS)


def scan(root: Path, person: str | None = None) -> Listing:
    """List the files of a folder that `holds_splits`.

    `person`: a regular expression that finds the person in a file's name, else `names.person_of` does. Raises
    InputError when the folder mixes layouts or kinds of file, or the expression doesn't fit.
    """
    layouts = [layout for layout in LAYOUTS if any((root / layout.format(split)).is_dir() for split in SPLITS)]
    if len(layouts) > 1:
        names = " and ".join(layout.format("...") for layout in layouts)
        raise InputError(f"{root} holds two layouts, {names}: move one of them elsewhere")
    folders = {split: root / layouts[0].format(split) for split in SPLITS}
    folders = {split: folder for split, folder in folders.items() if folder.is_dir()}
    files, people, kinds, digest, broken = {}, {}, Counter(), hashlib.sha256(), []
    for split, folder in folders.items():
        with os.scandir(folder) as entries:
            entries = [entry for entry in entries if is_data(entry.name)]
        found = {entry.name: entry.stat() for entry in entries if entry.is_file()}
        gone = [entry.path for entry in entries if entry.is_symlink() and not os.path.exists(entry.path)]
        broken += [f"{path} is a link to nothing (fetch the file, for example with git annex get)" for path in gone]
        kinds.update(map(is_volume, found))
        own = people_of(list(found), person, split)
        files[split] = sorted(found, key=lambda name: natural(f"{own[name]} {name}"))
        people[split] = {name: own[name] for name in files[split]}
        # A file can be replaced by another of its size and time; the time of that change can't be set.
        stats = [(name, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for name in files[split] for at in [found[name]]]
        digest.update(repr((split, stats)).encode(errors="surrogateescape"))
    if len(kinds) > 1:
        found = f"{counted(kinds[False], 'picture')} and {counted(kinds[True], 'volume')}"
        raise InputError(f"{root} holds both pictures and volumes, {found}: keep one kind")
    return Listing(root, folders, files, people, kinds[True] > 0, digest.hexdigest(), sorted(broken))


def people_of(names: list[str], pattern: str | None, split: str = "") -> dict[str, str]:
    """The person of each file. A bare number is nobody's name, so that it stands for somebody else in each split.

    Raises InputError when the pattern is no regular expression, or isn't found in some name.
    """
    if pattern is None:
        people = {name: person_of(name) for name in names}
        return {name: f"{split}/{one}" if COUNTER.fullmatch(one) else one for name, one in people.items()}
    try:
        found = {name: re.search(pattern, name) for name in names}
    except re.error as error:
        raise InputError(f"--person {pattern} is no regular expression ({error})") from error
    people = {
        name: match and next(filter(None, [*match.groups(), match.group()]), None) for name, match in found.items()
    }
    if missing := [name for name, one in people.items() if not one]:
        raise InputError(f"--person {pattern} is not found in {counted(len(missing), 'name')}, such as {missing[0]}")
    return people
