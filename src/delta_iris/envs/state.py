"""The state of an environment under way, so that a resumed run continues its episode.

An environment takes part if it has two methods:

- `get_state()` returns everything that its future depends on, as nested dicts, lists and tuples of numbers, strings,
  bytes, None and NumPy arrays.
- `set_state(state)` restores it in an environment that was made with the same options and reset. It may return the
  present frame, which is then compared with the one that was saved.

A wrapper with both methods speaks for everything that it wraps. Of Gymnasium's wrappers and ours, those without a state
between steps and `TimeLimit` are known. Any other wrapper may hold a state that nobody sees, so its environment starts
anew.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch

__all__ = ["from_checkpoint", "get_env_state", "set_env_state", "to_checkpoint"]

STATELESS_WRAPPERS = frozenset(
    {
        "AddRenderObservation",
        "ClipAction",
        "ClipReward",
        "DiscretizeAction",
        "DiscretizeObservation",
        "DtypeObservation",
        "FilterObservation",
        "FlattenObservation",
        "GrayscaleObservation",
        "MaxAndSkipObservation",
        "OrderEnforcing",
        "PassiveEnvChecker",
        "RecordEpisodeStatistics",  # changes the info only, which is not used
        "RepeatAction",
        "RescaleAction",
        "RescaleObservation",
        "ReshapeObservation",
        "ResizeObservation",
        # ours
        "RGBObservation",
        "SelectObservation",
    }
)
"""Wrappers of Gymnasium and ours whose steps do not depend on earlier ones. Those that call functions may."""

SAME_FRAMES = frozenset({"OrderEnforcing", "PassiveEnvChecker", "RecordEpisodeStatistics", "TimeLimit"})
"""Wrappers that return the frames of what they wrap."""


def get_env_state(env: gym.Env[Any, Any]) -> dict[str, Any]:
    """Return the state of an environment and its wrappers.

    Args:
        env: an environment that was reset.

    Raises:
        TypeError: if it cannot be restored, or its state is not plain.
    """
    elapsed, core, _ = _unwrap(env)
    state = core.get_state()
    _check_plain(state)
    return {"elapsed_steps": [limit._elapsed_steps for limit in elapsed], "state": state}


def set_env_state(env: gym.Env[Any, Any], state: dict[str, Any]) -> Any:
    """Restore what `get_env_state` returned.

    Args:
        env: an environment that was made with the same options and reset.
        state: the state.

    Returns:
        what the environment's `set_state` returned; None if it returned nothing, or a wrapper changes its frames.

    Raises:
        TypeError: if it cannot be restored.
    """
    elapsed, core, same_frames = _unwrap(env)
    frame = core.set_state(state["state"])
    for limit, steps in zip(elapsed, state["elapsed_steps"], strict=True):
        limit._elapsed_steps = steps
    return frame if same_frames else None


def to_checkpoint(value: Any) -> Any:
    """Convert a plain state so that `torch.load(weights_only=True)` takes it: arrays become tensors.

    Args:
        value: a plain state.

    Raises:
        TypeError: if an array has a type that tensors do not have.
    """
    if isinstance(value, dict):
        return {to_checkpoint(key): to_checkpoint(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_checkpoint(each) for each in value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        return value + b"."  # an empty value is the one that PyTorch refuses
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value


def from_checkpoint(value: Any) -> Any:
    """Undo `to_checkpoint`.

    Args:
        value: what it returned.
    """
    if isinstance(value, dict):
        return {from_checkpoint(key): from_checkpoint(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(from_checkpoint(each) for each in value)
    if isinstance(value, bytes):
        return value[:-1]
    return value.numpy() if isinstance(value, torch.Tensor) else value


def _unwrap(env: gym.Env[Any, Any]) -> tuple[list[Any], Any, bool]:
    """Time limits, the outermost layer that can return its state, and whether that layer's frames pass unchanged."""
    limits: list[Any] = []
    same_frames = True
    while not (callable(getattr(type(env), "get_state", None)) and callable(getattr(type(env), "set_state", None))):
        kind = type(env)
        if not isinstance(env, gym.Wrapper):
            raise TypeError(f"{kind.__name__} has no get_state and set_state")
        known = kind.__module__.startswith(("gymnasium.wrappers.", "delta_iris.envs.wrappers"))
        if known and kind.__name__ == "TimeLimit":
            limits.append(env)
        elif not (known and kind.__name__ in STATELESS_WRAPPERS):
            raise TypeError(f"its wrapper {kind.__name__} has no get_state and set_state")
        same_frames &= kind.__name__ in SAME_FRAMES
        env = env.env
    return limits, env, same_frames


def _check_plain(value: Any) -> None:
    if isinstance(value, dict):
        for key, each in value.items():
            _check_plain(key)
            _check_plain(each)
    elif type(value) in (list, tuple):
        for each in value:
            _check_plain(each)
    elif isinstance(value, np.ndarray):
        torch.from_numpy(value[:0].copy() if value.ndim else value.copy())
    elif not (
        value is None or type(value) in (bool, int, float, str, bytes) or isinstance(value, np.number | np.bool_)
    ):
        raise TypeError(f"its state holds a {type(value).__name__}, which is not plain")
