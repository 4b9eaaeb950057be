"""Tests of success rates and the Crafter score."""

from __future__ import annotations

import math

import pytest

from delta_iris.evaluation.crafter_score import AchievementRates


def values_of(metric: AchievementRates) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


def test_score_is_the_geometric_mean_of_success_rates() -> None:
    metric = AchievementRates(("a", "b", "c"))
    for counts in ({"a": 3, "b": 0, "c": 0}, {"a": 1, "b": 1, "c": 0}):
        metric.update(counts)
    expected = {"a": 100, "b": 50, "c": 0, "achievements_per_episode": 1.5}
    expected["score"] = math.exp((math.log(101) + math.log(51) + math.log(1)) / 3) - 1
    assert values_of(metric) == pytest.approx(expected, rel=1e-5)


def test_reset_forgets_all_episodes() -> None:
    metric = AchievementRates(("a", "b"))
    metric.update({"a": 1, "b": 1})
    metric.reset()
    metric.update({"a": 0, "b": 2})
    assert values_of(metric)["a"] == 0
    assert values_of(metric)["b"] == pytest.approx(100)
