"""How do the priors learn? Losses and steps in closed form, and the batches of codes that they learn from."""

import math

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

from dataset import shuffled_shares
from inference.codec import Codec
from modules import VQVAE
from networks.gan import LatentCritic
from networks.pixelcnn import PixelCNN
from runtime.compute import Compute
from runtime.errors import InputError
from training import likelihood
from training.codes import CodeBatches, EmbeddedCodes, Latents, VariedLatents
from training.dcgan import (
    RECIPES,
    DCGANLearner,
    bce_losses,
    descend,
    diverged,
    gan_step,
)
from training.likelihood import LikelihoodLearner, held_out_bits
from training.losses import gradient_penalty, r3gan_losses

CPU = Compute(torch.device("cpu"), bf16=False)


@pytest.fixture(scope="module")
def data():
    return tiny.data_set()


@pytest.fixture(scope="module")
def codec(data):
    torch.manual_seed(0)
    model = VQVAE(codebook_size=16)
    model.initialise_codebooks(torch.from_numpy(np.array(data.splits["train"].images))[:, None] / 255)
    return Codec(model, {"box": [0, 0, 32, 32], "size": [32, 32]}, CPU)


# ------------------------------------------------------------------------------------------- losses


def test_bce_is_the_course_reports_loss():
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
    equal = r3gan_losses(real, real)
    torch.testing.assert_close(torch.stack(equal), torch.full((2,), math.log(2)))


def test_gradient_penalty_in_closed_form():
    """Of a linear score it is the squared norm of the weights; of a quadratic one, 4 |x|^2."""
    x = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    w = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    linear = gradient_penalty((x * w).sum((1, 2, 3)), x)
    torch.testing.assert_close(linear, w.square().sum())
    linear.backward()
    torch.testing.assert_close(w.grad, 2 * w)  # it trains the discriminator
    quadratic = gradient_penalty(x.square().sum((1, 2, 3)), x)
    torch.testing.assert_close(quadratic, 4 * x.square().sum((1, 2, 3)).mean())
    scores = x.sum(1)  # a map: each of 9 scores has 2 of its image's 18 pixels, with a weight of 1
    torch.testing.assert_close(gradient_penalty(scores, x), torch.tensor(2.0))


# ------------------------------------------------------------------------------------------- a step of the GAN


def latents(values):
    return Latents(values, torch.zeros(len(values), dtype=torch.long), torch.zeros(len(values), dtype=torch.bool))


class Scale(nn.Module):
    """A generator of one number, and a discriminator of one."""

    z_dim = 4

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, levels, changed):
        return self.weight * (x[:, :, None, None] if x.dim() == 2 else x.mean((1, 2, 3)))


@pytest.mark.parametrize(("loss", "gamma"), [("bce", 0.0), ("r3gan", 3.0)])
def test_gan_step_in_closed_form(loss, gamma):
    """Both networks' steps by hand, with plain gradient descent: each moves alone, on its own loss."""
    generator, discriminator = Scale(), Scale()
    learners = [torch.optim.SGD(net.parameters(), 0.1) for net in (discriminator, generator)]
    real = 2 + torch.randn(6, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    logged = gan_step(generator, discriminator, learners, latents(real), CPU, loss, gamma=3.0)
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
    border = 0 if loss == "bce" else 0.5 * torch.cat([real_mean, fake_mean]).mean()
    assert logged["accuracy_real"].item() == pytest.approx((0.5 * real_mean > border).float().mean())
    assert logged["accuracy_fake"].item() == pytest.approx((0.5 * fake_mean < border).float().mean())

    g = torch.tensor(0.5, requires_grad=True)
    losses(stepped * real_mean, stepped * g * noise[1].mean(1))[0].backward()
    torch.testing.assert_close(generator.weight.data, 0.5 - 0.1 * g.grad)


def test_processes_draw_noise_of_their_own():
    """Each takes its share of one draw: two see what one would, and never the same noise."""
    seen = []

    class Look(Scale):
        def forward(self, x, levels, changed):
            if x.dim() == 2:
                seen.append(x)
            return super().forward(x, levels, changed)

    for rank in (0, 1):
        torch.manual_seed(5)
        nets = Look(), Scale()
        learners = [torch.optim.SGD(net.parameters(), 0.1) for net in nets]
        on = Compute(torch.device("cpu"), False, rank, 2)
        gan_step(*nets, learners, latents(torch.ones(3, 4, 1, 1)), on, "bce", gamma=0.0)
    torch.manual_seed(5)
    whole = torch.randn(2, 6, 4)
    assert torch.equal(torch.cat([seen[0], seen[2]]), whole[0])
    assert torch.equal(torch.cat([seen[1], seen[3]]), whole[1])


# ------------------------------------------------------------------------------------------- batches of codes


def test_every_slice_once_an_epoch_with_its_own_codes(codec, data):
    batches = CodeBatches(codec, data.splits["train"], 16, 16, CPU)
    everything = codec.encode(data.splits["train"].images)
    assert batches.steps == 4
    seen = torch.cat([codes[0] for codes, _ in batches.shuffled(0, 1, 0)])
    key = [tuple(grid.flatten().tolist()) for grid in seen]
    assert sorted(key) == sorted(tuple(grid.flatten().tolist()) for grid in everything[0])
    assert seen.dtype == torch.int64


def test_order_depends_on_seed_and_epoch_alone_and_starts_anywhere(codec, data):
    batches = CodeBatches(codec, data.splits["train"], 16, 16, CPU)
    whole = [levels for _, levels in batches.shuffled(3, 2, 0)]
    torch.manual_seed(99)
    late = [levels for _, levels in batches.shuffled(3, 2, 2)]
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], late, strict=True))
    assert not torch.equal(whole[0], next(batches.shuffled(3, 3, 0))[1])
    assert not torch.equal(whole[0], next(batches.shuffled(4, 2, 0))[1])


