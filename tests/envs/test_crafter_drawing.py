"""The fast views against Crafter's own."""

from __future__ import annotations

import crafter
import numpy as np
import pytest

from delta_iris.envs import CrafterEnv

from .crafter_helpers import PlainCrafter, assert_same_state


@pytest.mark.parametrize("size", [64, 96, 100, 30])
def test_frames_equal_those_of_crafters_own_views(size: int) -> None:
    """Compare by day and night, awake and asleep, along every border, with items in the inventory and creatures."""
    env, plain, generator = CrafterEnv(size=size), PlainCrafter(size), np.random.default_rng(size)
    env.reset(seed=size)
    plain.reset(size)
    num_dark = num_asleep = num_at_border = 0
    sleep = crafter.constants.actions.index("sleep")
    for t in range(700):
        position = tuple(generator.choice([0, 1, 4, 31, 60, 62, 63], 2))
        for engine in (env.engine, plain.engine):
            player, world = engine._player, engine._world
            player.health = 9
            if t % 20 == 0:
                if world[position][1] is None:
                    world.move(player, position)
                player.inventory[list(player.inventory)[t // 20 % len(player.inventory)]] = 1 + t // 100
                player.inventory["energy"] = 5
        action = sleep if t % 100 > 70 else generator.integers(17)
        frame, reward, *_ = env.step(action)
        expected, expected_reward, *_ = plain.engine.step(action)
        np.testing.assert_array_equal(frame, expected)
        assert frame.dtype == np.uint8
        assert reward == expected_reward
        player = plain.engine._player
        num_dark += plain.engine._world.daylight < 0.5
        num_asleep += player.sleeping
        num_at_border += not (4 <= player.pos[0] < 60 and 3 <= player.pos[1] < 61)
    assert_same_state(env.engine, plain.engine)
    assert min(num_dark, num_asleep, num_at_border) > 50
