"""Batches of segments from test episodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from delta_iris.data.replay_reader import ReplayReader
from delta_iris.data.segment import SegmentBatch, SegmentIndex, SegmentRequest
from delta_iris.data.segment_dataset import SegmentDataset

__all__ = ["HeldOutBatches"]


class HeldOutBatches(torch.utils.data.Dataset[SegmentBatch]):
    """Segments that lie within test episodes. Every segment is equally likely; equal episodes give equal draws.

    Args:
        folder: gives the folder of the replay that holds the episodes now.
        frame_shape: (H, W, 3).
        length: steps of a segment.
        num_batches: number of batches.
        batch_size: segments of a batch.
    """

    def __init__(
        self,
        folder: Callable[[], Path],
        frame_shape: tuple[int, int, int],
        length: int,
        num_batches: int,
        batch_size: int,
    ) -> None:
        self._folder, self._frame_shape, self._length = folder, frame_shape, length
        self._num_batches, self._batch_size = num_batches, batch_size

    def __len__(self) -> int:
        return self._num_batches

    def __getitem__(self, index: int) -> SegmentBatch:
        if index >= len(self):
            raise IndexError(index)
        reader = ReplayReader(self._folder(), self._frame_shape)
        indices = self._draw(reader.lengths, np.random.default_rng(index))
        request = SegmentRequest.within_episodes(reader.lengths, self._length, indices)
        return SegmentDataset(reader.folder, self._frame_shape)[request]

    def _draw(self, lengths: NDArray[np.int64], generator: np.random.Generator) -> list[SegmentIndex]:
        segments = np.maximum(1, lengths - self._length + 1)
        last = np.cumsum(segments)
        draws = generator.integers(last[-1], size=self._batch_size)
        episodes = np.searchsorted(last, draws, side="right")
        starts = draws - (last - segments)[episodes]
        return list(zip(episodes.tolist(), starts.tolist(), strict=True))
