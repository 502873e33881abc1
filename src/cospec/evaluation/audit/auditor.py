"""The audit of a pair: at each mismatch on the target's path, whose token leads to a right answer?

A problem is solved by the lossless engine, whose output is the target's alone. At every mismatch
that an arbiter may override, the draft's token is put in its place and the target alone goes on,
from the caches of the path. The other branch is the path itself. Under another arbiter (policy
iteration) both branches are played.

The **oracle path** then takes, from left to right, a branch that is right if one is, and the
draft's if both are. After an override it goes on along the branch, which has mismatches of its own.
An arbiter that knew the outcome of every branch could follow it.

This file plays and records; `cospec.evaluation.audit.summary` makes numbers from the records.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING

from cospec.arbiters import load_arbiter
from cospec.arbiters.observed import Observed
from cospec.backends.base import BranchPoint, Item, Rollout
from cospec.backends.engine import EngineBackend
from cospec.engine import Engine
from cospec.evaluation.audit.costs import accepted, num_blocks
from cospec.evaluation.problems import draft_prompt_ids, encode_problems, score_once
from cospec.features import ScalarFeatures, make_features
from cospec.types import Origin, Stats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cospec.backends.base import RolloutBackend
    from cospec.backends.jobs import Decoder
    from cospec.config import PairPrompt, Prompt, SamplingConfig
    from cospec.evaluation.audit.config import AuditConfig
    from cospec.models import ModelPair
    from cospec.results import Json
    from cospec.tasks.base import Example, Task
    from cospec.types import Completion, MismatchTrace


_BRANCH_WORK = 0.5
"""Rough work of a branch, which begins somewhere along its path, in whole answers."""
_MOST_PATHS = 0.9
"""Most that the paths of the next problems are taken for, whatever those before had."""
_STREAMS_PER_PROBLEM = 1 << 20
"""Streams of random numbers for a problem: more than it has branches."""


@dataclass
class Auditor:
    """Plays the branches of problems.

    Args:
        pair: The models.
        task: Makes the prompts and scores the answers.
        config: Settings of the audit.
        seed: Seed of sampling, and of the mismatches that are drawn if not all are played.
        on_progress: Called with the share of the work of one `audit` call that is done. While the
            first call decodes its paths it is 0, since the number of branches is not known.
        backend: Plays paths and branches; by default the engine of this package.
        draft: Decodes with the draft alone; by default the engine of this package.
    """

    pair: ModelPair
    task: Task
    config: AuditConfig
    seed: int = 0
    on_progress: Callable[[float], None] = lambda _: None
    backend: RolloutBackend | None = None
    draft: Decoder | None = None
    features: ScalarFeatures = field(init=False)

    def __post_init__(self) -> None:
        self.features = make_features(self.config.features, self.pair)
        arbiter = load_arbiter(self.config.arbiter, self.pair)
        self._taken = {"lossless": "target", "always_draft": "draft"}.get(arbiter.name)
        self._arbiter = Observed(arbiter, self.features)
        self._decode = self.config.for_arbiters([arbiter])
        self._backend = self.backend or EngineBackend(self.pair, self._decode)
        self._draft = self.draft or Engine.draft_only(self.pair, self._decode)
        self._backend.on_finished = self._count
        if isinstance(self._draft, Engine):
            self._draft.on_finished = self._count
        self._phase, self._num_finished, self._first = (0.0, 0.0, 1), 0, 0
        self._paths_share = 0.0  # of the work on a call's problems; at first it is not known

    def audit(self, examples: Sequence[Example], first: int = 0) -> list[Json]:
        """Play some problems and all that branches off them.

        Args:
            examples: The problems.
            first: Index of the first problem among all; random numbers depend on these indices.

        Returns:
            A record for each problem: whether the path and the draft alone are right, lengths, and
            ``accepted`` (one digit a token of the path: whether the draft alone would have chosen
            it). ``mismatches`` have position, both tokens, whether each branch is right, features.
            ``settled`` has the positions of mismatches that no arbiter may override, which are not
            played. With the oracle, ``oracle_correct``, ``oracle_overrides`` and
            ``oracle_accepted`` tell about its path.
        """
        prompts, sampling = self.encode(examples)
        self._first = first
        self._begin(0, self._paths_share, 2 * len(examples))
        paths = self._paths(prompts, sampling)
        streams = range(first, first + len(examples))  # those of the paths
        alone = self._draft.generate(prompts, sampling, streams=streams)
        chosen = [
            self._choose(example, path.completion)
            for example, path in zip(examples, paths, strict=True)
        ]
        num_branches = sum(map(len, chosen)) * (1 if self._taken else 2)
        work = num_branches * _BRANCH_WORK * (2 if self.config.oracle else 1)
        num_paths = max(1, 2 * len(examples))
        start = max(self._paths_share, num_paths / (num_paths + work))  # it never runs backwards
        self._paths_share = min(_MOST_PATHS, num_paths / (num_paths + work))
        end = (1 + start) / 2 if self.config.oracle else 1.0
        self._begin(start, end, num_branches)
        outcomes = self._play(examples, paths, chosen)
        records = []
        for i, (example, path) in enumerate(zip(examples, paths, strict=True)):
            found = [
                _mismatch(mismatch, draft, target)
                for mismatch, (draft, target) in zip(chosen[i], outcomes[i], strict=True)
            ]
            records.append(self._record(example, path.completion, alone[i], found))
        if self.config.oracle:
            self._begin(end, 1, num_branches)
            ends, _ = self._oracle(examples, paths, records)
            for example, record, oracle in zip(examples, records, ends, strict=True):
                record["oracle_correct"] = self._is_right(example, oracle.completion)
                record["oracle_overrides"] = oracle.completion.origins.count(Origin.OVERRIDE)
                record["oracle_accepted"] = self._accepted(example, oracle.completion)
        return records

    def _begin(self, start: float, end: float, num_completions: int) -> None:
        """Count the next completions as the share of the work from `start` to `end`."""
        self._phase, self._num_finished = (start, end, max(1, num_completions)), 0

    def _count(self, num: int) -> None:
        self._num_finished += num
        start, end, total = self._phase
        self.on_progress(start + (end - start) * min(1.0, self._num_finished / total))

    def oracle_paths(
        self, examples: Sequence[Example], *, exact_prefix_tokens: int = 0
    ) -> list[Completion]:
        """Return only the oracle paths of some problems, counted as if decoded in one go.

        Args:
            examples: The problems.
            exact_prefix_tokens: Number of first tokens at which nothing branches off.
        """
        prompts, sampling = self.encode(examples)
        paths = self._paths(prompts, sampling)
        records: list[Json] = [{"mismatches": []} for _ in examples]
        ends, nums_open = self._oracle(examples, paths, records, exact_prefix_tokens)
        return [self._counted(*one) for one in zip(examples, ends, nums_open, strict=True)]

    def encode(
        self, examples: Sequence[Example]
    ) -> tuple[list[list[int] | PairPrompt], list[SamplingConfig]]:
        """Return the prompts and sampling settings of some problems.

        Raises:
            PromptError: A prompt fills the context of the pair.
        """
        config = self.config
        limits = (
            config.max_new_tokens,
            self.seed,
            config.temperature,
            self._backend.context_length,
        )
        return encode_problems(self.pair, self.task, examples, *limits)

    def _paths(self, prompts: Sequence[Prompt], sampling: list[SamplingConfig]) -> list[Rollout]:
        """Play the paths, which branches can leave."""
        self._score = score_once(self.task)  # scores of earlier problems are not needed again
        pairs = zip(prompts, sampling, strict=True)
        items = [Item(prompt, config, i) for i, (prompt, config) in enumerate(pairs, self._first)]
        return self._backend.complete(items, self._arbiter, keep_handles=True)

    def _branch(
        self,
        leaves: Sequence[tuple[Rollout, int, int, Origin]],
        *,
        keep_handles: bool = False,
        first_stream: int = 0,
    ) -> list[Rollout]:
        """Play branches out, each given by rollout, position, token and the token's origin."""
        # They draw from streams of their own, and not from those of the paths.
        seed, first_stream = self.seed + 1, first_stream + self._first * _STREAMS_PER_PROBLEM
        points = [
            BranchPoint(*leaf, seed, stream) for stream, leaf in enumerate(leaves, first_stream)
        ]
        return self._backend.branch(points, self._arbiter, keep_handles=keep_handles)

    def _counted(self, example: Example, end: Rollout, num_open: int) -> Completion:
        """Return a path with counts of its own, since those of a branch begin where it left."""
        completion = end.completion
        k, digits = self._decode.k, self._accepted(example, completion)
        num_blocks_of_path = num_blocks(digits, k)
        # A path may end inside its last block, which then has no token of the target's own.
        num_own = num_blocks_of_path - (num_blocks(digits + "0", k) == num_blocks_of_path)
        num_overrides = completion.origins.count(Origin.OVERRIDE)
        stats = Stats(
            num_tokens=len(completion.token_ids),
            num_drafts=num_blocks_of_path,
            num_draft_tokens=k * num_blocks_of_path,
            num_draft_forwards=k * num_blocks_of_path,
            num_strict_accepts=len(completion.token_ids) - num_own - num_overrides,
            num_overrides=num_overrides,
            num_mismatches=num_overrides + completion.origins.count(Origin.CORRECTION),
            num_open_mismatches=num_open,
        )
        return replace(completion, stats=stats, trace=[])

    def _record(
        self, example: Example, path: Completion, alone: Completion, mismatches: list[Json]
    ) -> Json:
        return {
            "id": example.id,
            "correct": self._is_right(example, path),
            "draft_correct": self._is_right(example, alone),
            "num_tokens": len(path.token_ids),
            "num_prompt_tokens": len(path.prompt_ids),
            "finish_reason": str(path.finish_reason),
            "accepted": self._accepted(example, path),
            "num_mismatches": len(reached(path)),
            "settled": [m.position for m in path.reached if not m.is_open],
            "mismatches": mismatches,
        }

    def _accepted(self, example: Example, completion: Completion) -> str:
        return accepted(self.pair, completion, draft_prompt_ids(self.pair, self.task, example))

    def _is_right(self, example: Example, completion: Completion) -> bool:
        return self._score(example, completion.text).correct

    def _choose(self, example: Example, completion: Completion) -> list[MismatchTrace]:
        """Return the mismatches of a path that are played, in order."""
        found, limit = reached(completion), self.config.branches_per_problem
        if limit is None or len(found) <= limit:
            return found
        chosen = Random(f"{self.seed} {example.id}").sample(range(len(found)), limit)
        return [found[i] for i in sorted(chosen)]

    def _play(
        self,
        examples: Sequence[Example],
        paths: list[Rollout],
        chosen: list[list[MismatchTrace]],
    ) -> list[list[tuple[bool, bool]]]:
        """Play the draft's and the target's branch of each mismatch, and score both.

        Where an arbiter always rules for one of them, that branch is the path.
        """
        places = [(i, m) for i, found in enumerate(chosen) for m in found]
        drafts = targets = [paths[i].completion for i, _ in places]
        if self._taken != "draft":
            leaves = [(paths[i], m.position, m.draft_id, Origin.OVERRIDE) for i, m in places]
            drafts = [end.completion for end in self._branch(leaves)]
        if self._taken != "target":
            leaves = [(paths[i], m.position, m.target_id, Origin.CORRECTION) for i, m in places]
            targets = [end.completion for end in self._branch(leaves)]
        outcomes: list[list[tuple[bool, bool]]] = [[] for _ in examples]
        for (i, _), draft, target in zip(places, drafts, targets, strict=True):
            example = examples[i]
            outcomes[i].append((self._is_right(example, draft), self._is_right(example, target)))
        return outcomes

    def _oracle(
        self,
        examples: Sequence[Example],
        paths: list[Rollout],
        records: list[Json],
        start: int = 0,
    ) -> tuple[list[Rollout], list[int]]:
        """Return the ends of the oracle paths, and the number of mismatches that each decided.

        The draft's token is taken wherever the answer is right with it, and the target's in place
        of it where that mends a wrong answer. All problems go on together, one mismatch at a time.
        """
        current, place, nums_open = list(paths), [start] * len(paths), [0] * len(paths)
        known = [{m["position"]: m for m in record["mismatches"]} for record in records]
        right = [
            self._is_right(example, path.completion)
            for example, path in zip(examples, paths, strict=True)
        ]
        num_played = 0
        while True:
            wave: list[tuple[int, tuple[Rollout, int, int, Origin]]] = []
            for i, rollout in enumerate(current):
                for mismatch in reached(rollout.completion):
                    if mismatch.position < place[i]:
                        continue
                    place[i], nums_open[i] = mismatch.position + 1, nums_open[i] + 1
                    played = known[i].get(mismatch.position) if rollout is paths[i] else None
                    other = "target_correct" if mismatch.keep_draft else "draft_correct"
                    is_known_wrong = played is not None and not played[other]
                    if not (is_known_wrong or (mismatch.keep_draft and right[i])):
                        wave.append((i, (rollout, mismatch.position, *mismatch.other)))
                        break
            if not wave:
                return current, nums_open
            leaves = [leaf for _, leaf in wave]
            ends = self._branch(leaves, keep_handles=True, first_stream=num_played)
            num_played += len(wave)
            for (i, _), end in zip(wave, ends, strict=True):
                if self._is_right(examples[i], end.completion):
                    current[i], right[i] = end, True


def reached(completion: Completion) -> list[MismatchTrace]:
    """Return the mismatches that counted and that an arbiter may override, in order.

    Those that a safety rule settles whatever the ruling are left out: at a token that ends the
    text, after the last of ``max_corrections``, in a prompt that the arbiter stands back from.
    """
    return [m for m in completion.reached if m.is_open]


def _mismatch(mismatch: MismatchTrace, draft_correct: bool, target_correct: bool) -> Json:
    return {
        "position": mismatch.position,
        "draft_id": mismatch.draft_id,
        "target_id": mismatch.target_id,
        "draft_correct": draft_correct,
        "target_correct": target_correct,
        "features": [round(value, 6) for value in mismatch.features.tolist()],
    }
