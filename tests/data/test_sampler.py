"""Tests of which segments the sampler draws, and how often."""

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


@pytest.mark.parametrize(
    ("pad_start", "pad_end", "first", "last"), [(4, 4, -4, 11), (4, 0, -4, 7), (0, 0, 0, 7), (2, 1, -2, 8)]
)
def test_segments_cover_an_episode_uniformly(pad_start: int, pad_end: int, first: int, last: int) -> None:
    sampler = SegmentSampler(5, pad_start, pad_end, seed=0)
    starts = np.array([start for _, start in sampler.draw(np.array([12]), 40_000, update_counts=False)])
    values, counts = np.unique(starts, return_counts=True)
    assert values.tolist() == list(range(first, last + 1))
    expected = 40_000 / len(values)
    # Five standard deviations of a count.
    assert np.abs(counts - expected).max() < 5 * expected**0.5


def test_without_end_padding_the_last_step_is_real_even_in_short_episodes() -> None:
    sampler = SegmentSampler(6, pad_start=5, pad_end=0, seed=0)
    last_steps = {start + 5 for _, start in sampler.draw(np.array([2]), 200, update_counts=False)}
    assert last_steps == {0, 1}


@pytest.mark.parametrize(("burn_in", "horizon"), [(3, 5), (5, 1), (1, 4)])
def test_padding_of_a_burn_in_and_one_last_step_leaves_the_steps_between_real(burn_in: int, horizon: int) -> None:
    """As model-free training samples: burn-in, steps that are acted on, and one frame to bootstrap from."""
    sampler = SegmentSampler(burn_in + horizon + 1, pad_start=burn_in, pad_end=1, seed=0)
    lengths = np.array([1, 2, 3, 4, 5, 6, 7, 20])
    segments = sampler.draw(lengths, 5_000, update_counts=True)
    acted_on = {(e, start + burn_in + t) for e, start in segments for t in range(horizon)}
    # Every step of every episode that is long enough, and no other, is acted on.
    assert acted_on == {(e, t) for e, length in enumerate(lengths) if length >= horizon for t in range(length)}


@pytest.mark.parametrize("recent_steps", [None, 100])
def test_episodes_that_are_all_too_short_raise(recent_steps: int | None) -> None:
    sampler = SegmentSampler(9, pad_start=3, pad_end=1, seed=0, recent_steps=recent_steps)
    with pytest.raises(ValueError, match="no episode is long enough for segments of 9 steps"):
        sampler.draw(np.array([4, 1, 4]), 8, update_counts=True)
    assert sampler.draw(np.array([4, 5, 4]), 8, update_counts=True) == [(1, -3)] * 8


@pytest.mark.parametrize("exponent", [5.0, 1.0, 0.0])
def test_episodes_are_sampled_by_a_power_of_their_count(exponent: float) -> None:
    sampler = SegmentSampler(5, 4, 4, 0, exponent)
    lengths = np.full(3, 50)
    set_counts(sampler, [0, 1, 2])
    episodes = [episode for episode, _ in sampler.draw(lengths, 100_000, update_counts=False)]
    frequencies = np.bincount(episodes, minlength=3) / 100_000
    weights = np.array([1, 2.0**-exponent, 3.0**-exponent])
    # Five standard deviations of a frequency over 100,000 samples.
    np.testing.assert_allclose(frequencies, weights / weights.sum(), atol=5 * 0.5 / 100_000**0.5)


@pytest.mark.parametrize("pad_end", [0, 1, 4])
def test_segments_of_recent_steps_are_equally_likely_and_no_others_are_drawn(pad_end: int) -> None:
    lengths = np.array([400, 30, 7, 3])
    sampler = SegmentSampler(5, 4, pad_end, seed=0, recent_steps=11)
    counts = Counter(sampler.draw(lengths, 100_000, update_counts=True))
    # The last two episodes have 3 + 7 steps, fewer than 11, so the one before them is included.
    segments = {(e, start) for e in (1, 2, 3) for start in range(-4, lengths[e] + pad_end - 4)}
    assert set(counts) == segments
    expected = 100_000 / len(segments)
    # Five standard deviations of a count.
    assert max(abs(count - expected) for count in counts.values()) < 5 * expected**0.5


def test_more_recent_steps_than_available_include_every_episode() -> None:
    sampler = SegmentSampler(5, 4, 4, seed=0, recent_steps=1000)
    assert {e for e, _ in sampler.draw(np.full(3, 50), 1000, update_counts=False)} == {0, 1, 2}


def test_counts_change_only_on_request_and_new_episodes_come_first() -> None:
    sampler = SegmentSampler(5, 4, 4, seed=0)
    sampler.draw(np.full(4, 50), 100, update_counts=False)
    assert counts_of(sampler).sum() == 0
    for _ in range(100):
        sampler.draw(np.full(4, 50), 32, update_counts=True)
    assert counts_of(sampler).sum() == 3200
    assert np.ptp(counts_of(sampler)) < 200  # the priority evens out the counts
    episodes = {episode for episode, _ in sampler.draw(np.full(5, 50), 32, update_counts=False)}
    assert episodes == {4}


def test_huge_counts_do_not_underflow_the_weights() -> None:
    sampler = SegmentSampler(5, 4, 4, seed=0)
    set_counts(sampler, [10**12, 10**12])
    assert {e for e, _ in sampler.draw(np.full(2, 50), 100, update_counts=False)} == {0, 1}


def test_a_restored_sampler_draws_the_same_segments() -> None:
    lengths = np.array([30, 50, 5])
    sampler, other = SegmentSampler(5, 4, 4, seed=0), SegmentSampler(5, 4, 4, seed=1)
    sampler.draw(lengths, 64, update_counts=True)
    state = sampler.state_dict()
    expected = [sampler.draw(lengths, 64, update_counts=True) for _ in range(3)]
    other.load_state_dict(state)
    assert [other.draw(lengths, 64, update_counts=True) for _ in range(3)] == expected


@pytest.mark.parametrize(
    ("pad_start", "pad_end", "named"),
    [(5, 0, "pad_start"), (-1, 0, "pad_start"), (0, 5, "pad_end"), (0, -1, "pad_end")],
)
def test_invalid_arguments_raise(pad_start: int, pad_end: int, named: str) -> None:
    with pytest.raises(ValueError, match=f"{named} is .*below the segment length 5"):
        SegmentSampler(5, pad_start, pad_end, seed=0)
