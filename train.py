"""How do they learn? An autoencoder, a painter of the texture that its first codes leave open, a prior over its codes.

    python train.py                               VQ-VAE and DCGAN on the OASIS slices, on CUDA if there is any
    python train.py --data demo                   the same on a small synthetic set
    python train.py --resume runs/<run>           resume a run that was stopped
    python train.py --config runs/<run>/config.json --seed 1               the same settings again, with another seed
    python train.py --from resources/pretrained/vqvae.pth                  fine-tune a trained autoencoder
    python train.py --autoencoder runs/<run>/vqvae.pth --prior pixelcnn    another prior for the same autoencoder
    torchrun --nproc_per_node=4 train.py          on several GPUs

Everything goes to runs/<date>_<time>/ (--out); python predict.py runs/<run>/vqvae.pth scores it. This file has the
loops of the default method, autoencoder and DCGAN; those of the painter and of the other priors are in `training/`.
"""

import runtime.environment  # noqa: F401, before PyTorch

# isort: split
import sys
import time
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dataset import Batches, Box, DataSet, Slices
from inference.codec import Codec
from inference.loading import AUTOENCODERS, GANS, load_autoencoder, load_painter
from modules import DCGAN, Autoencoder
from report import plots
from runtime import cli, compute
from runtime.compute import Compute
from runtime.errors import exit_on_input_error
from runtime.replay import Replay
from runtime.signals import StopSignals
from runtime.wording import counted
from scoring.metrics import perplexity
from training import board, figures, setup
from training.augment import Variation, augment, draw_window
from training.codes import EncodedSplit
from training.covariates import Covariates, hide
from training.likelihood import train_by_likelihood
from training.losses import bce_losses, gradient_penalty, l1_ssim, mean_squared_error, r3gan_losses
from training.optim import MovingAverage, constant_then_linear, cosine, muon, set_rate, update
from training.painter import train_painter
from training.run import Run, Stage, create_run_folder
from training.sample_scores import diverged, frechet_distance, score_samples
from training.settings import AutoencoderSettings, TrainCommand, TrainSettings, config_of, settle
from training.validation import validation_ssim

# ----------------------------------------------------------------------------------------------------
# The autoencoder

AUTOENCODER_CLIP = 2.0  # largest norm of the gradient: one odd batch must not send the latents away from the codebooks
BYPASS_STEPS = 100  # at most, before the codebooks are set by k-means
KMEANS_SLICES = 64  # over 100,000 latents
DROPOUT = 0.5  # share of the images that are reconstructed from fewer codes than all
DROPOUT_WEIGHT = 0.5  # of those images in the loss

LOSSES = {"l1+ssim": l1_ssim, "mse": mean_squared_error}


