"""The phases that train a token world model: tokenizer, then dynamics."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from delta_iris.data.segment import SegmentBatch
from delta_iris.training.phase import Phase, Sampling
from delta_iris.training.schedule import PhaseSchedule
from delta_iris.world_models.tokens.base_dynamics import BaseDynamics, TokenBatch
from delta_iris.world_models.tokens.tokenizer import Tokenizer

__all__ = ["DynamicsPhase", "TokenizerPhase"]


class TokenizerPhase(Phase):
    """Trains a tokenizer, and updates its codebook after each backward pass.

    Args:
        tokenizer: what is trained.
        sampling: which segments it trains on.
        schedule: how much it trains.
    """

    def __init__(self, tokenizer: Tokenizer, sampling: Sampling, schedule: PhaseSchedule) -> None:
        super().__init__("tokenizer", "tokenizer", tokenizer, sampling, schedule)
        self._tokenizer = tokenizer

    def after_backward(self, aux: list[Any], skip: Tensor | None = None) -> dict[str, Tensor]:
        """Update the codebook."""
        return self._tokenizer.update_codebook(aux, skip)


class DynamicsPhase(Phase):
    """Trains token dynamics on the tokens of a tokenizer.

    Args:
        dynamics: what is trained.
        tokenizer: gives the tokens; it is not trained.
        sampling: which segments they train on.
        schedule: how much they train.
    """

    def __init__(
        self, dynamics: BaseDynamics, tokenizer: Tokenizer, sampling: Sampling, schedule: PhaseSchedule
    ) -> None:
        super().__init__("dynamics", "dynamics", dynamics, sampling, schedule)
        self._tokenizer = tokenizer

    def on_start(self) -> None:
        """From now on, do not reset codes that the dynamics are about to learn."""
        self._tokenizer.quantizer.restrict_code_reset()

    def prepare(self, segment: SegmentBatch) -> TokenBatch:
        """Encode the segments as tokens."""
        return segment, self._tokenizer.encode(segment.frames, segment.actions, segment.mask)
