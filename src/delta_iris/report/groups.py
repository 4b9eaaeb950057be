"""Runs that differ only in their seed, as one group with one colour."""

from __future__ import annotations

from dataclasses import dataclass

from delta_iris.report.configuration import PLACES
from delta_iris.report.run import Run

__all__ = ["Group", "group_runs"]

OWN = (*PLACES, "seed_everything")
"""Keys, and beginnings of keys, in which runs of a group may differ."""


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, or of one method in a run file.

    Attributes:
        index: number of the group, which its colour follows.
        name: to show.
        runs: at least one.
    """

    index: int
    name: str
    runs: list[Run]


def group_runs(runs: list[Run]) -> list[Group]:
    """Put runs together that differ only in their seed, in the order in which they were given.

    Args:
        runs: of a report.
    """
    grouped: dict[object, list[Run]] = {}
    for index, run in enumerate(runs):
        grouped.setdefault(_identity(run, index), []).append(run)
    groups = []
    for index, members in enumerate(grouped.values()):
        name = members[0].name if len(members) == 1 else _common_name(members)
        groups.append(Group(index, name, members))
    return groups


def _identity(run: Run, index: int) -> object:
    if run.episodes is not None:
        return run.episodes.method, run.episodes.task
    if not run.config:
        return index
    kept = {key: value for key, value in run.config.items() if not key.startswith(OWN)}
    return frozenset(kept.items())


def _common_name(runs: list[Run]) -> str:
    episodes = runs[0].episodes
    name = (runs[0].config.get("name") or runs[0].name) if episodes is None else episodes.method
    return f"{name} ({len(runs)} runs)"
