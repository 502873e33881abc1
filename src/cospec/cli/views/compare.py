"""Tables of a comparison of two result files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table

from cospec.cli.views.tables import FILE_WIDTH, table_console
from cospec.evaluation.summary import p_value
from cospec.results import Json
from cospec.text import visible


def _pair(values: Sequence[float], form: str) -> str:
    return " ".join(format(value, form) for value in values)


def _known(number: int | None) -> str:
    return "?" if number is None else str(number)


def _times(ratio: float | None) -> str:
    return f"{ratio:.2f}x" if ratio else "-"


def _interval(arm: Json) -> str:
    over = "accuracy_delta_groups_ci95" if "group_p" in arm else "accuracy_delta_ci95"
    low, high = arm[over]
    return f"{100 * arm['accuracy_delta']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


_COLUMNS: dict[str, Callable[[Json], str]] = {
    "\nproblems": lambda arm: str(arm["num_problems"]),
    "right\nA B": lambda arm: _pair([n / arm["num_problems"] for n in arm["num_right"]], ".1%"),
    "won/\nlost": lambda arm: f"{arm['wins']}/{arm['losses']}",
    "\nB - A, 95 %": _interval,
    "\np": lambda arm: f"{p_value(arm):.2g}",
    "texts\nunlike": lambda arm: _known(arm["num_texts_unlike"]),
    "tokens/s\nA B": lambda arm: _pair(arm["tokens_per_s"], ".0f"),
    "speed\nB/A": lambda arm: "-" if 1 in arm["num_turns"] else _times(arm["speed_ratio"]),
    "over target\nA B": lambda arm: " ".join(
        "-" if turns == 1 else f"{over:.2f}"
        for turns, over in zip(arm["num_turns"], arm["speedup_vs_target"], strict=True)
    ),
    "forw.\nA/B": lambda arm: _times(arm["forwards_ratio"]),
}


def print_comparison(cells: Sequence[Json]) -> None:
    """Print one table for each cell: quality and speed of each arm in both runs."""
    console = table_console(FILE_WIDTH + 8)  # names have settings beside them
    for cell in cells:
        title = f"{cell['task']}, batch {cell['batch_size']}, temperature {cell['temperature']:g}"
        console.print(f"\n{visible(title)}", markup=False, soft_wrap=True)
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        table.add_column("\narm", overflow="fold")
        for name in _COLUMNS:
            table.add_column(name, justify="right", no_wrap=True)
        for arm in cell["arms"]:
            table.add_row(_label(arm), *(show(arm) for show in _COLUMNS.values()))
        console.print(table, markup=False)
        for side in ("a", "b"):
            if cell[f"only_in_{side}"]:
                names = visible(", ".join(cell[f"only_in_{side}"]))
                console.print(f"only in {side.upper()}: {names}", markup=False, soft_wrap=True)
    console.print(
        "won/lost: only B or only A is right; p: exact McNemar test, of problems in groups a test "
        "over the groups, and so the interval. speed, forw.: how many times less time and fewer "
        "target forwards B takes for a problem; -: one timed turn, which tells no speed, or other "
        "problems.",
        soft_wrap=True,
    )


def _label(arm: Json) -> str:
    """The name of an arm, with settings that differ."""
    a, b = arm["settings"]
    changed = [f"{key} {a[key]} then {b[key]}" for key in a if a[key] != b[key]]
    return visible(f"{arm['name']} ({'; '.join(changed)})" if changed else arm["name"])
