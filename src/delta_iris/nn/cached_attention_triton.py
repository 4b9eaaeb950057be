"""A Triton kernel for attention of a few new tokens over a key-value cache; it reads only the written positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from delta_iris.nn.kv_cache import KVCache

__all__ = ["cached_attention_triton"]

try:
    import triton
    import triton.language as tl
except ImportError:  # PyTorch without CUDA comes without Triton; the kernel is never launched then.
    triton = None


def cached_attention_triton(qkv: Tensor, cache: KVCache, layer: int) -> Tensor:
    """Write new tokens to a layer of the cache and attend to the cached and the new tokens.

    Computes the same as `delta_iris.nn.transformer.cached_attention` does with the mask of the whole cache.

    Args:
        qkv: (B, n, 3, H, Dh) queries, keys and values of the new tokens, contiguous, on a CUDA device.
        cache: key-value cache, whose `position` is that of the first new token.
        layer: index of the layer.

    Returns:
        (B, n, H, Dh).
    """
    batch, length, _, heads, dim = qkv.shape
    out = torch.empty(batch, length, heads, dim, device=qkv.device, dtype=qkv.dtype)
    rows = max(16, triton.next_power_of_2(length)) if length <= 128 else 64
    _cached_attention_kernel[(batch * heads, triton.cdiv(length, rows))](
        qkv,
        cache.keys[layer],
        cache.values[layer],
        cache.valid,
        cache.position,
        out,
        dim**-0.5 * 1.4426950408889634,  # The factor log2(e) turns exp into exp2, which the hardware computes.
        length,
        cache.valid.shape[1],
        cache.tokens,
        heads,
        DIM=dim,
        BLOCK=cache.block_size,
        CAUSAL=cache.attention == "causal",
        ON_DEVICE=isinstance(cache.position, Tensor),
        ROWS=rows,
        COLUMNS=64 if length > 16 else 32,
        # On tensor cores, float32 products would be rounded to TF32.
        PRECISION="ieee" if qkv.dtype == torch.float32 else "tf32",
        num_warps=2 if rows == 16 else 8 if rows == 128 else 4,
    )
    return out


def _triton_kernel(*unspecialized: str) -> Callable[[Any], Any]:
    """Return `triton.jit`, which does not recompile the kernel for values of the `unspecialized` arguments."""
    return lambda function: function if triton is None else triton.jit(function, do_not_specialize=list(unspecialized))


@_triton_kernel()
def _attend_tile(  # type: ignore[no-untyped-def]
    q, k, v, allowed, row_max, row_sum, weighted_values, PRECISION: tl.constexpr
):
    """Add one tile of keys and values to the running (base 2) softmax."""
    scores = tl.where(allowed, tl.dot(q, tl.trans(k), input_precision=PRECISION), float("-inf"))
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    # Rows without any allowed key so far stay at zero instead of becoming inf − inf.
    shift = tl.where(new_max == float("-inf"), 0.0, new_max)
    weights = tl.exp2(scores - shift[:, None])
    rescale = tl.exp2(row_max - shift)
    row_sum = row_sum * rescale + tl.sum(weights, 1)
    weighted_values = weighted_values * rescale[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    return new_max, row_sum, weighted_values


@_triton_kernel("position")
def _cached_attention_kernel(  # type: ignore[no-untyped-def]
    qkv,
    keys,
    values,
    valid,
    position,
    out,
    scale,
    length,
    num_blocks,
    capacity,
    heads,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    CAUSAL: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attend with ROWS queries of one head; each program writes the keys and values of its own rows to the cache."""
    if ON_DEVICE:
        position = tl.load(position).to(tl.int32)
    batch, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns, dims = tl.arange(0, COLUMNS), tl.arange(0, DIM)
    # Strides: a token of qkv has 3 · heads · DIM elements; its queries, keys and values have heads · DIM each.
    width = heads * DIM
    new = qkv + (batch * length * 3 * width + head * DIM)
    cached = (batch * heads + head).to(tl.int64) * capacity * DIM
    row_offsets, row_exists = rows[:, None] * 3 * width + dims[None, :], rows[:, None] < length
    q = tl.load(new + row_offsets, mask=row_exists, other=0.0)
    q = (q * scale).to(q.dtype)
    slots = cached + (position + rows[:, None]) * DIM + dims[None, :]
    tl.store(keys + slots, tl.load(new + width + row_offsets, mask=row_exists, other=0.0), mask=row_exists)
    tl.store(values + slots, tl.load(new + 2 * width + row_offsets, mask=row_exists, other=0.0), mask=row_exists)
    query_block = (position + rows) // BLOCK

    row_max = tl.full([ROWS], float("-inf"), tl.float32)
    row_sum = tl.zeros([ROWS], tl.float32)
    weighted_values = tl.zeros([ROWS, DIM], tl.float32)
    # First the tokens that earlier steps have written to the cache.
    for start in range(0, position, COLUMNS):
        key = start + columns
        written = key < position
        offsets = cached + key[:, None] * DIM + dims[None, :]
        k = tl.load(keys + offsets, mask=written[:, None], other=0.0)
        v = tl.load(values + offsets, mask=written[:, None], other=0.0)
        key_valid = tl.load(valid + batch * num_blocks + key // BLOCK, mask=written, other=0) != 0
        same_block = (key // BLOCK)[None, :] == query_block[:, None]
        allowed = (key_valid[None, :] | same_block) & written[None, :]
        row_max, row_sum, weighted_values = _attend_tile(q, k, v, allowed, row_max, row_sum, weighted_values, PRECISION)
    # Then the new tokens, from qkv: other programs may not have written them to the cache yet.
    for start in range(0, length, COLUMNS):
        key = start + columns
        exists = key < length
        offsets = key[:, None] * 3 * width + dims[None, :]
        k = tl.load(new + width + offsets, mask=exists[:, None], other=0.0)
        v = tl.load(new + 2 * width + offsets, mask=exists[:, None], other=0.0)
        key_block = (position + key) // BLOCK
        key_valid = tl.load(valid + batch * num_blocks + key_block, mask=exists, other=0) != 0
        same_block = key_block[None, :] == query_block[:, None]
        order = key[None, :] <= rows[:, None] if CAUSAL else key_block[None, :] <= query_block[:, None]
        allowed = order & (key_valid[None, :] | same_block) & exists[None, :]
        row_max, row_sum, weighted_values = _attend_tile(q, k, v, allowed, row_max, row_sum, weighted_values, PRECISION)
    result = weighted_values / row_sum[:, None]
    out_offsets = batch * length * width + rows[:, None] * width + head * DIM + dims[None, :]
    tl.store(out + out_offsets, result.to(out.dtype.element_ty), mask=row_exists)
