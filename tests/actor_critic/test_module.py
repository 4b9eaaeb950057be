"""The agent: returns, what counts, what it remembers."""

from __future__ import annotations

import pytest
import torch
from conftest import ACTIONS, SIZE, make_agent
from hypothesis import given
from hypothesis import strategies as st

from delta_iris.actor_critic.module import Agent, ImaginedWindow, until_first_end
from delta_iris.actor_critic.returns import lambda_returns
from delta_iris.errors import UserError


def imagined(agent, batch: int = 4, ends: torch.Tensor | None = None) -> ImaginedWindow:
    generator = torch.Generator().manual_seed(0)
    horizon, burn_in = agent.horizon, agent.burn_in
    return ImaginedWindow(
        torch.rand(batch, burn_in + horizon + 1, 3, *SIZE, generator=generator),
        torch.ones(batch, burn_in, dtype=torch.bool),
        torch.randint(0, ACTIONS, (batch, horizon), generator=generator),
        torch.randn(batch, horizon, generator=generator),
        torch.zeros(batch, horizon, dtype=torch.long) if ends is None else ends,
    )


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(*(st.lists(st.floats(-10, 10), min_size=n, max_size=n) for _ in range(2)))
    ),
    st.floats(0, 1),
    st.floats(0, 1),
    st.data(),
)
def test_returns_equal_a_plain_loop(pairs, discount: float, lambda_: float, data) -> None:
    rewards, values = pairs
    ends = data.draw(st.lists(st.booleans(), min_size=len(rewards), max_size=len(rewards)))

    def plain(t: int) -> float:
        if t == len(rewards):
            return values[-1]
        if ends[t]:
            return rewards[t]
        return rewards[t] + discount * ((1 - lambda_) * values[t] + lambda_ * plain(t + 1))

    tensors = (torch.tensor([x], dtype=torch.float64) for x in (rewards, ends, values))
    returns = lambda_returns(*tensors, discount, lambda_)
    expected = torch.tensor([[plain(t) for t in range(len(rewards))]], dtype=torch.float64)
    torch.testing.assert_close(returns, expected, rtol=1e-12, atol=1e-12)


def test_only_steps_up_to_the_first_end_count() -> None:
    ends = torch.tensor([[0, 0, 0], [0, 1, 0], [1, 0, 1]])
    assert until_first_end(ends).tolist() == [[True] * 3, [True, True, False], [True, False, False]]


@pytest.mark.parametrize("passes", [1, 2])
def test_nothing_after_the_first_end_changes_loss_or_gradient(passes: int) -> None:
    agent = make_agent(passes=passes)
    ends = torch.zeros(4, agent.horizon, dtype=torch.long)
    ends[:, 1] = 1
    window = imagined(agent, ends=ends)
    after = agent.burn_in + 2  # the frame that the ending step leads to, which is never acted on
    frames, actions, rewards, more = (x.clone() for x in (window.frames, window.actions, window.rewards, ends))
    frames[:, after:] = torch.rand_like(frames[:, after:])
    actions[:, 2:] = (actions[:, 2:] + 1) % ACTIONS
    rewards[:, 2:] += 100
    more[:, 3] = 1
    changed = window._replace(frames=frames, actions=actions, rewards=rewards, ends=more)
    results = []
    for variant in (window, changed):
        agent.zero_grad()
        lesson = agent.appraise(variant)
        if passes > 1:
            # As if the policy had been another: whatever stands after the end is far off.
            lesson = lesson._replace(log_probs=lesson.log_probs * 1.1)
        losses = agent.training_step(lesson)
        losses["loss"].backward()
        gradient = torch.cat([p.grad.flatten() for p in agent.network.parameters() if p.grad is not None])
        results.append((losses, gradient))
    for name, value in results[0][0].items():
        assert torch.equal(value, results[1][0][name]), name
    # Zero times a weight may be summed in another order.
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-8, rtol=1e-5)


def test_rewards_before_the_end_do_count(agent) -> None:
    window = imagined(agent)
    loss = agent.training_step(agent.appraise(window))["loss"]
    assert not torch.equal(
        loss, agent.training_step(agent.appraise(window._replace(rewards=window.rewards + 1)))["loss"]
    )


