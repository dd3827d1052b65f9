"""What does last.pth hold? The place of a run in typed fields with ranges, and the state of what it trains."""

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
    """Everything that a run resumes from, see `training.run.Stage`."""

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
    """Load a `state_dict` into a network or an optimiser. Raises one of `MISFITS` when it is that of another one.

    An optimiser keeps its own settings, which are the run's, except for the learning rate.
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
            raise ValueError(f"the optimiser's state of weight {index} has another shape")
    for group, before in zip(own, saved["param_groups"], strict=False):
        if isinstance(rate := before.get("lr"), Tensor) and rate.shape == () and rate.isfinite():
            group["lr"] = rate.to(parameters[0].device)
    part.load_state_dict({"state": saved["state"], "param_groups": own})


def _tensors(values: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
