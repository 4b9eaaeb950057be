"""λ-returns (Sutton & Barto, 2018; as in IRIS)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["lambda_returns"]


def lambda_returns(rewards: Tensor, ends: Tensor, next_values: Tensor, discount: float, lambda_: float) -> Tensor:
    """G_t = r_t + γ (1 − end_t) [(1 − λ) V(x_{t+1}) + λ G_{t+1}], where G_H is V(x_H).

    Args:
        rewards: (B, H) r_t.
        ends: (B, H), 1 where the step ended the episode.
        next_values: (B, H) values of the frames that the steps lead to, V(x_{t+1}).
        discount: γ.
        lambda_: λ.

    Returns:
        (B, H).
    """
    continues = discount * (1 - ends.to(rewards.dtype))
    following = next_values[:, -1]
    returns = []
    for t in reversed(range(rewards.shape[1])):
        following = rewards[:, t] + continues[:, t] * ((1 - lambda_) * next_values[:, t] + lambda_ * following)
        returns.append(following)
    return torch.stack(returns[::-1], dim=1)
