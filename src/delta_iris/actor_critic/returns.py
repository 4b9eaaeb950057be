"""λ-returns (Sutton & Barto, 2018; as in IRIS)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["alive_mask", "lambda_returns"]


def alive_mask(terminated: Tensor) -> Tensor:
    """Mark the steps up to and including the first one that ends the episode: (B, H) → (B, H) bool."""
    return (terminated.cumsum(1) - terminated) == 0


def lambda_returns(rewards: Tensor, terminated: Tensor, next_values: Tensor, gamma: float, lambda_: float) -> Tensor:
    """G_t = r_t + γ (1 − end_t) [(1 − λ) V(x_{t+1}) + λ G_{t+1}], where G_H is V(x_H).

    Args:
        rewards: (B, H) r_t.
        terminated: (B, H), 1 where the step ended the episode.
        next_values: (B, H) values of the observations that the steps lead to, V(x_{t+1}).
        gamma: γ.
        lambda_: λ.

    Returns:
        (B, H).
    """
    continues = gamma * (1 - terminated.to(rewards.dtype))
    following = next_values[:, -1]
    returns = []
    for t in reversed(range(rewards.shape[1])):
        following = rewards[:, t] + continues[:, t] * ((1 - lambda_) * next_values[:, t] + lambda_ * following)
        returns.append(following)
    return torch.stack(returns[::-1], dim=1)
