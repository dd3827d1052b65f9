"""How do the weights move? Muon beside torch's own and beside its equations in float64, Adam beside torch's."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modules import Discriminator
from training.optim import WARM_UP, MovingAverage, Muon, constant_then_linear, cosine, muon, orthogonalise, update

RATE, MOMENTUM = 0.02, 0.95


def gradients(shape: tuple[int, ...], steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


def start(shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1)))


def change(make_optimizer, parameter: nn.Parameter, steps: list[Tensor]) -> Tensor:
    """How far `parameter` moves in a step on each of the gradients."""
    before, optimizer = parameter.detach().clone(), make_optimizer([parameter])
    for gradient in steps:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach() - before


def by_muon(parameters) -> Muon:
    return Muon(parameters, RATE, MOMENTUM)


def by_adam(parameters) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, RATE, betas=(0.9, 0.99))


def muon_in_float64(steps: list[Tensor]) -> Tensor:
    """The sum of Muon's updates (Jordan et al. 2024, algorithm 2) for matrices [M, N], written out."""
    momentum, total = torch.zeros(2, *steps[0].shape, dtype=torch.float64)
    for gradient in steps:
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        x = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        x = x / x.norm()
        for _ in range(5):
            x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
        total = total - RATE * 0.2 * max(x.shape) ** 0.5 * x
    return total


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (1, 16)])
def test_muon_on_matrices_is_torchs_and_in_closed_form(shape):
    """Torch iterates in bf16, whose numbers are 2^-8 apart: five iterations leave errors of a few times that."""

    def torchs(parameters):
        return torch.optim.Muon(parameters, RATE, weight_decay=0, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw")

    steps = gradients(shape, 5)
    expected, ours = (change(make, start(shape), steps) for make in (torchs, by_muon))
    assert (ours - expected).norm() < 8 * 2**-8 * expected.norm()
    torch.testing.assert_close(ours.double(), muon_in_float64(steps), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("shape", [(64, 16, 3, 3), (16, 64, 3, 3), (32, 128, 1, 1)])
def test_update_of_a_convolution_is_nearly_orthogonal(shape):
    """As the matrix [out, in * kh * kw], times 0.2 sqrt(max(rows, columns)): with singular values of 1, Adam's size."""
    step = change(lambda parameters: Muon(parameters, 1.0), start(shape), gradients(shape, 1)).flatten(1)
    singular = torch.linalg.svdvals(step / (0.2 * max(step.shape) ** 0.5))
    assert 0.65 < singular.min() <= singular.max() < 1.25


def test_orthogonalise_keeps_the_singular_vectors():
    """It is U f(S) V^T of a matrix U S V^T."""
    matrix = gradients((20, 30), 1)[0]
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ orthogonalise(matrix[None])[0] @ v.T
    torch.testing.assert_close(found, found.diag().diag(), atol=1e-4, rtol=0)


def test_muon_takes_weights_and_leaves_the_rest_to_adam():
    """Weights of linear layers and convolutions are Muon's; biases, embeddings and `by_adam` move as in Adam."""
    torch.manual_seed(0)
    network = nn.ModuleDict({"first": nn.Conv2d(4, 16, 3), "hidden": nn.Linear(8, 8), "table": nn.Embedding(5, 3)})
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimizer = muon(network, RATE, by_adam=[network["first"]])
    steps = {name: gradients(tuple(parameter.shape), 4) for name, parameter in before.items()}
    for i in range(4):
        for name, parameter in network.named_parameters():
            parameter.grad = steps[name][i].clone()
        optimizer.step()
    for name, parameter in network.named_parameters():
        make = by_muon if name == "hidden.weight" else by_adam
        expected = change(make, nn.Parameter(before[name].clone()), steps[name])
        torch.testing.assert_close(parameter.detach() - before[name], expected, msg=name)


@pytest.mark.parametrize("clip", [math.inf, 0.5])
def test_an_update_moves_one_network_alone(clip):
    """Down the gradient, clipped to a norm that it returns as it was; other networks get no gradient."""
    network, other = nn.Linear(3, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    nn.init.constant_(other.weight, 2.0)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    norm = update(other(network(torch.tensor([[3.0, 0.0, 4.0]]))).sum(), network, optimizer, clip)
    gradient = torch.tensor([[6.0, 0.0, 8.0]])
    torch.testing.assert_close(network.weight.data, 1 - 0.1 * gradient * min(1, clip / 10))
    assert other.weight.grad is None
    if clip < math.inf:
        assert norm.item() == pytest.approx(10)


def test_a_fused_step_is_the_plain_step():
    """Fused optimisers read gradients in the weights' memory layout: a gradient in another would be scrambled."""
    latents, levels = torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    latents = latents.to(memory_format=torch.channels_last)
    weights = []
    for fused in (False, True):
        torch.manual_seed(0)
        network = Discriminator((16, 16), channels=8, levels=4, covariates=[], width=8)
        optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=fused)
        update(network(latents, levels, levels > 1, torch.zeros(4, 0)).square().mean(), network, optimizer)
        assert all(p.grad.stride() == p.stride() for p in network.parameters())
        weights.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    torch.testing.assert_close(*weights)


# ----------------------------------------------------------------------------------------------------
# The moving average and the schedules


def test_moving_average_follows_fast_at_first_and_slowly_later():
    network = nn.BatchNorm1d(1)
    average = MovingAverage(network, decay=0.99)
    for updates, share in ((0, 1.0), (1, 9 / 11), (8, 0.5), (10_000, 0.01)):
        average.updates = updates
        for part, value in ((average.module.weight, 0.0), (network.weight, 1.0), (network.running_mean, updates)):
            nn.init.constant_(part, value)
        average.update_parameters(network)
        torch.testing.assert_close(average.module.weight.detach(), torch.tensor([share]))
        assert average.module.running_mean == updates  # no weight: copied
    other = MovingAverage(network, decay=0.99)
    other.load_state_dict(average.state_dict())
    assert other.updates == average.updates


def test_cosine_warms_up_and_falls_to_two_per_cent():
    shares = [cosine(step, 1000) for step in range(1000)]
    assert shares[0] == pytest.approx(1 / WARM_UP)
    assert (np.diff(shares[:90]) > 0).all()
    assert (np.diff(shares[100:]) < 0).all()
    assert shares[500] == pytest.approx(0.02 + 0.98 / 2)
    assert shares[250] == pytest.approx(0.02 + 0.98 * (1 + math.sqrt(0.5)) / 2)
    assert shares[-1] == pytest.approx(0.02, rel=0.01)


def test_constant_rate_falls_linearly_in_the_last_share_of_the_steps():
    shares = {step: constant_then_linear(step, 1000, 10, 0.5) for step in (0, 9, 500, 510, 755, 1000)}
    assert shares == pytest.approx({0: 0.1, 9: 1, 500: 1, 510: 0.9804, 755: 0.5002, 1000: 0.02})
