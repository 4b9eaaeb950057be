"""Checks of a configuration as a whole, before anything is collected or overwritten."""

from __future__ import annotations

from delta_iris.errors import UserError
from delta_iris.training.datamodule import ReplayDataModule
from delta_iris.training.learner import Learner

__all__ = ["check_configuration"]


def check_configuration(learner: Learner, data: ReplayDataModule, world_size: int) -> None:
    """Check what no single module can.

    Args:
        learner: the system.
        data: its data module.
        world_size: number of processes.

    Raises:
        UserError: names the keys that do not fit together, and the way out.
    """
    if learner.schedule.collection.frames_in(0) == 0 and data.recorded_episodes is None:
        raise UserError(
            "model.init_args.schedule.collection: the first epoch must collect, because there is nothing else to train "
            "on: set frames and first_epoch_frames above 0 and last_epoch to at least 1, or set data.recorded_episodes"
        )
    if data.environment is None and (learner.schedule.collection.frames_until(2) > 0 or data.recorded_episodes is None):
        raise UserError(
            "data.environment is null, so that nothing can be collected: set data.recorded_episodes and "
            "model.init_args.schedule.collection.last_epoch to 0"
        )
    for phase in learner.phases:
        multiple = phase.batch_multiple * world_size
        if phase.schedule.batch_size % multiple:
            raise UserError(
                f"model.init_args.schedule.{phase.name}.batch_size is {phase.schedule.batch_size}: make it a multiple "
                f"of {multiple}, its minibatches times the processes, which must have equal sizes"
            )
