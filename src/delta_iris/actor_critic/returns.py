"""λ-returns (Sutton & Barto, 2018; as in IRIS)."""

from __future__ import annotations

import torch
from torch import Tensor

from delta_iris.acceleration.compile import compile_region

__all__ = ["alive_mask", "lambda_returns", "replay_returns"]


def alive_mask(terminated: Tensor) -> Tensor:
    """Mark the steps up to and including the first one that ends the episode: (B, H) → (B, H) bool."""
    return (terminated.cumsum(1) - terminated) == 0


def lambda_returns(rewards: Tensor, terminated: Tensor, next_values: Tensor, gamma: float, lambda_: float) -> Tensor:
    """G_t = r_t + γ (1 − end_t) [(1 − λ) V(x_{t+1}) + λ G_{t+1}], where G_H is V(x_H).

    Args:
        rewards: (B, H) r_t.
        terminated: (B, H), 1 where the step ended the episode; or the probability that it did.
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


@compile_region()
def replay_returns(
    rewards: Tensor, terminal: Tensor, last: Tensor, bootstrap: Tensor, gamma: float, lambda_: float
) -> Tensor:
    """λ-returns of real frames, bootstrapped by values of the frames themselves (DreamerV3).

    G_t = r_{t+1} + γ (1 − end_{t+1}) [(1 − λ_{t+1}) V(x_{t+1}) + λ_{t+1} G_{t+1}], where λ_t is 0 at an episode's last
    frame, from which no step follows, and G_{T-1} is V(x_{T-1}).

    Args:
        rewards: (B, T) that frames arrived with.
        terminal: (B, T) bool, whether the episode terminated with the frame.
        last: (B, T) bool, whether the frame is the last of its episode.
        bootstrap: (B, T) values V.
        gamma: γ.
        lambda_: λ.

    Returns:
        (B, T − 1); without meaning where `last`.
    """
    live = gamma * (~terminal).to(rewards.dtype)
    trace = lambda_ * (~last).to(rewards.dtype)
    following = bootstrap[:, -1]
    returns = []
    for t in reversed(range(1, rewards.shape[1])):
        future = (1 - trace[:, t]) * bootstrap[:, t] + trace[:, t] * following
        following = rewards[:, t] + live[:, t] * future
        returns.append(following)
    return torch.stack(returns[::-1], dim=1)
