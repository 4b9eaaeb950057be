"""Tests of the actor-critic of DreamerV3 against its definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from delta_iris.actor_critic.feature_actor_critic import FeatureActorCritic, Imagined, Replayed
from delta_iris.actor_critic.returns import lambda_returns
from tests.dreamer_helpers import ACTIONS, HORIZON, make_actor_critic

BATCH, FRAMES, WIDTH = 2, 3, 32


def make_batch() -> tuple[Imagined, Replayed]:
    """Trajectories from 2 segments of 3 frames, of which the second frame of the first is an episode's end."""
    generator = torch.Generator().manual_seed(0)
    rows = BATCH * FRAMES
    features = torch.randn(rows, HORIZON + 1, WIDTH, generator=generator)
    terminal = torch.zeros(BATCH, FRAMES, dtype=torch.bool)
    terminal[0, 1] = True
    imagined = Imagined(
        features,
        torch.randint(0, ACTIONS, (rows, HORIZON), generator=generator),
        torch.randn(rows, HORIZON, generator=generator),
        0.9 * torch.rand(rows, HORIZON, generator=generator),
        ~terminal.flatten(),
    )
    rewards = torch.randn(BATCH, FRAMES, generator=generator)
    return imagined, Replayed(features[:, 0].view(BATCH, FRAMES, WIDTH), rewards, terminal, terminal)


def expected_losses(model: FeatureActorCritic, imagined: Imagined, replayed: Replayed) -> tuple[Tensor, Tensor, Tensor]:
    """Actor's, critic's and replay loss, entry by entry."""
    cross_entropy = model.codec.cross_entropy
    values, slow = (model.codec.mean(net(imagined.features)).detach() for net in (model.critic, model.slow_critic))
    base = slow if model.bootstrap == "slow_critic" else values
    actor, critic, starts = torch.zeros(()), torch.zeros(()), []
    for row in range(len(imagined.features)):
        following = base[row, HORIZON]
        returns: list[Tensor] = []
        for t in reversed(range(HORIZON)):
            mixed = (1 - model.lambda_) * base[row, t + 1] + model.lambda_ * following
            following = imagined.rewards[row, t] + imagined.continues[row, t] * mixed
            returns.insert(0, following)
        starts.append(returns[0])
        weight = imagined.alive[row].float()
        for t in range(HORIZON):
            features = imagined.features[row, t]
            logits = model.actor(features)
            probabilities = (1 - model.actor_unimix) * logits.softmax(-1) + model.actor_unimix / ACTIONS
            advantage = (returns[t] - base[row, t]) / max(1.0, float(model.normalizer.spread))
            entropy = -(probabilities * probabilities.log()).sum()
            actor = actor - weight * (
                probabilities[imagined.actions[row, t]].log() * advantage + model.entropy_coef * entropy
            )
            outputs = model.critic(features)
            errors = cross_entropy(outputs, returns[t]) + model.slow_coef * cross_entropy(outputs, slow[row, t])
            critic = critic + weight * errors
            weight = weight * imagined.continues[row, t]
    count = len(imagined.features) * HORIZON
    boot, replay = torch.stack(starts).view(BATCH, FRAMES), torch.zeros(())
    for row in range(BATCH):
        following = boot[row, -1]
        for t in reversed(range(FRAMES - 1)):
            trace = 0.0 if replayed.last[row, t + 1] else model.lambda_
            live = 0.0 if replayed.terminal[row, t + 1] else model.discount
            following = replayed.rewards[row, t + 1] + live * ((1 - trace) * boot[row, t + 1] + trace * following)
            if not replayed.last[row, t]:
                outputs = model.critic(replayed.features[row, t])
                slow_value = model.codec.mean(model.slow_critic(replayed.features[row, t])).detach()
                errors = cross_entropy(outputs, following) + model.slow_coef * cross_entropy(outputs, slow_value)
                replay = replay + errors
    return actor / count, critic / count, replay / (BATCH * (FRAMES - 1))


CASES: list[dict[str, Any]] = [
    {},
    {"bootstrap": "slow_critic", "slow_coef": 0.0, "normalize_returns": False, "replay_coef": 0.0, "actor_unimix": 0.0},
    {"value": "gaussian", "activation": "elu", "norm": False},
]


def make(changes: dict[str, Any], spread: float = 1.0) -> FeatureActorCritic:
    model = make_actor_critic(entropy_coef=0.1, **changes)
    with torch.no_grad():
        model.normalizer.spread.fill_(spread)
        for parameter in model.slow_critic.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("changes", CASES, ids=["v3", "v2", "gaussian"])
