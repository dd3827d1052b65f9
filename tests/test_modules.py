import copy
import inspect
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modules
from modules import AUTOENCODERS, DCGAN, VQVAE, VQVAE2, Discriminator, Generator
from networks.prior import draw_levels
from networks.quantizer import VectorQuantizer

NAMES = sorted(AUTOENCODERS)


def quantizer(size=8, dim=3, **options) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(size, dim, **options)


def latents(seed: int, shape=(2, 3, 4, 5)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rows(z: torch.Tensor) -> torch.Tensor:
    """[B, D, h, w] -> [B*h*w, D], written with loops so as not to repeat the code under test."""
    return torch.stack([z[b, :, i, j] for b in range(z.shape[0]) for i in range(z.shape[2]) for j in range(z.shape[3])])


def brute_force(z: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    distance = (rows(z).double()[:, None] - codebook.double()[None]).norm(dim=2)
    return distance.argmin(1).view(z.shape[0], *z.shape[2:])


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def autoencoder(name: str, seed: int = 0, codebook_size: int = 16):
    """A random autoencoder whose codebooks fit its latents, so that codes differ."""
    torch.manual_seed(seed)
    model = AUTOENCODERS[name](codebook_size=codebook_size)
    for parameter in model.decoder.parameters():  # away from zero starts, so that every latent shows
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.initialise_codebooks(pictures(8, 64, 64))
    return model.eval()


def pictures(n: int, height: int, width: int) -> torch.Tensor:
    coarse = torch.rand(n, 1, height // 4, width // 4, generator=torch.Generator().manual_seed(height + width))
    return F.interpolate(coarse, size=(height, width), mode="bilinear")


# ------------------------------------------------------------------------------------------- the report's sizes


def test_parameter_counts_of_the_report():
    """The classic report's layers: 222,465 weights counting the codebook of 512 x 64, and its GAN's."""
    model = VQVAE()
    assert count(model) + model.quantizers[0].codebook.numel() == 222_465
    assert count(VQVAE(ema=False)) == 222_465  # the codebook is a parameter when it learns by gradient
    assert count(Generator()) == 3_868_544
    assert count(Discriminator()) == 725_952


# ------------------------------------------------------------------------------------------- vector quantisation


def test_nearest_is_brute_force():
    vq = quantizer(64, 16).eval()
    z = latents(1, (3, 16, 5, 7))
    z_q, codes, _ = vq(z)
    assert torch.equal(codes, brute_force(z, vq.codebook))
    torch.testing.assert_close(z_q, vq.embed(codes))
    torch.testing.assert_close(rows(z_q), vq.codebook[codes.flatten()])


def test_nearest_in_pieces_is_nearest_in_one():
    vq = quantizer(16, 4)
    flat = latents(2, (10_000, 4))
    assert torch.equal(vq.nearest(flat), torch.cdist(flat.double(), vq.codebook.double()).argmin(1))


def test_every_code_index_decodes_to_its_own_vector():
    vq = quantizer(512, 64).eval()
    z = vq.codebook.t().reshape(1, 64, 16, 32)
    z_q, codes, loss = vq(z)
    assert torch.equal(codes.flatten(), torch.arange(512))
    torch.testing.assert_close(z_q, z)
    assert loss.item() == pytest.approx(0, abs=1e-12)


def test_rows_are_latents_with_channels_last():
    """Mistake 5: [B, C, H, W] was cut into rows of length C without moving the channels last."""
    vq = quantizer(2, 3).eval()
    vq.codebook.copy_(torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]]))
    pattern = torch.tensor([[0, 1, 1], [1, 0, 0]])
    z = vq.codebook[pattern].permute(2, 0, 1)[None]  # wrong rows would mix the three channels of neighbours
    z_q, codes, _ = vq(z)
    assert torch.equal(codes[0], pattern)
    torch.testing.assert_close(z_q, z)


