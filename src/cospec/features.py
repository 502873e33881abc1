"""What an arbiter sees of a mismatch, as a fixed list of numbers.

The features of the ``scalar`` spec are the same for every pair, so that what is learnt on one pair
can be tried on another, and in every engine, so that an arbiter trained here rules alike in vLLM.
They are raw; whoever learns from them normalises and freezes what it normalised with.

Where the ideas come from: the gap and rank of relaxed acceptance rules, entropies and divergences
of cascades (2405.19261) and fuzzy decoding (2502.20704), the look-ahead of FLy (2511.22972), the
position in block and text of our own audit.
"""

from __future__ import annotations

import hashlib
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from cospec.types import Needs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from cospec.types import MismatchBatch

KINDS = ("digit", "punctuation", "space", "word", "piece")
"""Kinds of tokens; whatever is none of the first three is a word if a space leads it."""

SCALAR_NAMES = (
    "log_p_draft",
    "log_p_target",
    "log_q_draft",
    "log_q_target",
    "gap_p",
    "gap_q",
    "log_rank_p_draft",
    "log_rank_q_target",
    "entropy_p",
    "entropy_q",
    "margin_p",
    "margin_q",
    "kl_p_q",
    "kl_q_p",
    "overlap",
    "lookahead_run",
    "lookahead_share",
    "lookahead_log_p",
    "lookahead_min_log_p",
    "lookahead_tokens",
    "block_position",
    "log_position",
    "log_num_overrides",
    *(f"draft_{kind}" for kind in KINDS),
    *(f"target_{kind}" for kind in KINDS),
)
"""The features in order. Logarithms are natural; log-probabilities are cut at `FLOOR`."""

FLOOR = -20.0
SCALAR_NEEDS = Needs.LOGITS | Needs.LOOKAHEAD


@dataclass(frozen=True)
class ScalarFeatures:
    """The ``scalar`` spec, version 1.

    Attributes:
        kinds: Index into `KINDS` of each token, (V,) int64.
    """

    kinds: Tensor

    names = SCALAR_NAMES
    needs = SCALAR_NEEDS

    @classmethod
    def for_tokenizer(
        cls, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int
    ) -> ScalarFeatures:
        """Look up the kind of every token; without a tokenizer all are word pieces."""
        kinds = torch.full((vocab_size,), KINDS.index("piece"))
        if tokenizer is not None:
            for i in range(min(len(tokenizer), vocab_size)):
                kinds[i] = KINDS.index(kind_of(str(tokenizer.decode([i]))))
        return cls(kinds)

    def __call__(self, batch: MismatchBatch) -> Tensor:
        """The features of each mismatch, (M, F) float32, all finite if the logits are."""
        log_p, log_q = batch.log_p.clamp(min=FLOOR), batch.log_q.clamp(min=FLOOR)  # (M, V)
        p, q = batch.log_p.exp(), batch.log_q.exp()
        d, t = batch.draft_ids[:, None], batch.target_ids[:, None]
        p_d, p_t = log_p.gather(1, d)[:, 0], log_p.gather(1, t)[:, 0]
        q_d, q_t = log_q.gather(1, d)[:, 0], log_q.gather(1, t)[:, 0]
        top_p, top_q = (x.topk(2, dim=1).values for x in (log_p, log_q))
        columns = [
            *(p_d, p_t, q_d, q_t, p_t - p_d, q_d - q_t),
            (log_p > p_d[:, None]).sum(dim=1).float().log1p(),
            (log_q > q_t[:, None]).sum(dim=1).float().log1p(),
            *(-(p * log_p).sum(dim=1), -(q * log_q).sum(dim=1)),
            *(top_p[:, 0] - top_p[:, 1], top_q[:, 0] - top_q[:, 1]),
            *((p * (log_p - log_q)).sum(dim=1), (q * (log_q - log_p)).sum(dim=1)),
            torch.minimum(p, q).sum(dim=1),
            *_lookahead(batch),
            batch.block_positions.float(),
            batch.positions.float().log1p(),
            batch.num_overrides.float().log1p(),
        ]
        kinds = self.kinds.to(d.device)
        flags = [
            torch.nn.functional.one_hot(kinds[ids[:, 0]], len(KINDS)).float() for ids in (d, t)
        ]
        return torch.cat([torch.stack(columns, dim=1), *flags], dim=1)


def _lookahead(batch: MismatchBatch) -> list[Tensor]:
    """Matches until the first mismatch, their share, the log-probabilities, and how many count."""
    matches, log_p = batch.lookahead_matches, batch.lookahead_log_p  # (M, K - 1)
    assert matches is not None and log_p is not None, "declare Needs.LOOKAHEAD"
    num_ahead = (batch.block_length - 1 - batch.block_positions).float()  # (M,)
    run = matches.int().cumprod(dim=1).sum(dim=1).float()
    share = matches.sum(dim=1) / num_ahead.clamp(min=1)
    log_p = log_p.clamp(min=FLOOR)
    least = torch.nn.functional.pad(log_p, (0, 1)).min(dim=1).values
    return [run, share, log_p.sum(dim=1), least, num_ahead]


def kind_of(text: str) -> str:
    """The kind of a token by its text, one of `KINDS`."""
    bare = text.strip()
    if not bare:
        return "space"
    if bare.isdecimal():
        return "digit"
    if all(c in string.punctuation or not (c.isalnum() or c.isspace()) for c in bare):
        return "punctuation"
    return "word" if text[0].isspace() else "piece"


def spec_hash(names: tuple[str, ...]) -> str:
    """A short hash of a list of features, by which a saved arbiter knows its own."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
