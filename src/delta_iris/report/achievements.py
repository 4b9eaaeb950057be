"""The achievements: Crafter's spectrum of success rates, the Crafter score, and rates over frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from delta_iris.report.episodes import BUDGET
from delta_iris.report.figures import FAINT, INK, Panel, Section, clean_axes, label_bar, series_color
from delta_iris.report.groups import Group
from delta_iris.report.published import published
from delta_iris.report.returns import positions, training_band
from delta_iris.report.run import Run
from delta_iris.report.statistics import mean_interval, success_interval

__all__ = ["Rates", "achievement_rates", "achievement_sections"]

LOWEST = 0.01
"""Where the logarithmic axis of success rates begins, in percent, as in the Crafter paper."""


@dataclass(frozen=True)
class Rates:
    """Success rates of achievements.

    Attributes:
        percent: by achievement.
        episodes: that they were counted in.
        score: the Crafter score in percent.
        per_episode: mean number of achievements unlocked in an episode.
        kind: which episodes they are.
    """

    percent: dict[str, float]
    episodes: float
    score: float
    per_episode: float
    kind: str

    @property
    def source(self) -> str:
        """The number and the kind of the episodes."""
        return f"{self.episodes:,.0f} episodes ({self.kind})"

    def interval(self, name: str) -> tuple[float, float]:
        """The 95% confidence interval of a rate, in percent."""
        if not self.episodes > 0:
            return float("nan"), float("nan")
        low, high = success_interval(self.percent.get(name, 0.0) / 100, self.episodes)
        return 100 * low, 100 * high


@dataclass(frozen=True)
class MeanRates(Rates):
    """Means over runs that differ in their seed, as Crafter averages them.

    Attributes:
        runs: at least two.
    """

    runs: tuple[Rates, ...]

    @property
    def source(self) -> str:
        """The numbers of the runs and of all their episodes, and their kind."""
        return f"mean of {len(self.runs)} runs, {super().source}"

    def interval(self, name: str) -> tuple[float, float]:
        """The 95% confidence interval of the mean over runs, in percent."""
        mean, half = mean_interval([rates.percent.get(name, 0.0) for rates in self.runs])
        return max(0.0, mean - half), min(100.0, mean + half)


def achievement_rates(run: Run) -> Rates | None:
    """The success rates that a run ended with: of its finished agent's test, its last test, or its last episodes."""
    known = run.test or run.episodes
    if known is not None and known.achievements:
        result = known.evaluate()
        assert result.score is not None
        assert result.achievements_per_episode is not None
        kind = "test" if known.is_test else f"collected, all within {BUDGET:,.0f} frames"
        return Rates(result.achievements, result.episodes, result.score, result.achievements_per_episode, kind)
    for split in ("test", "train"):
        prefix = f"{split}_achievements/"
        percent = {
            tag.removeprefix(prefix): float(series.values[-1])
            for tag, series in run.series.items()
            if tag.startswith(prefix)
        }
        if percent:
            last = {
                name: float(run.series[f"{split}/{name}"].values[-1]) if f"{split}/{name}" in run.series else np.nan
                for name in ("episodes", "crafter_score", "achievements_per_episode")
            }
            kind = "last test during training" if split == "test" else "collected in the last epoch"
            return Rates(percent, last["episodes"], last["crafter_score"], last["achievements_per_episode"], kind)
    return None


def achievement_sections(groups: Sequence[Group]) -> list[Section]:
    """The spectrum with the score, and the success rates over frames; none where there are no achievements."""
    known = {group.index: rates for group in groups if (rates := _of_group(group)) is not None}
    if not known:
        return []
    names = sorted({name for rates in known.values() for name in rates.percent})
    sources = "; ".join(f"{group.name}: {known[group.index].source}" for group in groups if group.index in known)
    spectrum = Panel(
        "spectrum",
        "Success rate of each achievement",
        lambda axes: _draw_bars(axes, groups, known, names, horizontal=False),
        f"Share of the episodes that unlocked it, on a logarithmic scale as in the Crafter paper, with 95% intervals "
        f"(Wilson's or, over several runs, Student's). No bar: never unlocked. {sources}.",
        (9.2, 3.6),
        lambda axes: _draw_bars(axes, groups, known, names, horizontal=True),
        (4.0, 0.26 * len(names) + 0.6 + 0.05 * len(names) * max(0, len(known) - 2)),
    )
    panels = [spectrum]
    crafter = any(run.is_crafter for group in groups for run in group.runs)
    panels.append(
        Panel(
            "score",
            "Crafter score",
            lambda axes: _draw_scores(axes, groups, known, crafter),
            "Geometric mean of the success rates, in percent: exp(mean(ln(1 + s))) − 1."
            + (" Grey: published." if crafter else ""),
        )
    )
    if any(_logged(run, "crafter_score") for group in groups for run in group.runs):
        panels.append(
            Panel(
                "score_frames",
                "Crafter score over frames",
                lambda axes: _draw_over_frames(axes, groups, "crafter_score"),
            )
        )
        panels.append(
            Panel(
                "achievements_frames",
                "Achievements an episode",
                lambda axes: _draw_over_frames(axes, groups, "achievements_per_episode"),
            )
        )
    sections = [Section("achievements", "Achievements", "", panels)]
    logged = [name for name in names if any(_rate_tags(run, name) for group in groups for run in group.runs)]
    if logged:
        sections.append(
            Section(
                "rates",
                f"{len(logged)} success rates over frames",
                "Percent of the episodes. Lines: collected episodes, means over neighbouring epochs. Circles: tests.",
                [_rate_panel(groups, name) for name in logged],
                closed=True,
            )
        )
    return sections


