"""How fast each phase is, and how much memory it takes on the GPU."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from delta_iris.training.callbacks.phases import PhaseCallback, Rollout, Training

__all__ = ["Throughput"]


class Throughput(PhaseCallback):
    """Logs `throughput/<phase>_ms` (a step, data included; mean of the phase), `throughput/<phase>_gib` (peak GPU
    memory held, that of CUDA graphs included) and `throughput/frames_per_second` (collected, over the whole epoch)."""

    def __init__(self) -> None:
        self._seconds, self._frames = 0.0, 0

    def on_phase_start(self, trainer: L.Trainer, module: Any, phase: str, total: int, done: int) -> None:
        """Measure the phase's own peak."""
        if module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def on_phase_end(self, trainer: L.Trainer, module: Any, phase: str, outcome: Rollout | Training) -> None:
        """Log the phase; the step count is what this process trained of it."""
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        if isinstance(outcome, Rollout):
            if phase == "collect":
                self._seconds, self._frames = outcome.seconds, outcome.frames
            return
        self._seconds += outcome.seconds
        values = {f"throughput/{phase}_ms": 1000 * outcome.seconds / outcome.steps}
        if module.device.type == "cuda":
            values[f"throughput/{phase}_gib"] = torch.cuda.max_memory_reserved() / 2**30
        if phase == "agent" and self._frames:
            values["throughput/frames_per_second"] = self._frames / self._seconds
            self._seconds, self._frames = 0.0, 0
        module.log_now(values, trainer.global_step)
