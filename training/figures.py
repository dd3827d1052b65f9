"""What does a run show of itself? The same slices and seeds after every epoch, then curves, codes, a page of all."""

import json

import numpy as np
import torch

from dataset import Box, DataSet, content_box
from inference.codec import MARGIN, Codec, to_uint8
from inference.depths import draw_codes
from inference.model import TrainedModel
from modules import Autoencoder, Codes
from networks.painter import Painter
from report import page, plots
from runtime.compute import Compute
from training.run import Run, Stage
from training.settings import TrainSettings

SLICES = 4  # in the fixed batch that is redrawn every epoch
SAMPLES = 16  # of the prior
EPOCH_SAMPLES = 8  # of it after every epoch
FRAMES, FRAME_SECONDS = 24, 0.5  # of an animation: how many at most, and how long each


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
    rows = {"original": originals, "reconstruction": made}
    what = f"{data.title}, validation split; {SLICES} slices"
    window = box.around(MARGIN, originals.shape[1:])
    _draw_frame(run, "epoch", epoch, f"SSIM {score:.4f} on the whole validation split", rows, window, what)


def draw_painted(run: Run, codec: Codec, painter: Painter, data: DataSet, stage: str, epoch: int, loss: float) -> None:
    """The fixed slices above what is painted of their first codes: <stage>_<n>.png, and <stage>_progress.gif so far."""
    if not run.main:
        return
    originals = _fixed_slices(data)
    painting = Codec(codec.autoencoder, {"box": codec.box, "size": codec.size}, codec.on, painter)
    made = painting.paint(painting.encode(originals, codec.box)[:1], range(len(originals)))
    rows = {"original": originals, "painted from the first codes": made}
    what = f"{data.title}, validation split; {SLICES} slices"
    _draw_frame(run, stage, epoch, f"validation loss {loss:.4f}", rows, codec.window(originals), what)


def draw_sampled(run: Run, codec: Codec, codes: Codes, data: DataSet, stage: Stage, epoch: int) -> None:
    """Samples of the first `EPOCH_SAMPLES` seeds, from their codes: a frame of <prior>_progress.gif."""
    made = codec.paint([grid[:EPOCH_SAMPLES] for grid in codes], range(EPOCH_SAMPLES))
    half, score = EPOCH_SAMPLES // 2, f"{stage.score_name} {stage.sign * stage.score:.4f}"
    rows = {f"seeds 0 to {half - 1}": made[:half], f"seeds {half} to {EPOCH_SAMPLES - 1}": made[half:]}
    what = f"{stage.name} trained on {data.title}; {EPOCH_SAMPLES} seeds"
    _draw_frame(run, stage.name, epoch, score, rows, codec.window(made), what)


def _draw_frame(
    run: Run, name: str, epoch: int, score: str, rows: dict[str, np.ndarray], window: Box, title: str
) -> None:
    """Rows of pictures as <name>_<n>.png; with those so far, `FRAMES` at most, as <name>_progress.gif."""
    path = run.folder / f"{name}_{epoch:03d}.png"
    cropped = {label: window.crop(pictures) for label, pictures in rows.items()}
    plots.epoch_frame(cropped, f"Epoch {epoch}, {score}", path, title)
    frames = sorted(run.folder.glob(f"{name}_[0-9]*.png"))
    chosen = frames[:: -max(-(-len(frames) // FRAMES), 1)][::-1]  # the last among them
    gif = "progress.gif" if name == "epoch" else f"{name}_progress.gif"
    plots.animate(chosen, run.folder / gif, FRAME_SECONDS)


def draw_autoencoder(run: Run, codec: Codec, data: DataSet) -> None:
    """The curves of all epochs, and what one validation slice becomes."""
    if not run.main:
        return
    plots.training_curves(run.rows_of("autoencoder"), run.folder / "training_curves.png", data.title)
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
    title = f"run {run.folder.name}: {data.title}, training and validation splits"
    page.write_report(run.folder, title, last, [], config)