def test_losses_follow_their_definitions(changes: dict[str, Any]) -> None:
    # A spread of 3 divides the advantages, but for returns that are not normalized.
    model, (imagined, replayed) = make(changes, spread=1.0 if changes.get("bootstrap") else 3.0), make_batch()
    found = model.loss(imagined, replayed)
    actor, critic, replay = expected_losses(model, imagined, replayed)
    torch.testing.assert_close(found.metrics["actor_loss"], actor.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.metrics["critic_loss"], critic.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.loss, actor + critic + model.replay_coef * replay, rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad(found.loss, list(model.actor.parameters()))
    expected = torch.autograd.grad(actor, list(model.actor.parameters()))
    for one, other in zip(gradients, expected, strict=True):
        # Values are sums over bins of up to 5e8 in float32, so that single advantages differ by about 1e-5.
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_small_returns_are_not_blown_up() -> None:
    batch = make_batch()
    losses = [float(make({}, spread).loss(*batch).metrics["actor_loss"]) for spread in (0.0, 0.5, 1.0, 4.0)]
    assert losses[0] == losses[1] == losses[2] != losses[3]


def test_a_trajectory_from_an_episodes_end_counts_for_nothing() -> None:
    model, (imagined, replayed) = make({"replay_coef": 0.0}), make_batch()
    changed = imagined._replace(rewards=imagined.rewards.clone())
    changed.rewards[1] = 100.0
    assert torch.equal(model.loss(imagined, replayed).loss, model.loss(changed, replayed).loss)


def test_lambda_returns_with_certain_continuation_are_those_without() -> None:
    rewards, values = torch.randn(3, 5), torch.randn(3, 5)
    ended = torch.zeros(3, 5)
    ended[1, 2] = 1
    discounted = lambda_returns(rewards, 1 - 0.9 * (1 - ended), values, 1.0, 0.8)
    torch.testing.assert_close(discounted, lambda_returns(rewards, ended.long(), values, 0.9, 0.8))


def test_actor_and_critic_learn_and_the_slow_critic_does_not() -> None:
    model, (imagined, replayed) = make({}), make_batch()
    model.loss(imagined, replayed).loss.backward()
    assert all(p.grad is None for p in model.slow_critic.parameters())
    assert all(p.grad is not None for net in (model.actor, model.critic) for p in net.parameters())


def test_the_first_policy_is_nearly_uniform_and_the_first_values_are_zero() -> None:
    model = make_actor_critic(critic_output_scale=0.0)
    features = torch.randn(50, WIDTH)
    torch.testing.assert_close(model.log_policy(features).exp(), torch.full((50, ACTIONS), 1 / 3), atol=0.02, rtol=0)
    assert not model.codec.mean(model.critic(features)).any()


def test_actions_follow_the_policy() -> None:
    model = make_actor_critic(actor_output_scale=3.0)
    features = torch.randn(1, WIDTH)
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    actions = model.sample(features.expand(10_000, -1), uniform)
    torch.testing.assert_close(
        actions.bincount(minlength=ACTIONS) / 10_000, model.log_policy(features)[0].exp().detach(), atol=1e-4, rtol=0
    )
    logits, values, _ = model.evaluate(features, model.initial_memory(1))
    assert torch.equal(logits, model.log_policy(features))
    assert torch.equal(values, model.codec.mean(model.critic(features)))
    acted, memory = model.act(features, model.initial_memory(1))
    assert acted.shape == (1,)
    assert [part.shape for part in memory] == [(1, 1, 0)] * 2


# --- the slow critic ---


def weights(model: FeatureActorCritic, name: str) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.get_submodule(name).parameters()])


def move(model: FeatureActorCritic) -> None:
    with torch.no_grad():
        for parameter in model.critic.parameters():
            parameter.add_(1.0)


def test_the_slow_critic_is_a_moving_average() -> None:
    model = make_actor_critic(slow_decay=0.9)
    before = weights(model, "slow_critic")
    move(model)
    model.update_slow_critic(torch.tensor(True))
    assert torch.equal(weights(model, "slow_critic"), before)
    model.update_slow_critic(torch.tensor(False))
    torch.testing.assert_close(weights(model, "slow_critic"), before + 0.1)


def test_the_slow_critic_is_copied_once_in_a_period_of_batches_that_count() -> None:
    model = make_actor_critic(slow_decay=0.0, slow_period=3)
    move(model)
    copied = []
    for skip in (False, False, True, True, False, False, False, False):
        model.update_slow_critic(torch.tensor(skip))
        copied.append(torch.equal(weights(model, "slow_critic"), weights(model, "critic")))
        move(model)
    assert copied == [False, False, False, False, True, False, False, True]


@pytest.mark.parametrize(
    ("name", "value"), [("burn_in", -1), ("horizon", 0), ("slow_period", 0), ("lambda_", 1.1), ("slow_decay", -0.1)]
)
def test_numbers_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        make_actor_critic(**{name: value})
