"""The custom loop: an epoch collects, then trains tokenizer, world model and agent, one phase each.

All that touches Lightning's private loop classes is in this file (tried with Lightning 2.6).
"""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.loops.utilities import _select_data_fetcher
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng

from delta_iris.data.collector import Episode
from delta_iris.distributed import gather_objects
from delta_iris.training.callbacks.phases import PhaseCallback, Rollout, Training
from delta_iris.training.datamodule import ReplayDataModule
from delta_iris.training.learner import DeltaIris
from delta_iris.training.schedule import PHASES, Schedule

__all__ = ["CollectTrainLoop", "install_loops"]


def install_loops(trainer: L.Trainer, schedule: Schedule) -> None:
    """Give a Trainer the loops of this project, in place of its own."""
    loop = trainer.fit_loop
    trainer.fit_loop = CollectTrainLoop(trainer, schedule, loop.min_epochs, loop.max_epochs)
    trainer.validate_loop = PlayEvaluateLoop(trainer, TrainerFn.VALIDATING, RunningStage.VALIDATING)
    trainer.test_loop = PlayEvaluateLoop(trainer, TrainerFn.TESTING, RunningStage.TESTING)
    # Nothing has been collected that a sanity check could look at.
    trainer.num_sanity_val_steps = 0


def _system(trainer: L.Trainer) -> DeltaIris:
    module = trainer.lightning_module
    assert isinstance(module, DeltaIris), "the custom loop trains a DeltaIris"
    return module


def _data(trainer: L.Trainer) -> ReplayDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ReplayDataModule), "the custom loop needs a ReplayDataModule"
    return data


def _tell(trainer: L.Trainer, hook: str, *args: Any) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, PhaseCallback):
            getattr(callback, hook)(trainer, trainer.lightning_module, *args)


class PlayEvaluateLoop(_EvaluationLoop):
    """Plays test episodes with the present agent, then computes held-out losses on them."""

    def run(self) -> list[Any]:
        """Play, then evaluate, with random numbers that training does not notice."""
        trainer = self.trainer
        if trainer.sanity_checking:
            return []
        with isolate_rng():
            self._play()
            return [] if self._stopped else super().run()

    @property
    def _stopped(self) -> bool:
        loop = self.trainer.fit_loop
        return isinstance(loop, CollectTrainLoop) and loop.stop_agreed()

    def _play(self) -> None:
        trainer = self.trainer
        system, data = _system(trainer), _data(trainer)
        episodes = data.test_episodes if trainer.testing else data.val_episodes
        _tell(trainer, "on_phase_start", "play", episodes, 0)
        started, frames, loop = time.monotonic(), 0, trainer.fit_loop
        assert isinstance(loop, CollectTrainLoop)

        def progress(new_frames: int, ended: list[Episode]) -> bool:
            nonlocal frames
            frames += new_frames
            _tell(trainer, "on_phase_progress", "play", len(ended) * data.world_size, new_frames)
            return loop.stop_requested

        share = data.play_test_episodes(system.policy(), episodes, progress)
        if self._stopped:
            return
        played = [episode for rank in gather_objects(share) for episode in rank]
        total = sum(gather_objects(frames))
        _tell(trainer, "on_phase_end", "play", Rollout(played, total, time.monotonic() - started))


class _PhaseLoop(_TrainingEpochLoop):
    """The batches of one training phase. Validation is the outer loop's, after all phases."""

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        return False

    @property
    def done(self) -> bool:
        """Whether the phase's batches are through, or a stop was asked for."""
        loop = self.trainer.fit_loop
        assert isinstance(loop, CollectTrainLoop)
        return (self._may_wait and loop.stop_agreed()) or super().done

    @property
    def _may_wait(self) -> bool:
        """Whether it is time to agree with other processes, by a message that waits for the device: seldom."""
        return self.trainer.world_size == 1 or self.batch_progress.current.ready % 16 == 0

    def _broadcast_sigterm_tensor(self) -> None:
        if self._may_wait:
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


