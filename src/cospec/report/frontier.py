"""Quality against speed, the picture that tells who dominates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from cospec.report.figures import BLUE, GREEN, INK, MUTED, NARROW, ORANGE, PURPLE, RED, draw
from cospec.report.labels import place_labels
from cospec.report.tables import frontier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cospec.report.read import Cell
    from cospec.results import Json

KINDS = {
    "exact": (INK, "o"),
    "rule": (BLUE, "s"),
    "learned": (RED, "D"),
    "random": (PURPLE, "X"),
    "ceiling": (GREEN, "^"),
    "reference": (ORANGE, "v"),
}
"""Colour and marker of each kind of arm."""
_MAX_NAMED = 9
"""Arms that are named beside their points; more are numbered, with the names below."""


def draw_frontier(cell: Cell, width: float) -> Figure:
    """Accuracy against speed-up over the target alone, with 95 % intervals both ways."""
    is_numbered = len(cell.arms) > _MAX_NAMED or width <= NARROW
    num_lines = math.ceil(len(cell.arms) / (1 if width <= NARROW else 3)) if is_numbered else 1
    height = (4.1 if width > NARROW else 3.4) + 0.19 * num_lines

    def plot(figure: Figure, _: float) -> None:
        axes = figure.subplots()
        front = frontier(cell.arms)
        _limits(axes, cell.arms)
        _regions(axes, cell.arms)
        _points(axes, cell.arms)
        _stairs(axes, [cell.arms[i] for i in front])
        figure.legend(
            handles=_handles(cell.arms, front, is_numbered),
            loc="outside lower left",
            ncols=(1 if width <= NARROW else 3) if is_numbered else 6,
            handletextpad=0.3,
            columnspacing=1.2,
        )
        names = [str(i + 1) if is_numbered else arm["name"] for i, arm in enumerate(cell.arms)]
        places = [(arm["speedup_vs_target"], 100 * arm["accuracy"]) for arm in cell.arms]
        place_labels(axes, places, names, [i in front for i in range(len(names))])

    return draw(plot, width, height)


def _ends(arm: Json, name: str, scale: float = 1.0) -> tuple[float, float]:
    """The interval of a number, or the number twice."""
    low, high = arm.get(f"{name}_ci95") or (arm[name], arm[name])
    return scale * low, scale * high


def _limits(axes: Axes, arms: Sequence[Json]) -> None:
    """Room around all intervals, on a logarithmic axis of speed."""
    across = [end for arm in arms for end in _ends(arm, "speedup_vs_target")]
    up = [end for arm in arms for end in _ends(arm, "accuracy", 100)]
    low, high = min(across), max(across)
    margin = max((high / low) ** 0.08, 1.04)
    axes.set_xscale("log")
    axes.set_xlim(low / margin, high * margin)
    pad = max(0.08 * (max(up) - min(up)), 0.5)
    axes.set_ylim(max(min(up) - pad, -2), min(max(up) + pad, 102))
    subs = (1, 1.5, 2, 3, 4, 5, 7) if high / low > 1.6 else tuple(1 + i / 10 for i in range(90))
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.tick_params(axis="x", which="minor", length=0)
    axes.set_xlabel("speed-up over the target alone")
    axes.set_ylabel("right answers, %")


def _regions(axes: Axes, arms: Sequence[Json]) -> None:
    """Where an arm beats the target in accuracy and lossless speculation in speed."""
    by_name = {arm["name"]: arm for arm in arms}
    if "target" not in by_name or "lossless" not in by_name:
        return
    level = 100 * by_name["target"]["accuracy"]
    speed = by_name["lossless"]["speedup_vs_target"]
    right, top = axes.get_xlim()[1], axes.get_ylim()[1]
    axes.fill_between([speed, right], level, top, color=GREEN, alpha=0.12, lw=0, zorder=0)
    axes.axhline(level, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
    axes.axvline(speed, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
    axes.annotate(
        "more right than target,\nfaster than lossless",
        (right, top),
        xytext=(-4, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8,
        color=MUTED,
    )


def _points(axes: Axes, arms: Sequence[Json]) -> None:
    for arm in arms:
        colour, marker = KINDS[arm["kind"]]
        x, y = arm["speedup_vs_target"], 100 * arm["accuracy"]
        across, up = _ends(arm, "speedup_vs_target"), _ends(arm, "accuracy", 100)
        axes.plot(across, [y, y], color=colour, lw=1.2, alpha=0.55)
        axes.plot([x, x], up, color=colour, lw=1.2, alpha=0.55)
        axes.plot([x], [y], marker, color=colour, ms=7, mec="none", zorder=4)


def _stairs(axes: Axes, front: Sequence[Json]) -> None:
    """The frontier: no arm lies above and to the right of it."""
    xs = [arm["speedup_vs_target"] for arm in front]
    ys = [100 * arm["accuracy"] for arm in front]
    bottom = axes.get_ylim()[0]
    axes.step(
        [axes.get_xlim()[0], *xs, xs[-1]], [ys[0], *ys, bottom], where="pre",
        color=MUTED, lw=1.6, alpha=0.8, zorder=2,
    )  # fmt: skip


def _handles(arms: Sequence[Json], front: Sequence[int], is_numbered: bool) -> list[Line2D]:
    """Entries of the legend: the arms by number, or the kinds that occur."""

    def handle(kind: str, text: str) -> Line2D:
        colour, marker = KINDS[kind]
        return Line2D([], [], color=colour, marker=marker, ls="none", ms=6, mec="none", label=text)

    line = Line2D([], [], color=MUTED, lw=1.6, label="frontier")
    if is_numbered:
        return [
            *(handle(arm["kind"], f"{i + 1}  {arm['name']}") for i, arm in enumerate(arms)),
            line,
        ]
    found = dict.fromkeys(arm["kind"] for arm in arms)
    return [*(handle(kind, kind) for kind in KINDS if kind in found), line]
