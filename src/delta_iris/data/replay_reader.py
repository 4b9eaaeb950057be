"""Reading steps from a replay on disk, in any process."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray

from delta_iris.data.replay_format import (
    TERMINATED,
    TRUNCATED,
    ReplayFiles,
    Steps,
    check_metadata,
    read_index,
    unpack_steps,
)
from delta_iris.errors import UserError

__all__ = ["ReplayReader"]


class ReplayReader:
    """Reads the episodes that were on disk when the reader was created.

    Another process, or a `Replay` in this one, may append at the same time.

    Args:
        folder: folder of the replay.
        frame_shape: (H, W, 3).

    Raises:
        UserError: if the folder contains no replay, or its frames have another shape.
    """

    def __init__(self, folder: Path, frame_shape: tuple[int, int, int]) -> None:
        check_metadata(folder, frame_shape)
        self.folder = folder
        self.frame_shape = frame_shape
        self._chunks_path = ReplayFiles.of(folder).chunks
        self._records = read_index(folder)
        # A stable sort keeps the chunks of an episode in the order of time, which is the order they were written in.
        self._order = np.argsort(self._records["episode"], kind="stable").astype(np.int32)
        episodes = self._records["episode"][self._order]
        self._starts = np.searchsorted(episodes, np.arange(int(episodes[-1]) + 2 if len(episodes) else 1))
        self._chunks = self._chunks_path.open("rb", buffering=0)
        self._decompressor = zstandard.ZstdDecompressor()

    @property
    def num_episodes(self) -> int:
        """Number of episodes, including unfinished ones."""
        return len(self._starts) - 1

    def environment(self, episode: int) -> int:
        """Return the index of the environment that an episode was collected in.

        Args:
            episode: number of the episode.

        Raises:
            IndexError: if there is no such episode.
        """
        return int(self._records_of(episode)["environment"][0])

    def length(self, episode: int) -> int:
        """Return the number of steps of an episode.

        Args:
            episode: number of the episode.

        Raises:
            IndexError: if there is no such episode.
        """
        last = self._records_of(episode)[-1]
        return int(last["first_step"]) + int(last["steps"])

    def read(self, episode: int, start: int, stop: int) -> Steps:
        """Read the steps start ≤ t < stop of an episode.

        Args:
            episode: number of the episode.
            start: first step.
            stop: step after the last one.

        Raises:
            IndexError: if there is no such episode, or it has no such steps.
            UserError: if the data on disk is damaged.
        """
        records = self._records_of(episode)
        if not 0 <= start < stop <= int(records[-1]["first_step"]) + int(records[-1]["steps"]):
            raise IndexError(f"episode {episode} of {self.folder} has no steps {start}…{stop}")
        first, last = np.searchsorted(records["first_step"], [start, stop - 1], side="right") - 1
        chunks = [self._read_chunk(records[i]) for i in range(int(first), int(last) + 1)]
        skip = start - int(records[first]["first_step"])
        return Steps(*(np.concatenate(field)[skip : skip + stop - start] for field in zip(*chunks, strict=True)))

    def _records_of(self, episode: int) -> NDArray[np.void]:
        if not 0 <= episode < self.num_episodes:
            raise IndexError(f"{self.folder} has no episode {episode}")
        return self._records[self._order[self._starts[episode] : self._starts[episode + 1]]]

    def _read_chunk(self, record: np.void) -> Steps:
        size, steps = int(record["size"]), int(record["steps"])
        # pread does not move the file position, so that forked processes can share the open file.
        payload = os.pread(self._chunks.fileno(), size, int(record["offset"]))
        if len(payload) != size or zlib.crc32(payload) != record["crc"]:
            raise UserError(
                f"{self._chunks_path} is damaged at byte {int(record['offset']):,} (episode "
                f"{int(record['episode'])}, step {int(record['first_step'])}): restore the file from a copy, or "
                "start a new run"
            )
        frames, actions, rewards = unpack_steps(self._decompressor.decompress(payload), steps, self.frame_shape)
        terminated, truncated = np.zeros(steps, np.bool_), np.zeros(steps, np.bool_)
        terminated[-1] = bool(record["flags"] & TERMINATED)
        truncated[-1] = bool(record["flags"] & TRUNCATED)
        return Steps(frames, actions.astype(np.int64), rewards, terminated, truncated)
