"""Sections of plain curves: world model, codebook, losses, actor-critic, and whatever else was logged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from delta_iris.report.figures import FAINT, Panel, Section, clean_axes, legend_above, log_axis, series_color
from delta_iris.report.groups import Group
from delta_iris.report.returns import positions
from delta_iris.report.run import Run, Series

__all__ = ["line_sections", "thin"]

POINTS = 140
"""Most points of a curve: values are averaged in as many parts, which is one every few pixels."""

STYLES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))

PHASE = r"^(?!held_out/|open_loop_l2/|copy_l2/|throughput/|train/|test/)[^/]+/"
"""The beginning of a training phase's tags. Systems name their phases."""


@dataclass(frozen=True)
class LinePanel:
    """What a plot of curves shows.

    Attributes:
        name: of the panel.
        title: of the panel.
        lines: patterns of tags, and what each line is called; "{}" stands for the part of the tag before the slash.
        unit: of the values.
        log: whether the axis is logarithmic.
        caption: below the plot.
    """

    name: str
    title: str
    lines: tuple[tuple[str, str], ...]
    unit: str = ""
    log: bool = False
    caption: str = ""


WORLD_MODEL = (
    LinePanel(
        "reconstruction",
        "Reconstruction error",
        (
            (r"^held_out/reconstruction_l2$", "held out"),
            (PHASE + "l2$", "training"),
            (r"^held_out/copy_l2$", "copying the last frame"),
        ),
        "squared error of a pixel",
        log=True,
        caption="Below the copy: the tokens carry what changed.",
    ),
    LinePanel(
        "psnr",
        "Reconstruction PSNR",
        ((r"^held_out/reconstruction_psnr$", "held out"), (r"^held_out/copy_psnr$", "copying the last frame")),
        "decibels",
    ),
    LinePanel(
        "open_loop",
        "Open-loop error over frames",
        (
            (r"^open_loop_l2/01$", "1 step"),
            (r"^open_loop_l2/05$", "5 steps"),
            (r"^open_loop_l2/15$", "15 steps"),
        ),
        "squared error of a pixel",
        log=True,
        caption="Frames imagined under the recorded actions, against the real ones.",
    ),
    LinePanel(
        "token_loss",
        "Token loss",
        ((r"^held_out/\w*token_loss$", "held out"), (PHASE + "token_loss$", "training")),
        "nats a token",
        caption="Held-out loss that rises while the training loss falls: the dynamics overfit.",
    ),
    LinePanel(
        "token_accuracy",
        "Token accuracy",
        ((r"^held_out/\w*token_accuracy$", "held out"), (PHASE + "token_accuracy$", "training")),
        "share",
    ),
    LinePanel(
        "reward_error",
        "Held-out reward error",
        (
            (r"^held_out/\w*reward_error_nonzero$", "steps with a reward"),
            (r"^held_out/\w*reward_error_zero$", "steps without"),
        ),
        "absolute error",
        log=True,
    ),
    LinePanel(
        "end_recall",
        "Held-out end recall",
        ((r"^held_out/\w*end_recall$", ""),),
        "share of ends that are predicted",
    ),
    LinePanel(
        "reward_end_loss",
        "Reward and end loss",
        (
            (r"^held_out/\w*reward_loss$", "reward, held out"),
            (PHASE + "reward_loss$", "reward, training"),
            (r"^held_out/\w*end_loss$", "end, held out"),
            (PHASE + "end_loss$", "end, training"),
        ),
        "nats",
        log=True,
    ),
)
CODEBOOK = (
    LinePanel(
        "codebook_entropy",
        "Codebook entropy",
        ((r"^held_out/codebook_entropy$", "held out"), (PHASE + "codebook_entropy$", "training")),
        "bits",
        caption="2 to this power is the number of codes in even use.",
    ),
    LinePanel("codes_used", "Codes in use", ((PHASE + "codes_used$", ""),), "codes"),
    LinePanel(
        "codes_reset",
        "Codes reset in a step",
        ((PHASE + "codes_reset$", ""),),
        "codes",
        caption="Dead codes are reset.",
    ),
)
LEARNING = (
    LinePanel("imagined_return", "Imagined return", ((PHASE + "imagined_return$", ""),), "λ-return"),
    LinePanel("policy_entropy", "Policy entropy", ((PHASE + "policy_entropy$", ""),), "nats"),
    LinePanel("critic_loss", "Critic loss", ((PHASE + "critic_loss$", ""),), "nats"),
    LinePanel("actor_loss", "Actor loss", ((PHASE + "actor_loss$", ""),)),
    LinePanel("approx_kl", "KL divergence of the update", ((PHASE + "approx_kl$", ""),), "nats"),
    LinePanel("clip_fraction", "Clipped share", ((PHASE + "clip_fraction$", ""),), "share of samples"),
)
LOSSES = (
    LinePanel("losses", "Loss of each phase", ((PHASE + "loss$", "{}"),), log=True),
    LinePanel("gradient_norms", "Gradient norm of each phase", ((PHASE + "gradient_norm$", "{}"),), log=True),
    LinePanel("skipped", "Skipped steps", ((PHASE + "skipped_steps$", "{}"),), "steps, in all"),
)
SHOWN_ELSEWHERE = re.compile(
    r"^(train|test|throughput|train_achievements|test_achievements|open_loop_l2|copy_l2)/|^epoch$"
)


