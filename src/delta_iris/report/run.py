"""A run as plain tables, read from a run folder or from a file in Crafter's run format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delta_iris.errors import UserError
from delta_iris.files import read_text
from delta_iris.legacy import is_legacy_configuration, upgrade_configuration
from delta_iris.report.episodes import Episodes, parse_episodes
from delta_iris.report.events import EVENT_FILES, EventLog, Point, read_events
from delta_iris.yaml_files import flatten, parse_yaml

__all__ = ["COLLECTED", "Run", "Series", "read_runs"]

Array = NDArray[np.float64]

COLLECTED = "train/frames_per_second"
"""The tag whose steps are the frames collected so far: it is logged whenever something was collected."""

MAX_RUN_FILE = 1 << 28
"""Largest run file in bytes. A million steps of Crafter are about 2 MB."""


@dataclass(frozen=True)
class Series:
    """The values of a tag.

    Attributes:
        frames: (N,) frames collected when they were logged; optimizer steps in a run that collects nothing.
        hours: (N,) since the run began, without the time between a stop and the resume.
        values: (N,) as logged.
    """

    frames: Array
    hours: Array
    values: Array


@dataclass
class Run:
    """A run, or what is known of it.

    Attributes:
        name: to show; unique in a report.
        path: that it was read from.
        seed: of the run, where it is known.
        series: logged values by tag; empty for a run file.
        episodes: of a run file that tells of learning: all episodes of the run.
        test: the test episodes of a finished agent.
        config: the flat configuration, by key; empty where there is none.
        images: the last logged images by tag, encoded.
        notes: what could not be read.
    """

    name: str
    path: Path
    seed: str | None = None
    series: dict[str, Series] = field(default_factory=dict)
    episodes: Episodes | None = None
    test: Episodes | None = None
    config: dict[str, str] = field(default_factory=dict)
    images: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def is_crafter(self) -> bool:
        """Whether the run is one of Crafter with its reward."""
        known = self.test or self.episodes
        task = self.config.get("data.environment") or (known.task if known else "")
        if "noreward" in task.lower():
            return False
        return "crafter" in task.lower() or "test_achievements/collect_diamond" in self.series

    @cached_property
    def frames(self) -> float:
        """Frames collected until the end."""
        if COLLECTED in self.series:
            return float(self.series[COLLECTED].frames[-1])
        known = self.episodes or self.test
        return float(known.frames.max()) if known else max((s.frames[-1] for s in self.series.values()), default=0.0)

    @cached_property
    def hours(self) -> float | None:
        """Time that the run took; None where it is not known."""
        return max((float(series.hours[-1]) for series in self.series.values()), default=None)


def read_runs(paths: list[Path]) -> list[Run]:
    """Read runs, and give them names that differ.

    Args:
        paths: run folders, and files in Crafter's run format, each of which may hold several runs.

    Raises:
        UserError: if one of them is neither, or holds nothing to show.
    """
    runs = [run for path in paths for run in (_read_folder(path) if path.is_dir() else _read_file(path))]
    for depth in range(2, 6):
        names = [run.name for run in runs]
        for run, name in zip(runs, names, strict=True):
            if names.count(name) > 1 and run.episodes is None:
                run.name = "/".join(run.path.absolute().parts[-depth:])
    names = [run.name for run in runs]
    for index, run in enumerate(runs):
        if names.count(names[index]) > 1:
            run.name = f"{names[index]} ({names[: index + 1].count(names[index])})"
    return runs


def _read_folder(folder: Path) -> Iterator[Run]:
    if not any(folder.glob(EVENT_FILES)):
        below = sorted({path.parent for path in folder.glob(f"*/{EVENT_FILES}")})
        hint = f"name the folder of a run, such as {below[-1]}" if below else "it holds no event files of TensorBoard"
        raise UserError(f"{folder} is not a run: {hint}")
    log = read_events(folder)
    if not log.scalars:
        reason = f" ({'; '.join(log.notes)})" if log.notes else ""
        raise UserError(f"{folder} is an empty run: nothing was logged yet{reason}")
    run = Run(_folder_name(folder), folder, series=_to_series(log), images=log.images, notes=log.notes)
    if COLLECTED not in log.scalars:
        run.notes.append(f"{folder} has collected nothing: its curves are drawn over optimizer steps")
    if (folder / "config.yaml").is_file():
        try:
            config = parse_yaml(read_text(folder / "config.yaml"), str(folder / "config.yaml"))
            present = upgrade_configuration(config) if is_legacy_configuration(config) else config
            run.config = {key: _text(value) for key, value in flatten(present)}
            run.seed = run.config.get("seed_everything")
        except (UserError, TypeError, AttributeError, ValueError) as error:
            run.notes.append(f"the configuration is left out: {error}")
    tests = []
    for path in sorted([*folder.glob("*.json"), *folder.glob("evaluation/*.json")]):
        if path.name == "run.json":
            continue
        try:
            tests += [each for each in _parse_file(path) if each.is_test]
        except UserError as error:
            run.notes.append(f"left out: {error}")
    # The furthest agent, and of its tests the longest.
    run.test = max(tests, key=lambda test: (test.frames[-1], len(test.returns)), default=None)
    yield run


def _read_file(path: Path) -> Iterator[Run]:
    if not path.exists():
        raise UserError(f"{path} does not exist: name a run folder, or a JSON file in Crafter's run format")
    parsed = _parse_file(path)
    for episodes in parsed:
        several = len({each.seed for each in parsed if each.method == episodes.method}) > 1
        name = f"{episodes.method}, seed {episodes.seed}" if several else episodes.method
        run = Run(name, path, episodes.seed)
        run.test, run.episodes = (episodes, None) if episodes.is_test else (None, episodes)
        yield run


def _parse_file(path: Path) -> list[Episodes]:
    try:
        content = json.loads(read_text(path, MAX_RUN_FILE))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    listed = content if isinstance(content, list) else [content]
    if not listed:
        raise UserError(f"{path} holds no runs")
    return [parse_episodes(each, str(path)) for each in listed]


def _to_series(log: EventLog) -> dict[str, Series]:
    collected = log.scalars.get(COLLECTED, [])
    return {tag: _place(points, collected) for tag, points in sorted(log.scalars.items())}


def _place(points: list[Point], collected: list[Point]) -> Series:
    """Find how many frames had been collected when each point was logged."""
    seconds = np.array([point.seconds for point in points])
    steps = np.array([point.step for point in points], dtype=np.float64)
    if collected:
        times = [point.seconds for point in collected]
        frames = np.array([0.0, *(point.step for point in collected)])
        steps = frames[np.searchsorted(times, seconds, side="right")]
    return Series(steps, seconds / 3600, np.array([point.value for point in points]))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _folder_name(folder: Path) -> str:
    """`<name>/version_N` for the folders that `fit` makes, and a folder's own name otherwise."""
    parts = folder.absolute().parts
    return "/".join(parts[-2:]) if parts[-1].startswith("version_") else parts[-1]
