"""Quality against speed: the picture that shows which arms dominate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from cospec.report.figures import BLUE, GREEN, INK, MUTED, NARROW, ORANGE, PURPLE, RED, draw
from cospec.report.inputs import KINDS
from cospec.report.labels import place_labels
from cospec.report.tables import frontier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cospec.report.inputs import Cell
    from cospec.report.labels import Segment
    from cospec.results import Json

_COLOURS = (INK, BLUE, RED, PURPLE, GREEN, ORANGE)
MARKS = dict(zip(KINDS, zip(_COLOURS, "osDX^v", strict=True), strict=True))
"""Colour and marker of each kind of arm."""
_MAX_NAMED = 9
"""Arms that are named beside their points; more are numbered, with the names below."""


def has_close_up(cell: Cell) -> bool:
    """Return true if enough arms besides the two models alone exist for a picture of their own."""
    return len(_close(cell.arms)) > 2


def _close(arms: Sequence[Json]) -> list[Json]:
    """The arms that use both models; a picture with the models alone crowds them in a corner."""
    return [arm for arm in arms if arm["name"] not in ("target", "draft")]


def _told(cell: Cell, *, is_close_up: bool) -> list[Json]:
    """The arms to name; only those that matter most if a close-up names the others."""
    if is_close_up:
        return _close(cell.arms)
    if len(cell.arms) <= _MAX_NAMED or not has_close_up(cell):
        return cell.arms
    front = frontier(cell.arms)
    return [
        arm
        for i, arm in enumerate(cell.arms)
        if i in front or arm["name"] in ("target", "draft", "lossless") or arm["kind"] == "ceiling"
    ]


def draw_frontier(cell: Cell, width: float, *, is_close_up: bool = False) -> Figure:
    """Accuracy against speed-up over the target alone, with 95 % intervals both ways.

    Args:
        cell: Cell with the arms.
        width: Width in inches.
        is_close_up: Whether to leave out the target and the draft alone.
    """
    shown = _close(cell.arms) if is_close_up else cell.arms
    told = _told(cell, is_close_up=is_close_up)
    is_numbered = len(told) > _MAX_NAMED or width <= NARROW
    num_columns = 1 if width <= NARROW else 3
    num_lines = math.ceil((len(told) + 1) / num_columns) if is_numbered else 1
    height = (4.1 if width > NARROW else 3.4) + 0.19 * num_lines

    def plot(figure: Figure, _: float) -> None:
        axes = figure.subplots()
        front = [cell.arms[i] for i in frontier(cell.arms)]
        _limits(axes, shown)
        _regions(axes, cell.arms)
        _points(axes, shown)
        _stairs(axes, front)
        numbers = [i + 1 for i, arm in enumerate(cell.arms) if arm in told]
        figure.legend(
            handles=_handles(told, numbers) if is_numbered else _handles(shown, []),
            loc="outside lower left",
            ncols=num_columns if is_numbered else 7,
            handletextpad=0.3,
            columnspacing=1.2,
        )
        names = [str(i) for i in numbers] if is_numbered else [arm["name"] for arm in told]
        segments = _segments(axes, cell.arms, front)
        bold = [arm in front for arm in told]
        place_labels(axes, _places(told), names, bold, _places(shown), segments)

    return draw(plot, width, height)


def _places(arms: Sequence[Json]) -> list[tuple[float, float]]:
    return [(arm["speedup_vs_target"], 100 * arm["accuracy"]) for arm in arms]


def _ends(arm: Json, name: str, scale: float = 1.0) -> tuple[float, float]:
    """The interval of a number, or the number twice."""
    low, high = arm.get(f"{name}_ci95") or (arm[name], arm[name])
    return scale * low, scale * high


def _limits(axes: Axes, arms: Sequence[Json]) -> None:
    """Set limits with room around all intervals, and a logarithmic axis of speed."""
    across = [end for arm in arms for end in _ends(arm, "speedup_vs_target")]
    up = [end for arm in arms for end in _ends(arm, "accuracy", 100)]
    low, high = min(across), max(across)
    margin = max((high / low) ** 0.08, 1.04)
    axes.set_xscale("log")
    axes.set_xlim(low / margin, high * margin)
    pad = max(0.08 * (max(up) - min(up)), 0.5)
    axes.set_ylim(max(min(up) - pad, -2), min(max(up) + pad, 102))
    axes.xaxis.set_major_locator(LogLocator(subs=_ticks(high / low)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.tick_params(axis="x", which="minor", length=0)
    axes.set_xlabel("speed-up over the target alone")
    axes.set_ylabel("right answers, %")


def _ticks(ratio: float) -> tuple[float, ...]:
    """Ticks of a decade, by the ratio of the axis's ends."""
    if ratio > 3.5:
        return (1, 1.5, 2, 3, 4, 5, 7)
    if ratio > 1.6:
        return (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)
    return tuple(1 + i / 10 for i in range(90))


