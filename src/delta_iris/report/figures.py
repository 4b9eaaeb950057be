"""Drawing with matplotlib: one style, as SVG whose colours the page sets, and as PNG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

__all__ = [
    "DARK",
    "LIGHT",
    "SERIES",
    "Panel",
    "Section",
    "clean_axes",
    "draw_png",
    "draw_svg",
    "label_bar",
    "legend_above",
    "log_axis",
    "number",
    "series_color",
]

INK, FAINT, GRID = "#1f2329", "#6a737e", "#e3e7ec"
SERIES = ("#1f6fec", "#d1560b", "#1a7f38", "#8251df", "#bf3a89", "#0e7391", "#9a6701", "#cf222f")

LIGHT = {"ink": INK, "faint": FAINT, "grid": GRID, "paper": "#ffffff", "page": "#f6f8fa"} | {
    f"c{index}": color for index, color in enumerate(SERIES)
}
"""Colours by name, for light pages and PNGs. No two are equal, because an SVG's colours are replaced by name."""

DARK = {"ink": "#e6eaef", "faint": "#929ba6", "grid": "#2b313a", "paper": "#161b22", "page": "#0d1117"} | {
    f"c{index}": color
    for index, color in enumerate(
        ("#5aa5ff", "#ff9c5b", "#45bf58", "#bd8dff", "#ff81c8", "#3ac6d0", "#e4b442", "#ff7c75")
    )
}
"""Colours by name, for dark pages."""

STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.labelcolor": INK,
    "text.color": INK,
    # Names come from files: none of them is a formula.
    "text.parse_math": False,
    "svg.fonttype": "none",
    "path.simplify": True,
    "path.simplify_threshold": 0.5,
}

ID = re.compile(r'\sid="([^"]*)"')
GROUP = re.compile(r"group-\d+")
GEOMETRY = re.compile(r'\s(?:d|x|y|width|height|transform)="[^"]*"')
DECIMALS = re.compile(r"(\.\d\d)\d+")


@dataclass(frozen=True)
class Panel:
    """One plot.

    Args:
        name: in file names and anchors; unique in a report.
        title: above the plot.
        draw: draws it.
        caption: below it.
        size: width and height in inches.
        narrow: draws it for a phone; like `draw` where None.
        narrow_size: width and height of that.
    """

    name: str
    title: str
    draw: Callable[[Axes], None]
    caption: str = ""
    size: tuple[float, float] = (4.0, 2.5)
    narrow: Callable[[Axes], None] | None = None
    narrow_size: tuple[float, float] = (4.0, 3.4)

    @property
    def wide(self) -> bool:
        """Whether it takes a whole row."""
        return self.size[0] > 6


@dataclass(frozen=True)
class Section:
    """Plots on one subject.

    Args:
        name: in file names and anchors; unique in a report.
        title: its heading.
        text: below the heading.
        panels: the plots.
        closed: whether it is folded at first; it then has no PNG.
    """

    name: str
    title: str
    text: str
    panels: list[Panel]
    closed: bool = False


def series_color(index: int) -> str:
    """The colour of a group of runs. They repeat."""
    return SERIES[index % len(SERIES)]


def draw_svg(panel: Panel, narrow: bool = False) -> str:
    """Draw a panel as SVG to stand in HTML: without a size, and with the page's colours and fonts.

    Args:
        panel: to draw.
        narrow: whether to draw it for a phone.
    """
    draw, size = (panel.narrow or panel.draw, panel.narrow_size) if narrow else (panel.draw, panel.size)
    with rc_context({**STYLE, "svg.hashsalt": f"{panel.name}{narrow}"}):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _for_page(file.getvalue(), panel.title)


