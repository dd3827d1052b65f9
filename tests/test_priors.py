"""How do the priors learn? Losses and steps in closed form, and the codes that they learn from."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

from inference.codec import Codec
from modules import VQVAE
from networks.pixelcnn import PixelCNN
from networks.transformer import Transformer
from runtime.compute import Compute
from train import GAN_RECIPES, gan_step, latents_of, make_gan
from training import likelihood
from training.codes import AugmentedCodes, CodeBatch, EncodedSplit, neighbour_rows
from training.likelihood import RECIPES, held_out_bits, likelihood_step
from training.losses import bce_losses, gradient_penalty, r3gan_losses
from training.sample_scores import diverged

CPU = Compute(torch.device("cpu"), bf16=False)
LEVELS = 16  # of tiny.data_set


@pytest.fixture(scope="module")
def data():
    return tiny.data_set()


@pytest.fixture(scope="module")
def codec(data):
    torch.manual_seed(0)
    model = VQVAE(codebook_size=16)
    model.initialise_codebooks(torch.from_numpy(np.array(data.splits["train"].images))[:, None] / 255)
    return Codec(model, {"box": [0, 0, 32, 32], "size": [32, 32]}, CPU)


@pytest.fixture(scope="module")
def encoded(codec, data):
    return EncodedSplit(codec, data.splits["train"], LEVELS)


# ----------------------------------------------------------------------------------------------------
# Losses


def test_bce_is_the_course_baselines_loss():
    """Sigmoid and binary cross-entropy as one: the same numbers, and no overflow."""
    real, fake = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    generator, discriminator = bce_losses(real, fake)
    one, zero = torch.ones(50), torch.zeros(50)
    torch.testing.assert_close(generator, F.binary_cross_entropy(fake.sigmoid(), one))
    expected = F.binary_cross_entropy(real.sigmoid(), one) + F.binary_cross_entropy(fake.sigmoid(), zero)
    torch.testing.assert_close(discriminator, expected)
    assert all(loss.isfinite() for loss in bce_losses(1e4 * real, -1e4 * fake))


def test_relativistic_losses_in_closed_form():
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.5])
    generator, discriminator = r3gan_losses(real, fake)
    assert discriminator.item() == pytest.approx((math.log1p(math.exp(-1.5)) + math.log1p(math.exp(2.5))) / 2)
    assert generator.item() == pytest.approx((math.log1p(math.exp(1.5)) + math.log1p(math.exp(-2.5))) / 2)
    shifted = r3gan_losses(real + 7, fake + 7)  # only differences count
    torch.testing.assert_close(torch.stack(shifted), torch.stack([generator, discriminator]))


def test_gradient_penalty_in_closed_form():
    """The squared norm of the weights for a linear score; 4 |x|^2 for a quadratic one."""
    x = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    w = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    linear = gradient_penalty((x * w).sum((1, 2, 3)), x)
    torch.testing.assert_close(linear, w.square().sum().expand(5))
    linear.mean().backward()
    torch.testing.assert_close(w.grad, 2 * w)  # it trains the discriminator
    quadratic = gradient_penalty(x.square().sum((1, 2, 3)), x)
    torch.testing.assert_close(quadratic, 4 * x.square().sum((1, 2, 3)))


# ----------------------------------------------------------------------------------------------------
# The GAN


class Scale(nn.Module):
    """A generator with one weight, and a discriminator with one."""

    z_dim = 4

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, levels, augmented, covariates):
        return self.weight * (x[:, :, None, None] if x.dim() == 2 else x.mean((1, 2, 3)))


@pytest.mark.parametrize(("loss", "gamma"), [("bce", 0.0), ("r3gan", 3.0)])
def test_gan_step_in_closed_form(loss, gamma):
    """Both networks' steps by hand, with plain gradient descent: each moves alone, on its own loss."""
    generator, discriminator = Scale(), Scale()
    optimizers = [torch.optim.SGD(network.parameters(), 0.1) for network in (discriminator, generator)]
    real = 2 + torch.randn(6, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    conditioning = torch.zeros(6, dtype=torch.long), torch.zeros(6, dtype=torch.bool), torch.zeros(6, 0)
    torch.manual_seed(5)
    logged = gan_step(generator, discriminator, optimizers, real, conditioning, loss, 3.0, CPU)
    torch.manual_seed(5)
    noise = torch.randn(2, 6, 4)
    real_mean, fake_mean = real.mean((1, 2, 3)), 0.5 * noise[0].mean(1)

    d = torch.tensor(0.5, requires_grad=True)
    losses = r3gan_losses if loss == "r3gan" else bce_losses
    adversarial = losses(d * real_mean, d * fake_mean)[1]
    penalty = d.square() / 4  # |d score / d input|^2 over the 4 inputs, on real and fake alike
    (adversarial + gamma / 2 * 2 * penalty).backward()
    stepped = 0.5 - 0.1 * d.grad
    torch.testing.assert_close(discriminator.weight.data, stepped)
    torch.testing.assert_close(logged["discriminator_loss"].detach(), adversarial.detach())
    expected = torch.tensor(0.25 / 4)
    penalties = {key: logged[key].detach() for key in ("r1", "r2") if key in logged}
    torch.testing.assert_close(penalties, {"r1": expected, "r2": expected} if loss == "r3gan" else {})
    boundary = 0 if loss == "bce" else 0.5 * torch.cat([real_mean, fake_mean]).mean()
    assert logged["accuracy_real"].item() == pytest.approx((0.5 * real_mean > boundary).float().mean())
    assert logged["accuracy_fake"].item() == pytest.approx((0.5 * fake_mean < boundary).float().mean())

    g = torch.tensor(0.5, requires_grad=True)
    losses(stepped * real_mean, stepped * g * noise[1].mean(1))[0].backward()
    torch.testing.assert_close(generator.weight.data, 0.5 - 0.1 * g.grad)


@pytest.mark.parametrize("network", GAN_RECIPES)
def test_a_new_gan_knows_the_training_latents(network, codec, data, encoded):
    """Its normalisation and its level shares; the baseline's latents are code vectors, the default's are not."""
    recipe, images = GAN_RECIPES[network], torch.from_numpy(np.array(data.splits["train"].images))[:, None] / 255
    latents = latents_of(recipe, codec, images)
    quantised = codec.autoencoder.embed(codec.autoencoder.quantise(latents))
    assert torch.allclose(latents, quantised, atol=1e-5) == (network == "baseline")
    prior = make_gan(recipe, SimpleNamespace(seed=0, gan=network), codec, data, encoded, [])
    torch.testing.assert_close(prior.mean.flatten(), latents.mean((0, 2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(prior.level_share, torch.tensor([4 / 64] * LEVELS + [0.0]))
    assert [grid.shape for grid in prior.eval().sample([1, 2])] == [(2, 8, 8)]


def test_a_gan_that_diverged_is_noticed():
    near = {"epoch": 1, "frechet_pca": 0.4, "frechet_randconv": 0.1, "frechet_folds": 2.0}
    far = {"epoch": 2, "frechet_pca": 4.1, "frechet_randconv": 1.0, "frechet_folds": 20.0}
    for rows, expected in (([], False), ([near], False), ([near, far], True), ([near, far, near], False)):
        log = []
        assert diverged(SimpleNamespace(rows_of=lambda _, rows=rows: rows, log=log.append)) == expected
        assert len(log) == expected


# ----------------------------------------------------------------------------------------------------
# Codes to learn from


def test_codes_and_levels_of_a_split(codec, data, encoded):
    codes, levels = encoded.at(torch.tensor([5, 20]))
    assert (codes[0].dtype, levels.tolist(), encoded.codes_per_image) == (torch.int64, [5, 4], 64)
    assert torch.equal(codes[0], codec.encode(data.splits["train"].images[[5, 20]])[0].long())


def test_unknown_levels_have_a_number_of_their_own(codec):
    slices = tiny.data_set().splits["validate"]
    slices.levels[:3] = [-1, 99, 7]
    assert EncodedSplit(codec, slices, LEVELS).levels[:3].tolist() == [LEVELS, LEVELS, 7]


def test_an_epoch_has_every_slice_once_and_starts_anywhere(codec, data, encoded):
    """Slices that aren't augmented have their own codes; order and variation depend on seed and epoch alone."""
    batches = AugmentedCodes(codec, data.splits["train"], encoded, 16)
    epoch = list(batches.shuffled(3, 2))
    assert (batches.steps, len(epoch)) == (4, 4)
    originals = {tuple(grid.flatten().tolist()) for grid in encoded.codes[0]}
    codes = torch.cat([batch.codes[0] for batch in epoch])
    levels, augmented = (torch.cat([getattr(batch, name) for batch in epoch]) for name in ("levels", "augmented"))
    assert torch.equal(levels.bincount(), torch.full((LEVELS,), 4))
    own = torch.tensor([tuple(grid.flatten().tolist()) in originals for grid in codes])
    assert own[~augmented].all()
    assert not own[augmented].all()
    torch.manual_seed(99)
    for late, whole in zip(batches.shuffled(3, 2, start=2), epoch[2:], strict=True):
        tiny.assert_same([late.codes, late.levels, late.augmented], [whole.codes, whole.levels, whole.augmented])
        tiny.assert_same(late.neighbours._asdict(), whole.neighbours._asdict())
    assert not torch.equal(epoch[0].levels, next(batches.shuffled(3, 3)).levels)
    assert not torch.equal(epoch[0].levels, next(batches.shuffled(4, 2)).levels)


def test_neighbours_are_slices_of_the_same_brain_at_their_offsets(codec, data, encoded, monkeypatch):
    monkeypatch.setattr("training.codes.AUGMENTED", 0.0)
    found = {tuple(grid.flatten().tolist()): i for i, grid in enumerate(encoded.codes[0])}
    people, numbers = data.splits["train"].people, []
    for batch in AugmentedCodes(codec, data.splits["train"], encoded, 16).shuffled(0, 0):
        parts = batch.codes[0], batch.levels, batch.neighbours.codes[0], batch.neighbours.offsets
        for own, level, codes, offsets in zip(*parts, strict=True):
            row = found[tuple(own.flatten().tolist())]
            for grid, offset in zip(codes, offsets.tolist(), strict=True):
                if offset:
                    neighbour = found[tuple(grid.flatten().tolist())]
                    assert people[neighbour] == people[row]
                    assert encoded.levels[neighbour] == level + offset
            numbers.append(int((offsets != 0).sum()))
    assert set(numbers) == {0, 1, 2}


def test_two_processes_share_a_batch(codec, data, encoded):
    codecs = [
        Codec(codec.autoencoder, {"box": codec.box, "size": codec.size}, Compute(CPU.device, False, rank, 2))
        for rank in (0, 1)
    ]
    parts = [AugmentedCodes(own, data.splits["train"], encoded, 16) for own in codecs]
    whole = AugmentedCodes(codec, data.splits["train"], encoded, 16)
    for a, b, both in zip(*(batches.shuffled(0, 1) for batches in (*parts, whole)), strict=True):
        assert torch.equal(torch.cat([a.codes[0], b.codes[0]]), both.codes[0])
        assert torch.equal(torch.cat([a.augmented, b.augmented]), both.augmented)


# ----------------------------------------------------------------------------------------------------
# Likelihood


def test_held_out_bits_count_every_slice_once(codec, data, monkeypatch):
    torch.manual_seed(0)
    prior = PixelCNN([(8, 8)], [16], LEVELS, width=8, layers=2).eval()
    split = EncodedSplit(codec, data.splits["validate"], LEVELS)
    expected = prior(*split.at(torch.arange(len(split)))).mean().item() / 64
    for size in (16, 5):
        monkeypatch.setattr(Compute, "scoring_batch", size)
        assert held_out_bits(prior, split, CPU) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_steps_lower_the_bits_of_their_own_batch(codec, data, encoded, name, monkeypatch):
    monkeypatch.setattr(likelihood, "PixelCNN", partial(PixelCNN, width=32, layers=3))
    monkeypatch.setattr(likelihood, "Transformer", partial(Transformer, width=48, layers=2))
    torch.manual_seed(0)
    recipe, rows = RECIPES[name], torch.arange(16)
    prior = recipe.make(codec.autoencoder, encoded, [])
    optimizer = recipe.optimizer(prior, 3e-3, CPU)
    batch = CodeBatch(*encoded.at(rows), torch.zeros(16, dtype=torch.bool), torch.zeros(16, 0), None)
    bits = [likelihood_step(prior, optimizer, batch, recipe.conditional, CPU).item() for _ in range(6)]
    assert bits[0] == pytest.approx(math.log2(16), rel=0.2)  # all 16 codes about equally likely
    assert bits[-1] < bits[0] - 0.1
    if recipe.conditional:
        adjacent = neighbour_rows(data.splits["train"])[:, [15, 17]]
        nn.init.normal_(prior.neighbour_encoder.conv_out.weight)
        assert held_out_bits(prior.eval(), encoded, CPU, adjacent) != held_out_bits(prior, encoded, CPU)
