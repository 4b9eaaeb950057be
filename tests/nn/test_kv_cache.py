"""Tests of the key-value cache."""

from __future__ import annotations

import torch

from delta_iris.nn.kv_cache import KVCache


def test_cache_has_room_for_all_blocks_in_aligned_memory() -> None:
    valid = torch.ones(2, 7, dtype=torch.bool)
    cache = KVCache(3, 4, 8, valid, 5, "causal", torch.bfloat16)
    assert cache.tokens == 48
    assert cache.keys.shape == cache.values.shape == (3, 2, 4, 48, 8)
    assert cache.keys.dtype == cache.values.dtype == torch.bfloat16
    assert cache.valid is valid


def test_next_positions_follow_the_written_ones() -> None:
    cache = KVCache(1, 1, 2, torch.ones(1, 4, dtype=torch.bool), 4, "block_causal", torch.float32)
    assert cache.next(4) == slice(0, 4)
    cache.position = 4
    assert cache.next(3) == slice(4, 7)
