"""How do they learn? An autoencoder, a painter of what its first codes leave open, then a prior over its codes.

    python train.py                               VQ-VAE and DCGAN on the OASIS slices, on CUDA if there is any
    python train.py --data demo                   the same on a small synthetic set
    python train.py --resume runs/<run>           go on with a run that was stopped
    python train.py --config runs/<run>/config.json --seed 1               the same settings again, but for the seed
    python train.py --autoencoder runs/<run>/vqvae.pth --prior pixelcnn    another prior for the same autoencoder
    torchrun --nproc_per_node=4 train.py          on several GPUs

Everything goes to runs/<date>_<time>/ (--out); python predict.py runs/<run>/vqvae.pth scores it.
"""

import runtime.environment  # noqa: F401, before PyTorch

# isort: split
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import dataset
from dataset import Batches, Box, DataSet, Slices
from inference.codec import Codec
from inference.loading import load_autoencoder, load_painter
from modules import AUTOENCODERS, Autoencoder
from reading import nifti
from runtime import checkpoint, cli, compute
from runtime.compute import Compute
from runtime.errors import InputError, exit_on_input_error
from runtime.signals import StopSignals
from runtime.wording import counted
from scoring.enough import check_enough
from scoring.metrics import perplexity
from training import board, figures
from training.augment import Draws, augment, generator_of
from training.dcgan import train_dcgan
from training.likelihood import train_by_likelihood
from training.losses import l1_ssim, squared_error
from training.optim import WARM_UP, Muon, falling, set_rate
from training.painter import train_painter
from training.run import BEFORE_PRIOR, NotFiniteError, Run, Stage, create_run_folder, progress
from training.settings import AutoencoderSettings, Config, DataSettings, TrainCommand, TrainSettings, config_of, settle
from training.validation import validation_ssim

INITIAL_SLICES = 64  # for k-means: over 100,000 latents
DROPPED = 0.5  # share of the images that are reconstructed from fewer codes than all
FEWER = 0.5  # their weight in the loss
CLIP = 2.0  # largest norm of the gradient: one odd batch must not send the latents away from their codebook

# ----------------------------------------------------------------------------------------------------
# The autoencoder


