"""A world model as a `gymnasium.vector.VectorEnv`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from delta_iris.data.segment import SegmentBatch, to_images
from delta_iris.nn.sampling import sample_categorical
from delta_iris.world_models.base import WorldModel

__all__ = ["ImaginedVectorEnv"]

Bools = NDArray[np.bool_]
Frames = NDArray[np.uint8]


class ImaginedVectorEnv(VectorEnv[Frames, NDArray[np.int64], Any]):
    """Imagined episodes behind Gymnasium's interface, with NumPy arrays and automatic resets.

    All environments are stepped as one batch. Observations are frames (N, H, W, 3) uint8, rewards float64. An episode
    starts at the last frame of a segment that is drawn from `starts`, and ends where the world model samples an end
    (`terminated`) or after `max_steps` (`truncated`).

    Everything random comes from generators that belong to the environments and that `reset(seed=…)` seeds, so that a
    trainer's own random numbers and the imagined ones do not depend on each other.

    Args:
        world_model: imagines.
        num_actions: number of actions.
        num_envs: number of environments N.
        starts: S segments of real steps, on the world model's device; their last frames are real.
        max_steps: steps after which an episode is truncated.
        autoreset_mode: what follows an end, as Gymnasium defines it. `NEXT_STEP`: the next step ignores the action and
            returns the first frame of a new episode. `SAME_STEP`: the step that ends returns that frame, and
            `info["final_obs"]` holds the last one. `DISABLED`: `reset(options={"reset_mask": …})` has to follow.

    Raises:
        ValueError: if there are no environments, segments or steps.
    """

    def __init__(
        self,
        world_model: WorldModel[Any],
        num_actions: int,
        num_envs: int,
        starts: SegmentBatch,
        max_steps: int = 1000,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        if num_envs < 1 or max_steps < 1 or not len(starts.mask):
            raise ValueError(
                f"num_envs is {num_envs}, max_steps {max_steps} and there are {len(starts.mask)} starts: "
                "each must be at least 1"
            )
        self.num_envs, self.max_steps = num_envs, max_steps
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self._world_model, self._starts = world_model, starts
        self._device = starts.mask.device
        self._state: Any = None
        self._ages = np.zeros(num_envs, np.int64)
        self._ended = np.zeros(num_envs, np.bool_)
        height, width = starts.frames.shape[-2:]
        self.single_observation_space = gym.spaces.Box(0, 255, (height, width, 3), np.uint8)
        self.single_action_space = gym.spaces.Discrete(num_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.render_mode = "rgb_array"
        self.metadata = {"autoreset_mode": self.autoreset_mode, "render_modes": ["rgb_array"]}
        self._random_state: Tensor | None = None

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frames, dict[str, Any]]:
        """Start episodes anew; see `VectorEnv.reset`.

        Args:
            seed: of all random numbers from now on; None goes on with those of before, which the operating system
                seeds at the first reset.
            options: `reset_mask`, (N,) bool, names the environments to reset; all of them where it is missing.

        Raises:
            ValueError: if the seed is a list, because the environments share their random numbers; or if the mask has
                another shape or type, or nothing was reset before.
        """
        if isinstance(seed, list):
            raise ValueError("give one seed: the environments are one batch and share their random numbers")
        if seed is not None or self._state is None:
            super().reset(seed=seed)
            generator = torch.Generator(self._device).manual_seed(int(self.np_random.integers(2**63)))
            self._random_state = generator.get_state()
        which = (options or {}).get("reset_mask")
        if which is None:
            which, self._state = np.ones(self.num_envs, np.bool_), None
        elif not isinstance(which, np.ndarray) or which.dtype != np.bool_ or which.shape != (self.num_envs,):
            raise ValueError(f"reset_mask must be an array of {self.num_envs} bools")
        elif not which.any():
            raise ValueError("reset_mask names no environment")
        elif self._state is None:
            raise ValueError("reset all environments before you reset some of them")
        self._start_anew(which)
        return self._frames(), {}

    def step(self, actions: NDArray[np.int64]) -> tuple[Frames, NDArray[np.float64], Bools, Bools, dict[str, Any]]:
        """Step all environments; see `VectorEnv.step`.

        Args:
            actions: (N,) integers.

        Raises:
            gymnasium.error.ResetNeeded: before `reset`, or, where `autoreset_mode` is `DISABLED`, after an end.
        """
        if self._state is None or (self.autoreset_mode is AutoresetMode.DISABLED and self._ended.any()):
            raise gym.error.ResetNeeded("call reset() before step()")
        over, infos = self._ended, dict[str, Any]()
        chosen = torch.as_tensor(np.asarray(actions), dtype=torch.int64, device=self._device)
        with self._own_random_numbers(), torch.no_grad():
            self._state, prediction = self._world_model.step(self._state, chosen)
            end = sample_categorical(prediction.end_logits)
        rewards = prediction.reward.double().cpu().numpy() * ~over
        terminated = end.bool().cpu().numpy() & ~over
        self._ages += 1
        truncated = (self._ages >= self.max_steps) & ~terminated & ~over
        self._ended = terminated | truncated
        if over.any():
            self._start_anew(over)
        frames = self._frames()
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._ended.any():
            for index in np.flatnonzero(self._ended):
                infos = self._add_info(infos, {"final_obs": frames[index], "final_info": {}}, int(index))
            self._start_anew(self._ended)
            frames = self._frames()
        return frames, rewards, terminated, truncated, infos

    def render(self) -> tuple[Frames, ...]:
        """The present frames, (H, W, 3) uint8 each."""
        return tuple(self._frames())

    def _start_anew(self, which: Bools) -> None:
        """Start the episodes of the environments `which`, (N,) bool, anew."""
        rows = np.flatnonzero(which)
        drawn = torch.from_numpy(self.np_random.integers(len(self._starts.mask), size=len(rows)))
        segment, model = self._starts.select(drawn.to(self._device)), self._world_model
        with self._own_random_numbers():
            if self._state is None:
                self._state, _ = model.observe(model.initial_state(self.num_envs), segment)
            else:
                self._state = model.restart(self._state, torch.from_numpy(rows).to(self._device), segment)
        self._ages[rows], self._ended = 0, self._ended & ~which

    def _frames(self) -> Frames:
        return to_images(self._world_model.decode(self._state))

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Let PyTorch draw from this object's random numbers."""
        assert self._random_state is not None
        if self._device.type == "cuda":
            with torch.random.fork_rng([self._device]):
                torch.cuda.set_rng_state(self._random_state, self._device)
                yield
                self._random_state = torch.cuda.get_rng_state(self._device)
        else:
            with torch.random.fork_rng([]):
                torch.set_rng_state(self._random_state)
                yield
                self._random_state = torch.get_rng_state()
