"""Tests that imagined environments follow Gymnasium's rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import nn

from delta_iris.data.segment import SegmentBatch
from delta_iris.imagination.vector_env import ImaginedVectorEnv
from delta_iris.world_models.base import WorldModel
from delta_iris.world_models.tokens.token_world_model import TokenWorldModel
from tests.helpers import ACTIONS, CONTEXT, SIZE, make_segment, make_world_model
from tests.systems.recurrent import GRUWorldModel

NUM_ENVS = 3


def starts() -> Iterator[SegmentBatch]:
    """Segments to start from, each another one."""
    seed = 0
    while True:
        yield make_segment(1, CONTEXT, seed=seed)
        seed += 1


def make_envs(
    model: WorldModel[Any] | None = None, max_steps: int = 1000, num_envs: int = NUM_ENVS
) -> ImaginedVectorEnv:
    """Environments of a small world model; the sequence of starts is the same in all of them."""
    drawn = starts()
    return ImaginedVectorEnv(model or never_ending_model(), ACTIONS, num_envs, lambda: next(drawn), max_steps=max_steps)


def set_end(model: TokenWorldModel, logit: float) -> TokenWorldModel:
    """Make all ends certain (a large logit), impossible (a small one) or random (0)."""
    last = model.dynamics.network.end_head[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.tensor([-logit, logit]))
    return model


def never_ending_model() -> TokenWorldModel:
    return set_end(make_world_model(), -99.0)


def play(envs: ImaginedVectorEnv, steps: int, seed: int = 0) -> list[tuple[np.ndarray, ...]]:
    """Frames, rewards, ends and truncations of `steps` steps under fixed actions."""
    actions = np.random.default_rng(0).integers(ACTIONS, size=(steps, envs.num_envs))
    frames, _ = envs.reset(seed=seed)
    return [(frames,), *(envs.step(action)[:4] for action in actions)]


@pytest.mark.parametrize("recurrent", [False, True], ids=["tokens", "recurrent"])
def test_observations_and_actions_lie_in_their_spaces(recurrent: bool) -> None:
    torch.manual_seed(0)
    envs = make_envs(GRUWorldModel(SIZE, ACTIONS) if recurrent else None)
    assert envs.single_observation_space == gym.spaces.Box(0, 255, (*SIZE, 3), np.uint8)
    assert envs.single_action_space == gym.spaces.Discrete(ACTIONS)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    frames, info = envs.reset(seed=0)
    assert info == {}
    assert frames in envs.observation_space
    for _ in range(4):
        actions = envs.action_space.sample()
        frames, rewards, terminated, truncated, info = envs.step(actions)
        assert frames in envs.observation_space
        assert rewards.shape == terminated.shape == truncated.shape == (NUM_ENVS,)
        assert rewards.dtype == np.float64
        assert terminated.dtype == truncated.dtype == np.bool_
        assert np.isfinite(rewards).all()
        assert info == {}
        assert all(np.array_equal(*pair) for pair in zip(envs.render(), frames, strict=True))


def test_an_episode_starts_from_the_last_frame_of_its_segment() -> None:
    # A recurrent model would show its own reconstruction; the token model keeps the frame.
    frames, _ = make_envs().reset(seed=0)
    expected = [next_start.frames[0, -1] for next_start, _ in zip(starts(), range(1 + NUM_ENVS), strict=False)][1:]
    assert np.array_equal(frames, torch.stack(expected).permute(0, 2, 3, 1).numpy())


def test_the_step_after_an_end_resets_the_environment() -> None:
    envs = make_envs(set_end(make_world_model(), 99.0))
    frames, _ = envs.reset(seed=0)
    for _ in range(2):
        after, _, terminated, truncated, _ = envs.step(np.zeros(NUM_ENVS, np.int64))
        assert terminated.all()
        assert not truncated.any()
        assert not np.array_equal(after, frames)
        frames, rewards, terminated, truncated, _ = envs.step(np.zeros(NUM_ENVS, np.int64))
        assert not terminated.any()
        assert not truncated.any()
        assert not rewards.any()
    drawn = [start.frames[0, -1] for start, _ in zip(starts(), range(1 + 3 * NUM_ENVS), strict=False)][-NUM_ENVS:]
    assert np.array_equal(frames, torch.stack(drawn).permute(0, 2, 3, 1).numpy())


def test_episodes_are_truncated_after_max_steps() -> None:
    steps = play(make_envs(max_steps=3), 8)[1:]
    truncated = [step[3].all() for step in steps]
    # The step after a truncation resets.
    assert truncated == [False, False, True, False, False, False, True, False]
    assert [step[3].any() for step in steps] == truncated
    assert not any(step[2].any() for step in steps)


def test_an_end_in_the_last_step_is_not_a_truncation_too() -> None:
    envs = make_envs(set_end(make_world_model(), 99.0), max_steps=1)
    envs.reset(seed=0)
    _, _, terminated, truncated, _ = envs.step(np.zeros(NUM_ENVS, np.int64))
    assert terminated.all()
    assert not truncated.any()


def test_the_same_seed_gives_the_same_episodes() -> None:
    model = set_end(make_world_model(), 0.0)
    first, second = play(make_envs(model), 12), play(make_envs(model), 12)
    for one, other in zip(first, second, strict=True):
        assert all(np.array_equal(*pair) for pair in zip(one, other, strict=True))
    ends = np.stack([step[2] for step in first[1:]])
    assert 0 < ends.mean() < 1
    other_seed = play(make_envs(model), 12, seed=1)
    assert any(not np.array_equal(one[0], other[0]) for one, other in zip(first, other_seed, strict=True))


def test_a_reset_of_one_environment_does_not_disturb_the_others() -> None:
    """The second environment's frames are the same, whether or not the first one starts again in between."""
    model = never_ending_model()
    seen = []
    for interrupted in (False, True):
        drawn = starts()
        envs = ImaginedVectorEnv(model, ACTIONS, 1, lambda drawn=drawn: next(drawn))  # type: ignore[misc]
        other = ImaginedVectorEnv(model, ACTIONS, 1, lambda: make_segment(1, CONTEXT, seed=7))
        envs.reset()
        other.reset()
        frames = []
        for step in range(4):
            if interrupted and step == 2:
                envs.reset()
            envs.step(np.array([step]))
            torch.manual_seed(step)
            frames.append(other.step(np.array([step]))[0])
        seen.append(np.stack(frames))
    assert np.array_equal(seen[0], seen[1])


def test_environments_that_end_at_different_times_reset_one_by_one() -> None:
    envs = make_envs(set_end(make_world_model(), 0.0))
    drawn = [start.frames[0, -1].permute(1, 2, 0).numpy() for start, _ in zip(starts(), range(60), strict=False)]
    number = 1 + NUM_ENVS
    envs.reset(seed=3)
    ended = np.zeros(NUM_ENVS, np.bool_)
    mixed = False
    for _ in range(10):
        frames, rewards, terminated, truncated, _ = envs.step(np.ones(NUM_ENVS, np.int64))
        for index in np.flatnonzero(ended):
            assert np.array_equal(frames[index], drawn[number])
            assert (rewards[index], terminated[index], truncated[index]) == (0.0, False, False)
            number += 1
        mixed |= bool(ended.any() and not ended.all())
        ended = terminated | truncated
    assert mixed
