"""What does the cache hold, and how much of the disk? Decoded data sets, and the synthetic demo set."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

from reading import demo
from reading.cache import cache_root
from runtime.errors import InputError
from runtime.files import locked
from runtime.wording import counted


class Stored(NamedTuple):
    """A folder of the cache. It can be deleted at any time: what is missing is made again."""

    folder: Path
    content: str
    bytes: int


def stored() -> list[Stored]:
    """What the cache holds, the largest first."""
    root = cache_root()
    folders = [entry for entry in root.iterdir() if entry.is_dir()] if root.is_dir() else []
    sizes = {folder: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in folders}
    return [Stored(folder, _content(folder), sizes[folder]) for folder in sorted(folders, key=sizes.get, reverse=True)]


def _content(folder: Path) -> str:
    if demo.is_demo(folder):
        return "the synthetic demo set"
    try:
        index = json.loads((folder / "index.json").read_text())
        names = [name for columns in index["splits"].values() for name in columns["names"]]
        height, width = index["canvas"]
        return f"{counted(len(names), 'slice')} of {height}x{width}, {names[0]} to {names[-1]}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return "not whole"


def clear() -> list[Stored]:
    """Delete what the cache holds, but for what another process is just making; returns what is left.

    Programs that have read a set go on with it: a file that is in use stays on the disk until it is closed.
    """
    for one in stored():
        try:
            with locked(one.folder.with_name(f"{one.folder.name}.lock")):
                shutil.rmtree(one.folder, ignore_errors=True)
        except InputError:
            continue
    return stored()


def megabytes(size: int) -> str:
    """`367.0 MB`."""
    return f"{size / 1e6:,.1f} MB"
