"""Puts names beside points so that they cover neither each other nor the points."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from matplotlib.transforms import Bbox

from cospec.report.figures import INK, MUTED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    Segment: TypeAlias = tuple[tuple[float, float], tuple[float, float]]
    """Both ends of a line."""

_DIRECTIONS = ((0.8, 0.8), (0.8, -0.8), (1, 0), (-0.8, 0.8), (-0.8, -0.8), (-1, 0), (0, 1), (0, -1))
_DISTANCES = (7, 14, 24, 36, 50)
"""Distances of a label from its point, in typographic points."""
_SIZE = 8.5
_LINE = {"arrowstyle": "-", "color": MUTED, "lw": 0.6}
"""Line from a point to a label that does not stand right beside it."""
_MARKER = 5.0
"""Half the size of a marker with its margin, in typographic points."""


def place_labels(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    bold: Sequence[bool],
    markers: Sequence[tuple[float, float]] = (),
    segments: Sequence[Segment] = (),
) -> None:
    """Write a text beside each point, at the nearest place that is free.

    Args:
        axes: Axes with their limits set.
        points: Points in data coordinates.
        texts: Text of each point.
        bold: Whether to write each text in bold.
        markers: Other points to stay clear of, in data coordinates.
        segments: Lines to stay clear of, in data coordinates, level or upright.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    frame = axes.get_window_extent()
    taken = _obstacles(axes, [*points, *markers], segments, scale)
    options = [(dx * far, dy * far) for far in _DISTANCES for dx, dy in _DIRECTIONS]
    for point, text, is_bold in zip(points, texts, bold, strict=True):
        weight = "bold" if is_bold else "normal"
        x, y = axes.transData.transform(point)
        drawn = axes.text(0, 0, text, fontsize=_SIZE, weight=weight)
        size = drawn.get_window_extent()
        drawn.remove()
        boxes = [
            _box(x + dx * scale, y + dy * scale, size.width, size.height, _side(dx))
            for dx, dy in options
        ]
        costs = [
            sum(_shared(box, other) for other in taken if box.overlaps(other))
            + 3 * (_area(box) - _shared(box, frame))
            for box in boxes
        ]
        best = min(range(len(costs)), key=lambda i: (round(costs[i]), i))
        taken.append(boxes[best])
        dx, dy = options[best]
        axes.annotate(
            text, point, xytext=(dx, dy), textcoords="offset points", ha=_side(dx), va="center",
            fontsize=_SIZE, color=INK, weight=weight,
            arrowprops=_LINE if max(abs(dx), abs(dy)) > _DISTANCES[0] else None,
        )  # fmt: skip


def _obstacles(
    axes: Axes, points: Sequence[tuple[float, float]], segments: Sequence[Segment], scale: float
) -> list[Bbox]:
    """Boxes that no label may cover, in pixels: markers, other texts, and lines."""
    half = _MARKER * scale
    places = [axes.transData.transform(point) for point in points]
    found = [Bbox.from_bounds(x - half, y - half, 2 * half, 2 * half) for x, y in places]
    found += [text.get_window_extent() for text in axes.texts]
    for segment in segments:
        (left, right), (low, high) = np.sort(axes.transData.transform(segment).T, axis=1)
        found.append(Bbox([[left - scale, low - scale], [right + scale, high + scale]]))
    return found


def _side(dx: float) -> str:
    """Alignment of a text to the right, to the left, above or below."""
    return "left" if dx > 0 else "right" if dx < 0 else "center"


def _box(x: float, y: float, width: float, height: float, side: str) -> Bbox:
    left = {"left": x, "right": x - width, "center": x - width / 2}[side]
    return Bbox.from_bounds(left, y - height / 2, width, height)


def _area(box: Bbox) -> float:
    return float(box.width * box.height)


def _shared(one: Bbox, other: Bbox) -> float:
    both = Bbox.intersection(one, other)
    return 0.0 if both is None else _area(both)
