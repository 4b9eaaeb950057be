"""Wrappers listed in a configuration: checked by name and by argument, and applied in order.

A list names wrappers only by the names below, so that a file cannot run code of its own. Those of Gymnasium that take
functions or write files are left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import gymnasium as gym
from gymnasium import wrappers as gymnasium_wrappers

from delta_iris.envs.wrappers import EpisodicLife, RGBObservation, SelectObservation, is_grey
from delta_iris.errors import UserError

__all__ = ["GAME_WRAPPERS", "TRAINING_WRAPPERS", "WrapperEntry", "apply_wrappers", "check_wrappers"]

WrapperEntry = str | dict[str, Any]
"""The name of a wrapper, or a mapping of it to its arguments: `{ResizeObservation: {shape: [64, 64]}}`."""

GAME_WRAPPERS: dict[str, type[gym.Wrapper[Any, Any, Any, Any]]] = {
    "SelectObservation": SelectObservation,
    **{
        name: getattr(gymnasium_wrappers, name)
        for name in (
            "AddRenderObservation",
            "AddWhiteNoise",
            "AtariPreprocessing",
            "DelayObservation",
            "DiscretizeAction",
            "DtypeObservation",
            "GrayscaleObservation",
            "MaxAndSkipObservation",
            "ObstructView",
            "RepeatAction",
            "RescaleObservation",
            "ReshapeObservation",
            "ResizeObservation",
            "StickyAction",
            "TimeLimit",
        )
        if hasattr(gymnasium_wrappers, name)  # older releases of Gymnasium have fewer
    },
}
"""What `data.wrappers` may name: the game that the agent plays in training and in tests."""

TRAINING_WRAPPERS: dict[str, type[gym.Wrapper[Any, Any, Any, Any]]] = {
    "ClipReward": gymnasium_wrappers.ClipReward,
    "EpisodicLife": EpisodicLife,
    "TimeLimit": gymnasium_wrappers.TimeLimit,
}
"""What `data.training_wrappers` may name: rewards and ends that the agent learns from, but is not tested with."""


def check_wrappers(key: str, entries: Any, allowed: Mapping[str, type]) -> None:
    """Check names and arguments of a list of wrappers, before any environment is made.

    Args:
        key: of the configuration, for messages.
        entries: the list, or None.
        allowed: the wrappers that it may name.

    Raises:
        UserError: it names the entry, and what it may be.
    """
    if not isinstance(entries, Sequence | None) or isinstance(entries, str):
        raise UserError(f"{key} is {str(entries)[:100]!r}: it must be a list, such as [{_EXAMPLE}]")
    for index, entry in enumerate(entries or ()):
        name, arguments = _parse(f"{key}[{index}]", entry)
        if name not in allowed:
            raise UserError(f"{key}[{index}] names the wrapper {name[:100]!r}, {_instead(name, allowed)}")
        signature = inspect.signature(allowed[name])
        taken = list(signature.parameters)[1:]
        unknown = [argument for argument in arguments if argument not in taken]
        missing = [
            parameter.name
            for parameter in list(signature.parameters.values())[1:]
            if parameter.default is parameter.empty and parameter.name not in arguments
        ]
        if unknown or missing:
            problem = f"unknown argument {unknown[0][:100]!r}" if unknown else f"the argument {missing[0]!r} is missing"
            raise UserError(f"{key}[{index}].{name}: {problem}: it takes {', '.join(taken) or 'no arguments'}")
        if key == "data.wrappers" and arguments.get("terminal_on_life_loss"):
            raise UserError(
                f"{key}[{index}].{name}.terminal_on_life_loss would end test episodes with the first life: leave it "
                "out, and list EpisodicLife in data.training_wrappers"
            )


def apply_wrappers(env: gym.Env[Any, Any], entries: Sequence[WrapperEntry]) -> gym.Env[Any, Any]:
    """Wrap an environment, the first entry innermost. Grey frames become RGB.

    Args:
        env: the environment.
        entries: the wrappers.

    Raises:
        UserError: if a wrapper is unknown, or does not fit the environment or its arguments.
    """
    allowed = GAME_WRAPPERS | TRAINING_WRAPPERS
    check_wrappers("wrappers", entries, allowed)
    for entry in entries:
        name, arguments = _parse("wrappers", entry)
        try:
            env = allowed[name](env, **{key: _to_tuple(value) for key, value in arguments.items()})
        except Exception as error:  # Gymnasium's wrappers raise errors of any kind
            text = " ".join(str(error).split())[:300]
            if isinstance(error, gym.error.DependencyNotInstalled) and "cv2" in text:
                raise UserError(
                    f"the wrapper {name} needs OpenCV: python -m pip install opencv-python-headless"
                ) from error
            raise UserError(
                f"the wrapper {name} cannot be applied with {arguments or 'no arguments'}: {type(error).__name__}"
                f"{': ' * bool(text)}{text}: check data.wrappers and data.training_wrappers"
            ) from error
    return RGBObservation(env) if is_grey(env.observation_space) else env


_EXAMPLE = "ResizeObservation: {shape: [64, 64]}"


def _parse(key: str, entry: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping) and len(entry) == 1:
        ((name, arguments),) = entry.items()
        if isinstance(name, str) and isinstance(arguments, Mapping | None):
            return name, {str(argument): value for argument, value in (arguments or {}).items()}
    raise UserError(f"{key} is {str(entry)[:100]}: write one wrapper with its arguments, such as {_EXAMPLE}")


def _instead(name: str, allowed: Mapping[str, type]) -> str:
    """What to write instead of a name that is not allowed."""
    if name in TRAINING_WRAPPERS:
        return "which would change the returns that tests report: list it in data.training_wrappers"
    if name in GAME_WRAPPERS:
        return "which would change the game that the agent is tested in: list it in data.wrappers"
    # Suggested even where nothing is near: the list is short.
    near = get_close_matches(name, allowed, n=3, cutoff=0.5) or sorted(allowed)
    if hasattr(gymnasium_wrappers, name):
        return f"which a configuration cannot use; it can use {', '.join(sorted(allowed))}"
    return f"which is not known: choose {' or '.join(near)}"


def _to_tuple(value: Any) -> Any:
    """YAML has no tuples, which some wrappers insist on."""
    return tuple(_to_tuple(each) for each in value) if isinstance(value, list) else value
