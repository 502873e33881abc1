"""Tables of the pages, by the name in their marker."""

from __future__ import annotations

from functools import partial
from statistics import median, stdev
from typing import TYPE_CHECKING, Any

from examples.safety import summary as safety

from cospec.evaluation.audit.costs import predicted_speedups
from cospec.evaluation.audit.summary import if_free_stood, outcome
from cospec.evaluation.stats import (
    cluster_interval,
    mcnemar_p,
    share_interval,
    sign_flip_p,
)
from cospec.models.costs import Costs
from cospec.rl.calibrate import harm_p_values, num_rejected
from experiments.equal_teaching import other_tasks
from experiments.equal_teaching import summarise as teaching
from experiments.heldout_templates import summarise as heldout
from experiments.mixed_traffic import mixed
from experiments.tables import known, left_out, rules, twins
from experiments.tables.rows import Arm, Json, arms, database_changes, parts, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _right(arm: Arm) -> str:
    low, high = arm.interval
    return f"{arm.accuracy:.1%} ({low:.1%} to {high:.1%})"


def _against(arm: Arm, other: Arm) -> str:
    won, lost = arm.against(other)
    return f"{won} / {lost}"


def _times(number: float) -> str:
    return f"{number:.2f}x"


def _over(arm: Arm, other: Arm) -> str:
    """A speed-up; a dash where each arm had one timed turn, of which nobody knows the spread."""
    return "-" if arm.num_turns == 1 else _times(arm.over(other))


def _legend(of: dict[str, Arm]) -> str:
    """Say under a table what its dashes are, where an arm had one turn."""
    if all(arm.num_turns != 1 for arm in of.values()):
        return ""
    return "\n\n-: one turn. Each arm was timed once, which tells no speed-up."


def comparison(name: str, *chosen: str) -> str:
    """Arms of an evaluation or of the demo, one row each."""
    of = arms(name)
    header = "arm,right,won / lost,McNemar p,tokens/s,over target,over lossless"
    return _table(
        [*header.split(","), "acceptance length", "overrides"],
        [
            [
                arm.name, _right(arm), _against(arm, of["target"]), f"{arm.p(of['target']):.2g}",
                f"{arm.rate:.0f}", _over(arm, of["target"]), _over(arm, of["lossless"]),
                f"{arm.acceptance_length:.2f}", str(arm.num_overrides),
            ]
            for arm in of.values()
            if not chosen or arm.name in chosen
        ],
    ) + _legend(of)  # fmt: skip


def bench(name: str, *beginnings: str) -> str:
    """Every rule at its tuned setting beside the trained arbiters, or arms that begin so."""
    of, rival = arms(name), parts(name)[0]["best_rival"]

    def setting(entry: Json) -> str:
        said = [f"k={entry['k']}"] if entry["k"] else []
        said += [entry["knob"]] if entry["knob"] else []
        return f" ({', '.join(said)})" if said else ""

    def against_rival(arm: Arm) -> str:
        if rival is None:
            return "not tuned"
        return f"{_against(arm, of[rival])}, p {arm.p(of[rival]):.2g}"

    header = "arm,right,won / lost,McNemar p,against the best rival,over target,over lossless"
    return _table(
        [*header.split(","), "forwards a token", "overrides"],
        [
            [
                f"{arm.name}{setting(arm.entry)}", _right(arm), _against(arm, of["target"]),
                f"{arm.p(of['target']):.2g}", against_rival(arm), _over(arm, of["target"]),
                _over(arm, of["lossless"]), f"{arm.forwards_per_token:.3f}",
                str(arm.num_overrides),
            ]
            for arm in of.values()
            if not beginnings or arm.name.startswith(beginnings)
        ],
    ) + _legend(of)  # fmt: skip


def speeds(name: str) -> str:
    """Speed-ups of each arm at each batch size: median and standard deviation of the repeats."""
    cells = [arms(name, i) for i in range(len(parts(name)))]
    sizes = [cell["batch_size"] for cell in parts(name)]

    def shown(cell: dict[str, Arm], arm: str, baseline: str) -> str:
        if arm not in cell:
            return "not run"
        found = cell[arm].over_by_repeat(cell[baseline])
        spread = f" ± {stdev(found):.2f}" if len(found) > 1 else ""
        return _over(cell[arm], cell[baseline]) + spread

    return _table(
        ["arm", *(label for n in sizes for label in (f"over target, batch {n}", "over lossless"))],
        [
            [arm, *(shown(cell, arm, base) for cell in cells for base in ("target", "lossless"))]
            for arm in dict.fromkeys(name for cell in cells for name in cell)
        ],
    )


