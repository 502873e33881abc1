"""The course of a benchmark as the command line shows it: tuning, cells, and their tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median, stdev
from typing import TYPE_CHECKING

from rich.console import Console

from cospec.cli.common.play import play, print_notes
from cospec.cli.views.arms import COLUMNS, Columns, over_groups, print_table
from cospec.evaluation.summary import LOSSLESS, is_timed_once, p_value
from cospec.results import Json
from cospec.text import visible

if TYPE_CHECKING:
    from cospec.evaluation.benchmark.arms import ArmSpec
    from cospec.evaluation.benchmark.config import Benchmark
    from cospec.evaluation.evaluate import Evaluation
    from cospec.evaluation.turns import Turn, TurnLog


def run_benchmark(benchmark: Benchmark, specs: Sequence[ArmSpec], log: TurnLog | None) -> Json:
    """Tune on the tune split for every temperature, then measure every cell on the test split.

    Returns:
        The parts ``cells`` and ``tuning`` of a result document.
    """
    from cospec.evaluation.benchmark import ceiling
    from cospec.evaluation.benchmark.cells import measure
    from cospec.evaluation.benchmark.names import ORACLE
    from cospec.evaluation.benchmark.tuning import best_rival, settings, tune
    from cospec.evaluation.problems import encode_problems

    told: set[str] = set()
    for problems in (benchmark.tune, benchmark.test):
        # A prompt that is too long is refused before anything is played.
        encode_problems(benchmark.pair, benchmark.task, problems, benchmark.config.max_new_tokens)

    def player(evaluation: Evaluation, part: str, *, warm_up: bool) -> list[Turn]:
        print_notes(benchmark.pair, evaluation, told)
        return play(evaluation, log, part, warm_up=warm_up)

    config, cells = benchmark.config, []
    wants_oracle = ORACLE in [spec.name for spec in specs]
    tuning = {t: tune(benchmark, specs, t, player) for t in config.temperatures}
    for temperature, found in tuning.items():
        rival, chosen = best_rival(found, specs), settings(found)
        k = chosen[LOSSLESS].k
        oracle = ceiling.search(benchmark, k, player) if wants_oracle and temperature == 0 else []
        for size in config.batch_sizes:
            cell = measure(benchmark, specs, chosen, rival, size, temperature, player)
            cells.append(ceiling.add(cell, oracle, k) if oracle else cell)
    return {"cells": cells, "tuning": [entry for found in tuning.values() for entry in found]}


def _spread(arm: Json) -> str:
    """Standard deviation of the repeats' speed-ups over the target, in per cent of their median."""
    values = arm["repeats"]["speedup_vs_target"]
    return f"{stdev(values) / median(values):.0%}" if len(values) > 1 else ""


def _of_bound(arm: Json) -> str:
    """Speed-up over the target as a share of what the forwards of both models allow."""
    bound = arm["speedup_bound"]
    return "" if bound is None or is_timed_once(arm) else f"{arm['speedup_vs_target'] / bound:.0%}"


def _against_rival(form: str) -> Callable[[Json], str]:
    return lambda arm: "" if arm["vs_rival"] is None else form.format(**arm["vs_rival"])


def _solved(key: str, form: str) -> Callable[[Json], str]:
    return lambda arm: "" if arm[key] is None else format(arm[key], form)


_WIDTH = 140
"""Width of a table that goes to a file."""
_COLUMNS: Columns = {
    "\nk": lambda arm: str(arm["k"] or ""),
    **{
        head: show
        for head, show in COLUMNS.items()
        if head not in ("over-\nrides", "forw.\na token")
    },
    "forw.\nsolved": _solved("target_forwards_per_solved", ".0f"),
    "s per\nsolved": _solved("seconds_per_solved", ".2g"),
    "over-\nride": lambda arm: f"{arm['override_share']:.0%}",
    "+-\nspeed": _spread,
    "of\nbound": _of_bound,
    "rival\nw/l": _against_rival("{wins}/{losses}"),
    "rival\np": lambda arm: "" if arm["vs_rival"] is None else f"{p_value(arm['vs_rival']):.2g}",
}


def print_cells(cells: Sequence[Json]) -> None:
    """Print one table for each cell."""
    console = Console(soft_wrap=True, highlight=False)
    for cell in cells:
        title = f"{cell['task']}, batch {cell['batch_size']}, temperature {cell['temperature']:g}"
        if cell["best_rival"] is not None:
            title += f"; best rival on the tune split: {cell['best_rival']}"
        shown = [arm | {"name": _label(arm)} for arm in cell["arms"]]
        console.print(f"\n{title}", markup=False)
        print_table(shown, _COLUMNS, _WIDTH)
        if any("num_groups" in arm for arm in cell["arms"]):
            console.print("rival p: a test over the groups that problems come in.")
        for arm in cell["arms"]:
            if "num_groups" in arm and arm["arbiter"] is not None and arm["name"] != LOSSLESS:
                console.print(f"{visible(arm['name'])}: {over_groups(arm)}", markup=False)
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
    knob = "knows the answers; speed estimated" if arm["kind"] == "ceiling" else arm["knob"]
    return arm["name"] if knob is None or knob in arm["name"] else f"{arm['name']} ({knob})"
