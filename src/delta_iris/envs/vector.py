"""Several environments in parallel."""

from __future__ import annotations

from typing import Any

from delta_iris.envs.check import check_env
from delta_iris.envs.pool import EnvPool

__all__ = ["check_env", "make_vector_env"]


def make_vector_env(environment: str, options: dict[str, Any], num_envs: int, **limits: Any) -> EnvPool:
    """Create environments in separate processes, with frames in shared memory; see `EnvPool`.

    Args:
        environment: a Gymnasium id; see `make_env`.
        options: keyword arguments for `gymnasium.make`.
        num_envs: number of environments.
        limits: keyword arguments for `EnvPool`: wrappers, time limits, the number of failures and `should_stop`.
    """
    return EnvPool(environment, options, num_envs, **limits)