def over_databases(name: str) -> str:
    """Arms on text-to-SQL against the target, whose gains have intervals over databases."""
    of = arms(name)
    target = of["lossless"]  # in float32 the target's own texts

    def gain(arm: Arm) -> tuple[str, str]:
        if arm is target:
            return "+0.0", "1"
        clusters = database_changes(name, arm, target)
        low, high = cluster_interval(clusters)
        p = sign_flip_p([change for change, _ in clusters])
        return f"{100 * arm.gain(target):+.1f} ({100 * low:.1f} to {100 * high:.1f})", f"{p:.2g}"

    def per_forward(arm: Arm) -> str:
        return f"{1 / arm.forwards_per_token:.2f}" if arm.num_target_forwards else ""

    header = "arm,right,won / lost,McNemar p,gain (interval over databases),p over databases"
    return _table(
        [*header.split(","), "tokens a target forward", "overrides"],
        [
            [
                "target" if arm is target else arm.name, _right(arm), _against(arm, target),
                f"{arm.p(target):.2g}", *gain(arm), per_forward(arm), str(arm.num_overrides),
            ]
            for arm in of.values()
        ],
    )  # fmt: skip


def variants(reference: str, *names: str) -> str:
    """Arms of the evaluations of variants, each against the target and against one of them."""
    of: dict[str, Arm] = {}
    files = [f"eval_specialist_{part}" for part in ("group", "more", "variants")]
    assert len({tuple(read(file)["ids"]) for file in files}) == 1, "they are paired by problem"
    for file in files:
        of |= {name.removesuffix(":threshold=0.5"): arm for name, arm in arms(file).items()}
    target, exact = of["target"], of["lossless"]

    def row(name: str) -> list[str]:
        arm, other = of[name], of[reference]
        against = f"{_against(arm, other)}, p {arm.p(other):.2g}" if name != reference else ""
        share = arm.num_target_forwards / exact.num_target_forwards
        won = f"{_against(arm, target)}, p {arm.p(target):.2g}"
        return [name, _right(arm), won, against, f"{share:.1%}", str(arm.num_overrides)]

    header = f"arm,right,won / lost against the target,against `{reference}`"
    return _table(
        [*header.split(","), "target forwards of lossless's", "overrides"], map(row, names)
    )


def calibration(name: str) -> str:
    """Thresholds on the tune split, and which of them the guarantee certifies."""
    of, plan = arms(name), read(name)["config"]["calibrate"]
    tried = {key.partition(":threshold=")[2]: arm for key, arm in of.items() if ":thresh" in key}
    lost = [arm.against(of["target"])[1] for arm in tried.values()]
    size = len(of["target"].bits)
    p_values = harm_p_values(lost, size, plan["epsilon"])
    num_certified = int(num_rejected(p_values, plan["delta"]))
    header = "threshold,right,won / lost,harmed,p,certified,target forwards of lossless's"
    return _table(
        header.split(","),
        [
            [
                threshold, f"{arm.accuracy:.1%}", _against(arm, of["target"]),
                f"{lost[i] / size:.1%}", f"{p_values[i]:.2g}",
                "yes" if i < num_certified else "no",
                f"{arm.num_target_forwards / of['lossless'].num_target_forwards:.1%}",
            ]
            for i, (threshold, arm) in enumerate(tried.items())
        ],
    )  # fmt: skip


def transfer(name: str) -> str:
    """Points over the target of each arm on every pair and task, with problems won and lost."""
    cells = [(part, arms(name, i)) for i, part in enumerate(parts(name))]
    names = [arm for arm in cells[0][1] if arm not in ("target", "lossless")]

    def points(won: int, lost: int, size: int) -> str:
        return f"{100 * (won - lost) / size:+.1f} ({won} / {lost}, p {mcnemar_p(won, lost):.2g})"

    rows, pooled = [], {}
    for part, of in cells:
        row = [part["pair"], part["task"], f"{of['target'].accuracy:.1%}"]
        for arm in names:
            counts = *of[arm].against(of["target"]), len(of[arm].bits)
            sums = pooled.setdefault(part["pair"], {}).setdefault(arm, [0, 0, 0])
            pooled[part["pair"]][arm] = [a + b for a, b in zip(sums, counts, strict=True)]
            row.append(points(*counts))
        rows.append(row)
    for pair, sums in pooled.items():
        rows.append([pair, "all of these", "", *(points(*sums[arm]) for arm in names)])
    return _table(["pair", "task", "target", *names], rows)


