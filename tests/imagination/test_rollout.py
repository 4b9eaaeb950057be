"""Imagination: step by step it is the same as the whole window at once."""

from __future__ import annotations

import torch
from conftest import ACTIONS, FRAMES, make_window

from delta_iris.data.segment import Window, to_float
from delta_iris.nn.sampling import sample
from delta_iris.world_models.tokens.token_world_model import Imagination


def start_of(window: Window, length: int) -> Window:
    return Window(*(field[:, :length] for field in window))


def test_imagined_steps_equal_the_whole_window_forward(tokenizer, world_model) -> None:
    window = make_window(padded=True)
    window.valid[1, -2:] = True
    context, steps = 4, 5
    imagination = Imagination(tokenizer, world_model, context)
    imagination.reset(start_of(window, context))
    generator = torch.Generator().manual_seed(5)
    actions = torch.randint(0, ACTIONS, (3, steps), generator=generator)
    tokens = torch.randint(0, tokenizer.codebook_size, (3, steps, 4), generator=generator)
    frames, rewards = [], []
    for i in range(steps):
        frame, reward, _ = imagination.step(actions[:, i], tokens[:, i])
        frames.append(frame)
        rewards.append(reward)
    # The same trajectory as one window: real frames, then the imagined ones; its tokens are those taken.
    known = tokenizer.encode(*(f[:, :context] for f in (window.frames, window.actions, window.valid)))
    all_frames = torch.cat([to_float(window.frames[:, :context]), torch.stack(frames, 1)], 1)
    all_actions = torch.cat([window.actions[:, : context - 1], actions, actions[:, :1]], 1)
    all_tokens = torch.cat([known, tokens], 1)
    whole = Window(all_frames, all_actions, window.rewards, window.ends, window.valid)
    with torch.no_grad():
        codes = tokenizer.quantizer.lookup(all_tokens)
        painted = tokenizer.decode(all_frames[:, :-1], all_actions[:, :-1], codes, whole.transitions).clamp(0, 1)
        predicted = world_model.rewards.mean(world_model.predict(whole, all_tokens).rewards)
    # float32 sums in another order, around one.
    torch.testing.assert_close(torch.stack(frames, 1), painted[:, context - 1 :], atol=5e-6, rtol=1e-5)
    expected = predicted[:, context - 1 : -1]
    torch.testing.assert_close(torch.stack(rewards, 1), expected, atol=2e-4, rtol=1e-4)


def test_a_new_start_forgets_what_was_looked_at(tokenizer, world_model) -> None:
    actions, tokens = torch.zeros(3, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.int64)
    frames = []
    for looked in (False, True):
        imagination = Imagination(tokenizer, world_model, 4)
        if looked:
            imagination.reset(start_of(make_window(seed=1), 4))
            imagination.look()
        imagination.reset(start_of(make_window(), 4))
        frames.append(imagination.step(actions, tokens)[0])
    assert torch.equal(*frames)


def test_imagination_goes_on_beyond_the_window(tokenizer, world_model) -> None:
    window = make_window()
    context = 4
    imagination = Imagination(tokenizer, world_model, context)
    imagination.reset(start_of(window, context))
    torch.manual_seed(0)
    history = [to_float(window.frames[:, t]) for t in range(context)]
    actions = [window.actions[:, t] for t in range(context - 1)]
    for _ in range(3 * FRAMES):
        actions.append(torch.randint(0, ACTIONS, (3,)))
        frame, reward, end = imagination.step(actions[-1])
        assert frame.shape == history[0].shape
        assert torch.isfinite(reward).all()
        assert set(end.unique().tolist()) <= {0, 1}
        history.append(frame)
    # Since the caches last began anew, everything follows from the frames, actions and tokens it remembers.
    kept = len(imagination._frames)
    assert context <= kept <= FRAMES
    torch.testing.assert_close(torch.stack(imagination._frames), torch.stack(history[-kept:]))
    assert torch.equal(torch.stack(imagination._actions), torch.stack(actions[1 - kept :]))


def test_a_rollout_is_what_the_agent_trains_on(tokenizer, world_model, agent) -> None:
    window = start_of(make_window(padded=True), agent.burn_in + 1)
    torch.manual_seed(0)
    imagined = Imagination(tokenizer, world_model, agent.burn_in + 1).rollout(agent, window)
    assert imagined.frames.shape == (3, agent.burn_in + agent.horizon + 1, *window.frames.shape[2:])
    torch.testing.assert_close(imagined.frames[:, : agent.burn_in + 1], to_float(window.frames))
    assert not imagined.frames.requires_grad
    assert 0 <= imagined.frames.min() <= imagined.frames.max() <= 1
    losses = agent.training_step(agent.appraise(imagined))
    losses["loss"].backward()
    assert all(p.grad is None for p in (*tokenizer.parameters(), *world_model.parameters()))


def test_what_padding_holds_does_not_matter(tokenizer, world_model, agent) -> None:
    window = start_of(make_window(padded=True), agent.burn_in + 1)
    changed = window._replace(frames=window.frames.clone(), actions=window.actions.clone())
    changed.frames[~window.valid] = 7
    changed.actions[~window.valid] = 1
    rollouts = []
    for variant in (window, changed):
        torch.manual_seed(0)
        rollouts.append(Imagination(tokenizer, world_model, agent.burn_in + 1).rollout(agent, variant))
    for a, b in zip(rollouts[0][1:], rollouts[1][1:], strict=True):
        assert torch.equal(a, b)
    assert torch.equal(rollouts[0].frames[:, agent.burn_in :], rollouts[1].frames[:, agent.burn_in :])


def test_samples_follow_their_logits() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    draws = sample(logits.expand(40_000, 4))
    frequencies = draws.bincount(minlength=4) / len(draws)
    # Four standard deviations of a frequency of 40,000 draws.
    torch.testing.assert_close(frequencies, logits.softmax(0), atol=4 * 0.5 / 200, rtol=0)
