"""Tests of masked means and normalization in a single process."""

from __future__ import annotations

import torch

from delta_iris.nn.statistics import WeightedMean, masked_mean, normalize_advantages


def test_weighted_means_add_up_to_the_mean_over_all_values() -> None:
    values, mask = torch.tensor([1.0, 2.0, 6.0, float("nan")]), torch.tensor([True, True, True, False])
    whole = WeightedMean.of(values, mask)
    both = WeightedMean.of(values[:1], mask[:1]) + WeightedMean.of(values[1:], mask[1:])
    assert (float(both.total), float(both.weight)) == (float(whole.total), float(whole.weight)) == (9.0, 3.0)
    assert isinstance(both, WeightedMean)


def test_masked_mean_ignores_masked_values() -> None:
    values, mask = torch.tensor([1.0, 3.0, float("inf")]), torch.tensor([True, True, False])
    assert masked_mean(values, mask) == 2.0
    assert masked_mean(values, torch.zeros(3, dtype=torch.bool)) == 0.0


def test_masked_means_of_micro_batches_add_up_to_that_of_the_batch() -> None:
    values, mask = torch.tensor([1.0, 3.0, 8.0, 5.0]), torch.tensor([True, True, True, False])
    parts = [masked_mean(values[part], mask[part], mask) for part in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(parts[0] + parts[1], masked_mean(values, mask))


def test_normalized_advantages_have_zero_mean_and_unit_deviation() -> None:
    torch.manual_seed(0)
    advantages, mask = torch.randn(50) * 3 + 2, torch.rand(50) < 0.7
    normalized = normalize_advantages(advantages, advantages, mask)
    torch.testing.assert_close(normalized[mask].mean(), torch.zeros(()), atol=1e-6, rtol=0)
    # A term of 1e-5 is added to the deviation of about 3.
    torch.testing.assert_close(normalized[mask].std(correction=0), torch.ones(()), atol=1e-5, rtol=0)
    assert torch.equal(normalize_advantages(advantages[:9], advantages, mask), normalized[:9])
