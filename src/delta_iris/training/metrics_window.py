"""The metrics of the last optimizer steps, kept on the device until the host reads them."""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["SKIPPED", "MetricsWindow", "StepInfo"]

SKIPPED = "skipped"
"""Name of the metric that is 1 for a step that was skipped and 0 for any other."""


class StepInfo(NamedTuple):
    """What the host knows of an optimizer step.

    Attributes:
        global_step: number of optimizer steps of the run, with this one.
        batch_idx: index of its batch in the phase.
        scheduled: whether the learning rate schedule was stepped, as if the step were not skipped.
    """

    global_step: int
    batch_idx: int
    scheduled: bool


class MetricsWindow:
    """Collects the metrics of optimizer steps. Adding a step does not wait for the device, reading does."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._rows: list[Tensor] = []
        self._steps: list[StepInfo] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, metrics: dict[str, Tensor], step: StepInfo) -> None:
        """Add a step.

        Args:
            metrics: scalars by name, the same names for all steps, `SKIPPED` among them.
            step: which step it is.
        """
        self._names = list(metrics)
        self._rows.append(torch.stack([value.detach().float() for value in metrics.values()]))
        self._steps.append(step)

    def means(self) -> tuple[list[str], Tensor | None]:
        """Average the metrics over the steps that were taken.

        Returns:
            the names of the metrics, and their means on the device; None if no step was taken.
        """
        names = [name for name in self._names if name != SKIPPED]
        taken = [row for row, skipped in zip(self._rows, self._skipped(), strict=True) if not skipped]
        if not taken:
            return names, None
        # One after the other, as they came: the sum does not depend on where the window was saved and restored.
        mean = reduce(torch.add, taken) / len(taken)
        return names, mean[[index for index, name in enumerate(self._names) if name != SKIPPED]]

    def steps(self) -> list[StepInfo]:
        """The steps, in order."""
        return list(self._steps)

    def skipped(self) -> list[tuple[StepInfo, dict[str, float]]]:
        """The steps that were skipped, in order, and their metrics."""
        return [
            (step, dict(zip(self._names, row.tolist(), strict=True)))
            for step, row, skipped in zip(self._steps, self._rows, self._skipped(), strict=True)
            if skipped
        ]

    def _skipped(self) -> list[bool]:
        column = self._names.index(SKIPPED)
        flags: list[float] = torch.stack(self._rows)[:, column].tolist()
        return [flag > 0 for flag in flags]

    def state_dict(self) -> dict[str, Any]:
        """The content as plain values."""
        rows = torch.stack(self._rows).tolist() if self._rows else []
        return {"names": self._names, "rows": rows, "steps": [tuple(step) for step in self._steps]}

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> MetricsWindow:
        """Make the window that `state_dict` described.

        Args:
            state: what `state_dict` returned.
            device: where the metrics of further steps are.
        """
        window = cls()
        window._names = list(state["names"])
        window._rows = list(torch.tensor(state["rows"], device=device).unbind()) if state["rows"] else []
        window._steps = [StepInfo(*step) for step in state["steps"]]
        return window
