"""Discrete regression: scalars as two-hot distributions over symlog-spaced bins (DreamerV3; paper §2.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delta_iris.acceleration.compile import compile_region

__all__ = ["SymexpTwoHot", "SymlogTwoHot", "UnitGaussian", "symexp", "symlog"]


def symlog(x: Tensor) -> Tensor:
    """Return sign(x) · ln(1 + |x|), elementwise."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """Return sign(x) · (exp|x| − 1), elementwise, the inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


class SymlogTwoHot(nn.Module):
    """Encodes scalars as distributions over bins evenly spaced on symlog [−limit, limit], and decodes logits.

    The two-hot distribution of a scalar has the scalar itself as its mean, as in the final version of DreamerV3. The
    prediction learned for a random scalar is then its expectation. Interpolating in symlog space instead would
    underestimate it: 3.5 for a return that is 1 or 9 with equal probability.

    Scalars outside the range are encoded as the outermost bin.

    Args:
        num_bins: number of bins, at least 2.
        limit: symlog of the outermost bin.
        symlog_mean: interpolate in symlog space all the same, as the first version of DreamerV3 and the paper do.
    """

    bins: Tensor
    """(num_bins,) float32, the scalar that each bin represents."""

    def __init__(self, num_bins: int = 255, limit: float = 20.0, symlog_mean: bool = False) -> None:
        super().__init__()
        self.num_bins, self.limit, self.symlog_mean = num_bins, limit, symlog_mean
        # These steps are exactly symmetric, and include an exact zero if `num_bins` is odd.
        steps = torch.arange(num_bins) - (num_bins - 1) / 2
        self.register_buffer("bins", symexp(steps * (2 * limit / (num_bins - 1))), persistent=False)

    def two_hot(self, values: Tensor) -> Tensor:
        """Distribute each value over its two nearest bins so that `mean` of the distribution is the value.

        Args:
            values: (…) floats.

        Returns:
            (…, num_bins) probabilities.
        """
        values = values.float().clamp(self.bins[0], self.bins[-1])
        position = (symlog(values) + self.limit) / (2 * self.limit) * (self.num_bins - 1)
        index = position.long().clamp(0, self.num_bins - 2)
        lower, upper = self.bins[index], self.bins[index + 1]
        if self.symlog_mean:
            values, lower, upper = symlog(values), symlog(lower), symlog(upper)
        # If a value is close to a bin, rounding may select the pair of bins on the other side of it: hence the clamp.
        upper_weight = ((values - lower) / (upper - lower)).clamp(0, 1).unsqueeze(-1)
        index = index.unsqueeze(-1)
        probabilities = torch.zeros(*values.shape, self.num_bins, device=values.device)
        probabilities.scatter_(-1, index, 1 - upper_weight)
        return probabilities.scatter_(-1, index + 1, upper_weight)

    def initial_logits(self) -> Tensor:
        """Return (num_bins,) logits for initialization: mean zero, decreasing by 1 for every 0.25 of |symlog|.

        With uniform logits, the mean would be dominated by the outermost bins of more than 10⁸ until training has made
        every one of them unlikely.
        """
        return -4 * symlog(self.bins).abs()

    def cross_entropy(self, logits: Tensor, values: Tensor) -> Tensor:
        """Return the cross-entropy of logits against the two-hot distributions of values, in nats.

        Args:
            logits: (…, num_bins) floats.
            values: (…) target scalars.

        Returns:
            (…) losses.
        """
        return -(self.two_hot(values) * F.log_softmax(logits.float(), dim=-1)).sum(-1)

    @compile_region()
    def mean(self, logits: Tensor) -> Tensor:
        """Decode logits into scalars, the mean of the bins.

        Args:
            logits: (…, num_bins) floats.

        Returns:
            (…) scalars.
        """
        probabilities = logits.float().softmax(-1)
        if self.symlog_mean:
            return symexp((probabilities * symlog(self.bins)).sum(-1))
        return (probabilities * self.bins).sum(-1)


class SymexpTwoHot(SymlogTwoHot):
    """`SymlogTwoHot` whose mean adds bins of opposite sign first, as DreamerV3's does.

    Uniform logits then have a mean of exactly zero, so that heads may start with weights of zero.

    Args:
        num_bins: number of bins, odd.
        limit: symlog of the outermost bin.

    Raises:
        ValueError: if `num_bins` is even.
    """

    def __init__(self, num_bins: int = 255, limit: float = 20.0) -> None:
        if num_bins % 2 == 0:
            raise ValueError(f"num_bins is {num_bins}: it must be odd, so that one bin is zero")
        super().__init__(num_bins, limit)

    @compile_region()
    def mean(self, logits: Tensor) -> Tensor:
        """Decode logits (…, num_bins) into scalars (…), the mean of the bins."""
        probabilities = logits.float().softmax(-1)
        half = self.num_bins // 2
        differences = probabilities[..., half + 1 :] - probabilities[..., :half].flip(-1)
        return (differences * self.bins[half + 1 :]).sum(-1)


class UnitGaussian(nn.Module):
    """Scalars as the means of normal distributions of variance 1, with the interface of `SymlogTwoHot` (DreamerV2).

    Attributes:
        num_bins: outputs that a head needs, 1.
    """

    num_bins = 1

    def cross_entropy(self, outputs: Tensor, values: Tensor) -> Tensor:
        """Return the negative log-likelihood of values (…) under outputs (…, 1), without its constant: (…)."""
        return (outputs.squeeze(-1).float() - values).square() / 2

    def mean(self, outputs: Tensor) -> Tensor:
        """Decode outputs (…, 1) into scalars (…)."""
        return outputs.squeeze(-1).float()
