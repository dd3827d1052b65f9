"""What may last.pth hold? Where a run is, in typed fields with ranges; and what its parts hold has to fit them."""

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from runtime import checkpoint
from runtime.schema import Schema

Count = Annotated[int, Field(ge=0, le=1_000_000_000)]


class Row(Schema, extra="allow"):
    """An epoch's row of metrics.csv."""

    __pydantic_extra__: dict[str, str | int | Annotated[float, Field(allow_inf_nan=True)]]

    stage: str
    epoch: Count


class State(Schema):
    """Everything that a run goes on from, see `training.run.Stage`."""

    kind: str
    stage: str
    epoch: Count
    step: Count
    best: float | None
    rows: list[Row]
    sums: dict[str, Tensor]
    parts: dict[str, dict[str, Any]]
    rng: Tensor
    cuda_rng: Tensor | None


def restore(part: Any, saved: dict[str, Any]) -> None:
    """Fill a network or an optimiser with what its `state_dict` gave. Raises one of `MISFITS` for another's.

    What an optimiser is set to comes from the run's settings, and not from the file, but for the learning rate that it
    had come to.
    """
    if not isinstance(part, torch.optim.Optimizer):
        checkpoint.check_numbers(_tensors(saved), "the state", largest=math.inf)
        part.load_state_dict(saved)
        return
    own = part.state_dict()["param_groups"]
    parameters = [parameter for group in part.param_groups for parameter in group["params"]]
    for index, values in saved["state"].items():
        tensors = _tensors(values)
        checkpoint.check_numbers(tensors, "the state", largest=math.inf)
        if any(value.ndim and value.shape != parameters[index].shape for value in tensors.values()):
            raise ValueError(f"the state of weight {index} is another's")
    for group, before in zip(own, saved["param_groups"], strict=False):
        if isinstance(rate := before.get("lr"), float) and math.isfinite(rate):
            group["lr"] = rate
    part.load_state_dict({"state": saved["state"], "param_groups": own})


def _tensors(values: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
