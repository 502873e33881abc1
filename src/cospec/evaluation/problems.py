"""Problems of a task as prompts for a pair, and the hashes that identify problems and models."""

from __future__ import annotations

import hashlib
import json
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from cospec.arbiters import CSD
from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.memory import TUNE
from cospec.config import PairPrompt, SamplingConfig
from cospec.errors import ConfigError, PromptError
from cospec.models.pair import context_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cospec.models import ModelPair
    from cospec.results import Json
    from cospec.tasks import Example, Task
    from cospec.tasks.base import Score
    from cospec.types import Arbiter


def describe_models(pair: ModelPair) -> Json:
    """Return a hash of the weights of a pair, and the commits of its models on the hub."""
    revisions = {
        f"{name}_revision": getattr(getattr(model, "config", None), "_commit_hash", None)
        for name, model in (("target", pair.target), ("draft", pair.draft))
    }
    return {"fingerprint": pair.fingerprint} | revisions


def describe_arbiter(arbiter: Arbiter) -> Json:
    """Return a hash of a trained arbiter and its revision on the hub, or of a memory's file."""
    if isinstance(arbiter, CSD) and arbiter.memory != TUNE:
        digest = hashlib.sha256(arbiter.pairs.contiguous().numpy().tobytes())
        if (arbiter.weights != 1).any():  # from an audit that played some branches
            digest.update(arbiter.weights.contiguous().numpy().tobytes())
        return {"num_mismatches": len(arbiter.pairs), "sha256": digest.hexdigest()}
    if not isinstance(arbiter, LearnedArbiter):
        return {}
    known = [arbiter.name, arbiter.max_mismatch_rate, arbiter.features.to_dict()]
    weights = arbiter.policy.state_dict()
    if arbiter.prompt_guard is not None:
        known.append(arbiter.prompt_guard.min_likeness)
        weights = {**weights, "prompt_profile": arbiter.prompt_guard.profile}
    digest = hashlib.sha256(json.dumps(known).encode())
    for name, weight in weights.items():
        values = weight.detach().float().cpu().contiguous().numpy().tobytes()
        digest.update(f"{name} {tuple(weight.shape)}".encode() + values)
    found = {"sha256": digest.hexdigest()}
    if arbiter.folder is not None and arbiter.folder.parent.name == "snapshots":  # from the hub
        found["revision"] = arbiter.folder.name
    return found


def describe_problems(examples: Sequence[Example]) -> Json:
    """Return the number of problems, and hashes of their texts and of their metadata.

    A scorer may read metadata: tests of a program, a gold query, a row of one's own.
    """
    problems = [[e.id, e.question, e.answer] for e in examples]
    return {
        "num_problems": len(examples),
        "problems_sha256": _digest(problems),
        "metadata_sha256": _digest([{**e.metadata} for e in examples]),
    }


def describe_prompts(prompts: Sequence[list[int] | PairPrompt]) -> Json:
    """Return a hash of the token ids that the models read."""
    ids = [[one.target, one.draft] if isinstance(one, PairPrompt) else one for one in prompts]
    return {"prompts_sha256": _digest(ids)}


def _digest(value: object) -> str:
    """Return a hash of a value, which is the same in every process."""
    return hashlib.sha256(_json(value).encode()).hexdigest()


def _json(value: object) -> str:
    """Return a value as JSON; of what it does not know, what is the same in every process."""

    def plain(other: Any) -> object:  # Any: whatever a task keeps
        if isinstance(other, set | frozenset):  # they have no order
            return sorted(map(_json, other))
        if isinstance(other, bytes):
            return other.hex()
        if hasattr(other, "tolist"):
            return other.tolist()
        if isinstance(other, date | Decimal | Fraction):
            return str(other)
        return type(other).__name__  # objects print their addresses

    return json.dumps(value, default=plain, skipkeys=True)


