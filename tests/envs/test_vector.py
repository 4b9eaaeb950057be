"""Parallel environments, and the check of an environment against the configuration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from delta_iris.envs.vector import check_env, make_vector_env
from delta_iris.errors import UserError

from .toy_env import BlinkEnv


def test_the_last_step_of_an_episode_also_starts_the_next() -> None:
    envs = make_vector_env(f"{BlinkEnv.__module__}:Blink-v0", {}, 2)
    frames, _ = envs.reset(seed=0)
    brightness, ends = [], []
    for _ in range(20):
        brightness.append(int(frames[0, 0, 0, 0]))
        frames, _, terminated, _, _ = envs.step(np.zeros(2, np.int64))
        ends.append(bool(terminated[0]))
    envs.close()
    assert brightness == [20 * t for t in range(10)] * 2
    assert ends == ([False] * 9 + [True]) * 2


def test_a_matching_environment_is_accepted() -> None:
    check_env("delta_iris/Catch-v0", {}, (16, 16), 3)


@pytest.mark.parametrize(
    ("options", "frame_size", "num_actions", "message"),
    [
        ({"size": 96}, (64, 64), 17, r"data\.frame_size says 64×64 RGB frames, but .* have shape \(96, 96, 3\)"),
        ({}, (64, 64), 6, r"data\.num_actions is 6, but .* has 17: set it to 17"),
        ({"sizes": 64}, (64, 64), 17, r"cannot create environment .* check .*data\.environment_options"),
    ],
)
def test_crafter_with_other_options_than_configured_raises(
    options: dict[str, Any], frame_size: tuple[int, int], num_actions: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_env("delta_iris/Crafter-v1", options, frame_size, num_actions)


@pytest.mark.parametrize("environment", ["NoSuchEnv-v0", "no_such_module:Env-v0", "CartPole-v1"])
def test_unsuitable_environments_raise(environment: str) -> None:
    with pytest.raises(UserError, match=r"data\.(environment|frame_size)"):
        check_env(environment, {}, (64, 64), 2)
