"""The pictures: what they draw, and that names do not cover each other."""

from __future__ import annotations

import itertools

import pytest
from matplotlib.text import Text

from cospec.report.figures import NARROW, WIDE
from cospec.report.frontier import draw_frontier, has_close_up
from cospec.report.inputs import Cell, Training
from cospec.report.page import Pictures
from cospec.report.plots import draw_training, panels
from cospec.report.read import read_all

from .conftest import ARMS, arm

KINDS = ["exact", "reference", "exact", "learned", "rule", "random"]
CELL = Cell("t", "", [each | {"kind": k} for each, k in zip(ARMS, KINDS, strict=True)], "f")

_CLOSE = [arm(f"rule-{i}", 0.5 + 0.004 * (i % 3), 2.0 + 0.03 * i, kind="rule") for i in range(14)]
MANY = Cell("t", "", [*CELL.arms[:3], *_CLOSE], "f")


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_frontier_is_drawn_through_the_arms_that_none_dominates():
    (axes,) = draw_frontier(CELL, WIDE).axes
    (stairs,) = (line for line in axes.lines if line.get_drawstyle() == "steps-pre")
    corners = list(zip(*stairs.get_data(), strict=True))
    assert corners[1:-1] == [(1.9, 60.0), (2.5, 55.00000000000001), (6.0, 40.0)]


def test_intervals_are_drawn_both_ways_and_one_without_is_a_point():
    without = arm("single", 0.5, 2.0, kind="rule", speedup_vs_target_ci95=None)
    figure = draw_frontier(Cell("t", "", [*CELL.arms, without], "f"), WIDE)
    lines = [list(zip(*line.get_data(), strict=True)) for line in figure.axes[0].lines]
    assert [(1.71, 60.0), (2.09, 60.0)] in [[(round(x, 6), y) for x, y in line] for line in lines]
    assert [(1.9, 55.0), (1.9, 65.0)] in [[(x, round(y, 6)) for x, y in line] for line in lines]
    assert [(2.0, 50.0), (2.0, 50.0)] in lines


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_numbers_beside_points_do_not_cover_each_other(width):
    figure = draw_frontier(MANY, width, is_close_up=True)
    labels = [text for text in figure.axes[0].texts if text.get_text().isdigit()]
    boxes = [Text.get_window_extent(label) for label in labels]  # without the line to the point
    assert len(boxes) == 15
    shared = [a for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    assert len(shared) <= 1


def test_with_many_arms_the_whole_picture_names_those_that_matter():
    named = [name for name in texts(draw_frontier(MANY, WIDE)) if "\n" not in name]
    assert set(named) == {"target", "draft", "lossless", "rule-11", "rule-13"}


def test_few_arms_are_named_and_many_numbered():
    assert "runs/ours" in texts(draw_frontier(CELL, WIDE))
    narrow = draw_frontier(CELL, NARROW)
    assert "runs/ours" not in texts(narrow) and "4" in texts(narrow)
    (legend,) = narrow.legends
    assert "4  runs/ours" in [text.get_text() for text in legend.get_texts()]


def test_the_close_up_leaves_out_the_models_alone_and_keeps_the_numbers():
    assert has_close_up(CELL)
    assert not has_close_up(Cell("t", "", CELL.arms[:4], "f"))
    figure = draw_frontier(CELL, NARROW, is_close_up=True)
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[0] == "3  lossless" and not any("draft" in label for label in labels)
    low, high = figure.axes[0].get_xlim()
    assert 1.0 < low < 1.9 and 2.5 < high < 6.0


def test_dollar_signs_in_names_are_no_mathematics():
    odd = arm("$x_{$", 0.5, 2.0, kind="rule")
    figure = draw_frontier(Cell("$\\frac{$", "", [*CELL.arms, odd], "f"), WIDE)
    assert "$x_{$" in texts(figure)


def test_training_shows_the_difference_to_the_target_where_both_are_known():
    rounds = [
        {"round": 1, "accuracy": 0.5, "accuracy_target": 0.25, "override_rate": 0.1},
        {"round": 2, "accuracy": 0.5, "override_rate": 0.3},
    ]
    training = [Training("a", rounds)]
    assert [metric for _, metric, _ in panels(training)] == ["accuracy", "override_rate"]
    gain, rate = draw_training(training, WIDE).axes
    assert list(gain.lines[0].get_ydata()) == [25.0]
    assert list(rate.lines[0].get_ydata()) == [10.0, 30.0]


def test_plots_are_written_as_svg_and_png(results, tmp_path):
    inputs = read_all([results / "calibrate.json", results / "ours.metrics.jsonl"])
    (tmp_path / "plots").mkdir()
    paths = Pictures(inputs).save(tmp_path / "plots")
    assert [path.name for path in paths] == [
        "reliability-ours-gsm8k.svg", "reliability-ours-gsm8k.png", "training.svg", "training.png",
    ]  # fmt: skip
    assert "<svg" in paths[0].read_text()
    assert paths[1].read_bytes().startswith(b"\x89PNG")
