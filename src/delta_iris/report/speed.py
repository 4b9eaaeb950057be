"""The speed section: where the time of an epoch goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from delta_iris.report.figures import FAINT, Panel, Section, clean_axes, label_bar, legend_above, log_axis, series_color
from delta_iris.report.groups import Group
from delta_iris.report.lines import STYLES, thin
from delta_iris.report.returns import positions
from delta_iris.report.run import COLLECTED, Run

__all__ = ["EpochTimes", "epoch_times", "speed_section"]

OPACITY = (1.0, 0.72, 0.5, 0.32, 0.2, 0.12)


@dataclass(frozen=True)
class EpochTimes:
    """How long the activities of an epoch take.

    Attributes:
        frames: collected in an epoch.
        seconds: of collection, of each phase in order, and of the rest: evaluation, checkpoints and logs.
    """

    frames: float
    seconds: dict[str, float]

    @property
    def frames_per_second(self) -> dict[str, float]:
        """Frames of an epoch by the time that each activity takes for them, and `in all`."""
        return {name: self.frames / time for name, time in self.seconds.items() if time > 0} | {
            "in all": self.frames / sum(self.seconds.values())
        }


def epoch_times(run: Run) -> EpochTimes | None:
    """Medians over the epochs after the first, which also compiles; None where there is none, or it took no time.

    An activity's end is when it was logged. Collection logs its frames per second, which give its duration.
    """
    collected = run.series.get(COLLECTED)
    tags = [tag for tag in run.series if tag.startswith("throughput/") and tag.endswith("_ms")]
    if collected is None or len(collected.frames) < 3 or not tags:
        return None
    tags.sort(key=lambda tag: run.series[tag].hours[0])
    ends = {tag: dict(zip(run.series[tag].frames, run.series[tag].hours * 3600, strict=True)) for tag in tags}
    new_frames = np.diff(collected.frames, prepend=0.0)
    collecting = new_frames / np.maximum(collected.values, 1e-9)
    rows: dict[str, list[float]] = {name: [] for name in ("collection", *tags, "rest")}
    for epoch in range(1, len(collected.frames) - 1):
        frames, end = collected.frames[epoch], collected.hours[epoch] * 3600
        if not all(frames in ends[tag] for tag in tags):
            continue
        rows["collection"].append(collecting[epoch])
        for tag in tags:
            rows[tag].append(ends[tag][frames] - end)
            end = ends[tag][frames]
        rows["rest"].append(max(0.0, collected.hours[epoch + 1] * 3600 - collecting[epoch + 1] - end))
    if not rows["collection"]:
        return None
    # Evaluation comes every few epochs, so that its median would often be 0.
    seconds = {
        tag.removeprefix("throughput/").removesuffix("_ms"): float(
            np.mean(times) if tag == "rest" else np.median(times)
        )
        for tag, times in rows.items()
    }
    times = EpochTimes(float(np.median(new_frames[1:])), seconds)
    return times if all(0 < speed < np.inf for speed in times.frames_per_second.values()) else None


def speed_section(groups: Sequence[Group]) -> Section | None:
    """Frames per second, times of steps, and shares of an epoch; None where no run has logged them."""
    runs = [run for group in groups for run in group.runs]
    panels = []
    if any("throughput/frames_per_second" in run.series for run in runs):
        panels.append(
            Panel(
                "frames_per_second",
                "Frames per second in all",
                lambda axes: _draw_tags(axes, groups, "throughput/frames_per_second", "", "frames/s", False),
                "Collected frames by the time of collection and training.",
            )
        )
    times = {group.index: found for group in groups if (found := epoch_times(group.runs[0])) is not None}
    if times:
        panels.append(
            Panel(
                "phase_speed",
                "Frames per second by phase",
                lambda axes: _draw_speeds(axes, groups, times),
                "An epoch's frames by the time of each activity; medians after the first epoch. Of runs that differ in "
                "their seed, the first.",
            )
        )
        panels.append(
            Panel(
                "epoch_time",
                "Where an epoch's time goes",
                lambda axes: _draw_shares(axes, groups, times),
                "Rest: evaluation, checkpoints, logs.",
            )
        )
    if any(tag.startswith("throughput/") and tag.endswith("_ms") for run in runs for tag in run.series):
        panels.append(
            Panel(
                "step_time",
                "Time of a step",
                lambda axes: _draw_tags(axes, groups, "throughput/", "_ms", "milliseconds", True),
            )
        )
    if any(tag.endswith("_gib") for run in runs for tag in run.series):
        panels.append(
            Panel(
                "gpu_memory", "GPU memory", lambda axes: _draw_tags(axes, groups, "throughput/", "_gib", "GiB", False)
            )
        )
    return Section("speed", "Speed", "", panels) if panels else None


def _draw_tags(axes: Axes, groups: Sequence[Group], prefix: str, suffix: str, unit: str, log: bool) -> None:
    tags = sorted(
        {
            tag
            for group in groups
            for run in group.runs
            for tag in run.series
            if tag.startswith(prefix) and tag.endswith(suffix)
        }
    )
    styles = {tag: STYLES[index % len(STYLES)] for index, tag in enumerate(tags)}
    for group in groups:
        for run in group.runs:
            for tag in tags:
                if tag in run.series:
                    band = positions(thin(run.series[tag]), "frames")
                    axes.plot(
                        band.x,
                        band.mean,
                        color=series_color(group.index),
                        linestyle=styles[tag],
                        linewidth=1.4,
                        gid=f"group-{group.index}",
                    )
    if log:
        log_axis(axes)
    else:
        axes.set_ylim(bottom=0)
    if len(tags) > 1:
        names = [tag.removeprefix(prefix).removesuffix(suffix).replace("_", " ") for tag in tags]
        handles = [
            Line2D([], [], color=FAINT, linestyle=styles[tag], label=name)
            for tag, name in zip(tags, names, strict=True)
        ]
        legend_above(axes, handles)
    clean_axes(axes, "frames collected", unit)


def _draw_speeds(axes: Axes, groups: Sequence[Group], times: dict[int, EpochTimes]) -> None:
    names = list(dict.fromkeys(name for each in times.values() for name in each.frames_per_second if name != "rest"))
    height = 0.78 / len(times)
    for place, group in enumerate(each for each in groups if each.index in times):
        speeds = times[group.index].frames_per_second
        for row, name in enumerate(names):
            if name in speeds:
                y = row + height * (place + 0.5 - len(times) / 2)
                bar = axes.barh([y], [speeds[name]], height * 0.9, color=series_color(group.index))
                bar.patches[0].set_gid(f"group-{group.index}")
                label_bar(axes, speeds[name], y, f"{speeds[name]:,.0f}")
    axes.set_xscale("log")
    clean_axes(axes, "frames/s")
    slowest = min(min(each.frames_per_second.values()) for each in times.values())
    fastest = max(each.frames_per_second[name] for each in times.values() for name in names)
    axes.set_xlim(10 ** np.floor(np.log10(slowest)), 2.5 * fastest)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.minorticks_off()
    axes.grid(visible=False, axis="y")


def _draw_shares(axes: Axes, groups: Sequence[Group], times: dict[int, EpochTimes]) -> None:
    shown = [group for group in groups if group.index in times]
    names = list(dict.fromkeys(name for each in times.values() for name in each.seconds))
    opacity = {name: OPACITY[index % len(OPACITY)] for index, name in enumerate(names)}
    for row, group in enumerate(shown):
        seconds, left = times[group.index].seconds, 0.0
        total = sum(seconds.values())
        for name, time in seconds.items():
            share = 100 * time / total
            bar = axes.barh([row], [share], 0.6, left=[left], color=series_color(group.index), alpha=opacity[name])
            bar.patches[0].set_gid(f"group-{group.index}")
            if share >= 8:
                axes.text(left + share / 2, row, f"{share:.0f}", ha="center", va="center", fontsize=8)
            left += share
    handles = [
        Line2D([], [], color=FAINT, alpha=opacity[name], linewidth=6, label=name.replace("_", " ")) for name in names
    ]
    legend_above(axes, handles)
    axes.set_xlim(0, 100)
    clean_axes(axes, "% of the time")
    axes.set_yticks(range(len(shown)), [f"{sum(times[each.index].seconds.values()):.1f} s" for each in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_ylabel("an epoch")
    axes.grid(visible=False, axis="y")
