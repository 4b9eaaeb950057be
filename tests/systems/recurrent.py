"""A system that is nothing like Δ-IRIS: a recurrent world model whose actor-critic sees features, not frames.

It proves that the interfaces are those of world models, not of tokens: only this file knows that it exists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gymnasium as gym
import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delta_iris.actor_critic.module import ActorCritic
from delta_iris.data.collector import Policy
from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.imagination.policy import WorldModelPolicy
from delta_iris.nn.loss import LossOutput
from delta_iris.nn.optim import OptimizerConfig, make_optimizer
from delta_iris.nn.sampling import sample_categorical
from delta_iris.nn.statistics import WeightedMean, masked_mean
from delta_iris.training.learner import Learner
from delta_iris.training.phase import Phase, Sampling
from delta_iris.training.schedule import PhaseSchedule, Schedule
from delta_iris.training.systems.imagination_phase import ImaginationPhase
from delta_iris.world_models.base import Evaluation, Prediction, WorldModel

LATENTS, CLASSES = 8, 8


class GRUState(NamedTuple):
    """The state of B episodes.

    Attributes:
        hidden: (B, D) the GRU's.
        latent: (B, LATENTS · CLASSES) one-hot categoricals.
    """

    hidden: Tensor
    latent: Tensor


class GRUWorldModel(L.LightningModule, WorldModel[GRUState]):
    """h' = GRU(h, z, a); z from h and the frame (posterior) or from h alone (prior); heads for frame, reward and end.

    Args:
        frame_size: height and width of a frame, in pixels.
        num_actions: number of actions.
        dim: width of the GRU.
    """

    def __init__(self, frame_size: tuple[int, int], num_actions: int, dim: int = 128) -> None:
        super().__init__()
        self.frame_size, self.num_actions, self.dim = frame_size, num_actions, dim
        self.optimizer_config = OptimizerConfig(learning_rate=2e-3, weight_decay=0.0, max_grad_norm=10.0)
        pixels, stoch = 3 * frame_size[0] * frame_size[1], LATENTS * CLASSES
        self.actor_input_space = gym.spaces.Box(-np.inf, np.inf, (dim + stoch,), np.float32)
        self.encoder = nn.Sequential(nn.Linear(pixels, dim), nn.SiLU())
        self.cell = nn.GRUCell(stoch + num_actions, dim)
        self.prior = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, stoch))
        self.posterior = nn.Sequential(nn.Linear(2 * dim, dim), nn.SiLU(), nn.Linear(dim, stoch))
        self.decoder = nn.Sequential(nn.Linear(dim + stoch, dim), nn.SiLU(), nn.Linear(dim, pixels))
        self.reward = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, 1))
        self.end = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, 2))

    # --- the interface ---

    def initial_state(self, batch: int) -> GRUState:
        zeros = torch.zeros(batch, self.dim, device=self.device)
        return GRUState(zeros, torch.zeros(batch, LATENTS * CLASSES, device=self.device))

    @torch.no_grad()
    def observe(
        self, state: GRUState, segment: SegmentBatch, last_action: Tensor | None = None
    ) -> tuple[GRUState, Tensor]:
        states, _, _ = self.unroll(state, segment, last_action)
        return states[-1], torch.stack([self.actor_input(each) for each in states], 1)

    def actor_input(self, state: GRUState) -> Tensor:
        return torch.cat(state, -1)

    @torch.no_grad()
    def step(self, state: GRUState, action: Tensor, latents: Tensor | None = None) -> tuple[GRUState, Prediction]:
        hidden = self._advance(state, F.one_hot(action, self.num_actions).float())
        latent = self._sample(self.prior(hidden)) if latents is None else latents
        return GRUState(hidden, latent), Prediction(self.reward(hidden).squeeze(-1), self.end(hidden))

    @torch.no_grad()
    def decode(self, state: GRUState) -> Tensor:
        return self._frames(state).clamp(0, 1)

    @torch.no_grad()
    def reconstruct(self, segment: SegmentBatch) -> Tensor:
        states, _, _ = self.unroll(self.initial_state(len(segment.mask)), segment)
        return torch.stack([self._frames(state) for state in states[1:]], 1)

    @torch.no_grad()
    def evaluate(self, segment: SegmentBatch) -> Evaluation:
        errors = self._errors(segment)
        return Evaluation({name: WeightedMean.of(value, segment.mask) for name, value in errors.items()})

    # --- learning ---

    def unroll(
        self, state: GRUState, segment: SegmentBatch, last_action: Tensor | None = None
    ) -> tuple[list[GRUState], list[Tensor], list[Tensor]]:
        """States, prior logits and posterior logits at every frame, with gradients."""
        embedded = self.encoder(to_float(segment.frames).flatten(2))
        actions = F.one_hot(segment.actions, self.num_actions).float()
        before = torch.zeros_like(actions[:, 0])
        if last_action is not None:
            before = F.one_hot(last_action, self.num_actions).float()
        states, priors, posteriors = [], [], []
        for t in range(segment.mask.shape[1]):
            fresh = (segment.is_first[:, t] | ~segment.mask[:, t]).unsqueeze(-1)
            state = GRUState(*(torch.where(fresh, 0.0, part) for part in state))
            hidden = self._advance(state, torch.where(fresh, 0.0, before))
            priors.append(self.prior(hidden))
            posteriors.append(self.posterior(torch.cat([hidden, embedded[:, t]], -1)))
            state = GRUState(hidden, self._sample(posteriors[-1]))
            states.append(state)
            before = actions[:, t]
        return states, priors, posteriors

    def _errors(self, segment: SegmentBatch) -> dict[str, Tensor]:
        """Errors at every step, (B, T) each."""
        states, priors, posteriors = self.unroll(self.initial_state(len(segment.mask)), segment)
        actions = F.one_hot(segment.actions, self.num_actions).float()
        following = torch.stack([self._advance(state, actions[:, t]) for t, state in enumerate(states)], 1)
        frames = torch.stack([self._frames(state) for state in states], 1)
        post, prior = (_log_probs(torch.stack(logits, 1)) for logits in (posteriors, priors))
        ends = F.cross_entropy(self.end(following).flatten(0, 1), segment.terminated.flatten(), reduction="none")
        return {
            "reconstruction_l2": (frames - to_float(segment.frames)).square().mean((2, 3, 4)),
            "reward_loss": (self.reward(following).squeeze(-1) - segment.rewards).square(),
            "end_loss": ends.view_as(segment.rewards),
            "dynamics_kl": _kl(post.detach(), prior),
            "representation_kl": _kl(post, prior.detach()),
        }

    def loss(self, segment: SegmentBatch, batch: SegmentBatch | None = None) -> LossOutput:
        mask, batch_mask = segment.mask, None if batch is None else batch.mask
        terms = {name: masked_mean(value, mask, batch_mask) for name, value in self._errors(segment).items()}
        weights = {"reconstruction_l2": 100.0, "representation_kl": 0.1}
        total = torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
        return LossOutput(total, {name: term.detach() for name, term in terms.items()})

    def configure_optimizers(self) -> Any:
        optimizer, schedule = make_optimizer(self, self.optimizer_config)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _advance(self, state: GRUState, action: Tensor) -> Tensor:
        return self.cell(torch.cat([state.latent, action], -1), state.hidden)

    def _frames(self, state: GRUState) -> Tensor:
        return self.decoder(self.actor_input(state)).unflatten(-1, (3, *self.frame_size))

    def _sample(self, logits: Tensor) -> Tensor:
        """Straight-through one-hot samples: (B, LATENTS · CLASSES)."""
        logits = logits.unflatten(-1, (LATENTS, CLASSES))
        drawn = F.one_hot(sample_categorical(logits), CLASSES).to(logits.dtype)
        probabilities = logits.softmax(-1)
        return (drawn + probabilities - probabilities.detach()).flatten(-2)


def _log_probs(logits: Tensor) -> Tensor:
    return logits.unflatten(-1, (LATENTS, CLASSES)).log_softmax(-1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL divergence of log-probabilities (…, LATENTS, CLASSES), summed over the latents, with a free nat."""
    return (p.exp() * (p - q)).sum((-1, -2)).clamp(min=0.5)


