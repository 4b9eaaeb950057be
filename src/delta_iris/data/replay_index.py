"""The index of a replay: checked as a whole before anything is read through it, and sorted by episode.

A record that is damaged is never used. The checks are vectorized: they take a fraction of a second for 10M frames.
"""

from __future__ import annotations

import hashlib
import zlib
from functools import cache
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from delta_iris.data.replay_format import (
    CHUNK_STEPS,
    FINAL_FRAME,
    INDEX_RECORD,
    INDEX_RECORD_1,
    MAX_ENVIRONMENTS,
    TERMINATED,
    TRUNCATED,
    ReplayFiles,
    check_metadata,
    max_chunk_bytes,
)
from delta_iris.errors import UserError
from delta_iris.files import open_regular

__all__ = [
    "WAY_OUT",
    "ReplayIndex",
    "ReplayPosition",
    "check_position",
    "index_path",
    "read_index",
    "read_records",
    "record_checks",
    "record_type",
]

WAY_OUT = (
    "restore the file from a copy, leave damaged episodes out with data.skip_damaged_episodes=true, or start a new run"
)
"""How a message about damage ends."""


class ReplayPosition(TypedDict):
    """A state of a replay, as a checkpoint stores it. Version 0.2.0 stored only the first two entries.

    Attributes:
        chunks: number of chunks.
        bytes: their bytes.
        checksum: hash of their index records, which contain the checksums of the chunks.
        open_episodes: for each environment, the number and the steps of its unfinished episode.
    """

    chunks: int
    bytes: int
    checksum: NotRequired[str]
    open_episodes: NotRequired[dict[int, list[int]]]


@cache
def _check_tables() -> NDArray[np.uint32]:
    """What each value of each byte of a record changes in the CRC-32 of a record of zeros; XOR combines them."""
    size = INDEX_RECORD_1.itemsize
    zeros = zlib.crc32(bytes(size))
    tables = [
        [zlib.crc32(bytes(k) + bytes([byte]) + bytes(size - k - 1)) ^ zeros for byte in range(256)] for k in range(size)
    ]
    return np.array(tables, np.uint32)


def record_checks(records: NDArray[np.void]) -> NDArray[np.uint32]:
    """Compute the checksums that belong into `check`: `zlib.crc32` of each record's other fields, vectorized.

    Args:
        records: (n,) array of `INDEX_RECORD`.

    Returns:
        (n,) uint32.
    """
    tables = _check_tables()
    data = np.ascontiguousarray(records).view(np.uint8).reshape(-1, INDEX_RECORD.itemsize)
    checks = np.full(len(data), zlib.crc32(bytes(len(tables))), np.uint32)
    for k, table in enumerate(tables):
        checks ^= table[data[:, k]]
    return checks


