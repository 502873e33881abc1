"""What the supervised controls are taught: which drafted tokens do no harm.

The labels are read off branches that leave the target's own path, each played out by the target.

* gold: the draft's branch is right and the target's is not, or the other way round; others do not
  count.
* AutoJudge (2504.20039; garipovroma/autojudge 8a4beb1, ``find_important_tokens*.py``): a token is
  important if the target's own final answer changes, right or wrong. Two branches without an answer
  count as the same answer there (``alt_ans == target_ans`` in the script for MMLU-Pro), and here.
* R2R (2505.21600; thu-nics/R2R 560f5ec, ``step_2_llm_continuation.py``, ``verify_model.py``): both
  tokens are continued to the end of the sentence, and Qwen2.5-72B is asked whether the meaning of
  the two sentences differs. Here `same_meaning` stands in for that judge.
"""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import TYPE_CHECKING

import torch

from cospec.tasks.extract import all_numbers, same_number

if TYPE_CHECKING:
    from torch import Tensor

    from cospec.features import ScalarFeatures
    from cospec.rl.config import Method
    from cospec.tasks.base import Score

_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")


def same_answer(one: Score, other: Score) -> bool:
    """Whether two texts give one final answer: two right ones do, however each is spelt."""
    if one.correct or other.correct:
        return one.correct and other.correct
    return one.extracted == other.extracted


def same_meaning(one: str, other: str) -> bool:
    """Whether two texts say the same in the sentence in which they part.

    They do if it has the same numbers in the same order; without numbers, the same letters, so that
    punctuation, spaces and capitals do not count. A judge that reads would let paraphrases pass,
    and not another name or sign beside the same numbers.
    """
    pairs = enumerate(zip(one, other, strict=False))
    parting = next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
    ends = [{match.end() for match in _SENTENCE_END.finditer(text)} for text in (one, other)]
    start = max((end for end in ends[0] & ends[1] if end <= parting), default=0)
    sentences = [_SENTENCE_END.split(text[start:].lstrip(), maxsplit=1)[0] for text in (one, other)]
    numbers = [all_numbers(sentence) for sentence in sentences]
    if any(numbers):
        return all(same_number(a, b) for a, b in zip_longest(*numbers))
    ours, theirs = (re.sub(r"[\W_]", "", sentence).casefold() for sentence in sentences)
    return ours == theirs


def is_used(method: Method, features: ScalarFeatures) -> Tensor | None:
    """Which features a control may look at, (F,) bool; None for all.

    R2R sees what the draft alone tells. AutoJudge sees the two models' states where there are any,
    and is compared on our features where there are none.
    """
    if method == "r2r":
        return features.is_of_draft
    if method == "autojudge" and features.num_hidden:
        return features.is_of_judge
    return None


def labels(
    method: Method, delta: Tensor, is_harmless: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor] | None:
    """What a supervised control is taught; None for methods that follow rewards.

    Args:
        method: Of training.
        delta: Reward for the draft's token minus that for the target's, (N,).
        is_harmless: `same_answer` or, for r2r, `same_meaning` of the two branches, (N,) bool.
        weight: How much each decision counts, (N,).

    Returns:
        Whether to keep the draft's token, (N,) bool, and what the label counts, (N,). For r2r both
        kinds count the same in all, as in its ``recall_factor`` of 1.
    """
    if method == "gold":
        return delta > 0, (weight * delta).abs()
    if method == "autojudge":
        return is_harmless, weight
    if method != "r2r":
        return None
    harmless, harmful = weight[is_harmless].sum(), weight[~is_harmless].sum()
    if not (harmless and harmful):
        return is_harmless, weight
    return is_harmless, torch.where(is_harmless, weight, weight * harmless / harmful)
