"""Plays forks of worked solutions: places where the text goes on with another token.

A solution tells that one token is right, not that the other one is wrong: that one may be another
word for the same answer. So the target goes on from either token, and the task scores its text.
Where both texts score the same, the decision is worth nothing, and the policy learns no matters of
taste. The rest of the solution would be an unfair measure of its token: it has another author.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cospec.engine import Branch, Engine, Rollout
from cospec.types import Completion, FinishReason, Origin, Stats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.config import SamplingConfig
    from cospec.rl.solutions import Fork, Solution
    from cospec.tasks import Example, Task


@dataclass(frozen=True, slots=True)
class ForkPlayer:
    """Plays forks with the target alone.

    Args:
        engine: Plain decoding of the target.
        task: Scores the texts.
        examples: Problems, in the order of `Solution.place`.
        settings: Sampling settings of the problems.
        start: `Solution.place` of the first problem.
    """

    engine: Engine
    task: Task
    examples: Sequence[Example]
    settings: Sequence[SamplingConfig]
    start: int = 0

    def __call__(self, forks: list[Fork]) -> list[float]:
        """Return the worth of the text after each fork: 1 if its answer is right, else 0."""
        branches = [
            Branch(self._rollout(fork), fork.position, fork.token_id, stream=fork.solution.place)
            for fork in forks
        ]
        ends = self.engine.branches(branches)
        return [
            float(self.task.score(self.examples[self._at(fork)], end.completion.text).correct)
            for fork, end in zip(forks, ends, strict=True)
        ]

    def judged(self, solutions: Sequence[Solution]) -> list[Solution]:
        """Return solutions that are no longer than an answer, worth 1 if the task finds them right.

        Forks are cut at the same length and scored by the task too. So a longer solution, or one in
        another form, would always be worth more.
        """
        tokenizer = self.engine.pair.tokenizer
        assert tokenizer is not None, "whoever trains has checked that"
        found = []
        for one in solutions:
            ids, at = one.ids[one.num_prompt_tokens :], one.place - self.start
            if len(ids) <= self.settings[at].max_new_tokens:
                text = str(tokenizer.decode(ids, skip_special_tokens=True))
                score = self.task.score(self.examples[at], text)
                found.append(replace(one, worth=float(score.correct)))
        return found

    def _at(self, fork: Fork) -> int:
        return fork.solution.place - self.start

    def _rollout(self, fork: Fork) -> Rollout:
        """Return the solution as if it had been generated."""
        one: Solution = fork.solution
        prompt, text = one.ids[: one.num_prompt_tokens], one.ids[one.num_prompt_tokens :]
        origins = [Origin.CORRECTION] * len(text)
        whole = Completion(one.place, prompt, text, "", origins, FinishReason.LENGTH, Stats(), [])
        return Rollout(whole, self.settings[self._at(fork)], [fork.cache])
