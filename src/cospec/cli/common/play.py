"""Playing an evaluation: notes before it, and progress while its turns are decoded and stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cospec.cli.common.progress import Progress, QuietConsole
from cospec.config import SamplingConfig
from cospec.errors import ConfigError
from cospec.text import visible

if TYPE_CHECKING:
    from cospec.config import DecodeConfig
    from cospec.evaluation.evaluate import Evaluation
    from cospec.evaluation.turns import Turn, TurnLog
    from cospec.models import ModelPair
    from cospec.tasks import Example
    from cospec.types import Arbiter

_MAX_STANDING = 6
"""Most arms that are all shown while they run; with more, only the one that has just played."""


def print_notes(pair: ModelPair, evaluation: Evaluation, told: set[str] | None = None) -> None:
    """Print notes on stderr: findings that do no harm, or how they are dealt with.

    Args:
        pair: The models.
        evaluation: Evaluation to be played.
        told: Notes that are not repeated; those that are printed are added.
    """
    from cospec.arbiters.guard import SelectiveArbiter
    from cospec.arbiters.learned import notes_on
    from cospec.evaluation.problems import target_ids

    told = set() if told is None else told
    notes = list(pair.notes)
    sampling = SamplingConfig(
        evaluation.max_new_tokens,
        evaluation.temperature,
        exact_prefix_tokens=evaluation.exact_prefix_tokens,
    )
    for arm in evaluation.arms:
        arbiter: Arbiter | None = getattr(arm.engine, "arbiter", None)
        if arbiter is None:  # one model alone, on vLLM
            continue
        config: DecodeConfig = arm.engine.config  # type: ignore[attr-defined]
        notes += notes_on(arbiter, config, sampling)
        if isinstance(arbiter, SelectiveArbiter) and (
            number := sum(arbiter.is_foreign(target_ids(one)) for one in evaluation.prompts)
        ):
            name = getattr(arbiter, "label", arm.name)  # the same at every threshold
            notes.append(
                f"{name} stands back from {number} of these {len(evaluation.prompts)} prompts, "
                "which are unlike those it was trained on: they are decoded losslessly"
            )
    if evaluation.num_short_of_room:
        notes.append(
            f"{evaluation.num_short_of_room} of {len(evaluation.examples)} answers get fewer than "
            f"{evaluation.max_new_tokens} tokens, as many as the context leaves"
        )
    tell([note for note in notes if note not in told])
    told.update(notes)


def tell(notes: Iterable[str]) -> None:
    """Print notes on stderr, each once."""
    for note in dict.fromkeys(notes):
        QuietConsole(stderr=True, soft_wrap=True).print(
            f"note: {visible(note)}", markup=False, highlight=False
        )


def check_trained_on(
    arbiters: Iterable[Arbiter], examples: Sequence[Example], is_strict: bool
) -> None:
    """Note on stderr how many problems arbiters have met in training, or in a memory of csd.

    Args:
        arbiters: Arbiters that will rule; other rules are skipped.
        examples: The problems that will be measured on.
        is_strict: Whether to refuse problems that an arbiter was trained on, and trained arbiters
            without a record of their problems, which are skipped otherwise.

    Raises:
        ConfigError: It is strict, and there are such problems or arbiters.
    """
    from cospec.arbiters import CSD
    from cospec.arbiters.learned import LearnedArbiter
    from cospec.arbiters.memory import TUNE
    from cospec.tasks.trained_on import Overlap, overlap, overlap_of

    told: dict[str, Overlap | None] = {}
    for arbiter in arbiters:
        if isinstance(arbiter, LearnedArbiter):
            known = arbiter.folder
            told[arbiter.label] = None if known is None else overlap(known, examples)
        elif isinstance(arbiter, CSD) and arbiter.memory != TUNE:
            hashes = arbiter.counted_on
            told[arbiter.name] = None if hashes is None else overlap_of(hashes, examples)
    for label, found in told.items():
        if found is None and is_strict:
            raise ConfigError(
                f"{label} does not tell what it was trained on (an older version made it), "
                "so that --strict has nothing to compare; leave it out."
            )
        if found is None or not found.num_same + found.num_twins:
            continue
        note = f"{label} was trained on {found.num_same} of these {len(examples)} problems"
        if found.num_same and is_strict:
            raise ConfigError(
                f"{note}; draw others (--split test, another --seed), or leave --strict out to "
                "measure on them all the same."
            )
        if found.num_twins:
            note += (
                f", and {found.num_twins} others differ by names alone from ones it was trained on"
            )
        tell([note])


def play(
    evaluation: Evaluation,
    log: TurnLog | None = None,
    part: str = "",
    *,
    warm_up: bool = True,
) -> list[Turn]:
    """Play all turns, shown on stderr as they end, and stored if there is a log.

    Args:
        evaluation: Evaluation that is played.
        log: Log with the turns that are done already.
        part: Name of this part of the run, where it has several.
        warm_up: Whether the arms are warmed up, which is not timed.

    Raises:
        KeyboardInterrupt: Ctrl-C; its message says how to resume.
    """
    from cospec.engine import Engine

    num_turns = len(evaluation.chunks) * len(evaluation.arms)
    done = [] if log is None else [turn for turn in log.done if turn.part == part]
    num_answers = sum(len(turn.rows) for turn in done)
    total = len(evaluation.examples) * len(evaluation.arms)
    turns: list[Turn] = []
    try:
        with Progress(total, "answers", done=num_answers, label=part) as progress:
            for engine in (arm.engine for arm in evaluation.arms):
                if isinstance(engine, Engine):  # counts within a turn, as some take minutes
                    engine.on_finished = progress.advance
            num_answers = 0
            for turn in evaluation.turns(done, warm_up=warm_up):
                turns.append(replace(turn, part=part))
                if log is not None and len(turns) > len(done):
                    log.append(turns[-1])
                shown = turns if len(evaluation.arms) <= _MAX_STANDING else [turn]
                num_answers += len(turn.rows)
                progress.update(num_answers, _standing(shown))
                head = f"turn {len(turns)}/{num_turns}, {turn.seconds:.1f} s"
                head = f"{part}, {head}" if part else head
                progress.line(f"{head}: {_standing(shown)}")
    except KeyboardInterrupt:
        fate = "they are not kept"
        if log is not None:
            fate = f"{log.path} keeps them, and the same command resumes from there"
        raise KeyboardInterrupt(f"{len(turns)} of {num_turns} turns are done; {fate}") from None
    return turns


def _standing(turns: Iterable[Turn]) -> str:
    """Right answers of each arm so far."""
    counts: dict[str, list[int]] = {}
    for turn in turns:
        count = counts.setdefault(turn.arm, [0, 0])
        count[0] += sum(row["correct"] for row in turn.rows)
        count[1] += len(turn.rows)
    return "  ".join(f"{visible(arm)} {right}/{size}" for arm, (right, size) in counts.items())
