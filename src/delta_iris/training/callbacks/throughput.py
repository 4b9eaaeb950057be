"""Speed and GPU memory of each phase."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from delta_iris.training.callbacks.phases import CollectionResult, PhaseCallback, PhaseResult
from delta_iris.training.phase import COLLECT, Activity

__all__ = ["Throughput"]


class Throughput(PhaseCallback):
    """Logs how fast each phase is and how much GPU memory it reserves.

    Tags: `throughput/<phase>_ms` (mean of a step, loading included), `throughput/<phase>_gib` (peak memory, CUDA graphs
    included) and `throughput/frames_per_second` (frames collected per second of the whole epoch).
    """

    def __init__(self) -> None:
        self._seconds, self._frames = 0.0, 0

    def on_phase_start(self, trainer: L.Trainer, module: Any, activity: Activity, total: int, done: int) -> None:
        """Reset the peak, so that each phase has its own."""
        if module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def on_phase_end(
        self, trainer: L.Trainer, module: Any, activity: Activity, result: CollectionResult | PhaseResult
    ) -> None:
        """Log the phase, as the first process measured it."""
        if trainer.state.fn != "fit":
            return
        if isinstance(result, CollectionResult):
            if activity is COLLECT:
                self._seconds, self._frames = result.seconds, result.frames
            return
        self._seconds += result.seconds
        values = {f"throughput/{activity.name}_ms": 1000 * result.seconds / result.steps}
        if module.device.type == "cuda":
            values[f"throughput/{activity.name}_gib"] = torch.cuda.max_memory_reserved() / 2**30
        if activity is module.phases[-1].activity and self._frames:
            values["throughput/frames_per_second"] = self._frames / self._seconds
            self._seconds, self._frames = 0.0, 0
        # Callbacks may monitor them, and must decide equally on all processes.
        module.log_now(trainer.strategy.broadcast(values), trainer.global_step)
