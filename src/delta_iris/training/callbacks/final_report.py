"""What a short run ends with: how much was learned, and two animations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from delta_iris.data.segment import SegmentBatch, to_images
from delta_iris.envs.make import make_env
from delta_iris.evaluation.video import compare_frames, write_gif
from delta_iris.evaluation.world_model import imagine_open_loop
from delta_iris.training.callbacks.phases import CollectionResult, PhaseCallback, PhaseResult
from delta_iris.training.phase import COLLECT, Activity
from delta_iris.training.run_folder import RunFolder

__all__ = ["FinalReport"]


class FinalReport(PhaseCallback):
    """Prints the returns of a random and of the trained policy at the end, and writes two GIFs to the run folder.

    `agent.gif` shows test episodes, `imagination.gif` the same episodes above what the world model imagines from their
    first frames under the same actions. The best possible return is printed if the environment has the attribute
    `best_return`.

    Args:
        episodes: number of episodes in the animations.
        next_steps: lines to print last.
    """

    def __init__(self, episodes: int = 4, next_steps: list[str] | None = None) -> None:
        self.episodes, self.next_steps = episodes, next_steps or []
        self._random: float | None = None
        self._trained: CollectionResult | None = None

    def on_phase_end(
        self, trainer: L.Trainer, module: Any, activity: Activity, result: CollectionResult | PhaseResult
    ) -> None:
        """Keep the returns: a first epoch is collected at random, and the last test episodes are the final ones."""
        loop: Any = trainer.fit_loop
        if not isinstance(result, CollectionResult) or not result.episodes:
            return
        if activity is not COLLECT:
            self._trained = result
        elif trainer.current_epoch == 0 and not loop.initial_frames:
            self._random = _mean_return(result)

    def on_fit_end(self, trainer: L.Trainer, module: Any) -> None:
        """Print the table and write the animations."""
        loop: Any = trainer.fit_loop
        if not trainer.is_global_zero or self._trained is None or loop.interrupted_checkpoint is not None:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        env = make_env(data.environment, data.wrappers, **data.environment_options)
        best = getattr(env.unwrapped, "best_return", None)
        env.close()
        rows = [("trained agent", _mean_return(self._trained))]
        if self._random is not None:
            rows.insert(0, ("random actions", self._random))
        if best is not None:
            rows.append(("best possible", float(best)))
        print(f"\nreturn of an episode (trained: mean of {len(self._trained.episodes)} test episodes)")
        for name, value in rows:
            print(f"  {name:<16}{value:6.2f}")
        folder = RunFolder.of(trainer).path
        with trainer.precision_plugin.forward_context():
            self._write_animations(folder, module, data)
        for name, text in (("agent.gif", "the agent plays"), ("imagination.gif", "real frames above imagined ones")):
            if (folder / name).exists():
                print(f"  {folder / name}: {text}")
        if self.next_steps:
            print("\nNext:")
            for line in self.next_steps:
                print(f"  {line}")

    def _write_animations(self, folder: Path, module: Any, data: Any) -> None:
        reader = data.held_out()
        numbers = range(min(self.episodes, reader.num_episodes))
        length = min(reader.length(number) for number in numbers)
        steps = [reader.read(number, 0, length) for number in numbers]
        real = np.stack([each.frames for each in steps])
        write_gif(folder / "agent.gif", np.concatenate(list(real), axis=2))
        if module.world_model is None or length <= module.context:
            return
        batches = [SegmentBatch.from_numpy(each.frames, each.actions) for each in steps]
        segment = SegmentBatch(*(torch.cat(fields).to(module.device) for fields in zip(*batches, strict=True)))
        imagined = imagine_open_loop(module.world_model, segment, module.context)
        frames = np.concatenate([real[:, : module.context], to_images(imagined)], axis=1)
        write_gif(folder / "imagination.gif", compare_frames(real, frames))


def _mean_return(result: CollectionResult) -> float:
    return sum(episode.return_ for episode in result.episodes) / len(result.episodes)
