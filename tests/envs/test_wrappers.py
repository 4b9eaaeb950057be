"""Tests of the wrappers that Gymnasium lacks."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from delta_iris.envs.make import make_env
from delta_iris.envs.wrappers import EpisodicLife, RGBObservation, SelectObservation


class LivesEnv(gym.Env[Any, Any]):
    """A game of three lives: action 1 loses one. The frame shows the steps of the game, of which it has at most 10."""

    observation_space = gym.spaces.Box(0, 255, (4, 6), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.lives = 0, 3
        return self._frame(), {"lives": 3}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.lives -= action
        return self._frame(), 5.0, self.lives == 0, self.steps == 10, {"lives": self.lives}

    def _frame(self) -> Any:
        return np.full((4, 6), self.steps, np.uint8)


class DictEnv(LivesEnv):
    """The same game, with frames among other things."""

    observation_space = gym.spaces.Dict(  # type: ignore[assignment]
        {"image": LivesEnv.observation_space, "lives": gym.spaces.Discrete(4)}
    )

    def _frame(self) -> Any:
        return {"image": super()._frame(), "lives": self.lives}


gym.register("Lives-v0", entry_point=f"{__name__}:LivesEnv")
gym.register("LivesDict-v0", entry_point=f"{__name__}:DictEnv")


def test_one_key_of_dict_observations_is_kept() -> None:
    env = SelectObservation(DictEnv(), "image")
    assert env.observation_space == LivesEnv.observation_space
    assert env.reset()[0].shape == (4, 6)
    assert env.step(0)[0][0, 0] == 1


@pytest.mark.parametrize(("env", "message"), [(LivesEnv, "no dict"), (DictEnv, "choose one of image, lives")])
def test_selecting_what_is_not_there_raises(env: type[gym.Env[Any, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectObservation(env(), "picture")


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1)])
def test_grey_frames_become_rgb_with_three_equal_channels(shape: tuple[int, ...]) -> None:
    env = LivesEnv()
    env.observation_space = gym.spaces.Box(0, 255, shape, np.uint8)
    grey = np.arange(24, dtype=np.uint8).reshape(shape)
    rgb = RGBObservation(env).observation(grey)
    assert rgb.shape == RGBObservation(env).observation_space.shape == (4, 6, 3)
    assert rgb.dtype == np.uint8
    assert all(np.array_equal(rgb[..., channel], grey.reshape(4, 6)) for channel in range(3))


def test_every_grey_environment_is_made_with_rgb_frames() -> None:
    env = make_env(f"{__name__}:Lives-v0")
    assert env.reset(seed=0)[0].shape == (4, 6, 3)


def test_a_life_is_an_episode_and_the_game_goes_on_after_it() -> None:
    env = EpisodicLife(LivesEnv())
    env.reset(seed=0)
    assert env.step(0)[2:4] == (False, False)
    frame, reward, terminated, truncated, info = env.step(1)
    assert (reward, terminated, truncated, info["lives"]) == (5.0, True, False, 2)
    # One step of action 0 lies between the last frame of a life and the first of the next.
    assert env.reset()[0][0, 0] == frame[0, 0] + 1
    assert env.step(1)[2]
    env.reset()
    assert env.step(1)[2]  # the last life
    assert env.reset()[0][0, 0] == 0


def test_a_seed_starts_a_game_also_between_two_lives() -> None:
    env = EpisodicLife(LivesEnv())
    env.reset(seed=0)
    env.step(1)
    frame, info = env.reset(seed=1)
    assert frame[0, 0] == 0
    assert info["lives"] == 3


def test_a_game_that_ends_in_the_step_between_two_lives_starts_anew() -> None:
    env = EpisodicLife(LivesEnv())
    env.reset(seed=0)
    for _ in range(8):
        env.step(0)
    assert env.step(1)[2:4] == (True, False)  # step 9; the next one is the game's last
    assert env.reset()[0][0, 0] == 0


def test_episodic_lives_need_lives() -> None:
    with pytest.raises(ValueError, match="lives in the info"):
        EpisodicLife(make_env("delta_iris/Catch-v0")).reset()
