"""What a configuration must fulfil as a whole, checked before anything is collected or overwritten."""

from __future__ import annotations

from delta_iris.errors import UserError
from delta_iris.training.datamodule import ReplayDataModule
from delta_iris.training.learner import DeltaIris
from delta_iris.training.schedule import PHASES, Schedule

__all__ = ["check_configuration"]


def check_configuration(system: DeltaIris, data: ReplayDataModule, schedule: Schedule, processes: int) -> None:
    """Check what no single module can, of a run on so many processes.

    Raises:
        UserError: names the keys that do not go together, and the way out.
    """
    needed = system.agent.burn_in + 1 + system.agent.horizon
    if data.window < needed:
        raise UserError(
            f"data.window {data.window} is too short for model.agent.init_args.burn_in {system.agent.burn_in} + 1 + "
            f"horizon {system.agent.horizon} frames: set data.window to {needed}, or a shorter horizon"
        )
    for key, value in (("burn_in", system.agent.burn_in), ("horizon", system.agent.horizon)):
        if value < 1:
            raise UserError(f"model.agent.init_args.{key} is {value}: give 1 or more")
    # Parts of one size: a captured step is of one shape.
    if schedule.agent.batch_size % (system.agent.parts * processes):
        raise UserError(
            f"loop.agent.batch_size is {schedule.agent.batch_size}: make it a multiple of model.agent.init_args.parts, "
            f"{system.agent.parts}, times the {processes} process(es) that share a batch"
        )
    collection = schedule.collection
    if min(collection.frames, collection.frames_in(0)) < 0 or not 0 <= collection.epsilon <= 1:
        raise UserError(
            f"loop.collection: frames {collection.frames} and first_epoch_frames {collection.first_epoch_frames} must "
            f"not be negative, and epsilon {collection.epsilon} must lie between 0 and 1"
        )
    if schedule.collection.frames_in(0) == 0 and data.recordings is None:
        raise UserError(
            "loop.collection: the first epoch must collect, for there is nothing else to train on: set frames and "
            "first_epoch_frames above 0 and last_epoch to at least 1, or give data.recordings"
        )
    if data.priority < 0:
        raise UserError(f"data.priority is {data.priority}: give 0 or more")
    if data.agent_frames is not None and data.agent_frames < 1:
        raise UserError(f"data.agent_frames is {data.agent_frames}: give at least 1, or null for all of the replay")
    for phase in PHASES:
        plan = schedule.phase(phase)
        for key, value in (("steps", plan.steps), ("first_epoch_steps", plan.steps_in(0))):
            if value < 0:
                raise UserError(f"loop.{phase}.{key} is {value}: give 0 or more")
        if plan.batch_size < 1:
            raise UserError(f"loop.{phase}.batch_size is {plan.batch_size}: give 1 or more")
        if plan.micro_batch_size is not None and plan.micro_batch_size < 1:
            raise UserError(f"loop.{phase}.micro_batch_size is {plan.micro_batch_size}: give 1 or more, or null")
    for key in ("num_envs", "num_test_envs", "val_episodes", "test_episodes", "val_batches", "val_batch_size"):
        if getattr(data, key) < 1:
            raise UserError(f"data.{key} is {getattr(data, key)}: give 1 or more")
