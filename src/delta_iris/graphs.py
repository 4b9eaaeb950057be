"""CUDA graphs: a function of tensors, launched as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

__all__ = ["Graphed"]

P = ParamSpec("P")
R = TypeVar("R")

WARM_UP = 2
"""Calls before the capture: kernels are compiled and chosen in them, which cannot happen while capturing."""


class Graphed(Generic[P, R]):
    """A function as a CUDA graph, captured at its first call; then a call is one launch instead of thousands.

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
        self._graph: torch.cuda.CUDAGraph | None = None
        self._spec: TreeSpec
        self._inputs: list[Tensor] = []
        self._outputs: R

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function; its result is valid until the next call.

        Raises:
            ValueError: where shapes are not those of the first call.
        """
        inputs, spec = tree_flatten((args, kwargs))
        if self._graph is None:
            self._capture(inputs, spec)
        elif spec != self._spec or any(a.shape != b.shape for a, b in zip(inputs, self._inputs, strict=True)):
            raise ValueError("a captured function was called with other shapes than at first")
        assert self._graph is not None
        for static, given in zip(self._inputs, inputs, strict=True):
            static.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._outputs

    def _capture(self, inputs: list[Tensor], spec: TreeSpec) -> None:
        self._spec, self._inputs = spec, [torch.empty_like(tensor).copy_(tensor) for tensor in inputs]
        args, kwargs = tree_unflatten(self._inputs, spec)
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
        self._graph = torch.cuda.CUDAGraph()
        # Other threads (that pin batches) may go on talking to the device meanwhile.
        with torch.cuda.graph(self._graph, pool=self._pool, capture_error_mode="thread_local"):
            self._outputs = self._function(*args, **kwargs)
        torch.clear_autocast_cache()
        for tensor, value in zip(changed, before, strict=True):
            tensor.copy_(value)
        torch.cuda.set_rng_state(random)
