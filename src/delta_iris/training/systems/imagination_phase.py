"""The phase that trains an actor-critic in imagination."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from delta_iris.acceleration.inference_copy import InferenceCopy
from delta_iris.actor_critic.batch import ActorCriticBatch
from delta_iris.actor_critic.module import ActorCritic
from delta_iris.data.segment import SegmentBatch
from delta_iris.imagination.rollout import ImaginedEnv, rollout
from delta_iris.training.phase import Sampling, join_batches, split_batch
from delta_iris.training.schedule import PhaseSchedule
from delta_iris.training.systems.actor_critic_phase import ActorCriticPhase
from delta_iris.world_models.base import WorldModel
from delta_iris.world_models.tokens.captured_world_model import CapturedTokenWorldModel

__all__ = ["ImaginationPhase"]


class ImaginationPhase(ActorCriticPhase):
    """Trains an actor-critic on trajectories that a world model imagines from real segments.

    Args:
        actor_critic: what is trained.
        modules: the modules of the world model.
        make_world_model: makes the world model of these modules, or of copies of them.
        sampling: which segments imagination starts from.
        schedule: how much it trains.
        make_captured: makes, of the same modules, a world model that captures its own steps as CUDA graphs; None to
            capture each rollout as a whole.
    """

    out_of_memory_hint = " (or its batch_size: the whole batch is imagined at once)"

    def __init__(
        self,
        actor_critic: ActorCritic,
        modules: list[nn.Module],
        make_world_model: Callable[..., WorldModel[Any]],
        sampling: Sampling,
        schedule: PhaseSchedule,
        make_captured: Callable[..., CapturedTokenWorldModel] | None = None,
    ) -> None:
        super().__init__(actor_critic, sampling, schedule)
        self._modules, self._make_accelerated = modules, make_captured or make_world_model
        self._world_model = make_world_model(*modules)
        self._captures_steps = make_captured is not None
        self._copies: list[InferenceCopy[nn.Module]] = []

    def on_start(self) -> None:
        """Copy the world model's present weights to the copies that imagine."""
        for copied in self._copies:
            copied.sync()

    def on_accelerate(self, dtype: torch.dtype) -> None:
        """Imagine with copies in autocast's type, which would otherwise cast the weights at every step."""
        if dtype != torch.float32:
            self._copies = [InferenceCopy(module, dtype) for module in self._modules]
        modules = [copied.module for copied in self._copies] or self._modules
        self._world_model = self._make_accelerated(*modules)

    @property
    def captures_prepare(self) -> bool:
        """Whether a rollout is captured as a whole."""
        return not self._captures_steps

    def release_graphs(self) -> None:
        """See `Phase.release_graphs`."""
        if isinstance(self._world_model, CapturedTokenWorldModel):
            self._world_model.release_graphs()

    def prepare(self, segment: SegmentBatch) -> ActorCriticBatch:
        """Imagine trajectories from the segments, and compute their targets."""
        imagined = rollout(ImaginedEnv(self._world_model), self.actor_critic, segment)
        parts = split_batch(imagined, self.schedule.micro_batch_size)
        batches = [self.actor_critic.compute_targets(part) for part in parts]
        return join_batches(batches)
