"""Tests of means and intervals."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

import numpy as np
import pytest

from delta_iris.evaluation.episodes import mean_and_interval
from delta_iris.report.statistics import Band, bin_means, mean_interval, mean_over_runs, success_interval, window_means

RANDOM = np.random.default_rng(3)


def test_the_interval_is_students_for_equal_weights() -> None:
    values = RANDOM.normal(5, 2, 7)
    mean, half = mean_interval(values)
    assert mean == pytest.approx(statistics.fmean(values))
    assert half == pytest.approx(2.447 * statistics.stdev(values) / math.sqrt(7))  # t with 6 degrees of freedom


def test_the_interval_of_many_values_is_that_of_test_episodes() -> None:
    values = RANDOM.normal(5, 2, 200)
    assert mean_interval(values) == pytest.approx(mean_and_interval(values.tolist()))


def test_a_weight_counts_like_a_share() -> None:
    mean, half = mean_interval([1.0, 4.0], [3, 1])
    assert mean == pytest.approx(1.75)
    error = math.sqrt(2 / 1 * (0.75**2 * 0.75**2 + 0.25**2 * 2.25**2))
    assert half == pytest.approx(12.706 * error)
    assert math.isnan(mean_interval([2.0])[1])


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    """Of 2,000 intervals of 5 values, 95% ± 1.5% (three standard errors) hold the true mean."""
    draws = RANDOM.normal(0, 1, (2000, 5))
    covered = [abs(mean) <= half for mean, half in map(mean_interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_wilsons_interval_solves_its_equation() -> None:
    """Its ends are the rates p with |p − observed| = 1.96 · sqrt(p (1 − p) / n)."""
    for successes, n in ((1, 256), (20, 32), (31, 32)):
        observed = successes / n
        for p in success_interval(observed, n):
            assert abs(p - observed) == pytest.approx(1.96 * math.sqrt(p * (1 - p) / n))
    assert success_interval(0.0, 50)[0] == 0
    assert success_interval(1.0, 50)[1] == 1


def test_windows_are_centred_and_cut_off_at_the_ends() -> None:
    x, values, weights = np.arange(6.0), RANDOM.normal(size=6), np.array([1.0, 2, 3, 4, 5, 6])
    band = window_means(x, values, weights, 3)
    for i in range(6):
        part = slice(max(0, i - 1), i + 2)
        assert (band.mean[i], band.half[i]) == pytest.approx(mean_interval(values[part], weights[part]))


def test_bins_hold_every_value_once() -> None:
    x, values = np.sort(RANDOM.uniform(1, 1000, 300)), RANDOM.normal(size=300)
    band = bin_means(x, values, 10)
    edges = np.linspace(0, x.max(), 11)
    for i, (low, high) in enumerate(pairwise(edges)):
        inside = (x >= low) & ((x < high) if i < 9 else True)
        assert (band.mean[i], band.half[i]) == pytest.approx(mean_interval(values[inside]))
    constant = bin_means(np.full(4, 7.0), np.arange(4.0), 10)
    assert constant.mean.tolist() == [1.5]


def test_the_mean_over_runs_is_taken_where_all_are() -> None:
    none = np.full(3, np.nan)
    first = Band(np.array([0.0, 10, 20]), np.array([0.0, 1, 2]), none)
    second = Band(np.array([5.0, 15, 25]), np.array([1.5, 2.5, 3.5]), none)
    band = mean_over_runs([first, second], points=16)
    assert band is not None
    assert (band.x[0], band.x[-1]) == (5, 20)
    assert band.mean == pytest.approx(band.x / 10 + 0.5)
    assert band.half == pytest.approx(np.full(16, mean_interval([0.5, 1.5])[1]))


def test_runs_that_are_nowhere_together_have_no_mean() -> None:
    first, second = (Band(np.array(x), np.zeros(2), np.zeros(2)) for x in ([0.0, 10], [11.0, 20]))
    assert mean_over_runs([first, second]) is None
