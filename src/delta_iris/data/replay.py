"""The replay buffer: an append-only store of episodes on disk.

The format is described in `replay_format`. A chunk's bytes are written before its index record, so that a process that
dies while writing leaves no record of an incomplete chunk. A position (the lengths of both files) identifies a state of
the store; truncating the files to it restores that state exactly, which is how a run resumes from a checkpoint.

Chunks are compressed in a background thread while the environments keep running. Everything else runs in the calling
thread. Memory grows by less than one byte per frame, because the index is mapped from disk and only the episode lengths
are kept.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

from delta_iris.data.replay_format import (
    CHUNK_STEPS,
    INDEX_RECORD,
    TERMINATED,
    TRUNCATED,
    ReplayFiles,
    check_metadata,
    pack_steps,
    read_index,
    write_metadata,
)
from delta_iris.errors import UserError

__all__ = ["MAX_PENDING_CHUNKS", "Replay"]

MAX_PENDING_CHUNKS = 64
"""Chunks that may wait for compression. Beyond this limit `Replay.append` blocks, which bounds memory."""


@dataclass
class _OpenEpisode:
    """An unfinished episode and its steps that do not belong to a chunk yet."""

    number: int
    first_step: int = 0
    frames: list[NDArray[np.uint8]] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)


class _PendingChunk(NamedTuple):
    """A chunk that is being compressed: the first fields of its index record, then its compressed bytes."""

    episode: int
    environment: int
    first_step: int
    steps: int
    flags: int
    payload: Future[bytes]


class Replay:
    """Writes the episodes of several environments to disk, step by step.

    Args:
        folder: folder of the replay. It is created if it does not exist; an existing replay is continued.
        frame_shape: (H, W, 3).
        level: zstd compression level.

    Raises:
        UserError: if the folder contains other files, or a replay with another frame shape.
    """

    def __init__(self, folder: Path, frame_shape: tuple[int, int, int], level: int = 9) -> None:
        self.folder = folder
        self.frame_shape = frame_shape
        self._files = ReplayFiles.of(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self._files.metadata.exists():
            check_metadata(folder, frame_shape)
        elif any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no replay: choose another run folder")
        else:
            write_metadata(folder, frame_shape)
        self._compressor = zstandard.ZstdCompressor(level=level)
        self._chunks: BinaryIO = self._files.chunks.open("ab", buffering=0)
        self._index: BinaryIO = self._files.index.open("ab", buffering=0)
        self._open_episodes: dict[int, _OpenEpisode] = {}
        # A single thread, because a zstd compressor must not be used by several threads at once.
        self._thread = ThreadPoolExecutor(1, "replay")
        self._pending: deque[_PendingChunk] = deque()
        self._lengths = np.zeros(1024, np.int64)
        self.num_episodes = 0
        self._load_lengths()

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(episodes,) int64, the readable steps of each episode; of unfinished ones, those in full or flushed chunks.

        Waits until all pending chunks are written, as `num_frames` and `position` do.
        """
        self._write_pending(0)
        return self._lengths[: self.num_episodes]

    @property
    def num_frames(self) -> int:
        """Number of readable steps."""
        return int(self.lengths.sum())

    def append(
        self,
        environment: int,
        frame: NDArray[np.uint8],
        action: int,
        reward: float,
        terminated: bool,
        truncated: bool,
        final_frame: NDArray[np.uint8] | None = None,
    ) -> None:
        """Append a step to the current episode of an environment.

        A terminated or truncated step is the last of its episode; the next step starts a new one.

        Args:
            environment: index of the environment.
            frame: (H, W, 3) uint8. It is not copied and must not be modified afterwards.
            action: the action chosen at the frame.
            reward: the reward that resulted from the action.
            terminated: whether the action terminated the episode.
            truncated: whether the episode was cut off after the action.
            final_frame: frame after an episode's last step, (H, W, 3) uint8.

        Raises:
            UserError: if the disk is full. Steps since the last `flush` may be lost.
        """
        episode = self._open_episodes.get(environment)
        if episode is None:
            episode = self._open_episodes[environment] = _OpenEpisode(self._new_episode())
        episode.frames.append(frame)
        episode.actions.append(action)
        episode.rewards.append(reward)
        ended = terminated or truncated
        if ended or len(episode.frames) == CHUNK_STEPS:
            if ended:
                del self._open_episodes[environment]
            self._compress(environment, episode, TERMINATED * terminated | TRUNCATED * truncated)
            self._write_pending(MAX_PENDING_CHUNKS)

    def truncate(self, environment: int, final_frame: NDArray[np.uint8]) -> None:
        """End the open episode of an environment after its last step; do nothing if there is none.

        Args:
            environment: index of the environment.
            final_frame: frame after that step, (H, W, 3) uint8.
        """
        episode = self._open_episodes.pop(environment, None)
        if episode is not None and episode.frames:
            self._compress(environment, episode, TRUNCATED)

    def flush(self) -> None:
        """Write all buffered steps, so that new readers see them.

        Raises:
            UserError: if the disk is full.
        """
        for environment, episode in self._open_episodes.items():
            if episode.frames:
                self._compress(environment, episode, 0)
        self._write_pending(0)

    def position(self) -> dict[str, int]:
        """Return the current state of the store, for `rollback`. Call `flush` first to include every step."""
        self._write_pending(0)
        return {"chunks": self._index.tell() // INDEX_RECORD.itemsize, "bytes": self._chunks.tell()}

    def rollback(self, position: dict[str, int]) -> None:
        """Restore an earlier state by discarding everything that was appended since.

        Episodes that were unfinished at that state stay without an end.

        Args:
            position: what `position` returned at the earlier state.

        Raises:
            UserError: if the files are shorter than they were at that position.
        """
        self._open_episodes.clear()
        self._pending.clear()
        index_bytes = position["chunks"] * INDEX_RECORD.itemsize
        for path, length in ((self._files.chunks, position["bytes"]), (self._files.index, index_bytes)):
            if path.stat().st_size < length:
                raise UserError(
                    f"{path} holds {path.stat().st_size:,} bytes, but held {length:,} when the checkpoint was saved: "
                    "the replay belongs to another run or was truncated; restore the replay of this run"
                )
            os.truncate(path, length)
        self._chunks.seek(0, os.SEEK_END)
        self._index.seek(0, os.SEEK_END)
        self._load_lengths()

    def close(self) -> None:
        """Write all buffered steps and close the files; further calls do nothing.

        Raises:
            UserError: if the disk is full.
        """
        if not self._chunks.closed:
            self.flush()
            self._chunks.close()
            self._index.close()
            self._thread.shutdown()

    def _load_lengths(self) -> None:
        records = read_index(self.folder)
        self.num_episodes = int(records["episode"].max()) + 1 if len(records) else 0
        self._lengths = np.zeros(max(1024, 2 * self.num_episodes), np.int64)
        np.add.at(self._lengths, records["episode"], records["steps"])

    def _new_episode(self) -> int:
        if self.num_episodes == len(self._lengths):
            self._lengths = np.concatenate([self._lengths, np.zeros_like(self._lengths)])
        self.num_episodes += 1
        return self.num_episodes - 1

    def _compress(self, environment: int, episode: _OpenEpisode, flags: int) -> None:
        """Turn the buffered steps of an episode into a chunk and start compressing it."""
        steps = episode.frames, episode.actions, episode.rewards
        payload = self._thread.submit(lambda: self._compressor.compress(pack_steps(*steps)))
        length = len(episode.frames)
        self._pending.append(_PendingChunk(episode.number, environment, episode.first_step, length, flags, payload))
        episode.first_step += length
        episode.frames, episode.actions, episode.rewards = [], [], []

    def _write_pending(self, max_pending: int) -> None:
        """Write compressed chunks in order, and wait for as many more as leave at most `max_pending` pending."""
        while self._pending and (len(self._pending) > max_pending or self._pending[0].payload.done()):
            self._write(self._pending[0])
            self._pending.popleft()

    def _write(self, chunk: _PendingChunk) -> None:
        payload = chunk.payload.result()
        offset, index_length = self._chunks.tell(), self._index.tell()
        record = np.array((*chunk[:-1], offset, len(payload), zlib.crc32(payload)), INDEX_RECORD)
        try:
            _write_all(self._chunks, payload)
            _write_all(self._index, record.tobytes())
        except OSError as error:
            os.truncate(self._chunks.fileno(), offset)
            os.truncate(self._index.fileno(), index_length)
            # The buffered steps cannot be written either, so `close` must not try again.
            self._open_episodes.clear()
            self._pending.clear()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise UserError(
                f"the disk of {self.folder} is full; the {self.num_frames:,} frames written so far are safe: free some "
                "space and resume with --ckpt_path"
            ) from error
        self._lengths[chunk.episode] += chunk.steps


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Write all bytes to an unbuffered file, which may write fewer than requested at once."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
