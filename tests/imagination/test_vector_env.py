"""Tests that imagined environments follow Gymnasium's rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray
from torch import nn

from delta_iris.imagination.vector_env import ImaginedVectorEnv
from delta_iris.world_models.base import WorldModel
from delta_iris.world_models.tokens.token_world_model import TokenWorldModel
from tests.helpers import ACTIONS, CONTEXT, SIZE, make_segment, make_world_model
from tests.systems.recurrent import GRUWorldModel

NUM_ENVS = 3
STARTS = make_segment(20, CONTEXT)
ZEROS = np.zeros(NUM_ENVS, np.int64)


def make_envs(
    model: WorldModel[Any] | None = None,
    max_steps: int = 1000,
    num_envs: int = NUM_ENVS,
    autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
) -> ImaginedVectorEnv:
    """Environments of a small world model, which start from one of `STARTS`."""
    return ImaginedVectorEnv(
        model or never_ending_model(), ACTIONS, num_envs, STARTS, max_steps=max_steps, autoreset_mode=autoreset_mode
    )


def is_a_start(frame: NDArray[np.uint8]) -> bool:
    """Whether a frame is the last one of a segment that episodes start from."""
    return any(np.array_equal(frame, last.permute(1, 2, 0).numpy()) for last in STARTS.frames[:, -1])


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


def test_episodes_start_from_the_last_frames_of_the_segments() -> None:
    # A recurrent model would show its own reconstruction; the token model keeps the frame.
    envs = make_envs(num_envs=40)
    frames, _ = envs.reset(seed=0)
    assert all(is_a_start(frame) for frame in frames)
    # 40 draws out of 20.
    assert 10 < len({frame.tobytes() for frame in frames}) < 20


@pytest.mark.parametrize("ends", [99.0, 0.0], ids=["always", "at times"])
@pytest.mark.parametrize("recurrent", [False, True], ids=["tokens", "recurrent"])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_steps_and_resets_follow_gymnasium(mode: AutoresetMode, recurrent: bool, ends: float) -> None:
    """As `SyncVectorEnv`'s environments do, which play back the same episodes."""
    torch.manual_seed(0)
    model = GRUWorldModel(SIZE, ACTIONS) if recurrent else set_end(make_world_model(), ends)
    envs = make_envs(model, max_steps=5, autoreset_mode=mode)
    first, _ = envs.reset(seed=0)
    steps: list[Any] = []
    for step in range(14):
        steps.append(envs.step(np.full(NUM_ENVS, step % ACTIONS)))
        ended = steps[-1][2] | steps[-1][3]
        if mode is AutoresetMode.DISABLED and ended.any():
            steps[-1] = (*steps[-1], envs.reset(options={"reset_mask": ended})[0])
    assert sum((step[2] | step[3]).sum() for step in steps) >= 6
    # Each environment's episodes: frames, and the rewards and ends that led to them.
    recorded: list[list[list[tuple[Any, ...]]]] = []
    for index in range(NUM_ENVS):
        episodes: list[list[tuple[Any, ...]]] = [[(first[index],)]]
        over = False
        for step in steps:
            frame, (reward, terminated, truncated) = step[0][index], (part[index] for part in step[1:4])
            if over and mode is AutoresetMode.NEXT_STEP:
                assert (reward, terminated, truncated) == (0.0, False, False)
                episodes.append([(frame,)])
                over = False
                continue
            over = bool(terminated or truncated)
            last = step[4]["final_obs"][index] if over and mode is AutoresetMode.SAME_STEP else frame
            episodes[-1].append((last, reward, terminated, truncated))
            if over and mode is not AutoresetMode.NEXT_STEP:
                episodes.append([(frame if mode is AutoresetMode.SAME_STEP else step[5][index],)])
        recorded.append(episodes)
        if not recurrent:  # whose first frames would be reconstructions
            assert all(is_a_start(episode[0][0]) for episode in episodes)
            assert not any(is_a_start(frame) for episode in episodes for frame, *_ in episode[1:])
    expected = SyncVectorEnv([lambda played=played: Playback(played) for played in recorded], autoreset_mode=mode)  # type: ignore[misc]
    assert np.array_equal(expected.reset()[0], first)
    for step in steps:
        found = expected.step(ZEROS)
        for value, wanted in zip(step[:4], found[:4], strict=True):
            assert value.dtype == wanted.dtype
            assert np.array_equal(value, wanted)
        assert step[4].keys() == found[4].keys()
        if "final_obs" in step[4]:
            assert step[4]["final_obs"].dtype == found[4]["final_obs"].dtype == object
            assert np.array_equal(step[4]["_final_obs"], found[4]["_final_obs"])
            assert np.array_equal(step[4]["_final_info"], found[4]["_final_info"])
        if len(step) == 6:
            assert np.array_equal(expected.reset(options={"reset_mask": step[2] | step[3]})[0], step[5])


