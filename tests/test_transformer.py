"""The transformer prior: nothing looks ahead, sampling is the inverse of the likelihood, and bits are bits."""

import math

import pytest
import torch

import networks.transformer as module
from modules import seeded_rows
from networks.autoregressive import draw_code
from networks.transformer import MAX_OFFSET, CausalConv, Neighbours, Transformer

GRID, SIZES, LEVELS = (4, 5), (7, 6), 3
KINDS = {"one code": SIZES[:1], "two codes": SIZES}


def prior(kind: str, covariates: tuple[dict, ...] = ()) -> Transformer:
    torch.manual_seed(0)
    sizes = {"width": 24, "layers": 2, "heads": 3, "inner": 8}
    model = Transformer(GRID, KINDS[kind], 3, LEVELS, **sizes, covariates=covariates).eval()
    for parameter in model.parameters():  # large weights, so that nothing that leaks is too small to see
        torch.nn.init.normal_(parameter, std=0.4)
    model.fit([torch.randn(k, 3) for k in KINDS[kind]])
    model.fit_levels(torch.tensor([0, 1, 2, 3, 3]))
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
    model: Transformer,
    codes: list[torch.Tensor],
    levels: torch.Tensor,
    neighbours: Neighbours | None = None,
    covariates: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Logits [B, N, K] of each code, by the forward pass that training takes."""
    logits, original = [], module._logits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_logits", lambda *args: logits.append(original(*args)) or logits[-1])
        model(codes, levels, covariates=covariates, neighbours=neighbours)
    return logits


@pytest.mark.parametrize("kind", KINDS)
def test_causality(kind):
    """Changing a code changes no logit at or before it in the order of sampling, and changes the next of its row."""
    model, levels, codes = prior(kind), torch.tensor([1]), some_codes(kind, 1)
    depth, n = len(codes), math.prod(GRID)
    before = logits_of(model, codes, levels)
    for position in range(n):
        for k in range(depth):
            changed = [grid.clone() for grid in codes]
            changed[k].view(-1)[position] = (changed[k].view(-1)[position] + 1) % KINDS[kind][k]
            after = logits_of(model, changed, levels)
            moved = [(a - b).abs().amax((0, 2)) for a, b in zip(after, before, strict=True)]
            in_order = torch.stack(moved, dim=1).flatten()
            at = position * depth + k
            assert (in_order[: at + 1] == 0).all()
            if k + 1 < depth or (position + 1) % GRID[1]:
                assert in_order[at + 1] > 0


def test_receptive_field_of_the_first_layer():
    first = CausalConv(1, 1, (4, 6))
    torch.nn.init.ones_(first.mix.weight)
    torch.nn.init.zeros_(first.mix.bias)
    for row, column in ((0, 0), (1, 3), (3, 5)):
        impulse = torch.zeros(1, 24, 1)
        impulse[0, row * 6 + column] = 1
        response = first(impulse)[0, :, 0].view(4, 6).bool()
        for i in range(4):
            for j in range(6):
                above, beside = 1 <= i - row <= 2 and abs(j - column) <= 2, i == row and 1 <= j - column <= 2
                assert response[i, j] == (above or beside)


@pytest.mark.parametrize(("temperature", "nucleus"), [(1.0, 1.0), (0.7, 0.8)])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "with neighbours"])
@pytest.mark.parametrize("kind", KINDS)
def test_cached_sampling_equals_slow_sampling(kind, beside, temperature, nucleus):
    """Each code is the inversion of the same uniform number under the full forward pass over the codes before it."""
    model, seeds, levels = prior(kind), [3, 5, 8], torch.tensor([0, 2, 3])
    depth, n = len(KINDS[kind]), math.prod(GRID)
    neighbours = some_neighbours(kind, [[1, -1], [4, 0], [0, -MAX_OFFSET]]) if beside else None
    uniform = seeded_rows(seeds, n * depth, torch.rand).view(3, n, depth)
    slow = [torch.zeros(3, *GRID, dtype=torch.long) for _ in range(depth)]
    with torch.no_grad():
        for position in range(n):
            for k in range(depth):
                logits = logits_of(model, slow, levels, neighbours)[k][:, position]
                slow[k].view(3, -1)[:, position] = draw_code(logits, uniform[:, position, k], temperature, nucleus)
    options = {"temperature": temperature, "nucleus": nucleus, "neighbours": neighbours}
    for a, b in zip(model.sample(seeds, levels, **options), slow, strict=True):
        assert torch.equal(a, b)
    assert len(slow[0].unique()) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_codes_may_be_chosen_by_their_logits(kind):
    """Position by position, the logits of known codes are those of the forward pass: an entropy coder's cost is its."""
    model, codes, levels, nats = prior(kind), some_codes(kind, 2), torch.tensor([0, 3]), []

    def known(logits, place):
        row, column, depth = place
        nats.append(torch.nn.functional.cross_entropy(logits, codes[depth][:, row, column], reduction="none"))
        return codes[depth][:, row, column]

    for chosen, given in zip(model.sample([0, 0], levels, choose=known), codes, strict=True):
        assert torch.equal(chosen, given)
    torch.testing.assert_close(torch.stack(nats).sum(0) / math.log(2), model(codes, levels))


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_condition_by_their_codes_and_offsets(kind):
    model, codes, levels = prior(kind), some_codes(kind, 4), torch.tensor([0, 1, 2, 3])
    alone = model(codes, levels)
    given = some_neighbours(kind, [[0, 0], [1, -1], [-1, 1], [2, 0]])
    bits = model(codes, levels, neighbours=given)
    assert bits[0] == alone[0]  # an offset of 0: there is none
    assert (bits[1:] != alone[1:]).all()
    swapped = Neighbours([grid.flip(1) for grid in given.codes], given.offsets.flip(1))
    torch.testing.assert_close(model(codes, levels, neighbours=swapped), bits)  # a set, in no order
    farther = model(codes, levels, neighbours=given._replace(offsets=2 * given.offsets))
    assert farther[0] == bits[0]
    assert (farther[1:] != bits[1:]).all()


