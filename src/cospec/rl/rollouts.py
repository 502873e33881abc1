"""Rollouts under a policy, and the decisions that they leave behind.

Costs are counted in target forwards relative to those of the lossless rollout on the same problem.
A branch that keeps the draft's token starts a block of its own here, where the engine would have
gone on in the block that was already verified; the share of that block is taken off its cost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

import torch

from cospec.arbiters import AlwaysTarget
from cospec.engine import Branch, Engine, Rollout
from cospec.evaluation.audit.auditor import reached
from cospec.evaluation.problems import encode_problems
from cospec.rl.controls import same_answer, same_meaning
from cospec.types import Origin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from cospec.config import SamplingConfig
    from cospec.models import ModelPair
    from cospec.rl.config import TrainConfig
    from cospec.tasks import Example, Task
    from cospec.tasks.base import Score
    from cospec.types import Arbiter, Completion, MismatchTrace


_CHUNK_SIZE = 128
"""Problems whose caches are held together."""


@dataclass(frozen=True, slots=True)
class Played:
    """One rollout of one problem, with its reward."""

    place: int
    """Of the problem in the round."""
    rollout: Rollout
    score: Score
    cost: float
    """Target forwards over those of the lossless rollout."""
    decisions: list[MismatchTrace]
    """Mismatches that the policy decided: reached, and not settled by a safety rule."""

    @property
    def is_right(self) -> bool:
        """Whether its answer is."""
        return self.score.correct


@dataclass(frozen=True, slots=True)
class BranchData:
    """Decisions whose both outcomes are known."""

    features: Tensor
    """(N, F)"""
    delta_right: Tensor
    """Answer right with the draft's token minus with the target's: -1, 0 or 1, (N,)."""
    delta_cost: Tensor
    """Cost with the draft's token minus with the target's, (N,)."""
    is_harmless: Tensor
    """Whether both branches end in the same answer, or for r2r go on to the same effect, (N,)
    bool."""

    def __len__(self) -> int:
        return self.features.shape[0]

    @classmethod
    def joined(cls, parts: Sequence[BranchData]) -> BranchData:
        """All of them, in order."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__slots__))