def _of_group(group: Group) -> Rates | None:
    """The rates of a group's only run, or the means over its runs; only of those with episodes of the first's kind."""
    found = [rates for run in group.runs if (rates := achievement_rates(run)) is not None]
    found = [rates for rates in found if rates.kind == found[0].kind]
    if len(found) < 2:
        return found[0] if found else None
    names = sorted({name for rates in found for name in rates.percent})
    return MeanRates(
        {name: float(np.mean([rates.percent.get(name, 0.0) for rates in found])) for name in names},
        sum(rates.episodes for rates in found),
        float(np.mean([rates.score for rates in found])),
        float(np.mean([rates.per_episode for rates in found])),
        found[0].kind,
        tuple(found),
    )


def _draw_bars(
    axes: Axes, groups: Sequence[Group], known: dict[int, Rates], names: list[str], horizontal: bool
) -> None:
    shown = [group for group in groups if group.index in known]
    width = 0.78 / len(shown)
    centers = np.arange(len(names), dtype=float)
    for place, group in enumerate(shown):
        rates = known[group.index]
        percent = np.array([rates.percent.get(name, 0.0) for name in names])
        where = centers + width * (place + 0.5 - len(shown) / 2)
        bar, gid = np.maximum(percent, LOWEST) - LOWEST, f"group-{group.index}"
        color = series_color(group.index)
        bars = (axes.barh if horizontal else axes.bar)(where, bar, width * 0.9, color=color)
        for patch in bars.patches:
            patch.set_gid(gid)
            (patch.set_x if horizontal else patch.set_y)(LOWEST)
        ends = np.array([rates.interval(name) for name in names])
        some = (percent > 0) & np.isfinite(ends).all(1)
        lines = axes.hlines if horizontal else axes.vlines
        lines(where[some], np.maximum(ends[some, 0], LOWEST), ends[some, 1], color=INK, linewidth=1.1, gid=gid)
    labels = [name.replace("_", " ") for name in names]
    ticks = [0.01, 0.1, 1.0, 10.0, 100.0]
    formatter = FuncFormatter(lambda value, _: f"{value:g}")
    if horizontal:
        axes.set_xscale("log")
        axes.set_xlim(LOWEST, 100)
        axes.set_xticks(ticks)
        axes.xaxis.set_major_formatter(formatter)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_yticks(centers, labels)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlabel("success rate (%)")
        axes.grid(visible=False, axis="y")
    else:
        axes.set_yscale("log")
        axes.set_ylim(LOWEST, 100)
        axes.set_yticks(ticks)
        axes.yaxis.set_major_formatter(formatter)
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xticks(centers, labels, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.set_ylabel("success rate (%)")
        axes.grid(visible=False, axis="x")


def _draw_scores(axes: Axes, groups: Sequence[Group], known: dict[int, Rates], crafter: bool) -> None:
    rows = [
        (group.name, known[group.index].score, series_color(group.index), f"group-{group.index}")
        for group in groups
        if group.index in known
    ]
    if crafter:
        rows += [
            (each.label + (f", {each.frames / 1e6:g}M" if each.frames else ""), each.score, FAINT, "")
            for each in published()[2]
        ]
    for place, (_, score, color, gid) in enumerate(rows):
        bar = axes.barh([place], [score], 0.66, color=color, alpha=0.55 if color == FAINT else 1)
        bar.patches[0].set_gid(gid or None)
        label_bar(axes, score, place, f"{score:.1f}")
    axes.set_yticks(range(len(rows)), [name[:30] for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    clean_axes(axes, "score (%)")
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set_yticks(range(len(rows)), [name[:30] for name, *_ in rows])
    axes.grid(visible=False, axis="y")


def _logged(run: Run, name: str) -> bool:
    return f"train/{name}" in run.series or f"test/{name}" in run.series


def _rate_tags(run: Run, name: str) -> list[str]:
    return [tag for tag in (f"train_achievements/{name}", f"test_achievements/{name}") if tag in run.series]


def _rate_panel(groups: Sequence[Group], name: str) -> Panel:
    def draw(axes: Axes) -> None:
        _draw_tags(axes, groups, f"train_achievements/{name}", f"test_achievements/{name}")
        axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
        clean_axes(axes)

    return Panel(f"rate_{name}", name.replace("_", " "), draw, size=(3.0, 1.7), narrow_size=(3.0, 1.7))


def _draw_over_frames(axes: Axes, groups: Sequence[Group], name: str) -> None:
    _draw_tags(axes, groups, f"train/{name}", f"test/{name}")
    axes.set_ylim(bottom=0)
    clean_axes(axes, "frames collected", "score (%)" if name == "crafter_score" else "achievements")


def _draw_tags(axes: Axes, groups: Sequence[Group], train: str, test: str) -> None:
    for group in groups:
        color, gid = series_color(group.index), f"group-{group.index}"
        for run in group.runs:
            if train in run.series:
                band = training_band(run, "frames", train)
                assert band is not None
                axes.plot(band.x, band.mean, color=color, gid=gid)
            if test in run.series:
                raw = positions(run.series[test], "frames")
                axes.plot(raw.x, raw.mean, color=color, linewidth=0, marker="o", markersize=3.5, gid=gid)
