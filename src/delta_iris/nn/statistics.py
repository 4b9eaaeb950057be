"""Means over the entries that count, equal on any number of processes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from delta_iris.distributed import world_size

__all__ = ["Average", "masked_mean", "normalized"]


class Average(NamedTuple):
    """A sum, and of how many: what batches and processes add up before they divide. Both are scalar float tensors."""

    total: Tensor
    number: Tensor

    @staticmethod
    def of(values: Tensor, mask: Tensor) -> Average:
        """Of `values` where `mask`, of the same shape, is true."""
        return Average(torch.where(mask, values.float(), 0.0).sum(), mask.sum().float())

    def __add__(self, other: Average) -> Average:  # type: ignore[override]
        return Average(self.total + other.total, self.number + other.number)


def masked_mean(values: Tensor, mask: Tensor, whole: Tensor | None = None) -> Tensor:
    """Mean of `values` where `mask` is true, zero where it is true nowhere.

    Where `values` are a part of a batch, `whole` is the mask of all of it: the results of the parts then add up to the
    mean over the batch.

    With several processes the denominator is the *average* count over them, so that averaging their results (and
    their gradients, as data parallelism does) gives the mean over all their entries together: two ranks equal one.

    Args:
        values: (…) floats; what stands where `mask` is false is never read into the sum.
        mask: (…) booleans of the same shape.
        whole: booleans, the mask of the whole batch; `mask` itself by default.
    """
    count = (mask if whole is None else whole).sum().to(torch.float32)
    if world_size() > 1:
        dist.all_reduce(count)
        count = count / world_size()
    total = torch.where(mask, values.float(), 0.0).sum()
    # The count may be a fraction below one (one entry on two ranks), so an empty mask cannot be met by a clamp to 1.
    return total / torch.where(count > 0, count, 1.0)


def normalized(values: Tensor, whole: Tensor, mask: Tensor) -> Tensor:
    """`values` in terms of mean and standard deviation of a whole batch, over all processes.

    Args:
        values: (…) floats without gradient, the batch or a part of it.
        whole: floats, the whole batch of this process.
        mask: booleans of the shape of `whole`, what of it counts.
    """
    mean = _mean(whole, mask)
    deviation = _mean((whole - mean).square(), mask).sqrt()
    return (values - mean) / (deviation + 1e-5)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over all processes, the same on each (`masked_mean` gives what is yet to be averaged over them)."""
    sums = torch.stack(Average.of(values, mask))
    if world_size() > 1:
        dist.all_reduce(sums)
    return sums[0] / sums[1].clamp(min=1)