def train_autoencoder(run: Run, data: DataSet, settings: TrainSettings, on: Compute) -> None:
    """Train the autoencoder; vqvae.pth is the one with the best validation SSIM."""
    train, box = data.splits["train"], data.splits["train"].box
    window = None if settings.augment == "on" else box  # augmentation takes its window from the whole slice
    batches = Batches(train, settings.batch_size, on.device, window, on.rank, on.world_size)
    model = make_autoencoder(settings).to(on.device, memory_format=torch.channels_last)
    optimizer = make_optimizer(model, settings, on)
    parts = {"model": model, "optimizer": optimizer}
    stage = Stage(run, "autoencoder", settings.epochs, batches, parts, "validation SSIM")
    bypassed_steps = -1 if settings.from_ else min(BYPASS_STEPS, batches.steps // 2)  # -1: its codebooks are set
    description = setup.describe_data(data, settings)
    if not stage.resumed:
        if settings.from_:
            model.load_state_dict(load_autoencoder(settings.from_)[0].state_dict())
        count = sum(p.numel() for p in model.parameters())
        run.log(f"{settings.model}: {count:,} weights, on the {box.height}x{box.width} pixels that hold content")

    @partial(Replay, on)
    def step(images: Tensor, window: tuple[int, int] | None, bypass: bool) -> dict[str, Tensor]:
        model.bypass_quantizers(bypass)
        images = augment(images, box, window) if settings.augment == "on" else images
        num_codes = draw_num_codes(len(images), model.depth, on.device)
        return autoencoder_step(model, optimizer, images, num_codes, LOSSES[settings.loss], on)

    for epoch in stage.remaining_epochs():
        model.train()
        for images, _ in stage.steps(settings.seed):
            if stage.steps_done == bypassed_steps:
                with stage.interruptible():
                    initialise_codebooks(model, train, settings.seed, on)
            rate = settings.lr * cosine(stage.steps_done, stage.total_steps)
            set_rate(optimizer, rate)
            window = draw_window(box) if settings.augment == "on" else None
            losses = step(images, window, stage.steps_done < bypassed_steps)
            stage.add(**losses, learning_rate=rate)

        score = validation_ssim(model, data, box, on)
        if stage.is_best(score):
            content = {"kind": "autoencoder", "model": settings.model, "arguments": model.arguments}
            content |= {"data": description, "epoch": epoch, "validation_ssim": score, "state": model.state_dict()}
            run.save("vqvae.pth", content)
        figures.draw_epoch(run, model, data, box, epoch, score, on)
        stage.end_epoch(stage.means() | {"validation_ssim": score} | codebook_use(model))
    figures.draw_autoencoder(run, Codec(model, description, on), data)


def autoencoder_step(
    model: Autoencoder, optimizer: torch.optim.Optimizer, images: Tensor, num_codes: Tensor | None, loss, on: Compute
) -> dict[str, Tensor]:
    """One step on images [B, 1, h, w], reconstructed from `num_codes` codes per position; the scalars to log."""
    with on.autocast(model):
        reconstruction, _, latent_loss = model(images, num_codes)
    losses = loss(reconstruction.float(), images)  # [B]
    if num_codes is not None:
        losses = losses * torch.where(num_codes < model.depth, DROPOUT_WEIGHT, 1.0)
    reconstruction_loss = losses.mean()
    norm = update(reconstruction_loss + latent_loss, model, optimizer, AUTOENCODER_CLIP)
    return {"train_reconstruction": reconstruction_loss, "train_commitment": latent_loss, "gradient_norm": norm}


def draw_num_codes(n: int, depth: int, device: torch.device) -> Tensor | None:
    """Quantiser dropout: how many codes per position each image is reconstructed from, int64 [n]; None is all.

    Half of them from all, the others from any number below, 1 and 2 twice as often: those are what priors draw.
    """
    if depth == 1:
        return None
    draw = torch.randint(0, depth - 1 + min(depth - 1, 2), (n,), device=device)
    fewer = torch.where(draw < 4, draw // 2 + 1, draw - 1)  # 0, 1, 2, 3, 4, ... stand for 1, 1, 2, 2, 3, ...
    return torch.where(torch.rand(n, device=device) < DROPOUT, fewer, depth)


def make_autoencoder(settings: AutoencoderSettings) -> Autoencoder:
    """The network that the options ask for; only rqvae's size can be chosen."""
    arguments = {"codebook_size": settings.codebook_size, "beta": settings.beta, "ema": settings.codebook == "ema"}
    if settings.model == "rqvae":
        arguments |= {name: getattr(settings, name) for name in ("depth", "downsample", "width", "blocks")}
    return AUTOENCODERS[settings.model](**arguments)


def make_optimizer(model: Autoencoder, settings: AutoencoderSettings, on: Compute) -> torch.optim.Optimizer:
    """The optimiser of --optimizer; by default Muon for rqvae alone.

    Muon makes networks without normalisation unstable: their latents grow faster than the codebook can follow.
    """
    if (settings.optimizer or ("muon" if settings.model == "rqvae" else "adam")) == "muon":
        return muon(model, settings.lr)
    return torch.optim.Adam(model.parameters(), settings.lr, (0.9, 0.99), fused=True, capturable=on.graphs)


def initialise_codebooks(model: Autoencoder, slices: Slices, seed: int, on: Compute) -> None:
    """k-means on the latents of some training slices."""
    images, _ = draw_examples(slices, KMEANS_SLICES, slices.box, seed, on)
    with on.autocast():
        model.initialise_codebooks(images)


def draw_examples(slices: Slices, n: int, box: Box, seed: int, on: Compute) -> tuple[Tensor, Tensor]:
    """`n` slices at most, the same in every process: images [n, 1, *box] in [0, 1], and their rows int64 [n]."""
    return next(Batches(slices, min(n, len(slices)), on.device, box).shuffled(seed, epoch=0))


def codebook_use(model: Autoencoder) -> dict[str, float]:
    """Perplexity and codes used over the epoch's training steps, for each codebook; resets the counts."""
    usage = [counts for quantizer in model.quantizers for counts in quantizer.usage]
    use = {f"perplexity_{i}": perplexity(counts) for i, counts in enumerate(usage)}
    use |= {f"codes_used_{i}": int((counts > 0).sum()) for i, counts in enumerate(usage)}
    for counts in usage:
        counts.zero_()
    return use


# ----------------------------------------------------------------------------------------------------
# The DCGAN prior

EXAMPLES = 1024  # slices, at most, whose latents set the GAN's normalisation
JUDGED_SAMPLES = 320  # after each epoch


class GANRecipe(NamedTuple):
    """What a pair of networks is trained with."""

    loss: str  # "r3gan" with gradient penalties, or "bce"
    quantised: bool  # whether real latents are code vectors, or the encoder's outputs
    augmented: float  # share of the slices
    betas: tuple[float, float]  # Adam's
    decay: float  # of the average of the generator that samples
    annealed: bool  # whether learning rate and gamma fall


GAN_RECIPES = {
    "residual": GANRecipe("r3gan", False, 0.6, (0.0, 0.99), 0.999, annealed=True),
    "baseline": GANRecipe("bce", True, 0.0, (0.5, 0.999), 0.0, annealed=False),
}


def train_dcgan(run: Run, data: DataSet, settings: TrainSettings, codec: Codec, description: dict) -> None:
    """Train the GAN over the autoencoder's latents; dcgan.pth is the one nearest to the validation people.

    Real latents are not quantised, as in latent diffusion (Rombach et al. 2022, section 3.1): a discriminator would
    recognise code vectors by their mutual distances alone. `DCGAN.sample` quantises in the end.
    """
    from scoring.judge import Judge  # here, since this import takes seconds that training starts without

    recipe, train, on = GAN_RECIPES[settings.gan], data.splits["train"], codec.on
    run.log(f"dcgan: encoding {counted(len(train), 'slice')} and learning to judge samples; then it trains")
    covariates = Covariates(data, settings.covariates if settings.gan == "residual" else "none")
    values = covariates.values["train"]
    encoded = EncodedSplit(codec, train, description["data"]["levels"], settings.prior_codes, values)
    batches = Batches(train, settings.prior_batch, on.device, None, on.rank, on.world_size)
    prior = make_gan(recipe, settings, codec, data, encoded, covariates.described)
    discriminator = prior.make_discriminator().to(on.device, memory_format=torch.channels_last)
    average = MovingAverage(prior, recipe.decay)
    peak_rate = 2e-4 if settings.prior_lr is None else settings.prior_lr
    optimizers = [
        torch.optim.Adam(network.parameters(), peak_rate, recipe.betas, fused=True, capturable=on.graphs)
        for network in (discriminator, prior.generator)
    ]
    parts = {"prior": prior, "discriminator": discriminator, "average": average}
    parts |= {"discriminator_optimizer": optimizers[0], "generator_optimizer": optimizers[1]}
    stage = Stage(run, "dcgan", settings.prior_epochs, batches, parts, "Frechet distance", less_is_better=True)
    judge = Judge(train, data.splits["validate"]) if run.main else None

    @partial(Replay, on)
    def step(images: Tensor, levels: Tensor, known: Tensor, gamma: Tensor) -> dict[str, Tensor]:
        variation = Variation.draw(len(images), recipe.augmented, on.device)
        real = prior.normalise(latents_of(recipe, codec, variation.apply(images, codec.box)))
        conditioning = levels, variation.augmented.flatten(), hide(covariates.scaled(known, variation))
        return gan_step(prior.generator, discriminator, optimizers, real, conditioning, recipe.loss, gamma, on)

    for epoch in stage.remaining_epochs():
        if compute.from_first(partial(diverged, run)):
            break
        prior.train()
        for images, rows in stage.steps(settings.seed):
            progress, gamma = stage.steps_done / stage.total_steps, settings.gan_gamma
            if recipe.annealed:
                gamma *= 0.5 ** min(1.0, progress / 0.6)
                warm_up = min(200, 1 + stage.total_steps / 10)
                for optimizer in optimizers:
                    set_rate(
                        optimizer, peak_rate * constant_then_linear(stage.steps_done, stage.total_steps, warm_up, 0.5)
                    )
            rows = rows.to(on.device, non_blocking=True)
            losses = step(
                images, encoded.levels[rows], encoded.covariates[rows], torch.full((), gamma, device=on.device)
            )
            average.update_parameters(prior)
            stage.add(**losses)

        row = stage.means()
        if run.main:
            row |= score_samples(codes := average.module.sample(range(JUDGED_SAMPLES)), encoded, codec, judge)
            if stage.is_best(-frechet_distance(row)):
                run.save_prior("dcgan", average.module, description["identity"], epoch, row)
            figures.draw_sampled(run, codec, codes, data, stage, epoch)
        stage.end_epoch(row)
    if run.main:
        plots.dcgan_curves(run.rows_of("dcgan"), run.folder / "dcgan_curves.png", f"{data.title}, training split")


def gan_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    real: Tensor,
    conditioning: tuple[Tensor, Tensor, Tensor],
    loss: str,
    gamma: Tensor | float,
    on: Compute,
) -> dict[str, Tensor]:
    """One step of the discriminator, then one of the generator, on real, normalised latents; the scalars to log.

    `optimizers`: the discriminator's and the generator's. `conditioning`: slice levels int64 [B], which slices were
    augmented, bool [B], and covariates float32 [B, n]. `gamma`: weight of R1 and R2 with the loss "r3gan".
    """
    relativistic = loss == "r3gan"
    gan_losses = r3gan_losses if relativistic else bce_losses
    noise = torch.randn(2, len(real), generator.z_dim, device=real.device)

    with torch.no_grad(), on.autocast(generator):
        fake = generator(noise[0], *conditioning).float()
    both, penalties = torch.cat([real.detach(), fake]).requires_grad_(), {}
    with on.autocast(discriminator):
        if relativistic:  # its discriminator has no batch statistics: one pass for both halves
            real_score, fake_score = discriminator(both, *(torch.cat([each, each]) for each in conditioning)).chunk(2)
        else:
            real_score, fake_score = (discriminator(each, *conditioning) for each in (real, fake))
    _, discriminator_loss = gan_losses(real_score, fake_score)
    if relativistic:
        r1, r2 = gradient_penalty(torch.cat([real_score, fake_score]), both).chunk(2)
        penalties = {"r1": r1.mean(), "r2": r2.mean()}
    update(discriminator_loss + gamma / 2 * sum(penalties.values()), discriminator, optimizers[0])
    boundary = (real_score.mean() + fake_score.mean()) / 2 if relativistic else 0  # relativistic logits have no zero
    values = {
        "score_real": real_score.mean(),
        "score_fake": fake_score.mean(),
        "accuracy_real": (real_score > boundary).float().mean(),
        "accuracy_fake": (fake_score < boundary).float().mean(),
    }

    with on.autocast(generator, discriminator):
        fake_score = discriminator(generator(noise[1], *conditioning), *conditioning)
        with torch.no_grad():
            real_score = discriminator(real, *conditioning)
    generator_loss, _ = gan_losses(real_score, fake_score)
    update(generator_loss, generator, optimizers[1])
    return {"generator_loss": generator_loss, "discriminator_loss": discriminator_loss, **values, **penalties}


@torch.no_grad()
def latents_of(recipe: GANRecipe, codec: Codec, images: Tensor) -> Tensor:
    """images [B, 1, *box] -> the latents [B, C, h, w] that count as real."""
    with codec.on.autocast(codec.autoencoder):
        latents = codec.autoencoder.latents(images)
        return codec.autoencoder.embed(codec.autoencoder.quantise(latents)) if recipe.quantised else latents


def make_gan(
    recipe: GANRecipe,
    settings: TrainSettings,
    codec: Codec,
    data: DataSet,
    encoded: EncodedSplit,
    described: list[dict],
) -> DCGAN:
    """The GAN's prior, its normalisation set from the latents of up to `EXAMPLES` training slices, as they are."""
    on, slices = codec.on, data.splits["train"]
    images, rows = draw_examples(slices, EXAMPLES, codec.box, settings.seed, on)
    latents = torch.cat([latents_of(recipe, codec, part) for part in images.split(64)])
    sizes = {"channels": latents.shape[1], "levels": encoded.unknown, "codes": len(encoded.codes)}
    sizes |= {"network": settings.gan, "covariates": described}
    prior = GANS[settings.gan](codec.autoencoder, tuple(latents.shape[2:]), **sizes).to(on.device)
    prior.fit(latents, encoded.levels[rows.to(on.device)])
    prior.fit_levels(encoded.levels)
    return prior.to(memory_format=torch.channels_last)


# ----------------------------------------------------------------------------------------------------
# The whole run

PRIORS = {"dcgan": train_dcgan, "pixelcnn": train_by_likelihood, "transformer": train_by_likelihood}


def train(run: Run, data: DataSet, settings: TrainSettings, on: Compute) -> None:
    """The autoencoder and its painter, unless they are done, and then the prior."""
    path = run.folder / "vqvae.pth"
    if settings.autoencoder:
        compute.from_first(lambda: setup.adopt(run, settings.autoencoder))
    elif not run.is_past("autoencoder"):
        with setup.advice_when_memory_is_full("--batch-size", settings.batch_size):
            train_autoencoder(run, data, settings, on)
    autoencoder, description = load_autoencoder(path)
    if setup.has_painter(settings) and not run.is_past("student"):
        with setup.advice_when_memory_is_full("--painter-batch-size", settings.painter_batch_size):
            train_painter(run, data, settings, Codec(autoencoder, description["data"], on), description["identity"])
    if settings.prior != "none":
        with setup.advice_when_memory_is_full(f"--autoencoder {path} --prior-batch-size", settings.prior_batch):
            painter = load_painter(run.folder / "painter.pth", autoencoder)
            codec = Codec(autoencoder, description["data"], on, painter)
            PRIORS[settings.prior](run, data, settings, codec, description)


@exit_on_input_error
@StopSignals()
def main() -> int:
    began, command = time.monotonic(), cli.parse(TrainCommand, __doc__)
    settings, started = settle(command)
    if settings.tensorboard:
        board.require()
    on = compute.choose(settings.device, settings.precision, settings.cuda_graphs)
    settings = settings if started else setup.with_sizes_to_go_on_from(settings)
    settings = setup.with_painter_size(settings, on)
    data = setup.load_data(settings)
    setup.check_data(data, settings, command.resume, started)
    setup.check_shares(data, settings, on)
    config = config_of(settings, data, on)
    torch.manual_seed(settings.seed + on.rank)
    folder = command.resume or compute.from_first(lambda: create_run_folder(settings.out, config))
    with setup.naming_the_cause(folder, data, settings):
        run = Run(folder, settings.save_minutes, settings.time_limit, settings.tensorboard)
        setup.check_state(run, settings)
        run.work = setup.work(settings, len(data.splits["train"]))
        if command.resume:
            run.write_config(config)
        run.log(f"{'resuming' if command.resume else 'writing to'} {folder}, {on.describe()}")
        run.log(f"{data.title}: {', '.join(f'{len(part):,} {name}' for name, part in data.splits.items())} slices")
        for note in [note for part in data.splits.values() for note in part.notes]:
            run.log(f"note: {note}")
        run.log(f"to do: {', then '.join(setup.plan(settings))}")
        with run.training():
            try:
                train(run, data, settings, on)
            finally:
                minutes = (started.minutes if started else 0) + (time.monotonic() - began) / 60
                run.write_config(config.model_copy(update={"minutes": round(minutes, 1)}))
            figures.draw_report(run, data, settings)
        run.log(f"finished: see {folder / 'report.html'}; to score it: python predict.py {folder / 'vqvae.pth'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
