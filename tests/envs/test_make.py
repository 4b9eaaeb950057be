"""Creating single environments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from delta_iris.envs import CrafterEnv, make_env
from delta_iris.errors import UserError


def test_makes_crafter_by_default_with_options() -> None:
    env = make_env(size=96)
    assert isinstance(env.unwrapped, CrafterEnv)
    assert env.reset(seed=0)[0].shape == (96, 96, 3)


@pytest.mark.parametrize(
    ("environment", "options"),
    [
        ("NoSuchEnv-v0", {}),
        ("no_such_module:Env-v0", {}),
        ("delta_iris/Crafter-v1", {"sizes": 64}),
        ("delta_iris/Catch-v0", {"cells": 0}),
    ],
)
def test_invalid_arguments_raise(environment: str, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"cannot create environment .* check data\.environment"):
        make_env(environment, **options)


def test_a_module_of_this_folder_is_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("games_of_mine.py").touch()
    with pytest.raises(UserError, match=r"import games_of_mine\.py from this folder, .* PYTHONPATH=\."):
        make_env("games_of_mine:Maze-v0")
