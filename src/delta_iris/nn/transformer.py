"""A pre-LayerNorm Transformer over blocks of tokens, with a static key-value cache."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from delta_iris.acceleration.compile import is_accelerated, region
from delta_iris.nn.cached_attention_triton import decode
from delta_iris.nn.kv_cache import KVCache

__all__ = [
    "EMBEDDING_STD",
    "Transformer",
    "autocast_dtype",
    "block_mask",
    "init_weights",
    "rotation",
    "sparse_block_mask",
]

EMBEDDING_STD = 0.02
"""Of all that is added up or stands side by side in a sequence before training (GPT-2's): what is louder drowns the
rest until the rest has grown, and at a step of at most the learning rate that takes thousands of them."""

SPARSE_LENGTH = 512
"""Tokens from which on attention over a whole window is worth leaving masked tiles out."""

TILE = 128
"""Side of a tile, in tokens."""

KEY_MULTIPLE = 8
"""Keys of a dense mask are filled up to a multiple of this with some that nobody sees. PyTorch's kernels read the
rows of a mask in pieces of 8; compiled code makes room for others itself, and does not write to it."""

FORWARD_TILES: Any = {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 64, "fwd_num_warps": 4, "fwd_num_stages": 3}
"""Of several tried on an H200 (1,365 tokens, 32 × 8 heads): 0.41 ms where PyTorch's own choice takes 0.53."""


def autocast_dtype(device: torch.device) -> torch.dtype:
    """The type in which attention works on `device` now: autocast's where it is on, else float32."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float32


def init_weights(module: nn.Module) -> None:
    """GPT-2's initialization: normal weights of std 0.02, zero biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=EMBEDDING_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def block_mask(
    valid: Tensor, block_size: int, *, within: str, queries: slice | None = None, keys: int | None = None
) -> Tensor:
    """Who may attend to whom in a sequence of equally long blocks.

    A token sees the valid earlier blocks, and of its own block either all of it or what is not later. Tokens of
    blocks that are not valid (padding) see their own block too, so that no row of the softmax is empty.

    Args:
        valid: (B, T) booleans, false for blocks of padding: nobody outside attends to them.
        block_size: tokens a block.
        within: `"block"` (a token sees its whole block) or `"token"` (causal token by token).
        queries: sequence positions of the n queries, where they are not the whole sequence.
        keys: number of keys, by default the next multiple of `KEY_MULTIPLE` from T · block_size on; those beyond that
            are never seen.

    Returns:
        (B, 1, n, keys) booleans, true where attention is allowed.
    """
    total = valid.shape[1] * block_size
    key = torch.arange(keys or -(-total // KEY_MULTIPLE) * KEY_MULTIPLE, device=valid.device)
    query = (key[:total] if queries is None else key[queries]).unsqueeze(1)
    key_block, query_block = key // block_size, query // block_size
    order = query_block >= key_block if within == "block" else query >= key
    key_valid = valid.repeat_interleave(block_size, dim=1, output_size=total)
    key_valid = F.pad(key_valid, (0, len(key) - total))
    return (order & ((query_block == key_block) | key_valid[:, None, :])).unsqueeze(1)


def sparse_block_mask(valid: Tensor, block_size: int) -> BlockMask:
    """`block_mask(valid, block_size, within="block")` for kernels that leave out tiles with nothing to see.

    The valid blocks of each row of `valid` must be consecutive, as those of a window are.
    """
    blocks, device = valid.shape[1], valid.device
    length = blocks * block_size
    numbers = torch.arange(blocks, device=device)
    # Comparing with the ends is much cheaper in the kernels' innermost loop than looking each key up.
    start = torch.where(valid, numbers, blocks).amin(1) * block_size
    stop = torch.where(valid, numbers + 1, 0).amax(1) * block_size

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        block = query // block_size * block_size
        real = (key >= start[batch]) & (key < stop[batch])
        return (key < block + block_size) & (real | (key >= block))

    # Which tiles hold something to see, and in which there is nothing to hide: worked out from their corners, for
    # `create_block_mask` would look at every pair of tokens.
    low = torch.arange(0, length, TILE, device=device)
    high = (low + TILE - 1).clamp(max=length - 1)
    low_block, high_block = (corner // block_size * block_size for corner in (low, high))
    reached = low < high_block[:, None] + block_size
    own = reached & (high >= low_block[:, None])
    first, end = start[:, None, None], stop[:, None, None]
    some = (reached & (low < end) & (high >= first)) | own
    every = (high < low_block[:, None] + block_size) & (low >= first) & (high < end) & (low + TILE <= length)
    return BlockMask.from_kv_blocks(
        *_tile_lists(some & ~every),
        *_tile_lists(every),
        BLOCK_SIZE=TILE,
        mask_mod=allowed,
        seq_lengths=(length, length),
    )


def _tile_lists(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """How many tiles of each row are marked (B, 1, rows), and which, those first (B, 1, rows, columns)."""
    order = torch.argsort(tiles.to(torch.int8), dim=-1, descending=True, stable=True)
    return tiles.sum(-1, dtype=torch.int32).unsqueeze(1), order.to(torch.int32).unsqueeze(1)


def rotation(positions: Tensor, dim: int) -> Tensor:
    """Cosines and sines of rotary positions (Su et al., 2021), (2, n, dim / 2), for `Transformer.forward`.

    Wavelengths are from 6 positions to some 600 for wide heads, fewer for narrow ones: windows are short.

    Args:
        positions: (n,) of each token.
        dim: of an attention head, even.
    """
    frequencies = 100.0 ** (-torch.arange(0, dim, 2, device=positions.device) / dim)
    angles = positions.unsqueeze(-1) * frequencies
    return torch.stack([angles.cos(), angles.sin()])


def _rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn queries or keys (B, H, n, Dh) by their positions' angles."""
    (cos, sin), (a, b) = rotary, x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


def cached_attention(qkv: Tensor, cache: KVCache, layer: int, mask: Tensor | None) -> Tensor:
    """Write new tokens to a layer's cache and attend to all that a mask allows; (B, n, 3, H, Dh) → (B, n, H, Dh)."""
    if mask is None:
        return decode(qkv, cache, layer)
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

    @region()
    def forward(self, x: Tensor, mask: Tensor | BlockMask, rotary: Tensor | None) -> Tensor:
        """Attend within a window."""
        queries, keys, values = self.before(x).permute(2, 0, 3, 1, 4).unbind(0)
        if rotary is not None:
            queries, keys = _rotate(queries, rotary), _rotate(keys, rotary)
        if isinstance(mask, BlockMask):
            attended = flex_attention(queries, keys, values, block_mask=mask, kernel_options=FORWARD_TILES)
            assert isinstance(attended, Tensor)
        else:
            if more := mask.shape[-1] - keys.shape[-2]:
                keys, values = F.pad(keys, (0, 0, 0, more)), F.pad(values, (0, 0, 0, more))
            attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.after(x, attended.transpose(1, 2), drop=self.training and self.dropout > 0)

    @region(dynamic=True)
    def before(self, x: Tensor) -> Tensor:
        """What comes before attention: (B, n, dim) → queries, keys and values (B, n, 3, H, Dh)."""
        return self.qkv(self.attention_norm(x)).view(*x.shape[:2], 3, self.heads, -1)

    @region(dynamic=True)
    def after(self, x: Tensor, attended: Tensor, drop: bool = False) -> Tensor:
        """What comes after it: (B, n, dim) and (B, n, H, Dh) → (B, n, dim)."""
        added = self.out(attended.reshape(x.shape))
        x = x + (F.dropout(added, self.dropout) if drop else added)
        added = self.mlp(self.mlp_norm(x))
        return x + (F.dropout(added, self.dropout) if drop else added)


@region(dynamic=True)
def _between(layer: _Layer, following: _Layer, x: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
    """From one layer's attention to the next one's: as a single region, the sum is normalized where it is made."""
    x = layer.after(x, attended)
    return x, following.before(x)


class Transformer(nn.Module):
    """A stack of pre-LayerNorm layers; positions and masks are the caller's.

    Args:
        dim: width of the residual stream.
        layers: number of layers.
        heads: attention heads; must divide `dim`.
        depth: layers of the whole model where this stack is a part of it, for the scale of the residual branches.
        dropout: share of what attention and MLPs add that is left out while training on windows; stepping never does.
    """

    def __init__(self, dim: int, layers: int, heads: int, depth: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of heads {heads}")
        self.dim, self.heads = dim, heads
        self.layers = nn.ModuleList(_Layer(dim, heads, dropout) for _ in range(layers))
        self.apply(init_weights)
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            for projection in (layer.out, layer.mlp[-1]):
                assert isinstance(projection, nn.Linear)
                nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * (depth or layers)))

    def window_mask(self, valid: Tensor, block_size: int) -> Tensor | BlockMask:
        """`block_mask(valid, block_size, within="block")`, in the form that is fastest here."""
        if valid.shape[1] * block_size >= SPARSE_LENGTH and self._fused(valid):
            return sparse_block_mask(valid, block_size)
        return block_mask(valid, block_size, within="block")

    def _fused(self, x: Tensor) -> bool:
        """Whether attention is a kernel of its own: tensor cores take heads of these widths."""
        return is_accelerated() and x.is_cuda and self.dim // self.heads in (16, 32, 64, 128)

    def make_cache(self, valid: Tensor, block_size: int, within: str) -> KVCache:
        """An empty cache for B sequences of at most T blocks, `valid` (B, T); see `KVCache`."""
        dtype = autocast_dtype(valid.device)
        return KVCache(len(self.layers), self.heads, self.dim // self.heads, valid, block_size, within, dtype)

    def forward(self, x: Tensor, mask: Tensor | BlockMask, rotary: Tensor | None = None) -> Tensor:
        """Transform the tokens of a window.

        Args:
            x: (B, n, dim) embeddings, with positions added where they are not rotary.
            mask: from `block_mask` or `window_mask`; true where attention is allowed.
            rotary: from `rotation`.

        Returns:
            (B, n, dim).
        """
        for layer in self.layers:
            x = layer(x, mask, rotary)
        return x

    def step(self, x: Tensor, cache: KVCache) -> Tensor:
        """Transform the tokens (B, n, dim) that come after those in `cache`, which then holds these too."""
        mask = None
        if not self._fused(x):
            mask = block_mask(
                cache.valid,
                cache.block_size,
                within=cache.within,
                queries=cache.next(x.shape[1]),
                keys=cache.tokens,
            )
        layers: list[_Layer] = list(self.layers)  # type: ignore[arg-type]
        qkv = layers[0].before(x) if layers else x
        for index, layer in enumerate(layers):
            attended = cached_attention(qkv, cache, index, mask)
            if layer is layers[-1]:
                x = layer.after(x, attended)
            else:
                x, qkv = _between(layer, layers[index + 1], x, attended)
        cache.position += x.shape[1]
        return x
