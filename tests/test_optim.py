"""How do the weights move? Muon beside torch's own, beside its equations in float64, and Adam beside torch's."""

import pytest
import torch
from torch import Tensor, nn

from training.optim import MovingAverage, Muon, orthogonalise

LR, MOMENTUM = 0.02, 0.95


def gradients(shape: tuple[int, ...], steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


def start(shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1)))


def moved(make_optimizer, parameter: nn.Parameter, given: list[Tensor]) -> Tensor:
    """How far `parameter` is from where it was, after a step on each of the gradients."""
    before, optimizer = parameter.detach().clone(), make_optimizer([parameter])
    for gradient in given:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach() - before


def muon_in_float64(given: list[Tensor]) -> Tensor:
    """The sum of Muon's updates (Jordan et al. 2024, algorithm 2) for matrices [M, N], written out."""
    momentum, total = torch.zeros(given[0].shape, dtype=torch.float64), torch.zeros(given[0].shape, dtype=torch.float64)
    for gradient in given:
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        x = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        x = x / x.norm()
        for _ in range(5):
            x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
        total -= LR * 0.2 * max(x.shape) ** 0.5 * x
    return total


SHAPES = [(24, 40), (40, 24), (32, 32), (5, 200), (1, 16)]


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_muon_on_matrices_is_torchs(shape, steps):
    """Torch iterates in bf16, whose numbers are 2^-8 apart: five iterations leave errors of a few times that."""

    def torchs(parameters):
        return torch.optim.Muon(parameters, LR, weight_decay=0, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw")

    given = gradients(shape, steps)
    expected = moved(torchs, start(shape), given)
    ours = moved(lambda parameters: Muon(parameters, LR, MOMENTUM), start(shape), given)
    assert (ours - expected).norm() < 8 * 2**-8 * expected.norm()


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_muon_on_matrices_in_closed_form(shape, steps):
    given = gradients(shape, steps)
    ours = moved(lambda parameters: Muon(parameters, LR, MOMENTUM), start(shape), given)
    torch.testing.assert_close(ours.double(), muon_in_float64(given), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("shape", [(64, 16, 3, 3), (16, 64, 3, 3), (128, 64, 4, 4), (32, 128, 1, 1)])
def test_update_of_a_convolution_is_nearly_orthogonal(shape):
    """As the matrix [out, in * kh * kw], times 0.2 sqrt(max(rows, columns)): with singular values of 1, Adam's size."""
    update = moved(lambda parameters: Muon(parameters, 1.0), start(shape), gradients(shape, 1)).flatten(1)
    singular = torch.linalg.svdvals(update / (0.2 * max(update.shape) ** 0.5))
    assert singular.min() > 0.65
    assert singular.max() < 1.25


def test_memory_layout_changes_nothing():
    shape = (32, 16, 3, 3)
    given = gradients(shape, 3)
    expected = moved(Muon, start(shape), given)
    last = nn.Parameter(start(shape).detach().to(memory_format=torch.channels_last))
    found = moved(Muon, last, [gradient.to(memory_format=torch.channels_last) for gradient in given])
    torch.testing.assert_close(found, expected)


def test_orthogonalise_keeps_the_singular_vectors():
    """It is U f(S) V^T of a matrix U S V^T."""
    matrix = gradients((20, 30), 1)[0]
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    made = u.T @ orthogonalise(matrix[None])[0] @ v.T
    torch.testing.assert_close(made, made.diag().diag(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(7,), ()])
def test_biases_move_as_adam_moves_them(shape):
    given = gradients(shape, 6)
    expected = moved(lambda parameters: torch.optim.Adam(parameters, LR, betas=(0.9, 0.99)), start(shape), given)
    torch.testing.assert_close(moved(lambda parameters: Muon(parameters, LR), start(shape), given), expected)


def test_a_group_of_matrices_can_be_adams():
    """For first and last layers: in the same optimiser, beside a group whose matrices are Muon's."""
    shape = (16, 4, 3, 3)
    given = gradients(shape, 4)
    by_adam = moved(lambda parameters: torch.optim.Adam(parameters, LR, betas=(0.9, 0.99)), start(shape), given)
    by_muon = moved(lambda parameters: Muon(parameters, LR), start(shape), given)
    first, hidden = start(shape), start(shape)
    optimizer = Muon([{"params": [first], "matrices": "adam"}, {"params": [hidden]}], LR)
    for gradient in given:
        first.grad, hidden.grad = gradient.clone(), gradient.clone()
        optimizer.step()
    torch.testing.assert_close(first.detach() - start(shape).detach(), by_adam)
    torch.testing.assert_close(hidden.detach() - start(shape).detach(), by_muon)


def test_parameters_without_a_gradient_stay():
    parameter = start((4, 4))
    Muon([parameter]).step()
    assert torch.equal(parameter, start((4, 4)))


@pytest.mark.parametrize("split", [1, 3])
def test_state_goes_on_where_it_was(split):
    """Saved and loaded between two steps, as a resumed run does."""
    net, given = nn.Conv2d(3, 8, 3), gradients((8, 3, 3, 3), 4)
    whole = moved(Muon, nn.Parameter(net.weight.detach().clone()), given)
    parameter = nn.Parameter(net.weight.detach().clone())
    first = Muon([parameter])
    for gradient in given[:split]:
        parameter.grad = gradient.clone()
        first.step()
    second = Muon([parameter])
    second.load_state_dict(first.state_dict())
    for gradient in given[split:]:
        parameter.grad = gradient.clone()
        second.step()
    torch.testing.assert_close(parameter.detach() - net.weight.detach(), whole, rtol=0, atol=0)


def test_moving_average_follows_fast_at_first_and_slowly_later():
    network = nn.BatchNorm1d(1)
    average = MovingAverage(network, inertia=0.99)
    for updates, share in ((0, 1.0), (1, 9 / 11), (8, 0.5), (10_000, 0.01)):
        average.updates = updates
        for part, value in ((average.module.weight, 0.0), (network.weight, 1.0), (network.running_mean, updates)):
            nn.init.constant_(part, value)
        average.update_parameters(network)
        torch.testing.assert_close(average.module.weight.detach(), torch.tensor([share]))
        assert average.module.running_mean == updates  # no weight: copied


def test_moving_average_without_inertia_is_the_network():
    network = nn.Linear(3, 2)
    average = MovingAverage(network, inertia=0.0)
    for _ in range(3):
        nn.init.normal_(network.weight)
        average.update_parameters(network)
        assert torch.equal(average.module.weight, network.weight)


def test_moving_average_goes_on_where_it_was():
    average = MovingAverage(nn.Linear(1, 1), inertia=0.99)
    average.updates = 8
    other = MovingAverage(nn.Linear(1, 1), inertia=0.99)
    other.load_state_dict(average.state_dict())
    assert other.updates == 8
