"""Δ-IRIS: tokens of transitions (paper §2)."""

from __future__ import annotations

from typing import ClassVar

from delta_iris.training.systems.token_system import TokenSystem

__all__ = ["DeltaIris"]


class DeltaIris(TokenSystem):
    """The Δ-IRIS agent: its tokens say what changed since the last frame."""

    context_frames: ClassVar[int] = 1
