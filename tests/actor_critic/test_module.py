"""Tests of the actor-critic: targets, losses, minibatches and the target network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

from delta_iris.actor_critic.batch import ActorCriticBatch
from delta_iris.actor_critic.module import ActorCritic
from delta_iris.actor_critic.returns import lambda_returns
from delta_iris.nn.cnn import CNNConfig
from delta_iris.nn.optim import OptimizerConfig
from tests.actor_critic.actor_critic_helpers import (
    MAKERS,
    PICTURE,
    VECTOR,
    make_rollout,
    make_vector_actor_critic,
    with_head_layers,
)
from tests.helpers import ACTIONS, make_actor_critic

for_pictures_and_vectors = pytest.mark.parametrize(("make", "input_shape"), MAKERS, ids=["picture", "vector"])


def one_end(actor_critic: ActorCritic) -> Tensor:
    """Four trajectories, of which the second ends at its third step."""
    terminated = torch.zeros(4, actor_critic.horizon, dtype=torch.int64)
    terminated[1, 2] = 1
    return terminated


@for_pictures_and_vectors
@pytest.mark.parametrize("update_epochs", [1, 2])
def test_nothing_after_the_first_end_changes_loss_or_gradient(
    make: Callable[..., ActorCritic], input_shape: tuple[int, ...], update_epochs: int
) -> None:
    actor_critic = make(update_epochs=update_epochs)
    terminated = torch.zeros(4, actor_critic.horizon, dtype=torch.int64)
    terminated[:, 1] = 1
    rollout = make_rollout(actor_critic, terminated=terminated, input_shape=input_shape)
    after = actor_critic.burn_in + 2  # the observation that the ending step leads to, which is never acted on
    inputs, actions, rewards, more_ends = (
        x.clone() for x in (rollout.inputs, rollout.actions, rollout.rewards, terminated)
    )
    inputs[:, after:] = torch.rand_like(inputs[:, after:])
    actions[:, 2:] = (actions[:, 2:] + 1) % ACTIONS
    rewards[:, 2:] += 100
    more_ends[:, 3] = 1
    changed = rollout._replace(inputs=inputs, actions=actions, rewards=rewards, terminated=more_ends)
    results = []
    for variant in (rollout, changed):
        actor_critic.zero_grad()
        batch = actor_critic.compute_targets(variant)
        if update_epochs > 1:
            # As if the old policy had been another one, so that ratios after the end are far from 1.
            batch = batch._replace(log_probs=batch.log_probs * 1.1)
        losses = actor_critic.training_step(batch)
        losses["loss"].backward()
        parameters = actor_critic.network.parameters()
        results.append((losses, torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])))
    (losses, gradient), (changed_losses, changed_gradient) = results
    assert losses.keys() == changed_losses.keys()
    for name, value in losses.items():
        assert torch.equal(value, changed_losses[name]), name
    # Zero times a weight may be summed in another order.
    torch.testing.assert_close(gradient, changed_gradient, atol=1e-8, rtol=1e-5)


def test_rewards_before_the_end_change_the_loss(actor_critic: ActorCritic) -> None:
    rollout = make_rollout(actor_critic)
    loss, changed_loss = (
        actor_critic.loss(actor_critic.compute_targets(each)).loss
        for each in (rollout, rollout._replace(rewards=rollout.rewards + 1))
    )
    assert not torch.equal(loss, changed_loss)


@pytest.mark.parametrize("head_layers", [False, True])
@for_pictures_and_vectors
def test_actions_are_sampled_from_the_policy(
    make: Callable[..., ActorCritic], input_shape: tuple[int, ...], head_layers: bool
) -> None:
    actor_critic = with_head_layers(make) if head_layers else make()
    network = actor_critic.network
    torch.manual_seed(0)
    inputs = torch.rand(1, *input_shape).expand(20_000, *input_shape)
    actions, _ = actor_critic.act(inputs, network.initial_memory(20_000))
    expected = network(inputs[:1].unsqueeze(1), network.initial_memory(1))[0].softmax(-1).flatten()
    frequencies = actions.bincount(minlength=ACTIONS) / len(actions)
    # Four standard deviations of a frequency among 20,000 samples.
    torch.testing.assert_close(frequencies, expected.detach(), atol=4 * 0.5 / 20_000**0.5, rtol=0)


@pytest.mark.parametrize("input_shape", [PICTURE, VECTOR])
def test_the_first_policy_is_uniform_and_the_first_values_are_zero(input_shape: tuple[int, ...]) -> None:
    cnn = CNNConfig(base_channels=4, channel_mults=(1, 2), downsample_after=(0, 1), latent_channels=2)
    actor_critic = ActorCritic(input_shape, ACTIONS, lstm_size=16, cnn=cnn)
    for network in (actor_critic.network, actor_critic.target):
        logits, values, _ = network(torch.rand(2, 3, *input_shape), network.initial_memory(2))
        assert logits.eq(0).all()
        # The bins' weights cancel except for rounding.
        assert actor_critic.value_codec.mean(values).abs().max() < 1e-5
        assert values.softmax(-1).max() > 0.1


def test_target_network_follows_the_whole_network() -> None:
    actor_critic = make_actor_critic(target_ema_decay=0.9)
    before = [p.clone() for p in actor_critic.target.parameters()]
    for p in actor_critic.network.parameters():
        p.data += 1
    sources = [p.clone() for p in actor_critic.network.parameters()]
    actor_critic.update_target()
    for target, old, source in zip(actor_critic.target.parameters(), before, sources, strict=True):
        torch.testing.assert_close(target, 0.9 * old + 0.1 * source)
    assert not any(p.requires_grad for p in actor_critic.target.parameters())


@for_pictures_and_vectors
@pytest.mark.parametrize("name", ["actor_loss", "critic_loss", "policy_entropy"])
def test_losses_equal_their_definitions(
    make: Callable[..., ActorCritic], input_shape: tuple[int, ...], name: str
) -> None:
    actor_critic = make()
    network, target, codec = actor_critic.network, actor_critic.target, actor_critic.value_codec
    terminated = one_end(actor_critic)
    rollout = make_rollout(actor_critic, terminated=terminated, input_shape=input_shape)
    losses = actor_critic.training_step(actor_critic.compute_targets(rollout))
    burn_in, inputs = rollout.inputs[:, : actor_critic.burn_in], rollout.inputs[:, actor_critic.burn_in :]
    logits, value_logits, _ = network(inputs[:, :-1], network.burn_in(burn_in, rollout.burn_in_mask))
    values = codec.mean(target(inputs, target.burn_in(burn_in, rollout.burn_in_mask))[1])
    returns = lambda_returns(rollout.rewards, terminated, values[:, 1:], actor_critic.gamma, actor_critic.lambda_)
    terms = []
    for b in range(4):
        for t in range(actor_critic.horizon):
            policy = Categorical(logits=logits[b, t])
            terms.append(
                {
                    "actor_loss": -policy.log_prob(rollout.actions[b, t]) * (returns[b, t] - values[b, t]),
                    "critic_loss": codec.cross_entropy(value_logits[b, t], returns[b, t]),
                    "policy_entropy": policy.entropy(),
                }[name]
            )
            if terminated[b, t]:
                break
    torch.testing.assert_close(losses[name], torch.stack(terms).mean().detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("update_epochs", [1, 2])
def test_the_loss_is_the_weighted_sum_of_its_terms(update_epochs: int) -> None:
    actor_critic = make_vector_actor_critic(entropy_coef=0.3, update_epochs=update_epochs)
    output = actor_critic.loss(actor_critic.compute_targets(make_rollout(actor_critic, input_shape=VECTOR)))
    terms = output.metrics
    expected = terms["actor_loss"] + terms["critic_loss"] - 0.3 * terms["policy_entropy"]
    torch.testing.assert_close(output.loss.detach(), expected)
    assert not any(term.requires_grad for term in terms.values())


@pytest.mark.parametrize("update_epochs", [1, 2])
def test_losses_of_parts_add_up_to_that_of_the_batch(update_epochs: int) -> None:
    actor_critic = make_vector_actor_critic(update_epochs=update_epochs)
    rollout = make_rollout(actor_critic, terminated=one_end(actor_critic), input_shape=VECTOR)
    batch = actor_critic.compute_targets(rollout)
    change_policy(actor_critic)
    whole = actor_critic.loss(batch)
    rows = slice(0, 1), slice(1, 4)
    parts = [actor_critic.loss(ActorCriticBatch(*(field[part] for field in batch)), batch) for part in rows]
    torch.testing.assert_close(parts[0].loss + parts[1].loss, whole.loss, rtol=1e-5, atol=1e-5)
    for name, value in whole.metrics.items():
        torch.testing.assert_close(parts[0].metrics[name] + parts[1].metrics[name], value, rtol=1e-5, atol=1e-5)


def change_policy(actor_critic: ActorCritic) -> None:
    """Change the network a little."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in actor_critic.network.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))


