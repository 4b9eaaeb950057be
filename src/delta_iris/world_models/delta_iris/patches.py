"""Frames as patches, and the grids from patches to tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from delta_iris.nn.transformer import EMBEDDING_STD

__all__ = [
    "Grid",
    "from_patches",
    "patch_embedding",
    "pooled_grids",
    "position_embedding",
    "scale_pixels",
    "to_patches",
]

Grid = tuple[int, int]
"""Rows and columns."""


def pooled_grids(frame_size: tuple[int, int], patch_size: int, tokens_per_frame: int, num_groups: int) -> list[Grid]:
    """The patch grid, halved between groups of layers until it has `tokens_per_frame` cells.

    Args:
        frame_size: height and width of a frame, in pixels.
        patch_size: side of a patch, in pixels.
        tokens_per_frame: cells of the coarsest grid.
        num_groups: groups of layers, one for each grid.

    Returns:
        the grids, from the finest to the coarsest.

    Raises:
        ValueError: if patches do not divide the frame, 2×2 pooling cannot lead from the patches to the tokens, or the
            number of layer groups is not one more than the number of poolings.
    """
    height, width = frame_size
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"patch_size {patch_size} does not divide frames of {height}×{width} pixels: "
            f"choose one of {[p for p in range(1, min(frame_size) + 1) if height % p == width % p == 0]}"
        )
    grids = [(height // patch_size, width // patch_size)]
    while math.prod(grids[-1]) > tokens_per_frame and all(side % 2 == 0 for side in grids[-1]):
        grids.append((grids[-1][0] // 2, grids[-1][1] // 2))
    if math.prod(grids[-1]) != tokens_per_frame:
        reachable = [math.prod(grids[0]) // 4**i for i in range(len(grids) + 1)]
        reachable = [n for i, n in enumerate(reachable) if all(side % 2**i == 0 for side in grids[0])]
        raise ValueError(
            f"tokens_per_frame {tokens_per_frame} cannot be reached by 2×2 pooling from a {grids[0][0]}×{grids[0][1]} "
            f"grid of patches: choose one of {reachable}, or another patch_size"
        )
    if num_groups != len(grids):
        raise ValueError(
            f"encoder_layers and decoder_layers need {len(grids)} entries each, one for each group of layers: "
            f"{' → '.join(f'{h}×{w}' for h, w in grids)} takes {len(grids) - 1} poolings; got {num_groups}"
        )
    return grids


def to_patches(frames: Tensor, size: int) -> Tensor:
    """Cut frames into patches: (B, T, C, H, W) → (B, T, patches, C · size²)."""
    batch, time, channels, height, width = frames.shape
    cells = frames.reshape(batch, time, channels, height // size, size, width // size, size)
    return cells.permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, time, -1, channels * size**2)


def from_patches(patches: Tensor, grid: Grid, size: int) -> Tensor:
    """The inverse of `to_patches`."""
    batch, time = patches.shape[:2]
    cells = patches.reshape(batch, time, *grid, -1, size, size).permute(0, 1, 4, 2, 5, 3, 6)
    return cells.reshape(batch, time, -1, grid[0] * size, grid[1] * size)


def scale_pixels(frames: Tensor) -> Tensor:
    """Scale pixels from [0, 1] to [−2, 2], about unit variance."""
    return (frames - 0.5) * 4


def patch_embedding(patch_size: int, dim: int, channels: int = 3) -> nn.Linear:
    """A linear layer that maps pixels of unit variance to embeddings of the common scale."""
    layer = nn.Linear(channels * patch_size**2, dim)
    nn.init.normal_(layer.weight, std=EMBEDDING_STD / math.sqrt(layer.in_features))
    nn.init.zeros_(layer.bias)
    return layer


def position_embedding(*shape: int) -> nn.Parameter:
    """Learned position embeddings of the common scale."""
    return nn.Parameter(torch.randn(shape) * EMBEDDING_STD)
