"""The paper's decoder: a Transformer over all transitions of a window, upsampled to the next frames (paper §2.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from delta_iris.acceleration.compile import region
from delta_iris.nn.cnn import FrameEncoder
from delta_iris.nn.kv_cache import KVCache
from delta_iris.nn.transformer import EMBEDDING_STD, Transformer, init_weights
from delta_iris.world_models.delta_iris.motion_compensation import Motion
from delta_iris.world_models.delta_iris.patches import (
    Grid,
    from_patches,
    patch_embedding,
    positions,
    scaled,
    to_patches,
)

__all__ = ["Decoder", "DecoderCache"]


@dataclass
class DecoderCache:
    """What decoding remembers of the transitions so far: a key-value cache a group of layers, which are real (B, T),
    and how many there are."""

    groups: list[KVCache]
    valid: Tensor
    position: int = 0


class Decoder(nn.Module):
    """Block i is [f(x_i), a_i, tokens of the transition to x_{i+1}]; its outputs are the patches of x_{i+1}.

    With `motions`, each pixel is a mixture of what is painted there, of x_i and of copies of x_i that the output at a_i
    moves.

    Args:
        grids: of patches, from the finest to that of the tokens; see `pooled_grids`. The decoder goes the other way.
        max_transitions: longest window, in transitions.
        layers: of each group, one a grid, from that of the tokens on.
        frame_encoder: gives one vector a frame.
        patch_size, num_actions, dim, heads, code_dim, previous_patches, motions: see `TransformerTokenizer`.
        least_painted: with `motions`; see `Motion`.
    """

    def __init__(
        self,
        grids: list[Grid],
        patch_size: int,
        num_actions: int,
        max_transitions: int,
        dim: int,
        layers: Sequence[int],
        heads: int,
        code_dim: int,
        frame_encoder: FrameEncoder,
        previous_patches: bool,
        motions: int,
        least_painted: float,
    ) -> None:
        super().__init__()
        self.grids, self.patch_size = grids[::-1], patch_size
        self.max_transitions = max_transitions
        norm = nn.LayerNorm(dim)
        nn.init.constant_(norm.weight, EMBEDDING_STD)
        self.frame = nn.Sequential(frame_encoder, nn.Linear(frame_encoder.num_features, dim), norm)
        self.action = nn.Embedding(num_actions, dim)
        # Codewords have unit length.
        self.code = nn.Linear(code_dim, dim)
        for module in (self.action, self.code):
            init_weights(module)
        self.within = positions(2 + math.prod(self.grids[0]), dim)
        self.time = positions(max_transitions, 1, dim)
        # Each copy of an upsampled token gets its own position.
        self.copies = nn.ParameterList(positions(math.prod(grid), dim) for grid in self.grids[1:])
        self.groups = nn.ModuleList(Transformer(dim, n, heads, depth=sum(layers)) for n in layers)
        self.previous = patch_embedding(patch_size, dim) if previous_patches else None
        self.norm = nn.LayerNorm(dim)
        self.motion = Motion(dim, motions, patch_size, least_painted) if motions else None
        self.paint = nn.Linear(dim, (self.motion.channels if self.motion else 3) * patch_size**2)
        nn.init.normal_(self.paint.weight, std=0.02)
        nn.init.zeros_(self.paint.bias)

    def make_cache(self, batch: int) -> DecoderCache:
        """See `Tokenizer.start_decoding`."""
        valid = torch.zeros(batch, self.max_transitions, dtype=torch.bool, device=self.within.device)
        groups = [
            group.make_cache(valid, 2 + math.prod(grid), "block")
            for group, grid in zip(self.groups, self.grids, strict=True)
            if isinstance(group, Transformer)
        ]
        return DecoderCache(groups, valid)

    def look(self, frames: Tensor) -> Tensor:
        """See `Tokenizer.look`: a vector a frame, (B, n, dim)."""
        return self.frame(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def forward(
        self,
        frames: Tensor,
        actions: Tensor,
        codes: Tensor,
        valid: Tensor,
        cache: DecoderCache | None,
        seen: Tensor | None,
    ) -> Tensor:
        """See `Tokenizer.decode`."""
        length = frames.shape[1]
        if cache is None:
            time = self.time[:length]
        else:
            steps = slice(cache.position, cache.position + length)
            cache.valid[:, steps], time = valid, self.time[steps]
            cache.position += length
        x = self._blocks(self.look(frames) if seen is None else seen, self.action(actions), codes, time)
        for index, group in enumerate(self.groups):
            assert isinstance(group, Transformer)
            if index > 0:
                x = self._upsample(x, index)
            if index == len(self.groups) - 1 and self.previous is not None:
                x = self._look_back(x, frames, self.previous)
            block, flat = x.shape[2], x.flatten(1, 2)
            flat = group.step(flat, cache.groups[index]) if cache else group(flat, group.window_mask(valid, block))
            x = flat.unflatten(1, (length, block))
        return self._paint(x, frames)

    @region()
    def _blocks(self, vectors: Tensor, actions: Tensor, codes: Tensor, time: Tensor) -> Tensor:
        return torch.cat([vectors.unsqueeze(2), actions.unsqueeze(2), self.code(codes)], dim=2) + self.within + time

    @region()
    def _upsample(self, x: Tensor, index: int) -> Tensor:
        """Make each token of the grid before `index` 2×2; the frame vector and the action pass."""
        rows, columns = self.grids[index - 1]
        coarse = x[:, :, 2:].unflatten(2, (rows, 1, columns, 1))
        finer = coarse.expand(-1, -1, -1, 2, -1, 2, -1).flatten(2, 5) + self.copies[index - 1]
        return torch.cat([x[:, :, :2], finer], dim=2)

    @region()
    def _look_back(self, x: Tensor, frames: Tensor, embed: nn.Module) -> Tensor:
        seen = embed(to_patches(scaled(frames), self.patch_size))
        return torch.cat([x[:, :, :2], x[:, :, 2:] + seen], dim=2)

    @region()
    def _paint(self, x: Tensor, frames: Tensor) -> Tensor:
        outputs = self.norm(x)
        painted = from_patches(self.paint(outputs[:, :, 2:]), self.grids[-1], self.patch_size)
        return painted if self.motion is None else self.motion(painted, frames, outputs[:, :, 1])
