"""Checks of what an environment returns, before any of it is stored or learned from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["InvalidValueError", "as_achievements", "as_flag", "as_reward", "check_frame", "frame_hint"]

MAX_REWARD = float(np.finfo(np.float32).max)
"""The replay stores rewards as 32-bit floats."""

RGB_CHANNELS = 3


class InvalidValueError(Exception):
    """A returned value that cannot be used; the message continues "the environment …"."""


def check_frame(frame: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return a frame unchanged if it is what the observation space promises.

    Args:
        frame: what the environment returned as observation.
        shape: of the observation space.

    Raises:
        InvalidValueError: if it is not an array of uint8 of that shape.
    """
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.shape == shape:
        return frame
    if isinstance(frame, np.ndarray):
        found, hint = f"frame of shape {frame.shape} and type {frame.dtype}", frame_hint(frame.shape, frame.dtype)
    else:
        found, hint = f"observation of type {type(frame).__name__}", "return a NumPy array"
    raise InvalidValueError(f"returned a {found}, but its observation space says {shape} and uint8: {hint}")


def frame_hint(shape: tuple[int, ...] | None, dtype: Any) -> str:
    """Say how frames of a shape and type become (H, W, 3) uint8.

    Args:
        shape: of the frames; None if the observations are no arrays.
        dtype: of the frames.
    """
    if shape is None:
        return (
            "where they are a dict, keep its frame with SelectObservation: {key: …} in data.wrappers; otherwise draw "
            "frames with AddRenderObservation"
        )
    if len(shape) not in (2, 3):
        return (
            "draw frames with AddRenderObservation in data.wrappers and render_mode: rgb_array in "
            "data.environment_options"
        )
    if dtype != np.uint8:
        return (
            "its frames must be uint8 from 0 to 255: convert floats with RescaleObservation: {min_obs: 0, max_obs: "
            "255} and DtypeObservation: {dtype: uint8} in data.wrappers"
        )
    if len(shape) == 2 or shape[-1] == 1:
        return "its frames are grey, which its observation space must say: they become RGB then"
    if shape[-1] != RGB_CHANNELS and shape[0] in (1, RGB_CHANNELS):
        return "its channels come first: transpose the frames to (H, W, 3) in the environment"
    if shape[-1] != RGB_CHANNELS:
        return "its frames must be grey or RGB, so that the last axis has 1 or 3 entries"
    return "all frames must have one size (ResizeObservation in data.wrappers)"


def as_reward(reward: Any) -> float:
    """Convert a reward to a float.

    Args:
        reward: a Python or NumPy number, or an array with one element.

    Raises:
        InvalidValueError: if it is anything else, or not finite as a 32-bit float.
    """
    value = reward
    if type(value) is not float:
        array = _array(value)
        if array.dtype.kind not in "biuf" or array.size != 1:
            raise InvalidValueError(f"returned the reward {_short(reward)}: a reward must be a real number")
        value = float(array.item())
    if not abs(value) <= MAX_REWARD:
        raise InvalidValueError(
            f"returned the reward {_short(reward)}: a reward must be finite, also as a 32-bit float"
        )
    return value


def as_flag(name: str, flag: Any) -> bool:
    """Convert `terminated` or `truncated` to a bool.

    Args:
        name: of the flag, for the message.
        flag: a bool, 0 or 1, or an array with one of them.

    Raises:
        InvalidValueError: if it is anything else.
    """
    if type(flag) is bool:
        return flag
    array = _array(flag)
    if array.dtype.kind not in "biu" or array.size != 1 or array.item() not in (0, 1):
        raise InvalidValueError(f"returned {name}={_short(flag)}: it must be a bool")
    return bool(array.item())


def as_achievements(info: Any) -> dict[str, int] | None:
    """Read `achievements` from an info; everything else in it is ignored.

    Args:
        info: what `step` returned last.

    Returns:
        how often each was unlocked, or None if the info holds no achievements.

    Raises:
        InvalidValueError: if they are not a mapping of names to whole numbers.
    """
    found = info.get("achievements") if isinstance(info, Mapping) else None
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise InvalidValueError(f"returned achievements as {_short(found)}: they must map names to whole numbers")
    counts: dict[str, int] = {}
    for name, value in found.items():
        array = _array(value)
        whole = array.dtype.kind in "biu" or (array.dtype.kind == "f" and array.size == 1 and array.item() % 1 == 0)
        if not isinstance(name, str) or array.size != 1 or not whole:
            raise InvalidValueError(
                f"returned the achievement {_short(name)} as {_short(value)}: achievements must map names to whole "
                "numbers"
            )
        counts[str(name)] = int(array.item())
    return counts


def _array(value: Any) -> NDArray[Any]:
    """The value as an array, of type object if it is none."""
    try:
        return np.asarray(value)
    except Exception:
        return np.array(None)


def _short(value: Any) -> str:
    """The value on one line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = "…"
    return f"{text[:80]} ({type(value).__name__})"
