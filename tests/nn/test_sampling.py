"""Tests of sampling from logits."""

from __future__ import annotations

import torch

from delta_iris.nn.sampling import sample_categorical


def test_samples_follow_their_logits() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    samples = sample_categorical(logits.expand(40_000, 4))
    frequencies = samples.bincount(minlength=4) / len(samples)
    # Four standard deviations of a frequency among 40,000 samples.
    torch.testing.assert_close(frequencies, logits.softmax(0), atol=4 * 0.5 / 200, rtol=0)
