"""The custom loop: an epoch collects, then trains the phases of the system one after the other."""

from __future__ import annotations

import os
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng

from delta_iris.data.collector import EpisodeStats
from delta_iris.distributed import gather_objects
from delta_iris.training.callbacks.phases import CollectionResult, PhaseCallback, PhaseResult
from delta_iris.training.checkpoint_io import RunCheckpointIO
from delta_iris.training.datamodule import ReplayDataModule
from delta_iris.training.interrupt import StopSignals, requeue
from delta_iris.training.learner import Learner
from delta_iris.training.lightning_private import (
    EvaluationLoopBase,
    FitLoopBase,
    TrainingEpochLoopBase,
    call,
    select_data_fetcher,
)
from delta_iris.training.logs import log_positions
from delta_iris.training.phase import COLLECT, TEST_EPISODES
from delta_iris.training.run_folder import RunFolder
from delta_iris.training.schedule import PhaseSchedule

__all__ = ["CollectTrainLoop", "EvaluationLoop", "install_loops"]


def install_loops(trainer: L.Trainer) -> None:
    """Replace the loops of a Trainer by those of this project, and how it handles signals, time and checkpoints."""
    loop = trainer.fit_loop
    trainer.fit_loop = CollectTrainLoop(trainer, loop.min_epochs, loop.max_epochs)
    trainer.validate_loop = EvaluationLoop(trainer, TrainerFn.VALIDATING, RunningStage.VALIDATING)
    trainer.test_loop = EvaluationLoop(trainer, TrainerFn.TESTING, RunningStage.TESTING)
    # A sanity check has nothing to check before anything was collected.
    trainer.num_sanity_val_steps = 0
    trainer._signal_connector = StopSignals(trainer)
    trainer.strategy.checkpoint_io = RunCheckpointIO()
    # Lightning's timer ends a run between epochs, and its saved clock would end each resumed one at once.
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for timer in [callback for callback in callbacks if isinstance(callback, Timer)]:
        callbacks.remove(timer)
        trainer.fit_loop.max_seconds = timer._duration


def _learner(trainer: L.Trainer) -> Learner:
    module = trainer.lightning_module
    assert isinstance(module, Learner), "the custom loop trains a Learner"
    return module


def _data(trainer: L.Trainer) -> ReplayDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ReplayDataModule), "the custom loop needs a ReplayDataModule"
    return data


def _phase_callbacks(trainer: L.Trainer) -> list[PhaseCallback]:
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, PhaseCallback)]


class EvaluationLoop(EvaluationLoopBase):
    """Runs test episodes with the present agent, then measures the world model on them."""

    def run(self) -> list[Any]:
        """Run episodes, then evaluate, without consuming the random numbers of training."""
        trainer = self.trainer
        if trainer.sanity_checking:
            return []
        if _data(trainer).environment is None:
            self.completed = True
            return []
        with isolate_rng():
            self.completed = self._run_episodes()
            if not self.completed:
                return []
            if _learner(trainer).world_model is None:
                # Nothing to measure, but callbacks act on the returns.
                self._on_evaluation_end()
                return []
            # All batches again, also where an evaluation was stopped.
            self.restarting = False
            return super().run()

    completed = False
    """Whether the last run was not stopped."""

    def _run_episodes(self) -> bool:
        trainer = self.trainer
        learner, data = _learner(trainer), _data(trainer)
        episodes = data.test_episodes if trainer.testing else data.val_episodes
        for callback in _phase_callbacks(trainer):
            callback.on_phase_start(trainer, learner, TEST_EPISODES, episodes, 0)
        started, frames, loop = time.monotonic(), 0, trainer.fit_loop
        assert isinstance(loop, CollectTrainLoop)

        def progress(new_frames: int, ended: list[EpisodeStats]) -> bool:
            nonlocal frames
            frames += new_frames
            for callback in _phase_callbacks(trainer):
                count = len(ended) * data.world_size
                callback.on_phase_progress(trainer, learner, TEST_EPISODES, count, new_frames)
            return loop.stop_requested

        own = data.run_test_episodes(learner.policy(), episodes, progress, lambda: loop.stop_requested)
        if loop.stop_agreed():
            return False
        finished = [episode for rank in gather_objects(own) for episode in rank]
        result = CollectionResult(finished, sum(gather_objects(frames)), time.monotonic() - started)
        for callback in _phase_callbacks(trainer):
            callback.on_phase_end(trainer, learner, TEST_EPISODES, result)
        return True


