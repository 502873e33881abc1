"""One problem of an evaluation with each token coloured by where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from cospec.cli.views.paint import LEGEND, Painter
from cospec.evaluation.summary import TARGET
from cospec.text import visible
from cospec.types import Origin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.engine import Engine
    from cospec.evaluation.evaluate import Evaluation
    from cospec.results import Json
    from cospec.tasks import Example
    from cospec.types import Completion

_MAX_CANDIDATES = 5
"""Most problems decoded in search of one. In half precision, or with an arbiter that rules by
chance, a problem by itself may come out differently than in a batch."""
_MAX_LISTED = 10


@dataclass(frozen=True, slots=True)
class Shown:
    """A problem, decoded again by itself."""

    example: Example
    is_saved: bool
    """True if the target alone gets it wrong, and the arbiter's arm right."""
    targets_answer: str | None
    painted: Text
    completion: Completion


def pick(evaluation: Evaluation, engine: Engine, rows: Sequence[Json]) -> Shown | None:
    """Pick a problem that an override saved, or if there is none, one with an override.

    Returns:
        Problem with the fewest overrides; None if there was no override at all.
    """
    ours, target = (_of_arm(evaluation, rows, arm) for arm in (engine.arbiter.name, TARGET))
    places = [i for i, row in enumerate(ours) if row["num_overrides"]]
    places.sort(key=lambda i: ours[i]["num_overrides"])
    saved = [i for i in places if ours[i]["correct"] and not target[i]["correct"]]
    for is_saved, candidates in ((True, saved), (False, places)):
        for i in candidates[:_MAX_CANDIDATES]:
            painted, completion = _decode(evaluation, engine, i)
            is_right = evaluation.task.score(evaluation.examples[i], completion.text).correct
            if Origin.OVERRIDE in completion.origins and (is_right or not is_saved):
                answer = target[i]["extracted"]
                return Shown(evaluation.examples[i], is_saved, answer, painted, completion)
    return None


def show(evaluation: Evaluation, engine: Engine, shown: Shown | None) -> None:
    """Print the problem that was picked."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    name = engine.arbiter.name
    if shown is None:
        console.print(f"\n{name} made no override, so that there is none to show.")
        return
    head = f"A problem that the target alone gets wrong and {name} right"
    if not shown.is_saved:
        head = f"No problem was saved by an override. One with an override by {name}"
    example = shown.example
    console.print(f"\n{head} ({example.id}):", style="bold")
    console.print(f"\n{visible(example.question)}\n")
    console.print(shown.painted)
    if console.is_terminal:
        console.print(LEGEND)
    console.print()
    _print_overrides(console, engine, shown.completion)
    score = evaluation.task.score(example, shown.completion.text)
    answers = {TARGET: shown.targets_answer, name: score.extracted}
    console.print("\nFinal answers:", style="bold")
    for who, answer in (answers | {"right": example.answer}).items():
        console.print(f"  {visible(who)}: {'none' if answer is None else visible(answer)}")


def _of_arm(evaluation: Evaluation, rows: Sequence[Json], arm: str) -> list[Json]:
    """The rows of an arm, in the order of the examples."""
    by_id = {row["id"]: row for row in rows if row["arm"] == arm}
    return [by_id[example.id] for example in evaluation.examples]


def _decode(evaluation: Evaluation, engine: Engine, place: int) -> tuple[Text, Completion]:
    """Decode one problem again, in colour."""
    assert engine.pair.tokenizer is not None
    painter, text = Painter(engine.pair.tokenizer), Text()
    for delta in engine.stream([evaluation.prompts[place]], evaluation.samplings[place]):
        text.append(painter.paint(delta))
        if delta.completion is not None:
            return text, delta.completion
    raise AssertionError("a stream ends with a completion")


def _print_overrides(console: Console, engine: Engine, completion: Completion) -> None:
    """Print the token that stands at each override, and the one that the target wanted."""
    assert engine.pair.tokenizer is not None
    overrides = [m for m in completion.reached if m.keep_draft]
    for mismatch in overrides[:_MAX_LISTED]:
        theirs, targets = (
            repr(engine.pair.tokenizer.decode([i])) for i in (mismatch.draft_id, mismatch.target_id)
        )
        console.print(
            f"override at token {mismatch.position}: the draft's {theirs} stands, the target "
            f"wanted {targets} (its probabilities: {mismatch.p_draft_id:.2f} and "
            f"{mismatch.p_target_id:.2f})"
        )
    if len(overrides) > _MAX_LISTED:
        console.print(f"and {len(overrides) - _MAX_LISTED} overrides more")
