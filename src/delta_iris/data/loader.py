"""Reading drawn windows from the replay, in the background."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from delta_iris.data.replay import ReplayReader
from delta_iris.data.segment import Window

__all__ = ["WindowDataset", "window_loader"]

Draw = tuple[int, int]


class WindowDataset(Dataset[Window]):
    """Windows of a replay as batches; each process opens the store for itself at its first read.

    Args:
        folder: of the replay.
        frame_shape: (H, W, 3).
        length: steps of a window.
    """

    def __init__(self, folder: Path, frame_shape: tuple[int, int, int], length: int) -> None:
        self.folder, self.frame_shape, self.length = folder, frame_shape, length
        self._reader: ReplayReader | None = None

    def __getitems__(self, draws: list[Draw]) -> Window:
        """Read a batch: for each (episode, first step) a window; slots outside the episode are padding, all zero."""
        if self._reader is None:
            self._reader = ReplayReader(self.folder, self.frame_shape)
        shape = (len(draws), self.length)
        frames = np.zeros((*shape, *self.frame_shape), np.uint8)
        actions, rewards = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        ends, valid = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
        for row, (episode, start) in enumerate(draws):
            first, stop = max(start, 0), min(start + self.length, self._reader.length(episode))
            slots = slice(first - start, stop - start)
            steps = self._reader.read(episode, first, stop)
            frames[row, slots], actions[row, slots] = steps.frames, steps.actions
            rewards[row, slots], ends[row, slots] = steps.rewards, steps.terminated
            valid[row, slots] = True
        return Window(
            # A view: the frames stay channels-last in memory, and no byte is moved here.
            torch.from_numpy(frames).permute(0, 1, 4, 2, 3),
            torch.from_numpy(actions),
            torch.from_numpy(rewards),
            torch.from_numpy(ends),
            torch.from_numpy(valid),
        )

    def __getitem__(self, draw: Draw) -> Window:
        return self.__getitems__([draw])


class _Plan:
    """The batches of a phase, of which the first `skip` were trained on before an interruption."""

    def __init__(self, batches: list[list[Draw]], skip: int) -> None:
        self._batches, self._skip = batches, skip

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(self._batches[self._skip :])

    def __len__(self) -> int:
        return len(self._batches)


def _as_is(window: Any) -> Any:
    return window


def _leave_ctrl_c_to_the_trainer(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A forked worker has inherited Lightning's handler, with which it would outlive every terminate().
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)


def window_loader(
    dataset: WindowDataset, batches: list[list[Draw]], num_workers: int, skip: int = 0, pin_memory: bool = False
) -> DataLoader[Window]:
    """A DataLoader that reads `batches` ahead, in order, leaving out the first `skip`."""
    return DataLoader(
        dataset,
        batch_sampler=_Plan(batches, skip),
        num_workers=num_workers,
        collate_fn=_as_is,
        worker_init_fn=_leave_ctrl_c_to_the_trainer,
        pin_memory=pin_memory,
        # Making an iterator draws a seed: not from the random numbers of training.
        generator=torch.Generator(),
        prefetch_factor=4 if num_workers else None,
    )
