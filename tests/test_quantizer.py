"""The vector quantiser: assignments by brute force, losses and moving averages in closed form."""

import copy

import pytest
import torch
import torch.nn.functional as F

from modules import VectorQuantizer, kmeans, nearest


def quantizer(size=8, dim=3, depth=1, **options) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(size, dim, depth, **options)


def without_restarts(vq: VectorQuantizer) -> VectorQuantizer:
    vq.DEAD = 0.0
    return vq


def latents(seed: int, shape=(2, 3, 4, 5)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rows(z: torch.Tensor) -> torch.Tensor:
    """[B, D, h, w] -> [B*h*w, D], written with loops so as not to repeat the code under test."""
    return torch.stack([z[b, :, i, j] for b in range(z.shape[0]) for i in range(z.shape[2]) for j in range(z.shape[3])])


def brute_force(z: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    distance = (rows(z).double()[:, None] - codebook.double()[None]).norm(dim=2)
    return distance.argmin(1).view(z.shape[0], *z.shape[2:])


def assert_state_unchanged(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


# ----------------------------------------------------------------------------------------------------
# Assignment


def test_codes_are_those_of_brute_force():
    vq, z = quantizer(64, 16).eval(), latents(1, (3, 16, 5, 7))
    z_q, [codes], _ = vq(z)
    assert torch.equal(codes, brute_force(z, vq.codebooks[0]))
    assert torch.equal(vq.encode(z)[0], codes)
    torch.testing.assert_close(z_q, vq.embed([codes]))
    torch.testing.assert_close(rows(z_q), vq.codebooks[0][codes.flatten()])


def test_nearest_in_pieces_is_nearest_in_one():
    x, codebook = latents(2, (10_000, 4)), latents(3, (16, 4))
    assert torch.equal(nearest(x, codebook), torch.cdist(x.double(), codebook.double()).argmin(1))


def test_channels_are_moved_last_before_flattening():
    """Mistake 5: [B, C, H, W] was cut into rows of length C without moving the channels last."""
    vq = quantizer(2, 3).eval()
    vq.codebooks.copy_(torch.tensor([[[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]]]))
    pattern = torch.tensor([[0, 1, 1], [1, 0, 0]])
    z = vq.codebooks[0, pattern].permute(2, 0, 1)[None]  # wrong rows would mix the three channels of neighbours
    z_q, [codes], loss = vq(z)
    assert torch.equal(codes[0], pattern)
    torch.testing.assert_close(z_q, z)
    assert loss.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("depth", [1, 3])
def test_quantiser_is_float32_under_autocast(depth):
    """Mistake 9: in bf16 1-3 % of the assignments change."""
    plain, cast = (quantizer(64, 16, depth) for _ in range(2))
    z = latents(8, (4, 16, 16, 16))
    for vq, bf16 in ((plain, False), (cast, True)):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            vq.initialise(z)
            vq.z_q, vq.codes, vq.loss = vq(z)
            vq.encoded = vq.encode(z)
    assert cast.z_q.dtype == cast.loss.dtype == torch.float32
    assert torch.equal(plain.z_q, cast.z_q)
    assert torch.equal(plain.loss, cast.loss)
    assert torch.equal(torch.stack(plain.codes + plain.encoded), torch.stack(cast.codes + cast.encoded))
    assert_state_unchanged(cast, plain.state_dict())


# ----------------------------------------------------------------------------------------------------
# Loss and gradient


@pytest.mark.parametrize("ema", [True, False])
def test_latent_loss_in_closed_form(ema):
    """Mistake 1: without a codebook term and without EMA the codebook never learned."""
    vq = quantizer(beta=0.3, ema=ema)
    before = vq.codebooks.detach().clone()
    z = latents(3).requires_grad_()
    _, [codes], loss = vq(z)
    gap = rows(z.detach()) - before[0, codes.flatten()]
    torch.testing.assert_close(loss, (0.3 + (not ema)) * gap.square().mean())
    loss.backward()
    torch.testing.assert_close(rows(z.grad), 0.3 * 2 * gap / gap.numel())  # the commitment term alone moves z_e
    if ema:
        assert not torch.equal(vq.codebooks, before)
    else:
        expected = torch.zeros_like(before[0]).index_add_(0, codes.flatten(), -2 * gap / gap.numel())
        torch.testing.assert_close(vq.codebooks.grad[0], expected)


def test_gradient_goes_straight_through():
    vq, z, weights = quantizer(depth=2).eval(), latents(4).requires_grad_(), latents(5)
    (vq(z)[0] * weights).sum().backward()
    torch.testing.assert_close(z.grad, weights)


# ----------------------------------------------------------------------------------------------------
# Moving averages


def test_codebook_after_one_step_without_memory_is_the_mean_of_its_latents():
    """With decay 0 one step is Lloyd's: known in closed form. Mistake 8: the batch was quantised by the codebook that
    it had already moved."""
    vq = without_restarts(quantizer(6, 3, decay=0.0))
    before, z = vq.codebooks[0].clone(), latents(6, (4, 3, 8, 8))
    z_q, [codes], _ = vq(z)
    assert torch.equal(codes, brute_force(z, before))
    torch.testing.assert_close(rows(z_q), before[codes.flatten()])
    flat, index = rows(z), codes.flatten()
    for code in range(6):
        assert (index == code).any()
        torch.testing.assert_close(vq.codebooks[0, code], flat[index == code].mean(0))
        torch.testing.assert_close(vq.cluster_size[0, code], (index == code).float().mean() * 6)


def test_moving_average_in_closed_form():
    vq, z = without_restarts(quantizer(6, 3, decay=0.9)), latents(7, (4, 3, 8, 8))
    size, total = vq.cluster_size[0].clone(), vq.cluster_sum[0].clone()
    _, [codes], _ = vq(z)
    one_hot = F.one_hot(codes.flatten(), 6).float() * 6 / codes.numel()
    size = 0.9 * size + 0.1 * one_hot.sum(0)
    total = 0.9 * total + 0.1 * one_hot.t() @ rows(z)
    torch.testing.assert_close(vq.cluster_size[0], size)
    torch.testing.assert_close(vq.codebooks[0], total / size[:, None])
    assert torch.equal(vq.usage[0], codes.flatten().bincount(minlength=6).float())


@pytest.mark.parametrize("ema", [True, False])
def test_depth_is_a_chain_of_quantisers(ema):
    """Of depth 3: each of three quantisers of depth 1 gets what the one before it left."""
    deep = without_restarts(quantizer(6, 3, depth=3, decay=0.8, beta=0.3, ema=ema))
    chain = [without_restarts(quantizer(6, 3, decay=0.8, beta=0.3, ema=ema)) for _ in range(3)]
    for depth, vq in enumerate(chain):
        vq.load_state_dict({name: tensor[depth : depth + 1] for name, tensor in deep.state_dict().items()})
    z, z_chain = (latents(12, (4, 3, 8, 8)).requires_grad_() for _ in range(2))
    left, codes, losses = z_chain, [], []
    for vq in chain:
        z_q, code, loss = vq(left)
        left = left - z_q.detach()
        codes += code
        losses.append(loss)
    z_q, deep_codes, loss = deep(z)
    assert torch.equal(torch.stack(deep_codes), torch.stack(codes))
    torch.testing.assert_close(z_q, z - left)
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    loss.backward()
    torch.stack(losses).mean().backward()
    torch.testing.assert_close(z.grad, z_chain.grad)
    if not ema:
        torch.testing.assert_close(deep.codebooks.grad, torch.cat([vq.codebooks.grad for vq in chain]))
    for name, tensor in deep.state_dict().items():
        torch.testing.assert_close(tensor, torch.cat([vq.state_dict()[name] for vq in chain]), msg=name)


def test_fewer_codes_are_the_first_terms_of_the_sum():
    vq, z = quantizer(6, 3, depth=4).eval(), latents(13, (3, 3, 4, 5))
    z_q, codes, _ = vq(z, torch.tensor([1, 4, 2]))
    for i, n in enumerate((1, 4, 2)):
        torch.testing.assert_close(z_q[i], vq.embed([grid[i : i + 1] for grid in codes[:n]])[0])


def test_bypass_lets_latents_through():
    vq, z = quantizer(depth=2), latents(11)
    before, vq.bypass = copy.deepcopy(vq.state_dict()), True
    z_q, codes, loss = vq(z)
    assert torch.equal(z_q, z)
    assert ([grid.shape for grid in codes], loss.item()) == ([(2, 4, 5)] * 2, 0.0)
    assert_state_unchanged(vq, before)


# ----------------------------------------------------------------------------------------------------
# Initialisation and dead codes


def clusters(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Eight far centres, their shares in units of 1/8, and 320 points near them."""
    centres, sizes = 10 * torch.randn(8, 3, generator=generator), torch.tensor([10, 20, 30, 40, 50, 60, 70, 40])
    labels = torch.repeat_interleave(torch.arange(8), sizes)[torch.randperm(320, generator=generator)]
    return centres, sizes / 320 * 8, centres[labels] + 0.01 * torch.randn(320, 3, generator=generator)


def test_kmeans_finds_clusters_and_counts_them():
    centres, shares, points = clusters(torch.Generator().manual_seed(0))
    torch.manual_seed(2)
    found, found_shares = kmeans(points, 8, iterations=30)
    order = torch.cdist(centres, found).argmin(1)
    torch.testing.assert_close(found[order], centres, atol=0.02, rtol=0)
    torch.testing.assert_close(found_shares[order], shares)


def test_codebooks_are_initialised_from_data():
    """Mistake 7: a codebook from zeros or N(0, 1) uses one or two of its codes. The start is k-means, with cluster
    sizes by count; each further codebook starts on what the ones before it leave."""
    _, _, points = clusters(torch.Generator().manual_seed(0))
    vq, z = quantizer(8, 3, depth=3), points.view(4, 8, 10, 3).movedim(-1, 1)
    vq.initialise(z)
    codes = vq.encode(z)
    assert len(codes[0].unique()) >= 6
    errors = [(vq.embed(codes[:n]) - z).square().mean() for n in (1, 2, 3)]
    assert errors[0] < 0.3 * z.var()
    assert errors[2] < errors[1] < errors[0]
    torch.testing.assert_close(vq.cluster_sum, vq.codebooks * vq.cluster_size[..., None])
    torch.testing.assert_close(vq.cluster_size.sum(1), torch.full((3,), 8.0), atol=0.2, rtol=0)


@pytest.mark.parametrize("depth", [1, 2])
def test_dead_codes_restart_with_their_statistics(depth):
    """Mistake 7: dead codes come back at a latent of the batch, and their cluster size and sum with them."""
    vq, z = quantizer(8, 3, depth, decay=0.0), latents(10)
    vq.codebooks[:, 4:] = 1000.0  # out of reach
    residuals = vq.quantise(rows(z))[1]
    vq(z)
    torch.testing.assert_close(vq.cluster_sum, vq.codebooks * vq.cluster_size[..., None])
    for codebook, size, residual in zip(vq.codebooks, vq.cluster_size, residuals, strict=False):
        assert torch.cdist(codebook[4:], residual).min(1).values.max() < 2e-3  # each is one of the latents
        torch.testing.assert_close(size[4:], torch.full((4,), vq.RESTART))


def test_random_codebook_comes_into_use():
    """From N(0, 1) far from the latents, restarts bring every code into use."""
    vq = quantizer(32, 3)
    for step in range(250):
        if step == 200:
            vq.usage.zero_()
        vq(5 + 0.1 * latents(step, (8, 3, 8, 8)))
    assert (vq.usage > 0).all()
    assert vq.usage.sum() == 50 * 8 * 64  # latents since the count was last zeroed
