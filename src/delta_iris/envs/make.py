"""Creating a single environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

import delta_iris.envs.registration  # noqa: F401  (registers the environments with Gymnasium)
from delta_iris.errors import UserError

__all__ = ["make_env"]


def make_env(environment: str = "delta_iris/Crafter-v1", **options: Any) -> gym.Env[Any, Any]:
    """Create an environment with `gymnasium.make`.

    Args:
        environment: a Gymnasium id. `module:id` imports the module first, which must register the id.
        options: keyword arguments for `gymnasium.make`: the environment's own and, say, `render_mode`.

    Raises:
        UserError: if the id is unknown, its module is not installed, or the environment rejects the options.
    """
    try:
        return gym.make(environment, **options)
    except (gym.error.Error, ModuleNotFoundError, TypeError, ValueError) as error:
        raise UserError(
            f"cannot create environment {environment!r} with options {options}: {error}: check data.environment and "
            "data.environment_options"
        ) from error
