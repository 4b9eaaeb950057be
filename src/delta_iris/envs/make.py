"""Creating a single environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym

import delta_iris.envs.registration  # noqa: F401  (registers the environments with Gymnasium)
from delta_iris.envs.wrapper_list import WrapperEntry, apply_wrappers
from delta_iris.errors import UserError

__all__ = ["make_env"]

EXTRAS = {"ale_py": "atari", "minigrid": "minigrid"}
"""Extras of this package that install the module of an id."""


def make_env(
    environment: str = "delta_iris/Crafter-v1", wrappers: Sequence[WrapperEntry] | None = None, **options: Any
) -> gym.Env[Any, Any]:
    """Create an environment with `gymnasium.make`, and wrap it. Grey frames become RGB.

    Args:
        environment: a Gymnasium id. `module:id` imports the module first, which must register the id.
        wrappers: names of wrappers, or mappings of a name to arguments, the innermost first; see `data.wrappers`.
        options: keyword arguments for `gymnasium.make`: the environment's own and, say, `render_mode`.

    Raises:
        UserError: if the id is unknown, its module is not installed, the environment rejects the options,
            or a wrapper is unknown or does not fit.
    """
    try:
        env = gym.make(environment, **options)
    except (gym.error.Error, ModuleNotFoundError, TypeError, ValueError) as error:
        module = environment.partition(":")[0]
        if isinstance(error, ModuleNotFoundError) and module in EXTRAS:
            raise UserError(
                f"environment {environment!r} needs the package {module}: install the extra {EXTRAS[module]} (in a "
                f"clone, python -m pip install -e '.[{EXTRAS[module]}]')"
            ) from error
        hint = "check data.environment and data.environment_options"
        if isinstance(error, ModuleNotFoundError) and Path(f"{module}.py").exists():
            hint = f"to import {module}.py from this folder, set the environment variable PYTHONPATH=."
        text = str(error).rstrip(".")
        raise UserError(f"cannot create environment {environment!r} with options {options}: {text}: {hint}") from error
    return apply_wrappers(env, wrappers or ())
