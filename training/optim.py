"""How do the weights move? By Muon, or Adam; and an average follows them, which samples."""

import math
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

WARM_UP = 100  # steps


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for convolutions too; torch.optim.Muon takes two-dimensional parameters only.

    A convolution's weight [out, in, kh, kw] counts as the matrix [out, in * kh * kw]. Every singular value of an
    update is brought near 1, so directions with small gradients learn as fast as those with large ones. Scaled by
    0.2 sqrt(max(rows, columns)) (Liu et al. 2025, eq. 4) the update's root mean square is that of an Adam update,
    and one learning rate serves both. Biases and gains, which are no matrices, move by Adam, and so does everything
    in a parameter group with "matrices": "adam".
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        matrices: Literal["muon", "adam"] = "muon",
    ):
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "matrices": matrices}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step on the gradients at hand; parameters without one stay."""
        for group in self.param_groups:
            by_muon, by_adam = [], []
            for parameter in group["params"]:
                if parameter.grad is not None:
                    matrix = parameter.ndim >= 2 and group["matrices"] == "muon"
                    (by_muon if matrix else by_adam).append(parameter)
            if by_muon:
                self._muon(by_muon, group)
            if by_adam:
                self._adam(by_adam, group)

    def _muon(self, parameters: list[Tensor], group: dict) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters]
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov
        alike: dict[torch.Size, list[int]] = {}  # matrices of one shape are made orthogonal together
        for i, each in enumerate(ahead):
            alike.setdefault(each.flatten(1).shape, []).append(i)
        for shape, indices in alike.items():
            updates = orthogonalise(torch.stack([ahead[i].flatten(1) for i in indices]))
            updates = updates.mul_(-group["lr"] * 0.2 * max(shape) ** 0.5)
            for i, update in zip(indices, updates, strict=True):
                parameters[i].add_(update.view(parameters[i].shape))

    def _adam(self, parameters: list[Tensor], group: dict) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                zeros = (torch.zeros_like(parameter) for _ in range(2))
                state = zip(("step", "mean", "square"), (torch.zeros((), device=parameter.device), *zeros), strict=True)
                self.state[parameter].update(state)
        gradients = [parameter.grad for parameter in parameters]
        steps, means, squares = (
            [self.state[parameter][name] for parameter in parameters] for name in ("step", "mean", "square")
        )
        (beta1, beta2), still = group["betas"], {"weight_decay": 0.0, "amsgrad": False, "maximize": False}
        adam(
            parameters, gradients, means, squares, [], steps, fused=True, lr=group["lr"], beta1=beta1, beta2=beta2,
            eps=group["eps"], **still,
        )  # fmt: skip


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices [..., M, N] with their singular values brought near 1, float32.

    To 0.68 to 1.21, but for those smaller than 1/500 of the matrix's norm, which grow by a factor of 485 at most.
    A quintic Newton-Schulz iteration, with the coefficients of Jordan et al. 2024.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # the smaller side decides the size of the products
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class MovingAverage(nn.Module):
    """The exponential moving average of a network's weights, in `module`; it forgets where it began.

    After n updates the newest weights count 9 / (10 + n), at least 1 - `inertia`; the first ones are taken as they are.
    The count stays on the host: that of PyTorch's `AveragedModel` is copied to the GPU for every weight in every step,
    which waits for the GPU each time.
    """

    def __init__(self, network: nn.Module, inertia: float):
        super().__init__()
        self.module, self.inertia, self.updates = deepcopy(network), inertia, 0

    @torch.no_grad()
    def update_parameters(self, network: nn.Module) -> None:
        """Follow the network's weights by one step; its buffers are copied."""
        share = max(9 / (10 + self.updates), 1 - self.inertia) if self.updates else 1.0
        torch._foreach_lerp_(list(self.module.parameters()), list(network.parameters()), share)
        for own, newest in zip(self.module.buffers(), network.buffers(), strict=True):
            own.copy_(newest)
        self.updates += 1

    def get_extra_state(self) -> int:
        return self.updates

    def set_extra_state(self, updates: int) -> None:
        self.updates = updates


def falling(peak: float, step: int, total: int) -> float:
    """Learning rate of step `step` of `total`: linear warm-up, and over all steps half a cosine from `peak` to 2 %."""
    fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / total))
    return peak * fall * min(1.0, (step + 1) / WARM_UP)


def held(step: int, total: int, warm_up: float, fall: float) -> float:
    """Share of a learning rate at step `step` of `total`: linear warm-up over so many steps, all of it, linear to 2 %.

    `fall`: the last share of the steps, in which it falls.
    """
    return min(1.0, (step + 1) / warm_up) * min(1.0, 0.02 + 0.98 * (1 - step / total) / fall)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all of the optimiser's parameters this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
