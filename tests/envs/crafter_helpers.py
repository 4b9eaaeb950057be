"""Reference implementation of Crafter and state comparison, for tests and their child processes."""

from __future__ import annotations

import hashlib
from typing import Any

import crafter
import numpy as np
from numpy.typing import NDArray

from delta_iris.envs import CrafterEnv
from delta_iris.envs.crafter.determinism import OrderedWorld


class PlainCrafter:
    """Crafter with its own reset and renderer, which `CrafterEnv` must reproduce exactly."""

    def __init__(self, size: int = 64, length: int = 10_000) -> None:
        self.engine = crafter.Env(size=(size, size), length=length, seed=0)
        self.engine._world.__class__ = OrderedWorld

    def reset(self, seed: int | None = None) -> NDArray[np.uint8]:
        """Draw the world's seed as `CrafterEnv` does and reset."""
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.engine._seed, self.engine._episode = int(self.random.integers(2**31 - 1)), 0
        frame: NDArray[np.uint8] = self.engine.reset()
        return frame


def assert_same_state(found: crafter.Env, expected: crafter.Env) -> None:
    """Compare world, random state, player and counters of two engines."""
    world, expected_world = found._world, expected._world
    np.testing.assert_array_equal(world._mat_map, expected_world._mat_map)
    np.testing.assert_array_equal(world._obj_map, expected_world._obj_map)
    assert _objects(world) == _objects(expected_world)
    assert all(each.world is world and each.random is world.random for each in world.objects)
    assert _chunks(world) == _chunks(expected_world)
    for a, b in zip(world.random.get_state(), expected_world.random.get_state(), strict=True):
        np.testing.assert_array_equal(a, b)
    player = {name: value for name, value in vars(found._player).items() if name not in ("world", "random", "pos")}
    assert player == {name: value for name, value in vars(expected._player).items() if name in player}
    for name in ("_step", "_episode", "_seed", "_last_health", "_unlocked"):
        assert getattr(found, name) == getattr(expected, name)


def _objects(world: OrderedWorld) -> list[tuple[Any, ...]]:
    return [(type(each).__name__, *each.pos) for each in world.objects]


def _chunks(world: OrderedWorld) -> list[tuple[Any, ...]]:
    return [(chunk, *(type(each).__name__ for each in creatures)) for chunk, creatures in world.chunks.items()]


def hash_episodes(seed: int, steps: int) -> str:
    """Hash everything that `CrafterEnv` returns in `steps` steps of random actions."""
    env, generator, content = CrafterEnv(), np.random.default_rng(seed), hashlib.sha256()
    frame, _ = env.reset(seed=seed)
    for _ in range(steps):
        content.update(frame.tobytes())
        frame, reward, terminated, truncated, info = env.step(generator.integers(17))
        content.update(repr((reward, terminated, truncated, sorted(info["inventory"].items()))).encode())
        if terminated or truncated:
            frame, _ = env.reset()
    return content.hexdigest()
