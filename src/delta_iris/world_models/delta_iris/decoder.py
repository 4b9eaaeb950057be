"""The decoder of the Transformer tokenizer: all transitions of a segment, upsampled to the next frames (paper §2.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from delta_iris.acceleration.compile import compile_region
from delta_iris.nn.cnn import FrameEncoder
from delta_iris.nn.kv_cache import AttentionKind, KVCache
from delta_iris.nn.transformer import EMBEDDING_STD, Transformer, init_weights
from delta_iris.world_models.delta_iris.motion_compensation import MotionCompensation
from delta_iris.world_models.delta_iris.patches import (
    Grid,
    from_patches,
    patch_embedding,
    position_embedding,
    scale_pixels,
    to_patches,
)

__all__ = ["Decoder", "DecoderCache"]


@dataclass
class DecoderCache:
    """What the decoder remembers of the transitions so far.

    Attributes:
        groups: one key-value cache for each group of layers.
        mask: (B, T) bool, which transitions are real.
        position: number of transitions decoded.
    """

    groups: list[KVCache]
    mask: Tensor
    position: int = 0


class Decoder(nn.Module):
    """A block-causal Transformer over blocks [f(x_i), a_i, tokens of the transition], whose outputs are x_{i+1}.

    The groups of layers go from the grid of the tokens to the finest one, with 2×2 upsampling between them.

    Args:
        grids: patch grids from the finest to that of the tokens; see `pooled_grids`.
        layers: layers of each group, from the grid of the tokens to the finest.
        max_transitions: longest segment, in transitions.
        frame_encoder: CNN f, which gives one vector a frame.
        patch_size: side of a patch, in pixels.
        num_actions: number of actions A.
        dim: width of the Transformer.
        heads: attention heads.
        code_dim: dimension of a codeword.
        previous_patches: whether the last group also sees the pixels of x_i, patch by patch.
        num_transforms: copies of x_i for motion compensation, 0 for none; the output at a_i moves them.
        min_synthesis_weight: see `MotionCompensation`.
        attention: whether a token attends to its whole block or to the tokens before it only.
    """

    def __init__(
        self,
        grids: list[Grid],
        layers: Sequence[int],
        max_transitions: int,
        frame_encoder: FrameEncoder,
        patch_size: int,
        num_actions: int,
        dim: int,
        heads: int,
        code_dim: int,
        previous_patches: bool,
        num_transforms: int,
        min_synthesis_weight: float,
        attention: AttentionKind,
    ) -> None:
        super().__init__()
        self.grids, self.patch_size = grids[::-1], patch_size
        self.max_transitions, self.attention = max_transitions, attention
        norm = nn.LayerNorm(dim)
        nn.init.constant_(norm.weight, EMBEDDING_STD)
        self.frame = nn.Sequential(frame_encoder, nn.Linear(frame_encoder.num_features, dim), norm)
        self.action = nn.Embedding(num_actions, dim)
        # Codewords have unit length.
        self.code = nn.Linear(code_dim, dim)
        for module in (self.action, self.code):
            init_weights(module)
        self.block_position_embedding = position_embedding(2 + math.prod(self.grids[0]), dim)
        self.time_embedding = position_embedding(max_transitions, 1, dim)
        # Each copy of an upsampled token gets its own position.
        self.upsample_position_embedding = nn.ParameterList(
            position_embedding(math.prod(grid), dim) for grid in self.grids[1:]
        )
        self.groups = nn.ModuleList(Transformer(dim, n, heads, depth=sum(layers)) for n in layers)
        self.previous = patch_embedding(patch_size, dim) if previous_patches else None
        self.norm = nn.LayerNorm(dim)
        self.motion = (
            MotionCompensation(dim, num_transforms, patch_size, min_synthesis_weight) if num_transforms else None
        )
        channels = self.motion.channels if self.motion else 3
        self.to_pixels = nn.Linear(dim, channels * patch_size**2)
        nn.init.normal_(self.to_pixels.weight, std=0.02)
        nn.init.zeros_(self.to_pixels.bias)

    def make_cache(self, batch: int) -> DecoderCache:
        """An empty cache; see `Tokenizer.make_decoder_cache`."""
        device = self.block_position_embedding.device
        mask = torch.zeros(batch, self.max_transitions, dtype=torch.bool, device=device)
        groups = [
            group.make_cache(mask, 2 + math.prod(grid), self.attention)
            for group, grid in zip(self.groups, self.grids, strict=True)
            if isinstance(group, Transformer)
        ]
        return DecoderCache(groups, mask)

    def encode_frame(self, frames: Tensor) -> Tensor:
        """One vector a frame, (B, n, dim); see `Tokenizer.encode_frame`."""
        return self.frame(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def forward(
        self,
        frames: Tensor,
        actions: Tensor,
        codes: Tensor,
        mask: Tensor,
        cache: DecoderCache | None,
        frame_features: Tensor | None,
    ) -> Tensor:
        """Predict the next frames; see `Tokenizer.decode`."""
        length = frames.shape[1]
        if cache is None:
            time = self.time_embedding[:length]
        else:
            steps = slice(cache.position, cache.position + length)
            cache.mask[:, steps], time = mask, self.time_embedding[steps]
            cache.position += length
        if frame_features is None:
            frame_features = self.encode_frame(frames)
        x = self._embed_blocks(frame_features, self.action(actions), codes, time)
        for index, group in enumerate(self.groups):
            assert isinstance(group, Transformer)
            if index > 0:
                x = self._upsample(x, index)
            if index == len(self.groups) - 1 and self.previous is not None:
                x = self._add_previous_patches(x, frames, self.previous)
            block, flat = x.shape[2], x.flatten(1, 2)
            if cache is not None:
                flat = group.step(flat, cache.groups[index])
            else:
                flat = group(flat, group.attention_mask(mask, block, self.attention))
            x = flat.unflatten(1, (length, block))
        return self._predict_frames(x, frames)

    @compile_region()
    def _embed_blocks(self, frame_features: Tensor, actions: Tensor, codes: Tensor, time: Tensor) -> Tensor:
        x = torch.cat([frame_features.unsqueeze(2), actions.unsqueeze(2), self.code(codes)], dim=2)
        return x + self.block_position_embedding + time

    @compile_region()
    def _upsample(self, x: Tensor, index: int) -> Tensor:
        """Make each token of the grid before `index` 2×2 tokens; frame vector and action pass through."""
        rows, columns = self.grids[index - 1]
        coarse = x[:, :, 2:].unflatten(2, (rows, 1, columns, 1))
        fine = coarse.expand(-1, -1, -1, 2, -1, 2, -1).flatten(2, 5) + self.upsample_position_embedding[index - 1]
        return torch.cat([x[:, :, :2], fine], dim=2)

    @compile_region()
    def _add_previous_patches(self, x: Tensor, frames: Tensor, embed: nn.Module) -> Tensor:
        patches = embed(to_patches(scale_pixels(frames), self.patch_size))
        return torch.cat([x[:, :, :2], x[:, :, 2:] + patches], dim=2)

    @compile_region()
    def _predict_frames(self, x: Tensor, frames: Tensor) -> Tensor:
        outputs = self.norm(x)
        pixels = from_patches(self.to_pixels(outputs[:, :, 2:]), self.grids[-1], self.patch_size)
        return pixels if self.motion is None else self.motion(pixels, frames, outputs[:, :, 1])
