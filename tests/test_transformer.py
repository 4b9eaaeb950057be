"""Rotary positions: scores know how far apart tokens are, and nothing else of where they stand; masks."""

from __future__ import annotations

import pytest
import torch

from delta_iris.nn.transformer import KEY_MULTIPLE, Transformer, _rotate, block_mask, rotation


def test_scores_depend_on_distances_alone() -> None:
    torch.manual_seed(0)
    dim, length, shift = 16, 9, 4
    query, key = torch.randn(2, 1, 1, 1, dim).expand(-1, -1, -1, length, -1)
    scores = []
    for first in (0, shift):
        rotary = rotation(torch.arange(first, first + length), dim)
        scores.append((_rotate(query, rotary) @ _rotate(key, rotary).mT)[0, 0])
    # Cosines and sines in float32, sums of 16 products around one.
    torch.testing.assert_close(scores[0], scores[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores[0].diagonal(), (query * key).sum(-1)[0, 0], atol=1e-5, rtol=1e-5)
    by_distance = torch.stack([scores[0].diagonal(k)[0] for k in range(1 - length, length)])
    assert torch.pdist(by_distance.unsqueeze(1)).min() > 1e-3


def test_the_first_position_turns_nothing() -> None:
    x = torch.randn(1, 1, 1, 8)
    assert torch.equal(_rotate(x, rotation(torch.zeros(1, dtype=torch.int64), 8)), x)


@pytest.mark.parametrize("frames", [1, 3, 8, 21])
def test_keys_are_filled_up_to_a_multiple_with_some_that_nobody_sees(frames: int) -> None:
    torch.manual_seed(0)
    valid, length = torch.ones(2, frames, dtype=torch.bool), frames * 5
    mask = block_mask(valid, 5, within="block")
    assert mask.shape[-1] % KEY_MULTIPLE == 0
    assert mask.shape[2:] == (length, -(-length // KEY_MULTIPLE) * KEY_MULTIPLE)
    assert not mask[..., length:].any()
    stack, x = Transformer(16, 2, 2).double(), torch.randn(2, length, 16, dtype=torch.float64)
    # A softmax over a few more keys, none of which counts; in float64 sums in another order hardly show.
    torch.testing.assert_close(stack(x, mask), stack(x, mask[..., :length]), atol=1e-14, rtol=1e-12)
