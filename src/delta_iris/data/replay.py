"""The replay buffer: an append-only store of episodes on disk.

The format is described in `replay_format`. A chunk's bytes are written before its index record, so that a process that
dies while writing leaves no record of an incomplete chunk. A position (the lengths of both files, a hash of the index,
and the unfinished episodes) identifies a state of the store; truncating the files to it restores that state exactly,
which is how a run resumes from a checkpoint. Files are synced only when a checkpoint is about to name them.

Chunks are compressed in a background thread while the environments keep running. Everything else runs in the calling
thread. Of what is on disk, memory holds only the lengths of the episodes.
"""

from __future__ import annotations

import contextlib
import logging
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

from delta_iris.data.disk import disk_errors, replace_file, sync_folder, write_all
from delta_iris.data.replay_format import (
    CHUNK_STEPS,
    FINAL_FRAME,
    INDEX_RECORD,
    INDEX_RECORD_1,
    MAX_ENVIRONMENTS,
    TERMINATED,
    TRUNCATED,
    ReplayFiles,
    format_metadata,
    pack_steps,
)
from delta_iris.data.replay_index import (
    ReplayIndex,
    ReplayPosition,
    check_position,
    read_index,
)
from delta_iris.data.replay_reader import ReplayReader
from delta_iris.data.replay_upgrade import upgrade_replay
from delta_iris.errors import UserError

__all__ = ["MAX_PENDING_CHUNKS", "Replay"]

MAX_PENDING_CHUNKS = 64
"""Chunks that may wait for compression. Beyond this limit `Replay.append` blocks, which bounds memory."""

_MAX_REWARD = float(np.finfo(np.float32).max)
_MAX_ACTION = 2**31 - 1
_UINT8 = np.dtype(np.uint8)

