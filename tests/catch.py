"""Catch: a block falls, a paddle moves; the smallest game that needs eyes, foresight and a policy."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

CELLS, PIXELS = 8, 2


class Catch(gym.Env):
    """8 × 8 cells of 2 × 2 pixels. The block starts in a random column of the top row and falls a row a step; the paddle
    starts anywhere in the bottom row and moves left, stays or moves right.

    The step in which the block reaches the paddle's row ends the episode, with a reward of 1 if they meet. Seven steps
    are enough to get anywhere, so the best return is 1 every time; a player that draws its actions uniformly gets 0.16.
    """

    observation_space = gym.spaces.Box(0, 255, (CELLS * PIXELS, CELLS * PIXELS, 3), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.row = 0
        self.column, self.paddle = self.np_random.integers(CELLS, size=2).tolist()
        return self._frame(), {}

    def step(self, action: int):
        self.paddle = min(max(self.paddle + int(action) - 1, 0), CELLS - 1)
        self.row += 1
        ended = self.row == CELLS - 1
        reward = float(ended and self.paddle == self.column)
        return self._frame(), reward, ended, False, {}

    def _frame(self) -> np.ndarray:
        cells = np.full((CELLS, CELLS, 3), 20, np.uint8)
        cells[CELLS - 1, self.paddle] = (60, 180, 75)
        cells[self.row, self.column] = (230, 25, 75)
        return cells.repeat(PIXELS, 0).repeat(PIXELS, 1)


gym.register("Catch-v0", entry_point=Catch)
