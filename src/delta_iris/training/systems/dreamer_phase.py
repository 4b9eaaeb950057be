"""The phase that trains a Dreamer agent: world model, actor and critic on the same batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn

from delta_iris.actor_critic.feature_actor_critic import FeatureActorCritic, Imagined, Replayed
from delta_iris.data.segment import SegmentBatch
from delta_iris.nn.loss import LossOutput
from delta_iris.training.phase import Phase, Sampling
from delta_iris.training.schedule import PhaseSchedule
from delta_iris.training.systems.dreamer_optimizers import JointOptimizer
from delta_iris.world_models.dreamer.arrivals import Arrivals
from delta_iris.world_models.dreamer.rssm import RSSMState
from delta_iris.world_models.dreamer.world_model import DreamerWorldModel, Posterior

__all__ = ["DreamerBatch", "DreamerPhase"]


class DreamerBatch(NamedTuple):
    """B segments of T frames, and all random numbers of their losses, uniform in [0, 1).

    The losses are a function of a batch, so that its parts, on whatever process, add up to the whole.

    Attributes:
        segment: the segments.
        posterior: (B, T, latents) for the latents of the real frames.
        actions: (B, T, H) for the imagined actions.
        prior: (B, T, H, latents) for the imagined latents.
    """

    segment: SegmentBatch
    posterior: Tensor
    actions: Tensor
    prior: Tensor


class _Joint(L.LightningModule):
    """World model and actor-critic as one module, which the phase trains; the system registers both."""

    def __init__(
        self, world_model: DreamerWorldModel, actor_critic: FeatureActorCritic, optimizer: JointOptimizer
    ) -> None:
        super().__init__()
        self.world_model, self.actor_critic, self.joint_optimizer = world_model, actor_critic, optimizer

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What has its own learning rate, by name."""
        return {"world_model": self.world_model, "actor": self.actor_critic.actor, "critic": self.actor_critic.critic}

    def configure_optimizers(self) -> Any:
        """One optimizer for all parts."""
        optimizer, schedule = self.joint_optimizer.make(self.parts)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class DreamerPhase(Phase):
    """Trains a world model on real segments, and an actor-critic on what is imagined from all their frames.

    No gradient passes between the two.

    Args:
        world_model: what is trained.
        actor_critic: what is trained.
        optimizer: how.
        sampling: which segments; they hold no padding.
        schedule: how much.
    """

    def __init__(
        self,
        world_model: DreamerWorldModel,
        actor_critic: FeatureActorCritic,
        optimizer: JointOptimizer,
        sampling: Sampling,
        schedule: PhaseSchedule,
    ) -> None:
        self.joint = _Joint(world_model, actor_critic, optimizer)
        super().__init__("agent", "agent", self.joint, sampling, schedule)
        self.world_model, self.actor_critic, self.optimizer = world_model, actor_critic, optimizer

    @property
    def learning_rate_key(self) -> str:
        """See `Phase.learning_rate_key`."""
        return f"model.init_args.optimizer.init_args.{self.optimizer.learning_rate_key}"

    def learning_rates(self, groups: int) -> list[float]:
        """See `Phase.learning_rates`."""
        return self.optimizer.learning_rates(groups)

    def clip_gradients(self) -> Tensor:
        """See `Phase.clip_gradients`."""
        return self.optimizer.clip_gradients(self.joint.parts)

    def prepare(self, segment: SegmentBatch) -> DreamerBatch:
        """Draw the random numbers."""
        shape, latents, horizon = segment.mask.shape, self.world_model.rssm.latents, self.actor_critic.horizon
        sizes = ((*shape, latents), (*shape, horizon), (*shape, horizon, latents))
        return DreamerBatch(segment, *(torch.rand(size, device=segment.mask.device) for size in sizes))

    def loss(self, part: DreamerBatch, batch: DreamerBatch | None) -> LossOutput:
        """The losses of world model, actor and critic; see `Phase.loss`."""
        segment = part.segment
        state = self.world_model.initial_state(len(segment.mask))
        posterior = self.world_model.filter(state, segment, part.posterior)
        model_loss, metrics = self.world_model.loss(posterior, segment, None if batch is None else batch.segment)
        arrivals = Arrivals.of(segment)
        replayed = Replayed(posterior.features.detach(), arrivals.rewards, arrivals.terminal, arrivals.last)
        share = 1.0 if batch is None else len(segment.mask) / len(batch.segment.mask)
        learned = self.actor_critic.loss(self.imagine(posterior, ~arrivals.terminal, part), replayed, share)
        metrics |= {"world_model_loss": model_loss.detach()} | learned.metrics
        return LossOutput(model_loss + learned.loss, metrics, learned.aux)

    @torch.no_grad()
    def imagine(self, posterior: Posterior, alive: Tensor, batch: DreamerBatch) -> Imagined:
        """Let the actor act in the world model, from the states of all real frames.

        Args:
            posterior: the states.
            alive: (B, T) bool, false where a state is an episode's end.
            batch: with the random numbers.
        """
        model, actor_critic = self.world_model, self.actor_critic
        state = RSSMState(posterior.deter.detach().flatten(0, 1), posterior.stoch.detach().flatten(0, 1))
        for_actions, for_latents = batch.actions.flatten(0, 1), batch.prior.flatten(0, 1)
        features, actions = [model.actor_input(state)], []
        for step in range(actor_critic.horizon):
            actions.append(actor_critic.sample(features[-1], for_actions[:, step]))
            state = model.rssm.imagine_step(state, model.one_hot(actions[-1]), for_latents[:, step])
            features.append(model.actor_input(state))
        states = torch.stack(features, 1)
        rewards, continues = model.predict(states[:, 1:])
        return Imagined(states, torch.stack(actions, 1), rewards, continues, alive.flatten())

    def after_backward(self, aux: list[Any], skip: Tensor | None = None) -> dict[str, Tensor]:
        """Move the normalizer of the returns."""
        return self.actor_critic.after_backward(aux, skip)

    def after_batch(self, skip: Tensor | None = None) -> None:
        """Move the slow critic."""
        self.actor_critic.update_slow_critic(skip)
