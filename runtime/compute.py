"""What does it compute on? The device, the precision, and the processes of a `torchrun`."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from runtime.errors import InputError
from runtime.wording import counted

Value = TypeVar("Value")

LAYERS = nn.Conv2d, nn.ConvTranspose2d, nn.Linear


class Cast(torch.autograd.Function):
    """Tensors in bf16; their gradients in fp32."""

    @staticmethod
    def forward(ctx, *tensors):
        ctx.set_materialize_grads(False)
        cast = [torch.empty_like(each, dtype=torch.bfloat16) for each in tensors]
        torch._foreach_copy_(cast, list(tensors))
        return tuple(cast)

    @staticmethod
    def backward(ctx, *gradients):
        given = [each for each in gradients if each is not None]
        cast = [torch.empty_like(each, dtype=torch.float32) for each in given]
        torch._foreach_copy_(cast, given)
        cast = iter(cast)
        return tuple(each if each is None else next(cast) for each in gradients)


@dataclass(frozen=True)
class Compute:
    """A device, how to compute there, and this process's place among `world_size`."""

    device: torch.device
    bf16: bool  # whether to autocast
    rank: int = 0
    world_size: int = 1
    graphs: bool = False  # whether training steps are recorded as CUDA graphs and replayed

    @contextmanager
    def autocast(self, *networks: nn.Module) -> Iterator[None]:
        """bf16 where it was chosen; quantiser and losses keep themselves in fp32.

        The weights of the networks' layers are cast all at once: else each is a kernel of its own, and so its gradient.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16), ExitStack() as stack:
            for network in networks if self.bf16 else ():
                layers = [module for module in network.modules() if isinstance(module, LAYERS)]
                places = [(layer, name) for layer in layers for name, p in layer._parameters.items() if p is not None]
                weights = [layer._parameters[name] for layer, name in places]
                for (layer, name), weight, cast in zip(places, weights, Cast.apply(*weights), strict=True):
                    layer._parameters[name] = cast
                    stack.callback(layer._parameters.__setitem__, name, weight)
            yield

    @property
    def scoring_batch(self) -> int:
        """Slices at a time where nothing learns: few on a CPU, so that intermediate results stay in its cache."""
        return 256 if self.device.type == "cuda" else 16

    def describe(self) -> str:
        """`computing on NVIDIA H200 in bf16, with CUDA graphs, 2 processes`."""
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        else:
            name = f"the CPU, {counted(torch.get_num_threads(), 'thread')}"
        graphs = ", with CUDA graphs" if self.graphs else ""
        processes = f", {self.world_size} processes" if self.world_size > 1 else ""
        return f"computing on {name} in {'bf16' if self.bf16 else 'fp32'}{graphs}{processes}"


def choose(device: str = "auto", precision: str = "auto", graphs: bool = False) -> Compute:
    """Resolve the options `--device`, `--precision` and `--cuda-graphs`; join the process group under `torchrun`.

    Raises InputError when CUDA is asked for and there is none, bf16 on a device without it, or graphs for a CPU or for
    several processes.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no CUDA device; check nvidia-smi, or use --device cpu")
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        torch.cuda.set_device(chosen)
        torch.backends.cudnn.benchmark = True
        # TF32 stays as PyTorch has it, on for convolutions alone: the quantiser's products need all of float32.
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        chosen = torch.device("cpu")
        has_bf16 = cpu_has_bf16()
    if precision == "bf16" and not has_bf16:
        raise InputError("--precision bf16: this device has no bf16 arithmetic; use --precision fp32")
    if graphs and (chosen.type == "cpu" or world_size > 1):
        raise InputError("--cuda-graphs needs a GPU and a single process: leave it out")
    if world_size > 1 and not dist.is_initialized():
        gpu_each = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) <= torch.cuda.device_count()  # as NCCL needs
        dist.init_process_group("nccl" if chosen.type == "cuda" and gpu_each else "gloo")
    return Compute(chosen, has_bf16 if precision == "auto" else precision == "bf16", rank, world_size, graphs)


def cpu_has_bf16() -> bool:
    """Whether the CPU computes in bf16; emulated, bf16 is slower than fp32.

    The environment variable can hold oneDNN, which computes convolutions, to the instructions of an older processor.
    """
    flags = torch.cpu.get_capabilities()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    allowed = limit in ("ALL", "DEFAULT") or any(kind in limit for kind in ("BF16", "FP16", "AMX", "AVX10"))
    return allowed and bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("sve_bf16"))


def from_first(make: Callable[[], Value]) -> Value:
    """`make()` of the first process, in every process; only the first one calls it."""
    if not dist.is_initialized():
        return make()
    value = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(value)
    return value[0]


def refuse(problem: str) -> NoReturn:
    """Raise InputError in the first process only; the others exit with the same status without repeating it."""
    if dist.is_initialized() and dist.get_rank():
        raise SystemExit(2)
    raise InputError(problem)


def communication_device() -> torch.device:
    """Where tensors must be to be sent to other processes."""
    return torch.device("cuda" if dist.is_initialized() and dist.get_backend() == "nccl" else "cpu")


def mean(x: torch.Tensor) -> torch.Tensor:
    """Mean of `x` over all processes, as a new tensor."""
    if not dist.is_initialized():
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def average_gradients(module: nn.Module) -> None:
    """Replace each gradient by its mean over all processes, in one message: small networks need no overlap."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    means = mean(torch.cat([g.flatten() for g in gradients])).split([g.numel() for g in gradients])
    for gradient, average in zip(gradients, means, strict=True):
        gradient.copy_(average.view_as(gradient))
