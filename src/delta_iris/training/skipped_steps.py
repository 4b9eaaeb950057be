"""Counts optimizer steps that were skipped because a loss or a gradient was NaN or infinite."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["SkippedSteps"]


@dataclass
class SkippedSteps:
    """The skipped optimizer steps of one phase.

    Attributes:
        total: number of them in the run.
        in_a_row: number of them since the last step that was taken.
        first: global step of the first of those in a row; 0 if the last step was taken.
    """

    total: int = 0
    in_a_row: int = 0
    first: int = 0

    def count(self, step: int, skipped: bool) -> None:
        """Count a step.

        Args:
            step: global step.
            skipped: whether it was skipped.
        """
        if not skipped:
            self.in_a_row = self.first = 0
            return
        self.total += 1
        self.in_a_row += 1
        self.first = self.first or step

    def state_dict(self) -> dict[str, Any]:
        """The counts as plain values; the constructor takes them."""
        return asdict(self)
