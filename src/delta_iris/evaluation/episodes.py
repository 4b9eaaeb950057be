"""Statistics of test episodes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from delta_iris.data.collector import EpisodeStats
from delta_iris.evaluation.crafter_score import AchievementRates

__all__ = ["Evaluation", "crafter_run", "evaluate_episodes", "mean_and_interval"]


@dataclass(frozen=True)
class Evaluation:
    """Statistics over episodes. The last three are only set for environments with achievements.

    Attributes:
        episodes: number of episodes.
        return_mean: mean undiscounted return.
        return_interval: half the width of its 95% confidence interval (1.96 standard errors).
        length_mean: mean length, in steps.
        achievements_per_episode: mean number of achievements unlocked in an episode.
        score: the Crafter score, in percent.
        achievements: success rates, in percent.
    """

    episodes: int
    return_mean: float
    return_interval: float
    length_mean: float
    achievements_per_episode: float | None
    score: float | None
    achievements: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """All fields as plain values."""
        return asdict(self)

    def table(self) -> str:
        """A table to print."""
        rows = [
            ("episodes", f"{self.episodes}"),
            ("return", f"{self.return_mean:.2f} ± {self.return_interval:.2f} (95%)"),
            ("length", f"{self.length_mean:.1f} steps"),
        ]
        if self.achievements_per_episode is not None and self.score is not None:
            number = f"{self.achievements_per_episode:.2f} of {len(self.achievements)} an episode"
            rows.append(("achievements", number))
            rows.append(("Crafter score", f"{self.score:.2f}%"))
            rows += [(name.replace("_", " "), f"{rate:.1f}%") for name, rate in self.achievements.items()]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def evaluate_episodes(episodes: list[EpisodeStats]) -> Evaluation:
    """Compute the statistics of at least one episode."""
    lengths = [e.length for e in episodes]
    mean, interval = mean_and_interval([e.return_ for e in episodes])
    counts = [e.achievements for e in episodes if e.achievements is not None]
    values: dict[str, float] = {}
    if counts:
        # The episodes are those of all processes already.
        names = _names(counts)
        rates = AchievementRates(names, sync_on_compute=False)
        for unlocked in counts:
            rates.update(dict.fromkeys(names, 0) | unlocked)
        values = {name: float(value) for name, value in rates.compute().items()}
    return Evaluation(
        episodes=len(episodes),
        return_mean=mean,
        return_interval=interval,
        length_mean=sum(lengths) / len(lengths),
        achievements_per_episode=values.pop("achievements_per_episode", None),
        score=values.pop("score", None),
        achievements=values,
    )


def mean_and_interval(values: list[float]) -> tuple[float, float]:
    """The mean of at least one value, and half the width of its 95% confidence interval (1.96 standard errors).

    Raises:
        ValueError: if there is no value.
    """
    if not values:
        raise ValueError("no values")
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return mean, 1.96 * math.sqrt(variance / len(values))


def crafter_run(episodes: list[EpisodeStats], task: str, method: str, seed: int, frames: int) -> dict[str, Any]:
    """Convert episodes to the format of Crafter's analysis scripts: lists with one entry for each episode.

    Args:
        episodes: at least one.
        task: the environment.
        method: name of the agent, which the plots show.
        seed: of the run; the scripts average over seeds.
        frames: that the agent was trained on, the plots' horizontal axis. The scripts read the first million unless
            they are given a larger budget.

    Returns:
        `task`, `method`, `seed`, `xs`, `reward`, `length` and, if the environment has achievements, `achievement_…`,
        how often each was unlocked.
    """
    counts = [e.achievements for e in episodes if e.achievements is not None]
    return {
        "task": task,
        "method": method,
        "seed": str(seed),
        "xs": [frames] * len(episodes),
        "reward": [e.return_ for e in episodes],
        "length": [e.length for e in episodes],
    } | {f"achievement_{name}": [unlocked.get(name, 0) for unlocked in counts] for name in _names(counts)}


def _names(counts: list[dict[str, int]]) -> tuple[str, ...]:
    """Names that any episode tells of: some environments tell of an achievement only once it is unlocked."""
    return tuple(dict.fromkeys(name for unlocked in counts for name in unlocked))
