"""A pre-LayerNorm Transformer over blocks of tokens, with a static key-value cache."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["KVCache", "Transformer", "autocast_dtype", "block_mask", "init_weights"]


def autocast_dtype(device: torch.device) -> torch.dtype:
    """The type in which attention works on `device` now: autocast's where it is on, else float32."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float32


def init_weights(module: nn.Module) -> None:
    """GPT-2's initialization: normal weights of std 0.02, zero biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def block_mask(valid: Tensor, block_size: int, *, within: str, first: int = 0, last: int | None = None) -> Tensor:
    """Who may attend to whom in a sequence of equally long blocks.

    A token sees the valid earlier blocks, and of its own block either all of it or what is not later. Tokens of
    blocks that are not valid (padding) see their own block too, so that no row of the softmax is empty.

    Args:
        valid: (B, T) booleans, false for blocks of padding: nobody outside attends to them.
        block_size: tokens a block.
        within: `"block"` (a token sees its whole block) or `"token"` (causal token by token).
        first: sequence position of the first query (those before are in a cache).
        last: sequence position after the last query; the keys are 0…last. All T blocks by default.

    Returns:
        (B, 1, last − first, last) booleans, true where attention is allowed.
    """
    length = valid.shape[1] * block_size if last is None else last
    keys = torch.arange(length, device=valid.device)
    queries = keys[first:, None]
    key_block, query_block = keys // block_size, queries // block_size
    order = query_block >= key_block if within == "block" else queries >= keys
    key_valid = valid.repeat_interleave(block_size, dim=1, output_size=valid.shape[1] * block_size)[:, :length]
    return (order & ((query_block == key_block) | key_valid[:, None, :])).unsqueeze(1)


class KVCache:
    """Keys and values of every layer of a Transformer, in memory allocated once.

    Args:
        layers: number of layers.
        shape: (batch, heads, tokens, head dimension) of each layer's keys and of its values.
        device: where they live.
        dtype: their type.
    """

    def __init__(self, layers: int, shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype) -> None:
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.length = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, H, n, Dh) after what is there; return all keys and values so far, (B, H, length + n, Dh)."""
        end = self.length + keys.shape[2]
        self.keys[layer][:, :, self.length : end] = keys
        self.values[layer][:, :, self.length : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


class _SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        batch, length, dim = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        queries, keys, values = qkv.unbind(0)
        if cache is not None:
            keys, values = cache.append(layer, keys, values)
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.out(attended.transpose(1, 2).reshape(batch, length, dim))


class _Layer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = _SelfAttention(dim, heads)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, mask: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        x = x + self.attention(self.attention_norm(x), mask, cache, layer)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """A stack of pre-LayerNorm layers; positions and masks are the caller's.

    Args:
        dim: width of the residual stream.
        layers: number of layers.
        heads: attention heads; must divide `dim`.
        depth: layers of the whole model where this stack is a part of it, for the scale of the residual branches.
    """

    def __init__(self, dim: int, layers: int, heads: int, depth: int | None = None) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of heads {heads}")
        self.dim, self.heads = dim, heads
        self.layers = nn.ModuleList(_Layer(dim, heads) for _ in range(layers))
        self.apply(init_weights)
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            for projection in (layer.attention.out, layer.mlp[-1]):
                assert isinstance(projection, nn.Linear)
                nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * (depth or layers)))

    def make_cache(self, batch: int, length: int, device: torch.device) -> KVCache:
        """An empty cache for `batch` sequences of at most `length` tokens."""
        shape = (batch, self.heads, length, self.dim // self.heads)
        return KVCache(len(self.layers), shape, device, autocast_dtype(device))

    def forward(self, x: Tensor, mask: Tensor, cache: KVCache | None = None) -> Tensor:
        """Transform tokens, after those in `cache` where one is given (which then holds these too).

        Args:
            x: (B, n, dim) embeddings, positions included.
            mask: booleans that broadcast to (B, heads, n, keys), true where attention is allowed; the keys are those
                of the cache, then these.
            cache: keys and values of earlier tokens.

        Returns:
            (B, n, dim).
        """
        for index, layer in enumerate(self.layers):
            x = layer(x, mask, cache, index)
        if cache is not None:
            cache.length += x.shape[1]
        return x
