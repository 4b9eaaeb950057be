"""Incremental generation of Crafter's worlds.

Generating a world takes about as long as a hundred steps, and all other environments of a vector environment wait for
it. Therefore the world of the next episode is generated in small pieces during the steps of the current one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

import crafter
import numpy as np
from crafter import worldgen

from delta_iris.envs.crafter.determinism import Player

__all__ = ["IncrementalReset"]

PIECES_PER_STEP = 48
"""Pieces per environment step. A world consists of 5,120 pieces of about 10 µs each and is thus complete after 107
steps; 90 % of the episodes of a random policy are longer."""


class IncrementalReset:
    """Resets Crafter's engine in small pieces.

    World, player and random state are the same as after `crafter.Env(seed=seed).reset()`, however the work is divided.

    Args:
        env: the engine to reset. It must not be used for anything else until `finish` returns it.
        seed: seed of the world.

    Attributes:
        env: the engine.
        seed: seed of the world.
    """

    def __init__(self, env: crafter.Env, seed: int) -> None:
        self.env, self.seed = env, seed
        self._pieces = _reset(env, seed)

    def advance(self) -> None:
        """Do the next `PIECES_PER_STEP` pieces, if that many are left."""
        _exhaust(islice(self._pieces, PIECES_PER_STEP))

    def finish(self) -> crafter.Env:
        """Do all remaining pieces and return the engine, which is then ready to be rendered and stepped."""
        _exhaust(self._pieces)
        return self.env


def _exhaust(pieces: Iterator[None]) -> None:
    deque(pieces, maxlen=0)


def _reset(env: crafter.Env, seed: int) -> Iterator[None]:
    """Do what `crafter.Env.reset` does in a new engine, except for rendering; yields after each piece."""
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
    """Make the same calls in the same order as `crafter.worldgen.generate_world`; yields after each piece."""
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
            if y % 4 == 3:  # Placing an object takes a quarter of the time of generating a cell.
                yield
