"""How an agent acts in real environments if its actor-critic sees a world model's state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from delta_iris.acceleration.cuda_graph import CudaGraphed
from delta_iris.actor_critic.network import Memory
from delta_iris.data.segment import SegmentBatch
from delta_iris.world_models.base import WorldModel

__all__ = ["Actor", "FilterMemory", "WorldModelPolicy"]


class Actor(Protocol):
    """What acts on a world model's states: any actor-critic.

    Attributes:
        burn_in: states before the present one that its memory is warmed up on.
    """

    burn_in: int

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def initial_memory(self, batch: int) -> Memory:
        """The memory before the first state of `batch` episodes."""

    def warm_up(self, inputs: Tensor, mask: Tensor) -> Memory:
        """The memory after states (B, T, *input_shape), of which those where `mask` (B, T) is false do not count."""

    def act(self, inputs: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Actions (B,) int64 for states (B, *input_shape), and the memory after them."""

    def evaluate(self, inputs: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Memory]:
        """Logits of the actions (B, A) and values (B,) of states (B, *input_shape), and the memory after them."""


class FilterMemory(NamedTuple):
    """What a `WorldModelPolicy` remembers.

    Attributes:
        state: the world model's, a tuple of tensors with the batch first.
        last_action: (B,) int64.
        is_first: (B,) bool, true where the next frame starts an episode.
        actor: the actor-critic's memory.
    """

    state: Any
    last_action: Tensor
    is_first: Tensor
    actor: Memory


class WorldModelPolicy:
    """Filters each real frame through the world model, and acts on its state.

    It implements `delta_iris.data.collector.Policy` for world models whose states reset themselves where a segment's
    `is_first` is true.

    Args:
        world_model: filters the frames.
        actor_critic: sees the world model's `actor_input`.
        graph_pool: memory pool of CUDA graphs, to launch each action as one graph; None to run it eagerly. The world
            model's state must then be a tuple of tensors.
    """

    def __init__(self, world_model: WorldModel[Any], actor_critic: Actor, graph_pool: Any = None) -> None:
        self.world_model, self.actor_critic, self.burn_in = world_model, actor_critic, actor_critic.burn_in
        self._act: Callable[[Tensor, FilterMemory], tuple[Tensor, FilterMemory]] = self._act_eagerly
        if graph_pool is not None:
            self._act = CudaGraphed(self._act_eagerly, list, graph_pool)

    @property
    def device(self) -> torch.device:
        """Where the actor-critic is."""
        return self.actor_critic.device

    def initial_memory(self, batch: int) -> FilterMemory:
        """The memory of `batch` episodes before their first frame."""
        zeros = torch.zeros(batch, dtype=torch.int64, device=self.device)
        state = self.world_model.initial_state(batch)
        return FilterMemory(state, zeros, zeros == 0, self.actor_critic.initial_memory(batch))

    @torch.no_grad()
    def observe(self, segment: SegmentBatch) -> FilterMemory:
        """The memory after the steps of a segment, which may begin with padding."""
        memory = self.initial_memory(len(segment.mask))
        if segment.mask.shape[1] == 0:
            return memory
        state, inputs = self.world_model.observe(memory.state, segment)
        actor = self.actor_critic.warm_up(inputs, segment.mask)
        return FilterMemory(state, segment.actions[:, -1], ~segment.mask[:, -1], actor)

    def act(self, frames: Tensor, memory: FilterMemory) -> tuple[Tensor, FilterMemory]:
        """Sample an action for each frame.

        Args:
            frames: (B, 3, H, W) floats in [0, 1].
            memory: before them.

        Returns:
            actions (B,) int64, and the memory after them.
        """
        return self._act(frames, memory)

    @torch.no_grad()
    def _act_eagerly(self, frames: Tensor, memory: FilterMemory) -> tuple[Tensor, FilterMemory]:
        column = memory.last_action.unsqueeze(1)
        real, zeros = torch.ones_like(column, dtype=torch.bool), torch.zeros_like(column)
        segment = SegmentBatch(frames.unsqueeze(1), zeros, zeros.float(), zeros, real, memory.is_first.unsqueeze(1))
        state, inputs = self.world_model.observe(memory.state, segment, memory.last_action)
        action, actor = self.actor_critic.act(inputs[:, -1], memory.actor)
        return action, FilterMemory(state, action, torch.zeros_like(memory.is_first), actor)

    def with_actions(self, memory: FilterMemory, actions: Tensor) -> FilterMemory:
        """The memory after `act` if the actions (B,) int64 are taken instead of those chosen."""
        return memory._replace(last_action=actions)

    def reset_where(self, memory: FilterMemory, ended: Tensor) -> FilterMemory:
        """Clear the memory of the episodes that `ended` (B,) bool."""
        keep = (~ended).view(1, -1, 1)
        actor = memory.actor[0] * keep, memory.actor[1] * keep
        return memory._replace(is_first=memory.is_first | ended, actor=actor)
