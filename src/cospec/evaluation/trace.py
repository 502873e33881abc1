"""Problems decoded under an arbiter, with every token and mismatch, for people to look at.

The branch that a ruling took is the path itself. Where branches are asked for, the other branch of
each mismatch is played to its end under the same arbiter, from the caches of the path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cospec.arbiters import AlwaysTarget
from cospec.display import pieces
from cospec.engine import Branch, Engine
from cospec.evaluation.problems import encode_problems
from cospec.text import finite

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cospec.engine import Rollout
    from cospec.results import Json
    from cospec.tasks import Example, Task
    from cospec.types import Completion, MismatchTrace

_TOLD = ("position", "block_position", "p_draft_id", "p_target_id", "q_draft_id", "q_target_id")


def trace_problems(
    engine: Engine,
    task: Task,
    examples: Sequence[Example],
    *,
    keep: int,
    branches: bool = False,
    max_new_tokens: int | None = None,
    seed: int = 0,
    temperature: float = 0.0,
    on_branches: Callable[[int], None] = lambda _: None,
) -> list[Json]:
    """Decode problems and return the most telling ones in full.

    Args:
        engine: Engine with the arbiter, which keeps traces.
        task: Makes the prompts and scores the answers.
        examples: The problems.
        keep: Number of problems to return: first those that the arbiter won or lost against the
            target alone, then those with the most overrides.
        branches: Whether to play the other branch of each mismatch.
        max_new_tokens: Most tokens of an answer; the task's own number if None.
        seed: Seed of sampling, and of arbiters that rule by chance.
        temperature: Temperature of sampling; 0 is greedy.
        on_branches: Called with the number of branches before they are decoded.

    Returns:
        One row for each of these problems.
    """
    prompts, samplings = encode_problems(
        engine.pair, task, examples, max_new_tokens, seed, temperature
    )
    paths = engine.rollouts(prompts, samplings, keep_caches=branches)
    exact = Engine(
        engine.pair,
        AlwaysTarget(),
        engine.config,
        keep_trace=False,
        on_finished=engine.on_finished,
    ).generate(prompts, samplings)
    rows = []
    for example, path, alone in zip(examples, paths, exact, strict=True):
        is_right = task.score(example, alone.text).correct
        rows.append((example, path, _row(engine, task, example, path.completion, is_right)))
    rows.sort(key=lambda told: _interest(told[2]))
    if branches:
        on_branches(sum(len(row["mismatches"]) for _, _, row in rows[:keep]))
        _play_others(engine, task, rows[:keep], first_stream=len(examples))
    return [row for _, _, row in rows[:keep]]


def _interest(row: Json) -> tuple[bool, int]:
    """Return a sort key that is smaller for a more telling problem."""
    return row["correct"] == row["target_correct"], -row["num_overrides"]


def _row(
    engine: Engine, task: Task, example: Example, completion: Completion, target_correct: bool
) -> Json:
    assert engine.pair.tokenizer is not None
    score = task.score(example, completion.text)
    return {
        "id": example.id,
        "arm": engine.arbiter.name,
        "question": example.question,
        "answer": str(example.answer),
        "extracted": score.extracted,
        "correct": score.correct,
        "target_correct": target_correct,
        "finish_reason": completion.finish_reason.value,
        "num_drafts": completion.stats.num_drafts,
        "num_overrides": completion.stats.num_overrides,
        "num_accepted_tokens_per_pos": completion.stats.num_accepted_tokens_per_pos,
        "tokens": [
            [text, origin.value]
            for text, origin in zip(
                pieces(engine.pair.tokenizer, completion.token_ids, completion.text),
                completion.origins,
                strict=True,
            )
        ],
        "mismatches": [_mismatch(engine, m) for m in completion.reached],
    }


def _mismatch(engine: Engine, mismatch: MismatchTrace) -> Json:
    assert engine.pair.tokenizer is not None
    return {
        **{name: finite(getattr(mismatch, name)) for name in _TOLD},
        "draft_text": str(engine.pair.tokenizer.decode([mismatch.draft_id])),
        "target_text": str(engine.pair.tokenizer.decode([mismatch.target_id])),
        "score": finite(mismatch.score),
        "keep_draft": mismatch.keep_draft,
        "veto": mismatch.veto,
    }


def _play_others(
    engine: Engine,
    task: Task,
    rows: Sequence[tuple[Example, Rollout, Json]],
    *,
    first_stream: int,
) -> None:
    """Add to each mismatch whether the draft's and the target's branch are right.

    Branches draw from streams of their own, from `first_stream` on.
    """
    places = [
        (example, path, told, mismatch)
        for example, path, row in rows
        for told, mismatch in zip(row["mismatches"], path.completion.reached, strict=True)
    ]
    ends = engine.branches(
        [
            Branch(path, mismatch.position, *mismatch.other, stream)
            for stream, (_, path, _, mismatch) in enumerate(places, first_stream)
        ]
    )
    for (example, path, told, mismatch), end in zip(places, ends, strict=True):
        taken, other = (task.score(example, each.completion.text).correct for each in (path, end))
        is_draft = mismatch.keep_draft
        told["draft_correct"] = taken if is_draft else other
        told["target_correct"] = other if is_draft else taken
