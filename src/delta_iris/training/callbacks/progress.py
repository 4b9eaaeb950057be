"""Progress: a bar for each phase on a terminal, a line for each epoch everywhere."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from delta_iris.training.callbacks.phases import CollectionResult, PhaseCallback, PhaseResult
from delta_iris.training.phase import COLLECT, TEST_EPISODES, Activity

__all__ = ["PhaseProgress"]


class PhaseProgress(ProgressBar, PhaseCallback):
    """Shows a bar for each phase with its rate and the time left, and prints one line for each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[Any] | None = None
        self._enabled = True
        self._started, self._frames = 0.0, 0
        # Of the present epoch: frames, seconds, and the parts of its line.
        self._collected, self._seconds = 0, 0.0
        self._line: list[str] = []

    def disable(self) -> None:
        """Show nothing. Lightning calls this on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show progress again."""
        self._enabled = True

    def on_phase_start(self, trainer: L.Trainer, module: Any, activity: Activity, total: int, done: int) -> None:
        """Open a bar."""
        self._started, self._frames = time.monotonic(), 0
        if self._enabled and sys.stderr.isatty():
            self._bar = tqdm(
                total=total,
                initial=done,
                desc=f"{_epoch(trainer)}{activity.label}",
                unit=f" {activity.unit}",
                dynamic_ncols=True,
                leave=False,
            )

    def on_phase_progress(self, trainer: L.Trainer, module: Any, activity: Activity, count: int, frames: int) -> None:
        """Advance the bar while environments are stepped."""
        if self._bar is not None:
            self._bar.update(count)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Advance the bar while training."""
        self._frames += batch.mask.numel() * trainer.world_size
        if self._bar is not None:
            self._bar.update()
            if module.phase_metrics:
                rate = self._frames / (time.monotonic() - self._started)
                self._bar.set_postfix_str(f"{rate:,.0f} frames/s, {_loss(module)}", refresh=False)

    def on_phase_end(
        self, trainer: L.Trainer, module: Any, activity: Activity, result: CollectionResult | PhaseResult
    ) -> None:
        """Close the bar; after an epoch's last phase, print the epoch's line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if isinstance(result, CollectionResult):
            returns = [episode.return_ for episode in result.episodes]
            mean = f"return {sum(returns) / len(returns):.2f}" if returns else ""
            if activity is COLLECT:
                self._collected, self._seconds = result.frames, result.seconds
                self._line = [f"{result.frames:,} frames", *([mean] if mean else [])]
            elif activity is TEST_EPISODES and self._enabled:
                rate = result.frames / result.seconds
                text = f"{mean} over {len(returns)} episodes, {rate:,.0f} frames/s"
                print(f"{_epoch(trainer)}{activity.label}: {text}", flush=True)
            return
        self._seconds += result.seconds
        milliseconds = 1000 * result.seconds / result.steps
        self._line.append(f"{activity.label} {_loss(module)} ({milliseconds:,.0f} ms a step)")
        if activity is module.phases[-1].activity:
            if self._collected:
                self._line.append(f"{self._collected / self._seconds:,.1f} frames/s in all")
            if self._enabled:
                print(_epoch(trainer) + ", ".join(self._line), flush=True)
            self._collected, self._seconds, self._line = 0, 0.0, []

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        """Print the held-out metrics."""
        if not self._enabled or trainer.state.fn != "fit" or module.world_model is None:
            return
        labels = module.world_model.headlines | {"codebook_entropy": "codebook entropy in bits"}
        values = trainer.callback_metrics
        shown = [
            f"{label} {values[tag]:.3g}" for name, label in labels.items() if (tag := f"held_out/{name}") in values
        ]
        if shown:
            print(f"{_epoch(trainer)}held out: {', '.join(shown)}", flush=True)


def _loss(module: Any) -> str:
    # A phase whose steps were all skipped has no loss.
    return f"loss {module.phase_metrics['loss']:.4g}" if module.phase_metrics else "without a finite loss"


def _epoch(trainer: L.Trainer) -> str:
    if trainer.state.fn != "fit":
        return ""
    width = len(str(trainer.max_epochs))
    return f"epoch {trainer.current_epoch + 1:>{width}}/{trainer.max_epochs}  "
