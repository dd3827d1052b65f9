"""How does a run look in TensorBoard? The rows of metrics.csv as scalars, the pictures of its epochs as images."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from report.results import can_be_shown
from runtime.errors import InputError


def require() -> None:
    """Raises InputError when the package tensorboard is missing."""
    if find_spec("tensorboard") is None:
        raise InputError("--tensorboard: that package is missing; pip install -r requirements-extra.txt")


class Board:
    """Event files in tensorboard/ of the run folder.

    A scalar's tag is `<stage>/<column>`, its step the epoch. `rows` are those of the epochs done. They are written
    again at every start, over what was there (TensorBoard drops the old points at the purge step, 1), so that the
    points are the rows of metrics.csv whatever happened between the last save and the end. Their wall time is then
    that of the start. Raises OSError when the folder can't be written.
    """

    def __init__(self, folder: Path, rows: Sequence[Mapping[str, Any]]):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only there when it is asked for

        self.folder = folder
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=1)
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """One row of metrics.csv, and the picture of that epoch if there is one."""
        stage, epoch = row["stage"], row["epoch"]
        for column, value in row.items():
            if column not in ("stage", "epoch"):
                self.writer.add_scalar(f"{stage}/{column}", value, epoch)
        frame = self.folder / f"epoch_{epoch:03d}.png"
        if stage == "autoencoder" and can_be_shown(frame):
            with Image.open(frame) as picture:
                self.writer.add_image(f"{stage}/pictures", np.asarray(picture.convert("RGB")), epoch, dataformats="HWC")
        self.writer.flush()
