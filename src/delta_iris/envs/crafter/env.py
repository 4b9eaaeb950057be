"""Crafter as a deterministic `gymnasium.Env`."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import crafter
import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from delta_iris.envs.crafter.determinism import make_crafter
from delta_iris.envs.crafter.drawing import install_fast_views
from delta_iris.envs.crafter.world_generation import IncrementalReset

__all__ = ["ACHIEVEMENTS", "CrafterEnv"]

Frame = NDArray[np.uint8]

ACHIEVEMENTS: tuple[str, ...] = tuple(crafter.constants.achievements)
"""Names of Crafter's 22 achievements."""


class CrafterEnv(gym.Env[Frame, np.int64]):
    """The Crafter benchmark (Hafner, 2022): an open-world survival game with 17 actions and 22 achievements.

    The same seed and the same actions give the same episode in any process, unlike in `crafter.Env`.

    Observations are RGB frames, (size, size, 3) uint8. `info` contains `achievements` (how often each was unlocked in
    this episode) and `inventory` (the amount of each item), both as dicts of ints. An episode is `terminated` by death
    and `truncated` after `length` steps.

    Source: https://arxiv.org/abs/2109.06780

    Args:
        size: height and width of a frame, in pixels.
        length: time limit of an episode, in steps.
        render_mode: `"rgb_array"` or None.

    Attributes:
        engine: the `crafter.Env` of the current episode. `reset` replaces it.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  (gymnasium's own convention)

    def __init__(self, size: int = 64, length: int = 10_000, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gym.spaces.Discrete(len(crafter.constants.actions))
        # While one engine plays an episode, the world of the next episode is generated in the other.
        self.engine, other = (_make_engine(size, length) for _ in range(2))
        self._next_reset = IncrementalReset(other, seed=0)
        self._frame: Frame | None = None
        # Random state before the episode's reset, and the actions since: the episode can be repeated from them.
        self._start: Mapping[str, Any] = {}
        self._actions = bytearray()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Start an episode in a new world.

        Args:
            seed: seed of the sequence of worlds; None continues the current sequence.
            options: not used.

        Returns:
            The first frame, and `info`.
        """
        super().reset(seed=seed)
        self._start, self._actions = self.np_random.bit_generator.state, bytearray()
        world_seed = _draw_seed(self.np_random)
        if self._next_reset.seed != world_seed:
            self._next_reset = IncrementalReset(self._next_reset.env, world_seed)
        self.engine, spare = self._next_reset.finish(), self.engine
        # Peek at the next seed. If the next reset is given a seed instead, it discards this world.
        self._next_reset = IncrementalReset(spare, _draw_seed(deepcopy(self.np_random)))
        self._frame = self.engine._obs()
        player = self.engine._player
        return self._frame, _info(player.achievements, player.inventory)

    def step(self, action: np.int64 | int) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Perform an action.

        Args:
            action: an integer from 0 to 16.

        Returns:
            The next frame, the reward, whether the player died, whether the time limit was reached, and `info`.
        """
        frame, reward, done, info = self.engine.step(int(action))
        self._actions.append(int(action))
        self._next_reset.advance()
        self._frame = frame
        terminated = info["discount"] == 0
        return (
            frame,
            float(reward),
            terminated,
            bool(done and not terminated),
            _info(info["achievements"], info["inventory"]),
        )

    def get_action_meanings(self) -> list[str]:
        """Names of the actions, for people."""
        return list(crafter.constants.actions)

    def get_state(self) -> dict[str, Any]:
        """Return the random state at the episode's start and the actions since; see `delta_iris.envs.state`.

        Raises:
            gymnasium.error.ResetNeeded: before the first `reset`.
        """
        if not self._start:
            raise gym.error.ResetNeeded("call reset() before get_state()")
        return {"random": self._start, "actions": bytes(self._actions)}

    def set_state(self, state: dict[str, Any]) -> Frame:
        """Repeat an episode under way, in an environment with the same options.

        Args:
            state: what `get_state` returned.

        Returns:
            the present frame.
        """
        self.np_random.bit_generator.state = state["random"]
        frame, _ = self.reset()
        for action in state["actions"]:
            frame = self.step(action)[0]
        return frame

    def render(self) -> Frame | None:
        """Return a copy of the latest frame, (size, size, 3) uint8, or None if `render_mode` is None.

        The frame is not rendered again, because at night Crafter's renderer uses the world's random numbers and would
        thus change the episode.

        Raises:
            gymnasium.error.ResetNeeded: before the first `reset`.
        """
        if self.render_mode is None:
            return None
        if self._frame is None:
            raise gym.error.ResetNeeded("call reset() before render()")
        return self._frame.copy()


def _make_engine(size: int, length: int) -> crafter.Env:
    engine = make_crafter(size, length)
    install_fast_views(engine)
    return engine


def _draw_seed(random: np.random.Generator) -> int:
    return int(random.integers(2**31 - 1))


def _info(achievements: dict[str, int], inventory: dict[str, int]) -> dict[str, Any]:
    return {"achievements": dict(achievements), "inventory": dict(inventory)}
