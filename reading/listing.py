"""Which files does a data set hold? Folders for its splits, in one of three layouts, and the files in them."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from reading.names import is_data, is_nifti, natural, person_of
from runtime.errors import InputError

SPLITS = ("train", "validate", "test")
LAYOUTS = ("keras_png_slices_{}", "keras_slices_{}", "{}")


@dataclass(frozen=True)
class Listing:
    """What a data set's folders hold, from the directory entries alone: nothing has been opened yet."""

    root: Path
    folders: dict[str, Path]  # by split, those that exist
    files: dict[str, list[str]]  # by split, in natural order of person and name
    is_nifti: bool  # NIfTI files, all of them; else pictures
    key: str  # SHA-256 of the files' names, sizes and times
    broken: list[Path]  # links to nothing that have a data file's name

    def links_to_nothing(self) -> list[str]:
        """A line for each."""
        return [f"{path} is a link to nothing (fetch the file, with git annex get say)" for path in self.broken]

    def overlap(self) -> list[str]:
        """A line for each person who is in more than one split."""
        places: dict[str, list[str]] = {}
        for split, files in self.files.items():
            for person in dict.fromkeys(map(person_of, files)):
                places.setdefault(person, []).append(split)
        return [f"{person} is in {' and '.join(where)}" for person, where in places.items() if len(where) > 1]


def holds_splits(folder: Path) -> bool:
    """Whether a folder has a folder for some split, in any layout."""
    return any((folder / layout.format(split)).is_dir() for layout in LAYOUTS for split in SPLITS)


def scan(root: Path) -> Listing:
    """List the files of a folder that `holds_splits`. Raises InputError when it mixes layouts or kinds of file."""
    layouts = [layout for layout in LAYOUTS if any((root / layout.format(split)).is_dir() for split in SPLITS)]
    if len(layouts) > 1:
        names = " and ".join(layout.format("...") for layout in layouts)
        raise InputError(f"{root} holds two layouts, {names}: move one of them elsewhere")
    folders = {split: root / layouts[0].format(split) for split in SPLITS}
    folders = {split: folder for split, folder in folders.items() if folder.is_dir()}
    files, kinds, digest, broken = {}, set(), hashlib.sha256(), []
    for split, folder in folders.items():
        with os.scandir(folder) as entries:
            entries = [entry for entry in entries if is_data(entry.name)]
        found = {entry.name: entry.stat() for entry in entries if entry.is_file()}
        broken += [folder / entry.name for entry in entries if entry.is_symlink() and not os.path.exists(entry.path)]
        kinds |= {is_nifti(name) for name in found}
        files[split] = sorted(found, key=lambda name: natural(f"{person_of(name)} {name}"))
        # A file can be replaced by another of its size and time; the time of that change can't be set.
        stats = [(name, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for name in files[split] for at in [found[name]]]
        digest.update(repr((split, stats)).encode())
    if len(kinds) > 1:
        raise InputError(f"{root} holds both pictures and NIfTI files: keep one kind")
    return Listing(root, folders, files, kinds == {True}, digest.hexdigest(), sorted(broken))
