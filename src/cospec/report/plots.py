"""The other pictures: acceptance by position, override map, reliability, training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from cospec.report.figures import (
    BLUE,
    GREEN,
    INK,
    MARKERS,
    MUTED,
    NARROW,
    ORANGE,
    RED,
    SERIES,
    draw,
    grid_of_axes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from cospec.report.inputs import Acceptance, Mismatches, Reliability, Training

LABELS = {
    "neither": ("neither right", MUTED, "."),
    "both": ("both right", BLUE, "s"),
    "only_target": ("only the target's right", ORANGE, "v"),
    "only_draft": ("only the draft's right", GREEN, "^"),
    "target's token": ("ruled for the target", BLUE, "o"),
    "override": ("override", RED, "D"),
}
"""Text, colour and marker of a mismatch by its outcome or ruling; the last is drawn on top."""
_MAX_POINTS = 4_000
"""Most points that are drawn as vectors; more become a bitmap inside the SVG."""

_PANELS = (
    ("right answers, % over the target's (rollouts)", "accuracy", "accuracy_target"),
    ("right answers, % over the target's (tune)", "tune_accuracy", "tune_accuracy_target"),
    ("rulings for the draft, %", "override_rate", None),
    ("target forwards, % of lossless", "relative_cost", None),
)


def draw_acceptance(acceptance: Acceptance, width: float) -> Figure:
    """Share of blocks kept beyond each drafted position, by arm."""

    def plot(figure: Figure, width: float) -> None:
        axes = figure.subplots()
        for i, (arm, rates) in enumerate(acceptance.rates.items()):
            axes.plot(
                range(1, len(rates) + 1),
                [100 * rate for rate in rates],
                color=SERIES[i % len(SERIES)],
                marker=MARKERS[i % len(MARKERS)],
                ls=("-", "--", ":")[i % 3],
                ms=5,
                label=arm,
            )
        least = min(min(rates) for rates in acceptance.rates.values())
        axes.set_ylim(max(100 * least - 10, 0), 101)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("drafted position")
        axes.set_ylabel("blocks kept so far, %")
        figure.legend(loc="outside lower left", ncols=1 if width <= NARROW else 2)

    num_lines = math.ceil(len(acceptance.rates) / (1 if width <= NARROW else 2))
    return draw(plot, min(width, 5.0), 2.8 + 0.19 * num_lines)


def draw_map(mismatches: Mismatches, width: float) -> Figure:
    """Mismatches by the target's gap and the draft's confidence."""

    def plot(figure: Figure, width: float) -> None:
        axes = figure.subplots()
        labels = np.array(mismatches.labels)
        for label, (text, colour, marker) in LABELS.items():
            here = labels == label
            if not here.any():
                continue
            axes.scatter(
                np.maximum(mismatches.gap_p[here], 0),
                mismatches.q_draft[here],
                s=20,
                color=colour,
                marker=marker,
                lw=0,
                alpha=0.75,
                label=f"{text} ({int(here.sum())})",
                rasterized=len(labels) > _MAX_POINTS,
            )
        axes.set_xscale("symlog", linthresh=1, linscale=0.8)
        axes.set_xticks([0, 0.5, 1, 2, 5, 10, 20], labels=["0", "0.5", "1", "2", "5", "10", "20"])
        axes.set_xlim(-0.03, max(float(np.max(mismatches.gap_p, initial=0.0)) * 1.15, 1.2))
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("log p gap, target's token over draft's (nats)")
        axes.set_ylabel("draft's confidence q")
        figure.legend(loc="outside lower left", ncols=1 if width <= NARROW else 2)

    num_lines = math.ceil(len(set(mismatches.labels)) / (1 if width <= NARROW else 2))
    return draw(plot, min(width, 5.0), 3.1 + 0.19 * num_lines)


def draw_reliability(reliability: Reliability, width: float) -> Figure:
    """Draw how often the draft's branch was the right one, by score."""

    def plot(figure: Figure, _: float) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=(0, (4, 3)), label="perfectly calibrated")
        for row in reliability.bins:
            x, y, (low, high) = row["mean_score"], row["share_draft_right"], row["ci95"]
            axes.plot([x, x], [low, high], color=RED, lw=1.2, alpha=0.6)
            axes.plot([x], [y], "D", color=RED, ms=6, mew=0)
            axes.annotate(
                str(row["num_mismatches"]), (x, y), xytext=(6, -11), textcoords="offset points",
                fontsize=8, color=INK,
            )  # fmt: skip
        axes.set_xlim(0, 1.04)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("score: probability for the draft's token")
        axes.set_ylabel("draft's branch is the right one")
        axes.legend(loc="upper left")

    return draw(plot, min(width, 4.4), 3.6)


def panels(trainings: Sequence[Training]) -> list[tuple[str, str, str | None]]:
    """Title, metric and baseline to subtract, of each panel that has data."""
    rounds = [each for training in trainings for each in training.rounds]
    return [
        (title, metric, base)
        for title, metric, base in _PANELS
        if any(metric in each and (base is None or base in each) for each in rounds)
    ]


def draw_training(trainings: Sequence[Training], width: float) -> Figure:
    """Metrics over the rounds of each training."""
    found = panels(trainings)

    def plot(figure: Figure, width: float) -> None:
        for axes, (title, metric, base) in zip(
            grid_of_axes(figure, width, len(found)), found, strict=True
        ):
            for i, training in enumerate(trainings):
                rounds = [r for r in training.rounds if metric in r and (base is None or base in r)]
                axes.plot(
                    [r["round"] for r in rounds],
                    [100 * (r[metric] - (r[base] if base else 0)) for r in rounds],
                    color=SERIES[i % len(SERIES)],
                    marker=MARKERS[i % len(MARKERS)],
                    ls=("-", "--", ":", "-.")[i % 4],
                    ms=4.5,
                    label=training.title,
                )
            if base is not None:
                axes.axhline(0, color=MUTED, lw=0.9, ls=(0, (4, 3)))
            axes.set_title(title)
            axes.set_xlabel("round")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=1 if width <= NARROW else 2)

    num_columns = 2 if width > NARROW else 1
    num_rows = math.ceil(len(found) / num_columns)
    height = 2.2 * num_rows + 0.19 * math.ceil(len(trainings) / num_columns) + 0.2
    return draw(plot, width, height)
