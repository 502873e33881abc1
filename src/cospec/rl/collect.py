"""Collects the training data of a round: rollouts under a policy, and branches off them.

Costs are counted in target forwards relative to those of the lossless rollout on the same problem.
A branch that keeps the draft's token starts a block of its own here, where the engine would have
continued in the block that was already verified; the share of that block is taken off its cost.
vLLM takes the first token after a branch from the forward that reads its prompt, which is not
counted. Such a token counts as much as an average token of the rollout.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING

import torch

from cospec.arbiters import AlwaysTarget
from cospec.backends.base import BranchPoint, Item
from cospec.evaluation.problems import encode_problems
from cospec.rl.methods import METHODS
from cospec.rl.types import Baseline, BranchData, Ending, Played

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.backends.base import Rollout, RolloutBackend
    from cospec.models import ModelPair
    from cospec.rl.config import TrainConfig
    from cospec.tasks import Example, Task
    from cospec.types import Arbiter, MismatchTrace


_SEEDS_PER_ROUND = 10_000
"""Seeds for the draws of a round; each chunk takes three."""


class Collector:
    """Plays problems under an arbiter."""

    def __init__(
        self,
        backend: RolloutBackend,
        pair: ModelPair,
        task: Task,
        config: TrainConfig,
        num_features: int,
    ) -> None:
        self._backend, self._pair, self._task = backend, pair, task
        self._config, self._method = config, METHODS[config.method]
        self._num_features = num_features

    def items(self, examples: Sequence[Example], seed: int = 0) -> list[Item]:
        """Return the items of examples; `seed` decides the draws of policy and sampling."""
        rollouts = self._config.rollouts
        settings = rollouts.max_new_tokens, seed, rollouts.temperature, self._backend.context_length
        items = zip(*encode_problems(self._pair, self._task, examples, *settings), strict=True)
        return [Item(*item, stream) for stream, item in enumerate(items)]

    def complete(self, arbiter: Arbiter, examples: Sequence[Example]) -> list[Ending]:
        """Decode examples once each, and score them.

        Each example draws from its own stream, whatever else is decoded with it. So lossless
        decoding and a policy differ in their rulings alone.
        """
        items = [
            replace(item, stream=_stream(example))
            for item, example in zip(self.items(examples), examples, strict=True)
        ]
        done = self._backend.complete(items, arbiter)
        return [
            Ending(one.completion, self._task.score(example, one.completion.text))
            for example, one in zip(examples, done, strict=True)
        ]

    def baseline(self, examples: Sequence[Example], known: dict[str, Baseline]) -> list[Baseline]:
        """Decode examples losslessly unless `known` has them by id; it takes up the new ones."""
        new = {example.id: example for example in examples if example.id not in known}
        if new:
            done = self.complete(AlwaysTarget(), list(new.values()))
            known |= {name: Baseline.of(end) for name, end in zip(new, done, strict=True)}
        return [known[example.id] for example in examples]

    def round(
        self,
        arbiter: Arbiter,
        examples: Sequence[Example],
        known: dict[str, Baseline],
        seed: int,
    ) -> tuple[list[Played], BranchData]:
        """Roll all examples out and play branches off them, chunk by chunk.

        Only the handles of one chunk are held at a time; the returned rollouts have none.
        """
        seed *= _SEEDS_PER_ROUND
        played: list[Played] = []
        parts: list[BranchData] = []
        size = self._config.rollouts.prompts_per_chunk
        for start in range(0, len(examples), size):
            chunk = examples[start : start + size]
            new = self.play(arbiter, chunk, known, seed)
            base = self.baseline(chunk, known)
            parts.append(self.branch(arbiter, chunk, base, new, seed + 1))
            played += [
                replace(one, place=start + one.place, rollout=replace(one.rollout, handle=None))
                for one in new
            ]
            seed += 3
            del new  # holds the handles of the chunk
        return played, BranchData.joined(parts)

    def play(
        self,
        arbiter: Arbiter,
        examples: Sequence[Example],
        known: dict[str, Baseline],
        seed: int,
    ) -> list[Played]:
        """Play `group_size` rollouts of each example, group by group.

        Args:
            arbiter: The stochastic policy, or another arbiter that records features.
            examples: Problems of the round.
            known: Lossless decoding by id, for the cost. Missing problems are added: a greedy
                rollout that kept no token of the draft is lossless itself, others are decoded.
            seed: Seed of the draws.
        """
        size = self._config.rollouts.group_size
        repeated = [example for example in examples for _ in range(size)]
        items = self.items(repeated, seed)
        keep_handles = self._config.branches_per_rollout > 0
        rollouts = self._backend.complete(items, arbiter, keep_handles=keep_handles)
        scores = [
            self._task.score(example, rollout.completion.text)
            for example, rollout in zip(repeated, rollouts, strict=True)
        ]
        if not self._config.rollouts.temperature:
            for example, rollout, score in zip(repeated, rollouts, scores, strict=True):
                if not rollout.completion.stats.num_overrides:
                    known.setdefault(example.id, Baseline.of(Ending(rollout.completion, score)))
        base = self.baseline(examples, known)
        return [
            Played(
                place=i // size,
                rollout=rollout,
                score=score,
                cost=rollout.completion.stats.num_target_forwards / base[i // size].num_forwards,
                decisions=[
                    # NaN and infinity would spread to the whole policy.
                    m
                    for m in rollout.completion.reached
                    if m.is_open and m.features.isfinite().all()
                ],
            )
            for i, (rollout, score) in enumerate(zip(rollouts, scores, strict=True))
        ]

    def branch(
        self,
        arbiter: Arbiter,
        examples: Sequence[Example],
        base: Sequence[Baseline],
        played: Sequence[Played],
        seed: int,
    ) -> BranchData:
        """Play the other ruling of chosen decisions out under the same arbiter.

        Decisions are drawn from all given rollouts, with a probability that grows with the policy's
        doubt. A place in a text that several rollouts share is played once.
        """
        chosen = self._choose(played, Random(f"branches {seed}"))
        points = [
            BranchPoint(one.rollout, m.position, *m.other, seed + 1, stream)
            for stream, (one, m) in enumerate(chosen)
        ]
        ends = self._backend.branch(points, arbiter)
        delta_reward, delta_cost, is_harmless = [], [], []
        partial = self._config.objective.partial_reward
        for (one, m), end in zip(chosen, ends, strict=True):
            score = self._task.score(examples[one.place], end.completion.text)
            cost = self._cost(one, m, end) / base[one.place].num_forwards
            sign = 1.0 if m.keep_draft else -1.0
            delta_reward.append(sign * (one.score.value(partial) - score.value(partial)))
            delta_cost.append(sign * (one.cost - cost))
            ours, theirs = Ending(one.rollout.completion, one.score), Ending(end.completion, score)
            is_harmless.append(self._method.is_harmless(ours, theirs))
        return BranchData(
            torch.stack([m.features for _, m in chosen])
            if chosen
            else torch.zeros(0, self._num_features),
            torch.tensor(delta_reward),
            torch.tensor(delta_cost),
            torch.tensor(is_harmless, dtype=torch.bool),
        )

    @staticmethod
    def _cost(one: Played, m: MismatchTrace, end: Rollout) -> float:
        """Count the target forwards of a text that leaves a rollout at a mismatch."""
        ours, theirs = one.rollout.completion, end.completion
        steps = [s for s in ours.trace if s.position <= m.position]
        cost = float(len(steps) + theirs.stats.num_target_forwards)
        first = theirs.trace[0].position if theirs.trace else len(theirs.token_ids)
        num_free = first - (m.position + 1)  # see the top of this file; 0 on our engine
        cost += num_free * ours.stats.num_target_forwards / len(ours.token_ids)
        if not m.keep_draft and theirs.stats.num_drafts:  # likewise
            k = steps[-1].num_draft_tokens
            cost -= (k - m.block_position) / (k + 1)
        return cost

    def _choose(
        self, played: Sequence[Played], random: Random
    ) -> list[tuple[Played, MismatchTrace]]:
        """Draw distinct decisions of the round, doubtful ones more often."""
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


def _stream(example: Example) -> int:
    """Return the stream of random numbers of a problem."""
    name = example.id.encode(errors="backslashreplace")
    return int.from_bytes(sha256(name).digest()[:6])
