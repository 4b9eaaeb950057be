"""Segments seen from the frames: what each frame arrived with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from delta_iris.data.segment import SegmentBatch

__all__ = ["Arrivals"]


class Arrivals(NamedTuple):
    """What led to each frame of B segments of T steps. Nothing leads to an episode's first frame.

    Attributes:
        actions: (B, T) int64, the action before; not defined at a first frame or at the segment's first.
        rewards: (B, T) float32, the reward of that action; 0 at a first frame.
        rewarded: (B, T) bool, whether that reward is known: not at a segment's first frame, unless it is an episode's.
        terminal: (B, T) bool, whether the episode terminated with this frame.
        last: (B, T) bool, whether the next frame is of another episode; false at the segment's last frame.
        fresh: (B, T) bool, whether no state leads to this frame: it is an episode's first, or padding.
    """

    actions: Tensor
    rewards: Tensor
    rewarded: Tensor
    terminal: Tensor
    last: Tensor
    fresh: Tensor

    @staticmethod
    def of(segment: SegmentBatch, last_action: Tensor | None = None) -> Arrivals:
        """Shift a segment by one step.

        Args:
            segment: that begins with a step which has an action, not with an episode's final frame.
            last_action: (B,) int64, the action that led to its first frame, if it is known.
        """
        first, mask = segment.is_first, segment.mask
        before = segment.actions[:, 0] if last_action is None else last_action
        known = torch.ones_like(first)
        known[:, :1] = first[:, :1]
        return Arrivals(
            torch.cat([before.unsqueeze(1), segment.actions[:, :-1]], 1),
            torch.where(first, 0.0, _shift(segment.rewards)),
            known & mask,
            ~first & mask & (_shift(segment.terminated) == 1),
            torch.cat([first[:, 1:], torch.zeros_like(first[:, :1])], 1),
            first | ~mask,
        )


def _shift(values: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1]], 1)