def test_the_first_of_several_updates_is_reinforce_with_normalized_advantages() -> None:
    several, single = make_actor_critic(update_epochs=2, entropy_coef=0.0), make_actor_critic(entropy_coef=0.0)
    batch = several.compute_targets(make_rollout(several, terminated=one_end(several)))
    advantages = batch.advantages[batch.alive]
    normalized = (batch.advantages - advantages.mean()) / advantages.std(correction=0)
    gradients = []
    for actor_critic, each in ((several, batch), (single, batch._replace(advantages=normalized))):
        actor_critic.loss(each).loss.backward()
        gradients.append([p.grad for p in actor_critic.network.parameters()])
    # A term of 1e-5 is added to the deviation of about one, and sums are in another order.
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_updates_are_compared_with_the_policy_that_acted() -> None:
    actor_critic = with_head_layers(make_actor_critic, update_epochs=2)
    metrics = actor_critic.loss(actor_critic.compute_targets(make_rollout(actor_critic))).metrics
    assert metrics["approx_kl"].abs() < 1e-6
    assert metrics["clip_fraction"] == 0


def test_several_updates_use_the_clipped_surrogate() -> None:
    actor_critic = make_actor_critic(update_epochs=2, clip_coef=0.05)
    batch = actor_critic.compute_targets(make_rollout(actor_critic))
    change_policy(actor_critic)
    losses = actor_critic.loss(batch).metrics
    logits, _, _ = actor_critic.network(batch.inputs, (batch.hidden.unsqueeze(0), batch.cell.unsqueeze(0)))
    mean, deviation = batch.advantages.mean(), batch.advantages.std(correction=0)
    terms, clipped = [], []
    for b in range(4):
        for t in range(actor_critic.horizon):
            log_prob = Categorical(logits=logits[b, t]).log_prob(batch.actions[b, t])
            ratio = float((log_prob.detach() - batch.log_probs[b, t]).exp())
            advantage = float((batch.advantages[b, t] - mean) / deviation)
            terms.append(-min(ratio * advantage, min(max(ratio, 0.95), 1.05) * advantage))
            clipped.append(abs(ratio - 1) > 0.05)
    assert 0 < sum(clipped) < len(clipped)
    expected = torch.tensor(terms).mean()
    torch.testing.assert_close(losses["actor_loss"], expected, rtol=1e-3, atol=1e-5)
    assert losses["clip_fraction"] == pytest.approx(sum(clipped) / len(clipped))
    assert losses["approx_kl"] > 0


