"""Environments: Crafter, Catch, and any registered Gymnasium environment with RGB frames and discrete actions."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import delta_iris.envs.registration  # noqa: F401  (registers the environments with Gymnasium)
from delta_iris.envs.make import make_env

if TYPE_CHECKING:
    from delta_iris.envs.catch import CatchEnv
    from delta_iris.envs.crafter.env import ACHIEVEMENTS, CrafterEnv

__all__ = ["ACHIEVEMENTS", "CatchEnv", "CrafterEnv", "make_env"]

_MODULES = {
    "ACHIEVEMENTS": "delta_iris.envs.crafter.env",
    "CatchEnv": "delta_iris.envs.catch",
    "CrafterEnv": "delta_iris.envs.crafter.env",
}


def __getattr__(name: str) -> Any:
    # Importing Crafter takes a second, which a run with another environment does not need to spend.
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