_log = logging.getLogger(__name__)


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

    What a killed process left unfinished is cut off when the replay is opened. Damage is not: it is kept and raised by
    the first call that would use it, unless `rollback` restores a state from before it.

    Args:
        folder: folder of the replay. It is created if it does not exist; an existing replay is continued, and one of
            format version 1 is converted first.
        frame_shape: (H, W, 3).
        level: zstd compression level.
        skip_damaged: whether to leave damaged episodes out instead of raising. They keep their numbers and have length
            0; one line names them. All chunks are read once to find them.

    Raises:
        UserError: if the folder contains other files, a replay with another frame shape, or cannot be written.
    """

    def __init__(
        self, folder: Path, frame_shape: tuple[int, int, int], level: int = 9, skip_damaged: bool = False
    ) -> None:
        self.folder = folder
        self.frame_shape = frame_shape
        self.skip_damaged = skip_damaged
        self.damaged_episodes: list[int] = []
        self._damaged_chunks: list[int] = []
        self._files = ReplayFiles.of(folder)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if self._files.metadata.exists():
                upgrade_replay(folder, frame_shape)
            elif any(path.name != "replay.json.new" for path in folder.iterdir()):
                raise UserError(f"{folder} is not empty and holds no replay: choose another run folder")
            else:
                replace_file(self._files.metadata, format_metadata(frame_shape))
        self._compressor = zstandard.ZstdCompressor(level=level)
        self._open_episodes: dict[int, _OpenEpisode] = {}
        self._pending: deque[_PendingChunk] = deque()
        self._write_failed = False
        self._synced_chunks = -1
        index = read_index(folder, frame_shape)
        with disk_errors(folder):
            self._chunks: BinaryIO = self._files.chunks.open("ab", buffering=0)
            self._index: BinaryIO = self._files.index.open("ab", buffering=0)
            self._use(index)
            if index.problem is None or skip_damaged:
                self._cut_torn_tail()
        # A single thread, because a zstd compressor must not be used by several threads at once.
        self._thread = ThreadPoolExecutor(1, "replay")
        if skip_damaged:
            self._leave_out_damaged()

    @property
    def num_episodes(self) -> int:
        """Number of episodes, including unfinished ones."""
        return self._num_episodes

    @property
    def open_episodes(self) -> dict[int, list[int]]:
        """For each environment, the number and the steps of its unfinished episode, which the next step continues."""
        return {i: [e.number, e.first_step + len(e.frames)] for i, e in self._open_episodes.items()}

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(episodes,) int64, the readable steps of each episode; of unfinished ones, those in full or flushed chunks.

        0 for episodes that are damaged or not on disk yet. Waits until all pending chunks are written, as `num_frames`
        and `position` do.
        """
        self._write_pending(0)
        lengths = self._lengths[: self._num_episodes]
        if self.damaged_episodes:
            lengths = lengths.copy()
            lengths[self.damaged_episodes] = 0
        return lengths

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
            final_frame: (H, W, 3) uint8, the frame after an episode's last step, if it is known; not copied either.

        Raises:
            UserError: if the step is invalid, and then it is not appended; or if the disk is full, or the replay was
                damaged or changed by another process. After a full disk the step is kept in memory, and further calls
                go on where it failed once there is space.
            ValueError: if there is a final frame, but the episode does not end.
        """
        self._raise_damage()
        ended = terminated or truncated
        self._check_step(environment, frame, action, reward)
        if final_frame is not None:
            if not ended:
                raise ValueError("only an episode's last step has a final frame")
            self._check_frame(environment, final_frame)
        episode = self._open_episodes.get(environment)
        if episode is None:
            episode = self._open_episodes[environment] = _OpenEpisode(self._new_episode())
        episode.frames.append(frame)
        episode.actions.append(action)
        episode.rewards.append(reward)
        if ended or len(episode.frames) == CHUNK_STEPS:
            if ended:
                del self._open_episodes[environment]
            self._compress(environment, episode, TERMINATED * terminated | TRUNCATED * truncated, final_frame)
            self._write_pending(MAX_PENDING_CHUNKS)

    def truncate(self, environment: int, final_frame: NDArray[np.uint8] | None = None) -> None:
        """End the unfinished episode of an environment after its last step, as a time limit does.

        For an environment that begins anew by itself, because it was replaced or the run was resumed. Without an
        unfinished episode, nothing happens.

        Args:
            environment: index of the environment.
            final_frame: (H, W, 3) uint8, the frame after the episode's last step, if it is known.

        Raises:
            UserError: as `append`.
        """
        self._raise_damage()
        if environment not in self._open_episodes:
            return
        if final_frame is not None:
            self._check_frame(environment, final_frame)
        self._compress(environment, self._open_episodes.pop(environment), TRUNCATED, final_frame)
        self._write_pending(MAX_PENDING_CHUNKS)

    def flush(self) -> None:
        """Write all buffered steps, so that new readers see them.

        Raises:
            UserError: if the disk is full, or the replay was damaged or changed by another process.
        """
        for environment, episode in self._open_episodes.items():
            if episode.frames:
                self._compress(environment, episode, 0, None)
        self._write_pending(0)

    def position(self, sync: bool = True) -> ReplayPosition:
        """Write all buffered steps and return the state of the store, for `rollback`.

        Args:
            sync: whether to wait until the disk has it, which a position that a checkpoint stores needs. Nothing is
                done if nothing was written since the last time.

        Raises:
            UserError: as `flush`, or if the files were moved or replaced.
        """
        self.flush()
        if sync and self._synced_chunks != self._num_chunks:
            self._check_unchanged(moved=True)
            with disk_errors(self.folder):
                os.fsync(self._chunks.fileno())
                os.fsync(self._index.fileno())
                sync_folder(self.folder)
            self._synced_chunks = self._num_chunks
        return {
            "chunks": self._num_chunks,
            "bytes": self._end,
            "checksum": self._digest.hexdigest(),
            "open_episodes": self.open_episodes,
        }

    def rollback(self, position: ReplayPosition) -> None:
        """Restore an earlier state by discarding everything that was appended since.

        Episodes that were unfinished at that state are continued by the next steps of their environments; `truncate`
        ends them. `copy_replay` makes a copy of an earlier state and discards nothing.

        Args:
            position: what `position` returned at the earlier state.

        Raises:
            UserError: if the files are shorter than they were at that position, belong to another run or are damaged.
                Nothing is discarded then.
        """
        index = check_position(self.folder, self.frame_shape, position)
        if index.problem is not None and not self.skip_damaged:
            raise UserError(index.problem)
        self._open_episodes.clear()
        self._pending.clear()
        self._write_failed = False
        with disk_errors(self.folder):
            os.truncate(self._chunks.fileno(), position["bytes"])
            os.truncate(self._index.fileno(), position["chunks"] * INDEX_RECORD.itemsize)
        self._damaged_chunks = [e for e in self._damaged_chunks if e < index.num_episodes]
        self._use(index)
        self._end = position["bytes"]
        self._synced_chunks = -1
        for environment, (number, steps) in position.get("open_episodes", {}).items():
            self._open_episodes[environment] = _OpenEpisode(number, steps)

    def close(self) -> None:
        """Write all buffered steps and close the files; further calls do nothing.

        After a write that failed, what could not be written is given up.

        Raises:
            UserError: if the disk is full.
        """
        if self._chunks.closed:
            return
        try:
            if self._problem is None and not self._write_failed:
                self.flush()
        finally:
            self._pending.clear()
            self._chunks.close()
            self._index.close()
            self._thread.shutdown()

    # --- what is on disk ---

    def _use(self, index: ReplayIndex) -> None:
        """Go on from a state of the index."""
        self._problem = None if self.skip_damaged else index.problem
        self._num_chunks, self._digest = index.num_chunks, index.digest
        self._end = os.fstat(self._chunks.fileno()).st_size if index.end is None else index.end
        self._num_episodes = index.num_episodes
        self._lengths = np.zeros(max(1024, 2 * self._num_episodes), np.int64)
        self._lengths[: self._num_episodes] = index.lengths
        damaged = {*index.damaged_episodes, *self._damaged_chunks} if self.skip_damaged else set()
        self.damaged_episodes = sorted(damaged)

    def _cut_torn_tail(self) -> None:
        """Remove an incomplete record, and the bytes of a chunk that has no record."""
        for file, size in ((self._chunks, self._end), (self._index, self._num_chunks * INDEX_RECORD.itemsize)):
            if os.fstat(file.fileno()).st_size > size:
                os.truncate(file.fileno(), size)

    def _leave_out_damaged(self) -> None:
        reader = ReplayReader(self.folder, self.frame_shape, skip_damaged=True)
        self.damaged_episodes = reader.verify()
        self._damaged_chunks = [e for e in self.damaged_episodes if e not in reader.damaged_episodes]
        if self.damaged_episodes:
            count, shown = len(self.damaged_episodes), ", ".join(map(str, self.damaged_episodes[:20]))
            more = f" and {count - 20:,} more" if count > 20 else ""
            _log.warning(f"{self.folder}: {count:,} damaged episode(s) left out: {shown}{more}")

    def _raise_damage(self) -> None:
        if self._problem is not None:
            raise UserError(self._problem)

    def _check_unchanged(self, moved: bool = False) -> None:
        """Check that the files are what this object wrote: another process might write them, or have `moved` them."""
        expected = (
            (self._chunks, self._files.chunks, self._end),
            (self._index, self._files.index, self._num_chunks * INDEX_RECORD.itemsize),
        )
        for file, path, size in expected:
            opened = os.fstat(file.fileno())
            wrong = opened.st_size != size
            if moved and not wrong:
                wrong = not path.exists() or not os.path.samestat(opened, path.stat())
            if wrong:
                raise UserError(
                    f"{path} was changed by another process (it should hold {size:,} bytes): end that process, and "
                    "resume with --ckpt_path"
                )

    # --- steps ---

    def _check_step(self, environment: int, frame: NDArray[np.uint8], action: int, reward: float) -> None:
        self._check_frame(environment, frame)
        if not -_MAX_REWARD <= reward <= _MAX_REWARD:  # false for NaN, too
            raise UserError(
                f"environment {environment} gave the reward {reward} {self._at_step(environment)}: rewards must be "
                "finite 32-bit floats"
            )
        if not 0 <= action <= _MAX_ACTION or not 0 <= environment < MAX_ENVIRONMENTS:
            raise UserError(f"action {action} of environment {environment} {self._at_step(environment)} is invalid")

    def _check_frame(self, environment: int, frame: NDArray[np.uint8]) -> None:
        if not isinstance(frame, np.ndarray) or frame.dtype != _UINT8 or frame.shape != self.frame_shape:
            found = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise UserError(
                f"environment {environment} gave a frame that is {found} {self._at_step(environment)}, but must be "
                f"uint8 {self.frame_shape} (data.frame_size)"
            )

    def _at_step(self, environment: int) -> str:
        number, step = self.open_episodes.get(environment, [self._num_episodes, 0])
        return f"at step {step} of episode {number}"

    def _new_episode(self) -> int:
        if self._num_episodes == len(self._lengths):
            self._lengths = np.concatenate([self._lengths, np.zeros_like(self._lengths)])
        self._num_episodes += 1
        return self._num_episodes - 1

    # --- writing ---

    def _compress(
        self, environment: int, episode: _OpenEpisode, flags: int, final_frame: NDArray[np.uint8] | None
    ) -> None:
        """Turn the buffered steps of an episode into a chunk and start compressing it."""
        steps = episode.frames, episode.actions, episode.rewards, final_frame
        length = len(episode.frames)
        # An end record without a frame has no bytes at all.
        packed = length > 0 or final_frame is not None
        payload = self._thread.submit(lambda: self._compressor.compress(pack_steps(*steps)) if packed else b"")
        flags |= FINAL_FRAME * (final_frame is not None)
        self._pending.append(_PendingChunk(episode.number, environment, episode.first_step, length, flags, payload))
        episode.first_step += length
        episode.frames, episode.actions, episode.rewards = [], [], []

    def _write_pending(self, max_pending: int) -> None:
        """Write compressed chunks in order, and wait for as many more as leave at most `max_pending` pending."""
        self._raise_damage()
        while self._pending and (len(self._pending) > max_pending or self._pending[0].payload.done()):
            self._write(self._pending[0])
            self._pending.popleft()

    def _write(self, chunk: _PendingChunk) -> None:
        """Write a chunk and its record; if that fails, neither is left in the files, and it can be tried again."""
        payload = chunk.payload.result()
        fields = np.array((*chunk[:-1], self._end, len(payload), zlib.crc32(payload)), INDEX_RECORD_1).tobytes()
        record = fields + zlib.crc32(fields).to_bytes(4, "little")
        with disk_errors(self.folder):
            if self._write_failed:
                self._cut_torn_tail()
            self._check_unchanged()
            try:
                self._write_failed = True
                write_all(self._chunks, payload)
                write_all(self._index, record)
                self._write_failed = False
            finally:
                if self._write_failed:
                    with contextlib.suppress(OSError):
                        self._cut_torn_tail()
        self._num_chunks += 1
        self._end += len(payload)
        self._digest.update(record)
        self._lengths[chunk.episode] += chunk.steps
