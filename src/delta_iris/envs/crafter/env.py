"""Crafter as a `gymnasium.Env` that replays: the same seed and actions give the same episode anywhere."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import crafter
import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from delta_iris.envs.crafter.determinism import make_crafter
from delta_iris.envs.crafter.drawing import draw_faster
from delta_iris.envs.crafter.world_generation import Beginning

__all__ = ["ACHIEVEMENTS", "CrafterEnv"]

Frame = NDArray[np.uint8]

ACHIEVEMENTS: tuple[str, ...] = tuple(crafter.constants.achievements)
"""Names of Crafter's 22 achievements."""


class CrafterEnv(gym.Env[Frame, np.int64]):
    """The Crafter benchmark (Hafner, 2022): 17 actions, 22 achievements, RGB frames.

    `info` holds `achievements` (how often each was done in this episode) and `inventory`, both dicts of ints.
    An episode is `terminated` by death and `truncated` after `length` steps.

    Args:
        size: height and width of a frame, in pixels.
        length: time limit of an episode, in steps.
        render_mode: `"rgb_array"` or none; `render()` gives the latest frame again, and draws nothing from the
            world's random numbers (at night Crafter's own renderer does, and would so change the episode).
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  (gymnasium's own convention)

    def __init__(self, size: int = 64, length: int = 10_000, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gym.spaces.Discrete(len(crafter.constants.actions))
        # While one is played, the other gets the next episode's world.
        self._env, other = (_make(size, length) for _ in range(2))
        self._next = Beginning(other, seed=0)
        self._frame: Frame | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Start an episode in a new world, drawn from `seed` or, without one, from the seed given before."""
        super().reset(seed=seed)
        world_seed = _draw_seed(self.np_random)
        if self._next.seed != world_seed:
            self._next = Beginning(self._next.env, world_seed)
        self._env, spare = self._next.finish(), self._env
        # A look ahead: where the next reset draws otherwise (it was given a seed), this world is dropped.
        self._next = Beginning(spare, _draw_seed(deepcopy(self.np_random)))
        self._frame = self._env._obs()
        player = self._env._player
        return self._frame, _info(player.achievements, player.inventory)

    def step(self, action: np.int64 | int) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Act once; see `gymnasium.Env.step`."""
        frame, reward, done, info = self._env.step(int(action))
        self._next.advance()
        self._frame = frame
        terminated = info["discount"] == 0
        return (
            frame,
            float(reward),
            terminated,
            bool(done and not terminated),
            _info(info["achievements"], info["inventory"]),
        )

    def render(self) -> Frame | None:
        """Return the latest frame, (size, size, 3) uint8, or None where `render_mode` is None."""
        if self.render_mode is None:
            return None
        if self._frame is None:
            raise gym.error.ResetNeeded("call reset() before render()")
        return self._frame.copy()


def _make(size: int, length: int) -> crafter.Env:
    env = make_crafter(size, length)
    draw_faster(env)
    return env


def _draw_seed(random: np.random.Generator) -> int:
    return int(random.integers(2**31 - 1))


def _info(achievements: dict[str, int], inventory: dict[str, int]) -> dict[str, Any]:
    return {"achievements": dict(achievements), "inventory": dict(inventory)}
