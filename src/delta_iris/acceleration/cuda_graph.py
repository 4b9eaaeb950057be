"""Capture a function of tensors as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

__all__ = ["CudaGraphed"]

P = ParamSpec("P")
R = TypeVar("R")

WARM_UP = 2
"""Number of calls before the capture. Kernels are compiled and selected in them, which is impossible during it."""


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: Any


class CudaGraphed(Generic[P, R]):
    """A callable that captures a function as a CUDA graph and replays it.

    The first call with tensors of given shapes captures the graph. Every later call with these shapes replays it with
    a single launch instead of thousands.

    The graph works in static memory. The next call overwrites the returned tensors. Weights, buffers and other tensors
    that the function reads apart from its arguments must be modified in place. Random numbers come from PyTorch's CUDA
    generator and are the same as without the graph.

    Args:
        function: function to capture, of tensors nested in tuples or other pytrees. It must not synchronize with the
            host, and its control flow must not depend on tensor values.
        mutated_tensors: returns the tensors, apart from gradients, that the function modifies in place; they are
            restored after each warm-up, and the capture itself computes nothing.
        pool: memory pool (`torch.cuda.graph_pool_handle()`) shared with graphs that never run at the same time.
    """

    def __init__(self, function: Callable[P, R], mutated_tensors: Callable[[], Iterable[Tensor]], pool: Any) -> None:
        self._function, self._mutated_tensors, self._pool = function, mutated_tensors, pool
        self._captured: dict[Any, _Captured] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function; its result is valid until the next call."""
        tensors, spec = tree_flatten((args, kwargs))
        key = (spec, *(tensor.shape for tensor in tensors))
        captured = self._captured.get(key)
        if captured is None:
            captured = self._captured[key] = self._capture(tensors, spec)
        for static_input, tensor in zip(captured.inputs, tensors, strict=True):
            static_input.copy_(tensor, non_blocking=True)
        captured.graph.replay()
        return captured.outputs

    def reset(self) -> None:
        """Free all captured graphs, even while this object is still referenced; the next call captures again."""
        for captured in self._captured.values():
            captured.graph.reset()
        self._captured.clear()

    def _capture(self, tensors: list[Tensor], spec: TreeSpec) -> _Captured:
        inputs = [torch.empty_like(tensor).copy_(tensor) for tensor in tensors]
        args, kwargs = tree_unflatten(inputs, spec)
        mutated = list(self._mutated_tensors())
        saved, rng_state = [tensor.clone() for tensor in mutated], torch.cuda.get_rng_state()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._function(*args, **kwargs)
                # After each: a second step may not fit into a cache that has room for one.
                for tensor, value in zip(mutated, saved, strict=True):
                    tensor.copy_(value)
        torch.cuda.current_stream().wait_stream(stream)
        # Otherwise every replay would read the weights that autocast has cast and cached before the capture.
        torch.clear_autocast_cache()
        graph = torch.cuda.CUDAGraph()
        # "thread_local" lets other threads, such as the one that pins batches, call CUDA during the capture.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = self._function(*args, **kwargs)
        torch.clear_autocast_cache()
        torch.cuda.set_rng_state(rng_state)
        return _Captured(graph, inputs, outputs)
