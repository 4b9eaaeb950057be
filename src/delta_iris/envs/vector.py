"""Several environments in parallel, one process each."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from delta_iris.envs.make import make_env
from delta_iris.errors import UserError

__all__ = ["FinalInfoOnly", "check_env", "make_vector_env"]


class FinalInfoOnly(gym.Wrapper[Any, Any, Any, Any]):
    """Returns an empty `info` except at the last step of an episode, so that less data is sent between processes."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; see `gymnasium.Env.reset`.

        Args:
            kwargs: passed to the environment's `reset`.
        """
        observation, _ = self.env.reset(**kwargs)
        return observation, {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment; see `gymnasium.Env.step`.

        Args:
            action: the action.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, info if terminated or truncated else {}


def check_env(environment: str, options: dict[str, Any], frame_size: tuple[int, int], num_actions: int) -> None:
    """Check that an environment matches the configuration.

    This also compiles Crafter's world generation, so that the environment processes do not each compile it.

    Args:
        environment: a Gymnasium id; see `make_env`.
        options: keyword arguments for `gymnasium.make`.
        frame_size: expected (height, width) of a frame, in pixels.
        num_actions: expected number of discrete actions.

    Raises:
        UserError: if the environment cannot be created, its observations are not RGB frames of `frame_size`, or it
            does not have `num_actions` discrete actions.
    """
    env = make_env(environment, **options)
    space, actions = env.observation_space, env.action_space
    height, width = frame_size
    if not (isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and space.shape == (height, width, 3)):
        raise UserError(
            f"data.frame_size says {height}×{width} RGB frames, but the observations of {environment} have shape "
            f"{getattr(space, 'shape', space)} and type {space.dtype}: set data.frame_size to the height and width of "
            "its frames, or wrap the environment (gymnasium.wrappers.ResizeObservation)"
        )
    if not isinstance(actions, gym.spaces.Discrete) or actions.start != 0:
        raise UserError(
            f"data.environment {environment} has the action space {actions}, but only Discrete with start 0 is "
            "supported: wrap the environment"
        )
    if actions.n != num_actions:
        raise UserError(f"data.num_actions is {num_actions}, but {environment} has {actions.n}: set it to {actions.n}")
    env.reset(seed=0)
    env.close()


def make_vector_env(environment: str, options: dict[str, Any], num_envs: int) -> AsyncVectorEnv:
    """Create environments in separate processes, with frames in shared memory.

    The step that ends an episode also starts the next one (`AutoresetMode.SAME_STEP`). Gymnasium's default inserts a
    step whose action is ignored; such a step must not be stored in the replay.

    Args:
        environment: a Gymnasium id; see `make_env`.
        options: keyword arguments for `gymnasium.make`.
        num_envs: number of environments.
    """
    makers: list[Callable[[], gym.Env[Any, Any]]] = [partial(_make_worker_env, environment, options)] * num_envs
    return AsyncVectorEnv(makers, shared_memory=True, autoreset_mode=AutoresetMode.SAME_STEP)


def _make_worker_env(environment: str, options: dict[str, Any]) -> gym.Env[Any, Any]:
    # AsyncVectorEnv also creates one environment in the main process to read its spaces; signals stay untouched there.
    if multiprocessing.parent_process() is not None:
        # Ctrl-C reaches all processes of the terminal, but only the trainer decides what it means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # A forked process inherits Lightning's SIGTERM handler, which would keep it alive after terminate().
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return FinalInfoOnly(make_env(environment, **options))
