"""Tests of sampling from logits."""

from __future__ import annotations

import torch

from delta_iris.nn.sampling import categorical_from_uniform, sample_categorical


def test_samples_follow_their_logits() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    samples = sample_categorical(logits.expand(40_000, 4))
    frequencies = samples.bincount(minlength=4) / len(samples)
    # Four standard deviations of a frequency among 40,000 samples.
    torch.testing.assert_close(frequencies, logits.softmax(0), atol=4 * 0.5 / 200, rtol=0)


def test_inverting_the_cumulative_distribution_gives_each_index_its_share() -> None:
    probabilities = torch.tensor([0.25, 0.0, 0.5, 0.25])
    uniform = (torch.arange(1000) + 0.5) / 1000
    drawn = categorical_from_uniform(probabilities.expand(1000, 4), uniform)
    assert drawn.bincount(minlength=4).tolist() == [250, 0, 500, 250]
    assert torch.equal(drawn, drawn.sort().values)


def test_the_ends_of_the_unit_interval_give_possible_indices() -> None:
    probabilities = torch.full((7,), 1 / 7)
    ends = torch.tensor([0.0, 1 - 2**-24])
    assert categorical_from_uniform(probabilities.expand(2, 7), ends).tolist() == [0, 6]
