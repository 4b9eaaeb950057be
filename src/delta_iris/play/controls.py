"""Names and keys of an environment's actions."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym

__all__ = ["Control", "controls_of", "idle_action"]

KEYS: dict[str, list[str]] = {
    # Crafter's own, and the arrows.
    "move_left": ["a", "ArrowLeft"],
    "move_right": ["d", "ArrowRight"],
    "move_up": ["w", "ArrowUp"],
    "move_down": ["s", "ArrowDown"],
    "do": [" "],
    "sleep": ["Tab"],
    "place_stone": ["r"],
    "place_table": ["t"],
    "place_furnace": ["f"],
    "place_plant": ["p"],
    "make_wood_pickaxe": ["1"],
    "make_stone_pickaxe": ["2"],
    "make_iron_pickaxe": ["3"],
    "make_wood_sword": ["4"],
    "make_stone_sword": ["5"],
    "make_iron_sword": ["6"],
    # Of many other games, Atari's among them.
    "left": ["ArrowLeft"],
    "right": ["ArrowRight"],
    "up": ["ArrowUp"],
    "down": ["ArrowDown"],
    "fire": [" "],
    "noop": ["0"],
    "stay": ["ArrowDown"],
}
"""Keys of actions that are known by name, as `KeyboardEvent.key` calls them."""

OTHER_KEYS = "123456789qwertyuiopasdfghjklzxcvbnm"
"""Keys of all other actions, in this order."""

IDLE = {"noop", "stay"}


class Control(NamedTuple):
    """How a person takes an action.

    Attributes:
        action: its number.
        name: for people, such as `move left`.
        keys: as `KeyboardEvent.key` calls them; empty if there are more actions than keys.
    """

    action: int
    name: str
    keys: list[str]


def controls_of(env: gym.Env[Any, Any], num_actions: int) -> list[Control]:
    """Give each action a name and keys.

    Names are those of the environment's `get_action_meanings()`, a convention of Atari's environments, if it has one.

    Args:
        env: the environment.
        num_actions: number of its actions.
    """
    meanings = getattr(env.unwrapped, "get_action_meanings", None)
    names = [str(each).lower() for each in meanings()] if callable(meanings) else []
    if len(names) != num_actions:
        names = [f"action {action}" for action in range(num_actions)]
    taken = {key for name in names for key in KEYS.get(name, [])}
    spare = iter([key for key in OTHER_KEYS if key not in taken])
    keys = [KEYS[name] if name in KEYS else [key for key in [next(spare, "")] if key] for name in names]
    return [Control(action, names[action].replace("_", " "), keys[action]) for action in range(num_actions)]


def idle_action(controls: list[Control]) -> int | None:
    """The action that does nothing; None if no action has such a name.

    Args:
        controls: of all actions.
    """
    return next((control.action for control in controls if control.name in IDLE), None)
