"""Rules of the literature that weigh the target's distribution ``p`` against the draft's ``q``.

Constants are those of the released code named in each class; ``docs/arbiters.md`` lists them in one
table, with the lossless settings of each rule and its differences from that code. ``x`` is the
draft's token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from cospec.arbiters.rules import Limits, Rule, ScoreRule, gathered
from cospec.types import MismatchBatch, Needs, Ruling

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BiLD(ScoreRule):
    """Big little decoder: max q > fallback and -log p(x) < rollback.

    BiLD (2302.07863; kssteven418/BigLittleDecoder ad37f56, ``modeling_t5.py``). There an unsure
    draft hands over before it proposes; here its token is proposed, and at a mismatch the target's
    token stands. Greedy, as released. Lossless with ``rollback=0``.
    """

    kind = "bild"
    needs = Needs.LOGITS
    limits: ClassVar[Limits] = {"fallback": (0, 1), "rollback": (0, math.inf)}

    fallback: float = 0.6
    """Least probability of the draft's best token."""
    rollback: float = 5.0
    """Largest cross-entropy of the target on the draft's token, in nats."""

    def score(self, batch: MismatchBatch) -> Tensor:
        """Probability above the tighter of the two bounds, (M,)."""
        confidence = batch.log_q.amax(dim=1).exp() - self.fallback
        agreement = gathered(batch.log_p, batch.draft_ids).exp() - math.exp(-self.rollback)
        return torch.minimum(confidence, agreement)


@dataclass(frozen=True)
class ChowCascade(ScoreRule):
    """Speculative cascade with Chow's rule: max q > 1 - alpha (2405.19261, eq. 2).

    As in the authors' notebook (google-research, ``speculative_cascades``), confidence is taken
    before temperature, and a draft that is not deferred stands. Its example has an alpha of 0.5;
    later comparisons use 0.2. Lossless with ``alpha=0``.
    """

    kind = "cascade_chow"
    needs = Needs.DRAFT_LOGITS
    limits: ClassVar[Limits] = {"alpha": (0, 1)}

    alpha: float = 0.2
    """Uncertainty of the draft, 1 - max q, below which its token stands."""

    def score(self, batch: MismatchBatch) -> Tensor:
        """Confidence above the bound, (M,)."""
        return batch.log_q.amax(dim=1).exp() - (1 - self.alpha)


@dataclass(frozen=True)
class ChowAverage(ScoreRule):
    """Chow's rule on a whole block: keeps x if the draft's mean log-probability is high enough.

    Chow-Average of language model cascades (2404.10136), where it decides whether a small model's
    answer is returned or the large one is asked. Here it decides at each mismatch, so that blocks
    have to be as long as an answer (``-k 64 --end-blocks-at-stop``). Lossless with ``min_log_q=0``.
    """

    kind = "chow_average"
    needs = Needs.DRAFT_LOGITS | Needs.BLOCK_LOG_Q
    limits: ClassVar[Limits] = {"min_log_q": (-math.inf, 0)}

    min_log_q: float = -0.05
    """Mean log-probability of the block's tokens that the draft has to exceed, in nats."""

    def score(self, batch: MismatchBatch) -> Tensor:
        """Mean log-probability above the least one, (M,)."""
        assert batch.block_log_q is not None
        return batch.block_log_q.sum(dim=1) / batch.block_lengths - self.min_log_q


@dataclass(frozen=True)
class DiffCascade(ScoreRule):
    """Speculative cascade with the rule Diff: max q > max p - alpha (2405.19261, eq. 5).

    As in the authors' notebook (see `ChowCascade`). Lossless with ``alpha=-1``.
    """

    kind = "cascade_diff"
    needs = Needs.LOGITS
    limits: ClassVar[Limits] = {"alpha": (-1, 1)}

    alpha: float = 0.2
    """Lead of the target in confidence, max p - max q, below which the draft's token stands."""

    def score(self, batch: MismatchBatch) -> Tensor:
        """Confidence above the bound, (M,)."""
        return batch.log_q.amax(dim=1).exp() - batch.log_p.amax(dim=1).exp() + self.alpha


@dataclass(frozen=True)
class OptCascade(ScoreRule):
    """Speculative cascade with the plug-in optimal rule: max q > max p - alpha * TV(p, q).

    2405.19261, eq. 10. The authors' notebook (see `ChowCascade`) takes the total variation after
    temperature, so that at a greedy mismatch it is 1 and the rule is Diff; here it is taken from
    the raw distributions. Lossless with ``alpha=-2``.
    """

    kind = "cascade_opt"
    needs = Needs.LOGITS

    alpha: float = 0.2
    """Price of a rejection, in units of confidence."""

    def score(self, batch: MismatchBatch) -> Tensor:
        """Confidence above the bound, (M,)."""
        p, q = batch.log_p.exp(), batch.log_q.exp()
        total_variation = (q - p).clamp(min=0).sum(dim=1)
        return q.amax(dim=1) - p.amax(dim=1) + self.alpha * total_variation


