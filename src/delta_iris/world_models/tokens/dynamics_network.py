"""The GPT-style network of the world model (paper §2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from delta_iris.acceleration.compile import region
from delta_iris.nn.cnn import FrameEncoder
from delta_iris.nn.kv_cache import KVCache
from delta_iris.nn.transformer import EMBEDDING_STD, Transformer, block_mask, init_weights

__all__ = ["Dynamics", "DynamicsCache", "Predictions"]


class Predictions(NamedTuple):
    """Logits: of the next tokens (B, T, K, N), of the reward's bins (B, T, bins), of no end and end (B, T, 2)."""

    tokens: Tensor
    rewards: Tensor
    ends: Tensor


@dataclass
class DynamicsCache:
    """What stepping remembers: keys and values, the position embeddings of all tokens (T · block, d), and the last
    token, embedded but not written.

    It is written together with the next block's beginning: a pass less.
    """

    kv: KVCache
    places: Tensor
    pending: Tensor | None = None


def _head(dim: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, outputs))


class Dynamics(nn.Module):
    """A causal Transformer over blocks `[f(x_t), a_t, z¹_{t+1} … z^K_{t+1}]`.

    Args:
        frame_encoder: the CNN f.
        num_actions: number of actions A.
        tokens_per_frame: K.
        codebook_size: N.
        max_blocks: longest window, in blocks.
        dim, layers, heads: of the Transformer.
        first_rewards: (bins,) logits of the reward's distribution before training.
        dropout: of the Transformer.
    """

    def __init__(
        self,
        frame_encoder: FrameEncoder,
        num_actions: int,
        tokens_per_frame: int,
        codebook_size: int,
        max_blocks: int,
        dim: int,
        layers: int,
        heads: int,
        first_rewards: Tensor,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
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
        self.within = nn.Parameter(torch.randn(self.block_size, dim) * EMBEDDING_STD)
        self.time = nn.Parameter(torch.randn(max_blocks, 1, dim) * EMBEDDING_STD)
        self.transformer = Transformer(dim, layers, heads, dropout=dropout)
        self.norm = nn.LayerNorm(dim)
        self.token_head = _head(dim, codebook_size)
        self.reward_head = _head(dim, len(first_rewards))
        self.end_head = _head(dim, 2)
        for module in (self.action, self.token, self.token_head):
            module.apply(init_weights)
        # Rewards start at zero (DreamerV3): the agent is not taught by the noise of an untrained head.
        last = self.reward_head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(first_rewards)

    def _embed_frames(self, frames: Tensor) -> Tensor:
        return rearrange(self.frame(rearrange(frames, "b t c h w -> (b t) c h w")), "(b t) d -> b t d", b=len(frames))

    def _embed(self, frames: Tensor, actions: Tensor, tokens: Tensor, first: int = 0) -> Tensor:
        """Embeddings of whole blocks `first`…, (B, T · block, d)."""
        x = torch.cat(
            [self._embed_frames(frames).unsqueeze(2), self.action(actions).unsqueeze(2), self.token(tokens)], dim=2
        )
        x = x + self.within + self.time[first : first + x.shape[1]]
        return rearrange(x, "b t n d -> b (t n) d")

    def _predict(self, hidden: Tensor) -> Predictions:
        """Read the heads off the outputs of whole blocks, (B, T, block, d)."""
        hidden = self.norm(hidden)
        at_action = hidden[:, :, 1]
        return Predictions(self.token_head(hidden[:, :, 1:-1]), self.reward_head(at_action), self.end_head(at_action))

    def forward(self, frames: Tensor, actions: Tensor, tokens: Tensor, valid: Tensor) -> Predictions:
        """Predict every step of a window from what came before it.

        Args:
            frames: (B, T, 3, H, W) floats in [0, 1].
            actions: (B, T) int64.
            tokens: (B, T, K) int64: of the transition that each action leads to.
            valid: (B, T) bool, false for padding.

        Returns:
            predictions at each step: token k sees the step's frame, action and the tokens before it; reward and end
            see its frame and action.
        """
        x = self._embed(frames, actions, tokens)
        hidden = self.transformer(x, block_mask(valid, self.block_size, within="token"))
        return self._predict(rearrange(hidden, "b (t n) d -> b t n d", n=self.block_size))

    def start(self, frames: Tensor, actions: Tensor, tokens: Tensor, valid: Tensor) -> DynamicsCache:
        """A cache that holds a first few whole blocks; arguments as for `forward`, T may be zero."""
        batch, length = actions.shape
        real = torch.ones(batch, self.max_blocks, dtype=torch.bool, device=actions.device)
        real[:, :length] = valid
        places = (self.within + self.time).flatten(0, 1)
        cache = DynamicsCache(self.transformer.make_cache(real, self.block_size, "token"), places)
        if length > 0:
            x = self._embed(frames, actions, tokens)
            cache.pending = x[:, -1:]
            self.transformer.step(x[:, :-1], cache.kv)
        return cache

    def look(self, frames: Tensor) -> Tensor:
        """Vectors (B, d) of frames (B, 3, H, W): all that `act` needs of them."""
        return self._embed_frames(frames.unsqueeze(1)).squeeze(1)

    def act(self, seen: Tensor, actions: Tensor, cache: DynamicsCache) -> tuple[Tensor, Tensor, Tensor]:
        """Begin the next block: what happens after taking `actions` (B,) at the frames that `look` gave `seen` of?

        Returns:
            logits of the first token (B, N), of the reward's bins (B, bins) and of the end (B, 2).
        """
        x = torch.stack([seen, self.action(actions)], dim=1)
        if cache.pending is None:
            x = x + self._places(2, cache)
        else:
            x = torch.cat([cache.pending, x + self._places(3, cache)[1:]], dim=1)
            cache.pending = None
        return self._read(self.transformer.step(x, cache.kv)[:, -1])

    def next_token(self, tokens: Tensor, cache: DynamicsCache) -> Tensor:
        """Take token k of the block under way, (B,); return the logits of token k + 1, (B, N)."""
        return self._read_token(self.transformer.step(self._embed_token(tokens, cache), cache.kv)[:, -1])

    def finish(self, tokens: Tensor, cache: DynamicsCache) -> None:
        """Take a block's last token, (B,)."""
        cache.pending = self._embed_token(tokens, cache)

    def _places(self, number: int, cache: DynamicsCache) -> Tensor:
        return cache.places[cache.kv.next(number)]

    def _embed_token(self, tokens: Tensor, cache: DynamicsCache) -> Tensor:
        return self.token(tokens).unsqueeze(1) + self._places(1, cache)

    @region()
    def _read(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.norm(hidden)
        return self.token_head(hidden), self.reward_head(hidden), self.end_head(hidden)

    @region()
    def _read_token(self, hidden: Tensor) -> Tensor:
        return self.token_head(self.norm(hidden))
