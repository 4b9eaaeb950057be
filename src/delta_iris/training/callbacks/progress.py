"""Progress: a bar for each phase on a terminal, a line for each phase elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from delta_iris.training.callbacks.phases import PhaseCallback, Rollout, Training
from delta_iris.training.schedule import PHASES

__all__ = ["PhaseProgress"]

UNITS = {"collect": "frames", "play": "episodes"}
NAMES = {"collect": "collect", "play": "test episodes", "world_model": "world model"}


class PhaseProgress(ProgressBar, PhaseCallback):
    """Shows each phase with its rate and the time left, and keeps one line of it."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[Any] | None = None
        self._label = ""
        self._enabled = True
        self._started, self._frames = 0.0, 0
        # Of the epoch: what was collected, and the seconds of all phases.
        self._collected, self._seconds = 0, 0.0

    def disable(self) -> None:
        """Show nothing (Lightning calls it on all processes but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Show progress again."""
        self._enabled = True

    def on_phase_start(self, trainer: L.Trainer, module: Any, phase: str, total: int, done: int) -> None:
        """Open a bar."""
        self._started, self._frames = time.monotonic(), 0
        self._label = NAMES.get(phase, phase)
        if trainer.state.fn == "fit":
            width = len(str(trainer.max_epochs))
            self._label = f"epoch {trainer.current_epoch + 1:>{width}}/{trainer.max_epochs}  {self._label}"
        if self._enabled and sys.stderr.isatty():
            self._bar = tqdm(
                total=total,
                initial=done,
                desc=self._label,
                unit=f" {UNITS.get(phase, 'steps')}",
                dynamic_ncols=True,
                leave=False,
            )

    def on_phase_progress(self, trainer: L.Trainer, module: Any, phase: str, count: int, frames: int) -> None:
        """Advance the bar while playing."""
        if self._bar is not None:
            self._bar.update(count)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Advance the bar while training."""
        self._frames += batch.valid.numel() * trainer.world_size
        if self._bar is not None:
            self._bar.update()
            if module.phase_metrics:
                rate = self._frames / (time.monotonic() - self._started)
                told = f"{rate:,.0f} frames/s, loss {module.phase_metrics['loss']:.4g}"
                self._bar.set_postfix_str(told, refresh=False)

    def on_phase_end(self, trainer: L.Trainer, module: Any, phase: str, outcome: Rollout | Training) -> None:
        """Replace the bar by a line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if not self._enabled:
            return
        if isinstance(outcome, Rollout):
            told = f"{outcome.frames:>9,} frames {outcome.frames / outcome.seconds:>8,.0f} frames/s"
            if outcome.episodes:
                returns = [episode.return_ for episode in outcome.episodes]
                told += f"  return {sum(returns) / len(returns):.2f} over {len(returns)} episodes"
        else:
            told = (
                f"{outcome.steps:>9,} steps  {self._frames / outcome.seconds:>8,.0f} frames/s  "
                f"{1000 * outcome.seconds / outcome.steps:,.1f} ms a step  loss {module.phase_metrics['loss']:.4g}"
            )
        print(f"{self._label:<28}{told}", flush=True)
        if trainer.state.fn == "fit" and phase != "play":
            self._sum_up(trainer, phase, outcome)

    def _sum_up(self, trainer: L.Trainer, phase: str, outcome: Rollout | Training) -> None:
        """After an epoch's last phase, how many frames a second it made of all."""
        if isinstance(outcome, Rollout):
            self._collected, self._seconds = outcome.frames, outcome.seconds
            return
        self._seconds += outcome.seconds
        if phase == PHASES[-1] and self._collected:
            told = f"{self._collected:>9,} frames {self._collected / self._seconds:>8,.1f} frames/s in all"
            print(f"{self._label.removesuffix(NAMES.get(phase, phase)):<28}{told}", flush=True)
            self._collected = 0

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        """Tell the held-out losses."""
        if self._enabled and trainer.state.fn == "fit":
            values = trainer.callback_metrics
            told = (
                f"reconstruction L2 {values['held_out/tokenizer_l2']:.5f} (copying the last frame "
                f"{values['held_out/tokenizer_copy_l2']:.5f})  codebook {values['held_out/codebook_entropy']:.2f} bits "
                f" world model {values['held_out/world_model_loss']:.3f}"
            )
            print(f"{'':<20}held out  {told}", flush=True)