def test_codes_and_levels_of_the_slices_asked_for(codec, data):
    batches = CodeBatches(codec, data.splits["train"], 16, 16, CPU)
    codes, levels = batches.at(torch.tensor([5, 20]))
    assert levels.tolist() == [5, 4]
    assert torch.equal(codes[0], codec.encode(data.splits["train"].images[[5, 20]])[0].long())
    latents = batches.latents(codec.autoencoder)
    assert torch.equal(latents[[5, 20]], codec.autoencoder.embed(codes))


def test_unknown_levels_have_a_number_of_their_own(codec, data):
    part = data.splits["validate"]
    part.levels[:3] = [-1, 99, 7]
    batches = CodeBatches(codec, data.splits["validate"], 16, 16, CPU)
    assert batches.levels[:3].tolist() == [16, 16, 7]


def test_two_processes_share_a_batch(codec, data):
    parts = [CodeBatches(codec, data.splits["train"], 16, 16, Compute(CPU.device, False, rank, 2)) for rank in (0, 1)]
    whole = CodeBatches(codec, data.splits["train"], 16, 16, CPU)
    assert [part.steps for part in parts] == [4, 4]
    shared = zip(*[part.shuffled(0, 1, 0) for part in parts], whole.shuffled(0, 1, 0), strict=True)
    for (a, levels_a), (b, levels_b), (both, levels) in shared:
        assert torch.equal(torch.cat([a[0], b[0]]), both[0])
        assert torch.equal(torch.cat([levels_a, levels_b]), levels)
    with pytest.raises(InputError, match="can't be shared equally"):
        CodeBatches(codec, data.splits["train"], 16, 16, Compute(CPU.device, False, 0, 3))


def test_held_out_bits_count_every_slice_once(codec, data):
    torch.manual_seed(0)
    prior = PixelCNN([(8, 8)], [16], 16, width=8, layers=2).eval()
    one = CodeBatches(codec, data.splits["validate"], 16, 16, CPU)
    uneven = CodeBatches(codec, data.splits["validate"], 16, 5, CPU)
    codes, levels = one.at(torch.arange(one.size))
    expected = prior(codes, levels).mean().item() / 64  # codes of a slice
    assert held_out_bits(prior, one) == pytest.approx(expected, rel=1e-5)
    assert held_out_bits(prior, uneven) == pytest.approx(expected, rel=1e-5)


def test_a_fused_step_is_the_plain_step():
    """Fused optimisers read gradients in the weights' memory layout: a gradient in another would be scrambled."""
    latents, levels = torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    latents = latents.to(memory_format=torch.channels_last)
    stepped = []
    for fused in (False, True):
        torch.manual_seed(0)
        network = LatentCritic((16, 16), channels=8, levels=4, width=8)
        optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=fused)
        descend(optimizer, network, network(latents, levels, levels > 1).square().mean())
        assert all(p.grad.stride() == p.stride() for p in network.parameters())
        stepped.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    torch.testing.assert_close(*stepped)


def test_rate_and_gamma_fall(codec, data):
    batches = CodeBatches(codec, data.splits["train"], 16, 16, CPU)
    for network, ends in {"residual": (2.0, 1e-3 * 0.02), "baseline": (4.0, 1e-3)}.items():
        source = RECIPES[network].learns_from(codec, data.splits["train"], batches, 0)
        learner = DCGANLearner(source, codec.autoencoder, network, 1e-3, 4.0)
        learner.anneal(600, 1200)
        assert [group["lr"] for optimizer in learner.optimizers for group in optimizer.param_groups] == [1e-3] * 2
        learner.anneal(1200, 1200)
        rate = learner.optimizers[0].param_groups[0]["lr"]
        assert (learner.gamma, rate) == pytest.approx(ends)


def test_a_gan_that_runs_away_is_noticed():
    near = {"epoch": 1, "frechet_pca": 0.4, "frechet_randconv": 0.1, "frechet_folds": 2.0}
    far = {"epoch": 2, "frechet_pca": 4.1, "frechet_randconv": 1.0, "frechet_folds": 20.0}
    assert not diverged([])
    assert not diverged([near])
    assert diverged([near, far])
    assert not diverged([near, far, near])