def test_guidance_weighs_logits_given_covariates_against_those_without():
    model, levels, covariates = (
        prior("one code", ({"categories": None},)),
        torch.tensor([1, 2]),
        torch.tensor([[0.5], [-1.0]]),
    )
    [codes] = some_codes("one code", 2)
    seen = []

    def known(logits, place):
        seen.append(logits)
        return codes[:, *place[:2]]

    model.sample([0, 1], levels, covariates, guidance=1.7, choose=known)
    given, without = (logits_of(model, [codes], levels, covariates=each)[0] for each in (covariates, None))
    assert (given - without).abs().max() > 0.1
    torch.testing.assert_close(torch.stack(seen, dim=1), without + 1.7 * (given - without), atol=1e-4, rtol=1e-4)


def test_before_training_neighbours_change_nothing():
    torch.manual_seed(0)
    model = Transformer(GRID, [7], 3, LEVELS, width=24, layers=1, heads=3, inner=8).eval()
    codes, levels = some_codes("one code", 2), torch.tensor([0, 1])
    neighbours = some_neighbours("one code", [[1, 2], [3, 4]])
    assert torch.equal(model(codes, levels, neighbours=neighbours), model(codes, levels))


def test_a_sample_depends_on_its_own_seed_only():
    model = prior("two codes")
    together = model.sample([9, 2, 7], torch.tensor([1, 3, 0]))
    torch.manual_seed(99)
    alone = model.sample([2], torch.tensor([3]))
    model.level_share.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    drawn = model.sample([2])
    for batch, one, free in zip(together, alone, drawn, strict=True):
        assert torch.equal(batch[1], one[0])
        assert torch.equal(one, free)  # no level given: drawn, and here only one is possible


def test_bits_in_closed_form():
    """log2 K bits per code where all are equally likely; and the probabilities of all grids sum to 1."""
    model = prior("two codes")
    for table in model.output_embeddings:
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


def test_augmented_slices_are_conditioned_on():
    model, codes, levels = prior("one code"), some_codes("one code", 2), torch.tensor([1, 1])
    plain, augmented = model(codes, levels), model(codes, levels, torch.tensor([False, True]))
    assert augmented[0] == plain[0]
    assert augmented[1] != plain[1]


def test_codes_with_equal_vectors_start_with_equal_embeddings():
    torch.manual_seed(0)
    model = Transformer(GRID, [4], 3, LEVELS, width=24, layers=1, heads=3, inner=8)
    codebook = torch.randn(4, 3)
    codebook[2] = codebook[0]
    model.fit([codebook])
    for table in (model.input_embeddings[0](), model.output_embeddings[0]()):
        assert torch.equal(table[0], table[2])
        assert not torch.equal(table[0], table[1])


def test_a_nucleus_draws_from_the_likeliest_codes_only():
    probabilities = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).expand(1000, 4)
    uniform = torch.linspace(0, 1 - 1e-6, 1000)
    for nucleus, expected in ((0.5, {1: 1.0}), (0.7, {1: 2 / 3, 3: 1 / 3}), (0.75, {1: 2 / 3, 3: 1 / 3})):
        drawn = draw_code(probabilities.log(), uniform, nucleus=nucleus)
        shares = {code: (drawn == code).float().mean().item() for code in drawn.unique().tolist()}
        assert shares == pytest.approx(expected, abs=2e-3)
