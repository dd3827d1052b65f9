"""The PixelCNN prior: nothing looks ahead, there is no blind spot, sampling is the inverse of the likelihood."""

import math

import pytest
import torch

from modules import seeded_rows
from networks.autoregressive import draw_code
from networks.pixelcnn import PixelCNN

GRIDS = {
    "one grid": ([(5, 4)], [7]),
    "top and bottom": ([(2, 3), (4, 6)], [5, 7]),
    "two depths": ([(3, 4), (3, 4)], [6, 6]),
}


def prior(kind: str) -> PixelCNN:
    torch.manual_seed(0)
    grids, sizes = GRIDS[kind]
    model = PixelCNN(grids, sizes, levels=3, width=8, layers=6).eval()
    for parameter in model.parameters():  # large weights, so that nothing that leaks is too small to see
        parameter.data *= 2
    return model


def some_codes(kind: str, n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(k, (n, *grid), generator=generator) for grid, k in zip(*GRIDS[kind], strict=True)]


def by_grid(model: PixelCNN, codes: list[torch.Tensor]):
    """Each grid model with its own codes and those of the grids before it."""
    start = 0
    for grid_model in model.grids:
        yield grid_model, codes[start : start + grid_model.depth], codes[:start]
        start += grid_model.depth


def in_order(logits: list[torch.Tensor]) -> torch.Tensor:
    """Logits [codes, K] of the first image in the order of sampling: depth by depth at each position."""
    return torch.stack([each[0].flatten(0, 1) for each in logits], dim=1).flatten(0, 1)


def changed(codes: list[torch.Tensor], position: int, depth: int, size: int) -> list[torch.Tensor]:
    """The codes with another one at this position and depth."""
    codes = [grid.clone() for grid in codes]
    codes[depth].view(-1)[position] = (codes[depth].view(-1)[position] + 1) % size
    return codes


@pytest.mark.parametrize("kind", GRIDS)
def test_causality_without_a_blind_spot(kind):
    """Changing code i changes no logit at or before i, and does change the next and the last: PixelCNNs without
    masks see what they are to predict, and those with a single stack miss some of what went before."""
    model, levels = prior(kind), torch.tensor([1])
    for grid_model, codes, before in by_grid(model, some_codes(kind, 1)):
        logits = in_order(grid_model(codes, before, levels))
        for i in range(len(logits)):
            others = changed(codes, *divmod(i, grid_model.depth), logits.shape[1])
            moved = (in_order(grid_model(others, before, levels)) - logits).abs().amax(1)
            assert moved[: i + 1].max() == 0
            if i + 1 < len(moved):
                assert moved[i + 1] > 0
                assert moved[-1] > 0 or kind == "top and bottom"  # whose bottom is larger than the receptive field


def test_grids_share_layers_if_they_have_one_shape():
    assert [grid_model.depth for grid_model in prior("two depths").grids] == [2]
    assert [grid_model.depth for grid_model in prior("top and bottom").grids] == [1, 1]


def test_each_code_of_a_grid_conditions_the_next_grid():
    kind = "top and bottom"
    model, (first, second), levels = prior(kind), some_codes(kind, 1), torch.tensor([2])
    (logits,) = model.grids[1]([second], [first], levels)
    for i in range(first.numel()):
        (moved,) = model.grids[1]([second], changed([first], i, 0, GRIDS[kind][1][0]), levels)
        moved = (moved - logits).abs().amax((0, 3))
        row, column = divmod(i, first.shape[2])
        below = row * second.shape[1] // first.shape[1], column * second.shape[2] // first.shape[2]
        assert moved[below] > 0


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", GRIDS)
def test_cached_sampling_equals_slow_sampling(kind, temperature):
    """Each code is the inversion of the same uniform number under the full forward pass over the codes before it."""
    model, seeds, levels = prior(kind), [3, 5, 8], torch.tensor([0, 2, 3])
    draws = [math.prod(grid_model.grid) * grid_model.depth for grid_model in model.grids]
    uniform = seeded_rows(seeds, sum(draws), torch.rand).split(draws, dim=1)
    slow = []
    with torch.no_grad():
        for grid_model, numbers in zip(model.grids, uniform, strict=True):
            codes = [torch.zeros(len(seeds), *grid_model.grid, dtype=torch.long) for _ in range(grid_model.depth)]
            for i in range(numbers.shape[1]):
                position, depth = divmod(i, grid_model.depth)
                logits = grid_model(codes, slow, levels)[depth].flatten(1, 2)[:, position] / temperature
                codes[depth].view(len(seeds), -1)[:, position] = draw_code(logits, numbers[:, i])
            slow += codes
    for a, b in zip(model.sample(seeds, levels, temperature=temperature), slow, strict=True):
        assert torch.equal(a, b)
    assert len(torch.cat([grid.flatten() for grid in slow]).unique()) > 2


