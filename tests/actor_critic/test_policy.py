"""Tests of acting on frames with an actor-critic's LSTM as memory."""

from __future__ import annotations

import torch

from delta_iris.actor_critic.module import ActorCritic
from delta_iris.actor_critic.policy import FramePolicy
from delta_iris.data.collector import Policy
from delta_iris.data.segment import to_float
from tests.helpers import SIZE, make_segment


def test_acts_like_the_actor_critic(actor_critic: ActorCritic) -> None:
    policy: Policy = FramePolicy(actor_critic)
    assert (policy.burn_in, policy.device) == (3, torch.device("cpu"))
    memory, expected_memory = policy.initial_memory(2), actor_critic.network.initial_memory(2)
    for _ in range(3):
        frames = torch.rand(2, 3, *SIZE)
        torch.manual_seed(0)
        actions, memory = policy.act(frames, memory)
        torch.manual_seed(0)
        expected, expected_memory = actor_critic.act(frames, expected_memory)
        assert torch.equal(actions, expected)
        assert all(torch.equal(*pair) for pair in zip(memory, expected_memory, strict=True))


def test_observing_a_segment_burns_in_its_frames(actor_critic: ActorCritic) -> None:
    segment = make_segment(padded=True).slice_time(0, 5)
    memory = FramePolicy(actor_critic).observe(segment)
    expected = actor_critic.network.burn_in(to_float(segment.frames), segment.mask)
    assert all(torch.equal(*pair) for pair in zip(memory, expected, strict=True))


def test_observing_padding_leaves_the_memory_of_a_new_episode(actor_critic: ActorCritic) -> None:
    policy, segment = FramePolicy(actor_critic), make_segment().slice_time(0, 3)
    memory = policy.observe(segment._replace(mask=torch.zeros_like(segment.mask)))
    assert all(torch.equal(*pair) for pair in zip(memory, policy.initial_memory(3), strict=True))


def test_reset_where_clears_the_memory_of_ended_episodes_only(actor_critic: ActorCritic) -> None:
    policy, segment = FramePolicy(actor_critic), make_segment().slice_time(0, 4)
    memory = policy.observe(segment)
    before = tuple(part.clone() for part in memory)
    after = policy.reset_where(memory, torch.tensor([False, True, False]))
    for old, new, initial in zip(before, after, policy.initial_memory(3), strict=True):
        assert torch.equal(new[:, [0, 2]], old[:, [0, 2]])
        assert torch.equal(new[:, 1], initial[:, 1])
        assert old.ne(0).all()
    kept = policy.reset_where(memory, torch.zeros(3, dtype=torch.bool))
    assert all(torch.equal(*pair) for pair in zip(kept, before, strict=True))
