"""How an actor-critic that sees frames acts in real environments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from delta_iris.acceleration.cuda_graph import CudaGraphed
from delta_iris.actor_critic.module import ActorCritic
from delta_iris.actor_critic.network import Memory
from delta_iris.data.segment import SegmentBatch, to_float

__all__ = ["FramePolicy"]


class FramePolicy:
    """A policy whose memory is the actor-critic's LSTM. It implements `delta_iris.data.collector.Policy`.

    Args:
        actor_critic: sees frames (3, H, W).
        graph_pool: memory pool of CUDA graphs, to launch each action as one graph; None to run it eagerly.
        perceive: turns real frames (B, T, 3, H, W), floats in [0, 1], into those that the actor-critic sees; None where
            it sees them as they are.
    """

    def __init__(
        self, actor_critic: ActorCritic, graph_pool: Any = None, perceive: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.actor_critic, self.burn_in = actor_critic, actor_critic.burn_in
        self.perceive = perceive or (lambda frames: frames)
        self._launch: Callable[[Tensor, Memory], tuple[Tensor, Memory]] = self._perceive_and_act
        if graph_pool is not None:
            self._launch = CudaGraphed(self._perceive_and_act, list, graph_pool)

    @property
    def device(self) -> torch.device:
        """Where the actor-critic is."""
        return self.actor_critic.device

    def initial_memory(self, batch: int) -> Memory:
        """The memory of `batch` episodes before their first frame."""
        return self.actor_critic.network.initial_memory(batch)

    def observe(self, segment: SegmentBatch) -> Memory:
        """The memory after the frames of a segment, which may begin with padding."""
        return self.actor_critic.network.burn_in(self.perceive(to_float(segment.frames)), segment.mask)

    def act(self, frames: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Sample an action for each frame.

        Args:
            frames: (B, 3, H, W) floats in [0, 1].
            memory: before them.

        Returns:
            actions (B,) int64, and the memory after them.
        """
        return self._launch(frames, memory)

    def with_actions(self, memory: Memory, actions: Tensor) -> Memory:
        """The memory, which does not depend on the actions taken."""
        return memory

    def reset_where(self, memory: Memory, ended: Tensor) -> Memory:
        """Clear the memory of the episodes that `ended` (B,) bool."""
        keep = (~ended).view(1, -1, 1)
        return memory[0] * keep, memory[1] * keep

    def _perceive_and_act(self, frames: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        return self.actor_critic.act(self.perceive(frames.unsqueeze(1)).squeeze(1), memory)
