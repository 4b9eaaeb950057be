"""The few things processes that train together must tell each other."""

from __future__ import annotations

from typing import Any

from torch import distributed as dist

__all__ = ["gather_objects", "world_size"]


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_objects(own: Any) -> list[Any]:
    """What every process gives, in the order of their ranks, on all of them."""
    if world_size() == 1:
        return [own]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, own)
    return gathered
