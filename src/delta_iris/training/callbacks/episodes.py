"""Logs episode statistics, and writes the report of `delta-iris test`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from delta_iris.data.collector import EpisodeStats
from delta_iris.evaluation.episodes import Evaluation, crafter_run, evaluate_episodes
from delta_iris.evaluation.video import write_gif
from delta_iris.training.callbacks.phases import CollectionResult, PhaseCallback, PhaseResult
from delta_iris.training.checkpoint import run_folder
from delta_iris.training.phase import COLLECT, Activity

__all__ = ["EpisodeStatistics"]


class EpisodeStatistics(PhaseCallback):
    """Logs return, length, achievements and score, against the frames collected so far.

    Collected episodes are logged as `train/…`, test episodes as `test/…`; `return_interval` is half the width of the
    95% confidence interval of `return`. A run that collects nothing is logged against optimizer steps. `test` also
    prints the statistics, writes them as JSON and the first environment's first episode as a GIF of the same name; its
    seed is the same each time. The JSON has the format of Crafter's runs, which Crafter's analysis scripts read, with a
    summary added.

    Args:
        path: of the JSON; by default `evaluation/<checkpoint>.json` in the checkpoint's run folder or, for an exported
            agent, `evaluation/<its folder>.json` in the working directory.
        method: name of the agent in the JSON.
    """

    def __init__(self, path: str | None = None, method: str = "delta_iris") -> None:
        self.path, self.method = path, method

    def on_phase_end(
        self, trainer: L.Trainer, module: Any, activity: Activity, result: CollectionResult | PhaseResult
    ) -> None:
        """Log the episodes."""
        if not isinstance(result, CollectionResult):
            return
        split = "train" if activity is COLLECT else "test"
        values = {f"{split}/frames_per_second": result.frames / result.seconds}
        if result.replaced:
            values[f"{split}/replaced_environments"] = float(result.replaced)
        if result.episodes:
            evaluation = evaluate_episodes(result.episodes)
            values |= {
                f"{split}/return": evaluation.return_mean,
                f"{split}/return_interval": evaluation.return_interval,
                f"{split}/length": evaluation.length_mean,
                f"{split}/episodes": float(evaluation.episodes),
            }
            if evaluation.achievements_per_episode is not None and evaluation.score is not None:
                values[f"{split}/achievements_per_episode"] = evaluation.achievements_per_episode
                values[f"{split}/crafter_score"] = evaluation.score
                values |= {f"{split}_achievements/{name}": rate for name, rate in evaluation.achievements.items()}
            limit = trainer.datamodule.max_test_episode_steps  # type: ignore[attr-defined]
            cut = sum(episode.length >= limit for episode in result.episodes)
            if cut and activity is not COLLECT:
                rank_zero_info(
                    f"{cut} of {len(result.episodes)} test episodes were cut after {limit:,} steps "
                    "(data.max_test_episode_steps)"
                )
            if trainer.testing and trainer.is_global_zero:
                self._report(trainer, module, result.episodes, evaluation)
        if trainer.state.fn == "fit":
            loop: Any = trainer.fit_loop
            # A run that does not collect in its first two epochs never does. All its tests would be at frame 0.
            collects = module.schedule.collection.frames_until(2) > 0
            # The clock is each process's own, and callbacks that monitor values must decide equally on all.
            values = trainer.strategy.broadcast(values)
            module.log_now(values, loop.frames_collected if collects else trainer.global_step)

    def _report(self, trainer: L.Trainer, module: Any, episodes: list[EpisodeStats], evaluation: Evaluation) -> None:
        checkpoint = Path(trainer.ckpt_path) if trainer.ckpt_path else None
        if self.path is not None:
            path = Path(self.path)
        elif checkpoint is not None:
            path = run_folder(checkpoint) / "evaluation" / f"{checkpoint.stem}.json"
        else:
            name = "untrained" if module.exported_to is None else module.exported_to.name
            path = Path("evaluation") / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        task = trainer.datamodule.environment  # type: ignore[attr-defined]
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        run = crafter_run(episodes, task, self.method, seed, module.frames_trained_on)
        source = checkpoint or module.exported_to
        summary = {
            "checkpoint": source and str(source),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        } | evaluation.to_dict()
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in (summary | run).items()]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        held_out, animation = trainer.datamodule.held_out(), path.with_suffix(".gif")  # type: ignore[attr-defined]
        write_gif(animation, held_out.read(0, 0, held_out.length(0)).frames)
        print(f"\n{evaluation.table()}\n\nWritten: {path}, and an episode as {animation}", flush=True)
