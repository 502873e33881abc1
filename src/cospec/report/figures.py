"""Figures without a global state: one style, SVG for the page, SVG and PNG files.

The one file that knows how matplotlib writes. Colours are Okabe and Ito's, which the colour-blind
can tell apart; in the page each becomes a CSS variable, so that dark and light have their own.
"""

from __future__ import annotations

import html
import io
import re
from typing import TYPE_CHECKING, Any

from cospec.errors import MissingExtraError

try:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ModuleNotFoundError:
    raise MissingExtraError("matplotlib", "report") from None

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes

BLUE, RED, GREEN, PURPLE, ORANGE = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"
INK, MUTED, GRID, PAPER = "#1b1d21", "#5d646e", "#d4d8de", "#ffffff"
SERIES = (BLUE, RED, GREEN, PURPLE, ORANGE, MUTED)
MARKERS = "osD^vXP*"

WIDE, NARROW = 7.2, 3.6
"""Widths in inches; the page shows the second where the first would be too small to read."""

_VARIABLES = {
    BLUE: "--blue",
    RED: "--red",
    GREEN: "--green",
    PURPLE: "--purple",
    ORANGE: "--orange",
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    PAPER: "--paper",
}
_STYLE: dict[Any, Any] = {  # Any: matplotlib's own type of a style
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
}


def draw(plot: Callable[[Figure, float], None], width: float, height: float) -> Figure:
    """A figure in the report's style.

    Args:
        plot: Draws into a figure of the given width.
        width: Width in inches.
        height: Height in inches.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        plot(figure, width)
        figure.draw_without_rendering()
    return figure


def grid_of_axes(figure: Figure, width: float, num_axes: int) -> list[Axes]:
    """Axes side by side on a wide figure and one below the other on a narrow one."""
    num_columns = 2 if width > NARROW and num_axes > 1 else 1
    num_rows = -(-num_axes // num_columns)
    grid = figure.subplots(num_rows, num_columns, squeeze=False).flatten().tolist()
    for spare in grid[num_axes:]:
        spare.remove()
    axes: list[Axes] = grid[:num_axes]
    return axes


def save(figure: Figure, path: Path) -> None:
    """Write a figure; the suffix names the format."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": path.stem}):
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=200, metadata=metadata)


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """A figure as an SVG element of a page.

    Args:
        figure: Figure from `draw`.
        name: Name that is unique in the page; the ids in the SVG begin with it.
        label: Description of the figure, for those who cannot see it.
    """
    buffer = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]+", "font-family: system-ui, sans-serif", svg)
    svg = re.sub(r"(font: [^;\"]*?[\d.]+px )[^;\"]+", r"\1system-ui, sans-serif", svg)
    for colour, variable in _VARIABLES.items():
        svg = re.sub(rf"(: ?){colour}\b", rf"\1var({variable})", svg)
    body = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', body)
    assert box is not None, "matplotlib writes a viewBox"
    width = figure.get_figwidth() * 96
    head = f'<svg {box.group()} style="max-width: {width:.0f}px" role="img"'
    head += f' aria-label="{html.escape(label)}">'
    return head + body[body.index(">") + 1 :]
