"""Recorded episodes, of a person or of another agent, that a new run's replay starts with."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from delta_iris.data.replay import Replay
from delta_iris.data.replay_format import Steps
from delta_iris.errors import UserError

__all__ = ["add_recorded_episodes", "find_recorded_episodes", "read_recorded_episode"]


def find_recorded_episodes(folder: Path, world_size: int = 1) -> list[Path]:
    """List the recorded episodes in a folder, one `.npz` file per episode, sorted by name.

    Args:
        folder: folder of the files.
        world_size: number of training processes, each of which needs at least one episode.

    Raises:
        UserError: if there are fewer files than training processes.
    """
    paths = sorted(folder.glob("*.npz"))
    if len(paths) < world_size:
        raise UserError(
            f"data.recorded_episodes {folder} holds {len(paths)} .npz files, one episode each, but {world_size} "
            "process(es) need at least one each: check the path"
        )
    return paths


def read_recorded_episode(path: Path, frame_shape: tuple[int, int, int], num_actions: int) -> Steps:
    """Read an episode of T steps in the format of `crafter.Recorder`, which DreamerV2 uses too.

    The `.npz` file contains these arrays; others are ignored:

    - `image`: (T + 1, H, W, 3) uint8.
    - `action`: (T + 1,) integers. Entry t is the action before image t; entry 0 is ignored.
    - `reward`: (T + 1,) numbers. Entry t is the reward before image t; entry 0 is ignored.
    - `discount`: optional. The episode terminated if the last entry is 0; otherwise it was truncated.
    - `done`: optional, used without `discount`. The episode terminated if the last entry is true.

    Args:
        path: the `.npz` file.
        frame_shape: expected (H, W, 3).
        num_actions: number of actions of the environment.

    Returns:
        The T steps. The last image is dropped, because no action was taken there.

    Raises:
        UserError: if the file cannot be read, or an array has a wrong shape, data type or value.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            image, action, reward = (file[key] for key in ("image", "action", "reward"))
            ended = bool(file["discount"][-1] == 0 if "discount" in file else "done" in file and file["done"][-1])
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"data.recorded_episodes: {path} cannot be read as an episode ({error}): it must be an .npz file with "
            "image, action and reward, as numpy.savez_compressed writes it, without pickled objects"
        ) from error
    length = len(image) - 1 if image.ndim else 0
    if image.dtype != np.uint8 or image.shape[1:] != frame_shape or length < 1:
        raise UserError(
            f"data.recorded_episodes: image in {path} is {image.dtype} {image.shape}, but must be uint8 of shape "
            f"(T + 1, {', '.join(map(str, frame_shape))}) with at least two images: convert it, or change "
            "data.frame_size"
        )
    numeric = np.issubdtype(action.dtype, np.integer) and np.issubdtype(reward.dtype, np.number)
    if not numeric or not action.shape == reward.shape == (length + 1,):
        raise UserError(
            f"data.recorded_episodes: in {path} action is {action.dtype} {action.shape} and reward is {reward.dtype} "
            f"{reward.shape}, but they must be integers and numbers of shape ({length + 1},), those before each image "
            "(convert one-hot actions with argmax)"
        )
    actions, rewards = action[1:].astype(np.int64), reward[1:].astype(np.float32)
    if actions.min() < 0 or actions.max() >= num_actions:
        raise UserError(
            f"data.recorded_episodes: {path} has actions from {actions.min()} to {actions.max()}, but "
            f"data.num_actions is {num_actions}: record the episodes in the environment of this run"
        )
    if not np.isfinite(rewards).all():
        raise UserError(f"data.recorded_episodes: {path} has rewards that are not finite: remove NaN and infinity")
    terminated, truncated = np.zeros((2, length), np.bool_)
    terminated[-1], truncated[-1] = ended, not ended
    return Steps(image[:-1], actions, rewards, terminated, truncated)


def add_recorded_episodes(replay: Replay, paths: list[Path], num_actions: int) -> None:
    """Append recorded episodes to a replay, as if they had been collected in environment 0.

    Args:
        replay: the replay to append to.
        paths: files in the format of `read_recorded_episode`.
        num_actions: number of actions of the environment.

    Raises:
        UserError: if a file is not such an episode, or the disk is full.
    """
    for path in paths:
        for step in zip(*read_recorded_episode(path, replay.frame_shape, num_actions), strict=True):
            frame, action, reward, terminated, truncated = step
            replay.append(0, frame, int(action), float(reward), bool(terminated), bool(truncated))
    replay.flush()
