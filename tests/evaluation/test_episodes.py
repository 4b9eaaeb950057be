"""Tests of the statistics of test episodes."""

from __future__ import annotations

import json
import math

import pytest

from delta_iris.data.collector import EpisodeStats
from delta_iris.evaluation.episodes import crafter_run, evaluate_episodes


def test_statistics_equal_their_definitions() -> None:
    numbers = ((1.0, 10, 0), (3.0, 20, 1), (5.0, 60, 1), (7.0, 30, 1))
    evaluation = evaluate_episodes([EpisodeStats(r, n, {"a": a}) for r, n, a in numbers])
    assert evaluation.episodes == 4
    assert evaluation.return_mean == 4
    deviation = math.sqrt((9 + 1 + 1 + 9) / 3)
    assert evaluation.return_interval == pytest.approx(1.96 * deviation / 2)
    assert evaluation.length_mean == 30
    assert evaluation.achievements == {"a": 75}
    assert evaluation.achievements_per_episode == pytest.approx(0.75)
    assert evaluation.score == pytest.approx(75)
    assert "4.00 ± " in evaluation.table()
    assert "75.0%" in evaluation.table()
    assert json.loads(json.dumps(evaluation.to_dict()))["return_mean"] == 4


def test_environments_without_achievements_have_no_score() -> None:
    evaluation = evaluate_episodes([EpisodeStats(1.0, 5, None)])
    assert evaluation.score is None
    assert evaluation.achievements_per_episode is None
    assert evaluation.achievements == {}
    assert "score" not in evaluation.table()


def test_a_run_in_crafters_format_gives_the_same_success_rates_and_score() -> None:
    """Read as Crafter's analysis does: the share of the episodes within a budget with a count of 1 or more."""
    episodes = [EpisodeStats(r, n, {"a": a, "b": 0}) for r, n, a in ((1.0, 10, 0), (3.0, 20, 1), (5.0, 60, 4))]
    run = json.loads(json.dumps(crafter_run(episodes, "Crafter", "ours", 3, 1_000_000)))
    assert (run["task"], run["method"], run["seed"]) == ("Crafter", "ours", "3")
    assert (run["reward"], run["length"]) == ([1, 3, 5], [10, 20, 60])
    budget = sum(x <= 1e6 for x in run["xs"])
    names = sorted(key for key in run if key.startswith("achievement_"))
    percents = [100 * sum(n >= 1 for n in run[name][:budget]) / budget for name in names]
    evaluation = evaluate_episodes(episodes)
    assert percents == pytest.approx([evaluation.achievements["a"], evaluation.achievements["b"]])
    assert math.exp(sum(math.log(1 + p) for p in percents) / 2) - 1 == pytest.approx(evaluation.score, rel=1e-5)


def test_an_achievement_that_only_some_episodes_tell_of_was_not_unlocked_in_the_others() -> None:
    episodes = [EpisodeStats(0.0, 1, counts) for counts in ({}, {"a": 2}, {"b": 1, "a": 0}, {"b": 1})]
    assert evaluate_episodes(episodes).achievements == {"a": 25.0, "b": 50.0}
    assert crafter_run(episodes, "", "", 0, 1)["achievement_a"] == [0, 2, 0, 0]
