"""The training batch: segments of consecutive steps from recorded episodes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["SegmentBatch", "SegmentIndex", "to_float", "to_images"]

SegmentIndex = tuple[int, int]
"""Episode number and first step of a segment. The first step is negative if padding precedes the episode's start."""


class SegmentBatch(NamedTuple):
    """B segments of T consecutive steps, cut from recorded episodes.

    Each step is one transition: the action was chosen at the frame; the reward and the termination result from it.
    Slots before an episode's first step or after its last step are padding. Their contents must not affect any result.
    The real slots of a segment are consecutive.

    Attributes:
        frames: (B, T, 3, H, W) uint8, RGB.
        actions: (B, T) int64.
        rewards: (B, T) float32.
        terminated: (B, T) int64, 1 if the episode terminated at this step. Truncation by a time limit is 0.
        mask: (B, T) bool, true for real steps, false for padding.
        is_first: (B, T) bool, true at the first step of an episode.
    """

    frames: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    mask: Tensor
    is_first: Tensor

    @staticmethod
    def from_numpy(frames: NDArray[np.uint8], actions: NDArray[np.int64] | list[int]) -> SegmentBatch:
        """Make one segment, B = 1, of real steps without rewards.

        Args:
            frames: (T, H, W, 3) uint8.
            actions: (T,) the actions chosen at these frames.
        """
        length = len(frames)
        return SegmentBatch(
            torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).unsqueeze(0),
            torch.as_tensor(actions, dtype=torch.int64).view(1, length),
            torch.zeros(1, length),
            torch.zeros(1, length, dtype=torch.int64),
            torch.ones(1, length, dtype=torch.bool),
            torch.zeros(1, length, dtype=torch.bool),
        )

    @property
    def transition_mask(self) -> Tensor:
        """(B, T − 1) bool, true where steps t and t + 1 are both real."""
        return self.mask[:, 1:] & self.mask[:, :-1]

    def slice_time(self, start: int | None, stop: int | None) -> SegmentBatch:
        """Return the steps `start:stop` of every segment, with Python's slicing rules.

        Args:
            start: first step; None for the beginning.
            stop: step after the last one; None for the end.
        """
        return SegmentBatch(*(field[:, start:stop] for field in self))

    def windows(self, length: int) -> SegmentBatch:
        """Return all segments of consecutive steps, row after row, without copying: (B · (T − length + 1), length).

        Args:
            length: steps of each.

        Raises:
            ValueError: if a segment has fewer steps.
        """
        steps = self.mask.shape[1]
        if not 1 <= length <= steps:
            raise ValueError(f"length is {length}: it must be between 1 and the {steps} steps of a segment")
        return SegmentBatch(*(field.unfold(1, length, 1).movedim(-1, 2).flatten(0, 1) for field in self))

    def select(self, rows: Tensor | slice | list[int]) -> SegmentBatch:
        """Return some of the segments.

        Args:
            rows: index into the batch axis that keeps the axis: a slice, a list, a tensor of indices or a (B,) mask.
        """
        return SegmentBatch(*(field[rows] for field in self))


def to_float(frames: Tensor) -> Tensor:
    """Convert uint8 frames to floats in [0, 1]; float frames are returned as floats, unscaled.

    Args:
        frames: any shape, uint8 or floating point.
    """
    return frames.float() / 255 if frames.dtype == torch.uint8 else frames


def to_images(frames: Tensor) -> NDArray[np.uint8]:
    """Convert frames to images for NumPy.

    Args:
        frames: (..., 3, H, W) floats, clamped to [0, 1].

    Returns:
        (..., H, W, 3) uint8.
    """
    images: NDArray[np.uint8] = (frames.clamp(0, 1) * 255).round().byte().movedim(-3, -1).cpu().numpy()
    return images
