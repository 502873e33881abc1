"""The features: name, needs and formula side by side, by version.

Versions never change: checkpoints name theirs. To add a feature or to change a formula, add a new
version to `SCALARS` (a list that extends the last one or replaces rows of it) and to `HIDDEN`. Then
pin its values (see tests/features/test_versions.py).

Sources of the ideas: gap and rank come from relaxed acceptance rules, entropies and divergences
from cascades (2405.19261) and fuzzy decoding (2502.20704), the look-ahead from FLy (2511.22972).
The position in block and text comes from our own audit, the confidence over a whole answer from
language model cascades (2404.10136).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from cospec.features.tokens import KINDS
from cospec.types import Needs

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from cospec.types import MismatchBatch

FLOOR = -20.0
"""Smallest log-probability; smaller ones are cut to it. Logarithms are natural."""


@dataclass(frozen=True)
class MismatchView:
    """A batch of mismatches with values that several formulas share, each computed once.

    Attributes:
        batch: M mismatches.
        kinds: Index into `KINDS` of each token, (V,) int64.
        embeddings: The target's embeddings of all tokens, (V, E), if the spec has them.
    """

    batch: MismatchBatch
    kinds: Tensor
    embeddings: Tensor | None = None

    @cached_property
    def ids(self) -> Tensor:
        """The draft's and the target's token, (M, 2)."""
        return torch.stack([self.batch.draft_ids, self.batch.target_ids], dim=1)

    @cached_property
    def _raw_logs(self) -> Tensor:
        return torch.stack([self.batch.log_p, self.batch.log_q], dim=1)

    @cached_property
    def probs(self) -> Tensor:
        """Probabilities of p and q, (M, 2, V)."""
        return self._raw_logs.exp()

    @cached_property
    def logs(self) -> Tensor:
        """Their logarithms, cut at `FLOOR`, (M, 2, V)."""
        return self._raw_logs.clamp(min=FLOOR)

    @cached_property
    def chosen(self) -> tuple[Tensor, ...]:
        """Log-probability of both tokens under p, then under q, four of (M,)."""
        index = self.ids[:, None].expand(-1, 2, -1)
        return self.logs.gather(2, index).flatten(1).unbind(dim=1)

    @cached_property
    def ranks(self) -> tuple[Tensor, ...]:
        """Log of 1 + rank of the draft's token under p, and of the target's under q, (M,) each."""
        p_draft, _, _, q_target = self.chosen
        bars = torch.stack([p_draft, q_target], dim=1)[:, :, None]
        return (self.logs > bars).sum(dim=2).float().log1p().unbind(dim=1)

    @cached_property
    def entropies(self) -> tuple[Tensor, ...]:
        """Entropy of p and of q, (M,) each."""
        return (-(self.probs * self.logs).sum(dim=2)).unbind(dim=1)

    @cached_property
    def margins(self) -> tuple[Tensor, ...]:
        """Log-probability of the best token minus the second best's, of p and of q, (M,) each."""
        first, second = self.logs.topk(2, dim=2).values.unbind(dim=2)
        return (first - second).unbind(dim=1)

    @cached_property
    def divergences(self) -> tuple[Tensor, ...]:
        """KL(p, q), and KL(q, p) negated, (M,) each."""
        return (self.probs * (self.logs[:, :1] - self.logs[:, 1:])).sum(dim=2).unbind(dim=1)

    @cached_property
    def matches(self) -> Tensor:
        """True where the target accepts the drafted tokens ahead, (M, K - 1) bool."""
        assert self.batch.lookahead_matches is not None, "declare Needs.LOOKAHEAD"
        return self.batch.lookahead_matches

    @cached_property
    def log_p_ahead(self) -> Tensor:
        """Log-probability of the drafted tokens ahead, (M, K - 1)."""
        assert self.batch.lookahead_log_p is not None, "declare Needs.LOOKAHEAD"
        return self.batch.lookahead_log_p.clamp(min=FLOOR)

    @cached_property
    def log_q_block(self) -> Tensor:
        """The draft's log-probability of each token of the block, (M, K); 0 after its end."""
        assert self.batch.block_log_q is not None, "declare Needs.BLOCK_LOG_Q"
        return self.batch.block_log_q.clamp(min=FLOOR)

    @cached_property
    def num_ahead(self) -> Tensor:
        """Drafted tokens ahead in the block, (M,)."""
        return (self.batch.block_lengths - 1 - self.batch.block_positions).float()

    @cached_property
    def flags(self) -> tuple[Tensor, ...]:
        """1 where the draft's token is of each kind, then where the target's is, (M,) each."""
        kinds = self.kinds.to(self.ids.device)[self.ids]  # (M, 2)
        # Not one_hot, which looks at the values and so may wait for the device.
        is_kind = kinds[:, :, None] == torch.arange(len(KINDS), device=kinds.device)
        return is_kind.float().flatten(1).unbind(dim=1)


@dataclass(frozen=True)
class Feature:
    """One number of a mismatch."""

    name: str
    needs: Needs
    value: Callable[[MismatchView], Tensor]
    """(M,) float32, finite if the logits are."""
    of_draft: bool = False
    """True if the draft alone gives it, before the target has read anything."""


def _flag(i: int) -> Callable[[MismatchView], Tensor]:
    return lambda v: v.flags[i]


