"""Runs arms on the same problems in one process, chunk by chunk in turns.

An arm is a way to decode: the target alone, the draft alone, lossless speculation, and each arbiter
asked for. Each chunk is decoded by every arm before the next one begins, another arm first each
time, so that whatever slows the machine down slows all of them.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

from cospec.backends.jobs import Job, play_here
from cospec.errors import check_least
from cospec.evaluation.fixed import best_fixed_answer
from cospec.evaluation.problems import (
    describe_problems,
    describe_prompts,
    encode_problems,
    score_once,
)
from cospec.evaluation.summary import against_both, by_part, summarize
from cospec.evaluation.turns import Turn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cospec.backends.jobs import Player
    from cospec.evaluation.arms import Arm
    from cospec.results import Json
    from cospec.tasks import Example, Task
    from cospec.types import Completion

_CHUNK_SIZE, _BATCHES_PER_CHUNK = 32, 4
_NUM_CHUNKS = 5
"""Fewer chunks do not show the spread of a speed-up (see `evaluation.stats.speedup_interval`)."""
_NUM_WARM_UP_PROMPTS, _NUM_WARM_UP_TOKENS = 2, 8


class Evaluation:
    """Arms on the problems of a task.

    Args:
        arms: Arms from `make_arms`.
        task: Makes the prompts and scores the answers.
        examples: The problems.
        max_new_tokens: Most tokens of an answer; the task's own number if None. A prompt that
            leaves room for fewer in the pair's context gets as many as fit, in every arm.
        seed: Seed of sampling, and of arbiters that rule by chance.
        temperature: Temperature of sampling; 0 is greedy.
        chunk_size: Problems of a chunk, a few more where the last chunk would be small. If None, it
            is 4 batches and at least 32; or less, down to one batch, so that there are 5 chunks.
        exact_prefix_tokens: Number of first tokens of each answer without overrides.
        play: Decodes the chunks; by default in this process.

    Attributes:
        first_arm: Index of the arm that begins. The seed picks it, so that the target is not always
            decoded first.
        arms: As given.
        task: As given.
        examples: As given.
        prompts: Prompt of each example.
        samplings: Settings of each example.
        max_new_tokens: As given, or the task's.
        temperature: As given.
        exact_prefix_tokens: As given.
        chunks: Indices of the examples of each chunk.
        num_short_of_room: Number of prompts that leave room for fewer than `max_new_tokens`.

    Raises:
        ConfigError: A number is below 1, or the pair has no tokenizer.
        PromptError: A prompt fills the context of the pair.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        task: Task,
        examples: Sequence[Example],
        *,
        max_new_tokens: int | None = None,
        seed: int = 0,
        temperature: float = 0.0,
        chunk_size: int | None = None,
        exact_prefix_tokens: int = 0,
        play: Player = play_here,
    ) -> None:
        engine = arms[-1].engine
        if chunk_size is None:
            chunk_size = default_chunk_size(len(examples), engine.batch_size)
        self.arms, self.task, self.examples = arms, task, examples
        self._score, self._play = score_once(task), play
        self.first_arm = seed % len(arms)
        self.chunks = _chunks(len(examples), chunk_size)
        self._seed, self.temperature = seed, temperature
        self.exact_prefix_tokens = exact_prefix_tokens
        self.max_new_tokens = task.max_new_tokens if max_new_tokens is None else max_new_tokens
        self.prompts, samplings = encode_problems(
            engine.pair,
            task,
            examples,
            max_new_tokens,
            seed,
            temperature,
            min(arm.engine.context_length for arm in arms),
        )
        limits = [
            task.part_of(e).max_new_tokens if max_new_tokens is None else max_new_tokens
            for e in examples
        ]
        self.num_short_of_room = sum(
            s.max_new_tokens < limit for s, limit in zip(samplings, limits, strict=True)
        )
        # Each has its own seed, so that its draws depend on no other problem (`jobs.timed`).
        self.samplings = [
            replace(s, seed=seed + i, exact_prefix_tokens=exact_prefix_tokens)
            for i, s in enumerate(samplings)
        ]
        self._warm_up = [
            replace(s, max_new_tokens=min(_NUM_WARM_UP_TOKENS, s.max_new_tokens))
            for s in self.samplings[:_NUM_WARM_UP_PROMPTS]
        ]

    def config(self) -> Json:
        """Return all that the rows and times depend on, except the models and the machine."""
        engine = self.arms[-1].engine
        return {
            "arms": [arm.name for arm in self.arms],
            "task": self.task.name,
            **describe_problems(self.examples),
            **describe_prompts(self.prompts),
            "num_speculative_tokens": engine.num_speculative_tokens,
            "max_batch_size": engine.batch_size,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "exact_prefix_tokens": self.exact_prefix_tokens,
            "num_short_of_room": self.num_short_of_room,
            "seed": self._seed,
            "num_chunks": len(self.chunks),
        }

    def turns(self, done: Iterable[Turn] = (), *, warm_up: bool = True) -> Iterator[Turn]:
        """Play every arm on every chunk, after a warm-up that is not timed.

        Args:
            done: Turns of an interrupted run, which are not played again.
            warm_up: Leave the warm-up out if False, where no time is reported.

        Yields:
            All turns, finished ones first.
        """
        done = list(done)
        yield from done
        played = {(turn.chunk, turn.arm) for turn in done}
        waiting = [turn for turn in self._order() if (turn[0], turn[1].name) not in played]
        jobs = [self._job(arm, chunk) for chunk, arm in waiting]
        arms = {arm.name: arm for _, arm in waiting}.values() if warm_up else ()
        prompts = self.prompts[:_NUM_WARM_UP_PROMPTS]
        warm = [Job(arm.name, -1, arm.engine, prompts, self._warm_up) for arm in arms]
        for one in self._play(jobs, warm):
            places = zip(self.chunks[one.job.group], one.completions, strict=True)
            rows = [self._row(one.job.name, i, completion) for i, completion in places]
            yield Turn(one.job.group, one.job.name, one.seconds, rows)

    def result(self, turns: Iterable[Turn]) -> Json:
        """Return the parts of a result document: ``arms``, ``rows`` and the times of ``chunks``.

        For a mixture there is ``parts`` as well: the quality of each arm on each of its tasks. For
        other tasks there is `best_fixed_answer` as ``fixed_answer``, if there is one.
        """
        turns = list(turns)
        tasks = {example.id: self.task.part_of(example).name for example in self.examples}
        rows = [row for turn in turns for row in turn.rows]
        if len(set(tasks.values())) > 1:
            parts = {"parts": by_part(turns, tasks)}
        else:
            fixed = best_fixed_answer(self._score, self.examples, rows)
            parts = {"fixed_answer": fixed} if fixed else {}
        return parts | {
            "arms": against_both(summarize(turns, {a.name: a.arbiter for a in self.arms}), turns),
            "rows": rows,
            "chunks": [turn.timing for turn in turns],
        }

    def _order(self) -> list[tuple[int, Arm]]:
        """Return the turns chunk by chunk; the starting arm moves on by one."""
        num_arms = len(self.arms)
        return [
            (chunk, self.arms[(self.first_arm + chunk + i) % num_arms])
            for chunk in range(len(self.chunks))
            for i in range(num_arms)
        ]

    def _job(self, arm: Arm, chunk: int) -> Job:
        """Return the job of an arm on a chunk."""
        members = self.chunks[chunk]
        prompts = [self.prompts[i] for i in members]
        samplings = [self.samplings[i] for i in members]
        return Job(arm.name, chunk, arm.engine, prompts, samplings)

    def _row(self, arm: str, i: int, completion: Completion) -> Json:
        stats, score = completion.stats, self._score(self.examples[i], completion.text)
        group = self.examples[i].group
        return {
            "id": self.examples[i].id,
            "arm": arm,
            "correct": score.correct,
            "strict": score.strict,
            "extracted": score.extracted,
            "finish_reason": completion.finish_reason.value,
            "num_tokens": stats.num_tokens,
            "num_target_forwards": stats.num_target_forwards,
            "num_draft_forwards": stats.num_draft_forwards,
            "num_draft_tokens": stats.num_draft_tokens,
            "num_strict_accepts": stats.num_strict_accepts,
            "num_overrides": stats.num_overrides,
            "num_mismatches": stats.num_mismatches,
            "num_open_mismatches": stats.num_open_mismatches,
            "num_accepted_tokens_per_pos": stats.num_accepted_tokens_per_pos,
            "text": completion.text,
        } | ({} if group is None else {"group": group})


def default_chunk_size(num_problems: int, batch_size: int, num_engines: int = 1) -> int:
    """Return a chunk size of several batches, or down to one where chunks would be too few.

    Args:
        num_problems: Number of problems to share out.
        batch_size: Batch size of the engines.
        num_engines: Number of engines that play chunks at the same time. Each gets at least one
            chunk if there are enough problems.
    """
    most = max(_CHUNK_SIZE, _BATCHES_PER_CHUNK * batch_size)
    return max(batch_size, min(most, num_problems // max(_NUM_CHUNKS, num_engines)))


def _chunks(num_problems: int, chunk_size: int) -> list[range]:
    """Return consecutive chunks of at least `chunk_size`, nearly equal; one of all if too few."""
    check_least(1, chunk_size=chunk_size)
    num_chunks = max(1, num_problems // chunk_size)
    edges = [num_problems * i // num_chunks for i in range(num_chunks + 1)]
    return [range(*pair) for pair in itertools.pairwise(edges)]