class _PhaseLoop(TrainingEpochLoopBase):
    """The batches of one training phase. Validation is the outer loop's, after all phases."""

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        return False

    @property
    def done(self) -> bool:
        """Whether the phase has trained all its batches, or a stop was requested."""
        loop = self.trainer.fit_loop
        assert isinstance(loop, CollectTrainLoop)
        return (self._may_communicate and loop.stop_agreed()) or super().done

    @property
    def _may_communicate(self) -> bool:
        """Whether to agree with other processes now. Rarely, because the message waits for the device."""
        return self.trainer.world_size == 1 or self.batch_progress.current.ready % 16 == 0

    def _broadcast_sigterm_tensor(self) -> None:
        if self._may_communicate:
            super()._broadcast_sigterm_tensor()

    def reset(self) -> None:
        """Count batches from zero or, in a phase that was interrupted, from there."""
        if self.restarting:
            self.batch_progress.reset_on_restart()
        else:
            self.batch_progress.reset_on_run()

    def on_run_start(self, data_fetcher: Any) -> None:
        """The outer loop made the iterator; only the count of what was fetched is missing."""
        data_fetcher.fetched += self.batch_progress.current.ready
        data_fetcher._start_profiler = self._on_before_fetch
        data_fetcher._stop_profiler = self._on_after_fetch


