"""The return section: learning curves over frames and time, with published returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from delta_iris.report.figures import FAINT, INK, Panel, Section, clean_axes, legend_above, number, series_color
from delta_iris.report.groups import Group
from delta_iris.report.published import PublishedReturn, published
from delta_iris.report.run import Run, Series
from delta_iris.report.statistics import Band, bin_means, mean_over_runs, window_means

__all__ = ["Clock", "final_return", "positions", "return_section", "test_band", "training_band"]

Clock = Literal["frames", "hours"]

BINS = 40
"""Bins that the episodes of a run file are averaged in."""

REACH = 3
"""Published returns are drawn up to this multiple of the longest run's frames."""


def positions(series: Series, clock: Clock) -> Band:
    """A tag's values as they were logged, without an interval."""
    x = series.frames if clock == "frames" else series.hours
    return Band(x, series.values, np.full(len(x), np.nan))


def window_size(count: int) -> int:
    """Number of logged values that a point of a learning curve is the mean of; odd."""
    return max(3 if count < 15 else 5, count // 12 // 2 * 2 + 1)


def training_band(run: Run, clock: Clock, tag: str = "train/return") -> Band | None:
    """The learning curve of collected episodes, by default of their returns; None where there is none."""
    if run.episodes is not None and tag == "train/return":
        return bin_means(run.episodes.frames, run.episodes.returns, BINS) if clock == "frames" else None
    series = run.series.get(tag)
    if series is None:
        return None
    raw, counted = positions(series, clock), run.series.get("train/episodes")
    same = counted is not None and len(counted.values) == len(raw.x)
    weights = counted.values if counted is not None and same else np.ones(len(raw.x))
    return window_means(raw.x, raw.mean, np.maximum(weights, 1), window_size(len(raw.x)))


def test_band(run: Run, clock: Clock) -> Band | None:
    """Returns of test episodes during training, with intervals where they were logged."""
    series, logged = run.series.get("test/return"), run.series.get("test/return_interval")
    if series is None:
        return None
    band = positions(series, clock)
    return band._replace(half=logged.values) if logged is not None and len(logged.values) == len(band.x) else band


def final_return(run: Run) -> tuple[float, float, str] | None:
    """The return that a run ended with, half the width of its 95% interval, and what was measured."""
    if run.test is not None:
        result = run.test.evaluate()
        return result.return_mean, result.return_interval, f"{result.episodes:,} test episodes"
    if run.episodes is not None:
        band = bin_means(run.episodes.frames, run.episodes.returns, BINS)
        return float(band.mean[-1]), float(band.half[-1]), f"collected episodes, last of {BINS} parts of the run"
    test, training = test_band(run, "frames"), training_band(run, "frames")
    if test is not None:
        count = run.series.get("test/episodes")
        episodes = "test episodes" if count is None else f"{count.values[-1]:,.0f} test episodes"
        return float(test.mean[-1]), float(test.half[-1]), f"{episodes} at {number(test.x[-1])} frames"
    if training is not None:
        what = f"collected episodes, last {min(window_size(len(training.x)) // 2 + 1, len(training.x))} epochs"
        return float(training.mean[-1]), float(training.half[-1]), what
    return None


def return_section(groups: Sequence[Group]) -> Section | None:
    """Learning curves; None where no run has returns."""
    runs = [run for group in groups for run in group.runs]
    if all(final_return(run) is None for run in runs):
        return None
    crafter = any(run.is_crafter for run in runs)
    caption = (
        "Thin line: mean return of each epoch's collected episodes. Thick line: mean over "
        "neighbouring epochs, weighted by episodes, with its 95% interval. Circles: test episodes during training. "
        "Diamond: test of the finished agent."
    )
    if any(len(group.runs) > 1 for group in groups):
        caption += (
            " Runs that differ only in their seed share a colour; their thick line is the mean over runs, and its "
            "interval that over runs."
        )
    if crafter and _reached(groups):
        caption += " Crosses: published returns, listed below."
    panels = [
        Panel(
            "return_frames",
            "Return over frames",
            lambda axes: _draw(axes, groups, "frames", crafter, labels=True),
            caption,
            (9.2, 3.9),
            lambda axes: _draw(axes, groups, "frames", crafter, labels=False),
        )
    ]
    if any(run.hours for run in runs):
        panels.append(
            Panel(
                "return_time",
                "Return over wall time",
                lambda axes: _draw(axes, groups, "hours", False, labels=False),
                "Time in which the run was stopped is left out.",
            )
        )
    if any("train/length" in run.series or "test/length" in run.series for run in runs):
        panels.append(Panel("episode_length", "Length of episodes", lambda axes: _draw_lengths(axes, groups)))
    return Section("return", "Return", "", panels)


def time_unit(groups: Sequence[Group]) -> tuple[float, str]:
    """Units in an hour, and the name of the unit: minutes for runs of less than two hours."""
    longest = max((run.hours or 0.0 for group in groups for run in group.runs), default=0.0)
    return (60.0, "minutes") if longest < 2 else (1.0, "hours")


def _draw(axes: Axes, groups: Sequence[Group], clock: Clock, crafter: bool, labels: bool) -> None:
    scale, unit = (1.0, "") if clock == "frames" else time_unit(groups)
    drawn = {"training": False, "test": False, "final": False}
    for group in groups:
        color, gid = series_color(group.index), f"group-{group.index}"
        bands = []
        for run in group.runs:
            raw, band = run.series.get("train/return"), training_band(run, clock)
            if raw is not None:
                points = positions(raw, clock)
                axes.plot(points.x * scale, points.mean, color=color, linewidth=0.8, alpha=0.35, gid=gid)
            if band is not None:
                drawn["training"] = True
                if len(group.runs) > 1 and len(band.x) > 1:
                    bands.append(band)
                    axes.plot(band.x * scale, band.mean, color=color, linewidth=0.9, alpha=0.6, gid=gid)
                else:
                    _draw_band(axes, band, scale, color, gid)
            test = test_band(run, clock)
            if test is not None:
                drawn["test"] = True
                _draw_points(axes, test, scale, color, gid, "o", 4)
            if run.test is not None and (clock == "frames" or run.hours):
                drawn["final"] = True
                result = run.test.evaluate()
                x = run.test.frames[-1] if clock == "frames" else run.hours or 0.0
                point = Band(*(np.array([value]) for value in (x, result.return_mean, result.return_interval)))
                _draw_points(axes, point, scale, color, gid, "D", 6)
        if len(bands) > 1 and (mean := mean_over_runs(bands)) is not None:
            _draw_band(axes, mean, scale, color, gid)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    if crafter:
        _draw_published(axes, groups, labels)
    styles = {
        "training": Line2D([], [], color=FAINT, linewidth=1.6, label="collected episodes"),
        "test": Line2D([], [], color=FAINT, linewidth=0, marker="o", markersize=4, label="test episodes"),
        "final": Line2D([], [], color=FAINT, linewidth=0, marker="D", markersize=5, label="finished agent"),
    }
    handles = [styles[name] for name, used in drawn.items() if used]
    if len(handles) > 1:
        if clock == "frames":
            axes.legend(handles=handles, loc="upper left")  # curves begin low
        else:
            legend_above(axes, handles)
    clean_axes(axes, "frames collected" if clock == "frames" else f"{unit} of wall time", "return")


def _draw_band(axes: Axes, band: Band, scale: float, color: str, gid: str) -> None:
    marker = "o" if len(band.x) == 1 else None
    axes.plot(band.x * scale, band.mean, color=color, linewidth=2, marker=marker, gid=gid)
    low, high = band.mean - band.half, band.mean + band.half
    axes.fill_between(band.x * scale, low, high, color=color, alpha=0.18, linewidth=0, gid=gid)


def _draw_points(axes: Axes, band: Band, scale: float, color: str, gid: str, marker: str, size: float) -> None:
    low, high = band.mean - band.half, band.mean + band.half
    axes.vlines(band.x * scale, low, high, color=color, linewidth=1.4, gid=gid)
    axes.plot(band.x * scale, band.mean, linewidth=0, marker=marker, markersize=size, color=color, gid=gid, zorder=3)


def _reached(groups: Sequence[Group]) -> list[PublishedReturn]:
    """The published returns that are drawn."""
    longest = max(run.frames for group in groups for run in group.runs)
    return [point for point in published()[0] if point.frames <= REACH * longest]


def _draw_published(axes: Axes, groups: Sequence[Group], labels: bool) -> None:
    shown, levels = _reached(groups), published()[1]
    for point in shown:
        axes.plot([point.frames], [point.return_], marker="x", markersize=5, markeredgewidth=1.3, color=FAINT, zorder=2)
    top = max([axes.get_ylim()[1], *(1.08 * point.return_ for point in shown)])
    axes.set_ylim(top=top)
    for level in levels:
        if level.return_ <= top:
            axes.axhline(level.return_, color=FAINT, linewidth=1, linestyle=(0, (2, 2)))
            axes.annotate(
                level.label,
                (0.995, level.return_),
                xycoords=("axes fraction", "data"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="right",
                va="bottom",
                fontsize=8,
                color=FAINT,
            )
    if labels:
        _label(shown, axes, top)


def _label(points: list[PublishedReturn], axes: Axes, top: float) -> None:
    """Write the names of returns below each other at the right, without overlaps."""
    points = sorted(points, key=lambda point: point.return_)
    several = len({point.frames for point in points}) > 1
    gap, heights = 0.047 * top, [point.return_ for point in points]
    for _ in range(50):  # push neighbours apart until all have room
        for i in range(len(heights) - 1):
            missing = gap - (heights[i + 1] - heights[i])
            if missing > 0:
                heights[i], heights[i + 1] = heights[i] - missing / 2, heights[i + 1] + missing / 2
    for point, height in zip(points, heights, strict=True):
        axes.annotate(
            f"{point.label}{f', {number(point.frames)}' if several else ''}  {point.return_:.1f}",
            (point.frames, point.return_),
            xytext=(1.012, height),
            textcoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color=INK,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3},
        )


def _draw_lengths(axes: Axes, groups: Sequence[Group]) -> None:
    for group in groups:
        color, gid = series_color(group.index), f"group-{group.index}"
        for run in group.runs:
            for split, line, marker in (("train", "-", ""), ("test", "", "o")):
                if f"{split}/length" in run.series:
                    band = positions(run.series[f"{split}/length"], "frames")
                    axes.plot(
                        band.x, band.mean, color=color, gid=gid, ls=line, marker=marker, markersize=4, linewidth=1.2
                    )
    clean_axes(axes, "frames collected", "steps")