def score_once(task: Task) -> Callable[[Example, str], Score]:
    """Return a scorer for a task that scores each text of a problem only once.

    Most arms, all repeats and many branches write a text that another one wrote, and a scorer may
    run a program. Problems are told apart by their ids.
    """
    known: dict[tuple[str, str], Score] = {}

    def score(example: Example, text: str) -> Score:
        if (key := (example.id, text)) not in known:
            known[key] = task.score(example, text)
        return known[key]

    return score


def prompt_ids(pair: ModelPair, task: Task, examples: Sequence[Example]) -> list[list[int]]:
    """Return the target's prompts of problems as token ids; the pair has a tokenizer."""
    assert pair.tokenizer is not None
    prompts = (task.part_of(example).prompt(example, pair.tokenizer) for example in examples)
    return [pair.encode(one) if isinstance(one, str) else one for one in prompts]


def draft_prompt_ids(pair: ModelPair, task: Task, example: Example) -> list[int] | None:
    """Return the draft's own prompt of a problem; None if it reads the target's."""
    assert pair.tokenizer is not None
    own = task.part_of(example).draft_prompt(example, pair.tokenizer)
    return pair.encode(own) if isinstance(own, str) else own


def target_ids(prompt: list[int] | PairPrompt) -> Sequence[int]:
    """Return the target's token ids in a prompt from `encode_problems`."""
    ids = prompt.target if isinstance(prompt, PairPrompt) else prompt
    assert not isinstance(ids, str)
    return ids


def encode_problems(
    pair: ModelPair,
    task: Task,
    examples: Sequence[Example],
    max_new_tokens: int | None = None,
    seed: int = 0,
    temperature: float = 0.0,
    context_length: int | None = None,
) -> tuple[list[list[int] | PairPrompt], list[SamplingConfig]]:
    """Return prompts and settings of problems, one of each for every problem.

    Args:
        pair: Models that will answer the problems.
        task: Makes the prompts, and defines where an answer ends.
        examples: The problems.
        max_new_tokens: Most tokens of an answer; the task's own number if None. A prompt that
            leaves room for fewer gets as many as fit.
        seed: Seed of sampling, and of arbiters that rule by chance.
        temperature: Temperature of sampling; 0 is greedy.
        context_length: Most tokens of a prompt that both models read, with its answer; the pair's
            own number if None. Where the draft has a prompt of its own, each prompt is limited by
            the context of its model.

    Raises:
        ConfigError: The pair has no tokenizer.
        PromptError: A prompt fills the context.
    """
    if pair.tokenizer is None:
        raise ConfigError("the pair has no tokenizer, which a task needs; load one with it.")
    context_length = pair.context_length if context_length is None else context_length
    of_target, of_draft = context_of(pair.target), context_of(pair.models[-1])
    prompts: list[list[int] | PairPrompt] = []
    samplings = []
    for example, ids in zip(examples, prompt_ids(pair, task, examples), strict=True):
        part = task.part_of(example)
        limit = part.max_new_tokens if max_new_tokens is None else max_new_tokens
        own = draft_prompt_ids(pair, task, example)
        if own is None:
            limit = min(limit, _room(example, ids, context_length))
            prompts.append(ids)
        else:
            limit = min(limit, _room(example, ids, of_target, "target"))
            limit = min(limit, _room(example, own, of_draft, "draft"))
            prompts.append(PairPrompt(ids, own))
        stop = part.stop_strings(pair.tokenizer)
        samplings.append(SamplingConfig(limit, temperature, stop=stop, seed=seed))
    return prompts, samplings


def _room(example: Example, ids: list[int], context_length: int, reader: str = "pair") -> int:
    """Return the number of tokens that a prompt leaves in the context of its reader."""
    num_left = context_length - len(ids)
    if num_left < 1:
        whose = "" if reader == "pair" else f"{reader}'s "
        raise PromptError(
            f"the {whose}prompt of {example.id} has {len(ids)} tokens, and the {reader}'s context "
            f"holds {context_length}; leave the problem out or pass a pair with a longer context."
        )
    return num_left
