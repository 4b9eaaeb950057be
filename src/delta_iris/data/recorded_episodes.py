"""Recorded episodes that a run begins with: a person's, another agent's."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from delta_iris.data.replay import Replay, Steps
from delta_iris.errors import UserError

__all__ = ["add_recordings", "find_recordings", "read_recording"]


def find_recordings(folder: Path, processes: int = 1) -> list[Path]:
    """The recordings in a folder, one episode each, by name.

    Raises:
        UserError: where there are fewer than processes that share them.
    """
    paths = sorted(folder.glob("*.npz"))
    if len(paths) < processes:
        raise UserError(
            f"data.recordings {folder} holds {len(paths)} .npz files, one episode each, and {processes} process(es) "
            "need at least one each: check the path"
        )
    return paths


def read_recording(path: Path, frame_shape: tuple[int, int, int], num_actions: int) -> Steps:
    """One episode in the format of Crafter's own recorder (`crafter.Recorder`), which is Dreamer's too.

    `image` (T + 1, H, W, 3) uint8; `action` (T + 1,), the one before each image, the first without meaning; `reward`
    (T + 1,), likewise. It ended in itself where the last `discount` is 0 or, without one, the last `done` is true; else
    it was cut off. Other arrays are left alone.

    Returns:
        the T steps; of the last image nothing is kept, for nothing was done there.

    Raises:
        UserError: where the file is not that.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            image, action, reward = (file[key] for key in ("image", "action", "reward"))
            ended = bool(file["discount"][-1] == 0 if "discount" in file else "done" in file and file["done"][-1])
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"data.recordings: {path} cannot be read as an episode ({error}): it must be an .npz with image, action "
            "and reward, as numpy.savez_compressed writes it, without pickled objects"
        ) from error
    length = len(image) - 1 if image.ndim else 0
    if image.dtype != np.uint8 or image.shape[1:] != frame_shape or length < 1:
        raise UserError(
            f"data.recordings: image in {path} is {image.dtype} {image.shape}: give uint8 of "
            f"(T + 1, {', '.join(map(str, frame_shape))}), two images or more, or change data.frame_size"
        )
    numbers = np.issubdtype(action.dtype, np.integer) and np.issubdtype(reward.dtype, np.number)
    if not numbers or not action.shape == reward.shape == (length + 1,):
        raise UserError(
            f"data.recordings: in {path} action is {action.dtype} {action.shape} and reward {reward.dtype} "
            f"{reward.shape}: give integers and numbers of ({length + 1},), what came before each image (for one-hot "
            "actions, their argmax)"
        )
    actions, rewards = action[1:].astype(np.int64), reward[1:].astype(np.float32)
    if actions.min() < 0 or actions.max() >= num_actions:
        raise UserError(
            f"data.recordings: {path} has actions from {actions.min()} to {actions.max()}, data.num_actions is "
            f"{num_actions}: they must be of the same environment"
        )
    if not np.isfinite(rewards).all():
        raise UserError(f"data.recordings: {path} has rewards that are no finite numbers")
    terminated, truncated = np.zeros((2, length), np.bool_)
    terminated[-1], truncated[-1] = ended, not ended
    return Steps(image[:-1], actions, rewards, terminated, truncated)


def add_recordings(replay: Replay, paths: list[Path], num_actions: int) -> None:
    """Append episodes to a replay, as if they had been collected.

    Raises:
        UserError: where a file is no such episode, or the disk is full.
    """
    for path in paths:
        for step in zip(*read_recording(path, replay.frame_shape, num_actions), strict=True):
            frame, action, reward, terminated, truncated = step
            replay.append(0, frame, int(action), float(reward), bool(terminated), bool(truncated))
    replay.flush()
