"""Hooks for what Lightning has no hooks for: the phases of an epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning as L

from delta_iris.data.collector import Episode

__all__ = ["PhaseCallback", "Rollout", "Training"]


@dataclass(frozen=True)
class Rollout:
    """What playing gave, over all processes: finished episodes, frames, and the seconds it took."""

    episodes: list[Episode]
    frames: int
    seconds: float


@dataclass(frozen=True)
class Training:
    """What a training phase took: steps since it began or was resumed, and their seconds."""

    steps: int
    seconds: float


class PhaseCallback(L.Callback):
    """A callback that is also told of phases.

    Phases are `"collect"`, the training phases `"tokenizer"`, `"world_model"` and `"agent"`, and `"play"` (test
    episodes). Training phases step through Lightning's own `on_train_batch_end`.
    """

    def on_phase_start(self, trainer: L.Trainer, module: Any, phase: str, total: int, done: int) -> None:
        """A phase begins, of `total` frames, steps or episodes, `done` of them before an interruption."""

    def on_phase_progress(self, trainer: L.Trainer, module: Any, phase: str, count: int, frames: int) -> None:
        """Playing made a step: `count` more of what the phase counts, `frames` more frames of this process."""

    def on_phase_end(self, trainer: L.Trainer, module: Any, phase: str, outcome: Rollout | Training) -> None:
        """A phase is through."""
