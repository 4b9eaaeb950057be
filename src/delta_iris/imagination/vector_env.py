"""A world model as a `gymnasium.vector.VectorEnv`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from delta_iris.data.segment import SegmentBatch, to_images
from delta_iris.imagination.rollout import ImaginedEnv
from delta_iris.world_models.base import WorldModel

__all__ = ["ImaginedVectorEnv"]

Frames = NDArray[np.uint8]


class ImaginedVectorEnv(VectorEnv[Frames, NDArray[np.int64], Any]):
    """Imagined episodes behind Gymnasium's interface, with NumPy arrays and automatic resets.

    Each environment has its own state in the world model, so that they can be reset one by one. They are stepped one
    after the other; for training, use `rollout`, which steps them together.

    Observations are frames (N, H, W, 3) uint8. As Gymnasium's `AutoresetMode.NEXT_STEP` says, the step after an end
    resets the environment: its action is ignored and its reward is 0.

    Args:
        world_model: imagines.
        num_actions: number of actions.
        num_envs: number of environments N.
        sample_start: gives a segment of real steps, B = 1, that an episode starts from.
        max_steps: steps after which an episode is truncated.
    """

    def __init__(
        self,
        world_model: WorldModel[Any],
        num_actions: int,
        num_envs: int,
        sample_start: Callable[[], SegmentBatch],
        max_steps: int = 1000,
    ) -> None:
        self.num_envs, self.max_steps = num_envs, max_steps
        self._sample_start = sample_start
        self._envs = [ImaginedEnv(world_model) for _ in range(num_envs)]
        self._ages = np.zeros(num_envs, np.int64)
        self._ended = np.zeros(num_envs, np.bool_)
        height, width = sample_start().frames.shape[-2:]
        self.single_observation_space = gym.spaces.Box(0, 255, (height, width, 3), np.uint8)
        self.single_action_space = gym.spaces.Discrete(num_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": ["rgb_array"]}

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frames, dict[str, Any]]:
        """Start all environments anew; see `VectorEnv.reset`.

        Args:
            seed: of PyTorch's random numbers, which imagination is sampled from.
            options: not used.
        """
        if isinstance(seed, int):
            torch.manual_seed(seed)
        for index in range(self.num_envs):
            self._reset_one(index)
        return self._frames(), {}

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[Frames, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step all environments; see `VectorEnv.step`.

        Args:
            actions: (N,) int64.
        """
        rewards, terminated = np.zeros(self.num_envs), np.zeros(self.num_envs, np.bool_)
        for index, env in enumerate(self._envs):
            if self._ended[index]:
                self._reset_one(index)
                continue
            device = env.world_model.decode(env.state).device
            _, reward, end = env.step(torch.tensor([int(actions[index])], device=device))
            rewards[index], terminated[index] = reward.item(), bool(end.item())
            self._ages[index] += 1
        truncated = (self._ages >= self.max_steps) & ~terminated
        self._ended = terminated | truncated
        return self._frames(), rewards, terminated, truncated, {}

    def render(self) -> tuple[Frames, ...]:
        """The present frames, (H, W, 3) uint8 each."""
        return tuple(self._frames())

    def _reset_one(self, index: int) -> None:
        self._envs[index].reset(self._sample_start())
        self._ages[index], self._ended[index] = 0, False

    def _frames(self) -> Frames:
        return to_images(torch.cat([env.render() for env in self._envs]))
