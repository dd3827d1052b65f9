"""How do they learn? An autoencoder, then a prior over its codes.

    python train.py                               VQ-VAE and DCGAN on the OASIS slices, on CUDA if there is any
    python train.py --data demo                   the same on a small synthetic set
    python train.py --resume runs/<run>           go on with a run that was stopped
    python train.py --autoencoder runs/<run>/vqvae.pth --prior pixelcnn    another prior for the same autoencoder
    torchrun --nproc_per_node=4 train.py          on several GPUs

Everything goes to runs/<date>_<time>/ (--out); python predict.py runs/<run>/vqvae.pth scores it.
"""

import argparse
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import dataset
from dataset import Batches, Box, DataSet, Slices
from inference.codec import Codec
from inference.loading import load_autoencoder
from modules import AUTOENCODERS, Autoencoder
from report import page, plots
from report.results import TRAINING_FIGURES
from runtime import checkpoint, compute
from runtime.compute import Compute
from runtime.errors import InputError, exit_on_input_error
from scoring.enough import check_enough
from scoring.metrics import WINDOW, perplexity, ssim, ssim_in_black
from training import board, options
from training.optim import Muon
from training.priors import PRIORS
from training.run import NotFiniteError, Run, Stage, create_run_folder, progress, stored_config

INITIAL_SLICES = 64  # for k-means: over 100,000 latents
FRAME_SLICES = 8  # in the fixed batch that is redrawn every epoch
VALIDATION_BATCH = 16  # few, so that SSIM's intermediate results stay in a processor's cache
WARM_UP = 100  # steps
CLIP = 2.0  # largest norm of the gradient: one odd batch must not send the latents away from their codebook

# ----------------------------------------------------------------------------------------------------
# The autoencoder


def train_autoencoder(run: Run, data: DataSet, settings: argparse.Namespace, on: Compute) -> None:
    """Train the autoencoder; vqvae.pth is the one with the best validation SSIM."""
    train = data.splits["train"]
    box = dataset.content_box(train.images)
    batches = Batches(train, settings.batch_size, on.device, box, on.rank, on.world_size)
    arguments = {"codebook_size": settings.codebook_size, "beta": settings.beta, "ema": settings.codebook == "ema"}
    if settings.model == "rqvae":
        arguments |= {"depth": settings.depth, "downsample": int(settings.downsample)}
        arguments |= {"width": settings.width, "blocks": settings.blocks}
    model = AUTOENCODERS[settings.model](**arguments).to(on.device, memory_format=torch.channels_last)
    optimizer = make_optimizer(model, settings)
    stage = Stage(run, "autoencoder", settings.epochs, {"model": model, "optimizer": optimizer})
    warm_up = min(WARM_UP, batches.steps // 2)
    about = {"model": settings.model, "arguments": model.arguments, "data": describe(data, box, settings)}
    if not stage.resumed:
        count = sum(p.numel() for p in model.parameters())
        run.log(f"{settings.model}: {count:,} weights, on the {box.height}x{box.width} pixels that hold content")

    for epoch in stage.remaining_epochs():
        model.train()
        shuffled = batches.shuffled(settings.seed, epoch, stage.step)
        for images, _ in stage.steps(progress(shuffled, stage, batches.steps, batches.batch_size)):
            done = stage.epoch * batches.steps + stage.step
            model.bypass_quantizers(done < warm_up)
            if done == warm_up:
                start_codebooks(model, train, box, settings.seed, on)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, done, batches.steps)
            stage.add(**autoencoder_step(model, optimizer, images, LOSSES[settings.loss], on))

        score = validation_ssim(model, data, box, on)
        if stage.is_best(score):
            content = about | {"kind": "autoencoder", "state": model.state_dict()}
            run.save("vqvae.pth", content | {"epoch": epoch, "validation_ssim": score})
        draw_frame(run, model, data, box, epoch, score, on)
        stage.end_epoch(stage.means() | {"validation_ssim": score} | codebook_use(model))
    draw_training(run, model, data, about["data"], on)


def autoencoder_step(
    model: Autoencoder, optimizer: torch.optim.Optimizer, images: Tensor, loss: Callable[..., Tensor], on: Compute
) -> dict[str, Tensor]:
    """One step on images [B, 1, h, w]; what to log."""
    with on.autocast():
        reconstruction, _, latent_loss = model(images)
    reconstruction_loss = loss(reconstruction.float(), images)
    optimizer.zero_grad()
    (reconstruction_loss + latent_loss).backward()
    compute.average_gradients(model)
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    return {"train_reconstruction": reconstruction_loss, "train_commitment": latent_loss}


