"""Episodes in the format of Crafter's run files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delta_iris.data.collector import EpisodeStats
from delta_iris.errors import UserError
from delta_iris.evaluation.episodes import Evaluation, evaluate_episodes

__all__ = ["BUDGET", "Episodes", "parse_episodes"]

BUDGET = 1e6
"""Frames within which Crafter's benchmark counts the episodes of a run."""

PREFIX = "achievement_"


@dataclass(frozen=True)
class Episodes:
    """The episodes of a run, or of a test of one agent.

    Attributes:
        method: name of the agent.
        seed: of the run.
        task: the environment; empty where the file does not name it.
        frames: (N,) frames collected until each episode's end or, in a test, those that the agent was trained on.
        returns: (N,) sums of rewards.
        lengths: (N,) steps, or None.
        achievements: how often each episode unlocked each achievement, (N,) by name.
    """

    method: str
    seed: str
    task: str
    frames: NDArray[np.float64]
    returns: NDArray[np.float64]
    lengths: NDArray[np.float64] | None
    achievements: dict[str, NDArray[np.float64]]

    @property
    def is_test(self) -> bool:
        """Whether one agent played all episodes."""
        return bool((self.frames == self.frames[0]).all())

    def evaluate(self) -> Evaluation:
        """Statistics of the episodes within Crafter's budget; of all of them for a test."""
        counted = np.ones(len(self.returns), bool) if self.is_test else self.frames <= max(BUDGET, self.frames.min())
        return evaluate_episodes(
            [
                EpisodeStats(
                    float(self.returns[i]),
                    0 if self.lengths is None else int(self.lengths[i]),
                    {name: int(counts[i]) for name, counts in self.achievements.items()} or None,
                )
                for i in np.flatnonzero(counted)
            ]
        )


def parse_episodes(content: Any, source: str) -> Episodes:
    """Check and convert one run of a run file.

    Args:
        content: of the file.
        source: the file, for messages.

    Raises:
        UserError: if it has another form.
    """
    if not isinstance(content, Mapping) or not {"xs", "reward"} <= content.keys():
        raise UserError(f"{source} is not a Crafter run: a run is an object with lists 'xs' and 'reward'")
    frames, returns = _numbers(content, "xs", source), _numbers(content, "reward", source)
    named = {key.removeprefix(PREFIX): _numbers(content, key, source) for key in content if key.startswith(PREFIX)}
    lengths = _numbers(content, "length", source) if content.get("length") is not None else None
    columns = {"reward": returns, "length": lengths} | {PREFIX + name: each for name, each in named.items()}
    for key, column in columns.items():
        if column is not None and len(column) != len(frames):
            raise UserError(f"{source}: {key!r} has {len(column)} entries, and 'xs' has {len(frames)}: one an episode")
    if not len(frames):
        raise UserError(f"{source} is an empty run: it holds no episodes")
    order = np.argsort(frames, kind="stable")
    return Episodes(
        str(content.get("method", "unnamed")),
        str(content.get("seed", "0")),
        str(content.get("task", "")),
        frames[order],
        returns[order],
        None if lengths is None else lengths[order],
        {name: each[order] for name, each in sorted(named.items())},
    )


def _numbers(content: Mapping[str, Any], key: str, source: str) -> NDArray[np.float64]:
    values = content[key]
    if not isinstance(values, list) or not all(type(each) in (int, float) for each in values):
        raise UserError(f"{source}: {key!r} is not a list of numbers")
    numbers = np.array(values, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise UserError(f"{source}: {key!r} has values that are not finite")
    return numbers
