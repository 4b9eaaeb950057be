"""One rollout for imagined and real environments."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from delta_iris.actor_critic.batch import Rollout
from delta_iris.actor_critic.module import ActorCritic
from delta_iris.data.segment import SegmentBatch
from delta_iris.nn.sampling import sample_categorical
from delta_iris.world_models.base import WorldModel

__all__ = ["ImaginedEnv", "TensorEnv", "rollout"]


class TensorEnv(Protocol):
    """B environments stepped together, with all tensors on one device and no automatic reset.

    A rollout in it can be captured as a CUDA graph if nothing in it waits for the device.
    """

    def reset(self, segment: SegmentBatch) -> Tensor:
        """Start from real steps; return the actor inputs at all their frames, (B, T, *input_shape)."""

    def prefetch(self) -> None:
        """Start work of the next step that does not depend on the action."""

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take actions (B,) int64; return the next actor inputs (B, *input_shape), rewards (B,) and ends (B,) int64."""


class ImaginedEnv:
    """A world model as an environment. Whatever follows an end is meaningless.

    Args:
        world_model: filters the real steps, and imagines the following ones.
    """

    def __init__(self, world_model: WorldModel[Any]) -> None:
        self.world_model = world_model
        self.state: Any = None

    def reset(self, segment: SegmentBatch) -> Tensor:
        """See `TensorEnv.reset`; the last frames must be real."""
        model = self.world_model
        self.state, inputs = model.observe(model.initial_state(len(segment.mask)), segment)
        return inputs

    def prefetch(self) -> None:
        """See `TensorEnv.prefetch`."""
        self.world_model.prefetch(self.state)

    @torch.no_grad()
    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `TensorEnv.step`."""
        self.state, prediction = self.world_model.step(self.state, action)
        return self.world_model.actor_input(self.state), prediction.reward, sample_categorical(prediction.end_logits)

    def render(self) -> Tensor:
        """The frames that the present states stand for: (B, 3, H, W) floats in [0, 1]."""
        return self.world_model.decode(self.state)


@torch.no_grad()
def rollout(env: TensorEnv, actor_critic: ActorCritic, segment: SegmentBatch) -> Rollout:
    """Let an actor-critic act for its horizon.

    Args:
        env: where it acts.
        actor_critic: samples the actions.
        segment: B segments of burn_in + 1 real steps to start from; the action of the last step is not used.
    """
    inputs = env.reset(segment)
    burn_in_mask = segment.mask[:, :-1]
    memory = actor_critic.network.burn_in(inputs[:, :-1], burn_in_mask)
    current = inputs[:, -1].contiguous()  # Like imagined frames: each layout in memory would be compiled.
    following, actions, rewards, ends = [], [], [], []
    for _ in range(actor_critic.horizon):
        # The world model's encoders and the actor's read the same observation at the same time.
        env.prefetch()
        action, memory = actor_critic.act(current, memory)
        current, reward, end = env.step(action)
        following.append(current)
        actions.append(action)
        rewards.append(reward)
        ends.append(end)
    return Rollout(
        torch.cat([inputs, torch.stack(following, 1)], 1),
        burn_in_mask,
        torch.stack(actions, 1),
        torch.stack(rewards, 1),
        torch.stack(ends, 1),
    )
