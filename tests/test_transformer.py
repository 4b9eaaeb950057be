"""Rotary positions: scores know how far apart tokens are, and nothing else of where they stand."""

from __future__ import annotations

import torch

from delta_iris.nn.transformer import _rotate, rotation


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
