"""Crafter as a Gymnasium environment: its interface and its determinism."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_gymnasium_rules

from delta_iris.envs import ACHIEVEMENTS, CrafterEnv

from .crafter_helpers import hash_episodes


def test_follows_gymnasiums_rules() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*alternative render modes.*")
        check_gymnasium_rules(CrafterEnv(render_mode="rgb_array"))


def test_the_same_seed_and_actions_give_the_same_episodes_in_any_process() -> None:
    # Stock Crafter differs between processes within 500 steps, because it picks creatures in order of their addresses.
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from crafter_helpers import hash_episodes\n"
        "unused = [object() for _ in range({})]\n"
        "print(hash_episodes(3, 1200))"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script.format(number)],
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONHASHSEED": str(number), "PATH": "", "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        )
        for number in (1, 100_000)
    ]
    hashes = {run.communicate()[0].strip() for run in runs}
    assert hashes == {hash_episodes(3, 1200)}
    assert hash_episodes(4, 50) != hash_episodes(3, 50)


def test_rendering_does_not_change_the_episode() -> None:
    frames = []
    for render in (False, True):
        env = CrafterEnv(render_mode="rgb_array")
        env.reset(seed=1)
        # Long enough to reach the night, whose noise uses the world's random numbers.
        for _ in range(260):
            frame, _, terminated, _, _ = env.step(0)
            if render:
                np.testing.assert_array_equal(env.render(), frame)
            if terminated:
                break
        frames.append(frame)
    first, second = frames
    np.testing.assert_array_equal(first, second)


def test_rendering_before_reset_raises() -> None:
    with pytest.raises(gym.error.ResetNeeded):
        CrafterEnv(render_mode="rgb_array").render()
    assert CrafterEnv().render() is None


def test_info_contains_achievements_and_inventory() -> None:
    _, info = CrafterEnv().reset(seed=0)
    assert set(info["achievements"]) == set(ACHIEVEMENTS)
    assert len(ACHIEVEMENTS) == 22
    assert info["inventory"]["health"] == 9


def test_the_time_limit_truncates() -> None:
    env = CrafterEnv(length=5)
    env.reset(seed=0)
    assert [env.step(0)[2:4] for _ in range(5)] == [(False, False)] * 4 + [(False, True)]


def test_death_terminates() -> None:
    env = CrafterEnv()
    env.reset(seed=0)
    env.engine._player.health = 0
    assert env.step(0)[2:4] == (True, False)
