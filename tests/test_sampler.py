"""Which windows are drawn, and how often."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from delta_iris.data.sampler import WindowSampler


def test_windows_cover_an_episode_uniformly_and_overhang_as_told() -> None:
    lengths = np.array([12])
    for overhang_end, last in ((True, 11), (False, 12 - 5)):
        sampler = WindowSampler(5, overhang_end, seed=0)
        starts = np.array([s for _, s in sampler.draw(lengths, 40_000, count=False)])
        values, counts = np.unique(starts, return_counts=True)
        assert values.tolist() == list(range(-4, last + 1))
        expected = 40_000 / len(values)
        # Five standard deviations of a count.
        assert np.abs(counts - expected).max() < 5 * expected**0.5


def test_an_episode_shorter_than_the_window_ends_in_its_last_slot_for_the_agent() -> None:
    sampler = WindowSampler(6, overhang_end=False, seed=0)
    ends = {start + 5 for _, start in sampler.draw(np.array([2]), 200, count=False)}
    assert ends == {0, 1}


@pytest.mark.parametrize("priority", [5.0, 1.0, 0.0])
def test_episodes_are_drawn_by_a_power_of_their_count(priority: float) -> None:
    sampler = WindowSampler(5, True, 0, priority)
    lengths = np.full(3, 50)
    sampler.draw(lengths, 1, count=False)
    sampler._counts[:] = [0, 1, 2]
    drawn = np.bincount([e for e, _ in sampler.draw(lengths, 100_000, count=False)], minlength=3) / 100_000
    weights = np.array([1, 2.0**-priority, 3.0**-priority])
    # Five standard deviations of a frequency of 100,000 draws.
    np.testing.assert_allclose(drawn, weights / weights.sum(), atol=5 * 0.5 / 100_000**0.5)


@pytest.mark.parametrize("overhang_end", [False, True])
def test_of_the_latest_steps_every_window_is_as_likely_and_no_other_is_drawn(overhang_end: bool) -> None:
    lengths = np.array([400, 30, 7, 3])
    sampler = WindowSampler(5, overhang_end, seed=0, latest_steps=11)
    draws = sampler.draw(lengths, 100_000, count=True)
    # 3 + 7 steps are not enough, so the episode before them is drawn from too.
    windows = {(e, s) for e in (1, 2, 3) for s in range(-4, lengths[e] - (0 if overhang_end else 4))}
    counts = Counter(draws)
    assert set(counts) == windows
    expected = 100_000 / len(windows)
    # Five standard deviations of a count.
    assert max(abs(count - expected) for count in counts.values()) < 5 * expected**0.5


def test_latest_steps_beyond_what_there_is_are_all_there_is() -> None:
    sampler = WindowSampler(5, True, seed=0, latest_steps=1000)
    assert {e for e, _ in sampler.draw(np.full(3, 50), 1000, count=False)} == {0, 1, 2}


def test_draws_count_only_when_told_and_new_episodes_come_first() -> None:
    sampler = WindowSampler(5, True, seed=0)
    sampler.draw(np.full(4, 50), 100, count=False)
    assert sampler._counts.sum() == 0
    for _ in range(100):
        sampler.draw(np.full(4, 50), 32, count=True)
    assert sampler._counts.sum() == 3200
    assert np.ptp(sampler._counts) < 200  # the priority evens counts out
    drawn = [e for e, _ in sampler.draw(np.full(5, 50), 32, count=False)]
    assert set(drawn) == {4}


def test_huge_counts_do_not_make_the_weights_vanish() -> None:
    sampler = WindowSampler(5, True, seed=0)
    sampler.draw(np.full(2, 50), 1, count=False)
    sampler._counts[:] = 10**12
    assert {e for e, _ in sampler.draw(np.full(2, 50), 100, count=False)} == {0, 1}


def test_a_restored_sampler_goes_on_as_the_first() -> None:
    lengths = np.array([30, 50, 5])
    sampler, other = WindowSampler(5, True, seed=0), WindowSampler(5, True, seed=1)
    sampler.draw(lengths, 64, count=True)
    state = sampler.state_dict()
    expected = [sampler.draw(lengths, 64, count=True) for _ in range(3)]
    other.load_state_dict(state)
    assert [other.draw(lengths, 64, count=True) for _ in range(3)] == expected
