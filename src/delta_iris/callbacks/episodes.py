"""Logs what episodes came to, and reports those of `delta-iris test`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning as L

from delta_iris.callbacks.phases import PhaseCallback, Rollout, Training
from delta_iris.checkpoint import run_folder
from delta_iris.evaluation import Evaluation, evaluate_episodes

__all__ = ["EpisodeStatistics"]


class EpisodeStatistics(PhaseCallback):
    """Return, length, objectives, success rates and score: of training episodes as `train/…`, of test episodes as
    `test/…`, against the frames collected so far. `test` also prints them and writes them as JSON.

    Args:
        path: of the JSON; by default `evaluation/<checkpoint>.json` in the checkpoint's run folder.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path

    def on_phase_end(self, trainer: L.Trainer, module: Any, phase: str, outcome: Rollout | Training) -> None:
        """Log a rollout."""
        if not isinstance(outcome, Rollout) or not trainer.is_global_zero:
            return
        split = "train" if phase == "collect" else "test"
        values = {f"{split}/frames_per_second": outcome.frames / outcome.seconds}
        if outcome.episodes:
            evaluation = evaluate_episodes(outcome.episodes)
            values |= {
                f"{split}/return": evaluation.return_mean,
                f"{split}/length": evaluation.length_mean,
                f"{split}/episodes": float(evaluation.episodes),
            }
            if evaluation.objectives is not None and evaluation.score is not None:
                values[f"{split}/objectives_unlocked"] = evaluation.objectives
                values[f"{split}/crafter_score"] = evaluation.score
                values |= {f"{split}_achievements/{name}": rate for name, rate in evaluation.achievements.items()}
            if trainer.testing:
                self._report(trainer, evaluation)
        if trainer.state.fn == "fit":
            module.log_now(values, trainer.fit_loop.frames_collected)  # type: ignore[attr-defined]

    def _report(self, trainer: L.Trainer, evaluation: Evaluation) -> None:
        checkpoint = Path(trainer.ckpt_path) if trainer.ckpt_path else None
        if self.path is not None:
            path = Path(self.path)
        elif checkpoint is not None:
            path = run_folder(checkpoint) / "evaluation" / f"{checkpoint.stem}.json"
        else:
            path = Path("evaluation.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"checkpoint": str(checkpoint), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")} | evaluation.to_dict()
        path.write_text(json.dumps(content, indent=2))
        print(f"\n{evaluation.table()}\n\nWritten to {path}", flush=True)
