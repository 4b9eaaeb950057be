"""Communication between the processes of data-parallel training."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["average_gradients", "gather_objects", "gather_rows", "is_lost_connection", "world_size"]

LOST_CONNECTION = re.compile("by peer|Broken pipe|remote process exited|failed to recv, got 0 bytes")
"""What the errors of Gloo, NCCL and PyTorch's store say where a process at the other end has ended."""


def world_size() -> int:
    """Return the number of training processes, 1 if `torch.distributed` is not initialized."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_lost_connection(error: RuntimeError) -> bool:
    """Return whether an error was raised because another process of the run has ended.

    Args:
        error: what PyTorch raised.
    """
    return world_size() > 1 and LOST_CONNECTION.search(str(error)) is not None


def average_gradients(parameters: Iterable[Tensor], loss: Tensor) -> Tensor:
    """Average gradients over all processes in place, and the loss with them, in a single all-reduce.

    Args:
        parameters: parameters whose gradients are averaged; those without a gradient are skipped. The same parameters
            must have gradients on all processes.
        loss: () detached loss of this process.

    Returns:
        () the average loss. It is NaN or infinite on all processes if it is on one, and so are the gradients.
    """
    if world_size() == 1:
        return loss
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), loss.to(gradients[0].dtype).view(1)])
    dist.all_reduce(flat)
    flat /= world_size()
    *averages, average_loss = flat.split([*(gradient.numel() for gradient in gradients), 1])
    torch._foreach_copy_(
        gradients, [average.view_as(gradient) for average, gradient in zip(averages, gradients, strict=True)]
    )
    return average_loss.view(())


def gather_objects(local: Any) -> list[Any]:
    """Gather one picklable object from every process, on all processes.

    Args:
        local: object of this process.

    Returns:
        The objects of all processes, in the order of their ranks.
    """
    if world_size() == 1:
        return [local]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, local)
    return gathered


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate tensors of all processes along their first axis, on all processes and without waiting for the device.

    Args:
        rows: (n, …) of this process; all processes must have the same shape.

    Returns:
        (world size · n, …), in the order of the ranks.
    """
    if world_size() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)