@pytest.mark.parametrize("ema", [True, False])
def test_latent_loss_in_closed_form(ema):
    """Mistake 1: without a codebook term and without EMA the codebook never learned."""
    vq = quantizer(beta=0.3, ema=ema)
    before = vq.codebook.detach().clone()
    z = latents(3).requires_grad_()
    _, codes, loss = vq(z)
    gap = rows(z.detach()) - before[codes.flatten()]
    expected = 0.3 * gap.square().mean() + (0 if ema else gap.square().mean())
    torch.testing.assert_close(loss, torch.as_tensor(expected))
    loss.backward()
    torch.testing.assert_close(rows(z.grad), 0.3 * 2 * gap / gap.numel())  # the commitment term alone moves z_e
    if ema:
        assert not torch.equal(vq.codebook, before)
    else:
        expected = torch.zeros_like(before).index_add_(0, codes.flatten(), -2 * gap / gap.numel())
        torch.testing.assert_close(vq.codebook.grad, expected)


def test_gradient_goes_straight_through():
    vq = quantizer().eval()
    z = latents(4).requires_grad_()
    z_q, _, _ = vq(z)
    weights = latents(5)
    (z_q * weights).sum().backward()
    torch.testing.assert_close(z.grad, weights)


def test_codebook_after_one_step_without_memory_is_the_mean_of_its_latents():
    """With decay 0 one step is Lloyd's: known in closed form. Mistake 8: the batch itself is quantised by the
    codebook as it was before that step."""
    vq = quantizer(6, 3, decay=0.0)
    vq.REVIVE = 0.0
    before = vq.codebook.clone()
    z = latents(6, (4, 3, 8, 8))
    z_q, codes, _ = vq(z)
    assert torch.equal(codes, brute_force(z, before))
    torch.testing.assert_close(rows(z_q), before[codes.flatten()])
    flat, index = rows(z), codes.flatten()
    for code in range(6):
        assert (index == code).any()
        torch.testing.assert_close(vq.codebook[code], flat[index == code].mean(0))
        torch.testing.assert_close(vq.cluster_size[code], (index == code).float().mean() * 6)


def test_moving_average_in_closed_form():
    vq = quantizer(6, 3, decay=0.9)
    vq.REVIVE = 0.0
    z = latents(7, (4, 3, 8, 8))
    size, total = vq.cluster_size.clone(), vq.cluster_sum.clone()
    _, codes, _ = vq(z)
    hot = F.one_hot(codes.flatten(), 6).float() * 6 / codes.numel()
    size = 0.9 * size + 0.1 * hot.sum(0)
    total = 0.9 * total + 0.1 * hot.t() @ rows(z)
    torch.testing.assert_close(vq.cluster_size, size)
    torch.testing.assert_close(vq.codebook, total / size[:, None])


@pytest.mark.parametrize("action", ["quantise", "embed", "snap"])
def test_eval_changes_no_buffer(action):
    """Mistake 10: the EMA codebook was updated while decoding."""
    model = autoencoder("vqvae")
    before = copy.deepcopy(model.state_dict())
    images = pictures(2, 32, 32)
    if action == "quantise":
        model(images)
    elif action == "embed":
        codes = model.encode(images)
        model.train().decode(codes)
    else:
        codes = model.encode(images)
        model.train().snap(model.embed(codes))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_quantiser_is_float32_under_autocast():
    """Mistake 9: in bf16 1-3 % of the assignments change."""
    plain, cast = quantizer(256, 64), quantizer(256, 64)
    z = latents(8, (4, 64, 16, 16))
    expected = plain(z)
    with torch.autocast("cpu", torch.bfloat16):
        found = cast(z)
        straight = cast.eval().nearest(rows(z))
    assert found[0].dtype == found[2].dtype == torch.float32
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(straight, plain.nearest(rows(z)))  # the way of `snap` and of k-means
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, cast.state_dict()[name]), name


def test_kmeans_is_float32_under_autocast():
    plain, cast = quantizer(32, 8), quantizer(32, 8)
    z = latents(9, (4, 8, 16, 16))
    torch.manual_seed(1)
    plain.initialise(z)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        cast.initialise(z)
    assert torch.equal(plain.codebook, cast.codebook)


def test_kmeans_finds_clusters_and_counts_them():
    """Mistake 7: a codebook from zeros or N(0, 1) uses one or two of its codes. The start is k-means on data,
    with cluster sizes by count."""
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(8, 3, generator=generator)
    sizes = torch.tensor([10, 20, 30, 40, 50, 60, 70, 40])
    labels = torch.repeat_interleave(torch.arange(8), sizes)[torch.randperm(320, generator=generator)]
    flat = centres[labels] + 0.01 * torch.randn(320, 3, generator=generator)
    vq = quantizer(8, 3)
    torch.manual_seed(2)
    vq.initialise(flat.view(4, 8, 10, 3).movedim(-1, 1), iterations=30)
    order = torch.cdist(centres, vq.codebook).argmin(1)
    assert len(set(order.tolist())) == 8
    torch.testing.assert_close(vq.codebook[order], centres, atol=0.02, rtol=0)
    torch.testing.assert_close(vq.cluster_size[order], sizes / 320 * 8)
    torch.testing.assert_close(vq.cluster_sum, vq.codebook * vq.cluster_size[:, None])


