"""Fill the figures of the pages from the result files; ``--check`` fails when they differ.

A block between ``<!-- results: NAME -->`` and ``<!-- end -->`` is replaced by what the function of
that name makes of result files in ``experiments/*/``. CI runs the check as a test.
"""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from pathlib import Path
from statistics import pstdev
from typing import Any

from cospec.evaluation.audit.costs import Costs, predicted_speedups
from cospec.evaluation.audit.summary import if_free_stood
from cospec.evaluation.stats import cluster_interval, mcnemar_p
from cospec.results import read_document

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted(p.parent.name for p in (ROOT / "experiments").glob("*/README.md"))
PAGES = (
    *("README.md", "docs/numbers.md", "docs/safety.md", "docs/vllm.md"),
    *(f"experiments/{name}/README.md" for name in EXPERIMENTS),
)

sys.path.insert(0, str(ROOT))
from examples.safety import summary  # noqa: E402  # a script of the repository

from experiments.heldout_templates import summarise as heldout  # noqa: E402


def _read(name: str) -> dict[str, Any]:
    (path,) = (ROOT / "experiments").glob(f"*/{name}.json*")
    return read_document(path)


def _percent(share: dict[str, Any]) -> str:
    low, high = share["ci95"]
    return f"{share['share']:.1%} ({low:.1%} to {high:.1%})"


def audits() -> str:
    """What a mismatch decides on each audited pair, and how far an arbiter could go."""
    names = {
        "audit_family": "`bundled:family`",
        "audit_specialist": "`bundled:specialist`",
        "audit_real_gsm8k": "Qwen2.5-Coder 1.5B / 0.5B",
    }
    results = [_read(name) for name in names]
    lines = [
        "| |" + "".join(f" {title} |" for title in names.values()),
        "| --- |" + " --- |" * len(names),
    ]

    def row(label: str, values: list[str]) -> None:
        lines.append(f"| {label} |" + "".join(f" {value} |" for value in values))

    found = [result["summary"] for result in results]
    row("problems", [str(s["num_problems"]) for s in found])
    row("target alone right", [_percent(s["target_accuracy"]) for s in found])
    row("draft alone right", [_percent(s["draft_accuracy"]) for s in found])
    row("mismatches a problem", [f"{s['mismatches_per_problem']:.1f}" for s in found])
    row("branches played", [str(s["num_branches"]) for s in found])
    for name in ("only_draft", "only_target", "both", "neither"):
        row(name.replace("_", " ") + " right", [_percent(s["outcomes"][name]) for s in found])
    key = "problems_right_or_one_override_away"
    row("right with at most one override", [_percent(s["one_step_oracle"][key]) for s in found])
    oracles = [s.get("oracle_path") for s in found]
    row("oracle path right", [_percent(o["accuracy"]) if o else "not searched" for o in oracles])
    exact = [[record["accepted"] for record in result["rows"]] for result in results]
    free = [if_free_stood(result["rows"]) for result in results]
    costs = [Costs(**result["costs"][0]) for result in results]
    for label, paths in (("exact", exact), ("if all free tokens stood", free)):
        by_k = [predicted_speedups(*both) for both in zip(costs, paths, strict=True)]
        best = [max(rows, key=lambda one: one["speedup"]) for rows in by_k]
        row(
            f"predicted speed-up, {label}",
            [f"{found['speedup']:.2f}x (k = {found['k']})" for found in best],
        )
    return "\n".join(lines)


def _over(arms: list[dict[str, Any]], arm: dict[str, Any], baseline: str) -> str:
    """Tokens a second over those of a baseline."""
    theirs = next(one for one in arms if one["name"] == baseline)
    return f"{arm['tokens_per_s'] / theirs['tokens_per_s']:.2f}x"


