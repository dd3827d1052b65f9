"""How does a run look in TensorBoard? The rows of metrics.csv as scalars, the figures of its epochs as images."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from runtime.errors import InputError


def require() -> None:
    """Raises InputError when the package tensorboard is missing."""
    if find_spec("tensorboard") is None:
        raise InputError("--tensorboard: that package is missing; pip install -r requirements-extra.txt")


class Board:
    """Event files in tensorboard/ of the run folder. A scalar's tag is `<stage>/<column>`, its step the epoch.

    Every start writes all `rows` again and lets TensorBoard drop the older points, so that the points are always the
    rows of metrics.csv. Raises OSError when the folder can't be written.
    """

    def __init__(self, folder: Path, rows: Sequence[Mapping[str, Any]]):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and optional

        self.folder = folder
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=1)
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """One row of metrics.csv, and the figure of that epoch if there is one."""
        values = dict(row)
        stage, epoch = values.pop("stage"), values.pop("epoch")
        for column, value in values.items():
            self.writer.add_scalar(f"{stage}/{column}", value, epoch)
        figure = self.folder / f"{'epoch' if stage == 'autoencoder' else stage}_{epoch:03d}.png"
        if figure.is_file():
            picture = np.asarray(Image.open(figure).convert("RGB"))
            self.writer.add_image(f"{stage}/pictures", picture, epoch, dataformats="HWC")
        self.writer.flush()