@dataclass(frozen=True)
class RecurrentSchedule(Schedule):
    """An epoch: collect, then train world model and actor-critic.

    Args:
        world_model: how much the world model trains.
        actor_critic: how much the actor-critic trains.
    """

    world_model: PhaseSchedule = field(default_factory=PhaseSchedule)
    actor_critic: PhaseSchedule = field(default_factory=PhaseSchedule)


class RecurrentSystem(Learner):
    """A recurrent world model and an actor-critic on its features.

    Args:
        frame_size: height and width of a frame, in pixels.
        num_actions: number of actions.
        actor_critic: the actor-critic.
        dim: width of the GRU.
        segment_length: steps of the segments that the world model trains on.
        schedule: how much is collected and trained in an epoch.
        compile: whether to compile training steps on a GPU.
        max_skipped_steps: number of optimizer steps in a row that may be skipped.
    """

    world_model: GRUWorldModel

    def __init__(
        self,
        frame_size: tuple[int, int],
        num_actions: int,
        actor_critic: Callable[[tuple[int, ...], int], ActorCritic],
        dim: int = 128,
        segment_length: int = 12,
        schedule: RecurrentSchedule = RecurrentSchedule(),
        compile: bool = True,
        max_skipped_steps: int = 20,
    ) -> None:
        super().__init__(schedule, compile, max_skipped_steps)
        self.world_model = GRUWorldModel(frame_size, num_actions, dim)
        shape = self.world_model.actor_input_space.shape
        assert shape is not None
        self.actor_critic = actor_critic(shape, num_actions)
        self.segment_length, self.context = segment_length, self.actor_critic.burn_in + 1
        segments = Sampling(segment_length, segment_length - 1, segment_length - 1, 0.0)
        starts = Sampling(self.context, self.actor_critic.burn_in, 0, 0.0)
        self.phases = [
            Phase("world_model", "world model", self.world_model, segments, schedule.world_model),
            ImaginationPhase(self.actor_critic, [self.world_model], lambda model: model, starts, schedule.actor_critic),
        ]

    def make_policy(self, graph_pool: Any = None) -> Policy:
        return WorldModelPolicy(self.world_model, self.actor_critic)

    def describe(self, epochs: int) -> dict[str, str]:
        return {"system": "a recurrent world model"}
