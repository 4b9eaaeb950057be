"""Tests of the policy-gradient objectives against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

from delta_iris.actor_critic.losses import (
    clipped_surrogate,
    mix_uniform,
    policy_entropy,
    reinforce_objective,
    taken_log_probs,
)

CLIP_COEF = 0.2


def log_policy_and_actions() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    log_policy = torch.randn(4, 6, 5, generator=generator).log_softmax(-1)
    return log_policy, torch.randint(0, 5, (4, 6), generator=generator)


def test_log_probabilities_and_entropy_equal_pytorchs() -> None:
    log_policy, actions = log_policy_and_actions()
    expected = Categorical(logits=log_policy)
    torch.testing.assert_close(taken_log_probs(log_policy, actions), expected.log_prob(actions))
    torch.testing.assert_close(policy_entropy(log_policy), expected.entropy())


@pytest.mark.parametrize("epsilon", [0.0, 0.05, 1.0])
def test_an_epsilon_greedy_policy_takes_each_action_with_a_least_probability(epsilon: float) -> None:
    log_policy, _ = log_policy_and_actions()
    log_policy[0, 0] = torch.tensor([0.0, *[-200.0] * 4])  # too rare for float32
    mixed = mix_uniform(log_policy, epsilon, num_actions=5).exp()
    torch.testing.assert_close(mixed.sum(-1), torch.ones(4, 6))
    torch.testing.assert_close(mixed, (1 - epsilon) * log_policy.exp() + epsilon / 5)
    assert (mixed >= epsilon / 5 * (1 - 1e-6)).all()


def test_without_random_actions_a_policy_is_itself() -> None:
    """Also where a probability would be rounded to zero."""
    log_probs = torch.tensor([-1.0, -200.0])
    assert torch.equal(mix_uniform(log_probs, 0.0, num_actions=5), log_probs)


def test_reinforce_gradient_is_the_advantage() -> None:
    log_probs, advantages = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6)
    (gradient,) = torch.autograd.grad(reinforce_objective(log_probs, advantages).sum(), log_probs)
    assert torch.equal(gradient, advantages)


def clipped(ratio: float, advantage: float) -> float:
    """The objective of one action."""
    return min(ratio * advantage, min(max(ratio, 1 - CLIP_COEF), 1 + CLIP_COEF) * advantage)


def test_clipped_surrogate_equals_its_definition() -> None:
    torch.manual_seed(0)
    old_log_probs, advantages = -torch.rand(4, 6), torch.randn(4, 6)
    log_probs = old_log_probs + 0.3 * torch.randn(4, 6)
    objective, metrics = clipped_surrogate(log_probs, old_log_probs, advantages, CLIP_COEF)
    ratios = (log_probs - old_log_probs).exp()
    pairs = zip(ratios.flatten().tolist(), advantages.flatten().tolist(), strict=True)
    expected = torch.tensor([clipped(ratio, advantage) for ratio, advantage in pairs]).view(4, 6)
    torch.testing.assert_close(objective, expected)
    assert torch.equal(metrics["clip_fraction"], ((ratios - 1).abs() > CLIP_COEF).float())
    torch.testing.assert_close(metrics["approx_kl"], ratios - 1 - ratios.log())
    assert (metrics["approx_kl"] >= 0).all()


def test_gradient_vanishes_where_the_ratio_is_clipped() -> None:
    log_probs = torch.tensor([[0.5, -0.5, 0.5, -0.5, 0.1]], requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, -1.0, 1.0, 1.0]])
    objective, metrics = clipped_surrogate(log_probs, torch.zeros(1, 5), advantages, CLIP_COEF)
    (gradient,) = torch.autograd.grad(objective.sum(), log_probs)
    assert (gradient != 0).tolist() == [[False, False, True, True, True]]
    assert metrics["clip_fraction"].tolist() == [[1, 1, 1, 1, 0]]
