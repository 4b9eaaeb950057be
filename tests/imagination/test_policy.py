"""Tests of acting on a world model's state, with a recurrent world model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from delta_iris.actor_critic.module import ActorCritic
from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.imagination.policy import FilterMemory, WorldModelPolicy
from tests.helpers import ACTIONS, SIZE, make_segment
from tests.systems.recurrent import GRUWorldModel

BATCH, FRAMES = 3, 5


class DeterministicModel(GRUWorldModel):
    """Takes the most likely latents instead of sampling them, so that results do not depend on random numbers."""

    def _sample(self, logits: Tensor) -> Tensor:
        likely = logits.unflatten(-1, (8, 8)).argmax(-1)
        return nn.functional.one_hot(likely, 8).to(logits.dtype).flatten(-2)


@pytest.fixture
def policy() -> WorldModelPolicy:
    """A policy whose actions depend on what it has seen, and are nearly certain."""
    torch.manual_seed(0)
    model = DeterministicModel(SIZE, ACTIONS, dim=16)
    shape = model.actor_input_space.shape
    assert shape is not None
    actor_critic = ActorCritic(shape, ACTIONS, lstm_size=16, burn_in=FRAMES, horizon=2)
    for parameter in actor_critic.network.lstm.parameters():
        nn.init.normal_(parameter)
    nn.init.normal_(actor_critic.network.actor.weight, std=1e4)
    return WorldModelPolicy(model, actor_critic)


@pytest.fixture
def segment() -> SegmentBatch:
    """Whole episodes from their first frames."""
    made = make_segment(BATCH, FRAMES)
    made.is_first[:, 0] = True
    return made


def act_step_by_step(policy: WorldModelPolicy, segment: SegmentBatch) -> tuple[FilterMemory, Tensor]:
    """Act on each frame; the memory takes the segment's actions instead of the policy's. Returns also its actions."""
    memory, chosen = policy.initial_memory(len(segment.mask)), []
    for t in range(segment.mask.shape[1]):
        action, memory = policy.act(to_float(segment.frames[:, t]), memory)
        memory = policy.with_actions(memory, segment.actions[:, t])
        chosen.append(action)
    return memory, torch.stack(chosen, 1)


def assert_same_memory(first: FilterMemory, second: FilterMemory, rows: list[int] | slice = slice(None)) -> None:
    for one, other in zip(first.state, second.state, strict=True):
        torch.testing.assert_close(one[rows], other[rows])
    for one, other in zip(first.actor, second.actor, strict=True):
        torch.testing.assert_close(one[:, rows], other[:, rows])
    assert torch.equal(first.last_action[rows], second.last_action[rows])
    assert torch.equal(first.is_first[rows], second.is_first[rows])


def test_acting_frame_by_frame_equals_observing_all_frames_at_once(
    policy: WorldModelPolicy, segment: SegmentBatch
) -> None:
    memory, actions = act_step_by_step(policy, segment)
    assert_same_memory(memory, policy.observe(segment))
    assert actions.shape == (BATCH, FRAMES)
    assert len(actions.unique()) > 1
    assert not memory.is_first.any()


def test_an_action_depends_on_the_frames_and_the_actions_before(
    policy: WorldModelPolicy, segment: SegmentBatch
) -> None:
    memory, _ = act_step_by_step(policy, segment)
    other_frame, other_action = segment.frames.clone(), segment.actions.clone()
    other_frame[:, 0] = 255 - other_frame[:, 0]
    other_action[:, 0] = (other_action[:, 0] + 1) % ACTIONS
    for changed in (segment._replace(frames=other_frame), segment._replace(actions=other_action)):
        after, _ = act_step_by_step(policy, changed)
        assert not torch.allclose(after.state.hidden, memory.state.hidden)
    # The action at the last frame leads to a frame that is not seen yet.
    last = segment.actions.clone()
    last[:, -1] = (last[:, -1] + 1) % ACTIONS
    after, _ = act_step_by_step(policy, segment._replace(actions=last))
    assert torch.equal(after.state.hidden, memory.state.hidden)


def test_padding_before_an_episode_is_not_observed(policy: WorldModelPolicy, segment: SegmentBatch) -> None:
    padded = make_segment(BATCH, 3 + FRAMES, seed=9)
    padded.mask[:, :3] = False
    for whole, part in zip(padded, segment, strict=True):
        whole[:, 3:] = part
    assert_same_memory(policy.observe(padded), policy.observe(segment))


def test_observing_nothing_or_padding_only_is_the_start_of_an_episode(
    policy: WorldModelPolicy, segment: SegmentBatch
) -> None:
    nothing = policy.observe(segment.slice_time(0, 0))
    assert_same_memory(nothing, policy.initial_memory(BATCH))
    assert nothing.is_first.all()
    padding = segment._replace(mask=torch.zeros_like(segment.mask), is_first=torch.zeros_like(segment.is_first))
    memory = policy.observe(padding)
    assert memory.is_first.all()
    frame = to_float(segment.frames[:, 0])
    (first, after_nothing), (second, after_padding) = policy.act(frame, nothing), policy.act(frame, memory)
    assert torch.equal(first, second)
    assert_same_memory(after_nothing, after_padding)


def test_reset_where_restarts_only_the_episodes_that_ended(policy: WorldModelPolicy, segment: SegmentBatch) -> None:
    memory, _ = act_step_by_step(policy, segment)
    frame = to_float(make_segment(BATCH, 1, seed=5).frames[:, 0])
    continued_action, continued = policy.act(frame, memory)
    fresh_action, fresh = policy.act(frame, policy.initial_memory(BATCH))
    action, after = policy.act(frame, policy.reset_where(memory, torch.tensor([False, True, False])))
    assert_same_memory(after, continued, [0, 2])
    assert_same_memory(after, fresh, [1])
    assert torch.equal(action[[0, 2]], continued_action[[0, 2]])
    assert torch.equal(action[1], fresh_action[1])
    assert not torch.allclose(continued.state.hidden[1], fresh.state.hidden[1])


def test_a_reset_before_the_first_frame_changes_nothing(policy: WorldModelPolicy) -> None:
    memory = policy.initial_memory(BATCH)
    assert_same_memory(policy.reset_where(memory, torch.ones(BATCH, dtype=torch.bool)), memory)
