"""The phase that trains an actor-critic on recorded steps."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from delta_iris.actor_critic.batch import ActorCriticBatch, Rollout
from delta_iris.actor_critic.module import ActorCritic
from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.training.phase import Sampling
from delta_iris.training.schedule import PhaseSchedule
from delta_iris.training.systems.actor_critic_phase import ActorCriticPhase

__all__ = ["RealSegmentPhase"]


class RealSegmentPhase(ActorCriticPhase):
    """Trains an actor-critic on real segments of burn-in, horizon and one bootstrapping frame.

    Args:
        actor_critic: what is trained.
        recent_frames: it trains on the latest episodes that together hold this many frames.
        schedule: how much it trains.
        perceive: turns real frames (B, T, 3, H, W), floats in [0, 1], into those that the actor-critic sees; None where
            it sees them as they are.
        name: see `Phase`.
        label: see `Phase`.
    """

    def __init__(
        self,
        actor_critic: ActorCritic,
        recent_frames: int,
        schedule: PhaseSchedule,
        perceive: Callable[[Tensor], Tensor] | None = None,
        name: str = "actor_critic",
        label: str = "actor-critic",
    ) -> None:
        # All steps but those of the burn-in and the bootstrapping frame are real.
        length = actor_critic.burn_in + actor_critic.horizon + 1
        sampling = Sampling(length, actor_critic.burn_in, 1, 0.0, recent_frames)
        super().__init__(actor_critic, sampling, schedule, name, label)
        self._perceive = perceive or (lambda frames: frames)

    def prepare(self, segment: SegmentBatch) -> ActorCriticBatch:
        """Compute the targets of the recorded trajectories."""
        burn_in, horizon = self.actor_critic.burn_in, self.actor_critic.horizon
        acted_on = segment.slice_time(burn_in, burn_in + horizon)
        rollout = Rollout(
            self._perceive(to_float(segment.frames)),
            segment.mask[:, :burn_in],
            acted_on.actions,
            acted_on.rewards,
            acted_on.terminated,
        )
        batch = self.actor_critic.compute_targets(rollout)
        # The frame after a time limit is not stored, so that such a segment has nothing to bootstrap from.
        complete = segment.mask[:, -1:] | (acted_on.terminated[:, -1:] == 1)
        return batch._replace(alive=batch.alive & complete)
