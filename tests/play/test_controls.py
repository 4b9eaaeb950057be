"""Tests of names and keys of actions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

from delta_iris.envs.make import make_env
from delta_iris.play.controls import controls_of, idle_action


class NamedEnv(gym.Env[Any, Any]):
    """An environment with names of actions, as Atari's have them."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def get_action_meanings(self) -> list[str]:
        """The names."""
        return self.names


def keys_of(env: gym.Env[Any, Any], num_actions: int) -> dict[str, list[str]]:
    return {name: keys for _, name, keys in controls_of(env, num_actions)}


def test_crafter_has_its_own_keys() -> None:
    env = make_env("delta_iris/Crafter-v1")
    controls = controls_of(env, 17)
    found = {name: keys[0] for _, name, keys in controls}
    # Those of crafter's own program, crafter/run_gui.py.
    expected = {"move left": "a", "move right": "d", "move up": "w", "move down": "s", "do": " ", "sleep": "Tab"}
    expected |= {"place stone": "r", "place table": "t", "place furnace": "f", "place plant": "p"}
    tools = [f"make {material} {tool}" for tool in ("pickaxe", "sword") for material in ("wood", "stone", "iron")]
    expected |= {name: str(number) for number, name in enumerate(tools, start=1)}
    assert found == expected | {"noop": "0"}
    assert [action for action, _, _ in controls] == list(range(17))
    assert idle_action(controls) == 0


def test_named_actions_of_other_games_have_arrows() -> None:
    assert keys_of(make_env("delta_iris/Catch-v0"), 3) == {
        "left": ["ArrowLeft"],
        "stay": ["ArrowDown"],
        "right": ["ArrowRight"],
    }
    atari = keys_of(NamedEnv(["NOOP", "FIRE", "UP", "UPFIRE"]), 4)
    assert atari == {"noop": ["0"], "fire": [" "], "up": ["ArrowUp"], "upfire": ["1"]}


@pytest.mark.parametrize("num_actions", [1, 4, 12, 60])
@pytest.mark.parametrize("names", [[], ["only one"]])
def test_actions_without_names_have_numbers_and_letters(names: list[str], num_actions: int) -> None:
    if len(names) == num_actions:
        names = []
    controls = controls_of(NamedEnv(names), num_actions)
    assert [control.name for control in controls] == [f"action {action}" for action in range(num_actions)]
    keys = [key for control in controls for key in control.keys]
    assert len(keys) == len(set(keys)) == min(num_actions, 35)
    assert idle_action(controls) is None


def test_no_key_has_two_actions() -> None:
    for env, actions in ((make_env("delta_iris/Crafter-v1"), 17), (NamedEnv(["FIRE", "spin", "DOWN"]), 3)):
        keys = [key for each in keys_of(env, actions).values() for key in each]
        assert len(keys) == len(set(keys))