def line_sections(groups: Sequence[Group]) -> list[Section]:
    """All sections of curves for which something was logged."""
    runs = [run for group in groups for run in group.runs]
    shown: set[str] = set()
    sections = []
    for name, title, specs in (
        ("world_model", "World-model health", WORLD_MODEL),
        ("codebook", "Codebook", CODEBOOK),
        ("learning", "Actor-critic", LEARNING),
        ("losses", "Losses", LOSSES),
    ):
        panels = []
        for spec in specs:
            tags = {tag for run in runs for pattern, _ in spec.lines for tag in run.series if re.search(pattern, tag)}
            if tags:
                panels.append(_panel(groups, spec))
                shown |= tags
        if name == "world_model" and any("open_loop_l2/01" in run.series for run in runs):
            panels.insert(2, _horizon_panel(groups))
        if panels:
            sections.append(Section(name, title, "", panels))
    rest = sorted({tag for run in runs for tag in run.series if tag not in shown and not SHOWN_ELSEWHERE.search(tag)})
    if rest:
        others = [LinePanel(re.sub(r"\W", "_", f"tag_{tag}"), tag, ((f"^{re.escape(tag)}$", ""),)) for tag in rest[:60]]
        text = "" if len(rest) == len(others) else f"The first {len(others)} of {len(rest)}; TensorBoard shows all."
        panels = [_panel(groups, spec) for spec in others]
        sections.append(Section("others", f"{len(rest)} other logged values", text, panels, closed=True))
    return sections


def thin(series: Series, points: int = POINTS) -> Series:
    """Average neighbouring values, so that at most `points` remain."""
    n = len(series.values)
    if n <= points:
        return series
    starts = np.unique(np.linspace(0, n, points, endpoint=False).astype(int))
    counts = np.diff([*starts, n])
    return Series(*(np.add.reduceat(each, starts) / counts for each in (series.frames, series.hours, series.values)))


def _panel(groups: Sequence[Group], spec: LinePanel) -> Panel:
    return Panel(spec.name, spec.title, lambda axes: _draw(axes, groups, spec), spec.caption)


def _matches(run: Run, spec: LinePanel) -> list[tuple[str, str]]:
    """Tags of a run that a panel shows, and what their lines are called."""
    return [
        (tag, label.format(tag.partition("/")[0].replace("_", " ")))
        for pattern, label in spec.lines
        for tag in run.series
        if re.search(pattern, tag)
    ]


def _draw(axes: Axes, groups: Sequence[Group], spec: LinePanel) -> None:
    labels = list(dict.fromkeys(label for group in groups for run in group.runs for _, label in _matches(run, spec)))
    styles = {label: STYLES[index % len(STYLES)] for index, label in enumerate(labels)}
    for group in groups:
        for run in group.runs:
            for tag, label in _matches(run, spec):
                band = positions(thin(run.series[tag]), "frames")
                axes.plot(
                    band.x,
                    band.mean,
                    color=series_color(group.index),
                    linestyle=styles[label],
                    linewidth=1.4,
                    marker="o" if len(band.x) < 12 else None,
                    markersize=3,
                    gid=f"group-{group.index}",
                )
    if spec.log:
        log_axis(axes)
    _legend(axes, labels, [styles[label] for label in labels])
    clean_axes(axes, "frames collected", spec.unit)


def _horizon_panel(groups: Sequence[Group]) -> Panel:
    return Panel(
        "open_loop_horizon",
        "Open-loop error over imagined steps",
        lambda axes: _draw_horizon(axes, groups),
        "At the last validation.",
    )


def _draw_horizon(axes: Axes, groups: Sequence[Group]) -> None:
    for group in groups:
        for run in group.runs:
            for prefix, style in (("open_loop_l2/", STYLES[0]), ("copy_l2/", STYLES[2])):
                last = {
                    int(tag.removeprefix(prefix)): float(series.values[-1])
                    for tag, series in run.series.items()
                    if tag.startswith(prefix) and tag.removeprefix(prefix).isdecimal()
                }
                axes.plot(
                    sorted(last),
                    [last[step] for step in sorted(last)],
                    color=series_color(group.index),
                    linestyle=style,
                    linewidth=1.4,
                    gid=f"group-{group.index}",
                )
    log_axis(axes)
    _legend(axes, ["imagined", "repeating the last frame"], [STYLES[0], STYLES[2]])
    clean_axes(axes, "imagined steps", "squared error of a pixel")


def _legend(axes: Axes, labels: list[str], styles: Sequence[Any]) -> None:
    if len(labels) > 1:
        handles = [
            Line2D([], [], color=FAINT, linewidth=1.4, linestyle=style, label=label)
            for label, style in zip(labels, styles, strict=True)
        ]
        legend_above(axes, handles)
