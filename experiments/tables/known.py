"""Pairs on known databases, one row each: what the models, the best rule and the arbiter get."""

from __future__ import annotations

from cospec.arbiters import RULES
from cospec.evaluation.stats import sign_flip_p
from experiments.tables.rows import arms, database_changes

PAIRS = (
    ("one pass", "as it is", "test_known", "then_lossless"),
    ("one pass, another seed", "as it is", "test_second_draft", "then_lossless"),
    ("mean of both", "as it is", "test_mean_draft", "then_lossless"),
    ("three passes", "as it is", "test_best_pair", "then_lossless"),
    ("three passes", "tuned", "test_both_tuned", "policy"),
    ("three passes", "shown eight queries", "test_own_arbiter", "policy"),
    ("three passes", "shown eight queries, arbiter of its own", "test_own_arbiter", "own_arbiter"),
    ("three passes, other queries", "shown eight, arbiter unchanged", "test_rotated", "published"),
    ("the same", "shown the eight nearest, arbiter unchanged", "test_nearest", "published"),
    ("that is shown them too", "shown the eight nearest, arbiter of its own", "test_turns", "own"),
)
"""Draft, target, result file, and the trained arbiter's name there."""
HEADER = (
    "draft,target,questions,draft alone,target alone,best rule,arbiter,"
    "against the target: won / lost,p over questions,p over databases,against the rule"
)


def table() -> str:
    """One row a pair, in the order in which they were tested."""
    lines = [HEADER.split(","), ["---"] * len(HEADER.split(","))]
    for draft, target, file, name in PAIRS:
        of = arms(file)
        alone, arbiter = of["lossless"], of[name]
        rules = [arm for one, arm in of.items() if one in RULES and one != "lossless"]
        best = max(rules, key=lambda arm: arm.num_right, default=None)
        changes = [change for change, _ in database_changes(file, arbiter, alone)]
        lines.append(
            [
                draft,
                target,
                str(len(alone.bits)),
                f"{of['draft_only'].accuracy:.1%}",
                f"{alone.accuracy:.1%}",
                f"{best.accuracy:.1%} (`{best.name}`)" if best else "not run",
                f"{arbiter.accuracy:.1%}",
                "{} / {}".format(*arbiter.against(alone)),
                f"{arbiter.p(alone):.2g}",
                f"{sign_flip_p(changes):.2g}",
                "{} / {}".format(*arbiter.against(best)) if best else "",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
