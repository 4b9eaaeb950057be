"""Wrappers that Gymnasium lacks: one key of dict observations, grey frames as RGB, and lives as episodes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

__all__ = ["EpisodicLife", "RGBObservation", "SelectObservation"]


class SelectObservation(gym.ObservationWrapper[Any, Any, Any]):
    """Keeps one entry of dict observations.

    Args:
        env: an environment whose observations are dicts.
        key: of the entry to keep.

    Raises:
        ValueError: if the observations are not dicts, or have no such key.
    """

    def __init__(self, env: gym.Env[Any, Any], key: str) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, gym.spaces.Dict):
            raise ValueError(f"the observations are no dict, but {type(space).__name__}")
        if key not in space.spaces:
            raise ValueError(f"the observations have no key {key!r}: choose one of {', '.join(space.spaces)}")
        self.key, self.observation_space = key, space[key]

    def observation(self, observation: Any) -> Any:
        """Return the entry.

        Args:
            observation: a dict.
        """
        return observation[self.key]


class RGBObservation(gym.ObservationWrapper[NDArray[np.uint8], Any, Any]):
    """Repeats the channel of grey frames three times, because replay and networks hold RGB.

    `make_env` adds it by itself. Three equal channels cost the replay a few bytes: its compression finds them.

    Args:
        env: an environment whose observations are (H, W) or (H, W, 1) uint8.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        assert is_grey(env.observation_space)
        height, width = env.observation_space.shape[:2]  # type: ignore[index]
        self.observation_space = gym.spaces.Box(0, 255, (height, width, 3), np.uint8)

    def observation(self, observation: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the frame as RGB.

        Args:
            observation: (H, W) or (H, W, 1) uint8.

        Returns:
            (H, W, 3) uint8.
        """
        grey = observation if observation.ndim == 3 else observation[..., None]
        return grey.repeat(3, axis=-1)


def is_grey(space: gym.Space[Any]) -> bool:
    """Whether observations are grey frames, (H, W) or (H, W, 1) uint8.

    Args:
        space: of the observations.
    """
    if not isinstance(space, gym.spaces.Box) or space.dtype != np.uint8:
        return False
    return len(space.shape) == 2 or (len(space.shape) == 3 and space.shape[-1] == 1 and min(space.shape[:2]) > 1)


class EpisodicLife(gym.Wrapper[Any, Any, Any, Any]):
    """Ends an episode where a life is lost, as the Atari 100k protocol does in training.

    The next episode goes on in the same game, after one step of action 0. Only after its end is the game reset.

    Args:
        env: an environment whose infos hold the remaining `lives`.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._lives, self._game_over = 0, True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Go on with the next life, or start a game where the last one is over or a seed is given.

        Args:
            seed: of the game to start.
            options: of the game to start.

        Raises:
            ValueError: if the environment does not tell its lives.
        """
        if seed is None and not self._game_over:
            observation, _, terminated, truncated, info = self.env.step(0)
            if not (terminated or truncated):
                self._lives = _lives(info)
                return observation, info
        observation, info = self.env.reset(seed=seed, options=options)
        self._lives, self._game_over = _lives(info), False
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; `terminated` is true where a life is lost.

        Args:
            action: of the environment.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._game_over = terminated or truncated
        lives, before = _lives(info), self._lives
        self._lives = lives
        return observation, reward, terminated or lives < before, truncated, info


def _lives(info: dict[str, Any]) -> int:
    if "lives" not in info:
        raise ValueError("EpisodicLife needs the remaining lives in the info, as the Atari environments have them")
    return int(info["lives"])
