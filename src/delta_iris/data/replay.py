"""The replay: an append-only store of episodes on disk, compressed in chunks of consecutive steps.

Two files grow in step. `chunks.bin` holds the compressed chunks one after the other; `index.bin` one record of fixed
size a chunk, written after the chunk itself, so that a process that dies while writing leaves nothing half there. A
position (the two lengths) names a state of the store, and cutting the files back to it restores that state exactly.
Chunks are compressed in a thread, while the environments play on; all else happens in the caller's.
Memory stays flat as the store grows: the index is mapped from the file, and what is kept besides (the length of each
episode, the order of the chunks) is a fraction of a byte a frame.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

from delta_iris.errors import UserError

__all__ = ["CHUNK_STEPS", "Replay", "ReplayReader", "Steps"]

CHUNK_STEPS = 16
"""Steps a chunk. Longer ones compress better; a window then unpacks more that it does not use."""

MOST_PENDING = 64
"""Chunks that may wait to be compressed; whoever appends faster than that has to wait too."""

FORMAT = 1

INDEX = np.dtype(
    [
        ("episode", "<u4"),
        ("environment", "<u4"),
        ("first_step", "<u4"),
        ("steps", "<u2"),
        ("flags", "<u2"),
        ("offset", "<u8"),
        ("size", "<u4"),
        ("crc", "<u4"),
    ]
)
TERMINATED, TRUNCATED = 1, 2


class Steps(NamedTuple):
    """Consecutive steps of one episode: frames (n, H, W, 3) uint8, actions (n,) int64, rewards (n,) float32,
    terminated and truncated (n,) bool."""

    frames: NDArray[np.uint8]
    actions: NDArray[np.int64]
    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]


def _paths(folder: Path) -> tuple[Path, Path, Path]:
    return folder / "replay.json", folder / "chunks.bin", folder / "index.bin"


def _pack(frames: list[NDArray[np.uint8]], actions: list[int], rewards: list[float]) -> bytes:
    """Frames as differences to the one before (modulo 256, most of them zero), then actions and rewards."""
    differences = np.stack(frames)
    for t in range(1, len(frames)):
        differences[t] -= frames[t - 1]
    return differences.tobytes() + np.asarray(actions, "<i4").tobytes() + np.asarray(rewards, "<f4").tobytes()


def _unpack(
    data: bytes, steps: int, frame_shape: tuple[int, ...]
) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.float32]]:
    size = steps * int(np.prod(frame_shape))
    differences = np.frombuffer(data, np.uint8, size).reshape(steps, *frame_shape)
    frames = np.empty_like(differences)
    frames[0] = differences[0]
    # A frame at a time: fifty times faster than np.add.accumulate, which works along the strided axis.
    for t in range(1, steps):
        np.add(frames[t - 1], differences[t], out=frames[t])
    actions = np.frombuffer(data, "<i4", steps, offset=size)
    return frames, actions, np.frombuffer(data, "<f4", steps, offset=size + 4 * steps)


@dataclass
class _OpenEpisode:
    """An episode under way in one environment, and its steps that are not written yet."""

    number: int
    first_step: int
    frames: list[NDArray[np.uint8]]
    actions: list[int]
    rewards: list[float]


class _Chunk(NamedTuple):
    """A chunk that is being compressed: its record's fields that are known before, then its bytes."""

    episode: int
    environment: int
    first_step: int
    steps: int
    flags: int
    payload: Future[bytes]


