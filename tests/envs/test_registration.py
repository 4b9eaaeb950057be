"""Registration of the environments with Gymnasium."""

from __future__ import annotations

import subprocess
import sys

import gymnasium as gym
import pytest

import delta_iris.envs
from delta_iris.envs.registration import ENTRY_POINTS


def test_importing_the_package_registers_every_id_without_importing_crafter() -> None:
    script = "import sys, delta_iris, gymnasium; print(*gymnasium.registry); print('crafter' in sys.modules)"
    lines = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    assert set(ENTRY_POINTS) <= set(lines[0].split())
    assert lines[1] == "False"


@pytest.mark.parametrize("environment", sorted(ENTRY_POINTS))
def test_registered_environments_can_be_made_and_stepped(environment: str) -> None:
    env = gym.make(environment)
    frame, _ = env.reset(seed=0)
    assert env.observation_space.contains(frame)
    assert env.observation_space.contains(env.step(env.action_space.sample())[0])


def test_public_names_are_loaded_lazily() -> None:
    for name in delta_iris.envs.__all__:
        assert getattr(delta_iris.envs, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        _ = delta_iris.envs.unknown
