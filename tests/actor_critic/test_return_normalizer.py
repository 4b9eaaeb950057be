"""Tests of the moving range of the returns' percentiles."""

from __future__ import annotations

import pytest
import torch

from delta_iris.actor_critic.return_normalizer import ReturnNormalizer


def spread_of(values: torch.Tensor) -> float:
    return float(values.quantile(0.95) - values.quantile(0.05))


def test_it_averages_the_distance_of_the_percentiles() -> None:
    normalizer, expected = ReturnNormalizer(decay=0.9), 0.0
    for seed in range(4):
        returns = 10 * torch.randn(7, 13, generator=torch.Generator().manual_seed(seed))
        normalizer.update(returns)
        expected = 0.9 * expected + 0.1 * spread_of(returns)
        assert float(normalizer.spread) == pytest.approx(expected, rel=1e-5)


def test_a_skipped_batch_changes_nothing() -> None:
    normalizer = ReturnNormalizer()
    normalizer.update(torch.tensor([torch.nan, 5.0, -5.0]), torch.tensor(True))
    assert normalizer.spread == 0


def test_the_scale_is_at_least_one() -> None:
    normalizer = ReturnNormalizer(decay=0.0)
    normalizer.update(torch.linspace(0, 0.5, 20))
    assert normalizer.scale == 1
    normalizer.update(torch.linspace(0, 50, 20))
    assert normalizer.scale == normalizer.spread > 1
