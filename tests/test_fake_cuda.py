"""Ready for a GPU without one: every pass on tensors that claim to be on `cuda`, and compute nothing.

PyTorch's fake tensors know shape, type and device. So a pass over them fails where two devices meet, and where a GPU
would have to be waited for: where the size of a result depends on the data, a number is read, or a tensor is copied to
or from the host by a copy that waits. Gradients can't be computed without a GPU; here they are zeros, so that the
optimisers' part is walked, too.
"""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

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
from dataset import Batches, Box, DataSet, Slices
from inference import loading
from inference.codec import Codec
from modules import AUTOENCODERS, DCGAN, Autoencoder
from networks.painter import Painter
from networks.pixelcnn import PixelCNN
from networks.transformer import Neighbours, Transformer
from runtime.compute import Compute
from runtime.errors import InputError
from scoring.metrics import ssim, ssim_map
from training import dcgan, likelihood, painter
from training.augment import Draws, augment, variation, vary
from training.codes import CodeBatches
from training.run import Stage

pytestmark = pytest.mark.usefixtures("gpu")
ON = Compute(torch.device("cuda"), bf16=True)
SIZE, BOX = (64, 64), Box(16, 0, 32, 48)
LEVELS, BATCH = 3, 4


class WaitingError(AssertionError):
    """A tensor went from the GPU to the host, or from the host in a copy that waits: until the GPU has come to it."""


class NoWaiting(TorchDispatchMode):
    """Raises WaitingError where a tensor is copied from `cuda`, or, unless `sending`, to it without `non_blocking`."""

    def __init__(self, sending: bool = False):
        super().__init__()
        self.sending = sending

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given, made = (
            {leaf.device.type for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}
            for values in ((args, kwargs), out)
        )
        copied = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        patient = copied and "cpu" in given and not (kwargs.get("non_blocking") or args[2:] == (True,))
        if ("cuda" in given and "cpu" in made) or ("cuda" in made and patient and not self.sending):
            raise WaitingError(str(func))
        return out


def moved(module: nn.Module, device: torch.device, memory_format: torch.memory_format | None = None) -> nn.Module:
    """`module.to(device)`: PyTorch's own can't exchange the data of real parameters for fake ones."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(parameter.detach().to(device))
        for name, buffer in part._buffers.items():
            part._buffers[name] = buffer.to(device)
    return module


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that computes nothing; bf16 is there, and so is memory."""
    made = []  # every parameter of a module that was moved to it
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**34, 2**34))

    def to(module: nn.Module, *args, **kwargs) -> nn.Module:
        made.extend(moved(module, *args, **kwargs).parameters())
        return module

    def backward(output: Tensor, gradient: Tensor | None = None, inputs: list[Tensor] | None = None) -> None:
        assert output.requires_grad
        assert output.shape == (() if gradient is None else gradient.shape)
        for parameter in inputs or made:
            parameter.grad = torch.zeros_like(parameter)

    def copied(tensor: Tensor, memo: dict) -> Tensor:
        """Of an average's weights; PyTorch's own copies the memory, of which there is none."""
        copy = nn.Parameter(tensor.detach().clone()) if isinstance(tensor, nn.Parameter) else tensor.clone()
        return memo.setdefault(id(tensor), copy)

    monkeypatch.setattr(nn.Module, "to", to)
    monkeypatch.setattr(FakeTensor, "__deepcopy__", copied, raising=False)
    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", lambda outputs, inputs, **how: (torch.zeros_like(inputs),))
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def pictures(n: int = BATCH, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.zeros(n, 1, *size, device="cuda")


def autoencoder(name: str, ema: bool = True) -> Autoencoder:
    small = {"depth": 3, "width": 16, "blocks": 1} if name == "rqvae" else {}
    return AUTOENCODERS[name](codebook_size=16, ema=ema, **small).to(ON.device)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda x: x.cpu(), WaitingError),
        (lambda x: x + x.cpu(), WaitingError),
        (lambda x: torch.zeros(BATCH).to(x.device), WaitingError),
        (lambda x: torch.tensor([1, 2], device=x.device), WaitingError),
        (lambda x: x + torch.zeros(BATCH), FakeTensorDeviceMismatchError),
        (lambda x: x.sum().item(), DataDependentOutputException),
        (lambda x: x[x > 0], DynamicOutputShapeException),
        (lambda x: x.long().bincount(minlength=4), DynamicOutputShapeException),
        (lambda x: x.unique(), DynamicOutputShapeException),
    ],
    ids=["cpu", "mixed with cpu", "to cuda", "a list to cuda", "two devices", "item", "masked", "bincount", "unique"],
)
def test_what_would_halt_a_gpu_is_found(call, error):
    with pytest.raises(error), NoWaiting():
        call(torch.zeros(BATCH, device="cuda"))