class Player:
    """Plays problems under a policy.

    Args:
        pair: The models.
        task: Makes the prompts and scores the answers.
        config: Of the training run.
        num_features: F.

    Attributes:
        on_finished: Called with the number of completions that each block of decoding ended.
    """

    def __init__(self, pair: ModelPair, task: Task, config: TrainConfig, num_features: int) -> None:
        self._pair, self._task, self._config = pair, task, config
        self._num_features = num_features
        self.on_finished: Callable[[int], None] = lambda _: None

    def engine(self, arbiter: Arbiter) -> Engine:
        """The engine of the run under an arbiter."""
        return Engine(self._pair, arbiter, self._config, on_finished=self.on_finished)

    def score(self, example: Example, completion: Completion) -> Score:
        """Whether the answer is right, and what it is."""
        return self._task.score(example, completion.text)

    def prompts(
        self, examples: Sequence[Example], seed: int = 0
    ) -> tuple[list[str | list[int]], list[SamplingConfig]]:
        """Prompts and settings; `seed` is of the coins of policy and sampling.

        Lossless decoding and the tune split have the same coins, so that they differ by rulings.
        """
        settings = self._config.max_new_tokens, seed, self._config.temperature
        return encode_problems(self._pair, self._task, examples, *settings)

    def lossless(self, examples: Sequence[Example]) -> list[tuple[bool, int]]:
        """Whether the target alone is right, and the target forwards of lossless decoding."""
        done = self.engine(AlwaysTarget()).generate(*self.prompts(examples))
        return [
            (self.score(example, c).correct, c.stats.num_target_forwards)
            for example, c in zip(examples, done, strict=True)
        ]

    def round(
        self,
        arbiter: Arbiter,
        examples: Sequence[Example],
        num_forwards: Sequence[int],
        seed: int,
    ) -> tuple[list[Played], BranchData]:
        """Rollouts of all examples and the branches off them, some problems at a time.

        So only the caches of these are held; the rollouts that are returned have none.

        Args:
            arbiter: As in `play`.
            examples: Problems of the round.
            num_forwards: Of lossless decoding, for the cost.
            seed: Of the coins; the next ones up to three a chunk are taken as well.
        """
        played: list[Played] = []
        parts: list[BranchData] = []
        for start in range(0, len(examples), _CHUNK_SIZE):
            chunk = examples[start : start + _CHUNK_SIZE]
            forwards = num_forwards[start : start + _CHUNK_SIZE]
            new = self.play(arbiter, chunk, forwards, seed)
            left = [] if self._config.method == "reinforce" else new
            parts.append(self.branch(arbiter, chunk, forwards, left, seed + 1))
            played += [
                replace(one, place=start + one.place, rollout=replace(one.rollout, caches=None))
                for one in new
            ]
            seed += 3
        return played, BranchData.joined(parts)

    def play(
        self,
        arbiter: Arbiter,
        examples: Sequence[Example],
        num_forwards: Sequence[int],
        seed: int,
    ) -> list[Played]:
        """`group_size` rollouts of each example, group by group.

        Args:
            arbiter: The policy, stochastic; or another one that shows features.
            examples: Problems of the round.
            num_forwards: Of lossless decoding, for the cost.
            seed: Of the coins.
        """
        size = self._config.group_size
        repeated = [example for example in examples for _ in range(size)]
        rollouts = self.engine(arbiter).rollouts(*self.prompts(repeated, seed))
        scores = [self.score(e, r.completion) for e, r in zip(repeated, rollouts, strict=True)]
        return [
            Played(
                place=i // size,
                rollout=rollout,
                score=scores[i],
                cost=rollout.completion.stats.num_target_forwards / num_forwards[i // size],
                decisions=[m for m in reached(rollout.completion) if self._is_open(m)],
            )
            for i, rollout in enumerate(rollouts)
        ]

    def _is_open(self, mismatch: MismatchTrace) -> bool:
        """Whether a ruling for the draft would have stood, whatever the ruling was."""
        ends = {mismatch.draft_id, mismatch.target_id} & self._pair.eos_token_ids
        return mismatch.veto is None and not ends and mismatch.p_draft_id > 0

    def branch(
        self,
        arbiter: Arbiter,
        examples: Sequence[Example],
        num_forwards: Sequence[int],
        played: Sequence[Played],
        seed: int,
    ) -> BranchData:
        """Play the other ruling of chosen decisions out under the same policy.

        Decisions are drawn with a probability that grows with the policy's doubt, spread over all
        rollouts that are given; one place of a text that several rollouts share is played once.
        """
        chosen = self._choose(played, Random(f"branches {seed}"))
        branches = [
            replace_coins(Branch(one.rollout, m.position, *_other(m)), seed + 1)
            for one, m in chosen
        ]
        ends = self.engine(arbiter).branches(branches)
        features, delta_right, delta_cost, is_harmless = [], [], [], []
        for (one, m), end in zip(chosen, ends, strict=True):
            steps = [s for s in one.rollout.completion.trace if s.position <= m.position]
            cost = float(len(steps) + end.completion.stats.num_target_forwards)
            if not m.keep_draft and end.completion.stats.num_drafts:  # see the top of this file
                k = steps[-1].num_draft_tokens
                cost -= (k - m.block_position) / (k + 1)
            score = self.score(examples[one.place], end.completion)
            sign = 1.0 if m.keep_draft else -1.0
            features.append(m.features)
            delta_right.append(sign * (float(one.is_right) - float(score.correct)))
            if self._config.method == "r2r":
                texts = one.rollout.completion.text, end.completion.text
                is_harmless.append(same_meaning(*texts))
            else:
                is_harmless.append(same_answer(one.score, score))
            delta_cost.append(sign * (one.cost - cost / num_forwards[one.place]))
        return BranchData(
            torch.stack(features) if features else torch.zeros(0, self._num_features),
            torch.tensor(delta_right),
            torch.tensor(delta_cost),
            torch.tensor(is_harmless, dtype=torch.bool),
        )

    def _choose(
        self, played: Sequence[Played], random: Random
    ) -> list[tuple[Played, MismatchTrace]]:
        """Distinct decisions of the round, the doubtful ones first."""
        seen: set[tuple[int, tuple[int, ...], int]] = set()
        candidates = []
        for one in played:
            ids = one.rollout.completion.token_ids
            for m in one.decisions:
                key = (one.place, tuple(ids[: m.position]), m.draft_id)
                if key in seen:
                    continue
                seen.add(key)
                probability = m.score if m.score is not None else 0.5
                doubt = probability * (1 - probability) + 0.02
                candidates.append((random.random() ** (1 / doubt), one, m))
        candidates.sort(key=lambda candidate: -candidate[0])
        number = round(self._config.branches_per_rollout * len(played))
        return [(one, m) for _, one, m in candidates[:number]]


def _other(mismatch: MismatchTrace) -> tuple[int, Origin]:
    """The token that was ruled against, and where it would come from."""
    if mismatch.keep_draft:
        return mismatch.target_id, Origin.CORRECTION
    return mismatch.draft_id, Origin.OVERRIDE


def replace_coins(branch: Branch, seed: int) -> Branch:
    """The branch with coins of its own."""
    config = replace(branch.rollout.config, seed=seed)
    return replace(branch, rollout=replace(branch.rollout, config=config))
