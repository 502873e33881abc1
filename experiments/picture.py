"""Draw the README's picture, accuracy against speed of two pairs, from result files.

python experiments/picture.py
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from experiments.tables.rows import arms, read  # noqa: E402  # a script of the repository

TARGET, EXACT, RULE, OURS, DRAFT = (
    "target", "exact speculation", "best rule", "trained arbiter", "draft",
)  # fmt: skip
FAMILY = {
    "target": TARGET,
    "draft": DRAFT,
    "lossless": EXACT,
    "cascade_diff:alpha=-0.2": RULE,
    "family-corrected-seed2:threshold=0.5": OURS,
}
SQL = {
    "target": ("lossless", TARGET),  # in float32 the target's own texts
    "int8, draft": ("draft_only", DRAFT),
    "int8, cascade, threshold": ("lossless", EXACT),
    "int8, cascade, gap:max_gap=4.385, then lossless": ("gap", RULE),
    "int8, cascade, known_arbiter_three, then lossless": ("then_lossless", OURS),
}
"""By arm of the timed questions, that of all questions."""
PLACES = {TARGET: (8, 18), EXACT: (8, 18), RULE: (8, 18), OURS: (8, -8), DRAFT: (-44, -10)}
"""Pixels from a point to its label, right and down."""
THEMES = {
    "light": {"ink": "#1f2328", "grid": "#d1d9e0", "ours": "#0969da"},
    "dark": {"ink": "#f0f6fc", "grid": "#3d444d", "ours": "#4493f8"},
}
WIDTH, HEIGHT = 440, 340
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 34, 44


@dataclass(frozen=True)
class Point:
    """An arm: accuracy and tokens a second over the target's, each with its interval."""

    label: str
    accuracy: float
    accuracies: tuple[float, float]
    speed: float
    speeds: tuple[float, float]


@dataclass(frozen=True)
class Panel:
    """One pair: its points, and the ends and steps of both axes."""

    title: str
    points: list[Point]
    x: tuple[float, float]
    y: tuple[float, float]
    places: dict[str, tuple[int, int]]

    def across(self, speed: float) -> float:
        """Place of a speed."""
        low, high = self.x
        return LEFT + (speed - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def down(self, share: float) -> float:
        """Place of an accuracy."""
        low, high = self.y
        return HEIGHT - BOTTOM - (share - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def family() -> Panel:
    """The bundled pair."""
    of = arms("eval_family_batch16")
    target = of["target"]
    points = [
        Point(label, arm.accuracy, arm.interval, speed, arm.over_interval(target) or (speed, speed))
        for name, label in FAMILY.items()
        for arm in [of[name]]
        for speed in [arm.over(target)]
    ]
    title = f"bundled pair, {len(target.bits):,} word problems"
    return Panel(title, points, (0.5, 5.5), (0.44, 0.69), PLACES)


def sql() -> Panel:
    """The pretrained pair: accuracy on all questions, speed on those that were timed."""
    of, timed = arms("test_best_pair"), {arm["arm"]: arm for arm in read("sql_arms")["arms"]}
    points = []
    for name, (known, label) in SQL.items():
        low, high = timed[name]["speedup_vs_target_ci95"]
        arm, speed = of[known], timed[name]["speedup_vs_target"]
        points.append(Point(label, arm.accuracy, arm.interval, speed, (low, high)))
    title = f"Qwen2.5-Coder 1.5B / tuned 0.5B, {len(of['lossless'].bits)} SQL questions"
    return Panel(title, points, (0.5, 4.2), (0.51, 0.69), PLACES | {OURS: (-96, -8)})


def drawn(panel: Panel, theme: dict[str, str]) -> list[str]:
    """The lines of a panel."""
    ink, grid = theme["ink"], theme["grid"]
    lines = [f'<text x="{LEFT}" y="16" fill="{ink}" font-weight="600">{escape(panel.title)}</text>']
    for percent in range(0, 100, 5):
        if panel.y[0] <= percent / 100 <= panel.y[1]:
            place = panel.down(percent / 100)
            lines += [
                f'<path d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}" stroke="{grid}"/>',
                f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end" '
                f'fill="{ink}">{percent} %</text>',
            ]
    for speed in range(1, int(panel.x[1]) + 1):
        lines.append(
            f'<text x="{panel.across(speed):.1f}" y="{HEIGHT - BOTTOM + 18}" '
            f'text-anchor="middle" fill="{ink}">{speed}x</text>'
        )
    lines.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle" '
        f'fill="{ink}">right answers, by tokens a second over the target</text>'
    )
    for point in panel.points:
        colour = theme["ours"] if point.label == OURS else ink
        (low, high), (slow, fast) = point.accuracies, point.speeds
        x, y = panel.across(point.speed), panel.down(point.accuracy)
        right, down = panel.places[point.label]
        lines += [
            f'<path d="M{x:.1f} {panel.down(low):.1f}V{panel.down(high):.1f}'
            f'M{panel.across(slow):.1f} {y:.1f}H{panel.across(fast):.1f}" '
            f'stroke="{colour}" stroke-width="1.5"/>',
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>',
            f'<text x="{x + right:.1f}" y="{y + down:.1f}" fill="{colour}">{point.label}</text>',
        ]
    return lines


def picture(theme: dict[str, str]) -> str:
    """The whole picture as SVG."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="12.5">',
    ]
    for i, panel in enumerate((sql(), family())):
        lines += [f'<g transform="translate({i * WIDTH} 0)">', *drawn(panel, theme), "</g>"]
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    """Write both themes."""
    folder = ROOT / "docs" / "assets"
    folder.mkdir(exist_ok=True)
    for name, theme in THEMES.items():
        (folder / f"speed_accuracy_{name}.svg").write_text(picture(theme), encoding="utf-8")


if __name__ == "__main__":
    main()
