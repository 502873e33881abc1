"""The course of a benchmark as the command line shows it: tuning, cells, and their tables."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import stdev
from typing import TYPE_CHECKING

from rich.console import Console

from cospec.cli.arms import COLUMNS, Columns, play, print_notes, print_table
from cospec.results import Json

if TYPE_CHECKING:
    from cospec.bench.entrants import Entrant
    from cospec.bench.evaluate import Evaluation
    from cospec.bench.protocol import Contest
    from cospec.bench.turns import Turn, TurnLog


def compete(contest: Contest, entrants: Sequence[Entrant], log: TurnLog | None) -> Json:
    """Tune on the tune split for every temperature, then measure every cell on the test split.

    Args:
        contest: The models, the problems, and how.
        entrants: Who takes part.
        log: Has the turns that are done already, and gets those that are played.

    Returns:
        The parts ``cells`` and ``tuning`` of a result document.
    """
    from cospec.bench.cells import measure
    from cospec.bench.tuning import best_rival, settings, tune

    told: set[str] = set()

    def player(evaluation: Evaluation, part: str, *, warm_up: bool) -> list[Turn]:
        print_notes(contest.pair, evaluation, told)
        return play(evaluation, log, part, warm_up=warm_up)

    config, cells = contest.config, []
    tuning = {t: tune(contest, entrants, t, player) for t in config.temperatures}
    for temperature, found in tuning.items():
        rival = best_rival(found, entrants)
        for size in config.batch_sizes:
            cells.append(
                measure(contest, entrants, settings(found), rival, size, temperature, player)
            )
    return {"cells": cells, "tuning": [entry for found in tuning.values() for entry in found]}


def _spread(arm: Json) -> str:
    """Standard deviation over repeats, in per cent of the mean."""
    values = arm["repeats"]["tokens_per_s"]
    return f"{stdev(values) / arm['tokens_per_s']:.0%}" if len(values) > 1 else ""


def _against_rival(arm: Json) -> str:
    found = arm["vs_rival"]
    return "" if found is None else f"{found['wins']}/{found['losses']}"


def _p_against_rival(arm: Json) -> str:
    found = arm["vs_rival"]
    return "" if found is None else f"{found['mcnemar_p']:.2g}"


_COLUMNS: Columns = {
    "\nk": lambda arm: str(arm["k"] or ""),
    **{head: show for head, show in COLUMNS.items() if head != "over-\nrides"},
    "over-\nride": lambda arm: f"{arm['override_share']:.0%}",
    "+-\nspeed": _spread,
    "rival\nw/l": _against_rival,
    "rival\np": _p_against_rival,
}


def print_cells(cells: Sequence[Json]) -> None:
    """A table a cell."""
    console = Console(soft_wrap=True, highlight=False)
    for cell in cells:
        title = f"{cell['task']}, batch {cell['batch_size']}, temperature {cell['temperature']:g}"
        if cell["best_rival"] is not None:
            title += f"; best rival on the tune split: {cell['best_rival']}"
        shown = [arm | {"name": _label(arm)} for arm in cell["arms"]]
        console.print(f"\n{title}", markup=False)
        print_table(shown, _COLUMNS)
        for each in cell["left_out"]:
            console.print(f"{each['arm']} is left out: {each['reason']}.", markup=False)
        unlike = {arm["name"]: arm["num_rows_unlike_first_repeat"] for arm in cell["arms"]}
        for name, number in unlike.items():
            if number:
                console.print(
                    f"{name} wrote {number} answers in later repeats that are not those of the "
                    "first: quality is that of the first.",
                    markup=False,
                )


def _label(arm: Json) -> str:
    """The name of an arm, with the settings that were chosen for it."""
    knob = arm["knob"]
    return arm["name"] if knob is None or knob in arm["name"] else f"{arm['name']} ({knob})"
