"""What does a run show of itself? The same slices after every epoch, then curves, codes, and a page of all of it."""

import torch

from dataset import Box, DataSet, content_box
from inference.codec import MARGIN, Codec
from inference.depths import draw_codes
from modules import Autoencoder
from networks.painter import Painter
from report import page, plots
from report.results import TRAINING_FIGURES, can_be_shown
from runtime.compute import Compute
from training.run import Run
from training.settings import TrainSettings

SLICES = 4  # in the fixed batch that is redrawn every epoch


@torch.no_grad()
def draw_epoch(run: Run, model: Autoencoder, data: DataSet, box: Box, epoch: int, score: float, on: Compute) -> None:
    """The fixed validation slices and their reconstructions as epoch_<n>.png, a frame of progress.gif."""
    if not run.main:
        return
    slices = data.splits["validate"]
    chosen = torch.linspace(0, len(slices) - 1, SLICES).long().numpy()
    originals = slices.images[chosen]
    box = content_box(originals, box)  # as in validation: nothing is cut
    images = torch.from_numpy(originals)[:, None].to(on.device).float() / 255
    with on.autocast():
        reconstruction = model(box.crop(images))[0].float().clamp(0, 1)
    drawn = box.paste(reconstruction, originals.shape[1:])[:, 0].cpu().numpy()
    window, title = box.around(MARGIN, originals.shape[1:]), f"{data.title}, validation split"
    pictures = window.crop(originals), window.crop(drawn)
    told = f"validation SSIM {score:.4f}"
    plots.epoch_frame(*pictures, epoch, told, run.folder / f"epoch_{epoch:03d}.png", title, "reconstruction")


def draw_painted(run: Run, codec: Codec, painter: Painter, data: DataSet, stage: str, epoch: int, loss: float) -> None:
    """The fixed validation slices above what is painted of their first codes: <stage>_<n>.png, a frame of its GIF."""
    if not run.main:
        return
    slices = data.splits["validate"]
    originals = slices.images[torch.linspace(0, len(slices) - 1, SLICES).long().numpy()]
    painting = Codec(codec.autoencoder, {"box": codec.box, "size": codec.size}, codec.on, painter)
    made = painting.paint(painting.encode(originals, codec.box)[:1], range(len(originals)))
    window, title = codec.window(originals), f"{data.title}, validation split"
    path, told = run.folder / f"{stage}_{epoch:03d}.png", f"validation loss {loss:.4f}"
    what = "painted from the first codes"
    plots.epoch_frame(window.crop(originals), window.crop(made), epoch, told, path, title, what)
    frames = [path for path in sorted(run.folder.glob(f"{stage}_*.png")) if can_be_shown(path)]
    plots.animate(frames, run.folder / f"{stage}.gif", 0.5)


def draw_autoencoder(run: Run, codec: Codec, data: DataSet) -> None:
    """The curves of all epochs, the frames as an animation, and what one validation slice becomes."""
    if not run.main:
        return
    plots.training_curves(run.rows_of("autoencoder"), run.folder / "training.png", data.title)
    frames = [path for path in sorted(run.folder.glob("epoch_*.png")) if can_be_shown(path)]
    if frames:
        plots.animate(frames, run.folder / "progress.gif", 0.5)
    slices = data.splits["validate"]
    middle = len(slices) // 2
    title = f"{data.title}, {slices.names[middle]}"
    draw_codes(codec, slices.images[middle], run.folder / "codes.png", title)


def draw_report(run: Run, data: DataSet, settings: TrainSettings) -> None:
    """report.html: curves, the fixed slices through training, and each stage's last epoch; scores are predict.py's."""
    if not run.main:
        return
    files = TRAINING_FIGURES | {"code_map": "codes.png"}
    figures = {name: path for name, file in files.items() if can_be_shown(path := run.folder / file)}
    last = {f"{row['stage']}, last epoch": {k: v for k, v in row.items() if k != "stage"} for row in run.rows}
    title = f"{data.title}, training and validation splits"
    page.write_report(run.folder, title, last, [], figures, settings.model_dump(mode="json"))
