"""What all phases have in common that train an actor-critic."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from delta_iris.actor_critic.batch import ActorCriticBatch
from delta_iris.actor_critic.module import ActorCritic
from delta_iris.training.phase import Phase, Sampling
from delta_iris.training.schedule import PhaseSchedule

__all__ = ["ActorCriticFactory", "ActorCriticPhase"]

ActorCriticFactory = Callable[[tuple[int, ...], int], ActorCritic]
"""Makes an actor-critic from the shape of its input and the number of actions."""


class ActorCriticPhase(Phase):
    """Trains an actor-critic on batches with targets; subclasses provide them in `prepare`.

    Args:
        actor_critic: what is trained.
        sampling: which segments it trains on.
        schedule: how much it trains.
        name: see `Phase`.
        label: see `Phase`.
    """

    def __init__(
        self,
        actor_critic: ActorCritic,
        sampling: Sampling,
        schedule: PhaseSchedule,
        name: str = "actor_critic",
        label: str = "actor-critic",
    ) -> None:
        super().__init__(name, label, actor_critic, sampling, schedule)
        self.actor_critic = actor_critic

    @property
    def learning_rate_key(self) -> str:
        """See `Phase.learning_rate_key`: the actor-critic's, whatever the phase is called."""
        return "model.init_args.actor_critic.init_args.optimizer.learning_rate"

    @property
    def batch_multiple(self) -> int:
        """Minibatches must have equal sizes, because a captured step has fixed shapes."""
        return self.actor_critic.num_minibatches

    def minibatches(self, batch: ActorCriticBatch) -> Iterable[ActorCriticBatch]:
        """The batches of PPO's optimizer steps, or the batch itself for REINFORCE."""
        return self.actor_critic.minibatches(batch)

    def after_batch(self, skip: Tensor | None = None) -> None:
        """Move the target network."""
        self.actor_critic.update_target(skip)
