"""Numerical precision of parts of a model."""

from __future__ import annotations

import torch

__all__ = ["full_precision"]


def full_precision(device: torch.device) -> torch.autocast:
    """Return a context that disables autocast, for computations that need float32.

    Small or accumulating computations use it: the recurrent state, the policy, values and losses.

    Args:
        device: device on which the context's code computes.
    """
    return torch.autocast(device.type, enabled=False)
