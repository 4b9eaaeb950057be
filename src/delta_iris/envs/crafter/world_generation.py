"""Crafter's worlds, generated a little at a time.

A world takes about as long as a hundred steps, and while one environment generates its own all others wait. So the
next episode's world is generated in the steps of the present one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

import crafter
import numpy as np
from crafter import worldgen

from delta_iris.envs.crafter.determinism import Player

__all__ = ["Beginning"]

PIECES_A_STEP = 48
"""A world is some 5,000 pieces of about 10 µs: it is ready after 107 steps, and nine in ten random episodes last
longer."""


class Beginning:
    """The beginning of an episode in the world of `seed`, which takes over `env`.

    World, player and random state are those that `crafter.Env(seed=seed).reset()` gives, whichever the steps in which
    they came to be.
    """

    def __init__(self, env: crafter.Env, seed: int) -> None:
        self.env, self.seed = env, seed
        self._pieces = _reset(env, seed)

    def advance(self) -> None:
        """Do as much as one step has time for."""
        _run(islice(self._pieces, PIECES_A_STEP))

    def finish(self) -> crafter.Env:
        """Do all that is left; returns the environment, ready to be looked at and stepped."""
        _run(self._pieces)
        return self.env


def _run(pieces: Iterator[None]) -> None:
    deque(pieces, maxlen=0)


def _reset(env: crafter.Env, seed: int) -> Iterator[None]:
    """`crafter.Env.reset` of a new environment, in pieces; only its frame is left out."""
    world = env._world
    env._seed, env._episode, env._step = seed, 1, 0
    world.reset(seed=hash((seed, 1)) % (2**31 - 1))
    env._update_time()
    env._player = Player(world, (world.area[0] // 2, world.area[1] // 2))
    env._last_health = env._player.health
    world.add(env._player)
    env._unlocked = set()
    yield from _generate_world(env)


def _generate_world(env: crafter.Env) -> Iterator[None]:
    """`crafter.worldgen.generate_world` in pieces: the same calls in the same order."""
    world, player = env._world, env._player
    simplex = worldgen.opensimplex.OpenSimplex(seed=world.random.randint(0, 2**31 - 1))
    tunnels = np.zeros(world.area, bool)
    for x in range(world.area[0]):
        for y in range(world.area[1]):
            worldgen._set_material(world, (x, y), player, tunnels, simplex)
            yield
    for x in range(world.area[0]):
        for y in range(world.area[1]):
            worldgen._set_object(world, (x, y), player, tunnels)
            if y % 4 == 3:  # Objects take a quarter of the time.
                yield
