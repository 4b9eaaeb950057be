"""Policy-gradient objectives: REINFORCE with a baseline, and PPO's clipped surrogate."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["clipped_surrogate", "mix_uniform", "policy_entropy", "reinforce_objective", "taken_log_probs"]


def taken_log_probs(log_policy: Tensor, actions: Tensor) -> Tensor:
    """Log-probabilities of the actions taken: (B, H, A) and (B, H) → (B, H)."""
    return log_policy.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def mix_uniform(log_probs: Tensor, epsilon: float, num_actions: int) -> Tensor:
    """Log-probabilities of actions under an ε-greedy policy, from those under the policy itself.

    Args:
        log_probs: any shape.
        epsilon: ε, the probability of a uniformly random action.
        num_actions: number of actions A.

    Returns:
        log((1 − ε) p + ε / A), of the same shape.
    """
    return torch.log((1 - epsilon) * log_probs.exp() + epsilon / num_actions) if epsilon else log_probs


def policy_entropy(log_policy: Tensor) -> Tensor:
    """Entropy of the policy in nats: (B, H, A) → (B, H)."""
    return -(log_policy.exp() * log_policy).sum(-1)


def reinforce_objective(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """REINFORCE (Williams, 1992), to be maximized: all (B, H)."""
    return log_probs * advantages


def clipped_surrogate(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_coef: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped surrogate objective (Schulman et al., 2017), to be maximized.

    Args:
        log_probs: (B, H) of the actions taken, under the present policy.
        old_log_probs: (B, H) likewise, under the policy that took them.
        advantages: (B, H), normalized.
        clip_coef: how far the ratio of probabilities may move from 1 before its gradient vanishes.

    Returns:
        the objective (B, H), and for logging (B, H) each: `approx_kl` to the old policy (Schulman's low-variance
        estimate) and `clip_fraction`. Both count actions that only the exploration of the old policy took.
    """
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    objective = torch.minimum(ratio * advantages, clipped * advantages)
    return objective, {
        "approx_kl": (ratio - 1 - log_ratio).detach(),
        "clip_fraction": (clipped != ratio).float(),
    }
