import math

import pytest
import torch
import torch.nn.functional as F

from networks.pixelcnn import GridModel, PixelCNN
from networks.prior import draw_code, seeded_rows

GRIDS = {
    "one grid": ([(5, 4)], [7]),
    "top and bottom": ([(2, 3), (4, 6)], [5, 7]),
    "two depths": ([(3, 4), (3, 4)], [6, 6]),
}


def prior(kind: str, **options) -> PixelCNN:
    torch.manual_seed(0)
    grids, sizes = GRIDS[kind]
    model = PixelCNN(grids, sizes, levels=3, **({"width": 8, "layers": 6} | options)).eval()
    for parameter in model.parameters():  # large weights, so that nothing that leaks is too small to see
        parameter.data *= 2
    return model


def some_codes(kind: str, n: int, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(k, (n, *grid), generator=generator) for grid, k in zip(*GRIDS[kind], strict=True)]


def parts(model: PixelCNN, codes: list[torch.Tensor]):
    """Each grid model with its own codes and those of the grids before it."""
    start = 0
    for grid_model in model.grids:
        yield grid_model, codes[start : start + grid_model.depth], codes[:start]
        start += grid_model.depth


def in_order(logits: list[torch.Tensor]) -> torch.Tensor:
    """Logits [codes, K] of the first image in the order in which codes are drawn: depth by depth at each place."""
    return torch.stack([each[0].flatten(0, 1) for each in logits], dim=1).flatten(0, 1)


def change(codes: list[torch.Tensor], place: int, depth: int, size: int) -> list[torch.Tensor]:
    changed = [grid.clone() for grid in codes]
    changed[depth].view(-1)[place] = (changed[depth].view(-1)[place] + 1) % size
    return changed


@pytest.mark.parametrize("kind", GRIDS)
def test_causality(kind):
    """Changing code i changes no logit at or before i, and does change later ones: the reports' PixelCNN without
    masks saw what it was to predict."""
    model = prior(kind)
    levels = torch.tensor([1])
    for grid_model, codes, before in parts(model, some_codes(kind, 1)):
        logits = in_order(grid_model(codes, before, levels))
        for i in range(len(logits)):
            changed = change(codes, *divmod(i, grid_model.depth), logits.shape[1])
            moved = (in_order(grid_model(changed, before, levels)) - logits).abs().amax(1)
            assert moved[: i + 1].max() == 0
            if i + 1 < len(moved):
                assert moved[i + 1] > 0


@pytest.mark.parametrize("kind", ["one grid", "two depths"])
def test_sees_all_that_went_before(kind):
    """The two stacks have no blind spot: every earlier code moves the last logits."""
    model = prior(kind)
    codes, levels = some_codes(kind, 1), torch.tensor([0])
    (grid_model,) = model.grids
    logits = in_order(grid_model(codes, [], levels))
    for i in range(len(logits) - 1):
        changed = change(codes, *divmod(i, grid_model.depth), logits.shape[1])
        assert (in_order(grid_model(changed, [], levels))[-1] - logits[-1]).abs().max() > 0, i


def test_depths_of_a_place_share_their_layers():
    assert [grid_model.depth for grid_model in prior("two depths").grids] == [2]
    assert [grid_model.depth for grid_model in prior("top and bottom").grids] == [1, 1]


def test_each_code_of_a_grid_speaks_to_the_next_grid():
    kind = "top and bottom"
    model = prior(kind)
    first, second = some_codes(kind, 1)
    levels = torch.tensor([2])
    (logits,) = model.grids[1]([second], [first], levels)
    for i in range(first.numel()):
        (moved,) = model.grids[1]([second], change([first], i, 0, GRIDS[kind][1][0]), levels)
        moved = (moved - logits).abs().amax((0, 3))
        row, column = divmod(i, first.shape[2])
        under = row * second.shape[1] // first.shape[1], column * second.shape[2] // first.shape[2]
        assert moved[under] > 0


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", GRIDS)
def test_cached_sampling_equals_the_slow_way(kind, temperature):
    """Teacher forcing: each drawn code is the inversion of the same uniform number under the full forward pass
    over what was drawn before it."""
    model = prior(kind)
    seeds, levels = [3, 5, 8], torch.tensor([0, 2, 3])
    draws = [math.prod(grid_model.grid) * grid_model.depth for grid_model in model.grids]
    uniform = seeded_rows(seeds, sum(draws), torch.rand).split(draws, dim=1)
    slow = []
    with torch.no_grad():
        for grid_model, numbers in zip(model.grids, uniform, strict=True):
            codes = [torch.zeros(len(seeds), *grid_model.grid, dtype=torch.long) for _ in range(grid_model.depth)]
            for i in range(numbers.shape[1]):
                place, depth = divmod(i, grid_model.depth)
                logits = grid_model(codes, slow, levels)[depth].flatten(1, 2)[:, place] / temperature
                codes[depth].view(len(seeds), -1)[:, place] = draw_code(logits, numbers[:, i])
            slow += codes
    for a, b in zip(model.sample(seeds, levels, temperature), slow, strict=True):
        assert torch.equal(a, b)
    assert len(torch.cat([grid.flatten() for grid in slow]).unique()) > 2


