"""Mentored decoding: accept as often as a budget of Kullback-Leibler divergence allows.

V. Tran-Thien (2023; vivien000/mentored_decoding de72a1f, ``notebook.ipynb``), whose letters p and q
are the other way round. Among all ways of accepting a token drawn from ``q``, it is the one that
rejects least often while the outcome ``pi`` has KL(p || pi) <= D:

    pi = clamp(q, p / beta, p / alpha)  with  alpha <= 1 <= beta,

and x is accepted with probability min(1, p(x) / (alpha * q(x))). D = 0 gives alpha = beta = 1,
which is speculative sampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from cospec.arbiters.rules import Limits, Rule, gathered
from cospec.types import MismatchBatch, Needs, Ruling

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Mentored(Rule):
    """Mentored decoding: x stands by chance, with probability min(1, p(x) / (alpha q(x))).

    The chance of acceptance is faithful when sampling at temperature 1 without truncation. Three
    things differ. After a rejection the engine draws from the residual of p and q, not of p / beta
    and q, so the outcome keeps to the budget only approximately. At other temperatures alpha comes
    from the raw distributions. The author has no greedy version; here greedy mismatches are ruled
    by the same chance. The released search stops within 20 % of the budget, this one at it.
    Lossless with ``max_kl=0``.
    """

    kind = "mentored"
    needs = Needs.LOGITS | Needs.UNIFORMS
    limits: ClassVar[Limits] = {"max_kl": (0, math.inf)}

    max_kl: float = 0.1
    """D, the budget per token in nats; the author tries 0.1, 0.15 and 0.2."""

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule by the accept test's random number, drawn again from the range where it fails."""
        assert batch.uniforms is not None
        log_p, log_q = batch.log_p.double(), batch.log_q.double()
        log_ratio = gathered(log_p, batch.draft_ids) - gathered(log_q, batch.draft_ids)
        strict = log_ratio.exp().clamp(max=1)
        coin = strict + (1 - strict) * batch.uniforms
        score = log_ratio - least_log_alpha(log_p, log_q, self.max_kl) - coin.log()
        # A greedy mismatch may have p(x) >= q(x).
        return Ruling((score > 0) & (self.max_kl > 0), score)


def least_log_alpha(log_p: Tensor, log_q: Tensor, max_kl: float) -> Tensor:
    """Logarithm of the least alpha that keeps to the budget, by bisection of the moved mass.

    The mass that q has above p / alpha is moved to where p / beta is above q. The less mass is
    moved, the smaller is alpha, the larger beta, and the larger KL(p || pi).

    Args:
        log_p: The target's log-probabilities, (M, V) float64.
        log_q: The draft's, (M, V) float64.
        max_kl: D, in nats.

    Returns:
        (M,), at most 0.
    """
    log_ratio, order = (log_p - log_q).nan_to_num(0.0).clamp(-40, 40).sort(dim=1)  # (M, V)
    p, q = log_p.exp().gather(1, order), log_q.exp().gather(1, order)
    # Sums over the tokens below each place, and over those from it on: (M, V + 1).
    p_below, q_below, kl_below = (
        torch.nn.functional.pad(x.cumsum(dim=1), (1, 0)) for x in (p, q, p * log_ratio)
    )
    p_above, q_above = p_below[:, -1:] - p_below, q_below[:, -1:] - q_below
    # The mass to move if p / q of a place were alpha, and if it were beta: (M, V).
    inverse = (-log_ratio).exp()
    excess = q_below[:, :-1] - p_below[:, :-1] * inverse  # ascending
    deficit = q_above[:, :-1] - p_above[:, :-1] * inverse  # negative, ascending
    low = (q * (p == 0)).sum(dim=1)  # moved even at alpha = 0
    high = (q - p).clamp(min=0).sum(dim=1)  # moved at alpha = 1
    best = torch.zeros_like(low)
    for _ in range(50):
        moved = ((low + high) / 2)[:, None]
        first, last = torch.searchsorted(excess, moved), torch.searchsorted(deficit, -moved)
        p_low, p_high = p_below.gather(1, first), p_above.gather(1, last)
        log_alpha = (p_low / (q_below.gather(1, first) - moved)).log()
        log_beta = (p_high / (q_above.gather(1, last) + moved)).log()
        kl_between = kl_below.gather(1, last) - kl_below.gather(1, first)
        is_within = (log_alpha * p_low + kl_between + log_beta * p_high <= max_kl)[:, 0]
        best = torch.where(is_within, log_alpha[:, 0], best)
        low = torch.where(is_within, low, moved[:, 0])
        high = torch.where(is_within, moved[:, 0], high)
    return best
