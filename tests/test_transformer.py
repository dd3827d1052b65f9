"""The transformer prior: nothing looks ahead, drawing is the inverse of the likelihood, and bits are bits."""

import math

import pytest
import torch

from networks.prior import draw_code, seeded_rows
from networks.transformer import FARTHEST, Neighbourhood, Neighbours, Transformer

GRID, SIZES, LEVELS = (4, 5), (7, 6), 3
KINDS = {"one code": SIZES[:1], "two codes": SIZES}


def prior(kind: str, **options) -> Transformer:
    torch.manual_seed(0)
    sizes = KINDS[kind]
    model = Transformer(GRID, sizes, 3, LEVELS, **({"width": 24, "layers": 2, "heads": 3, "inner": 8} | options)).eval()
    for parameter in model.parameters():  # large weights, so that nothing that leaks is too small to see
        torch.nn.init.normal_(parameter, std=0.4)
    model.fit([torch.randn(k, 3) for k in sizes], torch.tensor([0, 1, 2, 3, 3]))
    return model


def some_codes(kind: str, n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(k, (n, *GRID), generator=generator) for k in KINDS[kind]]


def some_neighbours(kind: str, offsets: list[list[int]]) -> Neighbours:
    """Two for each slice."""
    generator = torch.Generator().manual_seed(2)
    codes = [torch.randint(k, (len(offsets), 2, *GRID), generator=generator) for k in KINDS[kind]]
    return Neighbours(codes, torch.tensor(offsets))


def logits_of(
    model: Transformer, codes: list[torch.Tensor], levels: torch.Tensor, neighbours: Neighbours | None = None
) -> list[torch.Tensor]:
    """Logits [B, N, K] of each code, by the pass that training takes."""
    seen: list[torch.Tensor] = []
    original = model._logits
    model._logits = lambda said, i: seen.append(original(said, i)) or seen[-1]
    model(codes, levels, neighbours=neighbours)
    del model._logits
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_causality(kind):
    """Changing a code changes no logit at or before it in the order of drawing, and changes the next of its row."""
    model, levels, codes = prior(kind), torch.tensor([1]), some_codes(kind, 1)
    depth, n = len(codes), math.prod(GRID)
    before = logits_of(model, codes, levels)
    for place in range(n):
        for k in range(depth):
            changed = [grid.clone() for grid in codes]
            changed[k].view(-1)[place] = (changed[k].view(-1)[place] + 1) % KINDS[kind][k]
            moved = [(a - b).abs().amax((0, 2)) for a, b in zip(logits_of(model, changed, levels), before, strict=True)]
            in_order = torch.stack(moved, dim=1).flatten()
            at = place * depth + k
            assert (in_order[: at + 1] == 0).all()
            if k + 1 < depth or (place + 1) % GRID[1]:
                assert in_order[at + 1] > 0


def test_the_first_layer_sees_the_neighbours_that_come_before():
    first = Neighbourhood(1, 1, (4, 6))
    torch.nn.init.ones_(first.mix.weight)
    torch.nn.init.zeros_(first.mix.bias)
    for row, column in ((0, 0), (1, 3), (3, 5)):
        impulse = torch.zeros(1, 24, 1)
        impulse[0, row * 6 + column] = 1
        seen = first(impulse)[0, :, 0].view(4, 6).bool()
        for i in range(4):
            for j in range(6):
                above, beside = 1 <= i - row <= 2 and abs(j - column) <= 2, i == row and 1 <= j - column <= 2
                assert seen[i, j] == (above or beside)


@pytest.mark.parametrize(("temperature", "nucleus"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8)])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside others"])
@pytest.mark.parametrize("kind", KINDS)
def test_cached_sampling_equals_the_slow_way(kind, beside, temperature, nucleus):
    """Each drawn code is the inversion of the same uniform number under the full pass over what was drawn before."""
    model, seeds, levels = prior(kind), [3, 5, 8], torch.tensor([0, 2, 3])
    depth, n = len(KINDS[kind]), math.prod(GRID)
    neighbours = some_neighbours(kind, [[1, -1], [4, 0], [0, -FARTHEST]]) if beside else None
    uniform = seeded_rows(seeds, n * depth, torch.rand).view(3, n, depth)
    slow = [torch.zeros(3, *GRID, dtype=torch.long) for _ in range(depth)]
    with torch.no_grad():
        for place in range(n):
            for k in range(depth):
                logits = logits_of(model, slow, levels, neighbours)[k][:, place]
                slow[k].view(3, -1)[:, place] = draw_code(logits, uniform[:, place, k], temperature, nucleus)
    for a, b in zip(model.sample(seeds, levels, temperature, nucleus, neighbours), slow, strict=True):
        assert torch.equal(a, b)
    assert len(slow[0].unique()) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_tell_by_their_codes_and_distance(kind):
    model, codes, levels = prior(kind), some_codes(kind, 4), torch.tensor([0, 1, 2, 3])
    alone = model(codes, levels)
    given = some_neighbours(kind, [[0, 0], [1, -1], [-1, 1], [2, 0]])
    told = model(codes, levels, neighbours=given)
    assert told[0] == alone[0]  # an offset of 0: there is none
    assert (told[1:] != alone[1:]).all()
    swapped = Neighbours([grid.flip(1) for grid in given.codes], given.offsets.flip(1))
    torch.testing.assert_close(model(codes, levels, neighbours=swapped), told)  # a set, in no order
    farther = model(codes, levels, neighbours=given._replace(offsets=2 * given.offsets))
    assert farther[0] == told[0]
    assert (farther[1:] != told[1:]).all()


