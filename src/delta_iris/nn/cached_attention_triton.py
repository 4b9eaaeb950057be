"""Attention of a few new tokens over a cache, in one kernel that reads what is written and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from delta_iris.nn.kv_cache import KVCache

__all__ = ["decode"]

try:
    import triton
    import triton.language as tl
except ImportError:  # PyTorch without CUDA comes without Triton; nothing here is called then.
    triton = None


def decode(qkv: Tensor, cache: KVCache, layer: int) -> Tensor:
    """Write new tokens to a layer's cache and attend, each to those before it and to its own block.

    The same as `cached_attention` computes with a mask over the whole cache.

    Args:
        qkv: (B, n, 3, H, Dh) queries, keys and values of the new tokens, contiguous.
        cache: whose `position` is that of the first new token.
        layer: which of its layers.

    Returns:
        (B, n, H, Dh).
    """
    batch, length, _, heads, dim = qkv.shape
    out = torch.empty(batch, length, heads, dim, device=qkv.device, dtype=qkv.dtype)
    rows = max(16, triton.next_power_of_2(length)) if length <= 128 else 64
    _decode[(batch * heads, triton.cdiv(length, rows))](
        qkv,
        cache.keys[layer],
        cache.values[layer],
        cache.valid,
        cache.position,
        out,
        dim**-0.5 * 1.4426950408889634,  # exponentials to base 2 are the hardware's own
        length,
        cache.valid.shape[1],
        cache.tokens,
        heads,
        DIM=dim,
        BLOCK=cache.block_size,
        CAUSAL=cache.within == "token",
        ROWS=rows,
        COLUMNS=64 if length > 16 else 32,
        # Tensor cores would round float32 products to tf32.
        PRECISION="ieee" if qkv.dtype == torch.float32 else "tf32",
        num_warps=2 if rows == 16 else 8 if rows == 128 else 4,
    )
    return out


def _kernel(*varying: str) -> Callable[[Any], Any]:
    """A Triton kernel, compiled once for all values of the numbers named."""
    return lambda function: function if triton is None else triton.jit(function, do_not_specialize=list(varying))


@_kernel()
def _attend(q, k, v, seen, best, total, weighted, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    """One tile of the running softmax (base 2)."""
    scores = tl.where(seen, tl.dot(q, tl.trans(k), input_precision=PRECISION), float("-inf"))
    new_best = tl.maximum(best, tl.max(scores, 1))
    # Rows that have seen nothing yet stay at zero instead of becoming inf − inf.
    shift = tl.where(new_best == float("-inf"), 0.0, new_best)
    weights = tl.exp2(scores - shift[:, None])
    keep = tl.exp2(best - shift)
    total = total * keep + tl.sum(weights, 1)
    weighted = weighted * keep[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    return new_best, total, weighted


@_kernel("first")
def _decode(  # type: ignore[no-untyped-def]
    qkv,
    keys,
    values,
    valid,
    first,
    out,
    scale,
    length,
    blocks,
    tokens,
    heads,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    CAUSAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    batch, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns, dims = tl.arange(0, COLUMNS), tl.arange(0, DIM)
    # Strides: a token of qkv is 3 · heads · DIM wide, its queries, keys and values heads · DIM each.
    width = heads * DIM
    new = qkv + (batch * length * 3 * width + head * DIM)
    cached = (batch * heads + head).to(tl.int64) * tokens * DIM
    row_place, row_there = rows[:, None] * 3 * width + dims[None, :], rows[:, None] < length
    q = tl.load(new + row_place, mask=row_there, other=0.0)
    q = (q * scale).to(q.dtype)
    slots = cached + (first + rows[:, None]) * DIM + dims[None, :]
    tl.store(keys + slots, tl.load(new + width + row_place, mask=row_there, other=0.0), mask=row_there)
    tl.store(values + slots, tl.load(new + 2 * width + row_place, mask=row_there, other=0.0), mask=row_there)
    own_block = (first + rows) // BLOCK

    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    weighted = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(0, first, COLUMNS):
        at = start + columns
        written = at < first
        place = cached + at[:, None] * DIM + dims[None, :]
        k = tl.load(keys + place, mask=written[:, None], other=0.0)
        v = tl.load(values + place, mask=written[:, None], other=0.0)
        real = tl.load(valid + batch * blocks + at // BLOCK, mask=written, other=0) != 0
        same = (at // BLOCK)[None, :] == own_block[:, None]
        seen = (real[None, :] | same) & written[None, :]
        best, total, weighted = _attend(q, k, v, seen, best, total, weighted, PRECISION)
    for start in range(0, length, COLUMNS):
        at = start + columns
        there = at < length
        place = at[:, None] * 3 * width + dims[None, :]
        k = tl.load(new + width + place, mask=there[:, None], other=0.0)
        v = tl.load(new + 2 * width + place, mask=there[:, None], other=0.0)
        block = (first + at) // BLOCK
        real = tl.load(valid + batch * blocks + block, mask=there, other=0) != 0
        same = block[None, :] == own_block[:, None]
        order = at[None, :] <= rows[:, None] if CAUSAL else block[None, :] <= own_block[:, None]
        seen = order & (real[None, :] | same) & there[None, :]
        best, total, weighted = _attend(q, k, v, seen, best, total, weighted, PRECISION)
    result = weighted / total[:, None]
    out_place = batch * length * width + rows[:, None] * width + head * DIM + dims[None, :]
    tl.store(out + out_place, result.to(out.dtype.element_ty), mask=row_there)
