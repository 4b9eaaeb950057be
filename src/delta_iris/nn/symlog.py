"""Discrete regression: scalars as two-hot distributions over symlog-spaced bins (DreamerV3; paper §2.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delta_iris.nn.acceleration import region

__all__ = ["SymlogTwoHot", "symexp", "symlog"]


def symlog(x: Tensor) -> Tensor:
    """sign(x) · ln(1 + |x|), elementwise."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """sign(x) · (exp|x| − 1), the inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


class SymlogTwoHot(nn.Module):
    """Codec between scalars and logits over `num_bins` bins, evenly spaced on symlog [−limit, limit].

    Scalars outside are represented by the outermost bin.
    """

    bins: Tensor

    def __init__(self, num_bins: int = 255, limit: float = 20.0) -> None:
        super().__init__()
        self.num_bins = num_bins
        self.register_buffer("bins", torch.linspace(-limit, limit, num_bins), persistent=False)

    def two_hot(self, values: Tensor) -> Tensor:
        """Spread each value over its two nearest bins so that their mean is its symlog.

        Args:
            values: (…) floats.

        Returns:
            (…, num_bins), non-negative, summing to 1.
        """
        low, high = self.bins[0], self.bins[-1]
        position = (symlog(values.float()).clamp(low, high) - low) / (high - low) * (self.num_bins - 1)
        lower = position.floor().clamp(0, self.num_bins - 2)
        upper_share = (position - lower).unsqueeze(-1)
        index = lower.long()
        spread = torch.zeros(*values.shape, self.num_bins, device=values.device)
        spread.scatter_(-1, index.unsqueeze(-1), 1 - upper_share)
        return spread.scatter_(-1, index.unsqueeze(-1) + 1, upper_share)

    def bell(self, spread: float) -> Tensor:
        """Logits (num_bins,) of a normal distribution around zero, of this standard deviation in symlog."""
        return -(self.bins / spread).square() / 2

    def cross_entropy(self, logits: Tensor, values: Tensor) -> Tensor:
        """Cross-entropy of (…, num_bins) logits against the two-hot of (…) values, elementwise in nats: (…)."""
        return -(self.two_hot(values) * F.log_softmax(logits.float(), dim=-1)).sum(-1)

    @region()
    def mean(self, logits: Tensor) -> Tensor:
        """The scalar that (…, num_bins) logits stand for, symexp of the bins' mean: (…)."""
        return symexp((logits.float().softmax(-1) * self.bins).sum(-1))
