"""What does it compute on? The device, the precision, and the processes of a `torchrun`."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from runtime.errors import InputError
from runtime.wording import counted

Made = TypeVar("Made")


@dataclass(frozen=True)
class Compute:
    """A device, whether to autocast to bf16 there, and this process's place among `world_size`."""

    device: torch.device
    bf16: bool
    rank: int = 0
    world_size: int = 1

    def autocast(self) -> AbstractContextManager:
        """bf16 where it is chosen; the quantiser and the losses stay in fp32 by themselves."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def describe(self) -> str:
        """A line for the log."""
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        else:
            name = f"the CPU, {counted(torch.get_num_threads(), 'thread')}"
        processes = f", {self.world_size} processes" if self.world_size > 1 else ""
        return f"computing on {name} in {'bf16' if self.bf16 else 'fp32'}{processes}"


def choose(device: str = "auto", precision: str = "auto") -> Compute:
    """Resolve the options `--device` and `--precision`, and join the process group under `torchrun`.

    Raises InputError when CUDA is asked for and there is none, or bf16 on a device without it.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch sees no CUDA device; check nvidia-smi, or use --device cpu")
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        torch.cuda.set_device(chosen)
        torch.backends.cudnn.benchmark = True
        # TF32 stays as PyTorch has it, on for convolutions alone: the quantiser's products need all of float32.
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        chosen = torch.device("cpu")
        # Large tensors in huge pages where Linux has them: a training step takes 10 % less. PyTorch looks at this
        # when it first allocates memory on the CPU.
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        has_bf16 = cpu_has_bf16()
    if precision == "bf16" and not has_bf16:
        raise InputError("--precision bf16: this device has no bf16 arithmetic; use --precision fp32")
    if world_size > 1 and not dist.is_initialized():
        alone = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) <= torch.cuda.device_count()  # NCCL wants a GPU a process
        dist.init_process_group("nccl" if chosen.type == "cuda" and alone else "gloo")
    return Compute(chosen, has_bf16 if precision == "auto" else precision == "bf16", rank, world_size)


def from_first(make: Callable[[], Made]) -> Made:
    """What `make()` returns in the first process, in every process; the others don't call it."""
    if not dist.is_initialized():
        return make()
    made = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(made)
    return made[0]


def refuse(problem: str) -> NoReturn:
    """Raises InputError in the first process; the others, each of which would say the same, leave with its status."""
    if dist.is_initialized() and dist.get_rank():
        raise SystemExit(2)
    raise InputError(problem)


def cpu_has_bf16() -> bool:
    """Whether bf16 runs natively; emulated, it is slower than fp32.

    oneDNN, which computes convolutions, can be held to an older processor's instructions by an environment variable.
    """
    flags = torch.cpu.get_capabilities()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    allowed = limit in ("ALL", "DEFAULT") or any(kind in limit for kind in ("BF16", "FP16", "AMX", "AVX10"))
    return allowed and bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("sve_bf16"))


def meeting_place() -> torch.device:
    """Where tensors have to be for all processes to put theirs together."""
    return torch.device("cuda" if dist.is_initialized() and dist.get_backend() == "nccl" else "cpu")


def gather(x: torch.Tensor) -> torch.Tensor:
    """The scalars `x` of all processes, [processes]."""
    if not dist.is_initialized():
        return x[None]
    everyone = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, x)
    return torch.stack(everyone)


def mean(x: torch.Tensor) -> torch.Tensor:
    """Mean of `x` over all processes; `x` itself stays as it is."""
    if not dist.is_initialized():
        return x
    together = x.clone()
    dist.all_reduce(together)
    return together / dist.get_world_size()


def average_gradients(module: nn.Module) -> None:
    """Mean of the gradients over all processes, in one message: the small networks here need no overlap."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    together = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(together)
    together /= dist.get_world_size()
    for gradient, part in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
