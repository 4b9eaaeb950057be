"""Normalization of returns by a moving range of percentiles (DreamerV3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from delta_iris.distributed import gather_rows

__all__ = ["ReturnNormalizer"]


class ReturnNormalizer(nn.Module):
    """Keeps a moving average of the distance between two percentiles of the returns.

    Args:
        decay: decay of the average, for each batch.
        low: lower percentile, from 0 to 1.
        high: upper percentile.

    Attributes:
        spread: () float32, the average; zero before the first batch.
    """

    spread: Tensor

    def __init__(self, decay: float = 0.99, low: float = 0.05, high: float = 0.95) -> None:
        super().__init__()
        self.decay, self.low, self.high = decay, low, high
        self.register_buffer("spread", torch.zeros(()))

    @property
    def scale(self) -> Tensor:
        """() what advantages are divided by: the average, but at least 1, so that small returns are not blown up."""
        return self.spread.clamp(min=1.0)

    @torch.no_grad()
    def update(self, returns: Tensor, skip: Tensor | None = None) -> None:
        """Move the average by the percentiles of a batch, those of all processes' returns together.

        Args:
            returns: any shape, of this process's part of the batch.
            skip: () bool, true to change nothing; read on the device. None stands for false.
        """
        ordered = gather_rows(returns.float().flatten()).sort().values
        spread = _percentile(ordered, self.high) - _percentile(ordered, self.low)
        moved = torch.lerp(spread, self.spread, self.decay)
        self.spread.copy_(moved if skip is None else torch.where(skip, self.spread, moved))


def _percentile(ordered: Tensor, fraction: float) -> Tensor:
    """A percentile of sorted values (n,), interpolated linearly. `torch.quantile` waits for the device."""
    position = fraction * (len(ordered) - 1)
    lower = int(position)
    return torch.lerp(ordered[lower], ordered[min(lower + 1, len(ordered) - 1)], position - lower)
