"""Catch: blocks fall and a paddle moves; a game small enough to learn on a laptop's CPU."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

__all__ = ["CatchEnv"]

Frame = NDArray[np.uint8]

BACKGROUND, PADDLE, BLOCK = (20, 20, 20), (60, 180, 75), (230, 25, 75)
"""RGB colours."""


class CatchEnv(gym.Env[Frame, np.int64]):
    """A square grid of cells, in which blocks fall one after another and a paddle in the bottom row catches them.

    Actions: 0 moves the paddle a cell to the left, 1 leaves it where it is, 2 moves it to the right; it stops at the
    edges. A block starts in a random column of the top row and falls one row a step. In the step in which it reaches
    the bottom row, the reward is 1 if the paddle is in its column, otherwise 0, and the next block appears in the top
    row. All other rewards are 0. The episode ends (`terminated`) when the last block has reached the bottom row.

    A block takes as many steps to fall as the paddle needs to cross the grid, so that the best return, `best_return`,
    is possible in every episode. A player that moves at random catches one block in `cells` on average.

    Frames are RGB, (cells · pixels, cells · pixels, 3) uint8. A block is never drawn in the bottom row: in the step in
    which it arrives there, the frame shows the next block. `info` is empty.

    Args:
        cells: number of rows and of columns of the grid, 2 or more.
        pixels: height and width of a cell, in pixels, 1 or more.
        blocks: number of blocks of an episode, 1 or more. An episode has `blocks · (cells − 1)` steps.
        render_mode: `"rgb_array"` or none; `render()` returns the latest frame.

    Attributes:
        best_return: the highest possible return of an episode, equal to `blocks`.

    Raises:
        ValueError: where an argument is too small, or the render mode is unknown.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  (gymnasium's own convention)

    def __init__(self, cells: int = 4, pixels: int = 4, blocks: int = 6, render_mode: str | None = None) -> None:
        if cells < 2 or pixels < 1 or blocks < 1:
            raise ValueError(f"cells is {cells}, pixels {pixels}, blocks {blocks}: give at least 2, 1 and 1")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode is {render_mode!r}: give 'rgb_array' or None")
        self.cells, self.pixels, self.blocks = cells, pixels, blocks
        self.render_mode = render_mode
        self.best_return = float(blocks)
        self.observation_space = gym.spaces.Box(0, 255, (cells * pixels, cells * pixels, 3), np.uint8)
        self.action_space = gym.spaces.Discrete(3)
        self._frame: Frame | None = None
        self._paddle = self._row = self._column = self._blocks_left = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Start an episode: the paddle's column and the first block's are random.

        Args:
            seed: of all random columns from now on; None goes on with the random numbers of before.
            options: not used.

        Returns:
            the first frame and an empty dict.
        """
        super().reset(seed=seed)
        self._paddle, self._blocks_left = int(self.np_random.integers(self.cells)), self.blocks
        self._drop()
        return self._draw(), {}

    def step(self, action: np.int64 | int) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Move the paddle, then let the block fall one row.

        Args:
            action: 0 to move left, 1 to stay, 2 to move right.

        Returns:
            the next frame, the reward, whether the episode ended, False (there is no time limit) and an empty dict.

        Raises:
            gymnasium.error.ResetNeeded: where no episode is under way.
        """
        if self._blocks_left == 0:
            raise gym.error.ResetNeeded("call reset() before step()")
        self._paddle = min(max(self._paddle + int(action) - 1, 0), self.cells - 1)
        self._row += 1
        reward = 0.0
        if self._row == self.cells - 1:
            reward = float(self._paddle == self._column)
            self._blocks_left -= 1
            self._drop()
        return self._draw(), reward, self._blocks_left == 0, False, {}

    def get_action_meanings(self) -> list[str]:
        """Names of the actions, for people."""
        return ["left", "stay", "right"]

    def render(self) -> Frame | None:
        """Return the latest frame, or None where `render_mode` is None.

        Raises:
            gymnasium.error.ResetNeeded: before the first episode.
        """
        if self.render_mode is None:
            return None
        if self._frame is None:
            raise gym.error.ResetNeeded("call reset() before render()")
        return self._frame.copy()

    def get_state(self) -> dict[str, Any]:
        """Return everything that the future depends on, as plain values; see `delta_iris.envs.state`.

        Raises:
            gymnasium.error.ResetNeeded: before the first episode.
        """
        if self._frame is None:
            raise gym.error.ResetNeeded("call reset() before get_state()")
        grid = [self._paddle, self._row, self._column, self._blocks_left]
        return {"random": self.np_random.bit_generator.state, "grid": grid}

    def set_state(self, state: dict[str, Any]) -> Frame:
        """Continue from a state of an environment with the same options.

        Args:
            state: what `get_state` returned.

        Returns:
            the present frame.
        """
        self.np_random.bit_generator.state = state["random"]
        self._paddle, self._row, self._column, self._blocks_left = state["grid"]
        return self._draw()

    def _drop(self) -> None:
        """Put the next block into the top row."""
        self._row, self._column = 0, int(self.np_random.integers(self.cells))

    def _draw(self) -> Frame:
        """Draw the grid and keep the frame for `render`."""
        grid = np.full((self.cells, self.cells, 3), BACKGROUND, np.uint8)
        grid[self.cells - 1, self._paddle] = PADDLE
        grid[self._row, self._column] = BLOCK
        self._frame = grid.repeat(self.pixels, 0).repeat(self.pixels, 1)
        return self._frame.copy()
