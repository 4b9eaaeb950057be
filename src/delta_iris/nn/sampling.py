"""Sampling from categorical distributions on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from delta_iris.acceleration.compile import compile_region

__all__ = ["categorical_from_uniform", "mixed_log_probs", "one_hot", "sample_categorical"]


def sample_categorical(logits: Tensor) -> Tensor:
    """Sample indices from categorical distributions, without synchronizing with the host.

    Uses the Gumbel-max trick, because `torch.multinomial` checks its argument on the host. The noise is drawn outside
    the compiled region, because compiled code has a random number generator of its own.

    Args:
        logits: (…, N) unnormalized log-probabilities.

    Returns:
        (…) int64 indices.
    """
    return _gumbel_argmax(logits, torch.empty_like(logits, dtype=torch.float32).exponential_())


@compile_region(dynamic=True)
def _gumbel_argmax(logits: Tensor, exponential_noise: Tensor) -> Tensor:
    return (logits.float() - exponential_noise.log()).argmax(-1)


def categorical_from_uniform(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Sample indices by inverting the cumulative distribution: a function of the random numbers that it is given.

    Args:
        probabilities: (…, N), which sum to 1.
        uniform: (…) random numbers in [0, 1), one for each distribution.

    Returns:
        (…) int64 indices.
    """
    cumulative = probabilities.float().cumsum(-1)
    # Rounding may leave the last sum a little below 1.
    return (cumulative <= uniform.unsqueeze(-1)).sum(-1).clamp(max=probabilities.shape[-1] - 1)


def mixed_log_probs(logits: Tensor, uniform_share: float) -> Tensor:
    """Log-probabilities of categorical distributions that are mixed with the uniform one.

    Args:
        logits: (…, N) unnormalized log-probabilities.
        uniform_share: of the uniform distribution, 0 for none.

    Returns:
        (…, N) float32.
    """
    logits = logits.float()
    if uniform_share == 0:
        return logits.log_softmax(-1)
    return ((1 - uniform_share) * logits.softmax(-1) + uniform_share / logits.shape[-1]).log()


def one_hot(index: Tensor, classes: int) -> Tensor:
    """Indices (…) int64 as (…, classes) float32; `F.one_hot` checks its argument on the host."""
    return (index.unsqueeze(-1) == torch.arange(classes, device=index.device)).float()
