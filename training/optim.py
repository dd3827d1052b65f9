"""How do the weights move? By Muon, or Adam; and an average follows them, which samples."""

import math
from collections.abc import Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from runtime import compute

WARM_UP = 100  # steps


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for convolutions, too; torch.optim.Muon takes two-dimensional parameters only.

    A convolution's weight [out, in, kh, kw] counts as the matrix [out, in * kh * kw]. Every singular value of an
    update is brought near 1, so directions with small gradients learn as fast as those with large ones. Scaled by
    0.2 sqrt(max(rows, columns)) (Liu et al. 2025, eq. 4) the update's root mean square is that of an Adam update,
    and one learning rate serves both. Parameter groups with "matrices" false learn by Adam; see `muon`.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        matrices: bool = True,
    ):
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "matrices": matrices}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step on the gradients at hand; parameters without one stay."""
        for group in self.param_groups:
            if parameters := [parameter for parameter in group["params"] if parameter.grad is not None]:
                (self._muon if group["matrices"] else self._adam)(parameters, group)

    def _muon(self, parameters: list[Tensor], group: dict) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters]
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov
        ahead = [each.movedim(1, -1) for each in ahead]  # as they lie in memory; a matrix's columns may be in any order
        by_shape: dict[tuple[int, int], list[int]] = {}  # matrices of one shape are made orthogonal together
        for i, each in enumerate(ahead):
            by_shape.setdefault((len(each), each[0].numel()), []).append(i)
        for shape, indices in by_shape.items():
            updates = orthogonalise(torch.stack([ahead[i].flatten(1) for i in indices]))
            updates = updates.mul_(group["lr"] * (-0.2 * max(shape) ** 0.5))
            for i, update in zip(indices, updates, strict=True):
                ahead[i] = update.view(ahead[i].shape).movedim(-1, 1)
        torch._foreach_add_(parameters, ahead)

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
        (beta1, beta2), fixed = group["betas"], {"weight_decay": 0.0, "amsgrad": False, "maximize": False}
        adam(
            parameters, gradients, means, squares, [], steps, fused=True, lr=group["lr"], beta1=beta1, beta2=beta2,
            eps=group["eps"], **fixed,
        )  # fmt: skip


def muon(
    network: nn.Module, rate: float, betas: tuple[float, float] = (0.9, 0.99), by_adam: Iterable[nn.Module] = ()
) -> Muon:
    """Muon for the weights of linear layers and convolutions, but those of `by_adam`; Adam for all other parameters.

    Input and output layers and embeddings usually learn by Adam (Jordan et al. 2024).
    """
    excluded = {id(parameter) for module in by_adam for parameter in module.parameters()}
    layers = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    matrices = [layer.weight for layer in layers if id(layer.weight) not in excluded]
    chosen = {id(weight) for weight in matrices}
    others = [parameter for parameter in network.parameters() if id(parameter) not in chosen]
    return Muon([{"params": matrices}, {"params": others, "matrices": False}], rate, betas=betas)


def update(loss: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer, clip: float = math.inf) -> Tensor:
    """One step of `network` alone down the gradient of `loss`, averaged over all processes; the gradient's norm.

    `clip`: the largest norm that the step is taken with.
    """
    optimizer.zero_grad()
    # `backward` with inputs stores each gradient in its weight's memory layout; fused optimisers misread any other.
    loss.backward(inputs=list(network.parameters()))
    compute.average_gradients(network)
    norm = nn.utils.clip_grad_norm_(network.parameters(), clip) if math.isfinite(clip) else loss.new_zeros(())
    optimizer.step()
    return norm


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices [B, M, N] with their singular values brought into 0.68 to 1.21, float32.

    Those below 1/500 of the matrix's norm grow by a factor of 485 at most. A quintic
    Newton-Schulz iteration, with the coefficients of Jordan et al. 2024.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # the smaller side decides the size of the products
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class MovingAverage(nn.Module):
    """The exponential moving average of a network's weights, in `module`, without a bias to where it began.

    After n updates the newest weights count 9 / (10 + n), at least 1 - `decay`; the first ones are taken as they are.
    The count stays on the host: that of PyTorch's `AveragedModel` is copied to the GPU for every weight in every step,
    which waits for the GPU each time.
    """

    def __init__(self, network: nn.Module, decay: float):
        super().__init__()
        self.module, self.decay, self.updates = deepcopy(network).eval(), decay, 0

    @torch.no_grad()
    def update_parameters(self, network: nn.Module) -> None:
        """Follow the network's weights by one step; its buffers are copied."""
        share = max(9 / (10 + self.updates), 1 - self.decay) if self.updates else 1.0
        torch._foreach_lerp_(list(self.module.parameters()), list(network.parameters()), share)
        if buffers := list(self.module.buffers()):
            torch._foreach_copy_(buffers, list(network.buffers()))
        self.updates += 1

    def get_extra_state(self) -> int:
        return self.updates

    def set_extra_state(self, updates: int) -> None:
        self.updates = updates


def cosine(step: int, total: int, warm_up: int = WARM_UP) -> float:
    """Share of the peak learning rate at step `step` of `total`: linear warm-up, and half a cosine from 1 to 2 %."""
    return min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / total)))


def constant_then_linear(step: int, total: int, warm_up: float, fall: float) -> float:
    """Share of the peak learning rate at step `step` of `total`: linear warm-up, 1, and linear down to 2 %.

    `fall`: the share of the steps, at the end, in which it falls.
    """
    return min(1.0, (step + 1) / warm_up) * min(1.0, 0.02 + 0.98 * (1 - step / total) / fall)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all of the optimiser's parameters this learning rate, in a tensor on their device."""
    for group in optimizer.param_groups:
        if not isinstance(group["lr"], Tensor):  # as it was made
            group["lr"] = torch.zeros((), device=group["params"][0].device)
        group["lr"].fill_(rate)
