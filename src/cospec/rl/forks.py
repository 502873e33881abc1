"""Plays forks of worked solutions: places where the text goes on with another token.

A solution tells that one token is right, not that the other one is wrong: that may be another word
for the same answer. The target goes on from either token, and the task scores what it writes. Where
both come to the same the decision is worth nothing, and the policy learns no matters of taste. The
rest of the solution would be an unfair measure of its token: who goes on decides as well.
"""

from __future__ import annotations

from dataclasses import dataclass
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
        settings: Their settings.
        start: Place of the first of them.
    """

    engine: Engine
    task: Task
    examples: Sequence[Example]
    settings: Sequence[SamplingConfig]
    start: int = 0

    def __call__(self, forks: list[Fork]) -> list[float]:
        """Return what the text after each fork is worth: 1 if its answer is right."""
        branches = [
            Branch(self._rollout(fork), fork.position, fork.token_id, stream=fork.solution.place)
            for fork in forks
        ]
        ends = self.engine.branches(branches)
        return [
            float(self.task.score(self.examples[self._at(fork)], end.completion.text).correct)
            for fork, end in zip(forks, ends, strict=True)
        ]

    def _at(self, fork: Fork) -> int:
        return fork.solution.place - self.start

    def _rollout(self, fork: Fork) -> Rollout:
        """Return the solution as if it had been generated."""
        one: Solution = fork.solution
        prompt, text = one.ids[: one.num_prompt_tokens], one.ids[one.num_prompt_tokens :]
        origins = [Origin.CORRECTION] * len(text)
        whole = Completion(one.place, prompt, text, "", origins, FinishReason.LENGTH, Stats(), [])
        return Rollout(whole, self.settings[self._at(fork)], [fork.cache])