# ------------------------------------------------------------------------------------------- training steps


class Unsaved:
    """A run that was just begun, in a process that writes nothing."""

    state, main = None, False


STEPS = [("vqvae", "adam", True), ("vqvae2", "adam", False), ("rqvae", "adam", False), ("rqvae", "muon", True)]


@pytest.mark.parametrize(("name", "optimizer", "ema"), STEPS)
def test_autoencoder_step(name, optimizer, ema, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(Draws, "whole", lambda self, low, high: int(rng.integers(low, high)))  # of the host, not fake
    model = autoencoder(name, ema=ema).train()
    optimizer = train.OPTIMIZERS[optimizer](model.parameters(), 1e-3)
    stage = Stage(Unsaved, "autoencoder", 1, {})
    for step in range(4):
        model.bypass_quantizers(step == 0)
        draw = train.draws_of_step(BATCH, 0, step, ON)
        with NoWaiting():
            images = augment(pictures(), BOX, draw)
            kept = train.draw_kept(model.depth, draw)
            stage.add(**train.autoencoder_step(model, optimizer, images, kept, train.LOSSES["l1+ssim"], ON))
    assert {total.device.type for total in stage.sums.values()} == {"cuda"}


class MadeUpCodes(CodeBatches):
    """Codes of 16 slices that are there already, on the GPU."""

    def __init__(self, model, grids: int):
        shapes = model.grid_shapes(BOX.height, BOX.width)[:grids]
        self.codes = [torch.zeros(16, *shape, dtype=torch.int16, device="cuda") for shape in shapes]
        self.levels = torch.zeros(16, dtype=torch.long, device="cuda")
        self.unknown, self.size, self.on, self.batch_size, self.steps = LEVELS, 16, ON, BATCH, 4
        self.codes_per_image = sum(grid[0].numel() for grid in self.codes)


@pytest.mark.parametrize(("name", "network"), [("vqvae", "baseline"), ("vqvae2", "residual"), ("rqvae", "residual")])
def test_gan_step(name, network, monkeypatch):
    monkeypatch.setattr(DCGAN, "fit", lambda self, latents, levels: None)  # before training, on the host
    model = autoencoder(name)
    images = np.zeros((16, *SIZE), np.uint8)
    slices = Slices(images, [""] * 16, [""] * 16, np.zeros(16, np.int64), [])
    codec = Codec(model, {"box": BOX, "size": SIZE}, ON)
    monkeypatch.setattr(Batches, "_resident", lambda self: torch.zeros(16, *SIZE, dtype=torch.uint8, device="cuda"))
    monkeypatch.setattr(Draws, "whole", lambda self, low, high: low)
    source = dcgan.RECIPES[network].learns_from(codec, slices, MadeUpCodes(model, 2), seed=0)
    learner = dcgan.DCGANLearner(source, model, network, 1e-3, 1.0)
    stage = Stage(Unsaved, "dcgan", 1, learner.parts())
    with NoWaiting(sending=True):  # the epoch's order, at its start
        for step, drawn in enumerate(source.shuffled(1)):
            learner.anneal(step, 4)
            stage.add(**learner.step(drawn))


@pytest.mark.parametrize(("name", "prior"), [("vqvae2", "pixelcnn"), ("rqvae", "pixelcnn"), ("rqvae", "transformer")])
def test_likelihood_step(name, prior, monkeypatch):
    monkeypatch.setattr(likelihood, "PixelCNN", partial(PixelCNN, width=16, layers=2))
    monkeypatch.setattr(likelihood, "Transformer", partial(Transformer, width=24, layers=2, inner=8))
    model, recipe = autoencoder(name), likelihood.RECIPES[prior]
    batches = MadeUpCodes(model, 2)
    learner = likelihood.LikelihoodLearner(recipe, model, batches, recipe.rate)
    stage = Stage(Unsaved, prior, 1, learner.parts())
    for indices in torch.arange(2 * BATCH).split(BATCH):
        with NoWaiting():
            given = batches.alone(indices)
            beside = [grid[:, None].expand(-1, 2, -1, -1) for grid in given.codes]
            given = given._replace(neighbours=Neighbours(beside, given.levels[:, None].expand(-1, 2)))
            stage.add(train_bits=learner.step(given, 1e-3))


def test_varied_pictures():
    draw = train.draws_of_step(BATCH, 0, 0, ON)
    with NoWaiting():
        varied = vary(pictures(), BOX, variation(draw))
    assert varied.device.type == "cuda"


@pytest.mark.parametrize("student", [False, True])
def test_painter_step(student):
    model = autoencoder("rqvae")
    codec, dim = Codec(model, {"box": BOX, "size": SIZE}, ON), model.quantizers[0].dim
    teacher = Painter(dim, width=8, blocks=1, steps=painter.TEACHER_STEPS) if student else None
    learner = painter.PainterLearner(Painter(dim, width=8, blocks=1), codec, 1e-3, teacher)
    stage = Stage(Unsaved, "painter", 1, learner.parts())
    for step in range(2):
        with NoWaiting():
            rate = learner.anneal(step, 2)
            given = learner.given(*painter.moved(pictures(size=SIZE), BOX))
            loss = learner.jump(given) if student else learner.follow(given)
            stage.add(train_loss=loss, learning_rate=rate)


# ------------------------------------------------------------------------------------------- the rest of training


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_codebooks_from_data_and_validation(name, monkeypatch):
    monkeypatch.setattr(Tensor, "item", lambda tensor: 0.5)  # read at the end of all
    model = autoencoder(name)
    with NoWaiting():
        model.initialise_codebooks(pictures())
    images = np.zeros((6, *SIZE), np.uint8)
    slices = Slices(images, [""] * 6, [""] * 6, np.zeros(6, np.int64), [])
    data = DataSet("black slices", Path(), True, {"validate": slices}, "")
    assert train.validation_ssim(model, data, BOX, ON) == 0.5 / 6


def test_scores():
    x, y = pictures(), pictures()
    with NoWaiting():
        assert ssim(x, y).shape == (BATCH,)
        assert ssim_map(x, y).device.type == "cuda"


# ------------------------------------------------------------------------------------------- codes and samples


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_codes(name, monkeypatch):
    monkeypatch.setattr(Tensor, "numpy", lambda tensor: np.zeros(tensor.shape, np.float32), raising=False)
    codec = Codec(autoencoder(name), {"box": BOX, "size": SIZE}, ON)
    codes = codec.encode(np.zeros((BATCH, *SIZE), np.uint8), BOX)
    assert {grid.device.type for grid in codes} == {"cuda"}
    kept = codes[:2] if codec.autoencoder.depth > 1 else codes
    assert codec.decode(kept).shape == (BATCH, *SIZE)
    with NoWaiting():
        snapped = codec.autoencoder.snap(codec.autoencoder.embed([grid.long() for grid in codes]))
    assert [grid.shape for grid in snapped] == [grid.shape for grid in codes]


@pytest.mark.parametrize("network", dcgan.RECIPES)
def test_gan_samples(network):
    prior = DCGAN(autoencoder("rqvae"), (4, 6), 32, LEVELS, codes=2, network=network).eval().to(ON.device)
    with torch.no_grad(), ON.autocast(), NoWaiting(sending=True):  # noise, at the start
        codes = prior.sample(range(BATCH), torch.zeros(BATCH, dtype=torch.long))
    assert [tuple(grid.shape) for grid in codes] == [(BATCH, 4, 6)] * 2
    assert {grid.device.type for grid in codes} == {"cuda"}


@pytest.mark.parametrize("channels", [32, 16])
def test_whether_a_gan_speaks_an_autoencoders_codes(channels):
    arguments = {"grid": [4, 6], "channels": channels, "codes": 1}
    with nullcontext() if channels == 32 else pytest.raises(InputError, match="other codes"):
        loading._check_speaks(arguments, autoencoder("rqvae"), Path("dcgan.pth"))


@pytest.mark.parametrize("make", [PixelCNN, Transformer])
def test_samples_and_bits_of_priors_by_likelihood(make):
    small = {"width": 24, "layers": 2}
    prior = (
        make([(2, 3)] * 2, [16] * 2, LEVELS, **small)
        if make is PixelCNN
        else make((2, 3), [16] * 2, 8, LEVELS, **small)
    )
    prior, levels = prior.eval().to(ON.device), torch.zeros(BATCH, dtype=torch.long)
    with torch.no_grad(), ON.autocast(), NoWaiting(sending=True):  # noise, at the start
        codes = prior.sample(range(BATCH), levels)
        assert prior(codes, levels.to(ON.device)).device.type == "cuda"
    assert [tuple(grid.shape) for grid in codes] == [(BATCH, 2, 3)] * 2
