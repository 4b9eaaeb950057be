"""The phase that trains an actor-critic on recorded steps."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from delta_iris.actor_critic.batch import ActorCriticBatch, Rollout
from delta_iris.actor_critic.module import ActorCritic
from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.errors import UserError
from delta_iris.training.phase import Sampling, join_batches, split_batch
from delta_iris.training.schedule import PhaseSchedule
from delta_iris.training.systems.actor_critic_phase import ActorCriticPhase

__all__ = ["RealSegmentPhase"]


class RealSegmentPhase(ActorCriticPhase):
    """Trains an actor-critic on real segments of burn-in, horizon and one bootstrapping frame.

    PPO compares the policy with the one that took the actions. The replay does not hold their probabilities, so they
    are computed when a batch is prepared, as if the present policy had collected. This holds for the first batch of an
    epoch, except for what an earlier policy collected: the first steps of episodes that were under way when the epoch
    began, or all of them in an epoch that collects nothing.

    Args:
        actor_critic: what is trained.
        recent_frames: it trains on the latest episodes that together hold this many frames.
        epsilon: probability of a random action in the collection of these frames.
        schedule: how much it trains.
        perceive: turns real frames (B, T, 3, H, W), floats in [0, 1], into those that the actor-critic sees; None where
            it sees them as they are.
        name: see `Phase`.
        label: see `Phase`.

    Raises:
        UserError: if PPO would train on more than one batch in an epoch.
    """

    def __init__(
        self,
        actor_critic: ActorCritic,
        recent_frames: int,
        epsilon: float,
        schedule: PhaseSchedule,
        perceive: Callable[[Tensor], Tensor] | None = None,
        name: str = "actor_critic",
        label: str = "actor-critic",
    ) -> None:
        for key, steps in (("steps", schedule.steps), ("first_epoch_steps", schedule.first_epoch_steps or 0)):
            if actor_critic.is_multi_epoch and steps > 1:
                raise UserError(
                    f"model.init_args.schedule.{name}.{key} is {steps}, and PPO trains on one batch of real segments "
                    "an epoch, because the policy that has trained on it is no longer the one that took the actions: "
                    f"set {key} to 1, and a larger batch_size (with micro_batch_size where memory is short)"
                )
        # All steps but those of the burn-in and the bootstrapping frame are real.
        length = actor_critic.burn_in + actor_critic.horizon + 1
        sampling = Sampling(length, actor_critic.burn_in, 1, 0.0, recent_frames)
        super().__init__(actor_critic, sampling, schedule, name, label)
        self._epsilon, self._perceive = epsilon, perceive or (lambda frames: frames)

    def prepare(self, segment: SegmentBatch) -> ActorCriticBatch:
        """Compute the targets of the recorded trajectories."""
        return join_batches([self._targets(part) for part in split_batch(segment, self.schedule.micro_batch_size)])

    def _targets(self, segment: SegmentBatch) -> ActorCriticBatch:
        burn_in, horizon = self.actor_critic.burn_in, self.actor_critic.horizon
        acted_on = segment.slice_time(burn_in, burn_in + horizon)
        rollout = Rollout(
            self._perceive(to_float(segment.frames)),
            segment.mask[:, :burn_in],
            acted_on.actions,
            acted_on.rewards,
            acted_on.terminated,
        )
        batch = self.actor_critic.compute_targets(rollout, self._epsilon)
        # The frame after a time limit is not stored, so that such a segment has nothing to bootstrap from.
        complete = segment.mask[:, -1:] | (acted_on.terminated[:, -1:] == 1)
        return batch._replace(alive=batch.alive & complete)
