"""DreamerV3, and DreamerV2 as a preset: a recurrent world model and an actor-critic that learn from the same batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from delta_iris.actor_critic.feature_actor_critic import FeatureActorCritic
from delta_iris.data.collector import Policy
from delta_iris.errors import UserError
from delta_iris.imagination.policy import WorldModelPolicy
from delta_iris.training.learner import Learner
from delta_iris.training.phase import Sampling
from delta_iris.training.schedule import CollectionSchedule, PhaseSchedule, Schedule
from delta_iris.training.systems.building import argument_of, format_millions
from delta_iris.training.systems.dreamer_optimizers import JointOptimizer, OneLaProp
from delta_iris.training.systems.dreamer_phase import DreamerPhase
from delta_iris.world_models.dreamer.world_model import DreamerWorldModel

__all__ = ["Dreamer", "DreamerSchedule", "TrainRatio"]

WorldModelFactory = Callable[[tuple[int, int], int], DreamerWorldModel]
"""Makes a world model from frame size and number of actions."""

FeatureActorCriticFactory = Callable[[int, int, float], FeatureActorCritic]
"""Makes an actor-critic from the width of its features, the number of actions and the discount."""


@dataclass(frozen=True)
class TrainRatio:
    """How much the agent trains, in proportion to what is collected.

    Args:
        train_ratio: frames that are trained on for each frame collected; every update counts all frames of its batch.
        batch_size: segments of a batch, over all processes.
        micro_batch_size: segments that each process computes at a time, where memory is short; the results are equal.

    Raises:
        ValueError: if a number is out of range.
    """

    train_ratio: float = 32.0
    batch_size: int = 16
    micro_batch_size: int | None = None

    def __post_init__(self) -> None:
        if not self.train_ratio > 0:
            raise ValueError(f"train_ratio is {self.train_ratio}: it must be above 0")
        PhaseSchedule(batch_size=self.batch_size, micro_batch_size=self.micro_batch_size)

    def in_steps(self, collection: CollectionSchedule, segment_length: int) -> PhaseSchedule:
        """The batches of each epoch, at least one.

        Args:
            collection: how much is collected.
            segment_length: frames of a segment.
        """
        first, later = (
            max(1, round(self.train_ratio * frames / (self.batch_size * segment_length)))
            for frames in (collection.frames_in(0), collection.frames)
        )
        return PhaseSchedule(later, self.batch_size, first, micro_batch_size=self.micro_batch_size)


@dataclass(frozen=True)
class DreamerSchedule(Schedule):
    """An epoch: collect, then train world model, actor and critic together.

    Args:
        agent: how much they train.
    """

    agent: TrainRatio = field(default_factory=TrainRatio)


class Dreamer(Learner):
    """The Dreamer agent.

    Args:
        frame_size: height and width of a frame, in pixels; taken from `data.frame_size`.
        num_actions: number of actions A; taken from `data.num_actions`.
        world_model: the world model.
        actor_critic: actor and critic, which see the world model's states.
        optimizer: how both are optimized: `OneLaProp` or `ThreeAdams`; DreamerV3's LaProp where null.
        segment_length: frames of a training segment.
        context: real frames that held-out imagination starts from.
        schedule: how much is collected and trained in an epoch.
        compile: whether to compile training steps and launch them as CUDA graphs on a GPU; false to debug.
        max_skipped_steps: number of optimizer steps in a row that may be skipped because a loss or gradient is NaN or
            infinite; more of them end the run.

    Raises:
        UserError: if arguments do not fit together; it names the configuration key.
    """

    world_model: DreamerWorldModel

    def __init__(
        self,
        frame_size: tuple[int, int],
        num_actions: int,
        world_model: WorldModelFactory,
        actor_critic: FeatureActorCriticFactory,
        optimizer: JointOptimizer | None = None,
        segment_length: int = 64,
        context: int = 5,
        schedule: DreamerSchedule = DreamerSchedule(),
        compile: bool = True,
        max_skipped_steps: int = 20,
    ) -> None:
        super().__init__(schedule, compile, max_skipped_steps)
        if not 1 <= context < segment_length:
            raise UserError(
                f"model.init_args.context is {context}: it must be at least 1 and below model.init_args.segment_length "
                f"({segment_length})"
            )
        with argument_of("model.init_args.world_model.init_args"):
            self.world_model = world_model(frame_size, num_actions)
        with argument_of("model.init_args.actor_critic.init_args"):
            self.actor_critic = actor_critic(self.world_model.num_features, num_actions, self.world_model.discount)
        self.segment_length, self.context = segment_length, context
        sampling = Sampling(segment_length, 0, 0, 0.0, across_episodes=True)
        steps = schedule.agent.in_steps(schedule.collection, segment_length)
        self.phases = [DreamerPhase(self.world_model, self.actor_critic, optimizer or OneLaProp(), sampling, steps)]

    def make_policy(self, graph_pool: Any = None) -> Policy:
        """See `Learner.make_policy`."""
        return WorldModelPolicy(self.world_model, self.actor_critic, graph_pool)

    def describe(self, epochs: int) -> dict[str, str]:
        """See `Learner.describe`: parameter counts, and the ratio of trained to collected frames."""
        lines = {
            "parameters": f"world model {format_millions(self.world_model)}; actor-critic "
            f"{format_millions(self.actor_critic)} (with slow critic)"
        }
        if epochs > 0:
            frames = self.schedule.collection.frames_until(epochs)
            trained = self.phases[0].schedule.segments_until(epochs) * self.segment_length
            ratio = f": train ratio {trained / frames:.1f}" if frames else ""
            lines[f"{epochs} epochs"] = f"{frames:,} frames collected, {trained:,} trained on{ratio}"
        return lines
