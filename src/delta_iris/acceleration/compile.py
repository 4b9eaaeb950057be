"""Mark functions as regions for `torch.compile` and switch their compilation on and off."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch

__all__ = ["compile_region", "compiled_regions", "is_compiling"]

P = ParamSpec("P")
R = TypeVar("R")

OPTIONS: dict[str, dict[str, str | int | bool | Callable[..., Any]]] = {"inductor": {"comprehensive_padding": False}}
"""Options of `torch.compile` for each backend.

Inductor's comprehensive padding rounds strides longer than 1,024 elements up to multiples of 128 bytes. With it, the
gradients of masked attention with rotary embeddings were wrong on a GPU for sequences of 153 tokens and heads of
dimension 16 (docs/lab_notes/throughput.md).
"""

_backend: str | None = None


@contextlib.contextmanager
def compiled_regions(enabled: bool = True, backend: str = "inductor") -> Iterator[None]:
    """Run regions compiled inside this context, and use sparse attention for long sequences.

    Only training enters this context, because its shapes are fixed and each region is compiled once. Evaluation,
    playing and image logging use varying shapes, so they run the plain code.

    Args:
        enabled: whether to compile; if false, the context changes nothing.
        backend: name of the `torch.compile` backend.
    """
    global _backend
    previous, _backend = _backend, backend if enabled else _backend
    try:
        yield
    finally:
        _backend = previous


def is_compiling() -> bool:
    """Return whether regions run compiled, that is, whether the code runs inside `compiled_regions()`."""
    return _backend is not None


def compile_region(*, dynamic: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that compiles a function inside `compiled_regions()` and runs it unchanged elsewhere.

    The function must trace without graph breaks. Layers of the same class and shapes share the compiled code, so a
    deep network compiles as fast as one layer. Compilation takes seconds for each region and shape. Without gradients,
    a region is compiled once for all batch sizes.

    Args:
        dynamic: compile once for all shapes instead of once for each shape; suits functions whose input shapes vary
            and whose speed depends little on them.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        compiled: dict[str, Callable[P, R]] = {}

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if _backend is None or torch.compiler.is_compiling():
                return function(*args, **kwargs)
            if _backend not in compiled:
                # Training and stepping use different shapes in each group of layers, and each shape is one variant.
                torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
                compiled[_backend] = torch.compile(
                    function, fullgraph=True, dynamic=dynamic, backend=_backend, options=OPTIONS.get(_backend)
                )
            if not torch.is_grad_enabled():
                # Imagination calls a network with one frame a segment, with its burn-in and with whole trajectories.
                _mark_batch_dynamic(args)
            return compiled[_backend](*args, **kwargs)

        return call

    return decorate


def _mark_batch_dynamic(values: Iterable[object]) -> None:
    """Compile once for all sizes of the first dimension of these tensors."""
    for value in values:
        if isinstance(value, torch.Tensor) and value.dim() > 1:
            torch._dynamo.maybe_mark_dynamic(value, 0)
