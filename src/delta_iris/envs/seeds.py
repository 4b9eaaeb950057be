"""Seeds of environments. They stay within 32 bits, because many environments take no others."""

from __future__ import annotations

import numpy as np

__all__ = ["first_seed", "fresh_seed"]

SEEDS = 1 << 32


def first_seed(seed: int, index: int) -> int:
    """Seed of an environment's first episode: seed, seed + 1, …, as in Gymnasium, but within 32 bits.

    Args:
        seed: of the pool.
        index: of the environment.
    """
    return (seed + index) % SEEDS


def fresh_seed(seed: int, index: int, generation: int) -> int:
    """Seed of an environment that starts anew in the middle of a run, so that it does not repeat earlier episodes.

    Args:
        seed: of the pool.
        index: of the environment.
        generation: how often this environment has started anew.
    """
    return int(np.random.SeedSequence([seed % SEEDS, index, generation]).generate_state(1)[0])
