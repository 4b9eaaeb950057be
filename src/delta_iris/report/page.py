"""The report: one HTML page that needs nothing else, and a PNG for each section."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from delta_iris.report.achievements import achievement_rates, achievement_sections
from delta_iris.report.configuration import differences
from delta_iris.report.figures import DARK, LIGHT, SERIES, Section, draw_png, draw_svg, number
from delta_iris.report.groups import Group, group_runs
from delta_iris.report.lines import line_sections
from delta_iris.report.published import published
from delta_iris.report.returns import final_return, return_section
from delta_iris.report.run import Run
from delta_iris.report.speed import speed_section

__all__ = ["Report", "make_report"]

IMAGE_WIDTHS = (900, 640, 450, 320)
"""Widths of an embedded image in pixels, of which the largest is taken that leaves room for the other images."""

IMAGE_BYTES = 400_000
MAX_PIXELS = 20_000_000
"""Most bytes of all images together."""


@dataclass(frozen=True)
class Report:
    """A report, not written yet.

    Attributes:
        html: the page.
        pictures: PNGs by the name of their section.
    """

    html: str
    pictures: dict[str, bytes]


@contextmanager
def _without_warnings() -> Iterator[None]:
    """What is NaN, infinite, or not positive on a logarithmic axis is left out of a plot, without a word."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@_without_warnings()
def make_report(runs: Sequence[Run]) -> Report:
    """Draw everything that is known of runs.

    Args:
        runs: at least one.
    """
    groups = group_runs(list(runs))
    found = [return_section(groups), *achievement_sections(groups), *line_sections(groups), speed_section(groups)]
    # What was folded comes last.
    sections = sorted((section for section in found if section is not None), key=lambda section: section.closed)
    tags = [(run, tag) for run in runs for tag in sorted(run.images)]
    images = [(run, tag.partition("/")[2] or tag, _embed(run, tag, IMAGE_BYTES // len(tags))) for run, tag in tags]
    configured = [run for run in runs if run.config]
    everywhere, somewhere = differences(configured)
    template = _environment().from_string(_resource("page.html"))
    html = template.render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        style=Markup(_style(len(groups))),  # ours
        rows=[_row(group, run) for group in groups for run in group.runs],
        groups=groups,
        sections=[
            (section, [_drawings(section, index) for index in range(len(section.panels))]) for section in sections
        ],
        published=published() if any(run.is_crafter for run in runs) else None,
        images=[image for image in images if image[2]],
        configured=configured,
        everywhere=everywhere,
        somewhere=somewhere,
        notes=[(run.name, note) for run in runs for note in run.notes],
    )
    names = [group.name for group in groups]
    return Report(html, {section.name: draw_png(section, names) for section in sections if not section.closed})


def _drawings(section: Section, index: int) -> tuple[Any, Markup, Markup | None]:
    panel = section.panels[index]
    # Drawn by us: names within are escaped by matplotlib.
    return panel, Markup(draw_svg(panel)), Markup(draw_svg(panel, narrow=True)) if panel.narrow else None


def _row(group: Group, run: Run) -> dict[str, Any]:
    """What the table of runs says of a run."""
    row: dict[str, Any] = {"group": group, "run": run, "frames": number(run.frames) if run.frames else "–"}
    row["time"] = "–" if run.hours is None else f"{60 * run.hours:.0f} min" if run.hours < 2 else f"{run.hours:.1f} h"
    measured = final_return(run)
    if measured is None:
        row["return"], row["measured"] = "–", ""
    else:
        mean, half, row["measured"] = measured
        row["return"] = f"{mean:.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}")
    rates = achievement_rates(run)
    row["score"] = "–" if rates is None or math.isnan(rates.score) else f"{rates.score:.1f} %"
    row["achievements"] = "–" if rates is None or math.isnan(rates.per_episode) else f"{rates.per_episode:.2f}"
    speed = run.series.get("throughput/frames_per_second")
    row["speed"] = "–" if speed is None else f"{float(sorted(speed.values)[len(speed.values) // 2]):,.0f}"
    return row


def _embed(run: Run, tag: str, most_bytes: int) -> str | None:
    """An image as a data URL, made smaller; None, with a note, where it cannot be read."""
    try:
        with Image.open(io.BytesIO(run.images[tag]), formats=["PNG", "JPEG"]) as opened:
            if opened.width * opened.height > MAX_PIXELS:  # known before it is decoded
                raise ValueError("too large")
            image = opened.convert("RGB")
        for width in IMAGE_WIDTHS:
            image.thumbnail((width, 4 * width))
            file = io.BytesIO()
            image.save(file, "WEBP", quality=60, method=4)
            if file.tell() <= most_bytes:
                break
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        run.notes.append(f"the image {tag} cannot be read")
        return None
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _style(groups: int) -> str:
    """The style sheet, with both sets of colours and a switch for each group of runs."""
    light, dark = ("".join(f"--{name}:{value};" for name, value in colors.items()) for colors in (LIGHT, DARK))
    switches = "".join(
        f"body:has(#show-{index}:not(:checked)) .group-{index}{{display:none}}" for index in range(groups)
    )
    return (
        f":root{{color-scheme:light dark;{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
        f"{_resource('style.css')}\n{switches}"
    )


def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    environment.filters["color"] = lambda index: f"var(--c{index % len(SERIES)})"
    return environment


def _resource(name: str) -> str:
    return files("delta_iris.report").joinpath(name).read_text(encoding="utf-8")