@dataclass(frozen=True)
class FuzzyJS(ScoreRule):
    """Fuzzy speculative decoding: JS(p, q) < threshold, in nats, at most ln 2.

    2502.20704; maxholsman/fsd e92a157, ``fsd_utils.py``, where the arguments of both divergences
    are swapped, so that its ``js_div`` is no Jensen-Shannon divergence, and the test replaces the
    strict one. The author's later version (TensorRT-LLM pull request 12853, which divides by ln 2)
    asks it only where the strict test failed, as here. Lossless with ``threshold=0``.
    """

    kind = "fsd_js"
    needs = Needs.LOGITS
    limits: ClassVar[Limits] = {"threshold": (0, math.inf)}

    threshold: float = 0.4
    """Largest divergence; the default is from the README's example."""

    def score(self, batch: MismatchBatch) -> Tensor:
        """Divergence below the threshold, (M,)."""
        log_m = torch.logaddexp(batch.log_p, batch.log_q) - math.log(2)
        js = (divergence(batch.log_p, log_m) + divergence(batch.log_q, log_m)) / 2
        return self.threshold - js


@dataclass(frozen=True)
class FuzzyKL(ScoreRule):
    """Fuzzy speculative decoding: KL(p || q) < threshold, in nats.

    The author of `FuzzyJS` calls this ``reverse_kl`` and says that the paper's results were made
    with it, in place of the JS that the paper names. Lossless with ``threshold=0``.
    """

    kind = "fsd_kl"
    needs = Needs.LOGITS
    limits: ClassVar[Limits] = {"threshold": (0, math.inf)}

    threshold: float = 0.4
    """Largest divergence; the default was meant for JS."""

    def score(self, batch: MismatchBatch) -> Tensor:
        """Divergence below the threshold, (M,)."""
        return self.threshold - divergence(batch.log_p, batch.log_q)


@dataclass(frozen=True)
class JuDi(Rule):
    """Judge decoding without a judge: KL(p || q) < threshold, but nothing where max p > confidence.

    2601.04766, section 4.1, eq. 2; sunshy-1/JuDi 3af9f4d, ``decoding/judi.py``, where ``F.kl_div``
    of the draft's from the target's log-probabilities is this direction. It is `FuzzyKL` with a
    mask: where the target is sure, the strict test stands. The mask is 0.9 throughout; thresholds
    are 0.1 to 1.4 in table 1, and 0.3 is in every scan of the code, which has no default. Paper and
    code decode greedily; here it rules at sampled mismatches too. Lossless with ``threshold=0``.
    """

    kind = "judi"
    needs = Needs.LOGITS
    limits: ClassVar[Limits] = {"threshold": (0, math.inf), "confidence": (0, 1)}

    threshold: float = 0.3
    """Largest divergence, in nats."""
    confidence: float = 0.9
    """Probability of the target's best token above which the target's own token stands."""

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule by divergence where the target is unsure; the score is what the threshold leaves."""
        score = self.threshold - divergence(batch.log_p, batch.log_q)
        is_unsure = batch.log_p.amax(dim=1).exp() <= self.confidence
        return Ruling(is_unsure & (score > 0), score)


@dataclass(frozen=True)
class CoSD(ScoreRule):
    """Collaborative speculative decoding by rule: q(x) > alpha or p(y) < beta * q(x).

    ``y`` is the target's token; the rule is that of the paper (2502.08020). The released code
    (ATP-1010/CoSD ef1260b, ``strategies.py``) keeps x where q(x) > p(x) / 2 and p(x) < 1 / 2, never
    looks at y, and rejects an x that is the target's best. Lossless with ``alpha=1,beta=0``.
    """

    kind = "cosd"
    needs = Needs.LOGITS
    limits: ClassVar[Limits] = {"alpha": (0, 1), "beta": (0, math.inf)}

    alpha: float = 0.5
    """Confidence of the draft that always suffices."""
    beta: float = 0.5
    """Bound on the target's confidence in its own token, relative to the draft's confidence."""

    def score(self, batch: MismatchBatch) -> Tensor:
        """Probability above the lower of the two bounds, (M,)."""
        q_x = gathered(batch.log_q, batch.draft_ids).exp()
        p_y = gathered(batch.log_p, batch.target_ids).exp()
        return torch.maximum(q_x - self.alpha, self.beta * q_x - p_y)


@dataclass(frozen=True)
class StaticEnsemble(Rule):
    """Static ensemble: x is the best token of draft_weight * q + (1 - draft_weight) * p.

    DIVERSED (2604.07622; comeusr/diversed 3750237, ``draft_ensemble_weights``) and transformers
    (``assistant_ensemble_weight``, which weighs the target). When sampling they accept by chance,
    against the mixture; here the best token of the mixture stands. Lossless with
    ``draft_weight=0``.
    """

    kind = "ensemble"
    needs = Needs.LOGITS
    limits: ClassVar[Limits] = {"draft_weight": (0, 1)}

    draft_weight: float = 0.3
    """Weight of the draft's distribution."""

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule by the mixture; the score is the probability above that of any other token."""
        mixture = torch.lerp(batch.log_p.exp(), batch.log_q.exp(), self.draft_weight)  # (M, V)
        others = mixture.scatter(1, batch.draft_ids[:, None], 0.0).amax(dim=1)
        score = gathered(mixture, batch.draft_ids) - others
        # When sampling, the target's own best token may be a mismatch.
        return Ruling((score > 0) & (self.draft_weight > 0), score)


LOG_FLOOR = math.log(1e-10)
"""A smaller probability counts as 1e-10 in a divergence, so that it is always finite."""


def divergence(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) of log-probabilities, (M, V) each, in nats, (M,)."""
    ratio = log_a.clamp(min=LOG_FLOOR) - log_b.clamp(min=LOG_FLOOR)
    return (log_a.exp() * ratio).sum(dim=1).clamp(min=0)
