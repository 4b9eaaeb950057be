"""A token world model that launches each imagined step as one CUDA graph."""

from __future__ import annotations

import torch
from torch import Tensor

from delta_iris.acceleration.cuda_graph import CudaGraphed
from delta_iris.world_models.tokens.base_dynamics import BaseDynamics
from delta_iris.world_models.tokens.dynamics_network import DynamicsCache
from delta_iris.world_models.tokens.token_world_model import TokenState, TokenWorldModel
from delta_iris.world_models.tokens.tokenizer import Tokenizer

__all__ = ["CapturedTokenWorldModel"]

Outcome = tuple[Tensor, Tensor, Tensor, Tensor]


class CapturedTokenWorldModel(TokenWorldModel):
    """Captures one imagined step, with all its tokens, instead of a whole rollout.

    With tens of tokens a frame, a graph of a rollout would have a hundred thousand kernels. A step is captured once and
    launched at every position: the caches are in static memory, and their position is on the device.

    States of the same batch size share their memory, so that only the one begun last can be stepped. On other devices
    than CUDA's a step runs as it is.

    Args:
        tokenizer: see `TokenWorldModel`; its decoder must need no cache.
        dynamics: see `TokenWorldModel`.
        frame_size: see `TokenWorldModel`.
        context: see `TokenWorldModel`.

    Raises:
        ValueError: if an argument does not fit.
    """

    def __init__(
        self, tokenizer: Tokenizer, dynamics: BaseDynamics, frame_size: tuple[int, int], context: int = 6
    ) -> None:
        super().__init__(tokenizer, dynamics, frame_size, context)
        if tokenizer.make_decoder_cache(1) is not None:
            raise ValueError(f"{type(tokenizer).__name__} decodes with a cache, whose position is not on the device")
        # By batch size.
        self._caches: dict[int, tuple[DynamicsCache, Tensor]] = {}
        self._graphs: dict[int, CudaGraphed[..., Outcome]] = {}

    def release_graphs(self) -> None:
        """Free all graphs and caches. States from before cannot be stepped any more."""
        for graph in self._graphs.values():
            graph.reset()
        self._graphs.clear()
        self._caches.clear()

    def prefetch(self, state: TokenState) -> None:
        """See `WorldModel.prefetch`: nothing, because the graph contains all work of a step."""

    def _fill_dynamics(self, past: Tensor, actions: Tensor, tokens: Tensor, mask: Tensor) -> DynamicsCache:
        batch, network = len(actions), self.dynamics.network
        if batch not in self._caches:
            cache = network.make_cache(batch, device_position=True)
            self._caches[batch] = cache, torch.zeros_like(cache.position_embeddings[:1]).expand(batch, 1, -1).clone()
        cache, deferred = self._caches[batch]
        network.prefill(past, actions, tokens, mask, cache)
        if cache.deferred_token is not None:
            deferred.copy_(cache.deferred_token)
        return cache

    def _imagine(self, state: TokenState, action: Tensor, latents: Tensor | None) -> Outcome:
        if action.device.type != "cuda":
            return self._step(state.frames[-1], action, latents)
        batch = len(action)
        if batch not in self._graphs:
            cache, deferred = self._caches[batch]
            assert isinstance(cache.kv.position, Tensor)
            mutated = [cache.kv.position, deferred]
            pool = torch.cuda.graph_pool_handle()
            self._graphs[batch] = CudaGraphed(self._step, lambda: mutated, pool)
        arguments = (state.frames[-1], action) if latents is None else (state.frames[-1], action, latents)
        frame, tokens, reward_logits, end_logits = self._graphs[batch](*arguments)
        # The next launch overwrites them.
        return frame.clone(), tokens.clone(), reward_logits.clone(), end_logits.clone()

    def _step(self, frame: Tensor, action: Tensor, latents: Tensor | None = None) -> Outcome:
        """What is captured: reads and writes the static caches of this batch size."""
        cache, deferred = self._caches[len(action)]
        cache.deferred_token = deferred
        state = TokenState([frame], dynamics=cache)
        TokenWorldModel.prefetch(self, state)
        outcome = TokenWorldModel._imagine(self, state, action, latents)
        assert cache.deferred_token is not None
        deferred.copy_(cache.deferred_token)
        return outcome
