"""Recorded episodes, of a person or of another agent, that a new run's replay starts with."""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from delta_iris.data.replay import Replay
from delta_iris.data.replay_format import ReplayFiles, Steps, read_metadata
from delta_iris.data.replay_reader import ReplayReader
from delta_iris.errors import UserError
from delta_iris.files import open_regular

__all__ = [
    "RecordedEpisode",
    "ReplayEpisode",
    "add_recorded_episodes",
    "find_recorded_episodes",
    "read_recorded_episode",
]

MAX_EPISODE_BYTES = 1 << 30
"""An array of a recorded episode takes at most this: 87,000 frames of 64 × 64."""

BLOCK_STEPS = 256
"""Steps of an episode of another replay that are in memory at a time."""

_MAX_DEFLATE_RATIO = 1032
"""Deflate, the only compression of `.npz` files, makes nothing smaller than by this factor."""

_END_RECORD = struct.Struct("<4s6xH10x")
"""The end of a zip archive: a signature and the number of its members, among others."""


class RecordedEpisode(NamedTuple):
    """A recorded episode.

    Attributes:
        steps: its T steps.
        final_frame: (H, W, 3) uint8, the frame after the last step.
    """

    steps: Steps
    final_frame: NDArray[np.uint8]


class ReplayEpisode(NamedTuple):
    """An episode of another replay.

    Attributes:
        folder: of the replay.
        number: of the episode.
    """

    folder: Path
    number: int


def find_recorded_episodes(folder: Path, world_size: int = 1) -> list[Path] | list[ReplayEpisode]:
    """List the recorded episodes in a folder: of a replay, or one `.npz` file per episode, sorted by name.

    Args:
        folder: folder of the replay or of the files.
        world_size: number of training processes, each of which needs at least one episode.

    Raises:
        UserError: if there are fewer episodes than training processes, or the replay is damaged.
    """
    if ReplayFiles.of(folder).metadata.exists():
        reader = ReplayReader(folder, read_metadata(folder)[1])
        episodes = [ReplayEpisode(folder, number) for number in range(reader.num_episodes) if reader.length(number)]
        if len(episodes) < world_size:
            raise UserError(
                f"data.recorded_episodes {folder} holds {len(episodes)} episodes, but {world_size} process(es) need at "
                "least one each: use fewer, or another replay"
            )
        return episodes
    paths = sorted(folder.glob("*.npz"))
    if len(paths) < world_size:
        raise UserError(
            f"data.recorded_episodes {folder} holds {len(paths)} .npz files, one episode each, and no replay, but "
            f"{world_size} process(es) need at least one each: check the path"
        )
    return paths


