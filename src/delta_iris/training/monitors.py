"""Callbacks that monitor a metric, which is absent before it is measured for the first time."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping

from delta_iris.errors import UserError

__all__ = ["allow_absent_metrics", "check_monitors"]


def allow_absent_metrics(trainer: L.Trainer) -> None:
    """Let `EarlyStopping` wait for its metric: an epoch without validation has no test metrics yet."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, EarlyStopping):
            callback.strict = False


def check_monitors(trainer: L.Trainer) -> None:
    """Refuse names of monitored metrics that do not exist, at the end of the first epoch with validation.

    By then all metrics have been measured, except those of collected episodes (`train…`): none may have ended yet.

    Raises:
        UserError: names the callback, the metric and those that there are.
    """
    metrics, callbacks = trainer.callback_metrics, trainer.callbacks  # type: ignore[attr-defined]
    if "test/return" not in metrics:
        return
    for callback in callbacks:
        if not isinstance(callback, EarlyStopping | Checkpoint):
            continue
        monitor: Any = getattr(callback, "monitor", None)
        if monitor is None or monitor in metrics or monitor in ("epoch", "step") or monitor.startswith("train"):
            continue
        raise UserError(
            f"{type(callback).__name__}: there is no metric to monitor={monitor}; there are: "
            f"{', '.join(sorted(metrics))}"
        )
