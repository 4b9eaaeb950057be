"""Catch: blocks fall and a paddle moves. The smallest game that takes eyes, foresight and a policy."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

CELLS, PIXELS, BLOCKS = 4, 4, 6

OPTIMAL = float(BLOCKS)
"""The best return, in every episode: a block takes as many steps as the paddle needs to get anywhere."""


class Catch(gym.Env):
    """4 × 4 cells of 4 × 4 pixels. A block starts in a random column of the top row and falls a row a step; the paddle
    in the bottom row moves left, stays or moves right.

    The step in which a block reaches the bottom row gives a reward of 1 where the paddle is then, and the next block
    appears; the sixth ends the episode. Whoever moves at random catches one in four.
    """

    observation_space = gym.spaces.Box(0, 255, (CELLS * PIXELS, CELLS * PIXELS, 3), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.paddle, self.blocks = int(self.np_random.integers(CELLS)), BLOCKS
        self._drop()
        return self._frame(), {}

    def _drop(self) -> None:
        self.row, self.column = 0, int(self.np_random.integers(CELLS))

    def step(self, action: int):
        self.paddle = min(max(self.paddle + int(action) - 1, 0), CELLS - 1)
        self.row += 1
        if self.row < CELLS - 1:
            return self._frame(), 0.0, False, False, {}
        reward = float(self.paddle == self.column)
        self.blocks -= 1
        self._drop()
        return self._frame(), reward, self.blocks == 0, False, {}

    def _frame(self) -> np.ndarray:
        cells = np.full((CELLS, CELLS, 3), 20, np.uint8)
        cells[CELLS - 1, self.paddle] = (60, 180, 75)
        cells[self.row, self.column] = (230, 25, 75)
        return cells.repeat(PIXELS, 0).repeat(PIXELS, 1)


gym.register("Catch-v0", entry_point=Catch)
