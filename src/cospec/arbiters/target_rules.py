"""Rules of the literature that look at the target's distribution ``p`` alone.

Constants are those of the released code named in each class; ``docs/arbiters.md`` lists them in one
table, with the lossless settings of each rule and its differences from that code. ``x`` is the
draft's token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cospec.arbiters.rules import Limits, Rule, ScoreRule, gathered
from cospec.errors import ConfigError
from cospec.types import MismatchBatch, Needs, Ruling

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FLy(Rule):
    """Training-free loosely speculative decoding (2511.22972), as in its released greedy code.

    When sampling, that code drafts greedily and takes two samples of the target, either of which
    may match. Here drafts are sampled, and a match is what the accept test accepts.

    A mismatch stands if the target is unsure and the drafted tokens that follow all match. One in
    the last `window` places of a block is never kept, so that a block has to be longer than that.
    """

    kind = "fly"
    needs = Needs.TARGET_LOGITS | Needs.LOOKAHEAD
    limits: ClassVar[Limits] = {"window": (1, math.inf)}

    window: int = 6
    """The mismatch and the matches that have to follow it (the released ``win_len``). vLLM's FLy
    counts the matches alone, and keeps a mismatch also where they end with the block."""
    min_entropy: float = 0.3
    """Least entropy of the target, in nats: the top 3 terms of the full softmax."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.window, int):  # it cuts the look-ahead
            raise ConfigError(
                f"window is {self.window!r}; it must be a whole number of tokens, such as 6."
            )

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule by entropy and look-ahead; the score is the entropy above its least value."""
        assert batch.lookahead_matches is not None
        follows = batch.lookahead_matches[:, : self.window - 1].all(dim=1)
        is_early = batch.block_positions < batch.block_lengths - self.window
        log_p = batch.log_p.topk(min(3, batch.log_p.shape[1]), dim=1).values
        score = -(log_p.exp() * log_p).nan_to_num(0.0).sum(dim=1) - self.min_entropy
        return Ruling(follows & is_early & (score >= 0), score)


@dataclass(frozen=True)
class Agreement(ScoreRule):
    """Keeps x if the target agrees with more than a share of the drafted tokens after it.

    A target that would have written the rest as the draft did, but for this token, considers the
    draft's answer a good one. That shows only over a long look-ahead, so draft the whole answer
    (``-k 64 --end-blocks-at-stop``). Ours; FLy requires the same of a few tokens. Lossless with
    ``min_share=1``.
    """

    kind = "agreement"
    needs = Needs.LOOKAHEAD
    limits: ClassVar[Limits] = {"min_share": (0, 1)}

    min_share: float = 0.93
    """Share of the drafted tokens ahead; the target has to agree with more than that."""

    def score(self, batch: MismatchBatch) -> Tensor:
        """Share above the least one, (M,); where nothing is ahead, the share is 0."""
        assert batch.lookahead_matches is not None
        num_ahead = batch.block_lengths - 1 - batch.block_positions
        return batch.lookahead_matches.sum(dim=1) / num_ahead.clamp(min=1) - self.min_share


@dataclass(frozen=True)
class TypicalAcceptance(ScoreRule):
    """Typical acceptance: p(x) > min(threshold, alpha * exp(-H(p))).

    Medusa (2401.10774; FasterDecoding/Medusa e2a5d20, ``medusa/model/utils.py``). That code has no
    typical acceptance in greedy decoding; here it rules at greedy mismatches too. Lossless with
    ``threshold=1`` and ``alpha`` at least the size of the vocabulary.
    """

    kind = "typical"
    needs = Needs.TARGET_LOGITS
    limits: ClassVar[Limits] = {"threshold": (0, 1), "alpha": (0, math.inf)}

    threshold: float = 0.09
    """Probability that always suffices (``posterior_threshold``)."""
    alpha: float = 0.3
    """Factor of exp(-entropy), which suffices where the target is unsure (``posterior_alpha``)."""

    def score(self, batch: MismatchBatch) -> Tensor:
        """Probability above the bound, (M,)."""
        p = batch.log_p.exp()
        entropy = -(p * batch.log_p).nan_to_num(0.0).sum(dim=1)
        bound = (self.alpha * (-entropy).exp()).clamp(max=self.threshold)
        return gathered(p, batch.draft_ids) - bound


@dataclass(frozen=True)
class Mars(Rule):
    """Margin-aware verification: x is in the target's top 2, and their logits' ratio exceeds theta.

    MARS (5SSjw/MARS 8909b41, ``mars/model/utils.py``), which relaxes only when sampling, and where
    the ratio is above theta rejects every token outside the top 2. A ratio of logits means little
    where they are not positive: there this rules for the target. Lossless with ``theta=1``.
    """

    kind = "mars"
    needs = Needs.TARGET_LOGITS
    limits: ClassVar[Limits] = {"theta": (0, 1)}

    theta: float = 0.9
    """Least ratio of the second to the largest logit."""

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule by the second logit; the score is its excess over theta times the largest."""
        assert batch.target_logits is not None
        logits = batch.target_logits.float()
        first, second = logits.topk(2, dim=1).values.unbind(dim=1)
        score = second - self.theta * first  # at most 0 where the largest is not positive
        is_second = gathered(logits, batch.draft_ids) >= second
        return Ruling(is_second & (score > 0), score)


