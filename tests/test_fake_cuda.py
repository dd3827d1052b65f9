"""Training steps never wait for a GPU: walked without one, on PyTorch's fake tensors that claim to be on `cuda`.

Fake tensors know shape, type and device, so a step over them fails where two devices meet and where the size of a
result depends on the data; `NoWaiting` finds copies that wait. Gradients can't be computed without a GPU; here they are
zeros, so that clipping and the optimiser are walked, too.
"""

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
from inference.loading import AUTOENCODERS
from modules import Autoencoder
from networks.painter import Painter
from networks.pixelcnn import PixelCNN
from networks.transformer import Neighbours, Transformer
from runtime.compute import Compute
from training import augment, likelihood, painter
from training.codes import CodeBatch
from training.run import Stage
from training.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("gpu")
ON = Compute(torch.device("cuda"), bf16=True)
SIZE, BOX, BATCH = (64, 64), Box(16, 0, 32, 48), 4


class WaitingError(AssertionError):
    """A tensor was copied from the GPU, or to it by a copy that waits; or random numbers were drawn on the host."""


class NoWaiting(TorchDispatchMode):
    """Raises WaitingError where a tensor is copied from `cuda`, or to it without `non_blocking`, or drawn on a CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given, made = (
            {leaf.device.type for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}
            for values in ((args, kwargs), out)
        )
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        waits = copies and "cpu" in given and not (kwargs.get("non_blocking") or args[2:] == (True,))
        drawn = torch.Tag.nondeterministic_seeded in func.tags and "cpu" in made
        if ("cuda" in given and "cpu" in made) or ("cuda" in made and waits) or drawn:
            raise WaitingError(str(func))
        return out


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that computes nothing."""

    def to(module: nn.Module, device: torch.device, **_: object) -> nn.Module:
        for part in module.modules():  # PyTorch can't exchange the data of real parameters for fake ones
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(parameter.detach().to(device))
            for name, buffer in part._buffers.items():
                part._buffers[name] = buffer.to(device)
        return module

    def backward(loss: Tensor, inputs: list[nn.Parameter]) -> None:
        assert loss.requires_grad
        assert loss.shape == ()
        for parameter in inputs:
            parameter.grad = torch.zeros_like(parameter)

    def deepcopy(tensor: Tensor, memo: dict) -> Tensor:  # PyTorch's copies the memory, of which there is none
        copy = nn.Parameter(tensor.detach().clone()) if isinstance(tensor, nn.Parameter) else tensor.clone()
        return memo.setdefault(id(tensor), copy)

    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)
    monkeypatch.setattr(nn.Module, "to", to)
    monkeypatch.setattr(FakeTensor, "__deepcopy__", deepcopy, raising=False)
    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", lambda outputs, inputs, **_: (torch.zeros_like(inputs),))
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
        (lambda x: torch.rand(BATCH), WaitingError),
        (lambda x: x + torch.zeros(BATCH), FakeTensorDeviceMismatchError),
        (lambda x: x.sum().item(), DataDependentOutputException),
        (lambda x: x[x > 0], DynamicOutputShapeException),
    ],
    ids=["cpu", "to cuda", "a list to cuda", "drawn on the host", "two devices", "item", "masked"],
)
def test_what_would_halt_a_gpu_is_found(call, error):
    with pytest.raises(error), NoWaiting():
        call(torch.zeros(BATCH, device="cuda"))


class Unsaved:
    """A run that was just begun, in a process that writes nothing."""

    state, main = None, False


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoder_step(name):
    model = autoencoder(name).train()
    optimizer = train.make_optimizer(model, TrainSettings(model=name), ON)
    stage = Stage(Unsaved, "autoencoder", 1, None, {}, "SSIM")
    for step in range(4):
        model.bypass_quantizers(step == 0)
        with NoWaiting():
            images = augment.augment(pictures(), BOX, (32, 48) if step % 2 else None)
            num_codes = train.draw_num_codes(BATCH, model.depth, ON.device)
            stage.add(**train.autoencoder_step(model, optimizer, images, num_codes, train.LOSSES["l1+ssim"], ON))
    assert stage.sums.device.type == "cuda"


@pytest.mark.parametrize("student", [False, True])
def test_painter_step(student):
    model = autoencoder("rqvae")
    codec, dim = Codec(model, {"box": BOX, "size": SIZE}, ON), model.quantizer.dim
    network, teacher = (Painter(dim, width=8, blocks=1).to(ON.device) for _ in range(2))
    optimizer = painter.make_optimizer(network, 1e-3)
    for _ in range(2):
        with NoWaiting():
            batch = painter.painter_batch(codec, 0.1, *painter.shift_and_mirror(pictures(), BOX))
            if student:
                start, end, *_ = painter.teacher_path(teacher, network.steps, batch, ON)
                painter.student_step(network, optimizer, start, end, batch, ON)
            else:
                painter.teacher_step(network, optimizer, batch, ON)


@pytest.mark.parametrize("network", train.GAN_RECIPES)
def test_gan_step(network):
    model, recipe, grid = autoencoder("rqvae"), train.GAN_RECIPES[network], (4, 6)
    codec = Codec(model, {"box": BOX, "size": SIZE}, ON)
    prior = train.GANS[network](model, grid, model.quantizer.dim, 8, 1, network=network, width=16).to(ON.device)
    discriminator = prior.make_discriminator().to(ON.device)
    optimizers = [torch.optim.Adam(each.parameters(), 1e-3, fused=True) for each in (discriminator, prior.generator)]
    levels, gamma = torch.zeros(BATCH, dtype=torch.long, device="cuda"), torch.ones((), device="cuda")
    for _ in range(2):
        with NoWaiting():
            variation = augment.Variation.draw(BATCH, recipe.augmented, ON.device)
            real = prior.normalise(train.latents_of(recipe, codec, variation.apply(pictures(), BOX)))
            conditioning = levels, variation.augmented.flatten(), torch.zeros(BATCH, 0, device="cuda")
            train.gan_step(prior.generator, discriminator, optimizers, real, conditioning, recipe.loss, gamma, ON)


@pytest.mark.parametrize("name", likelihood.RECIPES)
def test_likelihood_step(name):
    recipe, codes = likelihood.RECIPES[name], torch.zeros(BATCH, 3, 4, 6, dtype=torch.long, device="cuda")
    small = {"width": 24, "layers": 2}
    prior = PixelCNN([(4, 6)], [16], 8, **small) if name == "pixelcnn" else Transformer((4, 6), [16], 8, 8, **small)
    optimizer, levels = recipe.optimizer(prior.to(ON.device), 1e-3, ON), codes[:, 0, 0, 0]
    neighbours, unasked = Neighbours([codes[:, 1:]], codes[:, 1:, 0, 0]), torch.zeros(BATCH, 0, device="cuda")
    batch = CodeBatch([codes[:, 0]], levels, levels > 0, unasked, neighbours)
    for _ in range(2):
        with NoWaiting():
            likelihood.likelihood_step(prior, optimizer, batch, recipe.conditional, ON)