class CollectTrainLoop(FitLoopBase):
    """An epoch: collect, train each phase of the system, validate when due.

    Ctrl-C, SIGTERM, SLURM's requeue signal or the Trainer's `max_time` stop it after the present step, with a
    checkpoint `interrupted.ckpt` in the run folder, from which it goes on as if it had not been stopped. A second
    Ctrl-C stops it at once.

    Args:
        trainer: the Trainer that the loop belongs to.
        min_epochs: as of the Trainer.
        max_epochs: as of the Trainer.

    Attributes:
        stop_signal: the signal that this process was stopped by, if it was.
        interrupted_checkpoint: what a stopped run saved.
        max_seconds: after which the run stops; never where None.
        frames_collected: over all processes, from the run's beginning.
    """

    def __init__(self, trainer: L.Trainer, min_epochs: int | None, max_epochs: int | None) -> None:
        super().__init__(trainer, min_epochs, max_epochs)
        self.epoch_loop = _PhaseLoop(trainer)
        self.epoch_loop.val_loop = EvaluationLoop(
            trainer, TrainerFn.FITTING, RunningStage.VALIDATING, verbose=False, inference_mode=False
        )
        self.stop_signal: signal.Signals | None = None
        self.interrupted_checkpoint: Path | None = None
        self.max_seconds: float | None = None
        self.frames_collected = self.initial_frames = 0
        self._stop_requested, self._started = False, time.monotonic()
        # The position in the epoch, saved with checkpoints.
        self._collected, self._phase_index, self._in_phase = False, 0, False
        self._epoch_done = False
        # Where logs were before an activity that a stopped run does again.
        self._logs_before: dict[str, int] | None = None

    # --- the run ---

    def setup_data(self) -> None:
        """Data is set up phase by phase; Lightning only has to know that there is some."""
        self.max_batches = sum(phase.schedule.steps for phase in _learner(self.trainer).phases)

    def run(self) -> None:
        """Run epoch after epoch; see `_FitLoop.run`."""
        self.setup_data()
        if self.skip:
            return
        self.reset()
        self.on_run_start()
        while not self.done:
            try:
                self.on_advance_start()
                self.advance()
                if not self._epoch_done:
                    self._save_interrupted()
                    break
                self.on_advance_end()
            finally:
                self.on_iteration_done()
        self._restarting = False
        self.on_run_end()

    def on_run_start(self) -> None:
        """Continue the checkpoint's random numbers, after everything that starting up has drawn."""
        super().on_run_start()
        self._started = time.monotonic()
        _data(self.trainer).on_run_start()

    def on_advance_start(self) -> None:
        """Begin an epoch, or continue the one that was interrupted."""
        if self.restarted_mid_epoch:
            return
        self.epoch_progress.increment_ready()
        call._call_callback_hooks(self.trainer, "on_train_epoch_start")
        call._call_lightning_module_hook(self.trainer, "on_train_epoch_start")
        self.epoch_progress.increment_started()

    def advance(self) -> None:
        """Run one epoch from its present position to its end, or to where a stop was requested."""
        self._epoch_done = False
        if not self._collected and not self.stop_agreed():
            self._collect()
        phases = _learner(self.trainer).phases
        while self._phase_index < len(phases):
            if self.stop_agreed():
                return
            self._train(self._phase_index)
            if self._in_phase:
                return
            self._phase_index += 1
        if self.epoch_loop._should_check_val_epoch() and not self._validate():
            return
        self._collected, self._phase_index, self._epoch_done = False, 0, True

    def _collect(self) -> None:
        trainer, epoch = self.trainer, self.trainer.current_epoch
        learner, data = _learner(trainer), _data(trainer)
        schedule = learner.schedule.collection
        frames_wanted = schedule.frames_in(epoch)
        if frames_wanted > 0 and trainer.fast_dev_run:  # type: ignore[attr-defined]
            frames_wanted = data.num_envs * max(phase.sampling.length for phase in learner.phases)
        if frames_wanted > 0:
            self._logs_before = self._log_positions()
            for callback in _phase_callbacks(trainer):
                callback.on_phase_start(trainer, learner, COLLECT, frames_wanted, 0)
            started, frames = time.monotonic(), 0

            def progress(new_frames: int, ended: list[EpisodeStats]) -> bool:
                nonlocal frames
                frames += new_frames
                for callback in _phase_callbacks(trainer):
                    callback.on_phase_progress(trainer, learner, COLLECT, new_frames * data.world_size, new_frames)
                # Ranks collect equally many steps, but not in lockstep: each reacts to its own signals here.
                return self.stop_requested

            policy = None if epoch == 0 and not self.initial_frames else learner.policy()
            own = data.collect(policy, frames_wanted, schedule.epsilon, progress, lambda: self.stop_requested)
            if self.stop_agreed():
                return
            episodes = [episode for rank in gather_objects(own) for episode in rank]
            total = sum(gather_objects(frames))
            self.frames_collected += total
            data.commit()
            self._logs_before = None
            replaced = sum(gather_objects(data.collector.replaced))
            result = CollectionResult(episodes, total, time.monotonic() - started, replaced)
            for callback in _phase_callbacks(trainer):
                callback.on_phase_end(trainer, learner, COLLECT, result)
        self._collected = True

    def _train(self, index: int) -> None:
        trainer = self.trainer
        learner, data = _learner(trainer), _data(trainer)
        phase = learner.phases[index]
        steps = self._steps(phase.schedule)
        resume = self._in_phase
        done = self.epoch_loop.batch_progress.current.completed if resume else 0
        self.epoch_loop.restarting = resume
        if done >= steps:
            # Nothing to do, or fewer steps are configured now than were done before the interruption.
            self._in_phase = False
            return
        learner.start_phase(index, resumed=resume)
        for callback in _phase_callbacks(trainer):
            callback.on_phase_start(trainer, learner, phase.activity, steps, done)
        started = time.monotonic()
        # A phase first trains long on few episodes: counting those draws would lower their priority for ever.
        later = trainer.current_epoch > phase.schedule.start_epoch
        batches = data.phase_batches(phase, steps, update_counts=later, skip=done)
        combined = CombinedLoader(batches, "max_size_cycle")
        combined.limits = [steps]
        fetcher = select_data_fetcher(trainer, RunningStage.TRAINING)
        fetcher.setup(combined)
        iter(fetcher)
        self.max_batches, self._combined_loader, self._in_phase = steps, combined, True
        try:
            self.epoch_loop.run(fetcher)
        finally:
            fetcher.teardown()
            self._combined_loader = None
        if self.epoch_loop.batch_progress.current.completed == steps:
            learner.flush_metrics()
            self._in_phase = False
            data.end_phase()
            result = PhaseResult(steps - done, time.monotonic() - started)
            for callback in _phase_callbacks(trainer):
                callback.on_phase_end(trainer, learner, phase.activity, result)

    def _steps(self, schedule: PhaseSchedule) -> int:
        limit = int(self.trainer.fast_dev_run)  # type: ignore[attr-defined]
        return min(schedule.most_steps, limit) if limit else schedule.steps_in(self.trainer.current_epoch)

    def _validate(self) -> bool:
        """Run test episodes and evaluate; returns whether it was not stopped."""
        loop = self.epoch_loop.val_loop
        assert isinstance(loop, EvaluationLoop)
        self._logs_before = self._log_positions()
        self.trainer.validating = True
        loop.run()
        self.trainer.training = True
        if loop.completed:
            self._logs_before = None
        return loop.completed

    # --- stopping and resuming ---

    def start_from(self, frames: int) -> None:
        """Begin a new run with trained weights: they act in its first epoch, instead of a random player.

        Args:
            frames: that they were trained on, from which this run counts; with 0 the run begins like any other.
        """
        self.frames_collected = self.initial_frames = frames

    def request_stop(self, by: signal.Signals | None) -> None:
        """Stop after the present step. A further request changes nothing.

        Args:
            by: the signal that asks for it; None where the time is over.
        """
        if self._stop_requested:
            return
        self._stop_requested, self.stop_signal = True, by
        again = " (Ctrl-C again to stop at once)" if by == signal.SIGINT else ""
        reason = f"{by.name}: stopping" if by else "max_time is over: stopping"
        if self.trainer.is_global_zero:
            # Not through a buffered stream: a signal's handler may interrupt one that is being written to.
            os.write(2, f"\n{reason} after this step, with a checkpoint{again} …\n".encode())

    @property
    def stop_requested(self) -> bool:
        """Whether this process was asked to stop."""
        if self.max_seconds is not None and time.monotonic() > self._started + self.max_seconds:
            self.request_stop(None)
        return self._stop_requested

    def stop_agreed(self) -> bool:
        """Whether any process was asked to stop; all processes see the same answer at the same step."""
        if self.trainer.world_size == 1:
            return self.stop_requested
        return self.trainer.strategy.reduce_boolean_decision(self.stop_requested, all=False)

    def _save_interrupted(self) -> None:
        # The first process, which ends with a status for all, may not be the one that was sent a signal.
        self.stop_signal = next((each for each in gather_objects(self.stop_signal) if each is not None), None)
        self.interrupted_checkpoint = RunFolder.of(self.trainer).interrupted
        self.trainer.save_checkpoint(self.interrupted_checkpoint, weights_only=False)
        rank_zero_info(f"\nStopped in epoch {self.trainer.current_epoch + 1}. Resume with:")
        config = RunFolder.of(self.trainer).path / "config.yaml"
        command = ["delta-iris", "fit", "--config", str(config)] if config.exists() else []  # there is a command line
        rank_zero_info(f"  {shlex.join([*command, '--ckpt_path', str(self.interrupted_checkpoint)])}")
        if self.stop_signal not in (None, signal.SIGINT, signal.SIGTERM) and self.trainer.is_global_zero:
            requeue()

    @property
    def exit_status(self) -> int:
        """What a command ends with: 130 if Ctrl-C has stopped the run, 143 if another signal has, otherwise 0."""
        if self.stop_signal is None or self.interrupted_checkpoint is None:
            return 0
        return 130 if self.stop_signal == signal.SIGINT else 143

    def _log_positions(self) -> dict[str, int]:
        if not self.trainer.is_global_zero:
            return {}
        return log_positions(self.trainer, RunFolder.of(self.trainer).path)

    def on_save_checkpoint(self) -> dict[str, Any]:
        """The run's folder, how far its logs are, and the position in the epoch, besides Lightning's own progress."""
        return super().on_save_checkpoint() | {
            "run_folder": str(RunFolder.of(self.trainer).path.resolve()),
            "logs": self._log_positions() if self._logs_before is None else self._logs_before,
            "collected": self._collected,
            "phase": self._phase_index,
            "in_phase": self._in_phase,
            "frames_collected": self.frames_collected,
            "initial_frames": self.initial_frames,
        }

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` returned."""
        super().on_load_checkpoint(state_dict)
        self._collected, self._phase_index = state_dict["collected"], state_dict["phase"]
        self._in_phase, self.frames_collected = state_dict["in_phase"], state_dict["frames_collected"]
        self.initial_frames = state_dict.get("initial_frames", 0)  # version 0.2 does not have it
