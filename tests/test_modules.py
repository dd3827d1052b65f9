"""The autoencoders and the GAN priors: shapes, round trips, and who sees what."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inference.loading import AUTOENCODERS, GANS
from modules import DCGAN, VQVAE, Autoencoder, CovariateEmbedding
from networks.baseline_gan import BaselineDiscriminator, BaselineGenerator

NAMES = sorted(AUTOENCODERS)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def autoencoder(name: str, codebook_size: int = 16) -> Autoencoder:
    """A random autoencoder whose codebooks fit its latents, so that codes differ."""
    torch.manual_seed(0)
    model = AUTOENCODERS[name](codebook_size=codebook_size)
    for parameter in model.decoder.parameters():  # away from zero, so that every latent shows
        parameter.data += 0.05 * torch.randn_like(parameter)
    if name == "rqvae":
        nn.init.normal_(model.depth_embedding.weight)
    model.initialise_codebooks(pictures(8, 64, 64))
    return model.eval()


def pictures(n: int, height: int, width: int) -> torch.Tensor:
    coarse = torch.rand(n, 1, height // 4, width // 4, generator=torch.Generator().manual_seed(height + width))
    return F.interpolate(coarse, size=(height, width), mode="bilinear")


def test_parameter_counts_of_the_course_baseline():
    """222,465 weights counting the codebook of 512 x 64, and its GAN's."""
    model = VQVAE()
    assert count(model) + model.codebooks[0].numel() == 222_465
    assert count(VQVAE(ema=False)) == 222_465  # the codebook is a parameter when it learns by gradient
    assert count(BaselineGenerator()) == 3_868_544
    assert count(BaselineDiscriminator()) == 725_952


# ----------------------------------------------------------------------------------------------------
# Autoencoders


