"""The actor-critic alone, trained on what it collects: the model-free baseline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from delta_iris.actor_critic.policy import FramePolicy
from delta_iris.data.collector import Policy
from delta_iris.training.learner import Learner
from delta_iris.training.schedule import PhaseSchedule, Schedule
from delta_iris.training.systems.actor_critic_phase import ActorCriticFactory
from delta_iris.training.systems.building import argument_of, format_millions
from delta_iris.training.systems.real_segment_phase import RealSegmentPhase

__all__ = ["ModelFree", "ModelFreeSchedule"]


@dataclass(frozen=True)
class ModelFreeSchedule(Schedule):
    """An epoch: collect, then train the actor-critic on the frames collected last.

    Args:
        actor_critic: how much the actor-critic trains.
    """

    actor_critic: PhaseSchedule = field(default_factory=PhaseSchedule)


class ModelFree(Learner):
    """A recurrent actor-critic without a world model.

    Args:
        frame_size: height and width of a frame, in pixels; taken from `data.frame_size`.
        num_actions: number of actions A; taken from `data.num_actions`.
        actor_critic: the actor-critic.
        recent_frames: trains on the latest episodes that together hold this many frames. With those of one epoch it is
            nearly on-policy: the episodes under way at the epoch's start began under the policy before.
        schedule: how much is collected and trained in an epoch.
        compile: whether to compile training steps and launch them as CUDA graphs on a GPU; false to debug.
        max_skipped_steps: number of optimizer steps in a row that may be skipped because a loss or gradient is NaN or
            infinite; more of them end the run.

    Raises:
        UserError: if arguments do not fit together; it names the configuration key. See also `RealSegmentPhase`.
    """

    def __init__(
        self,
        frame_size: tuple[int, int],
        num_actions: int,
        actor_critic: ActorCriticFactory,
        recent_frames: int = 10_000,
        schedule: ModelFreeSchedule = ModelFreeSchedule(),
        compile: bool = True,
        max_skipped_steps: int = 20,
    ) -> None:
        super().__init__(schedule, compile, max_skipped_steps)
        with argument_of("model.init_args.actor_critic.init_args"):
            self.actor_critic = actor_critic((3, *frame_size), num_actions)
        self.world_model = None
        self.context = self.actor_critic.burn_in + 1
        self.segment_length = self.context + self.actor_critic.horizon
        epsilon = schedule.collection.epsilon
        self.phases = [RealSegmentPhase(self.actor_critic, recent_frames, epsilon, schedule.actor_critic)]

    def make_policy(self, graph_pool: Any = None) -> Policy:
        """See `Learner.make_policy`."""
        return FramePolicy(self.actor_critic, graph_pool)

    def describe(self, epochs: int) -> dict[str, str]:
        """See `Learner.describe`."""
        lines = {"parameters": f"actor-critic {format_millions(self.actor_critic)} (with target network)"}
        if epochs > 0:
            lines[f"{epochs} epochs"] = f"{self.schedule.collection.frames_until(epochs):,} frames collected"
        return lines