def vllm_speed(name: str) -> str:
    """Target alone, stock speculation, and the arbiter inside vLLM, by the clock if it ran."""
    part = read(name)
    rows: dict[str, list[bool]] = {}
    for row in part["rows"]:
        rows.setdefault(row["arm"], []).append(row["correct"])
    bits = {arm: "".join(str(int(one)) for one in found) for arm, found in rows.items()}
    of = {e["name"]: Arm(e, bits[e["name"]], [], 0, 0, 0) for e in part["arms"]}
    stock = of["stock"].entry["trials"]

    def over(arm: Arm, size: str) -> str:
        interval = arm.entry.get("speedup_vs_stock_ci95", {}).get(size)
        if interval is None:  # older runs; their trials are no pairs
            return _times(median(arm.entry["trials"][size]) / median(stock[size]))
        ratio = _times(arm.entry["speedup_vs_stock"][size])
        shown = f" ({interval[0]:.2f} to {interval[1]:.2f})"
        return ratio if arm.name == "stock" else ratio + shown

    def row(arm: Arm) -> list[str]:
        cells = [arm.name, _right(arm), _against(arm, of["target"]), f"{arm.p(of['target']):.2g}"]
        for size in stock:
            cells += [f"{median(arm.entry['trials'][size]):.0f}", over(arm, size)]
        length = arm.entry["mean_acceptance_length"]
        return [*cells, f"{length:.2f}", str(arm.entry.get("num_overrides", 0))]

    speeds = [cell for size in stock for cell in (f"tokens/s at {size}", "over stock")]
    header = ["arm", "right", "won / lost", "McNemar p", *speeds, "acceptance length", "overrides"]
    return _table(header, map(row, of.values()))


AUDITS = {
    "audit_family": "`bundled:family`",
    "audit_specialist": "`bundled:specialist`",
    "audit_real_gsm8k": "Qwen2.5-Coder 1.5B / 0.5B",
}


def _share(counts: Iterable[tuple[float, int]]) -> str:
    """A share with its interval over problems, from a count and a total of each."""
    counts = list(counts)
    low, high = share_interval(counts)
    share = sum(above for above, _ in counts) / sum(below for _, below in counts)
    return f"{share:.1%} ({low:.1%} to {high:.1%})"


def audits() -> str:
    """What a mismatch decides on each audited pair, and how far an arbiter could go."""
    rows: dict[str, list[str]] = {}
    for name in AUDITS:
        result = read(name)
        records = result["rows"]
        played = [[outcome(m) for m in record["mismatches"]] for record in records]
        numbers = [record["num_mismatches"] for record in records]
        num_mismatches = sum(numbers)
        away = [r["correct"] or "only_draft" in o for r, o in zip(records, played, strict=True)]
        column = {
            "problems": str(len(records)),
            "target alone right": _share((r["correct"], 1) for r in records),
            "draft alone right": _share((r["draft_correct"], 1) for r in records),
            "mismatches a problem": f"{num_mismatches / len(records):.1f}",
            "branches played": str(sum(map(len, played))),
        }
        for one in ("only_draft", "only_target", "both", "neither"):
            # Those that were played stand for all of their problem.
            counts = [
                (found.count(one) * number / max(1, len(found)), number)
                for found, number in zip(played, numbers, strict=True)
            ]
            column[f"{one.replace('_', ' ')} right"] = _share(counts)
        is_whole = sum(map(len, played)) == num_mismatches
        saved = _share((ok, 1) for ok in away)
        column["right with at most one override"] = saved if is_whole else f"at least {saved}"
        searched = all(r.get("oracle_correct") is not None for r in records)
        oracle = _share((r["oracle_correct"], 1) for r in records) if searched else "not searched"
        column["oracle path right"] = oracle
        costs = Costs(**result["costs"][0])
        paths = [record["accepted"] for record in records]
        free = if_free_stood(records)
        for label, chosen in (("exact", paths), ("if all free tokens stood", free)):
            best: dict[str, Any] = max(
                predicted_speedups(costs, chosen), key=lambda found: found["speedup"]
            )
            column[f"predicted speed-up, {label}"] = f"{best['speedup']:.2f}x (k = {best['k']})"
        for label, cell in column.items():
            rows.setdefault(label, []).append(cell)
    return _table(["", *AUDITS.values()], ([label, *cells] for label, cells in rows.items()))


