"""Tables of arms: quality and speed together, one line per arm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from rich import box
from rich.console import Console
from rich.table import Table

from cospec.cli.views.tables import FILE_WIDTH, table_console
from cospec.evaluation.summary import DRAFT, LOSSLESS, TARGET, is_timed_once, p_value
from cospec.results import Json
from cospec.text import visible

Columns: TypeAlias = Mapping[str, Callable[[Json], str]]
"""Function that shows a column's number of an arm, by the column's head."""


def _over(name: str) -> Callable[[Json], str]:
    """A speed-up; a dash for an arm with one timed turn, whose spread is unknown."""
    return lambda arm: "-" if is_timed_once(arm) else f"{arm[f'speedup_vs_{name}']:.2f}x"


COLUMNS: Columns = {
    "\nright": lambda arm: f"{arm['accuracy']:.1%}",
    "95 %\ninterval": lambda arm: "-".join(f"{100 * end:.1f}" for end in arm["accuracy_ci95"]),
    "won/\nlost": lambda arm: f"{arm['wins']}/{arm['losses']}",
    "\np": lambda arm: f"{arm['mcnemar_p']:.2g}",
    "tokens\nper s": lambda arm: f"{arm['tokens_per_s']:.0f}",
    "over\ntarget": _over("target"),
    "over\nlossless": _over("lossless"),
    "accept.\nlength": lambda arm: f"{arm['mean_acceptance_length']:.2f}",
    "over-\nrides": lambda arm: str(arm["num_overrides"]),
    "forw.\na token": lambda arm: f"{arm['target_forwards_per_token']:.3f}",
}


def print_table(arms: Iterable[Json], columns: Columns = COLUMNS, width: int = FILE_WIDTH) -> None:
    """Print quality and speed together, one line per arm."""
    console = table_console(width)
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, caption_justify="left")
    table.add_column("\narm", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for arm in arms:
        table.add_row(visible(arm["name"]), *(show(arm) for show in columns.values()))
        if arm["name"] == LOSSLESS:  # with no settings, so never relabelled
            table.caption = (
                "won/lost, p: paired with target, exact McNemar test. over: speed-up by the clock. "
                "forw.: target forwards. "
                f"lossless wrote {arm['num_texts_unlike_target']} of {arm['num_problems']} texts "
                "unlike target, the noise floor."
            )
            if is_timed_once(arm):
                table.caption += " -: one turn, which tells no speed-up; give more problems."
    console.print(table, markup=False)


def print_pairs(arms: Sequence[Json]) -> None:
    """Print what each arbiter won and lost against draft and lossless, and how long its texts are.

    A speed in tokens a second tells nothing of how many tokens an answer has.
    """
    console = Console(highlight=False)
    lengths = {arm["name"]: arm["num_tokens"] / arm["num_problems"] for arm in arms}
    for arm in arms:
        if arm["arbiter"] is None or arm["name"] == LOSSLESS:
            continue
        said = [
            f"{pair['wins']}/{pair['losses']} (p {pair['mcnemar_p']:.2g}) against {other}"
            for other in (DRAFT, LOSSLESS)
            for pair in [arm[f"vs_{other}"]]
        ]
        length = f"{lengths[arm['name']]:.0f} tokens a text, the target's {lengths[TARGET]:.0f}"
        line = f"{visible(arm['name'])}: won/lost {', '.join(said)}; {length}"
        console.print(line, markup=False, soft_wrap=True)
        if "num_groups" in arm:
            others = [f"p {arm[f'vs_{o}']['group_p']:.2g} against {o}" for o in (DRAFT, LOSSLESS)]
            console.print(f"  {over_groups(arm)}, {', '.join(others)}", markup=False)


def print_fixed_answer(fixed: Json, arms: Sequence[Json]) -> None:
    """Print a fixed answer, if it has half as many right ones as the best arm."""
    if 2 * fixed["accuracy"] >= max(arm["accuracy"] for arm in arms):
        Console(highlight=False).print(
            f"a fixed answer, {visible(repr(fixed['answer']))} to every problem, is right at "
            f"{fixed['accuracy']:.1%}: compare the arms with it before you credit them",
            markup=False,
            soft_wrap=True,
        )


def over_groups(arm: Json) -> str:
    """Say what an arm gains over the target with groups of problems as units."""
    low, high = (100 * end for end in arm["accuracy_delta_groups_ci95"])
    return (
        f"over {arm['num_groups']} groups of problems: "
        f"{100 * arm['accuracy_delta']:+.1f} points over the target "
        f"({low:.1f} to {high:.1f}; p {arm['group_p']:.2g})"
    )


def print_parts(parts: Mapping[str, Sequence[Json]]) -> None:
    """Print accuracy of each arm on each part of a mixture, won and lost against the target."""
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("arm", overflow="fold")
    shown: dict[str, list[str]] = {}
    for part, arms in parts.items():
        table.add_column(part, justify="right", overflow="fold")
        for arm in arms:
            cell = f"{arm['accuracy']:.1%} {arm['wins']}/{arm['losses']} p {p_value(arm):.2g}"
            shown.setdefault(arm["name"], []).append(cell)
    for name, cells in shown.items():
        table.add_row(visible(name), *cells)
    console.print(table, markup=False)
    console.print(
        "p: exact McNemar test, or a test over the groups where problems come in groups.",
        soft_wrap=True,
    )
