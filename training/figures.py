"""What does a run show of itself? The same slices after every epoch, then curves, codes, samples, and a page of all."""

import json

import numpy as np
import torch

from dataset import Box, DataSet, content_box
from inference.codec import MARGIN, Codec, to_uint8
from inference.depths import draw_codes
from inference.model import TrainedModel
from modules import Autoencoder
from networks.painter import Painter
from report import page, plots
from runtime.compute import Compute
from training.run import Run
from training.settings import TrainSettings

SLICES = 4  # in the fixed batch that is redrawn every epoch
SAMPLES = 16  # of the prior
FRAME_SECONDS = 0.5  # of an animation


def _fixed_slices(data: DataSet) -> np.ndarray:
    """Validation slices, the same in every epoch: uint8 [SLICES, H, W]."""
    images = data.splits["validate"].images
    return images[np.linspace(0, len(images) - 1, SLICES).astype(int)]


@torch.no_grad()
def draw_epoch(run: Run, model: Autoencoder, data: DataSet, box: Box, epoch: int, score: float, on: Compute) -> None:
    """The fixed validation slices and their reconstructions as epoch_<n>.png, a frame of progress.gif."""
    if not run.main:
        return
    originals = _fixed_slices(data)
    box = content_box(originals, box)  # as in validation: nothing is cut
    images = torch.from_numpy(originals)[:, None].to(on.device).float() / 255
    with on.autocast():
        reconstruction = model(box.crop(images))[0].float().clamp(0, 1)
    made = box.paste(reconstruction, originals.shape[1:])[:, 0].cpu().numpy()
    window, title = box.around(MARGIN, originals.shape[1:]), f"{data.title}, validation split"
    path, text = run.folder / f"epoch_{epoch:03d}.png", f"validation SSIM {score:.4f}"
    plots.epoch_frame(window.crop(originals), window.crop(made), epoch, text, path, title, "reconstruction")


def draw_painted(run: Run, codec: Codec, painter: Painter, data: DataSet, stage: str, epoch: int, loss: float) -> None:
    """The fixed slices above what is painted of their first codes: <stage>_<n>.png, and <stage>_progress.gif so far."""
    if not run.main:
        return
    originals = _fixed_slices(data)
    painting = Codec(codec.autoencoder, {"box": codec.box, "size": codec.size}, codec.on, painter)
    made = painting.paint(painting.encode(originals, codec.box)[:1], range(len(originals)))
    window, title = codec.window(originals), f"{data.title}, validation split"
    path, text = run.folder / f"{stage}_{epoch:03d}.png", f"validation loss {loss:.4f}"
    what = "painted from the first codes"
    plots.epoch_frame(window.crop(originals), window.crop(made), epoch, text, path, title, what)
    frames = sorted(run.folder.glob(f"{stage}_*.png"))
    plots.animate(frames, run.folder / f"{stage}_progress.gif", FRAME_SECONDS)


def draw_autoencoder(run: Run, codec: Codec, data: DataSet) -> None:
    """The curves of all epochs, the frames as an animation, and what one validation slice becomes."""
    if not run.main:
        return
    plots.training_curves(run.rows_of("autoencoder"), run.folder / "training_curves.png", data.title)
    if frames := sorted(run.folder.glob("epoch_*.png")):
        plots.animate(frames, run.folder / "progress.gif", FRAME_SECONDS)
    slices = data.splits["validate"]
    middle = len(slices) // 2
    title = f"{data.title}, {slices.names[middle]}"
    draw_codes(codec, slices.images[middle], run.folder / "codes.png", title)


def draw_samples(run: Run, data: DataSet, settings: TrainSettings) -> None:
    """Samples of the prior that the run trained, of the first seeds."""
    model = TrainedModel.load(run.folder / "vqvae.pth", run.folder / f"{settings.prior}.pth", settings.device)
    pictures = to_uint8(model.sample(range(SAMPLES)))
    title = f"{model.sampler.title} trained on {data.title}, seeds 0 to {SAMPLES - 1}"
    plots.samples(model.codec.window(pictures).crop(pictures), run.folder / "samples.png", title)


def draw_report(run: Run, data: DataSet, settings: TrainSettings) -> None:
    """report.html: curves, samples, the fixed slices through training, and each stage's last epoch.

    The scores of the test split are predict.py's.
    """
    if not run.main:
        return
    if settings.prior != "none":
        draw_samples(run, data, settings)
    last = {f"last epoch of the {row['stage']}": {k: v for k, v in row.items() if k != "stage"} for row in run.rows}
    config = json.loads((run.folder / "config.json").read_text())
    page.write_report(run.folder, f"{data.title}, training and validation splits", last, [], config)
