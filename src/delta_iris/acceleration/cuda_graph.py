"""CUDA graphs: a function of tensors, launched as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

__all__ = ["Graphed"]

P = ParamSpec("P")
R = TypeVar("R")

WARM_UP = 2
"""Calls before the capture: kernels are compiled and chosen in them, which cannot happen while capturing."""


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: Any


class Graphed(Generic[P, R]):
    """A function as a CUDA graph, captured at its first call (with tensors of the same shapes); then a call is one
    launch instead of thousands.

    It computes in memory that stays where it is: what it returns is overwritten by the next call, and what it reads
    besides its arguments (weights, buffers) must be changed in place. Random numbers are drawn from PyTorch's
    generator, the same as without the graph.

    Args:
        function: of tensors (nested in tuples); it must not wait for the device, and its control flow must not depend
            on what tensors hold.
        changes: gives the tensors, besides gradients, that the function changes: they are put back after the capture.
        pool: memory shared with other graphs, of which only one runs at a time.
    """

    def __init__(self, function: Callable[P, R], changes: Callable[[], Iterable[Tensor]], pool: Any) -> None:
        self._function, self._changes, self._pool = function, changes, pool
        self._captured: dict[Any, _Captured] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function; its result is valid until the next call."""
        given, spec = tree_flatten((args, kwargs))
        key = (spec, *(tensor.shape for tensor in given))
        captured = self._captured.get(key)
        if captured is None:
            captured = self._captured[key] = self._capture(given, spec)
        for tensor, value in zip(captured.inputs, given, strict=True):
            tensor.copy_(value, non_blocking=True)
        captured.graph.replay()
        return captured.outputs

    def forget(self) -> None:
        """Take the graphs away, whoever may still hold this; a later call captures anew."""
        for captured in self._captured.values():
            captured.graph.reset()
        self._captured.clear()

    def _capture(self, given: list[Tensor], spec: TreeSpec) -> _Captured:
        inputs = [torch.empty_like(tensor).copy_(tensor) for tensor in given]
        args, kwargs = tree_unflatten(inputs, spec)
        changed = list(self._changes())
        before, random = [tensor.clone() for tensor in changed], torch.cuda.get_rng_state()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._function(*args, **kwargs)
        torch.cuda.current_stream().wait_stream(stream)
        # Weights that autocast has cast so far would be read by the graph for ever.
        torch.clear_autocast_cache()
        graph = torch.cuda.CUDAGraph()
        # Other threads (that pin batches) may go on talking to the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = self._function(*args, **kwargs)
        torch.clear_autocast_cache()
        for tensor, value in zip(changed, before, strict=True):
            tensor.copy_(value)
        torch.cuda.set_rng_state(random)
        return _Captured(graph, inputs, outputs)
