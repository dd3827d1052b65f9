"""What Python does between two kernels is not replayed: so nothing of a step may depend on it.

Trainings whose steps are recorded equal those whose steps are called, to the bit. Without a GPU `Recording` stands for
a CUDA graph: it calls the same operators again, on the same memory and with the numbers that they had.
"""

from itertools import chain, repeat

import pytest
import tiny
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from runtime import compute
from runtime.compute import Compute
from runtime.errors import InputError
from runtime.replay import Replay
from training import augment

CPU = Compute(torch.device("cpu"), bf16=False, graphs=True)
PAINTER = {"model": "rqvae", "painter_slices": str(2 * 16 * tiny.STEPS), "painter_width": "8"}
GIVEN = [
    {"batch_size": "4"},
    {"batch_size": "4", "augment": "off", "optimizer": "muon"},
    PAINTER,
    {"prior": "dcgan"},
    {"prior": "dcgan", "gan": "baseline"},
    {"prior": "pixelcnn"},
    {"prior": "transformer"},
]


class Recording(TorchDispatchMode):
    """The operators that are called meanwhile."""

    def __init__(self):
        super().__init__()
        self.calls, self.replays = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.calls.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for kept, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(kept, Tensor) and kept is not new:
                    kept.copy_(new)


@pytest.fixture
def recordings(monkeypatch):
    """All that are made."""
    made = []

    def record(replay: Replay, arguments: tuple):
        made.append(recording := Recording())
        with recording:  # unlike a CUDA graph's, this one computes
            results = replay.step(*arguments)
        calls = chain([lambda: None], repeat(recording.replay))
        return lambda: next(calls)(), tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, results)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(Replay, "_aside", lambda replay, arguments: replay.step(*arguments))
    monkeypatch.setattr(Replay, "_record", record)
    return made


@pytest.mark.parametrize("given", GIVEN, ids=lambda given: "-".join(given.values()))
def test_a_training_of_replayed_steps_is_the_same(given, recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(compute, "choose", lambda *args: CPU)
    monkeypatch.setattr(augment, "ASPECTS", ())  # one window: few recordings, often replayed
    trainer = tiny.Trainer(tmp_path / "runs", monkeypatch)
    status, replayed = trainer(**given)
    assert status == 0
    assert sum(recording.replays for recording in recordings) >= 2 * tiny.STEPS - 4
    monkeypatch.setattr(Replay, "__call__", lambda replay, *arguments: replay.step(*arguments))
    status, called = trainer(**given)
    assert status == 0
    tiny.assert_same_run(replayed, called)


def test_choices_are_recorded_apart_and_numbers_of_the_host_are_not_replayed(recordings):
    rate, steps = torch.ones(()), [0]

    def step(x: Tensor, negative: bool) -> Tensor:
        steps[0] += 1
        return steps[0] * rate * (-x if negative else x)

    replay = Replay(CPU, step)
    found = []
    for i, negative in enumerate([False, True, False, False, True, False, True]):
        rate.fill_(10**i)
        found.append(replay(torch.tensor(2.0), negative).item())
    # Calls 1 and 2 are the first of their kind, 3 and 5 are recorded, the others replayed.
    assert found == [2, -2 * 2e1, 3 * 2e2, 3 * 2e3, -4 * 2e4, 3 * 2e5, -4 * 2e6]
    assert len(recordings) == 2


@pytest.mark.parametrize("processes", ["1", "2"])
def test_graphs_need_one_process_and_a_gpu(processes, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", processes)
    with pytest.raises(InputError, match="--cuda-graphs needs a GPU and a single process"):
        compute.choose("cpu", graphs=True)
