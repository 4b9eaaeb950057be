"""Work that does not wait for what comes next, beside it: small kernels alone do not fill a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch

from delta_iris.acceleration.compile import is_accelerated

__all__ = ["beside"]

R = TypeVar("R")


def beside(function: Callable[[], R], device: torch.device, lane: int) -> Callable[[], R]:
    """Begin to compute on a stream of its own, while acceleration is on; otherwise once the result is asked for.

    What it reads must stay as it is until then.

    Args:
        function: to compute.
        device: where it computes.
        lane: functions in the same lane run one after the other.

    Returns:
        waits for the result and gives it; to be called once.
    """
    if not (is_accelerated() and device.type == "cuda"):
        return function
    stream = _stream(device, lane)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        result = function()

    def wait() -> R:
        torch.cuda.current_stream(device).wait_stream(stream)
        return result

    return wait


@functools.cache
def _stream(device: torch.device, lane: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