def train_autoencoder(run: Run, data: DataSet, settings: TrainSettings, on: Compute) -> None:
    """Train the autoencoder; vqvae.pth is the one with the best validation SSIM."""
    train = data.splits["train"]
    box = dataset.content_box(train.images)
    seen = None if settings.augment == "on" else box  # what is shifted comes from the whole picture
    batches = Batches(train, settings.batch_size, on.device, seen, on.rank, on.world_size)
    model = make_autoencoder(settings).to(on.device, memory_format=torch.channels_last)
    optimizer = make_optimizer(model, settings)
    parts = {"model": model, "optimizer": optimizer}
    stage = Stage(run, "autoencoder", settings.epochs, parts, "validation SSIM")
    bypassed = min(WARM_UP, batches.steps // 2)  # steps without codebooks
    data_description = describe_data(data, box, settings)
    if not stage.resumed:
        count = sum(p.numel() for p in model.parameters())
        run.log(f"{settings.model}: {count:,} weights, on the {box.height}x{box.width} pixels that hold content")

    for epoch in stage.remaining_epochs():
        model.train()
        shuffled = batches.shuffled(settings.seed, epoch, stage.step)
        for images, _ in stage.steps(progress(shuffled, stage, batches.steps, batches.batch_size)):
            done = stage.epoch * batches.steps + stage.step
            model.bypass_quantizers(done < bypassed)
            if done == bypassed:
                with stage.interruptible():
                    start_codebooks(model, train, box, settings.seed, on)
            rate = falling(settings.lr, done, settings.epochs * batches.steps)
            set_rate(optimizer, rate)
            draw = draws_of_step(len(images), settings.seed, done, on)
            images = augment(images, box, draw) if settings.augment == "on" else images
            kept = draw_kept(model.depth, draw)
            values = autoencoder_step(model, optimizer, images, kept, LOSSES[settings.loss], on)
            stage.add(**values, learning_rate=torch.full((), rate, device=on.device))

        score = validation_ssim(model, data, box, on)
        if stage.is_best(score):
            content = {"kind": "autoencoder", "model": settings.model, "arguments": model.arguments}
            content |= {"data": data_description, "epoch": epoch, "validation_ssim": score}
            run.save("vqvae.pth", content | {"state": model.state_dict()})
        figures.draw_epoch(run, model, data, box, epoch, score, on)
        stage.end_epoch(stage.means() | {"validation_ssim": score} | codebook_use(model))
    figures.draw_autoencoder(run, Codec(model, data_description, on), data)


def make_autoencoder(settings: AutoencoderSettings) -> Autoencoder:
    """The network that the options ask for; only rqvae's size can be chosen."""
    arguments = {"codebook_size": settings.codebook_size, "beta": settings.beta, "ema": settings.codebook == "ema"}
    if settings.model == "rqvae":
        arguments |= {name: getattr(settings, name) for name in ("depth", "downsample", "width", "blocks")}
    return AUTOENCODERS[settings.model](**arguments)


def draws_of_step(n: int, seed: int, step: int, on: Compute) -> Draws:
    """The random numbers of one step for n images a process: a function of (seed, step), however often it stopped."""
    return Draws(n, generator_of(seed, step), on.device, on.rank, on.world_size)


def draw_kept(depth: int, draw: Draws) -> Tensor | None:
    """Quantiser dropout: from how many codes per position each image is reconstructed, int64 [B]; None is all.

    Half of them from all, the others from any number below, 1 and 2 twice as often: those are what priors draw.
    """
    if depth == 1:
        return None
    drawn = draw.uniform(0, depth - 1 + min(depth - 1, 2)).long()  # 0, 1, 2, ... stand for 1, 1, 2, 2, 3, 4, ...
    fewer = torch.where(drawn < 4, drawn // 2 + 1, drawn - 1)
    return torch.where(draw.chance(DROPPED), fewer, depth).flatten()


def autoencoder_step(
    model: Autoencoder,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    kept: Tensor | None,
    loss: Callable[[Tensor, Tensor], Tensor],
    on: Compute,
) -> dict[str, Tensor]:
    """One step on images [B, 1, h, w], reconstructed from `kept` codes per position; what to log."""
    with on.autocast():
        reconstruction, _, latent_loss = model(images, kept)
    losses = loss(reconstruction.float(), images)
    weights = torch.ones_like(losses) if kept is None else torch.where(kept < model.depth, FEWER, 1.0)
    reconstruction_loss = (weights * losses).mean()
    optimizer.zero_grad()
    (reconstruction_loss + latent_loss).backward()
    compute.average_gradients(model)
    norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    return {"train_reconstruction": reconstruction_loss, "train_commitment": latent_loss, "gradient_norm": norm}


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1+ssim": l1_ssim, "mse": squared_error}
OPTIMIZERS = {"muon": Muon, "adam": partial(torch.optim.Adam, betas=(0.9, 0.99), fused=True)}
# Muon makes networks without normalisation restless: their latents grow, and the codebook lags behind.
BEST_OPTIMIZER = {"vqvae": "adam", "vqvae2": "adam", "rqvae": "muon"}


def make_optimizer(model: Autoencoder, settings: AutoencoderSettings) -> torch.optim.Optimizer:
    """That of --optimizer, or else what suits the network."""
    return OPTIMIZERS[settings.optimizer or BEST_OPTIMIZER[settings.model]](model.parameters(), settings.lr)


def start_codebooks(model: Autoencoder, slices: Slices, box: Box, seed: int, on: Compute) -> None:
    """k-means on the latents of the same slices in every process, so that all get the same codebooks."""
    examples = Batches(slices, min(INITIAL_SLICES, len(slices)), on.device, box).shuffled(seed, epoch=0)
    with on.autocast():
        model.initialise_codebooks(next(examples)[0])


def codebook_use(model: Autoencoder) -> dict[str, float]:
    """Perplexity and codes used over the epoch's training steps, for each codebook; starts the count anew."""
    use = {}
    for i, quantizer in enumerate(model.quantizers):
        use[f"perplexity_{i}"] = perplexity(quantizer.usage)
        use[f"codes_used_{i}"] = int((quantizer.usage > 0).sum())
        quantizer.usage.zero_()
    return use


def describe_data(data: DataSet, box: Box, settings: DataSettings) -> dict:
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
        "axis": settings.axis,
        "slices": settings.slices,
        "affine": affine_of_volumes(data, settings),
    }


def affine_of_volumes(data: DataSet, settings: DataSettings) -> list[list[float]] | None:
    """Where the first training volume lies in space, voxel to mm; None where the slices come one by one."""
    train = data.splits["train"]
    if train.ranges is None:  # pictures
        return None
    found = nifti.affine_of(train.paths[0], settings.axis, settings.slices, train.images.shape[1:])
    return None if found is None else found.tolist()


# ----------------------------------------------------------------------------------------------------
# The whole run


def train(run: Run, data: DataSet, settings: TrainSettings, on: Compute) -> None:
    """The autoencoder and its painter, unless they are done, and then the prior."""
    if settings.autoencoder:
        compute.from_first(lambda: adopt(run, settings.autoencoder))
    elif not run.is_past("autoencoder"):
        with advice_when_memory_is_full("--batch-size", settings.batch_size):
            train_autoencoder(run, data, settings, on)
    path = run.folder / "vqvae.pth"
    autoencoder, description = load_autoencoder(path)
    if paints(settings) and not run.is_past("student"):
        with advice_when_memory_is_full("--painter-batch-size", settings.painter_batch_size):
            train_painter(run, data, settings, Codec(autoencoder, description["data"], on), description["identity"])
    if settings.prior != "none":
        with advice_when_memory_is_full(f"--autoencoder {path} --prior-batch-size", settings.prior_batch):
            painter = load_painter(run.folder / "painter.pth", autoencoder)
            codec = Codec(autoencoder, description["data"], on, painter)
            PRIORS[settings.prior](run, data, settings, codec, description)


PRIORS = {"dcgan": train_dcgan, "pixelcnn": train_by_likelihood, "transformer": train_by_likelihood}


def paints(settings: TrainSettings) -> bool:
    """Whether a painter is to learn: where codes can be left out, and the autoencoder is this run's own."""
    deep = settings.model == "rqvae" and settings.depth > 1
    return deep and settings.painter_slices > 0 and not settings.autoencoder


def sized(settings: TrainSettings, on: Compute) -> TrainSettings:
    """With the size of the painter, where none is given, that suits the device: a GPU sees 7,000 slices a second."""
    usual = (1_500_000, 128, 128) if on.device.type == "cuda" else (60_000, 32, 32)
    sizes = zip(("painter_slices", "painter_width", "painter_batch_size"), usual, strict=True)
    return settings.model_copy(update={name: size for name, size in sizes if getattr(settings, name) is None})


def adopt(run: Run, autoencoder: Path) -> None:
    """Copy a trained autoencoder, and the painter beside it, into the run folder, unless they are there already."""
    if not (run.folder / "vqvae.pth").is_file():
        run.save("vqvae.pth", checkpoint.load(autoencoder, "autoencoder"))
        if (painter := autoencoder.with_name("painter.pth")).is_file():
            run.save("painter.pth", checkpoint.load(painter, "painter"))


@contextmanager
def advice_when_memory_is_full(option: str, batch_size: int) -> Iterator[None]:
    """Raises InputError, with half the batch for `option`, when the block needs more memory than a GPU has."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise InputError(f"the GPU's memory is full: start again with {option} {max(batch_size // 2, 1)}") from error


# ----------------------------------------------------------------------------------------------------
# The command line


@exit_on_input_error
@StopSignals()
def main() -> int:
    began, command = time.monotonic(), cli.parse(TrainCommand, __doc__)
    settings, started = settle(command)
    if settings.tensorboard:
        board.require()
    on = compute.choose(settings.device, settings.precision)
    settings = sized(settings, on)
    data = load_data(settings)
    check_data(data, settings, command.resume, started)
    check_shares(data, settings, on)
    config = config_of(settings, data, on)

    torch.manual_seed(settings.seed)
    folder = command.resume or compute.from_first(lambda: create_run_folder(settings.out, config))
    try:
        run = Run(folder, settings.save_minutes, settings.time_limit, settings.tensorboard)
        check_state(run, settings)
        if command.resume:
            run.write_config(config)
        run.log(f"{'going on with' if command.resume else 'writing to'} {run.folder}, {on.describe()}")
        run.log(f"{data.title}: {', '.join(f'{len(part):,} {name}' for name, part in data.splits.items())} slices")
        for note in [note for part in data.splits.values() for note in part.notes]:
            run.log(f"note: {note}")
        run.log(f"to do: {', then '.join(plan(settings))}")
        with run.training():
            try:
                train(run, data, settings, on)
            finally:
                minutes = (started.minutes if started else 0) + (time.monotonic() - began) / 60
                run.write_config(config.model_copy(update={"minutes": round(minutes, 1)}))
            figures.draw_report(run, data, settings)
        prior = "" if settings.prior == "none" else f" and {settings.prior}.pth"
        run.log(f"finished: {folder / 'report.html'} shows it; the weights are beside that, in vqvae.pth{prior}")
        run.log(f"to score them: python predict.py {folder / 'vqvae.pth'}")
    except NotFiniteError as error:
        if error.stage != "autoencoder":
            raise
        raise InputError(f"{error}; {describe_step(data, settings, error.epoch, error.step)}") from error
    except BrokenPipeError:
        raise
    except OSError as error:  # of the log and the figures
        reason = error.strerror or error
        raise InputError(f"can't write to {folder}: {reason}; mend that, and go on with --resume {folder}") from error
    return 0


def plan(settings: TrainSettings) -> list[str]:
    """What a run trains, one after the other."""
    stages = {} if settings.autoencoder else {settings.model: settings.epochs}
    if settings.prior != "none":
        stages[settings.prior] = settings.prior_epochs
    todo = [f"{name}, {counted(epochs, 'epoch')}" for name, epochs in stages.items()]
    if paints(settings):
        todo.insert(1, f"its painter, {counted(settings.painter_slices, 'slice')}")
    return todo


def load_data(settings: DataSettings) -> DataSet:
    """The training and validation splits that the options name."""
    return dataset.load(
        settings.data,
        splits=("train", "validate"),
        allow_overlap=settings.allow_overlap,
        limit_people=settings.limit_people,
        axis=settings.axis,
        slices=settings.slices,
    )


def check_data(data: DataSet, settings: TrainSettings, resumed: Path | None, started: Config | None) -> None:
    """Raises InputError when training can't go on, or a prior can't be trained, with these slices."""
    if started and data.fingerprint != started.data_fingerprint:
        raise InputError(f"{data.root} is not the data that {resumed} was started with; give that with --data")
    if settings.prior == "dcgan":
        check_enough(data.splits["train"], data.splits["validate"])
    if settings.autoencoder and not resumed:
        trained_on = load_autoencoder(settings.autoencoder)[1]["data"]
        if trained_on["fingerprint"] != data.fingerprint:
            title = trained_on["title"]
            raise InputError(f"{settings.autoencoder} was trained on {title}, other data than {data.root}")


def check_shares(data: DataSet, settings: TrainSettings, on: Compute) -> None:
    """Raises InputError when batches can't be shared equally by all processes."""
    batches = {} if settings.autoencoder else {"--batch-size": settings.batch_size}
    batches |= {"--painter-batch-size": settings.painter_batch_size} if paints(settings) else {}
    batches |= {} if settings.prior == "none" else {"--prior-batch-size": settings.prior_batch}
    for option, size in batches.items():
        if size % on.world_size:
            compute.refuse(f"{option} {size} can't be shared equally by {on.world_size} processes: give a multiple")
    if (slices := len(data.splits["train"])) < on.world_size:
        compute.refuse(f"{slices} training slices are too few for {on.world_size} processes: start fewer")


def check_state(run: Run, settings: TrainSettings) -> None:
    """Raises InputError when the state of a run to go on with doesn't fit its settings."""
    if run.state and run.state["stage"] not in (*BEFORE_PRIOR, settings.prior):
        raise InputError(f"last.pth in {run.folder} is not of the run that config.json tells of; start anew")
    if run.state:
        check_weights(run, settings)
    trained = len(run.rows_of("autoencoder"))
    if run.is_past("autoencoder") and not settings.autoencoder and trained < settings.epochs:
        raise InputError(f"{run.folder} is past training its autoencoder; for more --epochs start anew")


def check_weights(run: Run, settings: TrainSettings) -> None:
    """Raises InputError when weights that the run has kept are gone: what remains to do doesn't make them anew."""
    stage = run.state["stage"]
    files = {"autoencoder": "vqvae.pth", "painter": "painter.pth", "student": "painter.pth"}
    kept = [files.get(stage, f"{stage}.pth")] if run.state["best"] is not None else []
    if run.is_past("autoencoder") and not settings.autoencoder:
        kept.append("vqvae.pth")
    if run.is_past("painter") and paints(settings):
        kept.append("painter.pth")
    if gone := [name for name in kept if not (run.folder / name).is_file()]:
        told = "put it back, or start anew"
        raise InputError(f"{gone[0]} is gone from {run.folder}, and last.pth goes on from it: {told}")


def describe_step(data: DataSet, settings: TrainSettings, epoch: int, step: int) -> str:
    """Learning rate and slices of one step of the autoencoder's training."""
    names = data.splits["train"].names
    batch = min(settings.batch_size, len(names))
    steps = len(names) // batch
    rate = falling(settings.lr, (epoch - 1) * steps + step, settings.epochs * steps)
    chosen = dataset.shuffled_shares(len(names), batch, settings.seed, epoch)[step]
    return f"learning rate {rate:.2e}, slices {', '.join(names[i] for i in chosen)}"


if __name__ == "__main__":
    sys.exit(main())
