"""A control without a model: one answer, given to every problem.

If it comes near the arms, the scorer accepts answers that say little, or has few to choose from. A
gain over the target may then be a gain in such answers.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cospec.results import Json
    from cospec.tasks import Example, Score

_LEAST_SHARE = 0.05
"""Least share of an arm's answers, for an answer that is tried."""
_MOST_TRIED = 3
"""Answers that are tried of each arm, the most frequent ones."""


def best_fixed_answer(
    score: Callable[[Example, str], Score], examples: Sequence[Example], rows: Iterable[Json]
) -> Json | None:
    """Return the fixed answer with the most right ones, of those that arms gave most often.

    It is chosen on the same problems that it is counted on, so it is a little flattered.

    Args:
        score: Scores a text as an answer to a problem.
        examples: The problems.
        rows: The arms' rows, with their texts.

    Returns:
        ``answer`` as the scorer read it, ``num_right`` and ``accuracy``. None where no arm gave one
        answer to a twentieth of the problems.
    """
    counts: dict[str, Counter[str]] = {}
    texts: dict[str, str] = {}
    for row in rows:
        if (answer := row["extracted"]) is not None:
            counts.setdefault(row["arm"], Counter())[answer] += 1
            texts.setdefault(answer, row["text"])
    least = _LEAST_SHARE * len(examples)
    often = (
        answer
        for arm in counts.values()
        for answer, n in arm.most_common(_MOST_TRIED)
        if n >= least
    )
    right = {
        answer: sum(score(example, texts[answer]).correct for example in examples)
        for answer in dict.fromkeys(often)
    }
    if not right:
        return None
    best = max(right, key=right.__getitem__)
    return {"answer": best, "num_right": right[best], "accuracy": right[best] / len(examples)}
