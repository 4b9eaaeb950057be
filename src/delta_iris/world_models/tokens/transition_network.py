"""Δ-IRIS's order of tokens: a vector of the frame, the action, and the tokens of the transition (paper §2.2)."""

from __future__ import annotations

from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from delta_iris.data.segment import to_float
from delta_iris.nn.cnn import FrameEncoder
from delta_iris.nn.transformer import EMBEDDING_STD, TransformerConfig, block_mask
from delta_iris.world_models.tokens.dynamics_network import DynamicsLogits, DynamicsNetwork

__all__ = ["TransitionNetwork"]


class TransitionNetwork(DynamicsNetwork):
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

    context_frames: ClassVar[int] = 1

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
        features, dim = frame_encoder.num_features, transformer.dim
        project = nn.Identity() if features == dim else nn.Linear(features, dim)
        norm = nn.LayerNorm(dim)
        # At full scale it would drown the positions: attention could not tell the present frame from earlier ones.
        nn.init.constant_(norm.weight, EMBEDDING_STD)
        super().__init__(
            nn.Sequential(frame_encoder, project, norm),
            2 + tokens_per_frame,
            num_actions,
            tokens_per_frame,
            codebook_size,
            max_blocks,
            transformer,
            initial_reward_logits,
        )

    def forward(self, frames: Tensor, actions: Tensor, tokens: Tensor, mask: Tensor) -> DynamicsLogits:
        """See `DynamicsNetwork.forward`."""
        # The last block has no tokens within the segment. Causality keeps the padding out of everything that is scored.
        x = self.embed(to_float(frames), actions, F.pad(tokens, (0, 0, 0, 1)))
        hidden = self.transformer(x, block_mask(mask, self.block_size, attention="causal"))
        hidden = self.norm(rearrange(hidden, "b (t n) d -> b t n d", n=self.block_size))
        at_action = hidden[:, :, 1]
        return DynamicsLogits(
            self.token_head(hidden[:, :, 1:-1]), self.reward_head(at_action), self.end_head(at_action)
        )

    def embed(self, frames: Tensor, actions: Tensor, tokens: Tensor) -> Tensor:
        """See `DynamicsNetwork.embed`: whole blocks, (B, T · block, d)."""
        assert self.frame is not None
        features = self.frame(rearrange(frames, "b t c h w -> (b t) c h w"))
        features = rearrange(features, "(b t) d -> b t d", b=len(frames))
        x = torch.cat([features.unsqueeze(2), self.action(actions).unsqueeze(2), self.token(tokens)], dim=2)
        x = x + self.block_position_embedding + self.time_embedding[: x.shape[1]]
        return rearrange(x, "b t n d -> b (t n) d")
