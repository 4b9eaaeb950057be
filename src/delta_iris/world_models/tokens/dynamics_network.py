"""The GPT-style network of the token dynamics (paper §2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from delta_iris.acceleration.compile import compile_region
from delta_iris.nn.cnn import FrameEncoder
from delta_iris.nn.kv_cache import KVCache
from delta_iris.nn.transformer import EMBEDDING_STD, Transformer, TransformerConfig, block_mask, init_weights

__all__ = ["DynamicsCache", "DynamicsLogits", "DynamicsNetwork"]


class DynamicsLogits(NamedTuple):
    """Logits at every step of a segment.

    Attributes:
        tokens: (B, T, K, N) of the tokens of the transition.
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
        deferred_token: (B, 1, d) embedding of a block's last token. It is written together with the beginning of the
            next block, which saves a pass.
    """

    kv: KVCache
    position_embeddings: Tensor
    deferred_token: Tensor | None = None


def _head(dim: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, outputs))


class DynamicsNetwork(nn.Module):
    """A causal Transformer over blocks `[f(x_t), a_t, z¹_{t+1} … z^K_{t+1}]`.

    Args:
        frame_encoder: the CNN f.
        num_actions: number of actions A.
        tokens_per_frame: K.
        codebook_size: N.
        max_blocks: longest segment, in blocks.
        transformer: sizes of the Transformer.
        initial_reward_logits: (bins,) logits of the reward's distribution before training.
    """

    def __init__(
        self,
        frame_encoder: FrameEncoder,
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
        self.block_size = 2 + tokens_per_frame
        features = frame_encoder.num_features
        project = nn.Identity() if features == dim else nn.Linear(features, dim)
        norm = nn.LayerNorm(dim)
        # At full scale it would drown the positions: attention could not tell the present frame from earlier ones.
        nn.init.constant_(norm.weight, EMBEDDING_STD)
        self.frame = nn.Sequential(frame_encoder, project, norm)
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

    def forward(self, frames: Tensor, actions: Tensor, tokens: Tensor, mask: Tensor) -> DynamicsLogits:
        """Predict every step of a segment from what came before it.

        Args:
            frames: (B, T, 3, H, W) floats in [0, 1].
            actions: (B, T) int64.
            tokens: (B, T, K) int64, of the transition that each action leads to.
            mask: (B, T) bool, false for padding.

        Returns:
            logits at each step. Token k depends on the step's frame, its action and the tokens before k; reward and end
            depend on its frame and action.
        """
        x = self._embed_blocks(frames, actions, tokens)
        hidden = self.transformer(x, block_mask(mask, self.block_size, attention="causal"))
        hidden = self.norm(rearrange(hidden, "b (t n) d -> b t n d", n=self.block_size))
        at_action = hidden[:, :, 1]
        return DynamicsLogits(
            self.token_head(hidden[:, :, 1:-1]), self.reward_head(at_action), self.end_head(at_action)
        )

    def prefill(self, frames: Tensor, actions: Tensor, tokens: Tensor, mask: Tensor) -> DynamicsCache:
        """Fill a new cache with whole blocks; arguments as for `forward`, T may be zero."""
        batch, length = actions.shape
        valid = torch.ones(batch, self.max_blocks, dtype=torch.bool, device=actions.device)
        valid[:, :length] = mask
        positions = (self.block_position_embedding + self.time_embedding).flatten(0, 1)
        cache = DynamicsCache(self.transformer.make_cache(valid, self.block_size, "causal"), positions)
        if length > 0:
            x = self._embed_blocks(frames, actions, tokens)
            cache.deferred_token = x[:, -1:]
            self.transformer.step(x[:, :-1], cache.kv)
        return cache

    def encode_frame(self, frames: Tensor) -> Tensor:
        """Encode frames (B, 3, H, W) as vectors (B, d), which is all that `predict_first_token` needs of them."""
        return self._encode_frames(frames.unsqueeze(1)).squeeze(1)

    def predict_first_token(
        self, frame_features: Tensor, actions: Tensor, cache: DynamicsCache
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Begin a block: predict what follows from the actions.

        Args:
            frame_features: (B, d) from `encode_frame`.
            actions: (B,) int64.
            cache: of the blocks before.

        Returns:
            logits of the first token (B, N), of the reward's bins (B, bins) and of the end (B, 2).
        """
        x = torch.stack([frame_features, self.action(actions)], dim=1)
        if cache.deferred_token is None:
            x = x + self._next_positions(2, cache)
        else:
            x = torch.cat([cache.deferred_token, x + self._next_positions(3, cache)[1:]], dim=1)
            cache.deferred_token = None
        return self._apply_heads(self.transformer.step(x, cache.kv)[:, -1])

    def predict_next_token(self, tokens: Tensor, cache: DynamicsCache) -> Tensor:
        """Append token k of the present block, (B,); return the logits of token k + 1, (B, N)."""
        return self._apply_token_head(self.transformer.step(self._embed_token(tokens, cache), cache.kv)[:, -1])

    def end_block(self, tokens: Tensor, cache: DynamicsCache) -> None:
        """Append a block's last token, (B,)."""
        cache.deferred_token = self._embed_token(tokens, cache)

    def _encode_frames(self, frames: Tensor) -> Tensor:
        return rearrange(self.frame(rearrange(frames, "b t c h w -> (b t) c h w")), "(b t) d -> b t d", b=len(frames))

    def _embed_blocks(self, frames: Tensor, actions: Tensor, tokens: Tensor) -> Tensor:
        """Embeddings of whole blocks from the first on, (B, T · block, d)."""
        x = torch.cat(
            [self._encode_frames(frames).unsqueeze(2), self.action(actions).unsqueeze(2), self.token(tokens)], dim=2
        )
        x = x + self.block_position_embedding + self.time_embedding[: x.shape[1]]
        return rearrange(x, "b t n d -> b (t n) d")

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
