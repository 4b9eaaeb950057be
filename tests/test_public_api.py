"""Tests of the names that can be imported from `delta_iris` itself."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import delta_iris


@pytest.mark.parametrize("name", delta_iris.__all__)
def test_every_public_name_is_an_object_of_this_package(name: str) -> None:
    value: Any = getattr(delta_iris, name)
    assert value.__name__ == name
    assert value.__module__.startswith("delta_iris.")
    assert value.__doc__
    assert name in dir(delta_iris)


def test_public_names_are_sorted_and_unique() -> None:
    assert list(delta_iris.__all__) == sorted(set(delta_iris.__all__))


def test_a_star_import_gives_the_public_names() -> None:
    names: dict[str, Any] = {}
    exec("from delta_iris import *", names)
    assert set(delta_iris.__all__) <= set(names)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = """
import sys
import delta_iris
heavy = {"torch", "lightning", "jsonargparse", "crafter", "numba", "tensorboard"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
import gymnasium
assert "delta_iris/Crafter-v1" in gymnasium.registry
assert "delta_iris/Catch-v0" in gymnasium.registry
assert not heavy & set(sys.modules), heavy & set(sys.modules)
from delta_iris import make_env
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_raises_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'delta_iris' has no attribute 'nosuch'"):
        _ = delta_iris.nosuch
    with pytest.raises(ImportError, match="nosuch"):
        exec("from delta_iris import nosuch")
    assert not hasattr(delta_iris, "nosuch")
