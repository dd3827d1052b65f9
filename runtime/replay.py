"""How does a GPU repeat a training step without waiting for Python? The step's kernels are recorded as a CUDA graph.

Python launches each of a step's hundreds of kernels in 25 to 45 us, and a GPU needs a few for most of them. A recorded
step is one launch. What it can't repeat is what Python does: numbers that change from step to step have to be tensors
on the GPU, and choices made on the host decide which recording is replayed.

No GPU has run this yet.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from runtime.compute import Compute


class Replay:
    """`step`, a function of tensors and of choices, recorded once for each combination of choices.

    A call's tensors are copied into those of the recording. Everything else in its arguments, and the tensors' shapes,
    decide which recording it is: the first call of each runs `step`, so that its kernels are chosen and its memory is
    there; the second records it. What a call returns is overwritten by the next one of its recording.

    Where `on` has no graphs, `step` is just called.
    """

    def __init__(self, on: Compute, step: Callable[..., Any]):
        self.on, self.step = on, step
        self.recordings: dict[tuple, tuple[list[Tensor], Callable[[], None], Any] | None] = {}
        if on.graphs:
            self.stream, self.pool = torch.cuda.Stream(on.device), torch.cuda.graph_pool_handle()

    def __call__(self, *arguments: Any) -> Any:
        if not self.on.graphs:
            return self.step(*arguments)
        leaves, structure = tree_flatten(arguments)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = tuple((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        if key not in self.recordings:
            self.recordings[key] = None
            return self._aside(arguments)
        if self.recordings[key] is None:
            own = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            replay, results = self._record(tree_unflatten(own, structure))
            self.recordings[key] = [leaf for leaf in own if isinstance(leaf, Tensor)], replay, results
        inputs, replay, results = self.recordings[key]
        for own, given in zip(inputs, tensors, strict=True):
            own.copy_(given)
        replay()
        return results

    def _aside(self, arguments: tuple) -> Any:
        """`step` on the stream that it is recorded on: gradients are added up on the stream of their first step."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            results = self.step(*arguments)
        torch.cuda.current_stream().wait_stream(self.stream)
        return results

    def _record(self, arguments: tuple) -> tuple[Callable[[], None], Any]:
        """What replays `step` on these tensors, and its results; recording computes nothing."""
        graph = torch.cuda.CUDAGraph()
        # Thread-local: other threads may wait for copies meanwhile.
        with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
            results = self.step(*arguments)
        return graph.replay, tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, results)
