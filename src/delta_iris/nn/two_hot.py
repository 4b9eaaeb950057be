"""Discrete regression: scalars as two-hot distributions over symlog-spaced bins (DreamerV3; paper §2.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delta_iris.acceleration.compile import region

__all__ = ["SymlogTwoHot", "symexp", "symlog"]


def symlog(x: Tensor) -> Tensor:
    """sign(x) · ln(1 + |x|), elementwise."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """sign(x) · (exp|x| − 1), the inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


class SymlogTwoHot(nn.Module):
    """Codec between scalars and logits over `num_bins` bins, evenly spaced on symlog [−limit, limit].

    A scalar is shared out over its two neighbours so that their mean is itself, not that the mean of their symlogs is
    its symlog (as in DreamerV3's last edition): what is learned of scalars that vary then has their mean as its own.
    The other form gives less wherever they vary, a return of 1 or 9 equally likely 3.5.

    Scalars outside are represented by the outermost bin.
    """

    bins: Tensor
    """(num_bins,) float32: the scalars that the bins stand for."""

    def __init__(self, num_bins: int = 255, limit: float = 20.0) -> None:
        super().__init__()
        self.num_bins, self.limit = num_bins, limit
        # Exactly symmetric, with an exact zero where their number is odd.
        steps = torch.arange(num_bins) - (num_bins - 1) / 2
        self.register_buffer("bins", symexp(steps * (2 * limit / (num_bins - 1))), persistent=False)

    def two_hot(self, values: Tensor) -> Tensor:
        """Spread each value over its two nearest bins so that their mean is the value.

        Args:
            values: (…) floats.

        Returns:
            (…, num_bins), non-negative, summing to 1.
        """
        values = values.float().clamp(self.bins[0], self.bins[-1])
        position = (symlog(values) + self.limit) / (2 * self.limit) * (self.num_bins - 1)
        index = position.long().clamp(0, self.num_bins - 2)
        lower, upper = self.bins[index], self.bins[index + 1]
        # Next to a bin, rounding may have chosen the pair on its other side.
        upper_share = ((values - lower) / (upper - lower)).clamp(0, 1).unsqueeze(-1)
        index = index.unsqueeze(-1)
        spread = torch.zeros(*values.shape, self.num_bins, device=values.device)
        spread.scatter_(-1, index, 1 - upper_share)
        return spread.scatter_(-1, index + 1, upper_share)

    def first_logits(self) -> Tensor:
        """Logits (num_bins,) to start from: scalars around zero, each e times less likely for every quarter of symlog.

        Were all bins as likely, the mean would hang on the outermost, of 10⁸ and more, until training had made each of
        them unlikely.
        """
        return -4 * symlog(self.bins).abs()

    def cross_entropy(self, logits: Tensor, values: Tensor) -> Tensor:
        """Cross-entropy of (…, num_bins) logits against the two-hot of (…) values, elementwise in nats: (…)."""
        return -(self.two_hot(values) * F.log_softmax(logits.float(), dim=-1)).sum(-1)

    @region()
    def mean(self, logits: Tensor) -> Tensor:
        """The scalar that (…, num_bins) logits stand for, the mean of the bins: (…)."""
        return (logits.float().softmax(-1) * self.bins).sum(-1)
