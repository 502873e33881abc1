"""Acceptance rules side by side, on every pair and task on which one was measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from cospec.arbiters import RULES
from cospec.evaluation.stats import mcnemar_p, sign_flip_p
from experiments.tables import twins
from experiments.tables.rows import Arm, Json, arms, read

TRAINED = "trained arbiter"
SEEDS = tuple(f"{TRAINED}, seed {seed}" for seed in range(3))
_NO_SETTING = ("draft", "lossless", "always_draft")


@dataclass(frozen=True)
class Column:
    """A result file, and which of its arms is which row."""

    head: str
    file: str
    named: dict[str, str] = field(default_factory=dict)
    """By row, the arm's name up to its settings, where that is not the row's."""
    tuned: tuple[str, ...] = ()
    """Rows with chosen settings; the files of `cospec bench` tell it themselves."""


def _bundled(pair: str) -> tuple[Column, ...]:
    seeds = {row: f"{pair}-corrected-seed{i}" for i, row in enumerate(SEEDS)}
    folds = {row: f"fold-seed{i}-n4000" for i, row in enumerate(SEEDS)}
    rule = ("cascade_diff",)  # its alpha is that of the first column
    return (
        Column(pair, f"bench_{pair}", seeds),
        Column(f"{pair}, more problems", f"eval_{pair}_batch16", seeds, rule),
        Column(
            f"{pair}, new templates",
            f"heldout_templates_{pair}",
            {"cascade_diff": "rule", **folds},
            rule,
        ),
        Column(f"{pair}, temperature 1", f"bench_{pair}_sampled", seeds),
    )


def _sql(head: str, file: str, trained: str = "policy") -> Column:
    named = {"draft": "draft_only", TRAINED: trained}
    return Column(f"SQL, {head}", file, named, ("agreement", "chow_average", "cascade_diff", "gap"))


BUNDLED = (*_bundled("family"), *_bundled("specialist"))
REAL = (
    _sql("known databases, best draft", "test_best_pair", "then_lossless"),
    _sql("known databases, first draft", "test_known"),
    _sql("known databases, tuned target", "test_both_tuned"),
    _sql("known databases, shown target", "test_own_arbiter", "own_arbiter"),
    _sql("known databases, shown target, other questions", "test_rotated", "published"),
    _sql("new databases", "test_kept_draft"),
    _sql("new databases, earlier draft", "test_agreement"),
    Column("GSM8K", "bench_real_gsm8k"),
    Column("GSM8K, other problems", "eval_real_gsm8k"),
    Column("GSM8K, more problems", "eval_real_gsm8k_660", {TRAINED: "real-gsm8k"}, (TRAINED,)),
    Column("logic", "eval_real_logic", {TRAINED: "real-logic"}),
    Column("logic, whole answers", "eval_whole_answers", {TRAINED: "arbiter"}, ("gap",)),
)


@dataclass(frozen=True)
class Cell:
    """An arm, the target on the same problems, and the group of each problem."""

    arm: Arm
    target: Arm
    groups: list[str] | None

    @property
    def p(self) -> float:
        """Sign-flip test over the groups, or McNemar's where there are none."""
        if self.groups is None:
            return mcnemar_p(*self.arm.against(self.target))
        sums = dict.fromkeys(self.groups, 0)
        for group, ours, theirs in zip(self.groups, self.arm.bits, self.target.bits, strict=True):
            sums[group] += int(ours) - int(theirs)
        return sign_flip_p(list(sums.values()))

    @property
    def was_run(self) -> bool:
        """False for a target that stands in a file as ``lossless``, without its blocks."""
        forwards = self.arm.num_target_forwards
        return self.arm is not self.target or 0 < forwards < self.arm.num_tokens


