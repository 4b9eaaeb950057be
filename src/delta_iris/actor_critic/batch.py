"""What the actor-critic learns from: trajectories, then trajectories with targets."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["ActorCriticBatch", "Rollout"]


class Rollout(NamedTuple):
    """B trajectories of H steps, real or imagined, after a burn-in.

    Attributes:
        inputs: (B, burn_in + H + 1, *input_shape) floats. The first after the burn-in is real and acted on; the last
            only bootstraps.
        burn_in_mask: (B, burn_in) bool, false for padding before an episode's start.
        actions: (B, H) int64.
        rewards: (B, H) float32.
        terminated: (B, H) int64, 1 where the step ended the episode.
    """

    inputs: Tensor
    burn_in_mask: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor


class ActorCriticBatch(NamedTuple):
    """A batch for the actor-critic loss: B trajectories with λ-returns and advantages.

    Attributes:
        inputs: (B, H, *input_shape) floats, the observations that were acted on.
        hidden: (B, lstm_size) the LSTM's hidden state before the first of them.
        cell: (B, lstm_size) the LSTM's cell state before the first of them.
        actions: (B, H) int64.
        rewards: (B, H) float32.
        alive: (B, H) bool, false after the first end.
        returns: (B, H) float32, λ-returns.
        advantages: (B, H) float32, λ-returns minus the target network's values.
        log_probs: (B, H) float32, log-probabilities of the actions under the policy that took them, which is the one
            before the first update on this batch; (B, 0) if there is one update only, which does not need them.
    """

    inputs: Tensor
    hidden: Tensor
    cell: Tensor
    actions: Tensor
    rewards: Tensor
    alive: Tensor
    returns: Tensor
    advantages: Tensor
    log_probs: Tensor