_NONE, _P, _Q, _BOTH, _AHEAD = (
    *(Needs.NOTHING, Needs.TARGET_LOGITS, Needs.DRAFT_LOGITS, Needs.LOGITS, Needs.LOOKAHEAD),
)
_SCALARS_1 = (
    Feature("log_p_draft", _P, lambda v: v.chosen[0]),
    Feature("log_p_target", _P, lambda v: v.chosen[1]),
    Feature("log_q_draft", _Q, lambda v: v.chosen[2], of_draft=True),
    Feature("log_q_target", _Q, lambda v: v.chosen[3]),
    Feature("gap_p", _P, lambda v: v.chosen[1] - v.chosen[0]),
    Feature("gap_q", _Q, lambda v: v.chosen[2] - v.chosen[3]),
    Feature("log_rank_p_draft", _P, lambda v: v.ranks[0]),
    Feature("log_rank_q_target", _Q, lambda v: v.ranks[1]),
    Feature("entropy_p", _P, lambda v: v.entropies[0]),
    Feature("entropy_q", _Q, lambda v: v.entropies[1], of_draft=True),
    Feature("margin_p", _P, lambda v: v.margins[0]),
    Feature("margin_q", _Q, lambda v: v.margins[1], of_draft=True),
    Feature("kl_p_q", _BOTH, lambda v: v.divergences[0]),
    Feature("kl_q_p", _BOTH, lambda v: -v.divergences[1]),
    Feature("overlap", _BOTH, lambda v: v.probs.amin(dim=1).sum(dim=1)),
    # Matches until the first mismatch, and their share of what is left of the block.
    Feature("lookahead_run", _AHEAD, lambda v: v.matches.int().cumprod(dim=1).sum(dim=1).float()),
    Feature("lookahead_share", _AHEAD, lambda v: v.matches.sum(dim=1) / v.num_ahead.clamp(min=1)),
    Feature("lookahead_log_p", _AHEAD, lambda v: v.log_p_ahead.sum(dim=1)),
    Feature(
        "lookahead_min_log_p",
        _AHEAD,
        lambda v: torch.nn.functional.pad(v.log_p_ahead, (0, 1)).min(dim=1).values,
    ),
    Feature("lookahead_tokens", _AHEAD, lambda v: v.num_ahead),
    Feature("block_position", _NONE, lambda v: v.batch.block_positions.float()),
    Feature("log_position", _NONE, lambda v: v.batch.positions.float().log1p()),
    Feature("log_num_overrides", _NONE, lambda v: v.batch.num_overrides.float().log1p()),
    *(Feature(f"draft_{k}", _NONE, _flag(i), of_draft=True) for i, k in enumerate(KINDS)),
    *(Feature(f"target_{k}", _NONE, _flag(len(KINDS) + i)) for i, k in enumerate(KINDS)),
)
_BLOCK = _Q | Needs.BLOCK_LOG_Q
_SCALARS_2 = (
    *_SCALARS_1,
    # How sure the draft is of the whole block, and the target of what follows: per token, so that
    # blocks of any length compare.
    Feature("block_mean_log_q", _BLOCK, lambda v: v.log_q_block.sum(dim=1) / v.batch.block_lengths),
    Feature("block_min_log_q", _BLOCK, lambda v: v.log_q_block.amin(dim=1)),
    Feature(
        "lookahead_mean_log_p",
        _AHEAD,
        lambda v: v.log_p_ahead.sum(dim=1) / v.num_ahead.clamp(min=1),
    ),
    Feature("lookahead_mismatches", _AHEAD, lambda v: v.num_ahead - v.matches.sum(dim=1)),
)
SCALARS: dict[int, tuple[Feature, ...]] = {1: _SCALARS_1, 2: _SCALARS_2}
"""Scalars by version. They are the same for every pair, so that an arbiter can be tried on another
pair, and in every engine, so that an arbiter trained here rules alike in vLLM."""


def _state(state: Tensor | None) -> Tensor:
    assert state is not None, "declare Needs.HIDDEN"
    return state


def _embedding(view: MismatchView, ids: Tensor) -> Tensor:
    assert view.embeddings is not None, "fit the features to a pair"
    return view.embeddings[ids]


@dataclass(frozen=True)
class States:
    """A vector of a mismatch that is meaningful for one pair only, with a width set by the pair."""

    name: str
    needs: Needs
    width: str
    """Setting of the spec that has the width: target, draft, or embedding."""
    value: Callable[[MismatchView], Tensor]
    """(M, width)."""
    of_draft: bool = False
    """As in `Feature`."""
    of_judge: bool = False
    """True if AutoJudge (2504.20039) uses it; AutoJudge uses nothing else."""


_STATES = (
    States("target_hidden", Needs.TARGET_HIDDEN, "target", lambda v: _state(v.batch.target_hidden)),
    States(
        "target_hidden_after",
        Needs.TARGET_HIDDEN,
        "target",
        lambda v: _state(v.batch.target_hidden_after),
        of_judge=True,
    ),
    States(
        "draft_hidden",
        Needs.DRAFT_HIDDEN,
        "draft",
        lambda v: _state(v.batch.draft_hidden),
        of_draft=True,
        of_judge=True,
    ),
)
_EMBEDDINGS = (
    States(
        "draft_embedding",
        _NONE,
        "embedding",
        lambda v: _embedding(v, v.batch.draft_ids),
        of_draft=True,
    ),
    States("target_embedding", _NONE, "embedding", lambda v: _embedding(v, v.batch.target_ids)),
)
HIDDEN: dict[int, tuple[int, tuple[States, ...]]] = {
    1: (1, _STATES),
    2: (1, (*_STATES, *_EMBEDDINGS)),
    3: (2, (*_STATES, *_EMBEDDINGS)),
}
"""Contents of the ``hidden`` spec by version: a version of the scalars, and states after them."""
