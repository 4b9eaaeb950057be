"""IRIS: tokens of single frames."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from delta_iris.training.phase import Sampling
from delta_iris.training.systems.token_system import TokenSystem

__all__ = ["Iris"]


class Iris(TokenSystem):
    """The IRIS agent: its tokens stand for a frame alone, and it sees real frames as they are reconstructed."""

    context_frames: ClassVar[int] = 0
    captures_steps: ClassVar[bool] = True

    def tokenizer_sampling(self, segments: Sampling) -> Sampling:
        """See `TokenSystem.tokenizer_sampling`: single frames."""
        return Sampling(1, 0, 0, segments.priority_exponent)

    @torch.no_grad()
    def perceive(self, frames: Tensor) -> Tensor:
        """See `TokenSystem.perceive`: their reconstructions."""
        real = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        tokens = self.tokenizer.encode(frames, real.long(), real)
        return self.tokenizer.perceive(frames, tokens)
