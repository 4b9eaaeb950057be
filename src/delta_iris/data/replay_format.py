"""The replay's format on disk: three files, an index record per chunk, and the packing of a chunk.

- `replay.json`: format version and frame shape.
- `chunks.bin`: zstd-compressed chunks of at most `CHUNK_STEPS` consecutive steps of one episode, back to back.
- `index.bin`: one `INDEX_RECORD` per chunk, in the same order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from delta_iris.errors import UserError

__all__ = [
    "CHUNK_STEPS",
    "INDEX_RECORD",
    "TERMINATED",
    "TRUNCATED",
    "ReplayFiles",
    "Steps",
    "check_metadata",
    "pack_steps",
    "read_index",
    "unpack_steps",
    "write_metadata",
]

CHUNK_STEPS = 16
"""Steps per chunk. Longer chunks compress better, but reading a segment then decompresses more unused steps."""

FORMAT_VERSION = 1

INDEX_RECORD = np.dtype(
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
"""A chunk's record: its steps, how its last step ended the episode (`flags`), and its bytes with their CRC-32."""

TERMINATED = 1
"""Flag of a chunk whose last step terminated the episode."""

TRUNCATED = 2
"""Flag of a chunk whose last step was cut off by a time limit."""


class Steps(NamedTuple):
    """n consecutive steps of one episode, as NumPy arrays.

    Attributes:
        frames: (n, H, W, 3) uint8, RGB.
        actions: (n,) int64.
        rewards: (n,) float32.
        terminated: (n,) bool.
        truncated: (n,) bool.
    """

    frames: NDArray[np.uint8]
    actions: NDArray[np.int64]
    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]


@dataclass(frozen=True)
class ReplayFiles:
    """Paths of a replay's files.

    Attributes:
        metadata: `replay.json`.
        chunks: `chunks.bin`.
        index: `index.bin`.
    """

    metadata: Path
    chunks: Path
    index: Path

    @classmethod
    def of(cls, folder: Path) -> ReplayFiles:
        """Return the paths of the files of the replay in `folder`."""
        return cls(folder / "replay.json", folder / "chunks.bin", folder / "index.bin")


def pack_steps(frames: list[NDArray[np.uint8]], actions: list[int], rewards: list[float]) -> bytes:
    """Serialize the steps of a chunk, before compression.

    Frames are stored as differences from the previous frame modulo 256, most of which are zero. Actions and rewards
    follow as little-endian int32 and float32.

    Args:
        frames: n arrays of (H, W, 3) uint8.
        actions: n actions.
        rewards: n rewards.
    """
    differences = np.stack(frames)
    for t in range(1, len(frames)):
        differences[t] -= frames[t - 1]
    return differences.tobytes() + np.asarray(actions, "<i4").tobytes() + np.asarray(rewards, "<f4").tobytes()


def unpack_steps(
    data: bytes, steps: int, frame_shape: tuple[int, int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.float32]]:
    """Invert `pack_steps`.

    Args:
        data: the decompressed chunk.
        steps: number of steps, n.
        frame_shape: (H, W, 3).

    Returns:
        frames: (n, H, W, 3) uint8.
        actions: (n,) int32.
        rewards: (n,) float32.
    """
    size = steps * int(np.prod(frame_shape))
    differences = np.frombuffer(data, np.uint8, size).reshape(steps, *frame_shape)
    frames = np.empty_like(differences)
    frames[0] = differences[0]
    # One frame at a time is fifty times faster than np.add.accumulate, which works along the strided axis.
    for t in range(1, steps):
        np.add(frames[t - 1], differences[t], out=frames[t])
    actions = np.frombuffer(data, "<i4", steps, offset=size)
    rewards = np.frombuffer(data, "<f4", steps, offset=size + actions.nbytes)
    return frames, actions, rewards


def write_metadata(folder: Path, frame_shape: tuple[int, int, int]) -> None:
    """Write `replay.json`.

    Args:
        folder: folder of the replay.
        frame_shape: (H, W, 3).
    """
    content = {"format": FORMAT_VERSION, "frame_shape": list(frame_shape)}
    ReplayFiles.of(folder).metadata.write_text(json.dumps(content))


def check_metadata(folder: Path, frame_shape: tuple[int, int, int]) -> None:
    """Check that a folder contains a replay of this format version and frame shape.

    Args:
        folder: folder of the replay.
        frame_shape: expected (H, W, 3).

    Raises:
        UserError: if there is no replay, its metadata is damaged, or the version or the frame shape differs.
    """
    path = ReplayFiles.of(folder).metadata
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no replay: to resume a run, its run folder with checkpoint and replay must be complete"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): restore it from a copy, or start a new run") from None
    if content.get("format") != FORMAT_VERSION:
        raise UserError(f"{path} has format {content.get('format')}, this version reads format {FORMAT_VERSION}")
    if tuple(content["frame_shape"]) != frame_shape:
        raise UserError(
            f"{folder} holds frames of shape {tuple(content['frame_shape'])}, data.frame_size asks for {frame_shape}: "
            "start a new run, or use the configuration of the run that wrote this replay"
        )


def read_index(folder: Path) -> NDArray[np.void]:
    """Map the index into memory; an incomplete last record is ignored.

    Args:
        folder: folder of the replay.

    Returns:
        (chunks,) array of `INDEX_RECORD`, read-only.
    """
    path = ReplayFiles.of(folder).index
    count = path.stat().st_size // INDEX_RECORD.itemsize if path.exists() else 0
    return np.memmap(path, INDEX_RECORD, "r", shape=(count,)) if count else np.zeros(0, INDEX_RECORD)
