"""Ways to rule with one correction, on problems left out of their fit."""

from __future__ import annotations

from cospec.evaluation.stats import cluster_interval, mcnemar_p, wilson_interval
from experiments.tables.rows import read

WAYS = {"labels": "which token is better", "rounds": "the same, in rounds", "reward": "reward"}
KINDS = {
    "few": "six scalars",
    "scalars": "all scalars",
    "hidden": "hidden states",
    "hidden_few": "hidden states and six scalars",
}


def table(name: str) -> str:
    """Share right of each arm of a file of `whole_answers.py`, with paired differences."""
    document = read(name)
    bits, groups = document["correct"], document["groups"]
    rules = list(document["thresholds"])
    best = max(rules, key=lambda rule: bits[rule].count("1"))
    lines = [
        f"| arm | right | over the target | over `{best}` |",
        "| --- | --- | --- | --- |",
    ]
    for arm in ("target", "draft", *rules, *(arm for arm in bits if "." in arm)):
        right, total = bits[arm].count("1"), len(bits[arm])
        low, high = wilson_interval(right, total)
        cells = [f"{right / total:.1%} ({low:.1%} to {high:.1%})"]
        cells += ["" if arm == o else against(bits[arm], bits[o], groups) for o in ("target", best)]
        lines.append(f"| {label(arm)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def label(arm: str) -> str:
    """The name of an arm in a table."""
    kind, _, way = arm.partition(".")
    if way:
        return f"policy, {KINDS[kind]}: {WAYS[way]}"
    return arm if arm in ("target", "draft") else f"`{arm}`"


def against(ours: str, theirs: str, groups: list[str]) -> str:
    """Difference in points with its interval over groups, and the exact test over problems."""
    changes = [int(a) - int(b) for a, b in zip(ours, theirs, strict=True)]
    won, lost = changes.count(1), changes.count(-1)
    by_group: dict[str, list[int]] = {}
    for group, change in zip(groups, changes, strict=True):
        by_group.setdefault(group, []).append(change)
    clusters = [(sum(some), len(some)) for some in by_group.values()]
    low, high = (100 * end for end in cluster_interval(clusters))
    gain = 100 * sum(changes) / len(changes)
    return f"{gain:+.1f} ({low:+.1f} to {high:+.1f}; {won} / {lost}, p {mcnemar_p(won, lost):.2g})"