class Playback(gym.Env[NDArray[np.uint8], np.int64]):
    """Plays episodes back, whatever the actions are."""

    observation_space = gym.spaces.Box(0, 255, (*SIZE, 3), np.uint8)
    action_space = gym.spaces.Discrete(ACTIONS)

    def __init__(self, episodes: list[list[tuple[Any, ...]]]) -> None:
        self.episodes = iter(episodes)
        self.steps: Iterator[tuple[Any, ...]] = iter(())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.steps = iter(next(self.episodes))
        return next(self.steps)[0], {}

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        frame, reward, terminated, truncated = next(self.steps)
        return frame, reward, terminated, truncated, {}


def test_a_new_episode_starts_from_a_segment_and_ages_anew() -> None:
    envs = make_envs(max_steps=3)
    steps = play(envs, 8)[1:]
    truncated = [step[3].all() for step in steps]
    # The step after a truncation resets.
    assert truncated == [False, False, True, False, False, False, True, False]
    assert [step[3].any() for step in steps] == truncated
    assert not any(step[2].any() for step in steps)
    assert [all(is_a_start(frame) for frame in step[0]) for step in steps] == [False] * 3 + [True] + [False] * 3 + [
        True
    ]


def test_an_end_in_the_last_step_is_not_a_truncation_too() -> None:
    envs = make_envs(set_end(make_world_model(), 99.0), max_steps=1)
    envs.reset(seed=0)
    _, _, terminated, truncated, _ = envs.step(ZEROS)
    assert terminated.all()
    assert not truncated.any()


def assert_same_episodes(first: list[Any], second: list[Any]) -> None:
    for one, other in zip(first, second, strict=True):
        assert all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


def test_the_same_seed_gives_the_same_episodes() -> None:
    model = set_end(make_world_model(), 0.0)
    envs = make_envs(model)
    first = play(envs, 12)
    # Nothing that anyone else draws, and nothing that was played before, makes a difference.
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    assert_same_episodes(first, play(make_envs(model), 12))
    assert_same_episodes(first, play(envs, 12))
    ends = np.stack([step[2] for step in first[1:]])
    assert 0 < ends.mean() < 1
    other_seed = play(make_envs(model), 12, seed=1)
    assert any(not np.array_equal(one[0], other[0]) for one, other in zip(first, other_seed, strict=True))


def test_a_reset_without_a_seed_goes_on_with_the_same_random_numbers() -> None:
    envs = make_envs(num_envs=8)
    first, following = envs.reset(seed=0)[0], envs.reset()[0]
    assert not np.array_equal(first, following)
    assert np.array_equal(envs.reset(seed=0)[0], first)
    assert np.array_equal(envs.reset()[0], following)
    # Without any seed, the operating system gives one.
    assert not np.array_equal(make_envs(num_envs=20).reset()[0], make_envs(num_envs=20).reset()[0])


def test_every_step_draws_other_random_numbers() -> None:
    envs = make_envs(set_end(make_world_model(), 0.0), num_envs=40, autoreset_mode=AutoresetMode.SAME_STEP)
    envs.reset(seed=0)
    ends = [tuple(envs.step(np.zeros(40, np.int64))[2]) for _ in range(3)]
    assert len(set(ends)) == 3


def test_final_observations_are_the_frames_that_episodes_end_with() -> None:
    stepwise, same = (make_envs(max_steps=3, autoreset_mode=mode) for mode in list(AutoresetMode)[:2])
    assert (stepwise.autoreset_mode, same.autoreset_mode) == (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)
    expected, found = play(stepwise, 3)[-1][0], play(same, 2)
    assert len(found) == 3
    *_, info = same.step(np.random.default_rng(0).integers(ACTIONS, size=(3, NUM_ENVS))[2])
    assert np.array_equal(np.stack(info["final_obs"]), expected)


def test_imagining_leaves_the_random_numbers_of_a_trainer_alone() -> None:
    envs = make_envs(set_end(make_world_model(), 0.0))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    play(envs, 3)
    assert torch.equal(torch.rand(4), expected)


def test_some_environments_are_reset_and_the_others_go_on() -> None:
    envs = make_envs()
    envs.reset(seed=0)
    before, *_ = envs.step(ZEROS)
    frames, _ = envs.reset(options={"reset_mask": np.array([False, True, False])})
    assert is_a_start(frames[1])
    assert np.array_equal(frames[[0, 2]], before[[0, 2]])
    assert not is_a_start(envs.step(ZEROS)[0][1])


def test_what_cannot_be_done_is_refused() -> None:
    for changes in ({"num_envs": 0}, {"max_steps": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            make_envs(**changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are 0 starts"):
        ImaginedVectorEnv(never_ending_model(), ACTIONS, 1, STARTS.select(slice(0)))
    envs = make_envs(set_end(make_world_model(), 99.0), autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(ZEROS)
    with pytest.raises(ValueError, match="reset all"):
        envs.reset(options={"reset_mask": ZEROS == 0})
    with pytest.raises(ValueError, match="one seed"):
        envs.reset(seed=[1, 2, 3])
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="3 bools"):
        envs.reset(options={"reset_mask": ZEROS})
    with pytest.raises(ValueError, match="names no environment"):
        envs.reset(options={"reset_mask": ZEROS == 1})
    envs.step(ZEROS)
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(ZEROS)
