"""Signals as requests to stop: Ctrl-C, SIGTERM and SLURM's requeue signal."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from types import FrameType

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from delta_iris.training.lightning_private import SignalConnectorBase

__all__ = ["StopSignals", "requeue"]


class StopSignals(SignalConnectorBase):
    """Takes the place of Lightning's signal handlers while a run is fitted.

    Lightning's raise between batches, save nothing within an epoch, and send messages to other processes in the middle
    of a handler. Here a signal only calls `request_stop` of the loop, which saves a checkpoint at its next step.
    """

    _interrupts = 0

    def register_signal_handlers(self) -> None:
        """Handle the signals from now on, until `teardown`."""
        # Handlers can be set in the main thread only; elsewhere signals keep their meaning.
        if self.trainer.state.fn != TrainerFn.FITTING or threading.current_thread() is not threading.main_thread():
            return
        for number in {signal.SIGINT, signal.SIGTERM, *self._requeue_signals()}:
            self._original_handlers[number] = signal.signal(number, self._handle)

    def _requeue_signals(self) -> set[signal.Signals]:
        environment = self.trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment):
            return {environment.requeue_signal} if environment.auto_requeue and environment.requeue_signal else set()
        return {signal.SIGUSR1} if "SLURM_JOB_ID" in os.environ else set()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.trainer.fit_loop.request_stop(signal.Signals(number))  # type: ignore[attr-defined]
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt


def requeue() -> None:
    """Ask SLURM to start this job again, which then resumes its run."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        status = subprocess.run(["scontrol", "requeue", job], check=False).returncode
    except OSError as error:
        rank_zero_warn(f"job {job} is not requeued: scontrol cannot be run ({error})")
        return
    if status:
        rank_zero_warn(f"job {job} is not requeued: scontrol ended with status {status}")
    else:
        rank_zero_info(f"job {job} is requeued and will resume by itself")
