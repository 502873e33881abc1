"""The columns of a comparison and the sentences above them, for the page and for Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cospec.evaluation.summary import is_timed_once, p_value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cospec.report.inputs import AuditResult, Cell
    from cospec.results import Json


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column: one number of every arm."""

    head: str
    show: Callable[[Json], str]
    best: Callable[[Json], float | None] | None = None
    """Value that is highest for the best arm; None if no arm is best."""
    needs: str | None = None
    """Key that some arm must have for the column to be shown."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A cell of a table."""

    text: str
    is_best: bool = False


def _interval(arm: Json, name: str, scale: float = 1.0, form: str = ".2f") -> str:
    ends = arm.get(f"{name}_ci95")
    return "" if ends is None else f" ({scale * ends[0]:{form}} to {scale * ends[1]:{form}})"


def _optional(name: str, form: str) -> Callable[[Json], str]:
    def show(arm: Json) -> str:
        value = arm.get(name)
        return "-" if value is None else f"{value:{form}}"

    return show


def _over(name: str) -> Callable[[Json], str]:
    """A speed-up with its interval; a dash for an arm with one timed turn."""

    def show(arm: Json) -> str:
        value = arm.get(f"speedup_vs_{name}")
        if value is None or is_timed_once(arm):
            return "-"
        return f"{value:.2f}x" + _interval(arm, f"speedup_vs_{name}")

    return show


def _fastest(name: str) -> Callable[[Json], float | None]:
    return lambda arm: None if is_timed_once(arm) else arm.get(f"speedup_vs_{name}")


def _rate(arm: Json) -> str:
    """Tokens per second; with repeats, their spread."""
    shown = f"{arm['tokens_per_s']:.0f}"
    repeats = (arm.get("repeats") or {}).get("tokens_per_s", [])
    return f"{shown} ({min(repeats):.0f} to {max(repeats):.0f})" if len(repeats) > 1 else shown


def _against_rival(arm: Json) -> str:
    found = arm.get("vs_rival")
    return f"{found['wins']} / {found['losses']}, {p_value(found):.2g}" if found else "-"


def _fewest(name: str) -> Callable[[Json], float | None]:
    """The least cost is best; an arm without a cost cannot be best."""
    return lambda arm: -arm[name] if arm.get(name) else None


_COLUMNS = (
    TableColumn(
        "right (95 %)",
        lambda arm: f"{arm['accuracy']:.1%}" + _interval(arm, "accuracy", 100, ".1f"),
        lambda arm: float(arm["accuracy"]),
    ),
    TableColumn("won / lost", lambda arm: f"{arm['wins']} / {arm['losses']}"),
    TableColumn("McNemar p", _optional("mcnemar_p", ".2g")),
    TableColumn("p over groups", _optional("group_p", ".2g"), needs="num_groups"),
    TableColumn("tokens/s", _rate, lambda arm: float(arm["tokens_per_s"])),
    TableColumn("over target", _over("target"), _fastest("target")),
    TableColumn("over lossless", _over("lossless"), _fastest("lossless")),
    TableColumn(
        "acceptance length",
        _optional("mean_acceptance_length", ".2f"),
        lambda arm: arm.get("mean_acceptance_length"),
    ),
    TableColumn("overrides", _optional("num_overrides", "d")),
    TableColumn(
        "forwards a token",
        _optional("target_forwards_per_token", ".3f"),
        _fewest("target_forwards_per_token"),
    ),
    TableColumn(
        "forwards a solved problem",
        _optional("target_forwards_per_solved", ".1f"),
        _fewest("target_forwards_per_solved"),
    ),
    TableColumn(
        "seconds a solved problem",
        _optional("seconds_per_solved", ".3g"),
        _fewest("seconds_per_solved"),
        needs="seconds_per_solved",
    ),
    TableColumn("won / lost, p, best rival", _against_rival, needs="vs_rival"),
    TableColumn("k", _optional("k", "d"), needs="k"),
    TableColumn("knob", lambda arm: str(arm.get("knob") or "-"), needs="knob"),
)


def columns(arms: Sequence[Json]) -> list[TableColumn]:
    """The columns that these arms fill."""
    return [c for c in _COLUMNS if c.needs is None or any(arm.get(c.needs) for arm in arms)]


def is_in_the_running(arm: Json) -> bool:
    """Return true if an arm can be the best: not the draft alone, and no ceiling."""
    return bool(arm["name"] != "draft" and arm["kind"] != "ceiling")


