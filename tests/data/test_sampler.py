"""Which segments the sampler draws, and how often."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from delta_iris.data.sampler import SegmentSampler


def counts_of(sampler: SegmentSampler) -> NDArray[np.int64]:
    """Return how often each episode was sampled."""
    counts: NDArray[np.int64] = sampler.state_dict()["counts"].numpy()
    return counts


def set_counts(sampler: SegmentSampler, counts: list[int]) -> None:
    """Set how often each episode was sampled."""
    sampler.load_state_dict(sampler.state_dict() | {"counts": torch.tensor(counts)})


@pytest.mark.parametrize(("pad_end", "last"), [(True, 11), (False, 12 - 5)])
def test_segments_cover_an_episode_uniformly(pad_end: bool, last: int) -> None:
    sampler = SegmentSampler(5, pad_end, seed=0)
    starts = np.array([start for _, start in sampler.draw(np.array([12]), 40_000, update_counts=False)])
    values, counts = np.unique(starts, return_counts=True)
    assert values.tolist() == list(range(-4, last + 1))
    expected = 40_000 / len(values)
    # Five standard deviations of a count.
    assert np.abs(counts - expected).max() < 5 * expected**0.5


def test_without_end_padding_the_last_step_is_real_even_in_short_episodes() -> None:
    sampler = SegmentSampler(6, pad_end=False, seed=0)
    last_steps = {start + 5 for _, start in sampler.draw(np.array([2]), 200, update_counts=False)}
    assert last_steps == {0, 1}


@pytest.mark.parametrize("exponent", [5.0, 1.0, 0.0])
def test_episodes_are_sampled_by_a_power_of_their_count(exponent: float) -> None:
    sampler = SegmentSampler(5, True, 0, exponent)
    lengths = np.full(3, 50)
    set_counts(sampler, [0, 1, 2])
    episodes = [episode for episode, _ in sampler.draw(lengths, 100_000, update_counts=False)]
    frequencies = np.bincount(episodes, minlength=3) / 100_000
    weights = np.array([1, 2.0**-exponent, 3.0**-exponent])
    # Five standard deviations of a frequency over 100,000 samples.
    np.testing.assert_allclose(frequencies, weights / weights.sum(), atol=5 * 0.5 / 100_000**0.5)


@pytest.mark.parametrize("pad_end", [False, True])
def test_segments_of_recent_steps_are_equally_likely_and_no_others_are_drawn(pad_end: bool) -> None:
    lengths = np.array([400, 30, 7, 3])
    sampler = SegmentSampler(5, pad_end, seed=0, recent_steps=11)
    counts = Counter(sampler.draw(lengths, 100_000, update_counts=True))
    # The last two episodes have 3 + 7 steps, fewer than 11, so the one before them is included.
    segments = {(e, start) for e in (1, 2, 3) for start in range(-4, lengths[e] - (0 if pad_end else 4))}
    assert set(counts) == segments
    expected = 100_000 / len(segments)
    # Five standard deviations of a count.
    assert max(abs(count - expected) for count in counts.values()) < 5 * expected**0.5


def test_more_recent_steps_than_available_include_every_episode() -> None:
    sampler = SegmentSampler(5, True, seed=0, recent_steps=1000)
    assert {e for e, _ in sampler.draw(np.full(3, 50), 1000, update_counts=False)} == {0, 1, 2}


def test_counts_change_only_on_request_and_new_episodes_come_first() -> None:
    sampler = SegmentSampler(5, True, seed=0)
    sampler.draw(np.full(4, 50), 100, update_counts=False)
    assert counts_of(sampler).sum() == 0
    for _ in range(100):
        sampler.draw(np.full(4, 50), 32, update_counts=True)
    assert counts_of(sampler).sum() == 3200
    assert np.ptp(counts_of(sampler)) < 200  # the priority evens out the counts
    episodes = {episode for episode, _ in sampler.draw(np.full(5, 50), 32, update_counts=False)}
    assert episodes == {4}


def test_huge_counts_do_not_underflow_the_weights() -> None:
    sampler = SegmentSampler(5, True, seed=0)
    set_counts(sampler, [10**12, 10**12])
    assert {e for e, _ in sampler.draw(np.full(2, 50), 100, update_counts=False)} == {0, 1}


def test_a_restored_sampler_draws_the_same_segments() -> None:
    lengths = np.array([30, 50, 5])
    sampler, other = SegmentSampler(5, True, seed=0), SegmentSampler(5, True, seed=1)
    sampler.draw(lengths, 64, update_counts=True)
    state = sampler.state_dict()
    expected = [sampler.draw(lengths, 64, update_counts=True) for _ in range(3)]
    other.load_state_dict(state)
    assert [other.draw(lengths, 64, update_counts=True) for _ in range(3)] == expected
