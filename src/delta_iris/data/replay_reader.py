"""Reading steps from a replay on disk, in any process."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import zstandard
from numpy.typing import NDArray

from delta_iris.data.replay_format import (
    FINAL_FRAME,
    TERMINATED,
    TRUNCATED,
    ReplayFiles,
    Steps,
    packed_size,
    unpack_final_frame,
    unpack_steps,
)
from delta_iris.data.replay_index import WAY_OUT, read_index
from delta_iris.data.streams import EpisodeStreams
from delta_iris.errors import UserError
from delta_iris.files import open_regular

__all__ = ["ReplayReader", "find_replays"]


def find_replays(folder: Path) -> list[Path]:
    """The replays of all processes of a run.

    Args:
        folder: of a run, of its replays, or of one replay.

    Returns:
        folders of replays in the order of the processes; the folder itself where there are none.
    """
    if ReplayFiles.of(folder).metadata.exists():
        return [folder]
    for parent in (folder / "replay", folder):
        ranks = [path for path in parent.glob("rank_*") if path.name.removeprefix("rank_").isdecimal()]
        if ranks:
            return sorted(ranks, key=lambda path: int(path.name.removeprefix("rank_")))
    return [folder]


class ReplayReader:
    """Reads the episodes that were on disk when the reader was created.

    Another process, or a `Replay` in this one, may append at the same time.

    Args:
        folder: folder of the replay.
        frame_shape: (H, W, 3).
        skip_damaged: whether to open a replay whose index is damaged. Damaged episodes then have no steps.

    Raises:
        UserError: if the folder contains no replay, its frames have another shape, or its index is damaged.
    """

    def __init__(self, folder: Path, frame_shape: tuple[int, int, int], skip_damaged: bool = False) -> None:
        self.folder = folder
        self.frame_shape = frame_shape
        self._index = read_index(folder, frame_shape)
        if self._index.problem is not None and not skip_damaged:
            raise UserError(self._index.problem)
        self._chunks_path = ReplayFiles.of(folder).chunks
        self._chunks: BinaryIO | None = None
        if self._index.num_chunks:
            try:
                self._chunks = open_regular(self._chunks_path)
            except FileNotFoundError:
                raise UserError(f"{self._chunks_path} is missing: {WAY_OUT}") from None
        self._decompressor = zstandard.ZstdDecompressor()

    @property
    def num_episodes(self) -> int:
        """Number of episodes, including unfinished and damaged ones."""
        return self._index.num_episodes

    @property
    def damaged_episodes(self) -> list[int]:
        """Numbers of the episodes that the index shows to be damaged. `verify` finds all."""
        return self._index.damaged_episodes

    def environment(self, episode: int) -> int:
        """Return the index of the environment that an episode was collected in.

        Args:
            episode: number of the episode.

        Raises:
            IndexError: if there is no such episode, or nothing of it could be read.
        """
        return int(self._records_of(episode)["environment"][0])

    def length(self, episode: int) -> int:
        """Return the number of steps of an episode, 0 if it is damaged.

        Args:
            episode: number of the episode.

        Raises:
            IndexError: if there is no such episode.
        """
        self._records_of(episode)
        return int(self._index.lengths[episode])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(episodes,) int64, steps of each episode; 0 for damaged ones."""
        return self._index.lengths

    def streams(self) -> EpisodeStreams:
        """Return how the episodes of each environment follow one another."""
        index = self._index
        known = index.starts[1:] > index.starts[:-1]
        # Of an episode without records nothing is known, and its length is 0.
        last = index.records[np.where(known, index.starts[1:] - 1, 0)] if index.num_chunks else index.records
        environments = np.where(known, last["environment"], 0).astype(np.int64)
        return EpisodeStreams(index.lengths, environments, known & ((last["flags"] & FINAL_FRAME) > 0))

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
        length = int(self._index.lengths[episode])
        if not 0 <= start < stop <= length:
            raise IndexError(f"episode {episode} of {self.folder} has no steps {start}…{stop}")
        first, last = np.searchsorted(records["first_step"], [start, stop - 1], side="right") - 1
        chunks = [self._read_steps(records[i]) for i in range(int(first), int(last) + 1)]
        skip = start - int(records[first]["first_step"])
        steps = Steps(*(np.concatenate(field)[skip : skip + stop - start] for field in zip(*chunks, strict=True)))
        if stop == length:
            # Told by the last record, which may be an end record without steps.
            steps.terminated[-1] = bool(records[-1]["flags"] & TERMINATED)
            steps.truncated[-1] = bool(records[-1]["flags"] & TRUNCATED)
        return steps

    def final_frame(self, episode: int) -> NDArray[np.uint8] | None:
        """Return the frame after an episode's last step, if it was stored.

        Args:
            episode: number of the episode.

        Returns:
            (H, W, 3) uint8, or None: the episode is unfinished or damaged, or its last frame was not known.

        Raises:
            IndexError: if there is no such episode.
            UserError: if the data on disk is damaged.
        """
        records = self._records_of(episode)
        if not self._index.lengths[episode] or not records[-1]["flags"] & FINAL_FRAME:
            return None
        return unpack_final_frame(self._read_chunk(records[-1]), int(records[-1]["steps"]), self.frame_shape)

    def verify(self) -> list[int]:
        """Read every chunk and return the numbers of all damaged episodes, ascending."""
        damaged = set(self.damaged_episodes)
        # In the order of the file, which is many times faster on a disk than the order of episodes.
        for record in self._index.records[np.argsort(self._index.records["offset"], kind="stable")]:
            if int(record["episode"]) not in damaged:
                try:
                    self._read_payload(record)
                except UserError:
                    damaged.add(int(record["episode"]))
        return sorted(damaged)

    def _records_of(self, episode: int) -> NDArray[np.void]:
        if not 0 <= episode < self.num_episodes:
            raise IndexError(f"{self.folder} has no episode {episode}")
        return self._index.records_of(episode)

    def _read_steps(self, record: np.void) -> Steps:
        steps = int(record["steps"])
        frames, actions, rewards = unpack_steps(self._read_chunk(record), steps, self.frame_shape)
        # Only an episode's last step may be an end.
        no_end = np.zeros((2, steps), np.bool_)
        return Steps(frames, actions.astype(np.int64), rewards, no_end[0], no_end[1])

    def _read_chunk(self, record: np.void) -> bytes:
        payload = self._read_payload(record)
        size = packed_size(int(record["steps"]), self.frame_shape, bool(record["flags"] & FINAL_FRAME))
        try:
            # Before memory is asked for: the size that the compressed data declares must be right.
            if zstandard.frame_content_size(payload) == size:
                return self._decompressor.decompress(payload, max_output_size=size)
        except zstandard.ZstdError:
            pass
        raise self._damage(record)

    def _read_payload(self, record: np.void) -> bytes:
        size = int(record["size"])
        if not size:  # an end record without a frame
            return b""
        assert self._chunks is not None
        try:
            # pread does not move the file position, so that forked processes can share the open file.
            payload = os.pread(self._chunks.fileno(), size, int(record["offset"]))
        except OSError as error:
            raise self._damage(record, error.strerror) from error
        if len(payload) != size or zlib.crc32(payload) != record["crc"]:
            raise self._damage(record)
        return payload

    def _damage(self, record: np.void, reason: str | None = None) -> UserError:
        return UserError(
            f"{self._chunks_path} is damaged at byte {int(record['offset']):,} (episode {int(record['episode'])}, "
            f"step {int(record['first_step'])}{f': {reason}' if reason else ''}): {WAY_OUT}"
        )