def _regions(axes: Axes, arms: Sequence[Json]) -> None:
    """Shade where an arm beats the target in accuracy and lossless speculation in speed."""
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
        colour, marker = MARKS[arm["kind"]]
        x, y = arm["speedup_vs_target"], 100 * arm["accuracy"]
        across, up = _ends(arm, "speedup_vs_target"), _ends(arm, "accuracy", 100)
        axes.plot(across, [y, y], color=colour, lw=1.2, alpha=0.55)
        axes.plot([x, x], up, color=colour, lw=1.2, alpha=0.55)
        axes.plot([x], [y], marker, color=colour, ms=7, mew=0, zorder=4)


def _stairs(axes: Axes, front: Sequence[Json]) -> None:
    """The frontier: no arm lies above and to the right of it."""
    xs = [arm["speedup_vs_target"] for arm in front]
    ys = [100 * arm["accuracy"] for arm in front]
    bottom = axes.get_ylim()[0]
    left = min(axes.get_xlim()[0], xs[0])
    axes.step(
        [left, *xs, xs[-1]], [ys[0], *ys, min(bottom, ys[-1])], where="pre",
        color=MUTED, lw=1.6, alpha=0.8, zorder=2,
    )  # fmt: skip


def _segments(axes: Axes, arms: Sequence[Json], front: Sequence[Json]) -> list[Segment]:
    """The lines of the picture, which labels stay clear of: intervals, frontier, baselines."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    found: list[Segment] = []
    corner = left
    for arm in arms:
        x, y = arm["speedup_vs_target"], 100 * arm["accuracy"]
        (slow, fast), (low, high) = _ends(arm, "speedup_vs_target"), _ends(arm, "accuracy", 100)
        found += [((slow, y), (fast, y)), ((x, low), (x, high))]
        if arm["name"] == "target":
            found.append(((left, y), (right, y)))
        if arm["name"] == "lossless":
            found.append(((x, bottom), (x, top)))
    for arm, after in zip(front, [*front[1:], None], strict=True):
        x, y = arm["speedup_vs_target"], 100 * arm["accuracy"]
        below = bottom if after is None else 100 * after["accuracy"]
        found += [((corner, y), (x, y)), ((x, below), (x, y))]
        corner = x
    return found


def _handles(arms: Sequence[Json], numbers: Sequence[int]) -> list[Line2D]:
    """Entries of the legend: the arms by number if they have one, or the kinds that occur."""

    def handle(kind: str, text: str) -> Line2D:
        colour, marker = MARKS[kind]
        return Line2D([], [], color=colour, marker=marker, ls="none", ms=6, mew=0, label=text)

    line = Line2D([], [], color=MUTED, lw=1.6, label="frontier")
    if numbers:
        pairs = zip(arms, numbers, strict=True)
        return [*(handle(arm["kind"], f"{i}  {arm['name']}") for arm, i in pairs), line]
    found = {arm["kind"] for arm in arms}
    return [*(handle(kind, kind) for kind in KINDS if kind in found), line]
