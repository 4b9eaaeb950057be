"""A pre-LayerNorm Transformer over blocks of tokens, with block-wise masks and a static key-value cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from delta_iris.acceleration.compile import compile_region, is_compiling
from delta_iris.nn.cached_attention_triton import cached_attention_triton
from delta_iris.nn.kv_cache import AttentionKind, KVCache

__all__ = [
    "EMBEDDING_STD",
    "Transformer",
    "TransformerConfig",
    "autocast_dtype",
    "block_mask",
    "cached_attention",
    "init_weights",
    "rotary_embedding",
    "sparse_block_mask",
]

EMBEDDING_STD = 0.02
"""Initial standard deviation (GPT-2's) of everything that is added to or concatenated with token embeddings.

An input of larger scale would dominate the others until their embeddings have grown, which takes thousands of optimizer
steps because a step changes a weight by at most about the learning rate.
"""

SPARSE_LENGTH = 512
"""Minimum number of tokens in a window for which sparse attention, which skips masked tiles, is faster than dense."""

TILE = 128
"""Side length of a tile of the sparse mask, in tokens."""

KEY_MULTIPLE = 8
"""The number of keys of a dense mask is padded to a multiple of this; nothing attends to the padding.

PyTorch's kernels read the rows of a mask in groups of 8. Compiled code would otherwise allocate a padded copy of the
mask and leave the padding uninitialized.
"""

FORWARD_TILES: Any = {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 64, "fwd_num_warps": 4, "fwd_num_stages": 3}
"""Fastest of several tile sizes tried on an H200 (1,365 tokens, 32 × 8 heads): 0.41 ms; PyTorch's default: 0.53 ms."""


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a `Transformer`.

    Args:
        dim: width of the residual stream.
        layers: number of layers.
        heads: number of attention heads; must divide `dim`.
        dropout: dropout probability of the attention and MLP outputs during training.

    Raises:
        ValueError: if an argument is out of range.
    """

    dim: int
    layers: int
    heads: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"heads is {self.heads}: it must be at least 1")
        if self.dim < 1 or self.dim % self.heads:
            raise ValueError(f"dim is {self.dim}: it must be a positive multiple of heads, which is {self.heads}")
        if self.layers < 0:
            raise ValueError(f"layers is {self.layers}: it must be at least 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: it must be at least 0 and below 1")


def autocast_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype in which attention computes on a device: autocast's if it is enabled, otherwise float32."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float32


def init_weights(module: nn.Module) -> None:
    """Initialize a linear or embedding layer as in GPT-2: normal weights of standard deviation 0.02, zero biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=EMBEDDING_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def block_mask(
    valid: Tensor,
    block_size: int,
    *,
    attention: AttentionKind,
    queries: slice | Tensor | None = None,
    keys: int | None = None,
) -> Tensor:
    """Return the dense attention mask of a sequence of blocks of equal length.

    A token attends to all earlier valid blocks and to tokens of its own block. Tokens of invalid blocks (padding)
    attend to their own block too, so that no row of the softmax is empty.

    Args:
        valid: (B, T) booleans, false for blocks of padding, which no other block attends to.
        block_size: number of tokens in a block.
        attention: which tokens of its own block a token attends to: all (`"block_causal"`), or itself and those before
            it (`"causal"`).
        queries: index of the sequence positions of the n queries; the whole sequence by default.
        keys: number of keys; by default T · block_size, rounded up to a multiple of `KEY_MULTIPLE`. Keys beyond
            T · block_size are masked.

    Returns:
        (B, 1, n, keys) booleans, true where attention is allowed.
    """
    total = valid.shape[1] * block_size
    key = torch.arange(keys or -(-total // KEY_MULTIPLE) * KEY_MULTIPLE, device=valid.device)
    query = (key[:total] if queries is None else key[queries]).unsqueeze(1)
    key_block, query_block = key // block_size, query // block_size
    order = query_block >= key_block if attention == "block_causal" else query >= key
    key_valid = valid.repeat_interleave(block_size, dim=1, output_size=total)
    key_valid = F.pad(key_valid, (0, len(key) - total))
    return (order & ((query_block == key_block) | key_valid[:, None, :])).unsqueeze(1)


def sparse_block_mask(valid: Tensor, block_size: int) -> BlockMask:
    """Return `block_mask(valid, block_size, attention="block_causal")` for kernels that skip fully masked tiles.

    Args:
        valid: (B, T) booleans, false for blocks of padding. The valid blocks of each row must be consecutive, as they
            are in a window of an episode.
        block_size: number of tokens in a block.
    """
    num_blocks, device = valid.shape[1], valid.device
    length = num_blocks * block_size
    numbers = torch.arange(num_blocks, device=device)
    # In the kernels' innermost loop, comparing keys with the ends of the valid range is cheaper than loading `valid`.
    start = torch.where(valid, numbers, num_blocks).amin(1) * block_size
    stop = torch.where(valid, numbers + 1, 0).amax(1) * block_size

    def is_allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query_block = query // block_size * block_size
        key_valid = (key >= start[batch]) & (key < stop[batch])
        return (key < query_block + block_size) & (key_valid | (key >= query_block))

    # Find the tiles that are not fully masked, and those that are not masked at all, from their corners:
    # `create_block_mask` would evaluate the mask for every pair of tokens.
    low = torch.arange(0, length, TILE, device=device)
    high = (low + TILE - 1).clamp(max=length - 1)
    low_block, high_block = (corner // block_size * block_size for corner in (low, high))
    in_order = low < high_block[:, None] + block_size
    same_block = in_order & (high >= low_block[:, None])
    valid_start, valid_stop = start[:, None, None], stop[:, None, None]
    any_allowed = (in_order & (low < valid_stop) & (high >= valid_start)) | same_block
    all_allowed = (
        (high < low_block[:, None] + block_size) & (low >= valid_start) & (high < valid_stop) & (low + TILE <= length)
    )
    return BlockMask.from_kv_blocks(
        *_tile_lists(any_allowed & ~all_allowed),
        *_tile_lists(all_allowed),
        BLOCK_SIZE=TILE,
        mask_mod=is_allowed,
        seq_lengths=(length, length),
    )


def _tile_lists(marked: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of marked tiles in each row, and the column indices with the marked ones first.

    Args:
        marked: (B, rows, columns) booleans.

    Returns:
        (B, 1, rows) and (B, 1, rows, columns), int32.
    """
    order = torch.argsort(marked.to(torch.int8), dim=-1, descending=True, stable=True)
    return marked.sum(-1, dtype=torch.int32).unsqueeze(1), order.to(torch.int32).unsqueeze(1)


def rotary_embedding(positions: Tensor, dim: int) -> Tensor:
    """Return cosines and sines of rotary position embeddings (Su et al., 2021) for `Transformer.forward`.

    The wavelengths range from 6 to about 600 positions for wide heads, and over fewer for narrow heads, because windows
    are short.

    Args:
        positions: (n,) position of each token.
        dim: dimension of an attention head, even.

    Returns:
        (2, n, dim / 2).
    """
    frequencies = 100.0 ** (-torch.arange(0, dim, 2, device=positions.device) / dim)
    angles = positions.unsqueeze(-1) * frequencies
    return torch.stack([angles.cos(), angles.sin()])


def _rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Apply rotary embeddings to queries or keys (B, H, n, Dh)."""
    (cos, sin), (a, b) = rotary, x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


def cached_attention(qkv: Tensor, cache: KVCache, layer: int, mask: Tensor | None) -> Tensor:
    """Write new tokens to a layer of the cache and attend to the cached and the new tokens.

    Args:
        qkv: (B, n, 3, H, Dh) queries, keys and values of the new tokens.
        cache: key-value cache, whose `position` is that of the first new token.
        layer: index of the layer.
        mask: (B, 1, n, cache.tokens) booleans from `block_mask`; if None, the Triton kernel is used, which derives the
            mask from the cache.

    Returns:
        (B, n, H, Dh).
    """
    if mask is None:
        return cached_attention_triton(qkv, cache, layer)
    queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    new, cached = cache.next(qkv.shape[1]), (cache.keys[layer], cache.values[layer])
    cached[0][:, :, new], cached[1][:, :, new] = keys, values
    return F.scaled_dot_product_attention(queries, *cached, attn_mask=mask).transpose(1, 2)


class _Layer(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    @compile_region()
    def forward(self, x: Tensor, mask: Tensor | BlockMask, rotary: Tensor | None) -> Tensor:
        """Transform the tokens of a window; see `Transformer.forward`."""
        queries, keys, values = self.attention_input(x).permute(2, 0, 3, 1, 4).unbind(0)
        if rotary is not None:
            queries, keys = _rotate(queries, rotary), _rotate(keys, rotary)
        if isinstance(mask, BlockMask):
            attended = flex_attention(queries, keys, values, block_mask=mask, kernel_options=FORWARD_TILES)
            assert isinstance(attended, Tensor)
        else:
            if padding := mask.shape[-1] - keys.shape[-2]:
                keys, values = F.pad(keys, (0, 0, 0, padding)), F.pad(values, (0, 0, 0, padding))
            attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.attention_output(x, attended.transpose(1, 2), drop=self.training and self.dropout > 0)

    @compile_region(dynamic=True)
    def attention_input(self, x: Tensor) -> Tensor:
        """Project the residual stream (B, n, dim) to queries, keys and values (B, n, 3, H, Dh)."""
        return self.qkv(self.attention_norm(x)).view(*x.shape[:2], 3, self.heads, -1)

    @compile_region(dynamic=True)
    def attention_output(self, x: Tensor, attended: Tensor, drop: bool = False) -> Tensor:
        """Add the outputs of attention and of the MLP to the residual stream.

        Args:
            x: (B, n, dim) residual stream before attention.
            attended: (B, n, H, Dh) attention outputs of all heads.
            drop: whether to apply dropout.

        Returns:
            (B, n, dim).
        """
        added = self.out(attended.reshape(x.shape))
        x = x + (F.dropout(added, self.dropout) if drop else added)
        added = self.mlp(self.mlp_norm(x))
        return x + (F.dropout(added, self.dropout) if drop else added)


@compile_region(dynamic=True)
def fused_layer_boundary(layer: _Layer, following: _Layer, x: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `layer.attention_output` and `following.attention_input` in one region.

    The compiler can then fuse the last residual sum of a layer with the LayerNorm of the next one.
    """
    x = layer.attention_output(x, attended)
    return x, following.attention_input(x)


class Transformer(nn.Module):
    """A stack of pre-LayerNorm layers; the caller supplies position embeddings and masks.

    Args:
        dim: width of the residual stream.
        layers: number of layers.
        heads: number of attention heads; must divide `dim`.
        depth: number of layers of the whole model if this stack is a part of it, which sets the initial scale of the
            residual branches; `layers` by default.
        dropout: dropout probability of the attention and MLP outputs in `forward` during training; `step` never drops.

    Raises:
        ValueError: if `dim` is not a multiple of `heads`.
    """

    def __init__(self, dim: int, layers: int, heads: int, depth: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim is {dim}: it must be a multiple of heads, which is {heads}")
        self.dim, self.heads = dim, heads
        self.layers = nn.ModuleList(_Layer(dim, heads, dropout) for _ in range(layers))
        self.apply(init_weights)
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            for projection in (layer.out, layer.mlp[-1]):
                assert isinstance(projection, nn.Linear)
                nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * (depth or layers)))

    def attention_mask(
        self, valid: Tensor, block_size: int, attention: AttentionKind = "block_causal"
    ) -> Tensor | BlockMask:
        """Return the mask of a window, sparse where sparse attention is faster.

        Args:
            valid: (B, T) booleans, false for blocks of padding; see `sparse_block_mask`.
            block_size: number of tokens in a block.
            attention: whether a token attends to its whole block or to the tokens before it only.
        """
        if attention == "causal":
            return block_mask(valid, block_size, attention="causal")
        if valid.shape[1] * block_size >= SPARSE_LENGTH and self._has_fused_attention(valid):
            return sparse_block_mask(valid, block_size)
        return block_mask(valid, block_size, attention="block_causal")

    def _has_fused_attention(self, x: Tensor) -> bool:
        """Return whether the fused attention kernels are used, which require heads of these dimensions."""
        return is_compiling() and x.is_cuda and self.dim // self.heads in (16, 32, 64, 128)

    def make_cache(
        self, valid: Tensor, block_size: int, attention: AttentionKind, device_position: bool = False
    ) -> KVCache:
        """Create an empty key-value cache.

        Args:
            valid: (B, T) booleans, false for blocks of padding, for B sequences of at most T blocks.
            block_size: number of tokens in a block.
            attention: `"block_causal"` or `"causal"`; see `block_mask`.
            device_position: see `KVCache`.
        """
        sizes = len(self.layers), self.heads, self.dim // self.heads
        return KVCache(*sizes, valid, block_size, attention, autocast_dtype(valid.device), device_position)

    def forward(self, x: Tensor, mask: Tensor | BlockMask, rotary: Tensor | None = None) -> Tensor:
        """Transform the tokens of a window.

        Args:
            x: (B, n, dim) token embeddings, including any additive position embeddings.
            mask: attention mask from `block_mask` or `attention_mask`.
            rotary: (2, n, Dh / 2) from `rotary_embedding`, or None for no rotary embeddings.

        Returns:
            (B, n, dim).
        """
        for layer in self.layers:
            x = layer(x, mask, rotary)
        return x

    def step(self, x: Tensor, cache: KVCache) -> Tensor:
        """Transform the next tokens of the sequences in a cache, and append them to it.

        Args:
            x: (B, n, dim) embeddings of the new tokens.
            cache: key-value cache of this stack; modified in place.

        Returns:
            (B, n, dim).
        """
        mask = None
        if not self._has_fused_attention(x):
            mask = block_mask(
                cache.valid,
                cache.block_size,
                attention=cache.attention,
                queries=cache.next(x.shape[1]),
                keys=cache.tokens,
            )
        layers: list[_Layer] = list(self.layers)  # type: ignore[arg-type]
        qkv = layers[0].attention_input(x) if layers else x
        for index, layer in enumerate(layers):
            attended = cached_attention(qkv, cache, index, mask)
            if layer is layers[-1]:
                x = layer.attention_output(x, attended)
            else:
                x, qkv = fused_layer_boundary(layer, layers[index + 1], x, attended)
        cache.advance(x.shape[1])
        return x
