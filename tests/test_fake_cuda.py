"""Training steps never wait for a GPU: walked without one, on PyTorch's fake tensors that claim to be on `cuda`.

Fake tensors know shape, type and device, so a step over them fails where two devices meet and where the size of a
result depends on the data; `NoWaiting` finds copies that wait. Gradients can't be computed without a GPU; here they are
zeros, so that clipping and the optimiser are walked, too.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
from dataset import Box
from inference.codec import Codec
from modules import AUTOENCODERS, Autoencoder
from networks.painter import Painter
from runtime.compute import Compute
from training import painter
from training.augment import Draws, augment
from training.run import Stage

pytestmark = pytest.mark.usefixtures("gpu")
ON = Compute(torch.device("cuda"), bf16=True)
SIZE, BOX, BATCH = (64, 64), Box(16, 0, 32, 48), 4


class WaitingError(AssertionError):
    """A tensor was copied from the GPU, or to it by a copy that waits."""


class NoWaiting(TorchDispatchMode):
    """Raises WaitingError where a tensor is copied from `cuda`, or to it without `non_blocking`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given, made = (
            {leaf.device.type for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}
            for values in ((args, kwargs), out)
        )
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        waits = copies and "cpu" in given and not (kwargs.get("non_blocking") or args[2:] == (True,))
        if ("cuda" in given and "cpu" in made) or ("cuda" in made and waits):
            raise WaitingError(str(func))
        return out


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that computes nothing."""
    parameters = []  # of all modules that were moved to it

    def to(module: nn.Module, device: torch.device, **_: object) -> nn.Module:
        for part in module.modules():  # PyTorch can't exchange the data of real parameters for fake ones
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(parameter.detach().to(device))
            for name, buffer in part._buffers.items():
                part._buffers[name] = buffer.to(device)
        parameters.extend(module.parameters())
        return module

    def backward(loss: Tensor) -> None:
        assert loss.requires_grad
        assert loss.shape == ()
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)

    def deepcopy(tensor: Tensor, memo: dict) -> Tensor:  # PyTorch's copies the memory, of which there is none
        copy = nn.Parameter(tensor.detach().clone()) if isinstance(tensor, nn.Parameter) else tensor.clone()
        return memo.setdefault(id(tensor), copy)

    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)
    monkeypatch.setattr(nn.Module, "to", to)
    monkeypatch.setattr(FakeTensor, "__deepcopy__", deepcopy, raising=False)
    monkeypatch.setattr(Tensor, "backward", backward)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def pictures() -> Tensor:
    return torch.zeros(BATCH, 1, *SIZE, device="cuda")


def autoencoder(name: str) -> Autoencoder:
    small = {"depth": 3, "width": 16, "blocks": 1} if name == "rqvae" else {}
    return AUTOENCODERS[name](codebook_size=16, **small).to(ON.device)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda x: x.cpu(), WaitingError),
        (lambda x: torch.zeros(BATCH).to(x.device), WaitingError),
        (lambda x: torch.tensor([1, 2], device=x.device), WaitingError),
        (lambda x: x + torch.zeros(BATCH), FakeTensorDeviceMismatchError),
        (lambda x: x.sum().item(), DataDependentOutputException),
        (lambda x: x[x > 0], DynamicOutputShapeException),
    ],
    ids=["cpu", "to cuda", "a list to cuda", "two devices", "item", "masked"],
)
def test_what_would_halt_a_gpu_is_found(call, error):
    with pytest.raises(error), NoWaiting():
        call(torch.zeros(BATCH, device="cuda"))


class Unsaved:
    """A run that was just begun, in a process that writes nothing."""

    state, main = None, False


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoder_step(name, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(Draws, "whole", lambda self, low, high: int(rng.integers(low, high)))  # of the host, not fake
    model = autoencoder(name).train()
    optimizer = train.OPTIMIZERS[train.BEST_OPTIMIZER[name]](model.parameters(), 1e-3)
    stage = Stage(Unsaved, "autoencoder", 1, {})
    for step in range(4):
        model.bypass_quantizers(step == 0)
        draw = train.draws_of_step(BATCH, 0, step, ON)
        with NoWaiting():
            images = augment(pictures(), BOX, draw)
            kept = train.draw_kept(model.depth, draw)
            stage.add(**train.autoencoder_step(model, optimizer, images, kept, train.LOSSES["l1+ssim"], ON))
    assert {total.device.type for total in stage.sums.values()} == {"cuda"}


@pytest.mark.parametrize("student", [False, True])
def test_painter_step(student):
    model = autoencoder("rqvae")
    codec, dim = Codec(model, {"box": BOX, "size": SIZE}, ON), model.quantizers[0].dim
    teacher = Painter(dim, width=8, blocks=1, steps=4) if student else None
    learner = painter.PainterLearner(Painter(dim, width=8, blocks=1), codec, 1e-3, teacher)
    for step in range(2):
        with NoWaiting():
            learner.anneal(step, 2)
            given = learner.given(*painter.moved(pictures(), BOX))
            learner.jump(given) if student else learner.follow(given)