def read_recorded_episode(path: Path, frame_shape: tuple[int, int, int], num_actions: int) -> RecordedEpisode:
    """Read an episode of T steps in the format of `crafter.Recorder`, which DreamerV2 uses too.

    The `.npz` file contains these arrays; others are ignored:

    - `image`: (T + 1, H, W, 3) uint8.
    - `action`: (T + 1,) integers. Entry t is the action before image t; entry 0 is ignored.
    - `reward`: (T + 1,) numbers. Entry t is the reward before image t; entry 0 is ignored.
    - `discount`: (T + 1,) numbers, optional. The episode terminated if the last entry is 0; otherwise it was truncated.
    - `done`: (T + 1,), optional, used without `discount`. The episode terminated if the last entry is true.

    Shapes and types are checked before the arrays are read, so that a file cannot ask for more memory than it should.

    Args:
        path: the `.npz` file.
        frame_shape: expected (H, W, 3).
        num_actions: number of actions of the environment.

    Returns:
        The T steps, and the last image, where no action was taken.

    Raises:
        UserError: if the file cannot be read, or an array has a wrong shape, data type or value.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            file.seek(-_END_RECORD.size, os.SEEK_END)
            signature, members, *_ = _END_RECORD.unpack(file.read(_END_RECORD.size))
            # A wrong length in the archive's directory, which has no checksum, might swallow the entry of a member.
            if signature != b"PK\x05\x06" or members != len(archive.infolist()):
                raise zipfile.BadZipFile("the archive's directory is damaged, or the archive has a comment")
            # Of every member, although most are ignored: a name that was changed must not hide one.
            headers = {info.filename.removesuffix(".npy"): _read_header(archive, info) for info in archive.infolist()}
            _check_headers(path, headers, frame_shape)
            names = ["image", "action", "reward", *[name for name in ("discount", "done") if name in headers][:1]]
            image, action, reward, *end = (_read_array(archive, f"{name}.npy") for name in names)
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:  # what zipfile and NumPy raise on hostile bytes is of any kind
        reason = str(error) or type(error).__name__
        raise UserError(
            f"data.recorded_episodes: {path} cannot be read as an episode ({reason}): it must be an .npz file with "
            "image, action and reward, as numpy.savez_compressed writes it, without pickled objects"
        ) from error
    length = len(image) - 1
    ended = bool(end and (end[0][-1] == 0 if "discount" in headers else end[0][-1]))
    actions, rewards = action[1:], reward[1:].astype(np.float64)
    if actions.min() < 0 or actions.max() >= num_actions:
        raise UserError(
            f"data.recorded_episodes: {path} has actions from {actions.min()} to {actions.max()}, but "
            f"data.num_actions is {num_actions}: record the episodes in the environment of this run"
        )
    if not (np.abs(rewards) <= np.finfo(np.float32).max).all():
        raise UserError(f"data.recorded_episodes: {path} has rewards that are not finite: remove NaN and infinity")
    terminated, truncated = np.zeros((2, length), np.bool_)
    terminated[-1], truncated[-1] = ended, not ended
    steps = Steps(image[:-1], actions.astype(np.int64), rewards.astype(np.float32), terminated, truncated)
    return RecordedEpisode(steps, image[-1])


def add_recorded_episodes(replay: Replay, episodes: Sequence[Path] | Sequence[ReplayEpisode], num_actions: int) -> None:
    """Append recorded episodes to a replay, as if they had been collected in environment 0.

    Args:
        replay: the replay to append to.
        episodes: of another replay, or files in the format of `read_recorded_episode`.
        num_actions: number of actions of the environment.

    Raises:
        UserError: if one is no such episode, its frames or actions are not those of the replay, or the disk is full.
    """
    readers: dict[Path, ReplayReader] = {}
    for episode in episodes:
        if isinstance(episode, ReplayEpisode):
            if episode.folder not in readers:
                readers[episode.folder] = ReplayReader(episode.folder, replay.frame_shape)
            _copy_episode(replay, readers[episode.folder], episode.number, num_actions)
        else:
            steps, final_frame = read_recorded_episode(episode, replay.frame_shape, num_actions)
            _append(replay, steps, final_frame)
    replay.flush()


def _copy_episode(replay: Replay, reader: ReplayReader, number: int, num_actions: int) -> None:
    """Append an episode of another replay, some steps at a time. One that is not finished there was cut off."""
    length, final_frame = reader.length(number), reader.final_frame(number)
    for start in range(0, length, BLOCK_STEPS):
        steps = reader.read(number, start, min(start + BLOCK_STEPS, length))
        if steps.actions.max() >= num_actions:
            raise UserError(
                f"data.recorded_episodes: episode {number} of {reader.folder} has action {steps.actions.max()}, but "
                f"data.num_actions is {num_actions}: set it to the number of actions of the recorded game"
            )
        _append(replay, steps, final_frame)
    replay.truncate(0)


def _append(replay: Replay, steps: Steps, final_frame: NDArray[np.uint8] | None) -> None:
    """Append steps in environment 0, and after the last one of an episode the frame that follows it."""
    for frame, action, reward, terminated, truncated in zip(*steps, strict=True):
        ended = bool(terminated or truncated)
        ends = bool(terminated), bool(truncated)
        replay.append(0, frame, int(action), float(reward), *ends, final_frame if ended else None)


class _Header(NamedTuple):
    """Shape and type that a member of the archive declares."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def _read_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Header | None:
    """Read what a member declares, and check that its size agrees; None if it is not an array."""
    with archive.open(info) as member:  # also checks that both of its names are the same
        if not info.filename.endswith(".npy"):
            return None
        # NumPy writes others only for headers of more than 64 KB, which it reads before it can refuse them.
        if (version := npy.read_magic(member)) != (1, 0):
            raise ValueError(f"{info.filename} has version {version}")
        shape, _, dtype = npy.read_array_header_1_0(member)
        if dtype.hasobject:
            return _Header(shape, dtype)  # refused if it is one of ours; never read
        # Python's integers, which do not overflow.
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size + member.tell() != info.file_size:
            raise ValueError(f"{info.filename} declares {size:,} bytes of data but has another size")
        if info.file_size > _MAX_DEFLATE_RATIO * info.compress_size + 64:
            raise ValueError(f"{info.filename} declares {size:,} bytes in {info.compress_size:,} compressed ones")
        return _Header(shape, dtype)


def _check_headers(path: Path, headers: dict[str, _Header | None], frame_shape: tuple[int, int, int]) -> None:
    found = {name: headers.get(name) for name in ("image", "action", "reward", "discount", "done")}
    for name in ("image", "action", "reward"):
        if found[name] is None:
            raise KeyError(f"there is no array {name}")
    for name, header in found.items():
        if header is not None and header.dtype.hasobject:
            raise ValueError(f"{name} consists of pickled objects")
    image, action, reward = found["image"], found["action"], found["reward"]
    assert image is not None
    assert action is not None
    assert reward is not None
    if image.dtype != np.uint8 or image.shape[1:] != frame_shape or image.shape[0] < 2:
        raise UserError(
            f"data.recorded_episodes: image in {path} is {image.dtype} {image.shape}, but must be uint8 of shape "
            f"(T + 1, {', '.join(map(str, frame_shape))}) with at least two images: convert it, or change "
            "data.frame_size"
        )
    times = image.shape[:1]
    if math.prod(image.shape) > MAX_EPISODE_BYTES:
        raise UserError(
            f"data.recorded_episodes: image in {path} takes {math.prod(image.shape):,} bytes, more than the limit of "
            f"{MAX_EPISODE_BYTES:,}: split the episode into several files"
        )
    if action.dtype.kind not in "iu" or reward.dtype.kind not in "iufb" or not action.shape == reward.shape == times:
        raise UserError(
            f"data.recorded_episodes: in {path} action is {action.dtype} {action.shape} and reward is {reward.dtype} "
            f"{reward.shape}, but they must be integers and numbers of shape ({times[0]},), those before each image "
            "(convert one-hot actions with argmax)"
        )
    for name in ("discount", "done"):
        header = found[name]
        if header is not None and (header.shape != times or header.dtype.kind not in "iufb"):
            raise ValueError(f"{name} is {header.dtype} {header.shape}, but must be numbers of shape ({times[0]},)")


def _read_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(name) as member:
        array: NDArray[Any] = npy.read_array(member, allow_pickle=False)
        member.read(1)  # at its end, the archive's checksum is compared
        return array