@pytest.mark.parametrize("kind", GRIDS)
def test_sample_depends_on_its_own_seed_only(kind):
    model = prior(kind)
    together = model.sample([9, 2, 7], torch.tensor([1, 3, 0]))
    torch.manual_seed(99)
    alone = model.sample([2], torch.tensor([3]))
    model.level_share.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    unconditional = model.sample([2])
    for whole, one, free in zip(together, alone, unconditional, strict=True):
        assert torch.equal(whole[1], one[0])
        assert torch.equal(one, free)  # no level given: drawn, and here there is but one
    assert any(not torch.equal(a[0], a[2]) for a in together)


def test_inversion_is_the_inverse_of_the_cumulative_distribution():
    p = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).expand(7, 4)
    u = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 0.99, 1 - 2**-24])
    assert draw_code(p.log(), u).tolist() == [0, 0, 2, 2, 3, 3, 3]
    many = draw_code(p[:1].log().expand(20_000, 4), torch.rand(20_000, generator=torch.Generator().manual_seed(0)))
    share = torch.bincount(many, minlength=4) / 20_000
    torch.testing.assert_close(share, p[0], atol=0.015, rtol=0)
    assert share[1] == 0


@pytest.mark.parametrize("kind", GRIDS)
def test_bits_in_closed_form(kind):
    """With all logits equal an image costs codes x log2 K bits; in general, the sum of -log2 p of each code."""
    model = prior(kind)
    codes, levels = some_codes(kind, 4), torch.tensor([0, 1, 2, 3])
    expected = torch.zeros(4)
    for grid_model, here, before in parts(model, codes):
        for logits, grid in zip(grid_model(here, before, levels), here, strict=True):
            expected -= logits.softmax(3).gather(3, grid[..., None]).log2().sum((1, 2, 3))
    torch.testing.assert_close(model(codes, levels), expected)
    for head in (head for grid_model in model.grids for head in grid_model.heads):
        torch.nn.init.zeros_(head[-1].weight)
        torch.nn.init.zeros_(head[-1].bias)
    plain = sum(r * c * math.log2(k) for (r, c), k in zip(*GRIDS[kind], strict=True))
    torch.testing.assert_close(model(codes, levels), torch.full((4,), plain))


def test_probabilities_of_all_grids_sum_to_one():
    """2 bits a code, 4 codes: all 2^8 images enumerated. A model that peeks would give more than 1 in total."""
    torch.manual_seed(0)
    model = PixelCNN([(2, 2)], [4], levels=1, width=8, layers=2).eval()
    every = torch.cartesian_prod(*[torch.arange(4)] * 4).view(-1, 2, 2)
    bits = model([every], torch.zeros(len(every), dtype=torch.long))
    assert (2.0 ** -bits.double()).sum().item() == pytest.approx(1, abs=1e-5)


def test_level_is_looked_at_and_can_be_any():
    model = prior("one grid")
    codes = some_codes("one grid", 1)
    bits = [model(codes, torch.tensor([level])).item() for level in range(4)]
    assert len({round(b, 4) for b in bits}) == 4


def test_dropout_is_off_in_eval_and_on_in_training():
    model = prior("one grid", dropout=0.5)
    codes, levels = some_codes("one grid", 2), torch.tensor([0, 1])
    assert torch.equal(model(codes, levels), model(codes, levels))
    model.train()
    assert not torch.equal(model(codes, levels), model(codes, levels))


def test_learns_a_rule():
    """Each code is the one to its left plus one: a few steps of training find it."""
    torch.manual_seed(0)
    model = PixelCNN([(4, 6)], [5], levels=1, width=16, layers=2, dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(80):
        codes = [(torch.randint(5, (32, 4, 1)) + torch.arange(6)) % 5]
        bits = model(codes, torch.zeros(32, dtype=torch.long)).mean()
        optimizer.zero_grad()
        bits.backward()
        optimizer.step()
    free = 4 * math.log2(5)  # only each row's first code is free
    assert bits.item() < free + 2
    sample = model.eval().sample(range(8), torch.zeros(8, dtype=torch.long))[0]
    right = (sample[:, :, 1:] == (sample[:, :, :-1] + 1) % 5).float().mean()
    assert right > 0.95


def test_condition_is_upsampled_to_its_place():
    """A bottom code lies under the top code of its own quarter."""
    torch.manual_seed(0)
    model = GridModel((4, 4), [5], [3], 1, 8, 2, 0.0).eval()
    for layer in (model.mix[0], model.mix[2]):
        torch.nn.init.zeros_(layer.weight)
    top = torch.zeros(1, 2, 2, dtype=torch.long)
    other = top.clone()
    other[0, 0, 1] = 2
    moved = (model.condition([other], torch.tensor([0])) - model.condition([top], torch.tensor([0]))).abs().sum((0, 1))
    assert torch.equal(moved > 0, F.pad(torch.ones(2, 2, dtype=torch.bool), (2, 0, 0, 2)))
