"""Where is the data set? In the folder that was given or one down, in the usual places, or made on the spot."""

import os
from itertools import islice
from pathlib import Path

from reading import cache, demo
from reading.listing import LAYOUTS, holds_splits
from reading.names import is_data
from runtime.errors import InputError

USUAL_PLACES = ("./keras_png_slices_data", "./data/keras_png_slices_data", "/home/groups/comp3710/OASIS")
LOOKED_AT = 10_000  # files of a folder without splits


def find(data: str | None) -> Path:
    """The folder with the split folders: `data` or a folder in it, "demo", or (None) the first usual place.

    Raises InputError when there is none, or more than one to choose from.
    """
    if data == "demo":
        return demo.ensure(cache.cache_root())
    if data is None:
        return _find_usual()
    try:
        folder = Path(data).expanduser()
    except RuntimeError:
        raise InputError(f"{data}: there is no such user") from None
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: give the folder that holds keras_png_slices_train, or --data demo")
    found = [folder] if holds_splits(folder) else []
    found = found or sorted(entry for entry in folder.iterdir() if entry.is_dir() and holds_splits(entry))
    if not found:
        files = islice((name for _, _, names in os.walk(folder) for name in names), LOOKED_AT)
        if number := sum(map(is_data, files)):
            found = f"{'at least ' if number == LOOKED_AT else ''}{number:,} pictures or volumes, but no splits"
            raise InputError(f"{folder} holds {found}: make them by person with python dataset.py split {folder} OUT")
        layouts = ", ".join(layout.format("train") for layout in LAYOUTS)
        raise InputError(f"{folder} holds no data set: looked in it and one folder down for {layouts}")
    if len(found) > 1:
        raise InputError(f"{folder} holds several data sets: choose one of {', '.join(map(str, found))}")
    root = found[0].absolute()  # it is stored, and has to be found from another directory, too
    if any("\udc80" <= sign <= "\udcff" for sign in str(root.resolve())):
        raise InputError(f"the name of {root} is no UTF-8, and can't be kept in a run: rename it")
    return root


def _find_usual() -> Path:
    if given := os.environ.get("OASIS_DIR"):
        if not Path(given).is_dir():
            raise InputError(f"OASIS_DIR names {given}, which is no folder: set it anew, or give --data DIR")
        return find(given)
    for place in USUAL_PLACES:
        if Path(place).is_dir():
            return find(place)
    looked = ", ".join(["$OASIS_DIR (not set)", *USUAL_PLACES])
    raise InputError(
        f"no data set found; looked in {looked}. Download the OASIS PNG set (keras_png_slices_data.zip, see README)"
        " and give its folder with --data DIR, or try --data demo, a small synthetic set made on the spot"
    )
