"""IRIS's order of tokens: those of a frame, then the action."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from delta_iris.nn.transformer import TransformerConfig, block_mask
from delta_iris.world_models.tokens.dynamics_network import DynamicsLogits, DynamicsNetwork

__all__ = ["FrameNetwork"]


class FrameNetwork(DynamicsNetwork):
    """A causal Transformer over blocks `[z¹_t … z^K_t, a_t]`. It sees frames through their tokens only.

    Args:
        num_actions: number of actions A.
        tokens_per_frame: K.
        codebook_size: N.
        max_blocks: longest segment, in blocks.
        transformer: sizes of the Transformer.
        initial_reward_logits: (bins,) logits of the reward's distribution before training.
    """

    context_frames: ClassVar[int] = 0

    def __init__(
        self,
        num_actions: int,
        tokens_per_frame: int,
        codebook_size: int,
        max_blocks: int,
        transformer: TransformerConfig,
        initial_reward_logits: Tensor,
    ) -> None:
        super().__init__(
            None,
            tokens_per_frame + 1,
            num_actions,
            tokens_per_frame,
            codebook_size,
            max_blocks,
            transformer,
            initial_reward_logits,
        )

    def forward(self, frames: Tensor, actions: Tensor, tokens: Tensor, mask: Tensor) -> DynamicsLogits:
        """See `DynamicsNetwork.forward`. The tokens after the last action are not predicted: they have no target."""
        x = self._embed_blocks(actions, tokens)
        hidden = self.norm(self.transformer(x, block_mask(mask, self.block_size, attention="causal")))
        at_action = hidden[:, self.tokens_per_frame :: self.block_size]
        # From each action but the last: the action itself, and the next frame's tokens but the last.
        following = hidden[:, self.tokens_per_frame : -1].unflatten(1, (-1, self.block_size))
        return DynamicsLogits(
            self.token_head(following[:, :, :-1]), self.reward_head(at_action), self.end_head(at_action)
        )

    def embed(self, frames: Tensor, actions: Tensor, tokens: Tensor) -> Tensor:
        """See `DynamicsNetwork.embed`: whole blocks, and the tokens of the last frame."""
        # The last frame's action is not known yet; whatever stands for it is cut off.
        padded = torch.cat([actions, torch.zeros_like(tokens[:, :1, 0])], 1)
        return self._embed_blocks(padded, tokens)[:, :-1]

    def _embed_blocks(self, actions: Tensor, tokens: Tensor) -> Tensor:
        """Embeddings of whole blocks from the first on, (B, T · block, d)."""
        x = torch.cat([self.token(tokens), self.action(actions).unsqueeze(2)], dim=2)
        return (x + self.block_position_embedding + self.time_embedding[: x.shape[1]]).flatten(1, 2)