class Replay:
    """Writes episodes of several environments, step by step.

    Args:
        folder: where the store lives; made where it does not exist, continued where it does.
        frame_shape: (H, W, 3).
        level: of the zstd compression.

    Raises:
        UserError: where the folder holds something else, or frames of another shape.
    """

    def __init__(self, folder: Path, frame_shape: tuple[int, int, int], level: int = 9) -> None:
        self.folder, self.frame_shape = folder, frame_shape
        meta, chunks, index = _paths(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if meta.exists():
            _check_meta(folder, frame_shape)
        elif any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no replay: choose another run folder")
        else:
            meta.write_text(json.dumps({"format": FORMAT, "frame_shape": list(frame_shape)}))
        self._compressor = zstandard.ZstdCompressor(level=level)
        self._chunks: BinaryIO = chunks.open("ab", buffering=0)
        self._index: BinaryIO = index.open("ab", buffering=0)
        self._open: dict[int, _OpenEpisode] = {}
        # One thread, for a compressor serves one at a time.
        self._thread = ThreadPoolExecutor(1, "replay")
        self._pending: deque[_Chunk] = deque()
        self._lengths = np.zeros(1024, np.int64)
        self.num_episodes = 0
        self._load_lengths()

    def _load_lengths(self) -> None:
        records = _read_index(self.folder)
        self.num_episodes = int(records["episode"].max()) + 1 if len(records) else 0
        self._lengths = np.zeros(max(1024, 2 * self.num_episodes), np.int64)
        np.add.at(self._lengths, records["episode"], records["steps"])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Steps of each episode that can be read now, (episodes,); those under way count since the last `flush`.

        Like all that tells of the store's state, it waits for chunks that are being compressed.
        """
        self._write_pending(0)
        return self._lengths[: self.num_episodes]

    @property
    def num_frames(self) -> int:
        """Steps that can be read now."""
        return int(self.lengths.sum())

    def append(
        self,
        environment: int,
        frame: NDArray[np.uint8],
        action: int,
        reward: float,
        terminated: bool,
        truncated: bool,
    ) -> None:
        """Add a step to the episode under way in `environment`; a step that ends it is the episode's last.

        `frame` is kept, not copied: it must not change afterwards.

        Raises:
            UserError: where the disk is full; steps since the last `flush` may be lost.
        """
        episode = self._open.get(environment)
        if episode is None:
            episode = self._open[environment] = _OpenEpisode(self._new_episode(), 0, [], [], [])
        episode.frames.append(frame)
        episode.actions.append(action)
        episode.rewards.append(reward)
        ended = terminated or truncated
        if ended or len(episode.frames) == CHUNK_STEPS:
            if ended:
                del self._open[environment]
            self._compress(environment, episode, TERMINATED * terminated | TRUNCATED * truncated)
            self._write_pending(MOST_PENDING)

    def flush(self) -> None:
        """Write what is buffered, so that readers see every step.

        Raises:
            UserError: where the disk is full.
        """
        for environment, episode in self._open.items():
            if episode.frames:
                self._compress(environment, episode, 0)
        self._write_pending(0)

    def position(self) -> dict[str, int]:
        """The present state of the store, for `rollback`. Call `flush` first to include every step."""
        self._write_pending(0)
        return {"chunks": self._index.tell() // INDEX.itemsize, "bytes": self._chunks.tell()}

    def rollback(self, position: dict[str, int]) -> None:
        """Return to an earlier state; what was appended since is lost, episodes then under way stay without an end.

        Raises:
            UserError: where the files are shorter than the position says.
        """
        self._open.clear()
        self._pending.clear()
        _, chunks, index = _paths(self.folder)
        for file, length in ((chunks, position["bytes"]), (index, position["chunks"] * INDEX.itemsize)):
            if file.stat().st_size < length:
                raise UserError(
                    f"{file} holds {file.stat().st_size:,} bytes, the checkpoint was made when it held {length:,}: "
                    "the replay is not this run's, or was cut; bring back the run folder's own replay"
                )
            os.truncate(file, length)
        self._chunks.seek(0, os.SEEK_END)
        self._index.seek(0, os.SEEK_END)
        self._load_lengths()

    def close(self) -> None:
        """Write what is buffered and close the files."""
        if not self._chunks.closed:
            self.flush()
            self._chunks.close()
            self._index.close()
            self._thread.shutdown()

    def _new_episode(self) -> int:
        if self.num_episodes == len(self._lengths):
            self._lengths = np.concatenate([self._lengths, np.zeros_like(self._lengths)])
        self.num_episodes += 1
        return self.num_episodes - 1

    def _compress(self, environment: int, episode: _OpenEpisode, flags: int) -> None:
        steps = episode.frames, episode.actions, episode.rewards
        payload = self._thread.submit(lambda: self._compressor.compress(_pack(*steps)))
        length = len(episode.frames)
        self._pending.append(_Chunk(episode.number, environment, episode.first_step, length, flags, payload))
        episode.first_step += length
        episode.frames, episode.actions, episode.rewards = [], [], []

    def _write_pending(self, most: int) -> None:
        """Write chunks, in their order: those that are compressed, and as many as leave at most `most` pending."""
        while self._pending and (len(self._pending) > most or self._pending[0].payload.done()):
            self._write(self._pending[0])
            self._pending.popleft()

    def _write(self, chunk: _Chunk) -> None:
        payload = chunk.payload.result()
        offset, index_length = self._chunks.tell(), self._index.tell()
        record = np.array((*chunk[:-1], offset, len(payload), zlib.crc32(payload)), INDEX)
        try:
            _write_all(self._chunks, payload)
            _write_all(self._index, record.tobytes())
        except OSError as error:
            os.truncate(self._chunks.fileno(), offset)
            os.truncate(self._index.fileno(), index_length)
            # What is buffered cannot be written either; closing must not try again.
            self._open.clear()
            self._pending.clear()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise UserError(
                f"the disk of {self.folder} is full; the {self.num_frames:,} frames written so far are safe: free some "
                "space and resume with --ckpt_path"
            ) from error
        self._lengths[chunk.episode] += chunk.steps


class ReplayReader:
    """Reads steps of the episodes that were in the store when the reader was made; safe in any process.

    Raises:
        UserError: where there is no replay, of these frames, in the folder.
    """

    def __init__(self, folder: Path, frame_shape: tuple[int, int, int]) -> None:
        _check_meta(folder, frame_shape)
        self.folder, self.frame_shape = folder, frame_shape
        self._records = _read_index(folder)
        # A stable sort: within an episode chunks are in the order in which they were written, which is time's.
        self._order = np.argsort(self._records["episode"], kind="stable").astype(np.int32)
        episodes = self._records["episode"][self._order]
        self._starts = np.searchsorted(episodes, np.arange(int(episodes[-1]) + 2 if len(episodes) else 1))
        self._chunks = _paths(folder)[1].open("rb", buffering=0)
        self._decompressor = zstandard.ZstdDecompressor()

    @property
    def num_episodes(self) -> int:
        """Number of episodes, those under way included."""
        return len(self._starts) - 1

    def environment(self, episode: int) -> int:
        """The environment that an episode was collected in."""
        return int(self._chunks_of(episode)["environment"][0])

    def length(self, episode: int) -> int:
        """Number of an episode's steps."""
        last = self._chunks_of(episode)[-1]
        return int(last["first_step"]) + int(last["steps"])

    def read(self, episode: int, start: int, stop: int) -> Steps:
        """Steps start ≤ t < stop of an episode.

        Raises:
            IndexError: where the episode has no such steps.
            UserError: where what is on disk is damaged.
        """
        chunks = self._chunks_of(episode)
        if not 0 <= start < stop <= int(chunks[-1]["first_step"]) + int(chunks[-1]["steps"]):
            raise IndexError(f"episode {episode} of {self.folder} has no steps {start}…{stop}")
        first, last = np.searchsorted(chunks["first_step"], [start, stop - 1], side="right") - 1
        parts = [self._read_chunk(chunks[i]) for i in range(int(first), int(last) + 1)]
        skip = start - int(chunks[first]["first_step"])
        return Steps(*(np.concatenate(field)[skip : skip + stop - start] for field in zip(*parts, strict=True)))

    def _chunks_of(self, episode: int) -> NDArray[np.void]:
        if not 0 <= episode < self.num_episodes:
            raise IndexError(f"{self.folder} has no episode {episode}")
        return self._records[self._order[self._starts[episode] : self._starts[episode + 1]]]

    def _read_chunk(self, record: np.void) -> Steps:
        size, steps = int(record["size"]), int(record["steps"])
        payload = os.pread(self._chunks.fileno(), size, int(record["offset"]))
        if len(payload) != size or zlib.crc32(payload) != record["crc"]:
            raise UserError(
                f"{_paths(self.folder)[1]} is damaged at byte {int(record['offset']):,} (episode "
                f"{int(record['episode'])}, step {int(record['first_step'])}): restore the file from a copy, or "
                "start a new run"
            )
        frames, actions, rewards = _unpack(self._decompressor.decompress(payload), steps, self.frame_shape)
        terminated, truncated = np.zeros(steps, np.bool_), np.zeros(steps, np.bool_)
        terminated[-1] = bool(record["flags"] & TERMINATED)
        truncated[-1] = bool(record["flags"] & TRUNCATED)
        return Steps(frames, actions.astype(np.int64), rewards, terminated, truncated)


def _check_meta(folder: Path, frame_shape: tuple[int, int, int]) -> None:
    meta = _paths(folder)[0]
    try:
        content = json.loads(meta.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no replay: resuming needs the run folder that the checkpoint lies in"
        ) from None
    except ValueError as error:
        raise UserError(f"{meta} is damaged ({error}): restore it from a copy, or start a new run") from None
    if content.get("format") != FORMAT:
        raise UserError(f"{meta} has format {content.get('format')}, this version reads format {FORMAT}")
    if tuple(content["frame_shape"]) != frame_shape:
        raise UserError(
            f"{folder} holds frames of shape {tuple(content['frame_shape'])}, data.frame_size asks for {frame_shape}: "
            "start a new run, or use the configuration that made this one"
        )


def _read_index(folder: Path) -> NDArray[np.void]:
    path = _paths(folder)[2]
    count = path.stat().st_size // INDEX.itemsize if path.exists() else 0
    return np.memmap(path, INDEX, "r", shape=(count,)) if count else np.zeros(0, INDEX)


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Unbuffered files may write less than they are given, as a disk that fills up does."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