def test_burn_in_ignores_padding_and_remembers_frames(agent) -> None:
    frames = torch.rand(2, 3, 3, *SIZE)
    valid = torch.tensor([[False, False, True], [True, True, True]])
    hidden, cell = agent.network.burn_in(frames, valid)
    changed = frames.clone()
    changed[0, :2] = 0
    again, _ = agent.network.burn_in(changed, valid)
    assert torch.equal(hidden, again)
    _, _, (expected_hidden, expected_cell) = agent.network(frames[:1, 2:], agent.network.initial_state(1))
    # One convolution over two frames and one over six may round differently.
    torch.testing.assert_close(hidden[:, :1], expected_hidden, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(cell[:, :1], expected_cell, atol=1e-6, rtol=1e-5)
    changed[1, 0] = 0
    assert not torch.equal(hidden[:, 1], agent.network.burn_in(changed, valid)[0][:, 1])


def test_acting_step_by_step_equals_the_whole_sequence(agent) -> None:
    frames = torch.rand(2, 6, 3, *SIZE)
    logits, values, _ = agent.network(frames, agent.network.initial_state(2))
    state = agent.network.initial_state(2)
    for t in range(6):
        step_logits, step_values, state = agent.network(frames[:, t : t + 1], state)
        torch.testing.assert_close(step_logits[:, 0], logits[:, t], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(step_values[:, 0], values[:, t], atol=1e-6, rtol=1e-5)


def test_actions_are_sampled_from_the_policy(agent) -> None:
    torch.manual_seed(0)
    frames = torch.rand(1, 3, *SIZE).expand(20_000, -1, -1, -1)
    state = agent.network.initial_state(20_000)
    actions, _ = agent.act(frames, state)
    expected = agent.network(frames[:1].unsqueeze(1), agent.network.initial_state(1))[0].softmax(-1).flatten()
    frequencies = actions.bincount(minlength=ACTIONS) / len(actions)
    # Four standard deviations of a frequency of 20,000 draws.
    torch.testing.assert_close(frequencies, expected.detach(), atol=4 * 0.5 / 20_000**0.5, rtol=0)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_critics_gradient_reaches_what_the_actor_sees(share: float) -> None:
    agent = make_agent()
    frames, gradients = torch.rand(2, 4, 3, *SIZE), []
    for agent.network.critic_gradient in (1.0, share):
        logits, values, _ = agent.network(frames, agent.network.initial_state(2))
        shared = [*agent.network.cnn.parameters(), *agent.network.lstm.parameters()]
        gradients.append(torch.autograd.grad(values.square().sum(), shared, retain_graph=True))
        actor = torch.autograd.grad(logits.square().sum(), shared)
    for whole, part in zip(*gradients, strict=True):
        torch.testing.assert_close(part, share * whole, atol=1e-6, rtol=1e-5)
    assert all(gradient.abs().max() > 0 for gradient in actor)


def test_the_first_policy_is_uniform_and_the_first_values_are_zero() -> None:
    agent = Agent(SIZE, ACTIONS, channels=4, hidden=16, multipliers=(1, 2), halvings=(0, 1), latent_channels=2)
    for network in (agent.network, agent.target):
        logits, values, _ = network(torch.rand(2, 3, 3, *SIZE), network.initial_state(2))
        assert logits.eq(0).all()
        # The bins' weights cancel but for rounding.
        assert agent.values.mean(values).abs().max() < 1e-5
        assert values.softmax(-1).max() > 0.1


def test_the_target_follows_the_whole_network() -> None:
    agent = make_agent(target_decay=0.9)
    before = [p.clone() for p in agent.target.parameters()]
    for p in agent.network.parameters():
        p.data += 1
    sources = [p.clone() for p in agent.network.parameters()]
    agent.on_train_batch_end()
    for target, old, source in zip(agent.target.parameters(), before, sources, strict=True):
        torch.testing.assert_close(target, 0.9 * old + 0.1 * source)
    assert not any(p.requires_grad for p in agent.target.parameters())


@pytest.mark.parametrize("name", ["actor_loss", "critic_loss", "policy_entropy"])
def test_losses_equal_their_definitions(agent, name: str) -> None:
    ends = torch.zeros(4, agent.horizon, dtype=torch.long)
    ends[1, 2] = 1
    window = imagined(agent, ends=ends)
    losses = agent.training_step(agent.appraise(window))
    frames = window.frames[:, agent.burn_in :]
    state = agent.network.burn_in(window.frames[:, : agent.burn_in], window.burn_in_valid)
    logits, values, _ = agent.network(frames[:, :-1], state)
    target_state = agent.target.burn_in(window.frames[:, : agent.burn_in], window.burn_in_valid)
    targets = agent.values.mean(agent.target(frames, target_state)[1])
    returns = lambda_returns(window.rewards, ends, targets[:, 1:], agent.discount, agent.lambda_)
    terms = []
    for b in range(4):
        for t in range(agent.horizon):
            policy = torch.distributions.Categorical(logits=logits[b, t])
            terms.append(
                {
                    "actor_loss": -policy.log_prob(window.actions[b, t]) * (returns[b, t] - targets[b, t]),
                    "critic_loss": agent.values.cross_entropy(values[b, t], returns[b, t]),
                    "policy_entropy": policy.entropy(),
                }[name]
            )
            if ends[b, t]:
                break
    torch.testing.assert_close(losses[name], torch.stack(terms).mean().detach(), rtol=1e-4, atol=1e-5)


def moved(agent) -> None:
    """Make it another policy, not far from what it was."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in agent.network.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))


def test_the_first_lesson_of_several_has_the_gradient_of_normalized_advantages() -> None:
    agent = make_agent(passes=2, entropy_weight=0.0)
    ends = torch.zeros(4, agent.horizon, dtype=torch.long)
    ends[1, 2] = 1
    lesson = agent.appraise(imagined(agent, ends=ends))
    advantages = lesson.advantages[lesson.counts]
    normalized = (lesson.advantages - advantages.mean()) / advantages.std(correction=0)
    gradients = []
    for learner, taught in ((agent, lesson), (make_agent(entropy_weight=0.0), lesson._replace(advantages=normalized))):
        learner.training_step(taught)["loss"].backward()
        gradients.append([p.grad for p in learner.network.parameters()])
    # What is added to the deviation, 1e-5 of about one, and sums in another order.
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_the_objective_is_clipped_as_defined() -> None:
    agent = make_agent(passes=2, clip=0.05)
    lesson = agent.appraise(imagined(agent))
    moved(agent)
    losses = agent.training_step(lesson)
    logits, _, _ = agent.network(lesson.frames, (lesson.hidden.unsqueeze(0), lesson.cell.unsqueeze(0)))
    mean, deviation = lesson.advantages.mean(), lesson.advantages.std(correction=0)
    terms, beyond = [], []
    for b in range(4):
        for t in range(agent.horizon):
            now = torch.distributions.Categorical(logits=logits[b, t]).log_prob(lesson.actions[b, t])
            ratio, advantage = (now - lesson.log_probs[b, t]).exp().item(), (lesson.advantages[b, t] - mean) / deviation
            terms.append(-min(ratio * advantage, min(max(ratio, 0.95), 1.05) * advantage))
            beyond.append(abs(ratio - 1) > 0.05)
    assert 0 < sum(beyond) < len(beyond)
    torch.testing.assert_close(losses["actor_loss"], torch.stack(terms).mean(), rtol=1e-3, atol=1e-5)
    assert losses["clip_fraction"] == pytest.approx(sum(beyond) / len(beyond))
    assert losses["approx_kl"] > 0


def test_each_pass_takes_every_window_once() -> None:
    agent = make_agent(passes=3, parts=2)
    lesson = agent.appraise(imagined(agent, batch=6))
    parts = list(agent.lessons(lesson))
    assert [len(part.frames) for part in parts] == [3] * 6
    order = []
    for one, two in zip(parts[::2], parts[1::2], strict=True):
        both = [torch.cat(fields) for fields in zip(one, two, strict=True)]
        rows = [int((lesson.rewards == rewards).all(1).nonzero()) for rewards in both[4]]
        assert sorted(rows) == list(range(6))
        for field, whole in zip(both, lesson, strict=True):
            assert torch.equal(field, whole[rows])
        order.append(rows)
    assert len(set(map(tuple, order))) > 1


def test_what_is_learned_from_once_is_left_whole(agent) -> None:
    lesson = agent.appraise(imagined(agent))
    assert lesson.log_probs.numel() == 0
    (only,) = agent.lessons(lesson)
    assert only is lesson


@pytest.mark.parametrize("options", [{"passes": 0}, {"parts": 0}, {"clip": 0.0}])
def test_passes_that_make_no_sense_are_refused(options) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        make_agent(**options)


def test_its_learning_rate_falls_where_it_is_told_to() -> None:
    agent = Agent(
        (16, 16), 3, multipliers=(1, 2), halvings=(0, 1), learning_rate=0.5, final_fraction=0.2, decay_steps=2
    )
    configured = agent.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5, 0.3, 0.1, 0.1])
