"""Masked means and normalization over a batch that may be split into micro-batches and across processes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from delta_iris.distributed import world_size

__all__ = ["WeightedMean", "code_entropy", "masked_mean", "normalize_advantages"]


class WeightedMean(NamedTuple):
    """A mean stored as a sum and a weight, so that means of batches and processes can be added exactly.

    The mean is `total / weight`.

    Attributes:
        total: scalar float tensor, sum of the values.
        weight: scalar float tensor, number of the values.
    """

    total: Tensor
    weight: Tensor

    @staticmethod
    def of(values: Tensor, mask: Tensor) -> WeightedMean:
        """Return the mean of the values where a mask is true.

        Args:
            values: (…) numbers.
            mask: (…) booleans.
        """
        return WeightedMean(torch.where(mask, values.float(), 0.0).sum(), mask.sum().float())

    def __add__(self, other: WeightedMean) -> WeightedMean:  # type: ignore[override]
        """Return the mean over the values of both."""
        return WeightedMean(self.total + other.total, self.weight + other.weight)


def masked_mean(values: Tensor, mask: Tensor, batch_mask: Tensor | None = None) -> Tensor:
    """Return the mean of the values where a mask is true, or zero if it is true nowhere.

    For a micro-batch, `batch_mask` is the mask of the whole batch: the results of all micro-batches then add up to the
    mean over the batch.

    With several processes the denominator is the *average* count over them. Averaging the results, or their gradients
    as data parallelism does, then gives the mean over the entries of all processes.

    Args:
        values: (…) floats; values where `mask` is false are ignored, even if they are not finite.
        mask: (…) booleans.
        batch_mask: booleans of any shape, the mask of the whole batch; `mask` by default.

    Returns:
        Scalar float32 tensor.
    """
    count = (mask if batch_mask is None else batch_mask).sum().to(torch.float32)
    if world_size() > 1:
        dist.all_reduce(count)
        count = count / world_size()
    total = torch.where(mask, values.float(), 0.0).sum()
    # An average count may be a fraction below one (one entry on two ranks), so clamping it to 1 would be wrong.
    return total / torch.where(count > 0, count, 1.0)


def normalize_advantages(advantages: Tensor, batch_advantages: Tensor, batch_mask: Tensor) -> Tensor:
    """Normalize advantages by the mean and standard deviation of the whole batch, over all processes.

    Args:
        advantages: (…) floats without gradient, the batch or a micro-batch of it.
        batch_advantages: floats, the whole batch of this process.
        batch_mask: booleans of the shape of `batch_advantages`; the statistics ignore entries where it is false.

    Returns:
        (…) normalized advantages.
    """
    mean = _global_mean(batch_advantages, batch_mask)
    deviation = _global_mean((batch_advantages - mean).square(), batch_mask).sqrt()
    return (advantages - mean) / (deviation + 1e-5)


def _global_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the masked mean over all processes, equal on each; `masked_mean` has to be averaged over them first."""
    sums = torch.stack(WeightedMean.of(values, mask))
    if world_size() > 1:
        dist.all_reduce(sums)
    return sums[0] / sums[1].clamp(min=1)


def code_entropy(counts: Tensor) -> Tensor:
    """Entropy in bits of the frequencies given by `counts` (N,)."""
    frequencies = counts / counts.sum().clamp(min=1)
    return -torch.xlogy(frequencies, frequencies).sum() / math.log(2)
