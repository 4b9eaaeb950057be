"""The report of a number of test episodes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from delta_iris.data.collector import Episode
from delta_iris.evaluation.crafter_score import AchievementRates

__all__ = ["Evaluation", "crafter_run", "evaluate_episodes"]


@dataclass(frozen=True)
class Evaluation:
    """Means over episodes; `achievements`, `objectives` and `score` only where the environment tells achievements.

    Attributes:
        episodes: how many there were.
        return_mean: mean undiscounted return.
        return_interval: half the width of its 95% confidence interval (1.96 standard errors).
        length_mean: mean length, in steps.
        objectives: achievements unlocked in an episode, on average.
        score: the Crafter score, in percent.
        achievements: success rates, in percent.
    """

    episodes: int
    return_mean: float
    return_interval: float
    length_mean: float
    objectives: float | None
    score: float | None
    achievements: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """All of it as plain values."""
        return asdict(self)

    def table(self) -> str:
        """A table to print."""
        rows = [
            ("episodes", f"{self.episodes}"),
            ("return", f"{self.return_mean:.2f} ± {self.return_interval:.2f} (95%)"),
            ("length", f"{self.length_mean:.1f} steps"),
        ]
        if self.objectives is not None and self.score is not None:
            rows.append(("objectives unlocked", f"{self.objectives:.2f} of {len(self.achievements)} an episode"))
            rows.append(("Crafter score", f"{self.score:.2f}%"))
            rows += [(name.replace("_", " "), f"{rate:.1f}%") for name, rate in self.achievements.items()]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def evaluate_episodes(episodes: list[Episode]) -> Evaluation:
    """Summarize at least one episode."""
    returns, lengths = [e.return_ for e in episodes], [e.length for e in episodes]
    mean = sum(returns) / len(returns)
    variance = sum((r - mean) ** 2 for r in returns) / max(1, len(returns) - 1)
    told = [e.achievements for e in episodes if e.achievements is not None]
    values: dict[str, float] = {}
    if told:
        # The episodes are those of all processes already.
        rates = AchievementRates(tuple(told[0]), sync_on_compute=False)
        for counts in told:
            rates.update(counts)
        values = {name: float(value) for name, value in rates.compute().items()}
    return Evaluation(
        episodes=len(episodes),
        return_mean=mean,
        return_interval=1.96 * math.sqrt(variance / len(returns)),
        length_mean=sum(lengths) / len(lengths),
        objectives=values.pop("objectives", None),
        score=values.pop("score", None),
        achievements=values,
    )


def crafter_run(episodes: list[Episode], task: str, method: str, seed: int, frames: int) -> dict[str, Any]:
    """Episodes as Crafter's analysis scripts read them: lists with an entry an episode.

    Args:
        episodes: at least one.
        task: the environment.
        method: name of what played, as the plots show it.
        seed: of the run, which the scripts average over.
        frames: that the player had seen in training, the plots' horizontal axis. The scripts look at the first million
            unless they are given a larger budget.

    Returns:
        `task`, `method`, `seed`, `xs`, `reward`, `length` and, where they are told, `achievement_…`: how often each was
        done.
    """
    told = [e.achievements for e in episodes if e.achievements is not None]
    return {
        "task": task,
        "method": method,
        "seed": str(seed),
        "xs": [frames] * len(episodes),
        "reward": [e.return_ for e in episodes],
        "length": [e.length for e in episodes],
    } | {f"achievement_{name}": [counts[name] for counts in told] for name in (told[0] if told else ())}