def test_dead_codes_are_revived_with_their_statistics():
    """Mistake 7: dead codes come back at a latent of the batch, and their cluster size and sum with them."""
    vq = quantizer(8, 3, decay=0.5)
    vq.codebook[4:] = 1000.0  # out of reach
    vq.cluster_sum.copy_(vq.codebook * vq.cluster_size[:, None])
    z = latents(10)
    for _ in range(8):
        vq(z)
    assert vq.codebook.abs().max() < 10
    torch.testing.assert_close(vq.cluster_sum, vq.codebook * vq.cluster_size[:, None])
    vq = quantizer(8, 3, decay=0.0)
    vq.codebook[4:] = 1000.0
    vq(z)
    assert (torch.cdist(vq.codebook[4:], rows(z)).min(1).values == 0).all()  # each is one of the latents
    torch.testing.assert_close(vq.cluster_size[4:], torch.full((4,), vq.FRESH))


def test_random_codebook_comes_into_use():
    """From N(0, 1) far from the latents, revival brings every code into use."""
    vq = quantizer(32, 3)
    for step in range(400):
        if step == 300:
            vq.usage.zero_()
        vq(5 + 0.1 * latents(step, (8, 3, 8, 8)))
    assert (vq.usage > 0).all()
    assert vq.usage.sum() == 100 * 8 * 64  # latents since the count was last zeroed


def test_bypass_lets_latents_through():
    vq = quantizer()
    before = copy.deepcopy(vq.state_dict())
    vq.bypass = True
    z = latents(11)
    z_q, codes, loss = vq(z)
    assert torch.equal(z_q, z)
    assert (codes.shape, codes.any().item(), loss.item()) == ((2, 4, 5), False, 0.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in vq.state_dict().items())


