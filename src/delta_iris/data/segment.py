"""A batch of windows: what the tokenizer, the world model and the agent train on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Window", "to_float"]


class Window(NamedTuple):
    """B windows of T consecutive steps, cut from recorded episodes.

    A step is `(x_t, a_t, r_t, end_t)`: the action was chosen at the frame, reward and end result from the action.
    Slots before an episode's start or after its last step are padding: `valid` is false there and whatever they hold
    must not matter. The valid slots of a window are consecutive.

    Attributes:
        frames: (B, T, 3, H, W) uint8.
        actions: (B, T) int64.
        rewards: (B, T) float32.
        ends: (B, T) int64, 1 where the episode terminated (a time limit does not end the world).
        valid: (B, T) bool.
    """

    frames: Tensor
    actions: Tensor
    rewards: Tensor
    ends: Tensor
    valid: Tensor

    @property
    def transitions(self) -> Tensor:
        """(B, T − 1) bool: whether both frames of the transition t → t + 1 are real."""
        return self.valid[:, 1:] & self.valid[:, :-1]


def to_float(frames: Tensor) -> Tensor:
    """Frames as floats in [0, 1], from uint8; floats pass through."""
    return frames.float() / 255 if frames.dtype == torch.uint8 else frames
