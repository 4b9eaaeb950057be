"""Random steps that tests and their child processes append to a replay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from delta_iris.data.replay import Replay

SHAPE = (4, 6, 3)


def random_step(generator: np.random.Generator) -> tuple[NDArray[np.uint8], int, float]:
    """Return a frame, an action and a reward."""
    frame = generator.integers(0, 256, SHAPE, dtype=np.uint8)
    return frame, int(generator.integers(17)), float(np.float32(generator.normal()))


def fill(replay: Replay, steps: int, seed: int = 0, length: int = 37) -> None:
    """Append and flush steps of environment 0, in episodes of `length` steps."""
    generator = np.random.default_rng(seed)
    for t in range(1, steps + 1):
        replay.append(0, *random_step(generator), t % length == 0, False)
    replay.flush()


def read_files(folder: Path) -> list[bytes]:
    """Return the contents of the replay's binary files."""
    return [(folder / name).read_bytes() for name in ("chunks.bin", "index.bin")]