# ------------------------------------------------------------------------------------------- autoencoders


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (64, 16)])
@pytest.mark.parametrize("name", NAMES)
def test_shapes(name, size):
    torch.manual_seed(0)
    model = AUTOENCODERS[name](codebook_size=16)
    assert model.factor % model.downsample == 0
    reconstruction, codes, loss = model(torch.rand(2, 1, *size))
    assert reconstruction.shape == (2, 1, *size)
    assert loss.shape == ()
    assert model.codebook_sizes == [16] * len(codes)
    assert tuple(codes[-1].shape) == (2, size[0] // model.downsample, size[1] // model.downsample)
    for grid in codes:
        assert grid.dtype == torch.int64
        assert grid.min() >= 0
        assert grid.max() < 16
    decoded = model.decode(codes)
    assert (decoded.shape, decoded.dtype) == ((2, 1, *size), torch.float32)
    assert decoded.min() >= 0
    assert decoded.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_decoding_the_codes_is_the_reconstruction(name):
    model = autoencoder(name)
    images = pictures(4, 32, 48)
    with torch.no_grad():
        reconstruction, codes, _ = model(images)
        assert all(torch.equal(a, b) for a, b in zip(codes, model.encode(images), strict=True))
        torch.testing.assert_close(model.decode(codes), reconstruction.clamp(0, 1), atol=1e-4, rtol=0)
        torch.testing.assert_close(model.decode_latents(model.embed(codes)), reconstruction, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_snapping_embedded_codes_gives_the_same_latents(name):
    model = autoencoder(name)
    with torch.no_grad():
        codes = model.encode(pictures(4, 32, 32))
        z = model.embed(codes)
        again = model.snap(z)
        apart = (model.embed(again) - z).abs().amax(dim=1) > 1e-4
        # The depths of an RQVAE are chosen one by one: now and then another first code is nearer to the sum.
        assert apart.float().mean() <= (0.35 if name == "rqvae" else 0)
        assert [grid.shape for grid in again] == [grid.shape for grid in codes]
        noisy = model.snap(z + 1e-4 * torch.randn_like(z))
        assert sum((a == b).float().mean() for a, b in zip(noisy, again, strict=True)) / len(codes) > 0.95


@pytest.mark.parametrize("name", NAMES)
def test_each_grid_changes_the_picture(name):
    """VQ-VAE-2's decoder sees both levels, and no codebook is idle in any model."""
    model = autoencoder(name)
    with torch.no_grad():
        codes = model.encode(pictures(4, 32, 32))
        whole = model.decode_latents(model.embed(codes))
        for level in range(len(codes)):
            changed = list(codes)
            changed[level] = (codes[level] + 1) % 16
            assert (model.decode_latents(model.embed(changed)) - whole).abs().max() > 1e-4


def test_bottom_of_vqvae2_is_coded_given_the_top():
    """Not two autoencoders side by side: another top changes what the bottom quantiser is given."""
    model = autoencoder("vqvae2")
    images = pictures(2, 32, 32)
    seen = []
    model.quantizers[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        top, bottom = model.encode(images)
        model.quantizers[0].codebook.copy_(model.quantizers[0].codebook.roll(1, 0) + 1)
        model.encode(images)
    assert (top.shape, bottom.shape) == ((2, 4, 4), (2, 8, 8))
    assert (seen[0] - seen[1]).abs().max() > 1e-3
    assert isinstance(model, VQVAE2)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_gets_a_gradient(name):
    model = autoencoder(name).train()
    images = pictures(4, 32, 32)
    reconstruction, _, loss = model(images)
    (F.l1_loss(reconstruction, images) + loss).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert idle == []


@pytest.mark.parametrize("name", NAMES)
def test_codebooks_start_on_the_latents_they_will_see(name):
    """k-means goes from codebook to codebook: a later one sees what the earlier ones leave."""
    torch.manual_seed(0)
    model = AUTOENCODERS[name](codebook_size=16).train()
    images = pictures(16, 32, 32)
    model.initialise_codebooks(images)
    assert model.training
    seen = {i: [] for i in range(len(model.quantizers))}
    for i, vq in enumerate(model.quantizers):
        vq.register_forward_pre_hook(lambda _, inputs, i=i: seen[i].append(inputs[0].float()))
    with torch.no_grad():
        codes = model.eval().encode(images)
    for i, (vq, grid) in enumerate(zip(model.quantizers, codes, strict=True)):
        error = (vq.embed(grid) - seen[i][0]).square().mean()
        spread = (seen[i][0] - seen[i][0].mean((0, 2, 3), keepdim=True)).square().mean()
        assert error < 0.9 * spread, i
        assert len(grid.unique()) > 8


@pytest.mark.parametrize("name", NAMES)
def test_bypassed_autoencoder_learns_without_codes(name):
    model = autoencoder(name).train()
    model.bypass_quantizers(True)
    before = {n: b.clone() for n, b in model.named_buffers()}
    reconstruction, codes, loss = model(pictures(2, 32, 32))
    reconstruction.sum().backward()
    assert loss.item() == 0
    assert not any(grid.any() for grid in codes)
    assert all(torch.equal(before[n], b) for n, b in model.named_buffers())
    model.bypass_quantizers(False)
    assert any(grid.any() for grid in model.encode(pictures(2, 32, 32)))


# ------------------------------------------------------------------------------------------- DCGAN


def gan(network="baseline", name="vqvae") -> tuple[DCGAN, torch.Tensor]:
    model = autoencoder(name)
    real = model.embed(model.encode(pictures(16, 32, 32))).detach()
    torch.manual_seed(3)
    prior = DCGAN(model, tuple(real.shape[2:]), real.shape[1], levels=4, codes=len(model.quantizers), network=network)
    prior.fit(real, LEVELS)
    return prior.eval(), real


LEVELS = torch.tensor([0] * 4 + [1] * 6 + [3] * 5 + [4])  # 4: unknown


@pytest.mark.parametrize("scale", [0.002, 1.0, 50.0])
@pytest.mark.parametrize("network", ["baseline", "residual"])
def test_normalised_latents_fill_the_generators_range(network, scale):
    """Mistake 4: Tanh in [-1, 1] faced latents of about +-0.002, and the discriminator won by scale alone."""
    prior, real = gan(network)
    real = real * scale + 3 * scale
    prior.fit(real, LEVELS)
    normal = prior.normalise(real)
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(real.shape[1]), atol=1e-4, rtol=0)
    if network == "baseline":
        torch.testing.assert_close(normal.abs().amax((0, 2, 3)), torch.ones(real.shape[1]))
    else:  # uncorrelated, and of deviation 1 but for axes along which next to nothing happens
        covariance = torch.cov(normal.movedim(1, 0).flatten(1).double()).float()
        torch.testing.assert_close(covariance, covariance.diagonal().diag(), atol=2e-3, rtol=0)
        large = prior.scale.flatten() > 1.01 * prior.scale.min()
        assert prior.scale.min() >= 0.3 * prior.scale.max() * 0.999
        torch.testing.assert_close(covariance.diagonal()[large], torch.ones(int(large.sum())), atol=2e-3, rtol=0)
        assert covariance.diagonal().max() < 1.01
    back = torch.einsum("bdhw,cd->bchw", normal * prior.scale, prior.axes) + prior.mean
    torch.testing.assert_close(back, real, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("network", ["baseline", "residual"])
def test_normalisation_of_a_constant_channel_is_finite(network):
    prior, real = gan(network)
    real[:, 0] = 5.0
    prior.fit(real, LEVELS)
    assert prior.normalise(real).isfinite().all()
    assert prior.generator(prior.noise([1]), torch.tensor([3])).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("network", ["baseline", "residual"])
def test_decoder_sees_code_vectors_only(network, name):
    """Mistake 4: the generator's output went to the decoder without being snapped to the codebook."""
    prior, _ = gan(network, name)
    model = prior.spoken[0]
    codes = prior.sample(range(4))
    for grid, size in zip(codes, model.codebook_sizes, strict=True):
        assert grid.dtype == torch.int64
        assert 0 <= grid.min() <= grid.max() < size
    seen = []
    with torch.no_grad():
        decode = model.decode_latents
        model.decode_latents = lambda z, kept: seen.append(z) or decode(z, kept)
        model.decode(codes)
    assert torch.equal(seen[0], model.embed(codes))


@pytest.mark.parametrize("network", ["baseline", "residual"])
def test_sample_depends_on_its_own_seed_only(network):
    prior, _ = gan(network)
    levels = torch.tensor([0, 1, 2, 4])
    together = prior.sample([3, 1, 4, 9], levels)
    torch.manual_seed(123)  # nor on the global generator
    for i, seed in enumerate([3, 1, 4, 9]):
        for whole, alone in zip(together, prior.sample([seed], levels[i : i + 1]), strict=True):
            assert torch.equal(whole[i], alone[0])
    assert not torch.equal(prior.noise([1]), prior.noise([2]))
    drawn = draw_levels([5], prior.level_share)  # None: a level as in training
    assert torch.equal(prior.sample([5])[0], prior.sample([5], drawn)[0])


def test_levels_are_drawn_as_often_as_they_are_in_training():
    prior, _ = gan()
    drawn = draw_levels(range(8_000), prior.level_share)
    torch.testing.assert_close(torch.bincount(drawn, minlength=5) / 8_000, LEVELS.bincount() / 16, atol=0.02, rtol=0)
    assert draw_levels([17], prior.level_share) == drawn[17]
    assert (drawn != 2).all()  # which isn't there


@pytest.mark.parametrize(("network", "spread"), [("residual", 1.3), ("baseline", 1.0)])
def test_samples_are_drawn_wider_than_in_training(network, spread):
    assert gan(network)[0].noise(range(50)).std().item() == pytest.approx(spread, rel=0.02)


def test_a_new_generator_draws_the_mean_of_each_level():
    prior, real = gan("residual")
    z, levels = prior.noise([1, 2]), torch.tensor([0, 3])
    means = [prior.normalise(real)[level == LEVELS].mean(0) for level in levels]
    torch.testing.assert_close(prior.generator(z, levels), torch.stack(means))


def test_generator_draws_what_it_is_told():
    """Level, and whether a slice was varied; when it isn't told, none was."""
    prior, _ = gan("residual")
    nn.init.normal_(prior.generator.last.weight)
    z, levels = prior.noise([1, 2]), torch.tensor([0, 3])
    plain, varied = prior.generator(z, levels), prior.generator(z, levels, torch.tensor([True, False]))
    assert not torch.equal(varied[0], plain[0])
    assert torch.equal(varied[1], plain[1])
    same_mean = prior.generator(z, levels.flip(0)) - prior.generator.mean[levels.flip(0)] + prior.generator.mean[levels]
    assert (same_mean - plain).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_latents_snap_to_the_codes_of_a_slice(name):
    model = autoencoder(name).eval()
    images = torch.rand(2, 1, 64, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents, codes = model.latents(images), model.encode(images)
        snapped = model.snap(latents)
    assert latents.shape == model.embed(codes).shape
    assert latents.dtype == torch.float32
    for made, right in zip(snapped, codes, strict=True):
        assert (made == right).float().mean() > 0.99  # the same sum, added up in another order


@pytest.mark.parametrize("network", ["baseline", "residual"])
@pytest.mark.parametrize("grid", [(64, 64), (44, 52), (8, 8), (16, 8)])
def test_gan_fits_any_grid(grid, network):
    prior = DCGAN(autoencoder("vqvae"), grid, channels=6, levels=3, codes=1, network=network).eval()
    fake = prior.generator(prior.noise([0, 1]), torch.tensor([0, 3]))
    assert fake.shape == (2, 6, *grid)
    assert prior.make_discriminator()(fake, torch.tensor([0, 3]), torch.tensor([True, False])).shape == (2,)


def test_reports_gan_ends_in_tanh_and_logits():
    prior, _ = gan("baseline")
    fake = prior.generator(100 * prior.noise([0]), None)
    assert fake.abs().max() <= 1
    assert not any(isinstance(m, nn.Sigmoid) for m in prior.make_discriminator().modules())
    biased = [m for m in prior.make_discriminator().modules() if isinstance(m, nn.Conv2d) and m.bias is not None]
    assert biased == []


# ------------------------------------------------------------------------------------------- the file itself


def test_networks_know_neither_files_nor_optimisers():
    source = Path(inspect.getfile(modules)).read_text()
    for word in ("optim", "open(", "print(", ".save(", ".item()"):
        assert word not in source, word


# ------------------------------------------------------------------------------------------- fewer codes


def rqvae() -> AUTOENCODERS["rqvae"]:
    model = autoencoder("rqvae", codebook_size=8)
    torch.nn.init.normal_(model.decoder.told.weight)  # away from its zero start, so that it shows
    return model


def test_fewer_codes_per_position_are_a_picture_too():
    """What training reconstructs from the first codes is what `decode` makes of them."""
    model, images = rqvae(), pictures(4, 32, 48)
    codes = model.encode(images)
    kept = torch.tensor([1, 2, 5, 8])
    with torch.no_grad():
        reconstruction = model(images, kept)[0].clamp(0, 1)
    for i, n in enumerate(kept.tolist()):
        alone = model.decode([grid[i : i + 1] for grid in codes[:n]])
        torch.testing.assert_close(alone[0], reconstruction[i], atol=1e-4, rtol=0)  # sums of other batch sizes
    with torch.no_grad():
        torch.testing.assert_close(model(images)[0], model(images, torch.full((4,), 8))[0])


def test_left_out_codes_have_no_say():
    model, images = rqvae(), pictures(2, 32, 32)
    codes = model.encode(images)
    other = [grid if depth < 3 else (grid + 1) % 8 for depth, grid in enumerate(codes)]
    assert torch.equal(model.decode(codes[:3]), model.decode(other[:3]))
    assert not torch.equal(model.decode(codes), model.decode(other))


def test_the_encoder_learns_from_a_reconstruction_of_few_codes():
    model, images = rqvae().train(), pictures(2, 32, 32)
    for quantizer in model.quantizers:
        quantizer.eval()  # so that the codebooks stay
    model(images, torch.tensor([1, 2]))[0].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.encoder[1].parameters())


def test_a_pixel_depends_on_its_neighbourhood_only():
    """No statistics over the canvas: what is far away changes nothing, nor does more black around."""
    model = rqvae()
    images = pictures(1, 32, 640)
    changed = images.clone()
    changed[..., 400:] = 0
    with torch.no_grad():
        before, after = model(images), model(changed)
    for a, b in zip(before[1], after[1], strict=True):
        assert torch.equal(a[..., : 240 // 8], b[..., : 240 // 8])
        assert not torch.equal(a[..., 400 // 8 :], b[..., 400 // 8 :])
    torch.testing.assert_close(before[0][..., :200], after[0][..., :200])
