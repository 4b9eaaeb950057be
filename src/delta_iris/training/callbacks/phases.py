"""Hooks for what Lightning has no hooks for: the activities of an epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning as L

from delta_iris.data.collector import EpisodeStats
from delta_iris.training.phase import Activity

__all__ = ["CollectionResult", "PhaseCallback", "PhaseResult"]


@dataclass(frozen=True)
class CollectionResult:
    """What acting in environments gave, over all processes.

    Attributes:
        episodes: the finished episodes.
        frames: number of frames.
        seconds: time it took.
        replaced: environments that were replaced since the run began.
    """

    episodes: list[EpisodeStats]
    frames: int
    seconds: float
    replaced: int = 0


@dataclass(frozen=True)
class PhaseResult:
    """What a training phase did.

    Attributes:
        steps: batches since it began or was resumed.
        seconds: time they took.
    """

    steps: int
    seconds: float


class PhaseCallback(L.Callback):
    """A callback that is also called for activities: collection, each training phase, and test episodes.

    Training phases step through Lightning's `on_train_batch_end`.
    """

    def on_phase_start(self, trainer: L.Trainer, module: Any, activity: Activity, total: int, done: int) -> None:
        """An activity begins.

        Args:
            trainer: the Trainer.
            module: the learner.
            activity: what begins.
            total: frames, steps or episodes that it takes.
            done: those that were done before an interruption.
        """

    def on_phase_progress(self, trainer: L.Trainer, module: Any, activity: Activity, count: int, frames: int) -> None:
        """Environments were stepped.

        Args:
            trainer: the Trainer.
            module: the learner.
            activity: collection or test episodes.
            count: progress, in the activity's unit.
            frames: new frames of this process.
        """

    def on_phase_end(
        self, trainer: L.Trainer, module: Any, activity: Activity, result: CollectionResult | PhaseResult
    ) -> None:
        """An activity is complete.

        Args:
            trainer: the Trainer.
            module: the learner.
            activity: what ended.
            result: what it did.
        """
