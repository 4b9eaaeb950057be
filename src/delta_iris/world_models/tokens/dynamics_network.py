"""GPT-style networks of token dynamics: what all orders of tokens share, and how they are stepped (paper §2.2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from delta_iris.acceleration.compile import compile_region
from delta_iris.nn.kv_cache import KVCache
from delta_iris.nn.transformer import EMBEDDING_STD, Transformer, TransformerConfig, init_weights

__all__ = ["DynamicsCache", "DynamicsLogits", "DynamicsNetwork"]


class DynamicsLogits(NamedTuple):
    """Logits at every step of a segment.

    Attributes:
        tokens: (B, T or T − 1, K, N) of the tokens that each step leads to; the last step's may be left out, because
            they have no target.
        rewards: (B, T, bins) of the reward's bins.
        ends: (B, T, 2) that the episode continues and that it terminates.
    """

    tokens: Tensor
    rewards: Tensor
    ends: Tensor


@dataclass
class DynamicsCache:
    """What stepping remembers.

    Attributes:
        kv: keys and values of every layer.
        position_embeddings: (T · block, d) of all tokens of a full segment.
        deferred_token: (B, 1, d) embedding of a frame's last token. It is written together with the action, which saves
            a pass.
    """

    kv: KVCache
    position_embeddings: Tensor
    deferred_token: Tensor | None = None

    def restart(self, position_embeddings: Tensor) -> None:
        """Forget everything, in place.

        Args:
            position_embeddings: the present ones.
        """
        self.kv.valid.fill_(True)
        self.kv.rewind()
        self.position_embeddings.copy_(position_embeddings)
        self.deferred_token = None


def _head(dim: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, outputs))


class DynamicsNetwork(nn.Module, ABC):
    """A causal Transformer over blocks of an action, K tokens, and possibly a vector of the frame.

    Subclasses choose the order within a block. The action is followed by the tokens that it leads to, in its own block
    or in the next. At the action the network predicts reward, end and the first token; at each token the next.

    Args:
        frame: encodes frames as vectors of the Transformer's width; None if blocks have no such vector.
        block_size: tokens of a block.
        num_actions: number of actions A.
        tokens_per_frame: K.
        codebook_size: N.
        max_blocks: longest segment, in blocks.
        transformer: sizes of the Transformer.
        initial_reward_logits: (bins,) logits of the reward's distribution before training.
    """

    context_frames: ClassVar[int]
    """First frames of a segment that have no tokens; equal to the tokenizer's."""

    def __init__(
        self,
        frame: nn.Module | None,
        block_size: int,
        num_actions: int,
        tokens_per_frame: int,
        codebook_size: int,
        max_blocks: int,
        transformer: TransformerConfig,
        initial_reward_logits: Tensor,
    ) -> None:
        super().__init__()
        dim = transformer.dim
        self.tokens_per_frame, self.max_blocks = tokens_per_frame, max_blocks
        self.block_size = block_size
        self.frame = frame
        self.action = nn.Embedding(num_actions, dim)
        self.token = nn.Embedding(codebook_size, dim)
        self.block_position_embedding = nn.Parameter(torch.randn(self.block_size, dim) * EMBEDDING_STD)
        self.time_embedding = nn.Parameter(torch.randn(max_blocks, 1, dim) * EMBEDDING_STD)
        self.transformer = Transformer(dim, transformer.layers, transformer.heads, dropout=transformer.dropout)
        self.norm = nn.LayerNorm(dim)
        self.token_head = _head(dim, codebook_size)
        self.reward_head = _head(dim, len(initial_reward_logits))
        self.end_head = _head(dim, 2)
        for module in (self.action, self.token, self.token_head):
            module.apply(init_weights)
        # Rewards start at zero (DreamerV3), so that the agent does not learn from the noise of an untrained head.
        last = self.reward_head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(initial_reward_logits)

    @abstractmethod
    def forward(self, frames: Tensor, actions: Tensor, tokens: Tensor, mask: Tensor) -> DynamicsLogits:
        """Predict every step of a segment from what came before it.

        Args:
            frames: (B, T, 3, H, W) uint8, or floats in [0, 1].
            actions: (B, T) int64.
            tokens: (B, T − context_frames, K) int64, as the tokenizer gives them.
            mask: (B, T) bool, false for padding.

        Returns:
            logits at each step. Token k depends on the step's frame, its action and the tokens before k; reward and end
            depend on its frame and action.
        """

    @abstractmethod
    def embed(self, frames: Tensor, actions: Tensor, tokens: Tensor) -> Tensor:
        """Embed all that is known before the action at frame T, the first one that is not acted on yet.

        Args:
            frames: (B, T, 3, H, W) floats in [0, 1].
            actions: (B, T) int64.
            tokens: (B, T + 1 − context_frames, K) int64, up to those of frame T.

        Returns:
            (B, n, d), with positions.
        """

    def encode_frame(self, frames: Tensor) -> Tensor | None:
        """Encode frames (B, 3, H, W) as vectors (B, d), if `predict_first_token` needs that of them."""
        return None if self.frame is None else self.frame(frames)

    def make_cache(self, batch: int, device_position: bool = False) -> DynamicsCache:
        """An empty cache.

        Args:
            batch: number of sequences.
            device_position: see `KVCache`.
        """
        valid = torch.ones(batch, self.max_blocks, dtype=torch.bool, device=self.time_embedding.device)
        kv = self.transformer.make_cache(valid, self.block_size, "causal", device_position)
        return DynamicsCache(kv, self._position_embeddings())

    def prefill(
        self, frames: Tensor, actions: Tensor, tokens: Tensor, mask: Tensor, cache: DynamicsCache | None = None
    ) -> DynamicsCache:
        """Fill a cache with all that is known before an action.

        Args:
            frames: see `embed`; T may be zero.
            actions: see `embed`.
            tokens: see `embed`.
            mask: (B, T) bool, false for padding.
            cache: to be filled, instead of a new one; what it held is forgotten.
        """
        if cache is None:
            cache = self.make_cache(len(actions))
        else:
            cache.restart(self._position_embeddings())
        cache.kv.valid[:, : actions.shape[1]] = mask
        if tokens.shape[1] > 0:
            x = self.embed(frames, actions, tokens)
            cache.deferred_token = x[:, -1:]
            self.transformer.step(x[:, :-1], cache.kv)
        return cache

    def predict_first_token(
        self, frame_features: Tensor | None, actions: Tensor, cache: DynamicsCache
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict what follows from the actions.

        Args:
            frame_features: what `encode_frame` gave of the present frames.
            actions: (B,) int64.
            cache: of all that came before.

        Returns:
            logits of the first token (B, N), of the reward's bins (B, bins) and of the end (B, 2).
        """
        action = self.action(actions)
        x = torch.stack([action] if frame_features is None else [frame_features, action], dim=1)
        if cache.deferred_token is None:
            x = x + self._next_positions(x.shape[1], cache)
        else:
            x = torch.cat([cache.deferred_token, x + self._next_positions(1 + x.shape[1], cache)[1:]], dim=1)
            cache.deferred_token = None
        return self._apply_heads(self.transformer.step(x, cache.kv)[:, -1])

    def predict_next_token(self, tokens: Tensor, cache: DynamicsCache) -> Tensor:
        """Append token k of the next frame, (B,); return the logits of token k + 1, (B, N)."""
        return self._apply_token_head(self.transformer.step(self._embed_token(tokens, cache), cache.kv)[:, -1])

    def end_block(self, tokens: Tensor, cache: DynamicsCache) -> None:
        """Append the next frame's last token, (B,)."""
        cache.deferred_token = self._embed_token(tokens, cache)

    def _position_embeddings(self) -> Tensor:
        return (self.block_position_embedding + self.time_embedding).flatten(0, 1)

    def _next_positions(self, number: int, cache: DynamicsCache) -> Tensor:
        return cache.position_embeddings[cache.kv.next(number)]

    def _embed_token(self, tokens: Tensor, cache: DynamicsCache) -> Tensor:
        return self.token(tokens).unsqueeze(1) + self._next_positions(1, cache)

    @compile_region()
    def _apply_heads(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.norm(hidden)
        return self.token_head(hidden), self.reward_head(hidden), self.end_head(hidden)

    @compile_region()
    def _apply_token_head(self, hidden: Tensor) -> Tensor:
        return self.token_head(self.norm(hidden))