def entries(arms: Sequence[Json]) -> list[list[Entry]]:
    """The cells of each arm's row; those that show the best value are marked, ties included."""
    rows: list[list[Entry]] = [[] for _ in arms]
    for column in columns(arms):
        shown = [column.show(arm) for arm in arms]
        values = [
            column.best(arm) if column.best and is_in_the_running(arm) else None for arm in arms
        ]
        best = max((v for v in values if v is not None), default=None)
        heads = {s.split(" ")[0] for s, v in zip(shown, values, strict=True) if v == best}
        for row, text, value in zip(rows, shown, values, strict=True):
            row.append(Entry(text, value is not None and text.split(" ")[0] in heads))
    return rows


def frontier(arms: Sequence[Json]) -> list[int]:
    """Arms that no other one beats or equals in both accuracy and speed, from slow to fast.

    Ceilings are left out: they know the answers.
    """
    points = [
        (arm["speedup_vs_target"], arm["accuracy"], i)
        for i, arm in enumerate(arms)
        if arm["kind"] != "ceiling"
    ]
    found: list[tuple[float, float, int]] = []
    for point in sorted(points, key=lambda p: (-p[0], -p[1], p[2])):
        if not found or point[1] > found[-1][1]:
            found.append(point)
    return [i for _, _, i in reversed(found)]


def verdict(cell: Cell) -> list[str]:
    """Say in sentences what the numbers show."""
    arms = cell.arms
    names = [f"{arms[i]['name']}" for i in frontier(arms)]
    rivals = [arm for arm in arms if arm["kind"] not in ("exact", "reference", "ceiling")]
    better = [a for a in rivals if p_value(a) < 0.05 and a["wins"] > a["losses"]]
    worse = [a for a in rivals if p_value(a) < 0.05 and a["wins"] < a["losses"]]
    faster = [a for a in rivals if (a.get("speedup_vs_lossless_ci95") or [0])[0] > 1]
    speed = f" (whole interval above 1): {_listed([a['name'] for a in faster])}."
    if not any(a.get("speedup_vs_lossless_ci95") for a in rivals):
        speed = ": not told, since there were too few chunks for an interval."
    sentences = [f"On the frontier: {_listed(names)}."]
    if any(map(is_timed_once, arms)):
        sentences = [
            "On the frontier: not told. Arms had one turn each, which tells no speed-up (-); their "
            "places in the picture are rough."
        ]
    if rivals:
        sentences += [
            f"More right than the target (p < 0.05): {_listed([a['name'] for a in better])}.",
            f"Less right: {_listed([a['name'] for a in worse])}.",
            f"Faster than lossless{speed}",
        ]
    for arm in arms:
        if arm["name"] == "lossless" and "num_texts_unlike_target" in arm:
            sentences.append(
                f"Noise floor: lossless wrote {arm['num_texts_unlike_target']} of "
                f"{arm['num_problems']} texts unlike the target."
            )
    return sentences + cell.notes


def tuning_rows(cell: Cell) -> list[list[str]]:
    """Return the choice for each arm on the tune split: arm, tries, k, setting, right answers."""
    rows = []
    for entry in cell.tuning:
        one = entry["tries"][entry["chosen"]]
        right = f"{one['accuracy']:.1%}" if "accuracy" in one else "-"
        number, k, knob = len(entry["tries"]), one.get("k") or "-", one.get("knob") or "-"
        rows.append([entry["arm"], str(number), str(k), str(knob), right])
    return rows


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def audit_rows(audits: Sequence[AuditResult]) -> list[list[str]]:
    """Rows of the table of audits: a label, then one value for each audit."""

    def percent(share: Json) -> str:
        if share["share"] is None:
            return "-"
        low, high = (100 * end for end in share["ci95"])
        return f"{share['share']:.1%} ({low:.1f} to {high:.1f})"

    found = [audit.summary for audit in audits]
    oracles = [s.get("oracle_path") for s in found]
    key = "problems_right_or_one_override_away"
    return [
        ["problems", *(str(s["num_problems"]) for s in found)],
        ["path", *(str(s.get("path") or "target alone") for s in found)],
        ["path right", *(percent(s["target_accuracy"]) for s in found)],
        ["draft alone right", *(percent(s["draft_accuracy"]) for s in found)],
        ["mismatches a problem", *(f"{s['mismatches_per_problem']:.1f}" for s in found)],
        ["branches played", *(str(s["num_branches"]) for s in found)],
        *(
            [f"{name.replace('_', ' ')} right", *(percent(s["outcomes"][name]) for s in found)]
            for name in ("only_draft", "only_target", "both", "neither")
        ),
        ["right with at most one override", *(percent(s["one_step_oracle"][key]) for s in found)],
        ["oracle path right", *(percent(o["accuracy"]) if o else "not searched" for o in oracles)],
    ]
