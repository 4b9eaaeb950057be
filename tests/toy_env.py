"""An environment that is not Crafter: oblong frames, three actions, no achievements."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class Blink(gym.Env):
    """The frame shows the number of the step as brightness; action 1 is rewarded; ten steps an episode."""

    observation_space = gym.spaces.Box(0, 255, (32, 64, 3), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def _frame(self) -> np.ndarray:
        return np.full((32, 64, 3), 20 * self.t, np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.t = 0
        return self._frame(), {}

    def step(self, action: int):
        self.t += 1
        return self._frame(), float(action == 1), self.t == 10, False, {}


gym.register("Blink-v0", entry_point=Blink)