def l1_ssim(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error + (1 - SSIM) / 2.

    Not of the clamped picture: where black may be any negative number, the latents of the background grow for ever.
    """
    return F.l1_loss(reconstruction, images) + 0.5 * (1 - ssim(reconstruction, images).mean())


OPTIMIZERS = {"muon": Muon, "adam": partial(torch.optim.Adam, betas=(0.9, 0.99), fused=True)}
# Muon makes networks without normalisation restless: their latents grow, and the codebook lags behind.
BEST = {"vqvae": "adam", "vqvae2": "adam", "rqvae": "muon"}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1+ssim": l1_ssim, "mse": F.mse_loss}


def make_optimizer(model: Autoencoder, settings: argparse.Namespace) -> torch.optim.Optimizer:
    """That of --optimizer, or else what suits the network."""
    return OPTIMIZERS[settings.optimizer or BEST[settings.model]](model.parameters(), settings.lr)


def learning_rate(settings: argparse.Namespace, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, and over the whole training half a cosine down to 2 % of --lr."""
    fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / (settings.epochs * steps_per_epoch)))
    return settings.lr * fall * min(1.0, (step + 1) / WARM_UP)


def start_codebooks(model: Autoencoder, slices: Slices, box: Box, seed: int, on: Compute) -> None:
    """k-means on the latents of the same slices in every process, so that all get the same codebooks."""
    examples = Batches(slices, min(INITIAL_SLICES, len(slices)), on.device, box).shuffled(seed, epoch=0)
    with on.autocast():
        model.initialise_codebooks(next(examples)[0])


@torch.no_grad()
def validation_ssim(model: Autoencoder, data: DataSet, box: Box, on: Compute) -> float:
    """Mean SSIM over the full pictures of the whole validation split, each slice counted once.

    Only what holds content is looked at: all other windows of SSIM see black in both pictures.
    """
    model.eval()
    slices = data.splits["validate"]
    shape = slices.images.shape[1:]
    seen = box.around(dataset.content_box(slices.images), WINDOW - 1, shape)
    inner, windows = box.inside(seen), math.prod(side - WINDOW + 1 for side in shape)
    total = torch.zeros((), dtype=torch.float64, device=on.device)
    for images, _ in Batches(slices, VALIDATION_BATCH, on.device, seen, on.rank, on.world_size).in_order():
        with on.autocast():
            reconstruction = model(inner.crop(images))[0]
        reconstruction = inner.paste(reconstruction.float().clamp(0, 1), images.shape[2:])
        total += ssim_in_black(reconstruction, images, windows).sum()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total.item() / len(slices)


def codebook_use(model: Autoencoder) -> dict[str, float]:
    """Perplexity and codes used over the epoch's training steps, for each codebook; starts the count anew."""
    use = {}
    for i, quantizer in enumerate(model.quantizers):
        use[f"perplexity_{i}"] = perplexity(quantizer.usage)
        use[f"codes_used_{i}"] = int((quantizer.usage > 0).sum())
        quantizer.usage.zero_()
    return use


@torch.no_grad()
def draw_frame(run: Run, model: Autoencoder, data: DataSet, box: Box, epoch: int, score: float, on: Compute) -> None:
    """The fixed validation slices and their reconstructions as epoch_<n>.png, a frame of progress.gif."""
    if not run.main:
        return
    slices = data.splits["validate"]
    chosen = torch.linspace(0, len(slices) - 1, FRAME_SLICES).long().numpy()
    originals = slices.images[chosen]
    images = torch.from_numpy(originals)[:, None].to(on.device).float() / 255
    with on.autocast():
        reconstruction = model(box.crop(images))[0].float().clamp(0, 1)
    drawn = box.paste(reconstruction, originals.shape[1:])[:, 0].cpu().numpy()
    plots.epoch_frame(
        originals, drawn, epoch, score, run.folder / f"epoch_{epoch:03d}.png", title=f"{data.title}, validation split"
    )


def draw_training(run: Run, model: Autoencoder, data: DataSet, about: dict, on: Compute) -> None:
    """The curves of all epochs, the frames as an animation, and what one validation slice becomes."""
    if not run.main:
        return
    plots.training_curves(run.rows_of("autoencoder"), run.folder / "training.png", data.title)
    plots.animate(sorted(run.folder.glob("epoch_*.png")), run.folder / "progress.gif", 0.5)
    middle = len(data.splits["validate"]) // 2
    codec = Codec(model, about, on)
    image = data.splits["validate"].images[middle : middle + 1]
    codes = codec.encode(image)
    grids = [grid[0].cpu().numpy() for grid in codes]
    title = f"{data.title}, {data.splits['validate'].names[middle]}, the pixels that are coded"
    coded, decoded = (codec.box.crop(pictures[0]) for pictures in (image, codec.decode(codes)))
    plots.code_map(coded, grids, decoded, run.folder / "codes.png", title)


def describe(data: DataSet, box: Box, settings: argparse.Namespace) -> dict:
    """What a checkpoint says of its data: plain values only."""
    train = data.splits["train"]
    return {
        "title": data.title,
        "root": str(data.root.resolve()),
        "synthetic": data.synthetic,
        "fingerprint": data.fingerprint,
        "size": list(train.images.shape[1:]),
        "box": list(box),
        "levels": int(train.levels.max()) + 1,
        "axis": int(settings.axis),
        "slices": settings.slices,
    }


# ----------------------------------------------------------------------------------------------------
# The whole run