class CollectTrainLoop(_FitLoop):
    """An epoch: collect, train tokenizer, world model and agent, validate when due.

    Ctrl-C (once) stops it after the step under way, with a checkpoint `interrupted.ckpt` in the run folder, from which
    it resumes at that very step; a second one stops it at once.

    Args:
        trainer: whose loop it is.
        schedule: what an epoch consists of.
        min_epochs, max_epochs: as of the Trainer.
    """

    def __init__(self, trainer: L.Trainer, schedule: Schedule, min_epochs: int | None, max_epochs: int | None) -> None:
        super().__init__(trainer, min_epochs, max_epochs)
        self.schedule = schedule
        self.epoch_loop = _PhaseLoop(trainer)
        self.epoch_loop.val_loop = PlayEvaluateLoop(
            trainer, TrainerFn.FITTING, RunningStage.VALIDATING, verbose=False, inference_mode=False
        )
        self.stop_requested = False
        self.interrupted_checkpoint: Path | None = None
        self.frames_collected = 0
        # Where in the epoch we are; saved with checkpoints.
        self._collected, self._phase, self._in_phase = False, 0, False
        self._epoch_done = False

    # --- the run ---

    def setup_data(self) -> None:
        """Data comes phase by phase; all there is to know beforehand is that there is some."""
        self.max_batches = sum(self.schedule.phase(phase).steps for phase in PHASES)

    def run(self) -> None:
        """Epoch after epoch; see `_FitLoop.run`."""
        self.setup_data()
        if self.skip:
            return
        for phase in PHASES:
            # Hours later would be late to learn that a batch cannot be shared out.
            _data(self.trainer).share(f"loop.{phase}.batch_size", self.schedule.phase(phase).batch_size)
        self.reset()
        self.on_run_start()
        with _StopOnInterrupt(self):
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
        """Continue the checkpoint's random numbers, after all that starting up has drawn."""
        super().on_run_start()
        _data(self.trainer).begin()

    def on_advance_start(self) -> None:
        """Begin an epoch, or go on with the one that was interrupted."""
        if self.restarted_mid_epoch:
            return
        self.epoch_progress.increment_ready()
        call._call_callback_hooks(self.trainer, "on_train_epoch_start")
        call._call_lightning_module_hook(self.trainer, "on_train_epoch_start")
        self.epoch_progress.increment_started()

    def advance(self) -> None:
        """One epoch, from wherever it stands, to its end or to where it was asked to stop."""
        self._epoch_done = False
        if not self._collected:
            self._collect()
        while self._phase < len(PHASES):
            if self.stop_agreed():
                return
            self._train(PHASES[self._phase])
            if self._in_phase:
                return
            self._phase += 1
        if self.epoch_loop._should_check_val_epoch():
            self._validate()
            if self.stop_agreed():
                return
        self._collected, self._phase, self._epoch_done = False, 0, True

    def _collect(self) -> None:
        trainer, epoch = self.trainer, self.trainer.current_epoch
        wanted = self.schedule.collection.frames_in(epoch)
        system, data = _system(trainer), _data(trainer)
        if wanted > 0:
            _tell(trainer, "on_phase_start", "collect", wanted, 0)
            started, frames = time.monotonic(), 0

            def progress(new_frames: int, ended: list[Episode]) -> bool:
                nonlocal frames
                frames += new_frames
                _tell(trainer, "on_phase_progress", "collect", new_frames * data.world_size, new_frames)
                # Ranks collect equally many steps, but not in step: each heeds its own Ctrl-C here.
                return self.stop_requested

            policy = None if epoch == 0 else system.policy()
            share = data.collect(policy, wanted, self.schedule.collection.epsilon, progress)
            if self.stop_agreed():
                return
            episodes = [episode for rank in gather_objects(share) for episode in rank]
            total = sum(gather_objects(frames))
            self.frames_collected += total
            data.keep_collected()
            _tell(trainer, "on_phase_end", "collect", Rollout(episodes, total, time.monotonic() - started))
        self._collected = True

    def _train(self, phase: str) -> None:
        trainer, plan = self.trainer, self.schedule.phase(phase)
        steps = plan.steps_in(trainer.current_epoch)
        system, data = _system(trainer), _data(trainer)
        resume = self._in_phase
        done = self.epoch_loop.batch_progress.current.completed if resume else 0
        self.epoch_loop.restarting = resume
        if done >= steps:
            # Nothing to do, or fewer steps were asked for than were done before the interruption.
            self._in_phase = False
            return
        system.begin_phase(phase, plan.micro_batch_size)
        _tell(trainer, "on_phase_start", phase, steps, done)
        started = time.monotonic()
        # The first epoch trains long on little: those draws would weigh on its episodes for ever.
        loader = data.phase_loader(phase, steps, plan.batch_size, count=trainer.current_epoch > 0, skip=done)
        combined = CombinedLoader(loader, "max_size_cycle")
        combined.limits = [steps]
        fetcher = _select_data_fetcher(trainer, RunningStage.TRAINING)
        fetcher.setup(combined)
        iter(fetcher)
        self.max_batches, self._combined_loader, self._in_phase = steps, combined, True
        try:
            self.epoch_loop.run(fetcher)
        finally:
            fetcher.teardown()
            self._combined_loader = None
        system.flush_metrics()
        if self.epoch_loop.batch_progress.current.completed == steps:
            self._in_phase = False
            data.end_phase()
            _tell(trainer, "on_phase_end", phase, Training(steps - done, time.monotonic() - started))

    def _validate(self) -> None:
        self.trainer.validating = True
        self.epoch_loop.val_loop.run()
        self.trainer.training = True

    # --- stopping and resuming ---

    def stop_agreed(self) -> bool:
        """Whether any process was asked to stop; all of them learn it at the same step."""
        if self.trainer.world_size == 1:
            return self.stop_requested
        return self.trainer.strategy.reduce_boolean_decision(self.stop_requested, all=False)

    def _save_interrupted(self) -> None:
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir) / "checkpoints"
        self.interrupted_checkpoint = folder / "interrupted.ckpt"
        self.trainer.save_checkpoint(self.interrupted_checkpoint, weights_only=False)
        rank_zero_info(f"\nStopped in epoch {self.trainer.current_epoch + 1}. Resume with:")
        rank_zero_info(f"  --ckpt_path {self.interrupted_checkpoint}")

    def on_save_checkpoint(self) -> dict[str, Any]:
        """Where in the epoch we are, besides Lightning's own progress."""
        return super().on_save_checkpoint() | {
            "collected": self._collected,
            "phase": self._phase,
            "in_phase": self._in_phase,
            "frames_collected": self.frames_collected,
        }

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` gave."""
        super().on_load_checkpoint(state_dict)
        self._collected, self._phase = state_dict["collected"], state_dict["phase"]
        self._in_phase, self.frames_collected = state_dict["in_phase"], state_dict["frames_collected"]


class _StopOnInterrupt:
    """While it lasts, the first Ctrl-C asks the loop to stop; the second is the usual one."""

    def __init__(self, loop: CollectTrainLoop) -> None:
        self._loop = loop
        self._previous: Any = None
        # Signal handlers can be set in the main thread alone; elsewhere Ctrl-C keeps its usual meaning.
        self._possible = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> None:
        if self._possible:
            self._previous = signal.signal(signal.SIGINT, self._handle)

    def __exit__(self, *_: object) -> None:
        if self._possible:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._loop.stop_requested:
            raise KeyboardInterrupt
        self._loop.stop_requested = True
        rank_zero_info("\nStopping after this step, with a checkpoint (Ctrl-C again to stop at once) …")