def comparison(name: str) -> str:
    """The arms of an evaluation or of the demo, one row each."""
    lines = [
        "| arm | right | won / lost | McNemar p | tokens/s | over target | over lossless "
        "| acceptance length | overrides |",
        "| --- |" + " --- |" * 8,
    ]
    arms = _read(name)["arms"]
    for arm in arms:
        low, high = arm["accuracy_ci95"]
        lines.append(
            f"| {arm['name']} | {arm['accuracy']:.1%} ({low:.1%} to {high:.1%}) "
            f"| {arm['wins']} / {arm['losses']} | {arm['mcnemar_p']:.2g} "
            f"| {arm['tokens_per_s']:.0f} | {_over(arms, arm, 'target')} "
            f"| {_over(arms, arm, 'lossless')} | {arm['mean_acceptance_length']:.2f} "
            f"| {arm['num_overrides']} |"
        )
    return "\n".join(lines)


def twins() -> str:
    """Gains of the trained arbiters with and without twins among the solved train problems."""
    lines = ["| pair | arm | all | with a twin | without |", "| --- |" + " --- |" * 4]
    found = json.loads((ROOT / "experiments/twins/result.json").read_text(encoding="utf-8"))
    for pair, part in found["pairs"].items():
        bits = {row["arm"]: row["correct"] for row in _read(part["evaluation"])["rows"]}
        for arm, ours in bits.items():
            if arm in ("target", "lossless"):
                continue
            delta = [int(a) - int(b) for a, b in zip(ours, bits["target"], strict=True)]
            groups = ("01", "1", "0")
            cells = [_by_template(delta, part["templates"], part["twins"], g) for g in groups]
            lines.append(f"| {pair} | {arm.partition(':')[0]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _by_template(delta: list[int], templates: list[int], twins: str, group: str) -> str:
    """Points won on the problems of a group, with an interval drawn over templates."""
    chosen = [
        (change, template)
        for change, template, twin in zip(delta, templates, twins, strict=True)
        if twin in group
    ]
    sums: dict[int, list[int]] = {}
    for change, template in chosen:
        total = sums.setdefault(template, [0, 0])
        total[0] += change
        total[1] += 1
    low, high = cluster_interval([(change, size) for change, size in sums.values()])
    changes = [change for change, _ in chosen]
    points = 100 * sum(changes) / len(changes)
    won, lost = changes.count(1), changes.count(-1)
    return f"{points:+.1f} ({won} / {lost}; {100 * low:.1f} to {100 * high:.1f})"


def bench(name: str) -> str:
    """Every rule at its tuned setting beside the trained arbiters."""
    (cell,) = _read(name)["cells"]
    lines = [
        "| arm | right | won / lost | McNemar p | against the best rival | over target "
        "| over lossless | forwards a token | overrides |",
        "| --- |" + " --- |" * 8,
    ]
    for arm in cell["arms"]:
        low, high = arm["accuracy_ci95"]
        said = [f"k={arm['k']}"] if arm["k"] else []
        said += [arm["knob"]] if arm["knob"] else []
        setting = f" ({', '.join(said)})" if said else ""
        rival = arm["vs_rival"]
        against = "not tuned"
        if rival is not None:
            against = f"{rival['wins']} / {rival['losses']}, p {rival['mcnemar_p']:.2g}"
        lines.append(
            f"| {arm['name']}{setting} "
            f"| {arm['accuracy']:.1%} ({low:.1%} to {high:.1%}) | {arm['wins']} / {arm['losses']} "
            f"| {arm['mcnemar_p']:.2g} | {against} | {_over(cell['arms'], arm, 'target')} "
            f"| {_over(cell['arms'], arm, 'lossless')} | {arm['target_forwards_per_token']:.3f} "
            f"| {arm['num_overrides']} |"
        )
    return "\n".join(lines)


def speeds(name: str) -> str:
    """Speed-ups of each arm at each batch size of a benchmark, mean of the repeats and spread."""
    cells = _read(name)["cells"]
    sizes = [cell["batch_size"] for cell in cells]
    lines = [
        "| arm |" + "".join(f" over target, batch {n} | over lossless |" for n in sizes),
        "| --- |" + " --- | --- |" * len(sizes),
    ]
    for entrant in dict.fromkeys(arm["name"] for cell in cells for arm in cell["arms"]):
        line = f"| {entrant} |"
        for cell in cells:
            arm = next((arm for arm in cell["arms"] if arm["name"] == entrant), None)
            for baseline in ("target", "lossless"):
                theirs = next(arm for arm in cell["arms"] if arm["name"] == baseline)
                shown = "not run"
                if arm:
                    rates = (one["repeats"]["tokens_per_s"] for one in (arm, theirs))
                    spread = pstdev(ours / base for ours, base in zip(*rates, strict=True))
                    shown = f"{_over(cell['arms'], arm, baseline)} ± {spread:.2f}"
                line += f" {shown} |"
        lines.append(line)
    return "\n".join(lines)


def solution_learning() -> str:
    """Hidden features by what they tell of decisions of solutions that were held out."""
    result = _read("solution_learning_specialist")
    seen: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        seen.setdefault(row["seen"], []).append(row)
    lines = [
        f"| the policy sees beside the scalars | decisions learnt from | net, of "
        f"{result['num_draft_right']} | right |",
        "| --- |" + " --- |" * 3,
    ]
    for name, rows in seen.items():
        nets = ", ".join(str(row["net"]) for row in rows)
        right = sum(row["right"] for row in rows) / len(rows)
        beside = "nothing" if name == "scalars" else name
        lines.append(f"| {beside} | {rows[0]['num_decisions']} | {nets} | {right:.1%} |")
    return "\n".join(lines)


def round_learning(name: str) -> str:
    """What updates on branches of some rounds make of those of others, by what learns."""
    result = _read(name)
    lines = [
        f"| learns | price of time | divergence | net, of {result['oracle_net']} | "
        "target forwards | net over not learning, at as many forwards |",
        "| --- |" + " --- |" * 5,
    ]
    for row in result["rows"]:
        if row["threshold"] != 0.5:
            continue
        prices = (f"{row[key]:g}" if key in row else "" for key in ("cost_weight", "kl_weight"))
        over = f"{row['over_start']:+d} ± {row['over_start_se']:.0f}"
        over = "" if row["learns"] == "nothing" else over
        shown = row["learns"], *prices, str(row["net"]), f"{row['cost']:+.1%}", over
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def oracle_agreement() -> str:
    """How near the trained arbiters come to the oracle."""
    result = _read("oracle_agreement_specialist")
    lines = [
        "| arm | rules as the oracle where branches differ | points won | of the oracle's gain |",
        "| --- | --- | --- | --- |",
        f"| always the target | {_percent(result['summary']['always_target'])} | 0 | 0 |",
    ]
    for row in result["rows"]:
        shares = (_percent(row[key]) for key in ("agreement", "gain", "captured"))
        lines.append(f"| {row['arm']} | {' | '.join(shares)} |")
    return "\n".join(lines)


def variants(reference: str, names: tuple[str, ...]) -> str:
    """Arms of the slim evaluation of variants, each against the target and against one of them."""
    right, arms = {}, {}
    results = [_read(f"eval_specialist_{part}") for part in ("group", "more", "variants")]
    for result in results:
        assert result["ids"] == results[0]["ids"], "they are paired by problem"
        for row, arm in zip(result["rows"], result["arms"], strict=True):
            name = arm["name"].removesuffix(":threshold=0.5")
            right[name], arms[name] = row["correct"], arm
    lossless = arms["lossless"]["num_target_forwards"]
    lines = [
        f"| arm | right | won / lost against the target | against `{reference}` "
        "| target forwards of lossless's | overrides |",
        "| --- |" + " --- |" * 5,
    ]
    for name in names:
        arm = arms[name]
        low, high = arm["accuracy_ci95"]
        pairs = list(zip(right[name], right[reference], strict=True))
        won, lost = pairs.count(("1", "0")), pairs.count(("0", "1"))
        against = f"{won} / {lost}, p {mcnemar_p(won, lost):.2g}" if name != reference else ""
        lines.append(
            f"| {name} | {arm['accuracy']:.1%} ({low:.1%} to {high:.1%}) "
            f"| {arm['wins']} / {arm['losses']}, p {arm['mcnemar_p']:.2g} | {against} "
            f"| {arm['num_target_forwards'] / lossless:.1%} | {arm['num_overrides']} |"
        )
    return "\n".join(lines)


def calibration() -> str:
    """Thresholds on the tune split, and which of them the guarantee certifies."""
    result = _read("calibrate_specialist")
    tests = {test["threshold"]: test for test in result["calibration"]["tests"]}
    lossless = next(a for a in result["arms"] if a["name"] == "lossless")["num_target_forwards"]
    lines = [
        "| threshold | right | won / lost | harmed | p | certified "
        "| target forwards of lossless's |",
        "| --- |" + " --- |" * 6,
    ]
    for arm in result["arms"]:
        threshold = arm["name"].partition(":threshold=")[2]
        if not threshold:
            continue
        test = tests[float(threshold)]
        lines.append(
            f"| {threshold} | {arm['accuracy']:.1%} | {arm['wins']} / {arm['losses']} "
            f"| {arm['losses'] / arm['num_problems']:.1%} | {test['p_value']:.2g} "
            f"| {'yes' if test['is_certified'] else 'no'} "
            f"| {arm['num_target_forwards'] / lossless:.1%} |"
        )
    return "\n".join(lines)


def transfer(file: str) -> str:
    """Points over the target of each arm on every pair and task, with problems won and lost."""
    cells = _read(file)["cells"]
    names = [arm["name"] for arm in cells[0]["arms"] if arm["name"] not in ("target", "lossless")]
    lines = [
        "| pair | task | target |" + "".join(f" {name} |" for name in names),
        "| --- | --- | --- |" + " --- |" * len(names),
    ]
    for cell in cells:
        arms = {arm["name"]: arm for arm in cell["arms"]}
        line = f"| {cell['pair']} | {cell['task']} | {arms['target']['accuracy']:.1%} |"
        for arm in map(arms.__getitem__, names):
            line += f" {100 * arm['accuracy_delta']:+.1f} ({arm['wins']} / {arm['losses']}"
            line += f", p {arm['mcnemar_p']:.2g}) |"
        lines.append(line)
    for pair in dict.fromkeys(cell["pair"] for cell in cells):
        arms = [arm for cell in cells if cell["pair"] == pair for arm in cell["arms"]]
        lines.append(
            f"| {pair} | all of these | |" + "".join(_pooled(arms, name) for name in names)
        )
    return "\n".join(lines)


def _pooled(arms: list[dict[str, Any]], name: str) -> str:
    """Problems won and lost by one arm in all cells together."""
    found = [arm for arm in arms if arm["name"] == name]
    won, lost = (sum(arm[key] for arm in found) for key in ("wins", "losses"))
    points = 100 * (won - lost) / sum(arm["num_problems"] for arm in found)
    return f" {points:+.1f} ({won} / {lost}, p {mcnemar_p(won, lost):.2g}) |"


def vllm_speed() -> str:
    """Target alone, stock speculation, and the arbiter inside vLLM."""
    lines = [
        "| arm | right | won / lost | McNemar p | tokens/s at 1 | over stock | tokens/s at 8 "
        "| over stock | acceptance length | overrides |",
        "| --- |" + " --- |" * 9,
    ]
    for arm in _read("vllm_speed_specialist")["arms"]:
        low, high = arm["accuracy_ci95"]
        speeds = (
            f"{arm['tokens_per_s'][n]:.0f} | {arm['speedup_vs_stock'][n]:.2f}x" for n in ("1", "8")
        )
        lines.append(
            f"| {arm['name']} | {arm['accuracy']:.1%} ({low:.1%} to {high:.1%}) "
            f"| {arm['wins']} / {arm['losses']} | {arm['mcnemar_p']:.2g} | {' | '.join(speeds)} "
            f"| {arm['mean_acceptance_length']:.2f} | {arm.get('num_overrides', 0)} |"
        )
    return "\n".join(lines)


def safety_real() -> str:
    """Refusals and format on the real pair, no token held to the target."""
    return summary.table(_read("safety_real"))


def safety_real_prefix16() -> str:
    """The same with the first 16 tokens held."""
    return summary.table(_read("safety_real_prefix16"))


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

BLOCKS = {
    "audits": audits,
    "bench_family": partial(bench, "bench_family"),
    "bench_family_sampled": partial(bench, "bench_family_sampled"),
    "bench_family_sampled_trained": partial(bench, "bench_family_sampled_trained"),
    "bench_real": partial(bench, "bench_real_gsm8k"),
    "bench_specialist": partial(bench, "bench_specialist"),
    "bench_specialist_sampled": partial(bench, "bench_specialist_sampled"),
    "bench_specialist_sampled_trained": partial(bench, "bench_specialist_sampled_trained"),
    "calibration": calibration,
    "demo": partial(comparison, "demo"),
    "eval_family": partial(comparison, "eval_family"),
    "eval_family_batch16": partial(comparison, "eval_family_batch16"),
    "eval_specialist_batch16": partial(comparison, "eval_specialist_batch16"),
    "eval_real": partial(comparison, "eval_real_gsm8k"),
    "eval_real_660": partial(comparison, "eval_real_gsm8k_660"),
    "eval_real_mlp": partial(comparison, "eval_real_gsm8k_mlp"),
    "eval_real_logic": partial(comparison, "eval_real_logic"),
    "eval_family_corrected": partial(comparison, "eval_family_corrected"),
    "eval_specialist_corrected": partial(comparison, "eval_specialist_corrected"),
    "round_learning_family": partial(round_learning, "round_learning_family"),
    "round_learning_specialist": partial(round_learning, "round_learning_specialist"),
    "speed_family_corrected": partial(speeds, "speed_family_corrected"),
    "speed_specialist_corrected": partial(speeds, "speed_specialist_corrected"),
    "eval_family_hidden": partial(comparison, "eval_family_hidden"),
    "eval_specialist": partial(comparison, "eval_specialist"),
    "eval_specialist_hidden": partial(comparison, "eval_specialist_hidden"),
    "five_tasks": partial(transfer, "five_tasks"),
    "guard_family": partial(comparison, "guard_family"),
    "guard_specialist": partial(comparison, "guard_specialist"),
    "guard_tasks": partial(transfer, "guard_tasks"),
    "heldout_family": partial(heldout.table, "family"),
    "heldout_family_contest": partial(heldout.contest, "family"),
    "heldout_specialist": partial(heldout.table, "specialist"),
    "heldout_specialist_contest": partial(heldout.contest, "specialist"),
    "oracle_agreement": oracle_agreement,
    "safety_real": safety_real,
    "safety_real_prefix16": safety_real_prefix16,
    "speed_all_family": partial(speeds, "speed_all_family"),
    "speed_all_specialist": partial(speeds, "speed_all_specialist"),
    "speed_family": partial(speeds, "speed_family"),
    "solution_learning": solution_learning,
    "speed_family_hidden": partial(speeds, "speed_family_hidden"),
    "speed_specialist_hidden": partial(speeds, "speed_specialist_hidden"),
    "speed_specialist": partial(speeds, "speed_specialist"),
    "transfer": partial(transfer, "transfer"),
    "twins": twins,
    "variants_changes": partial(variants, "all", CHANGES),
    "variants_controls": partial(variants, "all", CONTROLS),
    "variants_curve": partial(variants, "all", CURVE),
    "variants_frontier": partial(variants, "all", FRONTIER),
    "vllm_speed": vllm_speed,
}


def filled(text: str) -> str:
    """A page with every block made anew."""

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        return f"<!-- results: {name} -->\n{BLOCKS[name]()}\n<!-- end -->"

    return re.sub(r"<!-- results: (\w+) -->\n.*?<!-- end -->", replace, text, flags=re.DOTALL)


def main() -> None:
    """Rewrite the pages, or with ``--check`` exit 1 if that would change one."""
    for page in PAGES:
        old = (ROOT / page).read_text(encoding="utf-8")
        new = filled(old)
        if "--check" not in sys.argv[1:]:
            (ROOT / page).write_text(new, encoding="utf-8")
        elif new != old:
            sys.exit(f"{page} differs from the result files in experiments/")


if __name__ == "__main__":
    main()
