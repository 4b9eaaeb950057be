"""The encoder of the Transformer tokenizer: all frames of a segment, pooled to a few latents each (paper §2.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delta_iris.acceleration.compile import compile_region
from delta_iris.nn.kv_cache import AttentionKind
from delta_iris.nn.transformer import Transformer, init_weights, rotary_embedding
from delta_iris.world_models.delta_iris.patches import (
    Grid,
    patch_embedding,
    position_embedding,
    scale_pixels,
    to_patches,
)

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """A block-causal Transformer over blocks [a_{t−1}, patches of x_t], with pooling between groups of layers.

    With `difference`, a patch holds the pixels of x_t and of x_t − x_{t−1}. Pixels are where the difference is exact:
    the difference of two frames' pooled summaries is a fiftieth of either, so quantizing it amplifies every training
    step, and the tokens change faster than a decoder can learn them.

    Time enters only through rotary embeddings in the attention scores. Additive embeddings would make the codebook
    encode a frame's position in the segment.

    Args:
        grids: patch grids from the finest to that of the tokens; see `pooled_grids`.
        layers: layers of each group, one group for each grid.
        patch_size: side of a patch, in pixels.
        num_actions: number of actions A.
        dim: width of the Transformer.
        heads: attention heads.
        code_dim: dimension of the latents.
        difference: whether patches also hold the change since the last frame.
        attention: whether a token attends to its whole frame or to the tokens before it only.
    """

    def __init__(
        self,
        grids: list[Grid],
        layers: Sequence[int],
        patch_size: int,
        num_actions: int,
        dim: int,
        heads: int,
        code_dim: int,
        difference: bool,
        attention: AttentionKind,
    ) -> None:
        super().__init__()
        self.grids, self.patch_size, self.difference, self.attention = grids, patch_size, difference, attention
        self.no_action = num_actions
        self.patch = patch_embedding(patch_size, dim, channels=6 if difference else 3)
        self.action = nn.Embedding(num_actions + 1, dim)
        init_weights(self.action)
        self.block_position_embedding = position_embedding(1 + math.prod(grids[0]), dim)
        self.groups = nn.ModuleList(Transformer(dim, n, heads, depth=sum(layers)) for n in layers)
        self.project = nn.Linear(dim, code_dim)
        nn.init.normal_(self.project.weight, std=1 / math.sqrt(dim))
        nn.init.zeros_(self.project.bias)

    def forward(self, frames: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        """Encode a segment; see `Tokenizer.encode_latents`."""
        length = frames.shape[1]
        # The first real frame of a segment has no action before it, whatever padding holds.
        has_previous = F.pad(mask[:, :-1], (1, 0))
        previous = torch.where(has_previous, F.pad(actions[:, :-1], (1, 0)), self.no_action)
        x = self._embed_blocks(frames, has_previous, self.action(previous))
        time = torch.arange(length, device=frames.device)
        for index, group in enumerate(self.groups):
            assert isinstance(group, Transformer)
            if index > 0:
                x = self._pool(x, self.grids[index - 1])
            block = x.shape[2]
            positions = time.repeat_interleave(block, output_size=length * block)
            rotary = rotary_embedding(positions, group.dim // group.heads)
            attention_mask = group.attention_mask(mask, block, self.attention)
            x = group(x.flatten(1, 2), attention_mask, rotary).unflatten(1, (length, block))
        return self._project(x)

    @compile_region()
    def _embed_blocks(self, frames: Tensor, has_previous: Tensor, actions: Tensor) -> Tensor:
        pixels = scale_pixels(frames)
        if self.difference:
            # Zero where the frame before is padding or does not exist.
            changes = torch.where(has_previous[:, 1:, None, None, None], pixels[:, 1:] - pixels[:, :-1], 0.0)
            pixels = torch.cat([pixels, F.pad(changes, (0, 0, 0, 0, 0, 0, 1, 0))], dim=2)
        patches = self.patch(to_patches(pixels, self.patch_size))
        return torch.cat([actions.unsqueeze(2), patches], dim=2) + self.block_position_embedding

    @compile_region()
    def _pool(self, x: Tensor, grid: Grid) -> Tensor:
        """Average patch tokens over 2×2 cells of `grid`; the action token passes through."""
        cells = x[:, :, 1:].unflatten(2, (grid[0] // 2, 2, grid[1] // 2, 2))
        return torch.cat([x[:, :, :1], cells.mean((3, 5)).flatten(2, 3)], dim=2)

    @compile_region()
    def _project(self, x: Tensor) -> Tensor:
        pooled = x[:, 1:, 1:]
        return self.project(F.layer_norm(pooled, pooled.shape[-1:]))
