"""The replay's format on disk: three files, an index record per chunk, and the packing of a chunk.

- `replay.json`: format version, frame shape, and a checksum of both.
- `chunks.bin`: zstd-compressed chunks of at most `CHUNK_STEPS` consecutive steps of one episode, back to back. An
  episode's last chunk also contains the frame after its last step, if it is known.
- `index.bin`: one `INDEX_RECORD` per chunk, in the same order, each with a checksum of the chunk and one of itself.

An episode that is cut off after its last chunk was written gets an end record: a chunk of 0 steps with the flag
`TRUNCATED` and, if it is known, the frame after the last step.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from delta_iris.errors import UserError
from delta_iris.files import open_regular

__all__ = [
    "CHUNK_STEPS",
    "FINAL_FRAME",
    "INDEX_RECORD",
    "INDEX_RECORD_1",
    "MAX_ENVIRONMENTS",
    "TERMINATED",
    "TRUNCATED",
    "ReplayFiles",
    "Steps",
    "check_metadata",
    "format_metadata",
    "max_chunk_bytes",
    "pack_steps",
    "packed_size",
    "read_metadata",
    "unpack_final_frame",
    "unpack_steps",
]

CHUNK_STEPS = 16
"""Steps per chunk. Longer chunks compress better, but reading a segment then decompresses more unused steps."""

FORMAT_VERSION = 2

MAX_ENVIRONMENTS = 1 << 16
"""Environments are numbered below this. It also bounds how many episodes can be open, which a check of numbers uses."""

MAX_FRAME_SIDE = 1 << 14
"""Height and width of a frame are at most this."""

_METADATA_BYTES = 4096

INDEX_RECORD_1 = np.dtype(
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
"""A chunk's record in format version 1: its steps, how its last step ended the episode (`flags`), and its bytes with
their CRC-32."""

INDEX_RECORD = np.dtype([*INDEX_RECORD_1.descr, ("check", "<u4")])
"""A chunk's record: the fields of version 1, and the CRC-32 of these fields."""

TERMINATED = 1
"""Flag of a chunk whose last step terminated the episode."""

TRUNCATED = 2
"""Flag of a chunk whose last step was cut off by a time limit."""

FINAL_FRAME = 4
"""Flag of an episode's last chunk that contains the frame after the last step."""


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


def packed_size(steps: int, frame_shape: tuple[int, int, int], final_frame: bool) -> int:
    """Return the bytes of a chunk before compression.

    Args:
        steps: number of steps.
        frame_shape: (H, W, 3).
        final_frame: whether the chunk contains the frame after the last step.
    """
    frame_bytes = frame_shape[0] * frame_shape[1] * frame_shape[2]
    return steps * (frame_bytes + 4 + 4) + frame_bytes * final_frame


def max_chunk_bytes(frame_shape: tuple[int, int, int]) -> int:
    """Return an upper bound of the bytes of a compressed chunk.

    Args:
        frame_shape: (H, W, 3).
    """
    size = packed_size(CHUNK_STEPS, frame_shape, True)
    return size + (size >> 8) + 256  # zstd's own bound is a little lower


def pack_steps(
    frames: list[NDArray[np.uint8]],
    actions: list[int],
    rewards: list[float],
    final_frame: NDArray[np.uint8] | None = None,
) -> bytes:
    """Serialize the steps of a chunk, before compression.

    Frames are stored as differences from the previous frame modulo 256, most of which are zero. Actions and rewards
    follow as little-endian int32 and float32, then the frame after the last step.

    Args:
        frames: n arrays of (H, W, 3) uint8.
        actions: n actions.
        rewards: n rewards.
        final_frame: (H, W, 3) uint8, the frame after the last step; None leaves it out.
    """
    data = b""
    if frames:
        differences = np.stack(frames)
        for t in range(1, len(frames)):
            differences[t] -= frames[t - 1]
        data = differences.tobytes() + np.asarray(actions, "<i4").tobytes() + np.asarray(rewards, "<f4").tobytes()
    if final_frame is not None:
        data += (final_frame - frames[-1] if frames else final_frame).tobytes()
    return data


def unpack_steps(
    data: bytes, steps: int, frame_shape: tuple[int, int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.float32]]:
    """Invert `pack_steps`, without the frame after the last step.

    Args:
        data: the decompressed chunk.
        steps: number of steps, n, at least 1.
        frame_shape: (H, W, 3).

    Returns:
        frames (n, H, W, 3) uint8, actions (n,) int32 and rewards (n,) float32.
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


def unpack_final_frame(data: bytes, steps: int, frame_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return the frame after the last step of a chunk that contains it.

    Args:
        data: the decompressed chunk.
        steps: number of steps, may be 0.
        frame_shape: (H, W, 3).

    Returns:
        (H, W, 3) uint8.
    """
    difference = np.frombuffer(data, np.uint8, offset=packed_size(steps, frame_shape, False)).reshape(frame_shape)
    return difference + unpack_steps(data, steps, frame_shape)[0][-1] if steps else difference.copy()


def format_metadata(frame_shape: tuple[int, int, int]) -> bytes:
    """Return the content of `replay.json`.

    Args:
        frame_shape: (H, W, 3).
    """
    content = {"format": FORMAT_VERSION, "frame_shape": list(frame_shape)}
    return json.dumps(content | {"checksum": zlib.crc32(json.dumps(content).encode())}).encode()


def read_metadata(folder: Path) -> tuple[int, tuple[int, int, int]]:
    """Read `replay.json`.

    Args:
        folder: folder of the replay.

    Returns:
        format version, 1 or 2, and frame shape (H, W, 3).

    Raises:
        UserError: if there is no replay, its metadata is damaged, or the version is unknown.
    """
    path = ReplayFiles.of(folder).metadata
    try:
        with open_regular(path) as file:
            text = file.read(_METADATA_BYTES)
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no replay: name a run folder or a replay in it; to resume a run, its folder must be whole"
        ) from None
    try:
        content = json.loads(text)
        version, shape = content["format"], tuple(content["frame_shape"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged_metadata(path, str(error)) from None
    if type(version) is not int or version not in (1, FORMAT_VERSION):
        raise UserError(f"{path} has format {version!r}, this version reads formats 1 and {FORMAT_VERSION}")
    sides = [side for side in shape if type(side) is int and 1 <= side <= MAX_FRAME_SIDE]
    if len(shape) != 3 or len(sides) != 3 or shape[2] != 3:
        raise _damaged_metadata(path, "frame_shape is not (H, W, 3)")
    # Written by one function, so that any other byte is damage. Version 1 had no checksum.
    if text != format_metadata(shape) if version == FORMAT_VERSION else set(content) != {"format", "frame_shape"}:
        raise _damaged_metadata(path, "its checksum is wrong")
    return version, shape


def check_metadata(folder: Path, frame_shape: tuple[int, int, int]) -> int:
    """Check that a folder contains a replay of a known format version and a given frame shape.

    Args:
        folder: folder of the replay.
        frame_shape: expected (H, W, 3).

    Returns:
        the format version.

    Raises:
        UserError: if there is no replay, its metadata is damaged, or the version or the frame shape differs.
    """
    version, found = read_metadata(folder)
    if found != frame_shape:
        raise UserError(
            f"{folder} holds frames of shape {found}, data.frame_size asks for {frame_shape}: "
            "start a new run, or use the configuration of the run that wrote this replay"
        )
    return version


def _damaged_metadata(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged ({reason}): restore it from a copy, or start a new run")