def test_each_update_epoch_uses_every_trajectory_once() -> None:
    actor_critic = make_actor_critic(update_epochs=3, num_minibatches=2)
    batch = actor_critic.compute_targets(make_rollout(actor_critic, batch=6))
    minibatches = list(actor_critic.minibatches(batch))
    assert [len(minibatch.inputs) for minibatch in minibatches] == [3] * 6
    orders = []
    for one, two in zip(minibatches[::2], minibatches[1::2], strict=True):
        epoch = ActorCriticBatch(*(torch.cat(fields) for fields in zip(one, two, strict=True)))
        rows = [int((batch.rewards == rewards).all(1).nonzero()) for rewards in epoch.rewards]
        assert sorted(rows) == list(range(6))
        for field, whole in zip(epoch, batch, strict=True):
            assert torch.equal(field, whole[rows])
        orders.append(tuple(rows))
    assert len(set(orders)) > 1


def test_a_single_update_uses_the_batch_as_it_is(actor_critic: ActorCritic) -> None:
    batch = actor_critic.compute_targets(make_rollout(actor_critic))
    assert batch.log_probs.numel() == 0
    (only,) = actor_critic.minibatches(batch)
    assert only is batch


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("update_epochs", "num_minibatches", "clip_coef", "burn_in", "horizon", "head_units")),
        ("head_layers", -1),
    ],
)
def test_invalid_arguments_raise(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        make_actor_critic(**{name: value})


def test_learning_rate_follows_the_configured_schedule() -> None:
    config = OptimizerConfig(learning_rate=0.5, min_lr_factor=0.2, lr_decay_steps=2)
    configured = make_vector_actor_critic(optimizer=config).configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5, 0.3, 0.1, 0.1])


def test_learns_from_vectors_which_action_is_rewarded() -> None:
    """A contextual bandit: the reward is 1 if the action is the position of the largest of the first five numbers."""
    actor_critic = make_vector_actor_critic(optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.0))
    optimizer = actor_critic.configure_optimizers()["optimizer"]
    torch.manual_seed(0)
    rates = []
    for _ in range(100):
        rollout = make_rollout(actor_critic, batch=64, input_shape=VECTOR)
        inputs = torch.randn_like(rollout.inputs)
        acted_on = inputs[:, actor_critic.burn_in : -1]
        memory = actor_critic.network.burn_in(inputs[:, : actor_critic.burn_in], rollout.burn_in_mask)
        actions = []
        for t in range(actor_critic.horizon):
            action, memory = actor_critic.act(acted_on[:, t], memory)
            actions.append(action)
        taken = torch.stack(actions, 1)
        rewards = (taken == acted_on[..., :ACTIONS].argmax(-1)).float()
        rates.append(float(rewards.mean()))
        batch = actor_critic.compute_targets(rollout._replace(inputs=inputs, actions=taken, rewards=rewards))
        optimizer.zero_grad()
        actor_critic.loss(batch).loss.backward()
        optimizer.step()
        actor_critic.update_target()
    assert sum(rates[:10]) / 10 < 0.3
    assert sum(rates[-10:]) / 10 > 0.5
