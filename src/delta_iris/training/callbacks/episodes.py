"""Logs what episodes came to, and reports those of `delta-iris test`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import lightning as L

from delta_iris.data.collector import Episode
from delta_iris.evaluation.episodes import Evaluation, crafter_run, evaluate_episodes
from delta_iris.evaluation.video import write_gif
from delta_iris.training.callbacks.phases import PhaseCallback, Rollout, Training
from delta_iris.training.checkpoint import run_folder

__all__ = ["EpisodeStatistics"]


class EpisodeStatistics(PhaseCallback):
    """Return, length, objectives, success rates and score: of training episodes as `train/…`, of test episodes as
    `test/…`, against the frames collected so far (optimizer steps, in a run that collects none). `test` also prints
    them, writes them as JSON and, to watch, the first environment's first episode as a GIF of the same name (the worlds
    are the same each time).

    The JSON is a run in Crafter's own format, which its analysis scripts read, with the summary beside it.

    Args:
        path: of the JSON; by default `evaluation/<checkpoint>.json` in the checkpoint's run folder, for a published
            agent `evaluation/<its folder>.json` where the command runs.
        method: what it calls this agent.
    """

    def __init__(self, path: str | None = None, method: str = "delta_iris") -> None:
        self.path, self.method = path, method

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
                self._report(trainer, module, outcome.episodes, evaluation)
        if trainer.state.fn == "fit":
            loop: Any = trainer.fit_loop
            # What is not collected in the first two epochs never is. All tests would be at 0, one over the other.
            collects = loop.schedule.frames_until(2) > 0
            module.log_now(values, loop.frames_collected if collects else trainer.global_step)

    def _report(self, trainer: L.Trainer, module: Any, episodes: list[Episode], evaluation: Evaluation) -> None:
        checkpoint = Path(trainer.ckpt_path) if trainer.ckpt_path else None
        if self.path is not None:
            path = Path(self.path)
        elif checkpoint is not None:
            path = run_folder(checkpoint) / "evaluation" / f"{checkpoint.stem}.json"
        else:
            name = "untrained" if module.published_in is None else module.published_in.name
            path = Path("evaluation") / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        task = trainer.datamodule.environment  # type: ignore[attr-defined]
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        run = crafter_run(episodes, task, self.method, seed, module.frames_trained_on)
        source = checkpoint or module.published_in
        summary = {
            "checkpoint": source and str(source),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        } | evaluation.to_dict()
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in (summary | run).items()]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        seen, animation = trainer.datamodule.held_out(), path.with_suffix(".gif")  # type: ignore[attr-defined]
        write_gif(animation, seen.read(0, 0, seen.length(0)).frames)
        print(f"\n{evaluation.table()}\n\nWritten to {path}; an episode to watch: {animation}", flush=True)
