"""Run independent work on side CUDA streams, because one small kernel does not fill a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch

from delta_iris.acceleration.compile import is_compiling

__all__ = ["run_on_side_stream"]

R = TypeVar("R")


def run_on_side_stream(function: Callable[[], R], device: torch.device, stream_index: int) -> Callable[[], R]:
    """Start a function on a side CUDA stream and return a callable that waits for its result.

    Side streams are used inside `compiled_regions()` on CUDA devices. Elsewhere the function itself is returned, so
    that it runs when the result is requested. The tensors that it reads must not change until then.

    Args:
        function: function to run.
        device: device on which the function computes.
        stream_index: index of the side stream; functions on the same stream run one after the other.

    Returns:
        A callable that waits for the result and returns it. Call it once.
    """
    if not (is_compiling() and device.type == "cuda"):
        return function
    stream = _side_stream(device, stream_index)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        result = function()

    def wait() -> R:
        torch.cuda.current_stream(device).wait_stream(stream)
        return result

    return wait


@functools.cache
def _side_stream(device: torch.device, stream_index: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
