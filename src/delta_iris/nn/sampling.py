"""Sampling from logits on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from delta_iris.acceleration.compile import region

__all__ = ["sample"]


def sample(logits: Tensor) -> Tensor:
    """Sample (…) indices from (…, N) logits, without waiting for the device.

    Gumbel's trick: `torch.multinomial` would check its argument on the host. The noise is drawn outside of the compiled
    region, which has random numbers of its own.
    """
    return _largest(logits, torch.empty_like(logits, dtype=torch.float32).exponential_())


@region(dynamic=True)
def _largest(logits: Tensor, noise: Tensor) -> Tensor:
    return (logits.float() - noise.log()).argmax(-1)