@pytest.mark.parametrize("kind", GRIDS)
def test_a_sample_depends_on_its_own_seed_only(kind):
    model = prior(kind)
    together = model.sample([9, 2, 7], torch.tensor([1, 3, 0]))
    torch.manual_seed(99)
    alone = model.sample([2], torch.tensor([3]))
    model.level_share.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    drawn = model.sample([2])
    for batch, one, free in zip(together, alone, drawn, strict=True):
        assert torch.equal(batch[1], one[0])
        assert torch.equal(one, free)  # no level given: drawn, and here only one is possible
    assert any(not torch.equal(a[0], a[2]) for a in together)


def test_inversion_is_the_inverse_of_the_cumulative_distribution():
    p = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).expand(7, 4)
    u = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 0.99, 1 - 2**-24])
    assert draw_code(p.log(), u).tolist() == [0, 0, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("kind", GRIDS)
def test_bits_in_closed_form(kind):
    """The sum of -log2 p of each code; log2 K for each where all are equally likely."""
    model, codes, levels = prior(kind), some_codes(kind, 4), torch.tensor([0, 1, 2, 3])
    expected = torch.zeros(4)
    for grid_model, own, before in by_grid(model, codes):
        for logits, grid in zip(grid_model(own, before, levels), own, strict=True):
            expected -= logits.softmax(3).gather(3, grid[..., None]).log2().sum((1, 2, 3))
    bits = model(codes, levels)
    torch.testing.assert_close(bits, expected)
    assert len(set(bits.tolist())) == 4
    for head in (head for grid_model in model.grids for head in grid_model.heads):
        torch.nn.init.zeros_(head[-1].weight)
        torch.nn.init.zeros_(head[-1].bias)
    uniform = sum(r * c * math.log2(k) for (r, c), k in zip(*GRIDS[kind], strict=True))
    torch.testing.assert_close(model(codes, levels), torch.full((4,), uniform))


def test_probabilities_of_all_grids_sum_to_one():
    """All 4^4 images enumerated: a model that sees what it is to predict would give more than 1 in total."""
    torch.manual_seed(0)
    model = PixelCNN([(2, 2)], [4], levels=1, width=8, layers=2).eval()
    every = torch.cartesian_prod(*[torch.arange(4)] * 4).view(-1, 2, 2)
    bits = model([every], torch.zeros(len(every), dtype=torch.long))
    assert (2.0 ** -bits.double()).sum().item() == pytest.approx(1, abs=1e-5)


def test_level_and_augmentation_condition_it():
    model, codes = prior("one grid"), some_codes("one grid", 1)
    torch.nn.init.normal_(model.grids[0].augmented_embedding)
    level = torch.tensor([0])
    bits = {model(codes, torch.tensor([n])).item() for n in range(4)} | {model(codes, level, level == 0).item()}
    assert len({round(each, 4) for each in bits}) == 5


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
    assert bits.item() < 4 * math.log2(5) + 2  # only each row's first code is free
    [sample] = model.eval().sample(range(8), torch.zeros(8, dtype=torch.long))
    right = (sample[:, :, 1:] == (sample[:, :, :-1] + 1) % 5).float().mean()
    assert right > 0.95
