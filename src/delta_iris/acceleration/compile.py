"""Regions that run compiled while acceleration is on, and as they are written otherwise."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch

__all__ = ["accelerated", "is_accelerated", "region"]

P = ParamSpec("P")
R = TypeVar("R")

OPTIONS: dict[str, dict[str, str | int | bool | Callable[..., Any]]] = {"inductor": {"comprehensive_padding": False}}
"""Of each backend. With this padding, of strides of more than 1,024 numbers to multiples of 128 bytes, gradients of
masked attention with rotary time were wrong on a GPU: over 153 tokens, heads of 16 numbers (results/throughput.md)."""

_backend: str | None = None


@contextlib.contextmanager
def accelerated(enabled: bool = True, backend: str = "inductor") -> Iterator[None]:
    """While it lasts (and `enabled`), regions run compiled and long sequences use sparse attention.

    Only what trains enters it, always with the same shapes: what is compiled is compiled once. Playing, pictures and
    held-out losses, whose shapes vary, stay outside and run the plain code.

    Args:
        enabled: false to change nothing.
        backend: of `torch.compile`.
    """
    global _backend
    before, _backend = _backend, backend if enabled else _backend
    try:
        yield
    finally:
        _backend = before


def is_accelerated() -> bool:
    """Whether code runs within `accelerated()`."""
    return _backend is not None


def region(*, dynamic: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a function as a region to compile: it must trace as a whole, without graph breaks.

    Layers of the same class and shapes share what is compiled, so a deep network costs the time of one layer. A region
    and a shape take seconds.

    Args:
        dynamic: compile once for all shapes instead of once for each: where they vary and little depends on them.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        compiled: dict[str, Callable[P, R]] = {}

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if _backend is None or torch.compiler.is_compiling():
                return function(*args, **kwargs)
            if _backend not in compiled:
                # As many variants as there are shapes: training and stepping, each group of layers.
                torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
                compiled[_backend] = torch.compile(
                    function, fullgraph=True, dynamic=dynamic, backend=_backend, options=OPTIONS.get(_backend)
                )
            return compiled[_backend](*args, **kwargs)

        return call

    return decorate
