"""Scores, intervals, schedules."""

from __future__ import annotations

import json
import math

import pytest

from delta_iris.data.collector import Episode
from delta_iris.evaluation.crafter_score import AchievementRates
from delta_iris.evaluation.episodes import crafter_run, evaluate_episodes
from delta_iris.training.schedule import Collection, Phase, Schedule


def test_the_crafter_score_is_the_geometric_mean_of_success_rates() -> None:
    metric = AchievementRates(("a", "b", "c"))
    for counts in ({"a": 3, "b": 0, "c": 0}, {"a": 1, "b": 1, "c": 0}):
        metric.update(counts)
    values = {name: float(value) for name, value in metric.compute().items()}
    expected = math.exp((math.log(101) + math.log(51) + math.log(1)) / 3) - 1
    assert values == pytest.approx({"a": 100, "b": 50, "c": 0, "score": expected, "objectives": 1.5}, rel=1e-5)


def test_an_evaluation_summarizes_episodes() -> None:
    episodes = [Episode(r, n, {"a": a}) for r, n, a in ((1.0, 10, 0), (3.0, 20, 1), (5.0, 60, 1), (7.0, 30, 1))]
    evaluation = evaluate_episodes(episodes)
    assert evaluation.return_mean == 4
    deviation = math.sqrt((9 + 1 + 1 + 9) / 3)
    assert evaluation.return_interval == pytest.approx(1.96 * deviation / 2)
    assert evaluation.length_mean == 30
    assert evaluation.achievements == {"a": 75}
    assert "4.00 ± " in evaluation.table()
    assert json.loads(json.dumps(evaluation.to_dict()))["return_mean"] == 4


def test_a_run_in_crafters_format_gives_its_success_rates_and_score() -> None:
    """Read as Crafter's analysis does: of the episodes up to a budget, the share with a count of 1 or more."""
    episodes = [Episode(r, n, {"a": a, "b": 0}) for r, n, a in ((1.0, 10, 0), (3.0, 20, 1), (5.0, 60, 4))]
    run = json.loads(json.dumps(crafter_run(episodes, "Crafter", "ours", 3, 1_000_000)))
    assert (run["method"], run["seed"], run["reward"], run["length"]) == ("ours", "3", [1, 3, 5], [10, 20, 60])
    counted = sum(x <= 1e6 for x in run["xs"])
    names = sorted(key for key in run if key.startswith("achievement_"))
    percents = [100 * sum(n >= 1 for n in run[name][:counted]) / counted for name in names]
    rates = evaluate_episodes(episodes)
    assert percents == pytest.approx([rates.achievements["a"], rates.achievements["b"]])
    assert math.exp(sum(math.log(1 + p) for p in percents) / 2) - 1 == pytest.approx(rates.score, rel=1e-5)


def test_environments_without_achievements_are_evaluated_too() -> None:
    evaluation = evaluate_episodes([Episode(1.0, 5, None)])
    assert evaluation.score is None
    assert "score" not in evaluation.table()


def test_schedules_add_up() -> None:
    schedule = Schedule(Collection(10, 100, last_epoch=3), agent=Phase(4, 2, first_epoch_steps=7))
    assert [schedule.collection.frames_in(e) for e in range(5)] == [100, 10, 10, 0, 0]
    assert schedule.frames_until(5) == 120
    assert schedule.imagined_until(3, horizon=15) == (7 + 4 + 4) * 2 * 15