def load_data(settings: argparse.Namespace) -> DataSet:
    """The training and validation splits that the options name."""
    return dataset.load(
        settings.data,
        splits=("train", "validate"),
        allow_overlap=settings.allow_overlap,
        limit_people=settings.limit_people,
        axis=int(settings.axis),
        slices=settings.slices,
    )


def describe_step(data: DataSet, settings: argparse.Namespace, epoch: int, step: int) -> str:
    """Learning rate and slices of one step of the autoencoder's training."""
    names = data.splits["train"].names
    batch = min(settings.batch_size, len(names))
    rate = learning_rate(settings, (epoch - 1) * (len(names) // batch) + step, len(names) // batch)
    chosen = dataset.shuffled_shares(len(names), batch, settings.seed, epoch)[step]
    return f"learning rate {rate:.2e}, slices {', '.join(names[i] for i in chosen)}"


def train(run: Run, data: DataSet, settings: argparse.Namespace, on: Compute) -> None:
    """The autoencoder, unless that is done, and then the prior."""
    if settings.autoencoder:
        compute.from_first(lambda: adopt(run, settings.autoencoder))
    elif run.reached("autoencoder"):
        train_autoencoder(run, data, settings, on)
    if settings.prior != "none":
        autoencoder, about = load_autoencoder(run.folder / "vqvae.pth")
        PRIORS[settings.prior](run, data, settings, on, Codec(autoencoder, about["data"], on), about)
    if run.main:
        report_training(run, data, settings)


def report_training(run: Run, data: DataSet, settings: argparse.Namespace) -> None:
    """report.html: curves, the fixed slices through training, and each stage's last epoch; scores are predict.py's."""
    files = TRAINING_FIGURES | {"code_map": "codes.png"}
    figures = {name: path for name, file in files.items() if (path := run.folder / file).is_file()}
    last = {f"{row['stage']}, last epoch": {k: v for k, v in row.items() if k != "stage"} for row in run.rows}
    title = f"{data.title}, training and validation splits"
    page.write_report(run.folder, title, last, [], figures, options.plain(settings))


def check_autoencoder(settings: argparse.Namespace, data: DataSet) -> None:
    """Raises InputError when --autoencoder is none, or of other data, or there is no prior to train for it."""
    if settings.prior == "none":
        raise InputError("--autoencoder with --prior none leaves nothing to train")
    _, about = load_autoencoder(settings.autoencoder)
    if about["data"]["fingerprint"] != data.fingerprint:
        raise InputError(f"{settings.autoencoder} was trained on {about['data']['title']}, other data than {data.root}")


def adopt(run: Run, autoencoder: Path) -> None:
    """Copy a trained autoencoder into the run folder, unless it is there already."""
    if not (run.folder / "vqvae.pth").is_file():
        run.save("vqvae.pth", checkpoint.load(autoencoder, "autoencoder"))


# ----------------------------------------------------------------------------------------------------
# The command line


@exit_on_input_error
def main() -> int:
    given, resume = options.parse(__doc__)
    stored = stored_config(resume) if resume else None
    settings = options.settle(given, stored)
    if settings.tensorboard:
        board.require()
    on = compute.choose(settings.device, settings.precision)
    data = load_data(settings)
    config = options.plain(settings) | {"data_fingerprint": data.fingerprint}
    if stored and stored["data_fingerprint"] != data.fingerprint:
        raise InputError(f"{data.root} is not the data that {resume} was started with; give that with --data")

    if settings.prior == "dcgan":
        check_enough(data.splits["train"], data.splits["validate"])
    if settings.autoencoder and not resume:
        check_autoencoder(settings, data)

    torch.manual_seed(settings.seed)
    folder = resume or compute.from_first(lambda: create_run_folder(settings.out, config))
    try:
        run = Run(folder, settings.save_minutes, settings.time_limit, settings.tensorboard)
        if run.state and run.state["stage"] not in ("autoencoder", settings.prior):
            raise InputError(f"last.pth in {folder} is not of the run that config.json tells of; start anew")
        trained = settings.autoencoder or run.reached("autoencoder")
        if not trained and len(run.rows_of("autoencoder")) < settings.epochs:
            raise InputError(f"the prior of {folder} has been begun on its autoencoder; for more --epochs start anew")
        if resume:
            run.write_config(config)
        run.log(f"{'going on with' if resume else 'writing to'} {run.folder}, {on.describe()}")
        run.log(f"{data.title}: {', '.join(f'{len(part):,} {name}' for name, part in data.splits.items())} slices")
        train(run, data, settings, on)
    except NotFiniteError as error:
        if error.stage != "autoencoder":
            raise
        raise InputError(f"{error}; {describe_step(data, settings, error.epoch, error.step)}") from error
    except OSError as error:  # of the log and the figures
        reason = error.strerror or error
        raise InputError(f"can't write to {folder}: {reason}; mend that, and go on with --resume {folder}") from error
    except torch.cuda.OutOfMemoryError as error:
        half = max(settings.batch_size // 2, 1)
        raise InputError(f"the GPU's memory is full: start again with --batch-size {half}") from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
