"""The paper's encoder: a Transformer over all frames of a window, pooled to a few latents a transition (paper §2.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delta_iris.acceleration.compile import region
from delta_iris.nn.transformer import Transformer, init_weights, rotation
from delta_iris.world_models.delta_iris.patches import Grid, patch_embedding, positions, scaled, to_patches

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """Block t is [a_{t−1}, patches of x_t beside x_t − x_{t−1}]; a token sees its whole block and all earlier ones.

    Pixels are where Δ is exact. The difference of what two frames are summed up as is a fiftieth of either: to make
    that the tokens magnifies every step of training, and they change faster than a decoder can learn them.

    Time is rotary: it is in what attends to what, and nowhere in the summaries, or part of the codebook would be spent
    on numbering the frames of a window.

    Args:
        grids: of patches, from the finest to that of the tokens; see `pooled_grids`.
        layers: of each group, one a grid.
        patch_size, num_actions, dim, heads, code_dim, difference: see `TransformerTokenizer`.
    """

    def __init__(
        self,
        grids: list[Grid],
        patch_size: int,
        num_actions: int,
        dim: int,
        layers: Sequence[int],
        heads: int,
        code_dim: int,
        difference: bool,
    ) -> None:
        super().__init__()
        self.grids, self.patch_size, self.difference = grids, patch_size, difference
        self.no_action = num_actions
        self.patch = patch_embedding(patch_size, dim, channels=6 if difference else 3)
        self.action = nn.Embedding(num_actions + 1, dim)
        init_weights(self.action)
        self.within = positions(1 + math.prod(grids[0]), dim)
        self.groups = nn.ModuleList(Transformer(dim, n, heads, depth=sum(layers)) for n in layers)
        self.project = nn.Linear(dim, code_dim)
        nn.init.normal_(self.project.weight, std=1 / math.sqrt(dim))
        nn.init.zeros_(self.project.bias)

    def forward(self, frames: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        """See `Tokenizer.embed`."""
        length = frames.shape[1]
        # The first real frame of a window has no action before it, whatever the padding in front of it holds.
        known = F.pad(valid[:, :-1], (1, 0))
        previous = torch.where(known, F.pad(actions[:, :-1], (1, 0)), self.no_action)
        x, time = self._blocks(frames, known, self.action(previous)), torch.arange(length, device=frames.device)
        for index, group in enumerate(self.groups):
            assert isinstance(group, Transformer)
            if index > 0:
                x = self._pool(x, self.grids[index - 1])
            block = x.shape[2]
            rotary = rotation(time.repeat_interleave(block, output_size=length * block), group.dim // group.heads)
            x = group(x.flatten(1, 2), group.window_mask(valid, block), rotary).unflatten(1, (length, block))
        return self._summarize(x)

    @region()
    def _blocks(self, frames: Tensor, known: Tensor, actions: Tensor) -> Tensor:
        seen = scaled(frames)
        if self.difference:
            # Nothing where the frame before is padding, or there is none.
            changes = torch.where(known[:, 1:, None, None, None], seen[:, 1:] - seen[:, :-1], 0.0)
            seen = torch.cat([seen, F.pad(changes, (0, 0, 0, 0, 0, 0, 1, 0))], dim=2)
        patches = self.patch(to_patches(seen, self.patch_size))
        return torch.cat([actions.unsqueeze(2), patches], dim=2) + self.within

    @region()
    def _pool(self, x: Tensor, grid: Grid) -> Tensor:
        """Average patch tokens over 2×2 cells of `grid`; the action token passes."""
        cells = x[:, :, 1:].unflatten(2, (grid[0] // 2, 2, grid[1] // 2, 2))
        return torch.cat([x[:, :, :1], cells.mean((3, 5)).flatten(2, 3)], dim=2)

    @region()
    def _summarize(self, x: Tensor) -> Tensor:
        summary = x[:, 1:, 1:]
        return self.project(F.layer_norm(summary, summary.shape[-1:]))
