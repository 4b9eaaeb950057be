"""The check of an environment against the configuration, before a run begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from delta_iris.envs.make import make_env
from delta_iris.envs.pool import EnvPool
from delta_iris.envs.registration import ENTRY_POINTS
from delta_iris.envs.wrapper_list import WrapperEntry
from delta_iris.errors import UserError

__all__ = ["check_env"]

STEPS = 3


def check_env(
    environment: str,
    options: dict[str, Any],
    frame_size: tuple[int, int],
    num_actions: int,
    step_timeout: float = 60.0,
    wrappers: Sequence[WrapperEntry] = (),
) -> None:
    """Check that an environment matches the configuration: reset it, take a few steps and look at what it returns.

    The environment runs in a process with a time limit, so that one that hangs or dies is named in one line. For
    Crafter, this also compiles the world generation in this process, so that the environments' processes need not.

    Args:
        environment: a Gymnasium id; see `make_env`.
        options: keyword arguments for `gymnasium.make`.
        frame_size: expected (height, width) of a frame, in pixels.
        num_actions: expected number of discrete actions.
        step_timeout: seconds that making the environment, a reset and a step may take.
        wrappers: see `make_env`.

    Raises:
        UserError: if the environment cannot be created, reset or stepped, its frames are not RGB frames of
            `frame_size`, it does not have `num_actions` discrete actions, or it returns something that cannot be used.
    """
    if environment in ENTRY_POINTS:
        # Ours do not hang. Others stay out of this process: their threads would not survive in forked ones.
        env = make_env(environment, wrappers, **options)
        env.reset(seed=0)
        env.close()
    pool = EnvPool(environment, options, 1, wrappers=wrappers, step_timeout=step_timeout, max_env_failures=0)
    try:
        _check_spaces(pool, frame_size, num_actions)
        frames = [pool.reset(seed=0)[0]]
        frames += [pool.step(np.array([step % num_actions]))[0] for step in range(STEPS)]
        pool.reset_one(0)
    finally:
        pool.close()
    if max(int(each.max()) for each in frames) == 1:
        raise UserError(
            f"the frames of {environment} hold only the values 0 and 1 and would be black: scale them to 0 to 255, "
            "or draw them with AddRenderObservation in data.wrappers"
        )


def _check_spaces(pool: EnvPool, frame_size: tuple[int, int], num_actions: int) -> None:
    height, width = frame_size
    shape = pool.single_observation_space.shape
    if shape != (height, width, 3):
        raise UserError(
            f"data.frame_size says {height}×{width} RGB frames, but the observations of {pool.environment} have shape "
            f"{shape}: set data.frame_size to the height and width of its frames, or list "
            f"ResizeObservation: {{shape: [{height}, {width}]}} in data.wrappers"
        )
    found = int(pool.single_action_space.n)  # type: ignore[attr-defined]
    if found != num_actions:
        raise UserError(f"data.num_actions is {num_actions}, but {pool.environment} has {found}: set it to {found}")
