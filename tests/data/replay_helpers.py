"""Random steps that tests and their child processes append to a replay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from delta_iris.data.replay import Replay
from delta_iris.data.replay_format import INDEX_RECORD
from delta_iris.data.replay_index import record_checks
from delta_iris.data.replay_reader import ReplayReader
from delta_iris.data.segment import SegmentBatch, SegmentIndex, SegmentRequest
from delta_iris.data.segment_dataset import SegmentDataset

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


def make_requests(folder: Path, length: int, batches: list[list[SegmentIndex]]) -> list[SegmentRequest]:
    """Request batches of segments of the steps that are on disk now."""
    lengths = ReplayReader(folder, SHAPE).lengths
    return [SegmentRequest.within_episodes(lengths, length, indices) for indices in batches]


def read_segments(folder: Path, length: int, indices: list[SegmentIndex]) -> SegmentBatch:
    """Read a batch in this process."""
    return SegmentDataset(folder, SHAPE)[make_requests(folder, length, [indices])[0]]


def read_files(folder: Path) -> list[bytes]:
    """Return the contents of the replay's binary files."""
    return [(folder / name).read_bytes() for name in ("chunks.bin", "index.bin")]


def large_index(frames: int) -> NDArray[np.void]:
    """Return the records of episodes of 160 steps, from 16 environments that take turns."""
    chunks = frames // 16
    records = np.zeros(chunks, INDEX_RECORD)
    group, within = np.divmod(np.arange(chunks), 160)  # 16 episodes of 10 chunks
    chunk, environment = np.divmod(within, 16)
    records["episode"], records["environment"] = 16 * group + environment, environment
    records["first_step"], records["steps"], records["flags"] = 16 * chunk, 16, chunk == 9
    records["size"], records["offset"] = 100, 100 * np.arange(chunks)
    records["check"] = record_checks(records)
    return records