def draw_png(section: Section, names: Sequence[str], dots_per_inch: int = 130) -> bytes:
    """Draw all panels of a section as one PNG on white.

    Args:
        section: to draw.
        names: of the groups of runs, for the legend.
        dots_per_inch: resolution.
    """
    wide = [panel for panel in section.panels if panel.wide]
    small = [panel for panel in section.panels if not panel.wide]
    columns = max(1, min(2 if wide else 3, len(small)))
    rows = math.ceil(len(small) / columns)
    width = max([4.4 * columns if small else 0, *(panel.size[0] for panel in wide)])
    heights = [panel.size[1] + 0.3 for panel in wide] + [2.9] * rows
    with rc_context(STYLE):
        figure = Figure(figsize=(width, sum(heights) + 0.35), layout="constrained")
        grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
        places = [grid[row, :] for row in range(len(wide))]
        places += [grid[len(wide) + index // columns, index % columns] for index in range(len(small))]
        for panel, place in zip([*wide, *small], places, strict=True):
            axes = figure.add_subplot(place)
            panel.draw(axes)
            legend = axes.get_legend()
            rows_above = 2 if legend is not None and not panel.wide else 0
            axes.set_title(panel.title, pad=6 + 13 * rows_above)
        handles = [
            Line2D([], [], color=series_color(index), linewidth=3, label=name) for index, name in enumerate(names)
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=max(1, int(width // 2.2)))
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=dots_per_inch, facecolor="white")
    return file.getvalue()


def clean_axes(axes: Axes, x_label: str = "", y_label: str = "") -> None:
    """Label axes, and write large and small numbers as people do."""
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.margins(x=0.02)


def legend_above(axes: Axes, handles: list[Line2D]) -> None:
    """Explain line styles above the plot, where they hide nothing."""
    letters = sum(len(str(handle.get_label())) for handle in handles)
    columns = 3 if len(handles) == 3 and letters < 30 else 2
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        handlelength=2.2,
        columnspacing=1.2,
        borderaxespad=0.2,
        borderpad=0,
    )


def label_bar(axes: Axes, end: float, y: float, text: str) -> None:
    """Write a number beside the end of a horizontal bar."""
    axes.annotate(text, (end, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)


def log_axis(axes: Axes) -> None:
    """Make the vertical axis logarithmic, with plain numbers. What is not above 0 is not shown."""
    axes.set_yscale("log", nonpositive="mask")
    bottom, top = axes.get_ylim()
    # Within two decades the powers of ten are too few.
    shown = (1.0,) if top / bottom > 100 else (1.0, 2.0, 5.0)

    def label(value: float, _: int | None) -> str:
        mantissa = value / 10 ** math.floor(math.log10(value) + 1e-9) if value > 0 else 0.0
        return number(value) if any(abs(mantissa - each) < 1e-6 for each in shown) else ""

    axes.yaxis.set_major_formatter(FuncFormatter(label))
    axes.yaxis.set_minor_formatter(FuncFormatter(label) if len(shown) > 1 else NullFormatter())


def number(value: float) -> str:
    """A number for an axis or a table: 1.5M, 250k, 12.3, 0.0004."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= 0.99995 * size:  # what would be written as 1000k is 1M
            divisor = 1e3 if suffix == "k" else size
            return f"{value / divisor:.4g}{suffix}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _for_page(svg: str, title: str) -> str:
    """Leave out what HTML does not need, and name colours, so that the page can change them."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    svg = re.sub(r"<svg[^>]*>", lambda _: f'<svg {box[0]} role="img" aria-label="{label}">', svg, count=1)
    used = set(re.findall(r"#([\w-]+)", svg))

    def keep(match: re.Match[str]) -> str:
        if GROUP.fullmatch(match[1]):
            return f' class="{match[1]}"'
        return match[0] if match[1] in used else ""

    svg = ID.sub(keep, svg).replace("xlink:href", "href").replace("'DejaVu Sans'", "system-ui, sans-serif")
    # A hundredth of a point is far below a pixel, and a third of the file.
    svg = GEOMETRY.sub(lambda match: DECIMALS.sub(r"\1", match[0]), svg)
    for name, color in LIGHT.items():
        svg = svg.replace(f": {color}", f": var(--{name})")
    return re.sub(r"\n\s*", "\n", svg).replace("<defs>\n</defs>\n", "").strip()
