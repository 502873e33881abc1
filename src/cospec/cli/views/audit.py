"""Views of ``cospec audit``: the standing while it plays, then tables and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from cospec.cli.views.tables import table_console
from cospec.text import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.results import Json


def standing(records: Sequence[Json]) -> str:
    """Return a line that sums up the records so far."""
    played = [m for record in records for m in record["mismatches"]]
    saved = sum(m["draft_correct"] and not m["target_correct"] for m in played)
    right = sum(record["correct"] for record in records)
    return f"path right {right}/{len(records)}, only the draft right {saved}/{len(played)}"


def show(summary: Json) -> None:
    """Print the numbers and the verdict."""
    console = table_console()
    console.print(_outcomes(summary))
    if "oracle_path" in summary:
        console.print(_references(summary), markup=False)
    for speed, free in zip(summary["speed"], summary["speed_if_free_stood"], strict=True):
        console.print(_speeds(speed, free))
    for warning in summary["warnings"]:
        told = Text.assemble(("warning:", "bold yellow"), " ", visible(warning))
        console.print(told, soft_wrap=True)
    console.print(visible(summary["verdict"]), markup=False, soft_wrap=True)


def percent(share: Json) -> str:
    """A share with its interval."""
    if share["share"] is None:
        return "none"
    low, high = share["ci95"]
    return f"{share['share']:.1%} ({low:.1%} to {high:.1%})"


def _outcomes(summary: Json) -> Table:
    number = f"{summary['mismatches_per_problem']:.1f}"
    title = f"{number} mismatches a problem, whose branch is right (95 %)"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("mismatches", overflow="fold")
    names = list(summary["outcomes"])
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_row("all", *(percent(summary["outcomes"][name]) for name in names))
    wrong = summary["outcomes_if_target_wrong"]
    table.add_row("where the path is wrong", *(percent(wrong[name]) for name in names))
    for feature, rows in summary["bins"].items():
        for row in rows:
            label = f"{feature} {row['from']:.3g} to {row['to']:.3g}"
            table.add_row(label, *(percent(row["outcomes"][name]) for name in names))
    return table


def _references(summary: Json) -> Table:
    title = "references that know the answers, and no upper bounds (95 %)"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in ("", "right", "tokens a target forward"):
        table.add_column(name, justify="right" if name else "left")
    oracle = summary["oracle_path"]
    lossless = f"{oracle['mean_acceptance_length_lossless']:.2f}"
    path = visible(summary["path"] or "target alone")
    table.add_row(path, percent(summary["target_accuracy"]), lossless)
    table.add_row("draft alone", percent(summary["draft_accuracy"]), "")
    one = summary["one_step_oracle"]["problems_right_or_one_override_away"]
    table.add_row("one override", percent(one) if one["of"] else "needs all branches", "")
    length = f"{oracle['mean_acceptance_length']:.2f}"
    table.add_row("oracle path", percent(oracle["accuracy"]), length)
    return table


def _speeds(speed: Json, free: Json) -> Table:
    title = f"predicted speed-up over the target alone, batch size {speed['batch_size']}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in ("k", "acceptance length", "exact", "if all free tokens stood"):
        table.add_column(name, justify="right")
    for row, best in zip(speed["by_k"], free["by_k"], strict=True):
        speeds = (f"{each['speedup']:.2f}x" for each in (row, best))
        table.add_row(str(row["k"]), f"{row['mean_acceptance_length']:.2f}", *speeds)
    return table
