"""Checks of a configuration as a whole, before anything is collected or overwritten."""

from __future__ import annotations

from delta_iris.data.recorded_episodes import find_recorded_episodes
from delta_iris.errors import SharedUserError
from delta_iris.training.datamodule import ReplayDataModule
from delta_iris.training.learner import Learner
from delta_iris.training.split import next_multiple

__all__ = ["check_configuration"]


def check_configuration(
    learner: Learner, data: ReplayDataModule, world_size: int, stage: str = "fit", resumed: bool = False
) -> None:
    """Check what no single module can, and that the processes can share what they are to share.

    Args:
        learner: the system.
        data: its data module.
        world_size: number of processes.
        stage: `fit`, `validate` or `test`.
        resumed: whether the run has a replay already, with its part of the recorded episodes in each process.

    Raises:
        UserError: names the keys that do not fit together, and the way out.
    """
    if stage == "fit":
        _check_collection(learner, data)
        for phase in learner.phases:
            _check_batch_size(phase.name, phase.schedule.batch_size, phase.batch_multiple, world_size)
        if data.recorded_episodes is not None and not resumed:
            find_recorded_episodes(data.recorded_episodes, world_size)
    data.check(stage, world_size)


def _check_collection(learner: Learner, data: ReplayDataModule) -> None:
    if learner.schedule.collection.frames_in(0) == 0 and data.recorded_episodes is None:
        raise SharedUserError(
            "model.init_args.schedule.collection: the first epoch must collect, because there is nothing else to train "
            "on: set frames and first_epoch_frames above 0 and last_epoch to at least 1, or set data.recorded_episodes"
        )
    if data.environment is None and (learner.schedule.collection.frames_until(2) > 0 or data.recorded_episodes is None):
        raise SharedUserError(
            "data.environment is null, so that nothing can be collected: set data.recorded_episodes and "
            "model.init_args.schedule.collection.last_epoch to 0"
        )


def _check_batch_size(phase: str, batch_size: int, minibatches: int, world_size: int) -> None:
    multiple = minibatches * world_size
    if batch_size % multiple:
        raise SharedUserError(
            f"model.init_args.schedule.{phase}.batch_size is {batch_size}: make it a multiple of {multiple} "
            f"({minibatches} minibatches × {world_size} processes, which must have equal sizes), such as "
            f"{next_multiple(batch_size, multiple)}"
        )
