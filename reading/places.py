"""Where is the data set? In the folder that was given or one down, in the usual places, or made on the spot."""

import os
from pathlib import Path

from reading.listing import LAYOUTS, holds_splits
from runtime.errors import InputError

USUAL_PLACES = ("./keras_png_slices_data", "./data/keras_png_slices_data", "/home/groups/comp3710/OASIS")


def find(data: str | None) -> Path:
    """The folder with the split folders: `data` or a folder in it, "demo", or (None) the first usual place.

    Raises InputError when there is none, or more than one to choose from.
    """
    if data == "demo":
        from reading import (  # here: SciPy takes a while to import, and a wrong folder needs no set to be made
            cache,
            demo,
        )

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
        layouts = ", ".join(layout.format("train") for layout in LAYOUTS)
        raise InputError(f"{folder} holds no data set: looked in it and one folder down for {layouts}")
    if len(found) > 1:
        raise InputError(f"{folder} holds several data sets: choose one of {', '.join(map(str, found))}")
    root = found[0].absolute()  # it is stored, and has to be found from another directory, too
    if any("\udc80" <= sign <= "\udcff" for sign in str(root.resolve())):
        raise InputError(f"the name of {root} is no UTF-8, and can't be kept in a run: rename it")
    return root


def _find_usual() -> Path:
    given = os.environ.get("OASIS_DIR")
    places = [*([given] if given else []), *USUAL_PLACES]
    for place in places:
        if Path(place).is_dir():
            return find(place)
    looked = ", ".join(["$OASIS_DIR (not set)"] * (not given) + places)
    raise InputError(
        f"no data set found; looked in {looked}. Download the OASIS PNG set (keras_png_slices_data.zip, see README)"
        " and give its folder with --data DIR, or try --data demo, a small synthetic set made on the spot"
    )
