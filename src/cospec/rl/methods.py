"""Training methods: ours and the controls, one object each.

A method defines who plays, the branches it learns from, the features it may see, and its labels.

* rl (ours): the policy plays, and each branch flips one of its rulings.
* one_step (ours): the target plays, and each branch keeps one drafted token and goes on with the
  target. So a ruling is judged as if it were the only one: one step of policy improvement over the
  target (the rollout algorithm of Bertsekas, Tsitsiklis and Wu 1997). A policy that is wrong at
  every mismatch learns from that, and not from flips of one ruling: the others spoil both branches.

The supervised controls take their labels from branches off the target's own path, each played out
by the target.

* gold: the draft's branch is right and the target's is not, or the other way round; other branches
  have no weight.
* AutoJudge (2504.20039; garipovroma/autojudge 8a4beb1, ``find_important_tokens*.py``): a token is
  important if the target's own final answer changes, right or wrong. Two branches without an answer
  count as the same answer there (``alt_ans == target_ans`` in the script for MMLU-Pro), and here.
* R2R (2505.21600; thu-nics/R2R 560f5ec, ``step_2_llm_continuation.py``, ``verify_model.py``): both
  tokens are continued to the end of the sentence, and Qwen2.5-72B is asked whether the meaning of
  the two sentences differs. Here `same_meaning` stands in for that judge.
* reinforce: no branches; REINFORCE with a running baseline, as DIVERSED (2604.07622).

policy_iteration and one_correction are ours as well, for few decisions: see `cospec.rl.ridge`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import torch

from cospec.arbiters.observed import Observed
from cospec.arbiters.rules import AlwaysTarget
from cospec.models.prefill import num_shared_tokens
from cospec.tasks.extract import all_numbers, same_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from cospec.arbiters.learned import LearnedArbiter
    from cospec.features import ScalarFeatures
    from cospec.rl.types import Ending, KnownBranches
    from cospec.tasks.base import Score
    from cospec.types import Arbiter

MethodName: TypeAlias = Literal[
    "rl",
    "one_step",
    "policy_iteration",
    "one_correction",
    "gold",
    "autojudge",
    "r2r",
    "reinforce",
]
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")


class Labels(NamedTuple):
    """Training data of a classifier."""

    keep: Tensor
    """True where the draft's token is to be kept, (N,) bool."""
    weight: Tensor
    """Weight of each label, (N,)."""


def same_answer(one: Score, other: Score) -> bool:
    """Tell whether two texts give the same final answer, as two right ones do in any spelling."""
    if one.correct or other.correct:
        return one.correct and other.correct
    return one.extracted == other.extracted


def same_meaning(one: str, other: str) -> bool:
    """Tell whether two texts say the same in the sentence in which they part.

    They do if both sentences have the same numbers in the same order, or without numbers the same
    letters: punctuation, spaces and capitals do not count. A judge that reads would let paraphrases
    pass, but not another name or sign beside the same numbers.
    """
    parting = num_shared_tokens(one, other)
    ends = [{match.end() for match in _SENTENCE_END.finditer(text)} for text in (one, other)]
    start = max((end for end in ends[0] & ends[1] if end <= parting), default=0)
    sentences = [_SENTENCE_END.split(text[start:].lstrip(), maxsplit=1)[0] for text in (one, other)]
    numbers = [all_numbers(sentence) for sentence in sentences]
    if any(numbers):
        return all(same_number(a, b) for a, b in zip_longest(*numbers))
    ours, theirs = (re.sub(r"[\W_]", "", sentence).casefold() for sentence in sentences)
    return ours == theirs


def _gold(known: KnownBranches) -> Labels:
    """Count answers alone: a branch that is only cheaper is no label."""
    return Labels(known.delta_reward > 0, (known.weight * known.delta_reward).abs())


def _harmless(known: KnownBranches) -> Labels:
    return Labels(known.is_harmless, known.weight)


def _balanced(known: KnownBranches) -> Labels:
    """Give both kinds the same total weight, as R2R's ``recall_factor`` of 1 does."""
    label, weight = known.is_harmless, known.weight
    harmless, harmful = weight[label].sum(), weight[~label].sum()
    if not (harmless and harmful):
        return Labels(label, weight)
    return Labels(label, torch.where(label, weight, weight * harmless / harmful))


def _of_the_judge(features: ScalarFeatures) -> Tensor | None:
    """Return AutoJudge's two states where there are any; None, for all features, otherwise."""
    return features.is_of_judge if features.num_hidden else None


@dataclass(frozen=True)
class Method:
    """A way to train an arbiter."""

    name: MethodName
    on_target_path: bool = False
    """Rollouts are the target's own path, and the target alone plays branches out."""
    is_ridge: bool = False
    """The policy is linear, plays by its threshold, and is fitted to all branches each round."""
    has_one_correction: bool = False
    """It learns from an audit of all answers with one correction, by their expected reward."""
    has_branches: bool = True
    """Branches are played."""
    has_running_baseline: bool = False
    """Advantages are against a running mean of rewards in place of the group's mean."""
    group_weight: float | None = None
    """Weight of the rollouts' advantages; None leaves it to the settings."""
    takes_audit: bool = False
    """An audit's branches have labels for it."""
    labels: Callable[[KnownBranches], Labels] | None = None
    """Labels of a classifier; None to learn from rewards."""
    is_harmless: Callable[[Ending, Ending], bool] = lambda a, b: same_answer(a.score, b.score)
    """Tells whether two branches have the same outcome."""
    features: Callable[[ScalarFeatures], Tensor | None] = lambda _: None
    """Picks the features that the policy may see, (F,) bool; None for all."""

    def player(self, policy: LearnedArbiter) -> Arbiter:
        """Return the arbiter of rollouts and branches.

        It is the policy, ruling by chance or by its threshold; or it is the target, whose own path
        is recorded with the policy's features.
        """
        if self.on_target_path:
            return Observed(AlwaysTarget(), policy.features)
        return replace(policy, explore=0.0 if self.is_ridge else 1.0)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("rl", takes_audit=True),
        Method("one_step", on_target_path=True, takes_audit=True),
        Method("policy_iteration", is_ridge=True, takes_audit=True, labels=_gold),
        Method(
            "one_correction",
            is_ridge=True,
            has_one_correction=True,
            takes_audit=True,
            labels=_gold,
        ),
        Method("gold", on_target_path=True, takes_audit=True, labels=_gold),
        Method("autojudge", on_target_path=True, labels=_harmless, features=_of_the_judge),
        Method(
            "r2r",
            on_target_path=True,
            labels=_balanced,
            is_harmless=lambda a, b: same_meaning(a.completion.text, b.completion.text),
            features=lambda features: features.is_of_draft,
        ),
        Method("reinforce", has_branches=False, has_running_baseline=True, group_weight=1.0),
    )
}
"""All methods, by name."""