@cache
def _cells(file: str) -> dict[str, Cell]:
    """By name up to its settings, each arm of a file."""
    if file.startswith("heldout_"):
        return _held_out(read(file))
    of, groups = arms(file), read(file).get("databases")
    if file in (part["evaluation"] for part in twins.found()["pairs"].values()):
        groups = twins.marks(file)["templates"]
    target = of.get("target", of["lossless"])  # in float32 these are the target's texts
    return {name.partition(":")[0]: Cell(arm, target, groups) for name, arm in of.items()}


def _held_out(result: Json) -> dict[str, Cell]:
    """Arms on templates that they never saw; some were tested on a part."""
    base, found = result["arms"]["lossless"], {}

    def arm(entry: Json, picked: list[int]) -> Arm:
        bits, tokens, forwards = (
            [entry[key][i] for i in picked]
            for key in ("correct", "num_tokens", "num_target_forwards")
        )
        return Arm(entry, "".join(bits), [[(0.0, sum(tokens))]], sum(forwards), 0, 0)

    for name, entry in result["arms"].items():
        places = [base["tested"].index(place) for place in entry["tested"]]
        groups = [template for i in places for template in result["templates"][i]]
        target = arm(base, places)
        ours = target if entry is base else arm(entry, list(range(len(places))))
        found[name] = Cell(ours, target, groups)
    return found


def _setting(column: Column, row: str, name: str) -> str:
    """How its settings came about."""
    if row in _NO_SETTING:
        return ""
    if row == "random":
        return "matched"
    is_tuned = row in column.tuned
    if column.file.startswith("bench_"):
        (tries,) = (one["tries"] for one in read(column.file)["tuning"] if one["arm"] == name)
        is_tuned = len(tries) > 1
    return "tuned" if is_tuned else "default"


def _shown(column: Column, row: str, cells: dict[str, Cell]) -> str:
    """Points over the target, won and lost, p; the setting and target forwards a token."""
    name = column.named.get(row, row)
    cell = cells.get(name)
    if cell is None or not cell.was_run:
        return "-"
    arm, (won, lost) = cell.arm, cell.arm.against(cell.target)
    part = f" of {len(arm.bits)}" if len(arm.bits) < len(cells["lossless"].arm.bits) else ""
    more = [_setting(column, row, name)]
    more += [f"{arm.forwards_per_token:.3f}"] if row != "draft" and arm.num_target_forwards else []
    points = f"{100 * arm.gain(cell.target):+.1f} ({won} / {lost}{part}, p {cell.p:.2g})"
    return "<br>".join(filter(None, [points, ", ".join(filter(None, more))]))


def _unit(groups: list[str] | None, name: str) -> str:
    return f"{len(set(groups))} {name}" if groups else "problems"


def table(columns: tuple[Column, ...], trained: tuple[str, ...]) -> str:
    """Each rule, the draft, lossless and trained arbiters against the target, by column."""
    found = [_cells(column.file) for column in columns]
    targets = [cells["lossless"].target for cells in found]
    groups = [cells["lossless"].groups for cells in found]
    units = ["databases" if "databases" in read(c.file) else "templates" for c in columns]
    lines = [
        ["", *(column.head for column in columns)],
        ["---"] * (1 + len(columns)),
        ["file", *(f"`{column.file}`" for column in columns)],
        ["target right", *(f"{one.accuracy:.1%} of {len(one.bits):,}" for one in targets)],
        ["p over", *(_unit(one, unit) for one, unit in zip(groups, units, strict=True))],
    ]
    for row in dict.fromkeys(("draft", "lossless", *RULES, *trained)):
        label = f"`{row}`" if row in RULES else row
        cells = (_shown(c, row, of) for c, of in zip(columns, found, strict=True))
        lines.append([label, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def unmeasured() -> str:
    """A sentence about the rules that no column has."""
    found = [(column.named, _cells(column.file)) for column in (*BUNDLED, *REAL)]
    names = [
        f"`{row}`"
        for row in RULES
        if not any(named.get(row, row) in cells for named, cells in found)
    ]
    return f"Rules without any number: {', '.join(names) or 'none'}."