@pytest.mark.parametrize("size", [(32, 48), (64, 16)])
@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_ranges(name, size):
    torch.manual_seed(0)
    model = AUTOENCODERS[name](codebook_size=16)
    reconstruction, codes, loss = model(torch.rand(2, 1, *size))
    assert (reconstruction.shape, loss.shape) == ((2, 1, *size), ())
    assert model.codebook_sizes == [16] * len(codes)
    assert [tuple(grid.shape[1:]) for grid in codes] == model.grid_shapes(*size)
    assert model.grid_shapes(*size)[-1] == tuple(side // model.downsample for side in size)
    for grid in codes:
        assert grid.dtype == torch.int64
        assert 0 <= grid.min() <= grid.max() < 16
    decoded = model.decode(codes)
    assert (decoded.shape, decoded.dtype) == ((2, 1, *size), torch.float32)
    assert 0 <= decoded.min() <= decoded.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_decoding_the_codes_is_the_reconstruction(name):
    model, images = autoencoder(name), pictures(4, 32, 48)
    with torch.no_grad():
        reconstruction, codes, _ = model(images)
        latents = model.latents(images)
        assert all(torch.equal(a, b) for a, b in zip(codes, model.encode(images), strict=True))
        torch.testing.assert_close(model.decode(codes), reconstruction.clamp(0, 1), atol=1e-4, rtol=0)
        torch.testing.assert_close(model.decode_latents(model.embed(codes)), reconstruction, atol=1e-4, rtol=0)
        for a, b in zip(model.quantise(latents), codes, strict=True):
            assert (a == b).float().mean() > 0.99  # latents of two grids are put together and taken apart again
    assert (latents.shape, latents.dtype) == (model.embed(codes).shape, torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_quantising_embedded_codes_gives_the_same_latents(name):
    model = autoencoder(name)
    with torch.no_grad():
        z_q = model.embed(model.encode(pictures(4, 32, 32)))
        again = model.embed(model.quantise(z_q))
    differ = (again - z_q).abs().amax(dim=1) > 1e-4
    # The codes of a residual quantiser are chosen one by one: now and then another first code is nearer to the sum.
    assert differ.float().mean() <= (0.35 if name == "rqvae" else 0)


@pytest.mark.parametrize("name", NAMES)
def test_each_grid_changes_the_picture(name):
    """VQ-VAE-2's decoder sees both levels, and no codebook is idle in any model."""
    model = autoencoder(name)
    with torch.no_grad():
        codes = model.encode(pictures(4, 32, 32))
        whole = model.decode_latents(model.embed(codes))
        for level in range(len(codes)):
            changed = [(grid + (i == level)) % 16 for i, grid in enumerate(codes)]
            assert (model.decode_latents(model.embed(changed)) - whole).abs().max() > 1e-4


def test_bottom_of_vqvae2_is_coded_given_the_top():
    """Not two autoencoders side by side: other code vectors of the top change the bottom's codes."""
    model, images = autoencoder("vqvae2"), pictures(2, 32, 32)
    with torch.no_grad():
        top, bottom = model.encode(images)
        model.quantizer_top.codebooks.copy_(model.quantizer_top.codebooks.roll(1, 1) + 1)
        _, other = model.encode(images)
    assert (top.shape, bottom.shape) == ((2, 4, 4), (2, 8, 8))
    assert (other != bottom).any()


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_gets_a_gradient(name):
    model, images = autoencoder(name).train(), pictures(4, 32, 32)
    reconstruction, _, loss = model(images, torch.tensor([1, 2, 3, 8]) if name == "rqvae" else None)
    (F.l1_loss(reconstruction, images) + loss).backward()
    used = [0, 1, 2, 7]  # numbers of codes
    for n, p in model.named_parameters():
        gradient = p.grad[used] if n == "depth_embedding.weight" else p.grad
        assert gradient.abs().max() > 0, n


@pytest.mark.parametrize("name", NAMES)
def test_codebooks_start_on_the_latents_that_they_will_see(name):
    torch.manual_seed(0)
    model, images = AUTOENCODERS[name](codebook_size=16).train(), pictures(16, 32, 32)
    model.initialise_codebooks(images)
    assert model.training
    with torch.no_grad():
        latents, codes = model.eval().latents(images), model.encode(images)
        error = (model.embed(codes) - latents).square().mean()
    assert error < 0.9 * latents.var(dim=(0, 2, 3)).mean()
    assert all(len(grid.unique()) > 8 for grid in codes)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["evaluating", "decoding in train mode", "bypassing"])
def test_codebooks_stay_unless_training(mode, name):
    """Mistake 10: the EMA codebook was updated while decoding."""
    model, images = autoencoder(name), pictures(2, 32, 32)
    before, codes = copy.deepcopy(model.state_dict()), model.encode(images)
    if mode == "evaluating":
        model(images)
    elif mode == "bypassing":
        model.train().bypass_quantizers(True)
        assert model(images)[2] == 0
    else:
        model.train().decode(codes)
        model.quantise(model.embed(codes))
    assert all(torch.equal(before[n], tensor) for n, tensor in model.state_dict().items())


def test_the_first_codes_of_each_position_are_a_picture():
    """What training reconstructs from the first codes is what `decode` makes of them."""
    model, images = autoencoder("rqvae", 8), pictures(4, 32, 48)
    codes, num_codes = model.encode(images), torch.tensor([1, 2, 5, 8])
    with torch.no_grad():
        reconstruction = model(images, num_codes)[0].clamp(0, 1)
        torch.testing.assert_close(model(images)[0], model(images, torch.full((4,), 8))[0])
    for i, n in enumerate(num_codes.tolist()):
        alone = model.decode([grid[i : i + 1] for grid in codes[:n]])
        torch.testing.assert_close(alone[0], reconstruction[i], atol=1e-4, rtol=0)  # sums of other batch sizes


def test_a_pixel_depends_on_its_neighbourhood_only():
    """No statistics over the canvas: what is far away changes nothing, nor does more black around."""
    model, images = autoencoder("rqvae", 8), pictures(1, 32, 640)
    changed = images.clone()
    changed[..., 400:] = 0
    with torch.no_grad():
        before, after = model(images), model(changed)
    for a, b in zip(before[1], after[1], strict=True):
        assert torch.equal(a[..., : 240 // 8], b[..., : 240 // 8])
        assert not torch.equal(a[..., 400 // 8 :], b[..., 400 // 8 :])
    torch.testing.assert_close(before[0][..., :200], after[0][..., :200])


# ----------------------------------------------------------------------------------------------------
# GAN priors

LEVELS = torch.tensor([0] * 4 + [1] * 6 + [3] * 5 + [4])  # 4: unknown


COVARIATES = [{"categories": None}, {"categories": ["F", "M", "X"]}]


def upright(prior: DCGAN, levels: list[int]) -> tuple[torch.Tensor, ...]:
    """The conditioning of slices that aren't augmented, of people of whom nothing is known."""
    return torch.tensor(levels), torch.zeros(len(levels), dtype=torch.bool), prior.unknown(len(levels))


def gan(network="residual", name="vqvae") -> tuple[DCGAN, torch.Tensor, Autoencoder]:
    """A prior, the latents that set its normalisation, and their autoencoder."""
    model = autoencoder(name)
    codes = model.encode(pictures(16, 32, 32))
    real = model.embed(codes).detach()
    torch.manual_seed(3)
    sizes = {"channels": real.shape[1], "levels": 4, "codes": len(codes), "network": network}
    prior = GANS[network](model, tuple(real.shape[2:]), **sizes)
    prior.fit(real, LEVELS)
    prior.fit_levels(LEVELS)
    return prior.eval(), real, model


@pytest.mark.parametrize("scale", [0.002, 50.0])
@pytest.mark.parametrize("network", GANS)
def test_normalised_latents_fill_the_generators_range(network, scale):
    """Mistake 4: Tanh in [-1, 1] faced latents of about +-0.002, and the discriminator won by scale alone."""
    prior, real, _ = gan(network)
    real = real * scale + 3 * scale
    prior.fit(real, LEVELS)
    normal = prior.normalise(real)
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(real.shape[1]), atol=1e-4, rtol=0)
    if network == "baseline":
        torch.testing.assert_close(normal.abs().amax((0, 2, 3)), torch.ones(real.shape[1]))
    else:  # uncorrelated, and of deviation 1 except along axes with next to no variance
        covariance = torch.cov(normal.movedim(1, 0).flatten(1).double()).float()
        torch.testing.assert_close(covariance, covariance.diagonal().diag(), atol=2e-3, rtol=0)
        large = prior.scale.flatten() > 1.01 * prior.scale.min()
        assert prior.scale.min() >= 0.3 * prior.scale.max() * 0.999
        torch.testing.assert_close(covariance.diagonal()[large], torch.ones(int(large.sum())), atol=2e-3, rtol=0)
        assert covariance.diagonal().max() < 1.01
    torch.testing.assert_close(prior.denormalise(normal), real, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("network", GANS)
def test_normalisation_of_a_constant_channel_is_finite(network):
    prior, real, _ = gan(network)
    real[:, 0] = 5.0
    prior.fit(real, LEVELS)
    assert prior.normalise(real).isfinite().all()
    assert prior.generator(prior.noise([1]), *upright(prior, [3])).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("network", GANS)
def test_decoder_sees_code_vectors_only(network, name, monkeypatch):
    """Mistake 4: the generator's output went to the decoder without being quantised."""
    prior, _, model = gan(network, name)
    codes = prior.sample(range(4))
    for grid, size in zip(codes, model.codebook_sizes, strict=True):
        assert grid.dtype == torch.int64
        assert 0 <= grid.min() <= grid.max() < size
    inputs, decode = [], model.decode_latents
    monkeypatch.setattr(model, "decode_latents", lambda z_q, *args: inputs.append(z_q) or decode(z_q, *args))
    with torch.no_grad():
        model.decode(codes)
    assert torch.equal(inputs[0], model.embed(codes))


@pytest.mark.parametrize("network", GANS)
def test_a_sample_depends_on_its_own_seed_only(network):
    prior, _, _ = gan(network)
    levels = torch.tensor([0, 1, 2, 4])
    [together] = prior.sample([3, 1, 4, 9], levels)
    torch.manual_seed(123)  # nor on the global generator
    for i, seed in enumerate([3, 1, 4, 9]):
        [alone] = prior.sample([seed], levels[i : i + 1])
        assert torch.equal(together[i], alone[0])
    assert not torch.equal(prior.noise([1]), prior.noise([2]))
    drawn = prior.draw_levels([5])  # None: a level as in training
    assert torch.equal(prior.sample([5])[0], prior.sample([5], drawn)[0])


def test_levels_are_drawn_as_often_as_they_occur_in_training():
    prior, _, _ = gan()
    drawn = prior.draw_levels(range(8_000))
    share = LEVELS.bincount() / len(LEVELS)
    torch.testing.assert_close(torch.bincount(drawn, minlength=5) / 8_000, share, atol=0.02, rtol=0)
    assert prior.draw_levels([17]) == drawn[17]


def test_covariates_are_drawn_as_training_brains_have_them():
    """Together, as one brain has them; numbers a little off; what is unknown of that brain stays so."""
    model, known = autoencoder("vqvae"), [[0.0, 10.0, math.nan], [0, 1, 1]]
    covariates = [each | {"values": values} for each, values in zip(COVARIATES, known, strict=True)]
    prior = DCGAN(model, (8, 8), channels=6, levels=3, codes=1, covariates=covariates)
    drawn = prior.draw_covariates(range(9_000))
    unknown, low = drawn[:, 0].isnan(), drawn[:, 0] < 5
    for brain, category in ((unknown, 1), (low, 0), (drawn[:, 0] > 5, 1)):
        assert brain.float().mean().item() == pytest.approx(1 / 3, abs=0.02)
        assert (drawn[brain, 1].round() == category).all()
    assert drawn[low, 0].std().item() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(prior.draw_covariates([17]), drawn[17:18])
    asked = torch.tensor([[9.5, math.nan], [math.nan, 0]]).repeat_interleave(3_000, dim=0)
    drawn = prior.draw_covariates(range(6_000), asked)  # the others as of a brain that is like that
    assert (drawn[:3_000].round(decimals=1) == torch.tensor([9.5, 1])).all()
    assert drawn[3_000:, 0].mean().item() == pytest.approx(0, abs=0.02)
    assert (drawn[3_000:, 1] == 0).all()
    assert (drawn != 2).all()  # there is none in training


@pytest.mark.parametrize(("network", "deviation"), [("residual", 1.3), ("baseline", 1.0)])
def test_standard_deviation_of_the_noise(network, deviation):
    assert gan(network)[0].noise(range(50)).std().item() == pytest.approx(deviation, rel=0.02)


def test_a_new_generator_draws_the_mean_of_each_level():
    prior, real, _ = gan()
    means = [prior.normalise(real)[level == LEVELS].mean(0) for level in (0, 3)]
    torch.testing.assert_close(prior.generator(prior.noise([1, 2]), *upright(prior, [0, 3])), torch.stack(means))


def test_generator_is_conditioned_on_level_augmentation_and_covariates():
    prior = DCGAN(VQVAE(16), (8, 8), channels=6, levels=3, codes=1, covariates=COVARIATES).eval()
    generator = prior.generator
    nn.init.normal_(generator.last.weight)
    nn.init.normal_(generator.modulation[-1].weight)
    nn.init.normal_(generator.covariate_embedding.layers[2].weight)
    z, (levels, augmented, covariates) = prior.noise([1, 2]), upright(prior, [0, 3])
    plain = generator(z, levels, augmented, covariates)
    for changed in (
        generator(z, levels, torch.tensor([True, False]), covariates),
        generator(z, levels, augmented, torch.tensor([[0.5, math.nan], [math.nan, math.nan]])),
        generator(z, levels, augmented, torch.tensor([[math.nan, 1.0], [math.nan, math.nan]])),
        generator(z, torch.tensor([1, 3]), augmented, covariates),
    ):
        assert not torch.equal(changed[0], plain[0])
        assert torch.equal(changed[1], plain[1])


def test_covariates_in_closed_form():
    """Numbers as they are, categories one-hot, what is unknown as such: the columns that the first layer gets."""
    embedding = CovariateEmbedding(COVARIATES, 4)
    columns = []
    embedding.layers[0].register_forward_hook(lambda layer, given, _: columns.extend(given[0].tolist()))
    zero = embedding(torch.tensor([[0.5, 1.1], [math.nan, 0.0], [-2.0, math.nan]]))
    assert columns == [[1, 1, 0.5, 0, 1, 0], [0, 1, 0, 1, 0, 0], [1, 0, -2, 0, 0, 0]]
    assert torch.equal(zero, torch.zeros(3, 4))  # before training nothing depends on them
    assert torch.equal(CovariateEmbedding([], 4)(torch.zeros(3, 0)), torch.zeros(3, 4))


@pytest.mark.parametrize("network", GANS)
@pytest.mark.parametrize("grid", [(44, 52), (8, 8), (16, 8)])
def test_gan_fits_any_grid(grid, network):
    prior = GANS[network](VQVAE(16), grid, channels=6, levels=3, codes=1).eval()
    fake = prior.generator(prior.noise([0, 1]), *upright(prior, [0, 3]))
    assert fake.shape == (2, 6, *grid)
    assert prior.make_discriminator()(fake, *upright(prior, [0, 3])).shape == (2,)


def test_baseline_gan_ends_in_tanh_and_logits():
    prior, _, _ = gan("baseline")
    assert prior.generator(100 * prior.noise([0])).abs().max() <= 1
    layers = list(prior.make_discriminator().modules())
    assert not any(isinstance(layer, nn.Sigmoid) for layer in layers)
    assert not any(isinstance(layer, nn.Conv2d) and layer.bias is not None for layer in layers)