CONTROLS = (
    *("target", "draft", "lossless", *(f"specialist-k16-seed{seed}" for seed in range(3)), "all"),
    *(f"specialist-k16-{method}" for method in ("gold", "reinforce", "autojudge")),
    *("cosd:alpha=0.9,beta=0.5", "cascade_chow:alpha=0.2", "ensemble:draft_weight=0.4"),
    "random:rate=0.4",
)
CHANGES = (
    *("all", "linear", "no-lookahead", "confidence-only", "lambda-1"),
    *("specialist-k16-group", "specialist-k16-hidden0", "specialist-k16-hidden1"),
)
CURVE = ("branches-1000", "branches-4000", "all")
FRONTIER = (
    *("all:threshold=0.8", "all", "all:threshold=0.3", "all:threshold=0.1", "lambda-1"),
    *("cosd:alpha=0.9,beta=0.5", "ensemble:draft_weight=0.4", "gap:max_gap=4"),
)
COMPARISONS = (
    *("demo", "eval_family", "eval_family_batch16", "eval_family_corrected", "eval_specialist"),
    *("eval_specialist_batch16", "eval_specialist_corrected", "eval_real_gsm8k"),
    *("eval_real_gsm8k_660", "eval_real_gsm8k_mlp", "eval_real_logic"),
    "eval_whole_answers",
    *("guard_family", "guard_specialist", "eval_family_hidden", "eval_specialist_hidden"),
)
BENCHES = (
    *("bench_family", "bench_family_sampled", "bench_family_sampled_trained", "bench_real_gsm8k"),
    *("bench_specialist", "bench_specialist_sampled", "bench_specialist_sampled_trained"),
)
SHORT = (
    *("target", "draft", "lossless", "cascade_diff", "cosd", "ensemble", "gap", "random", "oracle"),
    *("family", "specialist"),
)
SPEEDS = (
    *("speed_family", "speed_specialist", "speed_family_corrected", "speed_specialist_corrected"),
    *("speed_family_hidden", "speed_specialist_hidden"),
    *("speed_all_family", "speed_all_specialist"),
)
DATABASES = (
    *("sql_test", "test_agreement", "test_kept_draft"),
    *("test_known", "test_second_draft", "test_mean_draft", "test_three_passes"),
    *("test_tuned_target", "test_shown_target", "test_both_tuned"),
    *("test_own_prompts", "test_own_arbiter", "test_best_pair"),
    *("test_rotated", "test_rotated_own", "test_nearest", "test_turns", "test_target_turns"),
)
BLOCKS: dict[str, Callable[[], str]] = {
    **{name: partial(comparison, name) for name in COMPARISONS},
    **{name: partial(bench, name) for name in BENCHES},
    **{name: partial(speeds, name) for name in SPEEDS},
    **{name: partial(transfer, name) for name in ("five_tasks", "guard_tasks", "transfer")},
    **{f"heldout_{pair}": partial(heldout.table, pair) for pair in ("family", "specialist")},
    "heldout_family_contest": partial(heldout.contest, "family"),
    "heldout_specialist_contest": partial(heldout.contest, "specialist"),
    **{
        f"short_{name}": partial(bench, name, *SHORT)
        for name in ("bench_family", "bench_specialist")
    },
    **{name: partial(over_databases, name) for name in DATABASES},
    "rules_bundled": partial(rules.table, rules.BUNDLED, rules.SEEDS),
    "rules_real": partial(rules.table, rules.REAL, (rules.TRAINED,)),
    "rules_unmeasured": rules.unmeasured,
    "audits": audits,
    "equal_teaching": teaching.table,
    "equal_teaching_twins": teaching.twins,
    "other_tasks": other_tasks.table,
    "mixed_traffic": mixed.table,
    "mixture_taught": mixed.mixture_table,
    "known_pairs": known.table,
    **{name: partial(left_out.table, name) for name in ("left_out_logic", "left_out_rotated")},
    "calibration": partial(calibration, "calibrate_specialist"),
    "safety_real": lambda: safety.table(read("safety_real")),
    "safety_real_prefix16": lambda: safety.table(read("safety_real_prefix16")),
    "twins": twins.table,
    "twins_family": partial(twins.table, ("family",)),
    "twins_specialist": partial(twins.table, ("specialist",)),
    "variants_changes": partial(variants, "all", *CHANGES),
    "variants_controls": partial(variants, "all", *CONTROLS),
    "variants_curve": partial(variants, "all", *CURVE),
    "variants_frontier": partial(variants, "all", *FRONTIER),
    "vllm_fly": partial(vllm_speed, "vllm_fly"),
    "vllm_guesses_eight": partial(vllm_speed, "vllm_guesses_eight"),
    "vllm_guesses_specialist": partial(vllm_speed, "vllm_guesses_specialist"),
    "vllm_speed": partial(vllm_speed, "vllm_speed_specialist"),
}
