"""Loading of segments from the replay in background processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from delta_iris.data.replay_reader import ReplayReader
from delta_iris.data.segment import SegmentBatch, SegmentIndex

__all__ = ["SegmentDataset", "segment_loader"]


class SegmentDataset(Dataset[SegmentBatch]):
    """Reads batches of segments from a replay.

    Each process opens the replay at its first read and sees the steps that are on disk at that time.

    Args:
        folder: folder of the replay.
        frame_shape: (H, W, 3).
        length: steps per segment, T.
    """

    def __init__(self, folder: Path, frame_shape: tuple[int, int, int], length: int) -> None:
        self.folder = folder
        self.frame_shape = frame_shape
        self.length = length
        self._reader: ReplayReader | None = None

    def __getitems__(self, indices: list[SegmentIndex]) -> SegmentBatch:
        """Read a batch of B segments; slots outside of the episodes are filled with zeros.

        Args:
            indices: B pairs of an episode and a first step.

        Raises:
            IndexError: if there is no such episode, or the segment contains no step of it.
            UserError: if the data on disk is damaged.
        """
        if self._reader is None:
            self._reader = ReplayReader(self.folder, self.frame_shape)
        shape = (len(indices), self.length)
        frames = np.zeros((*shape, *self.frame_shape), np.uint8)
        actions, rewards = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        terminated = np.zeros(shape, np.int64)
        mask, is_first = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        for row, (episode, start) in enumerate(indices):
            first, stop = max(start, 0), min(start + self.length, self._reader.length(episode))
            slots = slice(first - start, stop - start)
            steps = self._reader.read(episode, first, stop)
            frames[row, slots], actions[row, slots] = steps.frames, steps.actions
            rewards[row, slots], terminated[row, slots] = steps.rewards, steps.terminated
            mask[row, slots] = True
            is_first[row, first - start] = first == 0
        return SegmentBatch(
            # Permuting makes a view: no copy, and the frames are channels-last in memory, as convolutions prefer.
            torch.from_numpy(frames).permute(0, 1, 4, 2, 3),
            torch.from_numpy(actions),
            torch.from_numpy(rewards),
            torch.from_numpy(terminated),
            torch.from_numpy(mask),
            torch.from_numpy(is_first),
        )

    def __getitem__(self, index: SegmentIndex) -> SegmentBatch:
        """Read a batch of one segment.

        Args:
            index: episode and first step.

        Raises:
            IndexError: if there is no such episode, or the segment contains no step of it.
            UserError: if the data on disk is damaged.
        """
        return self.__getitems__([index])


class _PlannedBatches:
    """A batch sampler for fixed batches, which skips those that were trained on before an interruption.

    Its length includes the skipped batches, because Lightning counts them as done when it resumes an epoch.
    """

    def __init__(self, batches: list[list[SegmentIndex]], skip: int) -> None:
        self._batches, self._skip = batches, skip

    def __iter__(self) -> Iterator[list[SegmentIndex]]:
        return iter(self._batches[self._skip :])

    def __len__(self) -> int:
        return len(self._batches)


def _return_unchanged(batch: Any) -> Any:
    return batch


def _init_worker(_: int) -> None:
    # Ctrl-C reaches all processes of the terminal, but only the trainer decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A forked worker inherits Lightning's SIGTERM handler, which would keep it alive after terminate().
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)


def segment_loader(
    dataset: SegmentDataset,
    batches: list[list[SegmentIndex]],
    num_workers: int,
    skip: int = 0,
    pin_memory: bool = False,
) -> DataLoader[SegmentBatch]:
    """Create a DataLoader that reads given batches in order.

    Args:
        dataset: reads the segments.
        batches: episode and first step of each segment of each batch.
        num_workers: number of background processes; 0 reads in the calling process.
        skip: number of batches at the beginning to leave out.
        pin_memory: whether to copy batches to page-locked memory, for faster transfers to a GPU.
    """
    return DataLoader(
        dataset,
        batch_sampler=_PlannedBatches(batches, skip),
        num_workers=num_workers,
        # `__getitems__` already returns a batch.
        collate_fn=_return_unchanged,
        worker_init_fn=_init_worker,
        pin_memory=pin_memory,
        # Creating an iterator draws a seed, which must not come from the random numbers of training.
        generator=torch.Generator(),
        prefetch_factor=4 if num_workers else None,
    )
