"""Many environments at once, in processes of their own."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

import delta_iris.envs  # noqa: F401  (registers Crafter)
from delta_iris.errors import UserError

__all__ = ["FinalInfo", "check_environment", "make_vector_env"]


class FinalInfo(gym.Wrapper[Any, Any, Any, Any]):
    """Passes on `info` at an episode's last step only: what nobody reads need not travel between processes."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, _ = self.env.reset(**kwargs)
        return observation, {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, info if terminated or truncated else {}


def _make(environment: str, options: dict[str, Any]) -> gym.Env[Any, Any]:
    try:
        return gym.make(environment, **options)
    except (gym.error.Error, ModuleNotFoundError, TypeError) as error:
        raise UserError(
            f"data.environment {environment!r} with data.environment_options {options} cannot be made: {error}"
        ) from error


def _worker(environment: str, options: dict[str, Any]) -> gym.Env[Any, Any]:
    # Ctrl-C reaches every process of the terminal; the trainer alone decides what it means. (AsyncVectorEnv makes one
    # environment in the trainer's own process too, to look at its spaces.)
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # A forked process has inherited Lightning's handler, with which it would outlive every terminate().
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return FinalInfo(_make(environment, options))


def check_environment(environment: str, options: dict[str, Any], frame_size: tuple[int, int], num_actions: int) -> None:
    """Make one environment and step it, to learn early whether it fits the configuration.

    It also compiles Crafter's world generation once, before the processes are forked that would each do it.

    Raises:
        UserError: where its frames are not RGB of `frame_size` or it has not `num_actions` discrete actions.
    """
    env = _make(environment, options)
    space, actions = env.observation_space, env.action_space
    height, width = frame_size
    if not (isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and space.shape == (height, width, 3)):
        raise UserError(
            f"data.frame_size says {height}×{width} RGB frames, but {environment} gives "
            f"{getattr(space, 'shape', space)} of {space.dtype}: set data.frame_size to its height and width, or wrap "
            "the environment (gymnasium.wrappers.ResizeObservation)"
        )
    if not isinstance(actions, gym.spaces.Discrete) or actions.start != 0:
        raise UserError(f"data.environment {environment} has actions {actions}; only Discrete ones from 0 will do")
    if actions.n != num_actions:
        raise UserError(f"data.num_actions is {num_actions}, but {environment} has {actions.n}: set it to {actions.n}")
    env.reset(seed=0)
    env.close()


def make_vector_env(environment: str, options: dict[str, Any], num_envs: int) -> AsyncVectorEnv:
    """`num_envs` environments in processes, frames through shared memory.

    The step that ends an episode also begins the next (`SAME_STEP`): gymnasium's default would insert a step whose
    action is ignored, which must never reach the replay.
    """
    makers: list[Callable[[], gym.Env[Any, Any]]] = [partial(_worker, environment, options)] * num_envs
    return AsyncVectorEnv(makers, shared_memory=True, autoreset_mode=AutoresetMode.SAME_STEP)
