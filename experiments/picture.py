"""Draw the README's picture, accuracy against speed, from the rows of one evaluation.

python experiments/picture.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from experiments.tables.rows import Arm, arms  # noqa: E402  # a script of the repository

EVALUATION = "eval_family_batch16"
LABELS = {
    "target": "target alone",
    "draft": "draft alone",
    "lossless": "exact speculation",
    "cascade_diff:alpha=-0.2": "best rule (cascade_diff)",
    "family-corrected-seed2:threshold=0.5": "trained arbiter",
}
BELOW = {"lossless": 18, "draft": -12}
"""Pixels from a point down to its label, where the default would collide."""
THEMES = {
    "light": {"ink": "#1f2328", "grid": "#d1d9e0", "ours": "#0969da"},
    "dark": {"ink": "#f0f6fc", "grid": "#3d444d", "ours": "#4493f8"},
}
WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 16, 44
X, Y = (0.5, 5.5), (0.44, 0.66)


def x(speed: float) -> float:
    """Place of a speed-up."""
    return LEFT + (speed - X[0]) / (X[1] - X[0]) * (WIDTH - LEFT - RIGHT)


def y(share: float) -> float:
    """Place of an accuracy."""
    return HEIGHT - BOTTOM - (share - Y[0]) / (Y[1] - Y[0]) * (HEIGHT - TOP - BOTTOM)


def mark(arm: Arm, target: Arm, theme: dict[str, str]) -> list[str]:
    """A point with its two intervals and its label."""
    speed, (low, high) = arm.over(target), arm.interval
    colour = theme["ours"] if "corrected" in arm.name else theme["ink"]
    slow, fast = arm.over_interval(target) or (speed, speed)
    across, up = x(speed), y(arm.accuracy)
    label = escape(LABELS[arm.name])
    drop = BELOW.get(arm.name, -8)
    return [
        f'<path d="M{across:.1f} {y(low):.1f}V{y(high):.1f}M{x(slow):.1f} {up:.1f}H{x(fast):.1f}" '
        f'stroke="{colour}" stroke-width="1.5"/>',
        f'<circle cx="{across:.1f}" cy="{up:.1f}" r="5" fill="{colour}"/>',
        f'<text x="{across + (9 if arm.name != "draft" else -100):.1f}" y="{up + drop:.1f}" '
        f'fill="{colour}">{label}</text>',
    ]


def picture(theme: dict[str, str]) -> str:
    """The whole picture as SVG."""
    of = arms(EVALUATION)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="13">',
    ]
    for share in (0.45, 0.50, 0.55, 0.60, 0.65):
        lines += [
            f'<path d="M{LEFT} {y(share):.1f}H{WIDTH - RIGHT}" stroke="{theme["grid"]}"/>',
            f'<text x="{LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end" '
            f'fill="{theme["ink"]}">{share:.0%}</text>',
        ]
    for speed in (1, 2, 3, 4, 5):
        lines.append(
            f'<text x="{x(speed):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" '
            f'fill="{theme["ink"]}">{speed}x</text>'
        )
    lines.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle" '
        f'fill="{theme["ink"]}">right answers, by tokens a second over the target alone</text>'
    )
    for name in LABELS:
        lines += mark(of[name], of["target"], theme)
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    """Write both themes."""
    folder = ROOT / "docs" / "assets"
    folder.mkdir(exist_ok=True)
    for name, theme in THEMES.items():
        (folder / f"speed_accuracy_{name}.svg").write_text(picture(theme), encoding="utf-8")


if __name__ == "__main__":
    main()