@dataclass(frozen=True)
class TopK(Rule):
    """Relaxed acceptance: x is among the target's top k and p(x) > max p - delta.

    TensorRT-LLM (``mtpRelaxedAcceptanceKernel``: ``relaxed_topk``, ``relaxed_delta``), which does
    so only while a reasoning model thinks. The defaults are those recommended for DeepSeek-R1; its
    own, k = 1 and delta = 0, are strict. With ``k`` the size of the vocabulary this is the rule
    TokenV2 of speculative cascades (2405.19261, eq. 14). Lossless with ``delta=0``.
    """

    kind = "top_k"
    needs = Needs.TARGET_LOGITS
    limits: ClassVar[Limits] = {"k": (1, math.inf), "delta": (0, 1)}

    k: int = 10
    """Number of the target's best tokens that are candidates."""
    delta: float = 0.6
    """Largest difference in probability to the target's best token."""

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule by rank and difference; the score is the tolerance left."""
        p = batch.log_p.exp()
        score = self.delta - (p.amax(dim=1) - gathered(p, batch.draft_ids))
        return Ruling(is_in_top(p, batch.draft_ids, self.k) & (score > 0), score)


@dataclass(frozen=True)
class TopKRatio(Rule):
    """Relaxed acceptance: x is among the target's top k and p(x) > ratio * max p.

    Proposed for thinking tokens in vLLM (pull request 45229; constants 3 and 0.5). With ``k`` the
    size of the vocabulary this is the rule TokenV3 of speculative cascades (2405.19261, eq. 15)
    with alpha = 1 - ratio. Lossless with ``ratio=1``.
    """

    kind = "top_k_ratio"
    needs = Needs.TARGET_LOGITS
    limits: ClassVar[Limits] = {"k": (1, math.inf), "ratio": (0, 1)}

    k: int = 3
    """Number of the target's best tokens that are candidates."""
    ratio: float = 0.5
    """Least probability relative to that of the target's best token."""

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule by rank and ratio; the score is the probability above the bound."""
        p = batch.log_p.exp()
        score = gathered(p, batch.draft_ids) - self.ratio * p.amax(dim=1)
        return Ruling(is_in_top(p, batch.draft_ids, self.k) & (score > 0), score)


@dataclass(frozen=True)
class SGLangThresholds(ScoreRule):
    """SGLang's thresholds: p(x) > threshold_single, or by chance with p(x) / threshold_acc.

    SGLang (``speculative_sampling.cuh``: ``--speculative-accept-threshold-single`` and ``-acc``)
    draws u and accepts if u <= p(x) / threshold_acc. Here all that is known about u is that it
    failed at a threshold of 1, so it is drawn again above p(x). The law is SGLang's at temperature
    1 without truncation, if the draft always proposes its best token. SGLang takes p after
    temperature and truncation; here p is raw. SGLang does not relax greedy decoding, while this
    does. Lossless with both at 1, which is the default there and here.
    """

    kind = "sglang"
    needs = Needs.TARGET_LOGITS | Needs.UNIFORMS
    limits: ClassVar[Limits] = {"threshold_single": (0, 1), "threshold_acc": (0, 1)}

    threshold_single: float = 1.0
    """Probability that always suffices."""
    threshold_acc: float = 1.0
    """Divisor of p(x) in the acceptance by chance."""

    def score(self, batch: MismatchBatch) -> Tensor:
        """Probability above the lower of the two bounds, (M,)."""
        assert batch.uniforms is not None
        p = gathered(batch.log_p, batch.draft_ids).double().exp()
        coin = p + (1 - p) * batch.uniforms
        return p - (self.threshold_acc * coin).clamp(max=self.threshold_single)


def is_in_top(values: Tensor, token_ids: Tensor, k: int) -> Tensor:
    """Return whether fewer than k values of a row exceed its token's: (M, V) and (M,) to (M,)."""
    return (values > gathered(values, token_ids)[:, None]).sum(dim=1) < k