# ------------------------------------------------------------------------------------------- batches of latents


def test_latents_of_codes_are_what_the_decoder_sees(codec, data):
    batches = CodeBatches(codec, data.splits["train"], 16, 16, CPU)
    source = EmbeddedCodes(codec, data.splits["train"], batches, 3)
    for drawn, (codes, levels) in zip(source.shuffled(2), batches.shuffled(3, 2), strict=True):
        assert torch.equal(drawn.values, codec.autoencoder.embed(codes))
        assert torch.equal(drawn.levels, levels)
        assert not drawn.changed.any()
    examples, levels = source.examples()
    assert torch.equal(examples, batches.latents(codec.autoencoder))
    assert torch.equal(levels, batches.levels)


def test_varied_latents_are_those_of_the_slices_unless_changed(codec, data):
    batches = CodeBatches(codec, data.splits["train"], 16, 16, CPU)
    source = VariedLatents(codec, data.splits["train"], batches, 3)
    images = torch.from_numpy(np.array(data.splits["train"].images))[:, None] / 255
    with torch.no_grad():
        plain = codec.autoencoder.latents(images)
    examples, levels = source.examples()
    torch.testing.assert_close(examples, plain)
    assert torch.equal(levels, batches.levels)
    seen, changed = [], []
    rows = shuffled_shares(64, 16, 3, 2, 0, 1)
    for drawn, indices in zip(source.shuffled(2), rows, strict=True):
        assert torch.equal(drawn.levels, batches.levels[indices])
        same = (drawn.values - plain[indices]).abs().amax((1, 2, 3)) < 1e-4
        assert same[~drawn.changed].all()
        seen.append(drawn.values)
        changed += same[drawn.changed].tolist()
    assert sum(changed) < len(changed) / 10  # of about 40
    late = list(source.shuffled(2, start=2))
    assert torch.equal(late[0].values, seen[2])
    assert not torch.equal(next(source.shuffled(3)).values, seen[0])


def test_two_processes_vary_what_one_would(codec, data):
    ons = [Compute(CPU.device, False, rank, 2) for rank in (0, 1)]
    parts = [
        VariedLatents(codec, data.splits["train"], CodeBatches(codec, data.splits["train"], 16, 16, on), 3)
        for on in ons
    ]
    whole = VariedLatents(codec, data.splits["train"], CodeBatches(codec, data.splits["train"], 16, 16, CPU), 3)
    for a, b, both in zip(*(part.shuffled(1) for part in parts), whole.shuffled(1), strict=True):
        torch.testing.assert_close(torch.cat([a.values, b.values]), both.values)
        assert torch.equal(torch.cat([a.changed, b.changed]), both.changed)


# ------------------------------------------------------------------------------------------- what learns


@pytest.mark.parametrize("network", RECIPES)
def test_the_gan_that_samples_follows_the_one_that_learns(network, codec, data):
    """After a step its weights are the average's, its statistics those of the network that learns."""
    torch.manual_seed(0)
    batches = CodeBatches(codec, data.splits["train"], 16, 16, CPU)
    source = RECIPES[network].learns_from(codec, data.splits["train"], batches, 0)
    learner = DCGANLearner(source, codec.autoencoder, network, 2e-4, 1.0)
    before = [weight.clone() for weight in learner.sampler.parameters()]
    for drawn in source.shuffled(1):
        learner.step(drawn)
    assert learner.sampler is not learner.prior
    assert not learner.sampler.training
    for buffer, newest in zip(learner.sampler.buffers(), learner.prior.buffers(), strict=True):
        assert torch.equal(buffer, newest)
    triples = list(zip(before, learner.sampler.parameters(), learner.prior.parameters(), strict=True))
    assert any(not torch.equal(old, new) for old, _, new in triples)
    if network == "baseline":  # sampled as it is
        assert all(torch.equal(average, new) for _, average, new in triples)
    else:
        assert any(not torch.equal(average, new) for _, average, new in triples)
    sampled = learner.sampler.sample([1, 2])
    assert [grid.shape for grid in sampled] == [grid[:2].shape for grid in batches.codes]


@pytest.mark.parametrize("name", ["pixelcnn", "transformer"])
def test_one_step_lowers_the_bits_of_its_own_batch(codec, data, name):
    torch.manual_seed(0)
    batches = CodeBatches(codec, data.splits["train"], 16, 16, CPU)
    learner = LikelihoodLearner(likelihood.RECIPES[name], codec.autoencoder, batches, 1e-3)
    given = batches.alone(torch.arange(16))
    first = learner.step(given, 1e-3).item()
    assert first == pytest.approx(math.log2(16), rel=0.2)  # of 16 codes, as likely one as another
    for _ in range(5):
        last = learner.step(given, 1e-3).item()
    assert last < first - 0.1
    shares = torch.bincount(batches.levels, minlength=17) / 64
    assert torch.equal(learner.sampler.level_share, shares)
