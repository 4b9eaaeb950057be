"""Reading of segments from the replay, in any process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from delta_iris.data.replay_reader import ReplayReader
from delta_iris.data.segment import SegmentBatch, SegmentRequest

__all__ = ["SegmentDataset"]


class SegmentDataset(Dataset[SegmentBatch]):
    """Reads batches of segments from a replay, which each process opens for itself, anew whenever it has grown.

    Args:
        folder: folder of the replay.
        frame_shape: (H, W, 3).
        skip_damaged: whether to open a replay whose index is damaged; see `ReplayReader`.
    """

    def __init__(self, folder: Path, frame_shape: tuple[int, int, int], skip_damaged: bool = False) -> None:
        self.folder = folder
        self.frame_shape = frame_shape
        self.skip_damaged = skip_damaged
        self._reader: ReplayReader | None = None
        self._num_frames = 0

    def __getitem__(self, request: SegmentRequest) -> SegmentBatch:
        """Read a batch of B segments. Padding is filled with zeros, and so are the action, the reward and the end of a
        final frame, which is a real step.

        Args:
            request: what to read.

        Raises:
            IndexError: if a span contains no step of its episode.
            UserError: if the data on disk is damaged.
        """
        reader = self._open(request.num_frames)
        shape = (len(request.spans), request.length)
        frames = np.zeros((*shape, *self.frame_shape), np.uint8)
        actions, rewards = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        terminated = np.zeros(shape, np.int64)
        mask, is_first = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        for row, spans in enumerate(request.spans):
            for slot, episode, first, stop in spans:
                slots = slice(slot, slot + stop - first)
                mask[row, slots] = True
                if (first, stop) == (reader.length(episode), first + 1):
                    final_frame = reader.final_frame(episode)
                    if final_frame is None:
                        raise IndexError(f"episode {episode} of {self.folder} has no final frame")
                    frames[row, slot] = final_frame
                    continue
                steps = reader.read(episode, first, stop)
                frames[row, slots], actions[row, slots] = steps.frames, steps.actions
                rewards[row, slots], terminated[row, slots] = steps.rewards, steps.terminated
                is_first[row, slot] = first == 0
        return SegmentBatch(
            # Permuting makes a view: no copy, and the frames are channels-last in memory, as convolutions prefer.
            torch.from_numpy(frames).permute(0, 1, 4, 2, 3),
            torch.from_numpy(actions),
            torch.from_numpy(rewards),
            torch.from_numpy(terminated),
            torch.from_numpy(mask),
            torch.from_numpy(is_first),
        )

    def _open(self, num_frames: int) -> ReplayReader:
        if self._reader is None or num_frames != self._num_frames:
            self._reader = ReplayReader(self.folder, self.frame_shape, self.skip_damaged)
            self._num_frames = num_frames
        return self._reader
