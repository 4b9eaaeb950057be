"""Tests of the Triton kernel for attention over a key-value cache."""

from __future__ import annotations

import copy

import pytest
import torch

from delta_iris.nn.cached_attention_triton import cached_attention_triton
from delta_iris.nn.kv_cache import AttentionKind, KVCache
from delta_iris.nn.transformer import block_mask, cached_attention


@pytest.mark.gpu
@pytest.mark.usefixtures("no_tf32")
@pytest.mark.parametrize(
    ("block_size", "attention", "new", "position"),
    [
        (6, "causal", 3, 29),
        (6, "causal", 1, 13),
        (6, "causal", 2, 0),
        (10, "block_causal", 10, 20),
        (66, "block_causal", 66, 132),
    ],
)
@pytest.mark.parametrize("on_device", [False, True])
def test_kernel_equals_masked_attention(
    block_size: int, attention: AttentionKind, new: int, position: int, on_device: bool
) -> None:
    device = "cuda"
    torch.manual_seed(0)
    valid = torch.ones(2, 7, dtype=torch.bool, device=device)
    valid[0, :2] = False
    cache = KVCache(1, 2, 64, valid, block_size, attention, torch.float32, device_position=on_device)
    # Fill the cache beyond `position` with values that must be ignored.
    for part in (cache.keys, cache.values):
        part.normal_()
    cache.position = torch.tensor(position, device=device) if on_device else position
    qkv = torch.randn(2, new, 3, 2, 64, device=device)
    mask = block_mask(valid, block_size, attention=attention, queries=cache.next(new), keys=cache.tokens)
    other = copy.deepcopy(cache)
    expected, found = cached_attention(qkv, cache, 0, mask), cached_attention_triton(qkv, other, 0)
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=1e-5)
    assert torch.equal(cache.keys, other.keys)
    assert torch.equal(cache.values, other.values)
