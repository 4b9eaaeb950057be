"""The report of a number of test episodes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

from delta_iris.data.collector import Episode
from delta_iris.metrics import AchievementRates

__all__ = ["Evaluation", "evaluate_episodes"]


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
        returns: of each episode.
        lengths: of each episode.
    """

    episodes: int
    return_mean: float
    return_interval: float
    length_mean: float
    objectives: float | None
    score: float | None
    achievements: dict[str, float] = field(default_factory=dict)
    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

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
        returns=returns,
        lengths=lengths,
    )
