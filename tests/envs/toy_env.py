"""A toy environment that differs from Crafter: oblong frames, three actions, no achievements."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]


class BlinkEnv(gym.Env[Frame, np.int64]):
    """The brightness of the frame shows the step; action 1 gives a reward of 1; an episode has ten steps."""

    observation_space = gym.spaces.Box(0, 255, (32, 64, 3), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        super().reset(seed=seed)
        self.num_steps = 0
        return self._frame(), {}

    def step(self, action: np.int64 | int) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        self.num_steps += 1
        return self._frame(), float(action == 1), self.num_steps == 10, False, {}

    def _frame(self) -> Frame:
        return np.full((32, 64, 3), 20 * self.num_steps, np.uint8)


gym.register("Blink-v0", entry_point=f"{__name__}:BlinkEnv")
