"""Callbacks: one sends a signal to its own process at a moment of a run, one counts its threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import lightning as L
import torch

from delta_iris.training.callbacks import PhaseCallback
from delta_iris.training.phase import Activity

__all__ = ["Strike", "ThreadCount"]


class Strike(PhaseCallback):
    """Sends a signal once, at a step of an activity.

    Args:
        activity: its name; `save` for the moment in which a checkpoint is being written.
        epoch: counted from 0.
        step: of the activity, or of the environments, counted from 0.
        name: of the signal; `GROUP` for SIGTERM to all processes of the group, as schedulers send it;
            `NODE` kills the last process of the run and the agent that has started it.
        rank: of the process that sends it; every process of the run does where None.
    """

    def __init__(
        self, activity: str, epoch: int, step: int = 0, name: str = "SIGTERM", rank: int | None = None
    ) -> None:
        self.activity, self.epoch, self.steps_left, self.name, self.rank = activity, epoch, step, name, rank

    def on_phase_progress(self, trainer: L.Trainer, module: Any, activity: Activity, count: int, frames: int) -> None:
        self._step(trainer, activity.name)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._step(trainer, module.phase.name)

    def on_save_checkpoint(self, trainer: L.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        if self.activity == "save" and trainer.current_epoch == self.epoch:
            folder = Path(trainer.default_root_dir) / "checkpoints"
            threading.Thread(target=self._strike_while_written, args=(folder,), daemon=True).start()

    def _strike_while_written(self, folder: Path) -> None:
        while not any(path.stat().st_size for path in folder.glob(".*.part")):
            pass
        os.kill(os.getpid(), signal.Signals[self.name])

    def _step(self, trainer: L.Trainer, name: str) -> None:
        if name != self.activity or trainer.current_epoch != self.epoch or self.rank not in (None, trainer.global_rank):
            return
        if self.steps_left == 0 and self.name == "GROUP":
            # From outside, as a scheduler does: a reader obeys a SIGTERM of the trainer's own.
            order = f"import os, signal; os.killpg({os.getpgrp()}, signal.SIGTERM)"
            subprocess.run([sys.executable, "-c", order], start_new_session=True, check=True)
        elif self.steps_left == 0 and self.name != "NODE":
            os.kill(os.getpid(), signal.Signals[self.name])
        elif self.steps_left == 0 and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps_left -= 1


class ThreadCount(PhaseCallback):
    """Writes how many threads each process computes with, to `threads_<rank>` in the working directory."""

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        Path(f"threads_{trainer.global_rank}").write_text(str(torch.get_num_threads()))