class ReplayIndex:
    """Checked index records, sorted by episode.

    Args:
        path: `index.bin`, for messages.
        records: (n,) array of `INDEX_RECORD`, in the order of the file.
        chunks_bytes: size of `chunks.bin`, at least what it was when the records were read.
        frame_shape: (H, W, 3).
        least_bytes: bytes that the chunks of these records take at least, but for one chunk.

    Attributes:
        digest: hash of all records, to which further ones can be added.
        problem: the first damage in one line, or None.
        damaged_episodes: numbers of the episodes that are not whole because of damage, ascending.
        num_episodes: number of episodes, including unfinished and damaged ones.
        lengths: (episodes,) int64, the steps of each episode; 0 for damaged ones.
        end: bytes of all chunks, or None if damage hides it.
        records: the intact records sorted by episode and time.
        starts: (episodes + 1,) where each episode begins in `records`.
    """

    def __init__(
        self,
        path: Path,
        records: NDArray[np.void],
        chunks_bytes: int,
        frame_shape: tuple[int, int, int],
        least_bytes: int,
    ) -> None:
        self.num_chunks = len(records)
        self.digest = hashlib.blake2b(records.tobytes(), digest_size=16)
        self.problem: str | None = None
        bad = self._check_records(path, records, chunks_bytes, frame_shape)
        claimed = records["episode"][bad].astype(np.int64)
        records = records if not bad.any() else records[~bad]
        ends = int(records["offset"][-1] + records["size"][-1]) if len(records) else 0
        self.end = None if bad.any() and bad[-1] else ends
        # A process that was killed leaves at most one chunk without a record.
        if self.problem is None and least_bytes - ends > max_chunk_bytes(frame_shape):
            self.problem = (
                f"{path} is damaged: it ends after {len(records):,} records, whose chunks take {ends:,} of "
                f"{chunks_bytes:,} bytes: {WAY_OUT}"
            )
        # A stable sort keeps the chunks of an episode in the order of time, which is the order they were written in.
        self.records = records[np.argsort(records["episode"], kind="stable")]
        episodes = self.records["episode"].astype(np.int64)
        intact_episodes = int(episodes[-1]) + 1 if len(episodes) else 0
        # A damaged record may be all there is of the last episodes; a number that cannot be right is not believed.
        claimed = claimed[claimed < intact_episodes + len(claimed)]
        self.num_episodes = max(intact_episodes, int(claimed.max(initial=-1)) + 1)
        self.starts = np.searchsorted(episodes, np.arange(self.num_episodes + 1))
        torn = self._check_episodes(path, episodes)
        self.damaged_episodes: list[int] = np.union1d(claimed, torn).tolist()
        last = self.records[self.starts[1:] - 1] if len(self.records) else np.zeros(self.num_episodes, INDEX_RECORD)
        self.lengths = last["first_step"].astype(np.int64) + last["steps"]
        # Of an episode that was begun just before a process was killed, there may be nothing.
        self.lengths[self.starts[1:] == self.starts[:-1]] = 0
        self.lengths[self.damaged_episodes] = 0

    @property
    def checksum(self) -> str:
        """Hash that identifies all chunks and their order."""
        return self.digest.hexdigest()

    def records_of(self, episode: int) -> NDArray[np.void]:
        """Return the intact records of an episode, in the order of time.

        Args:
            episode: number of the episode, which must exist.
        """
        return self.records[self.starts[episode] : self.starts[episode + 1]]

    def open_episode(self, environment: int) -> list[int] | None:
        """Return number and steps of the last episode of an environment, if it has no end.

        Args:
            environment: index of the environment.
        """
        episodes = self.records["episode"][self.records["environment"] == environment]
        if not len(episodes) or self.records_of(int(episodes[-1]))["flags"][-1] & (TERMINATED | TRUNCATED):
            return None
        return [int(episodes[-1]), int(self.lengths[episodes[-1]])]

    def _check_records(
        self, path: Path, records: NDArray[np.void], chunks_bytes: int, frame_shape: tuple[int, int, int]
    ) -> NDArray[np.bool_]:
        """Check every record alone and against the one before; returns which are damaged."""
        steps, flags, size, offset = (records[name] for name in ("steps", "flags", "size", "offset"))
        ended, final = flags & (TERMINATED | TRUNCATED), (flags & FINAL_FRAME) > 0
        is_end_record = (flags & ~np.uint16(FINAL_FRAME)) == TRUNCATED
        bad_steps = (steps > CHUNK_STEPS) | (flags > 7) | (final & (ended == 0))
        bad_steps |= (steps == 0) & (~is_end_record | (records["first_step"] == 0) | (final != (size > 0)))
        bad_numbers = records["environment"] >= MAX_ENVIRONMENTS
        bad_numbers |= records["episode"] >= np.arange(len(records)) + MAX_ENVIRONMENTS
        bad_size = (size > max_chunk_bytes(frame_shape)) | ((size == 0) & (steps > 0))
        outside = (offset > chunks_bytes) | (size > chunks_bytes - np.minimum(offset, chunks_bytes))
        checks = (
            (record_checks(records) != records["check"], "its checksum is wrong"),
            (bad_steps, "its steps cannot be"),
            (bad_numbers, "its numbers cannot be"),
            (bad_size, "its chunk's size cannot be"),
            (outside, f"its chunk lies outside of chunks.bin, which holds {chunks_bytes:,} bytes"),
        )
        bad = np.zeros(len(records), np.bool_)
        for wrong, _ in checks:
            bad |= wrong
        ends = np.concatenate([[np.uint64(0)], (offset + size)[:-1]]) if len(records) else offset
        # Next to a damaged record, nothing can be said about the other.
        conflict = ~bad & ~np.concatenate([[False], bad[:-1]])[: len(bad)] & (offset != ends)
        if bad.any() or conflict.any():
            number = int(np.argmax(bad | conflict))
            reasons = [reason for wrong, reason in checks if wrong[number]]
            reasons.append("it does not follow the one before; did two processes write?")
            self.problem = (
                f"{path} is damaged at byte {number * INDEX_RECORD.itemsize:,} (record {number:,}, of episode "
                f"{int(records['episode'][number])} if that can be read: {reasons[0]}): {WAY_OUT}"
            )
        return bad | conflict

    def _check_episodes(self, path: Path, episodes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Check that every episode is one piece with one end, in one environment; returns those that are not."""
        records = self.records
        first_step, environment = records["first_step"], records["environment"]
        ended = (records["flags"] & (TERMINATED | TRUNCATED)) > 0
        same = episodes[1:] == episodes[:-1]
        torn = np.zeros(len(records), np.bool_)
        torn[1:] = same & (
            (first_step[1:] != first_step[:-1] + records["steps"][:-1])
            | (environment[1:] != environment[:-1])
            | ended[:-1]
        )
        torn[:1] = first_step[:1] != 0
        torn[1:] |= ~same & (first_step[1:] != 0)
        found = np.unique(episodes[torn])
        if len(found) and self.problem is None:
            self.problem = (
                f"{path} is damaged (episode {found[0]}: its chunks do not follow each other; did two processes "
                f"write?): {WAY_OUT}"
            )
        return found


def index_path(folder: Path, version: int) -> Path:
    """Return the index that belongs to `replay.json`: a conversion to version 2 may have been interrupted.

    Args:
        folder: folder of the replay.
        version: format version that `replay.json` names.
    """
    path = ReplayFiles.of(folder).index
    converted = path.with_name(path.name + ".converted")
    return converted if version > 1 and converted.exists() else path


def record_type(version: int) -> np.dtype[np.void]:
    """Return the type of an index record on disk.

    Args:
        version: format version of the replay.
    """
    return INDEX_RECORD_1 if version == 1 else INDEX_RECORD


def read_index(folder: Path, frame_shape: tuple[int, int, int], position: ReplayPosition | None = None) -> ReplayIndex:
    """Read and check the index; an incomplete last record is ignored.

    Another process may append at the same time.

    Args:
        folder: folder of the replay.
        frame_shape: (H, W, 3).
        position: read only what was there at an earlier state.

    Raises:
        UserError: if the folder contains no replay, or one of another frame shape, or a file cannot be read. Damage of
            the index itself does not raise; it is described by `problem`.
    """
    version = check_metadata(folder, frame_shape)
    files = ReplayFiles.of(folder)
    path = index_path(folder, version)
    before = _size(files.chunks)
    records = read_records(path, version, position and position["chunks"])
    # A chunk is written before its record, so that records may name what was written in between.
    return ReplayIndex(path, records, _size(files.chunks), frame_shape, before if position is None else 0)


def check_position(folder: Path, frame_shape: tuple[int, int, int], position: ReplayPosition) -> ReplayIndex:
    """Read the index up to an earlier state, and check that the replay had it.

    Args:
        folder: folder of the replay.
        frame_shape: (H, W, 3).
        position: the earlier state.

    Returns:
        the index at that state. Damage that is described by its `problem` is left to the caller.

    Raises:
        UserError: if the replay is shorter than it was, belongs to another run, or was changed.
    """
    version = check_metadata(folder, frame_shape)
    files = ReplayFiles.of(folder)
    path = index_path(folder, version)
    for file, length in ((files.chunks, position["bytes"]), (path, position["chunks"] * record_type(version).itemsize)):
        if _size(file) < length:
            raise UserError(
                f"{file} holds {_size(file):,} bytes, but held {length:,} when the checkpoint was saved: "
                "the replay belongs to another run or was truncated; restore the replay of this run"
            )
    index = read_index(folder, frame_shape, position)
    if index.problem is None:
        same = index.end == position["bytes"] and position.get("checksum", index.checksum) == index.checksum
        for environment, episode in position.get("open_episodes", {}).items():
            same = same and index.open_episode(environment) == list(episode)
        if not same:
            raise UserError(
                f"{path} is not what it was when the checkpoint was saved: the replay belongs to another run or was "
                "changed; restore the replay of this run"
            )
    return index


def read_records(path: Path, version: int, count: int | None = None) -> NDArray[np.void]:
    """Read index records without checking them; an incomplete last record is ignored.

    Args:
        path: the index; a missing one has no records.
        version: format version of the file.
        count: number of records to read; None reads all.

    Returns:
        (n,) array of `INDEX_RECORD`. Records of version 1 get the checksum that they lack.

    Raises:
        UserError: if the file cannot be read.
    """
    record = record_type(version)
    try:
        with open_regular(path) as file:
            data = file.read(-1 if count is None else count * record.itemsize)
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    found = np.frombuffer(data, record, len(data) // record.itemsize)
    if record == INDEX_RECORD:
        return found
    records = np.zeros(len(found), INDEX_RECORD)
    for name in INDEX_RECORD_1.names or ():
        records[name] = found[name]
    records["check"] = record_checks(records)
    return records


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