def test_a_neighbour_is_seen_around_its_own_place_only():
    model = prior("one code")
    given = some_neighbours("one code", [[1, 0]])
    view = model.neighbours(model._see(given.codes), given.offsets)
    given.codes[0][0, 0, 1, 4] = (given.codes[0][0, 0, 1, 4] + 1) % SIZES[0]
    moved = (model.neighbours(model._see(given.codes), given.offsets) - view).abs().sum(2).view(GRID) > 0
    expected = torch.zeros(GRID, dtype=torch.bool)
    expected[:4, 2:] = True  # two positions around row 1, column 4
    assert torch.equal(moved, expected)


def test_before_training_neighbours_say_nothing():
    torch.manual_seed(0)
    model = Transformer(GRID, [7], 3, LEVELS, width=24, layers=1, heads=3, inner=8).eval()
    codes, levels = some_codes("one code", 2), torch.tensor([0, 1])
    assert torch.equal(
        model(codes, levels, neighbours=some_neighbours("one code", [[1, 2], [3, 4]])), model(codes, levels)
    )


def test_a_sample_depends_on_its_own_seed_only():
    model = prior("two codes")
    together = model.sample([9, 2, 7], torch.tensor([1, 3, 0]))
    torch.manual_seed(99)
    alone = model.sample([2], torch.tensor([3]))
    model.level_share.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    unconditional = model.sample([2])
    for whole, one, free in zip(together, alone, unconditional, strict=True):
        assert torch.equal(whole[1], one[0])
        assert torch.equal(one, free)  # no level given: drawn, and here there is but one


def test_bits_in_closed_form():
    """A prior that holds all codes alike needs log2 K bits a code; and the probabilities of all grids sum to 1."""
    model = prior("two codes")
    for table in model.said:
        torch.nn.init.zeros_(table.shared.weight)
        torch.nn.init.zeros_(table.own)
    bits = model(some_codes("two codes", 4), torch.tensor([0, 1, 2, 3]))
    torch.testing.assert_close(bits, torch.full((4,), 20 * (math.log2(7) + math.log2(6))))

    torch.manual_seed(0)
    small = Transformer((1, 3), [3], 2, 1, width=8, layers=1, heads=2, inner=4).eval()
    for parameter in small.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    every = torch.cartesian_prod(*[torch.arange(3)] * 3)[:, None]
    probabilities = 2 ** -small([every], torch.zeros(27, dtype=torch.long))
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)


def test_what_was_changed_for_training_is_told_apart():
    model, codes, levels = prior("one code"), some_codes("one code", 2), torch.tensor([1, 1])
    plain = model(codes, levels)
    told = model(codes, levels, torch.tensor([False, True]))
    assert told[0] == plain[0]
    assert told[1] != plain[1]


def test_codes_of_alike_vectors_start_alike():
    """Before anything is learnt of a single code, its row of each table depends on its code vector alone."""
    torch.manual_seed(0)
    model = Transformer(GRID, [4], 3, LEVELS, width=24, layers=1, heads=3, inner=8)
    codebook = torch.randn(4, 3)
    codebook[2] = codebook[0]
    model.fit([codebook], torch.tensor([0]))
    for table in (model.seen[0](), model.said[0]()):
        assert torch.equal(table[0], table[2])
        assert not torch.equal(table[0], table[1])


def test_a_nucleus_draws_from_the_likeliest_codes_alone():
    probabilities = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).expand(1000, 4)
    uniform = torch.linspace(0, 1 - 1e-6, 1000)
    for nucleus, expected in ((0.5, {1: 1.0}), (0.7, {1: 2 / 3, 3: 1 / 3}), (0.75, {1: 2 / 3, 3: 1 / 3})):
        drawn = draw_code(probabilities.log(), uniform, nucleus=nucleus)
        shares = {code: (drawn == code).float().mean().item() for code in drawn.unique().tolist()}
        assert shares == pytest.approx(expected, abs=2e-3)
