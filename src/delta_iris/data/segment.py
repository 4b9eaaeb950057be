"""The training batch: segments of consecutive steps from recorded episodes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["SegmentBatch", "SegmentIndex", "SegmentRequest", "Span", "to_float", "to_images"]

SegmentIndex = tuple[int, int]
"""Episode number and first step of a segment. The first step is negative if padding precedes the episode's start."""

Span = tuple[int, int, int, int]
"""A part of a segment that lies in one episode: first slot in the segment, episode number, first step and step to stop
before. The step after an episode's last is its final frame."""


class SegmentRequest(NamedTuple):
    """A batch of B segments to read from a replay.

    Attributes:
        length: steps per segment, T.
        spans: the parts of each segment. Slots that are in none are padding.
        num_frames: steps of the replay when the segments were chosen, from which a reader knows that it has grown.
    """

    length: int
    spans: list[list[Span]]
    num_frames: int

    @staticmethod
    def within_episodes(lengths: NDArray[np.int64], length: int, indices: list[SegmentIndex]) -> SegmentRequest:
        """Request segments that end with their episodes.

        Args:
            lengths: (episodes,) int64, steps of each episode of the replay.
            length: steps per segment, T.
            indices: episode and first step of each segment.

        Raises:
            IndexError: if there is no such episode.
        """
        spans = []
        for episode, start in indices:
            first = max(start, 0)
            spans.append([(first - start, episode, first, min(start + length, int(lengths[episode])))])
        return SegmentRequest(length, spans, int(lengths.sum()))


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

    @staticmethod
    def num_bytes(batch_size: int, length: int, frame_shape: tuple[int, int, int]) -> int:
        """The memory of a batch from the replay.

        Args:
            batch_size: number of segments, B.
            length: steps per segment, T.
            frame_shape: (H, W, 3).
        """
        height, width, channels = frame_shape
        # Actions and terminated are int64, rewards float32; mask and is_first take a byte.
        return batch_size * length * (height * width * channels + 8 + 8 + 4 + 1 + 1)

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
