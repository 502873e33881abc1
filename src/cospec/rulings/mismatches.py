"""The batch of mismatches that an arbiter sees, and how its columns are computed.

Axes: T drafted tokens in the order of their rows, those of a block adjacent; M mismatches among
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from cospec.errors import ArbiterError
from cospec.types import MismatchBatch, Needs, Ruling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

COLUMNS = {
    Needs.TARGET_LOGITS: ("target_logits",),
    Needs.DRAFT_LOGITS: ("draft_logits",),
    Needs.LOOKAHEAD: ("lookahead_matches", "lookahead_log_p"),
    Needs.TARGET_HIDDEN: ("target_hidden", "target_hidden_after"),
    Needs.DRAFT_HIDDEN: ("draft_hidden",),
    Needs.UNIFORMS: ("uniforms",),
    Needs.BLOCK_LOG_Q: ("block_log_q",),
}
"""Fields of a `MismatchBatch` that answer each need."""


def make_batch(
    needs: Needs,
    supply: Mapping[Needs, Callable[[], tuple[Tensor, ...]]],
    **columns: Tensor,
) -> MismatchBatch:
    """Build the batch that an arbiter sees, with only the inputs that it needs.

    Args:
        needs: Needs of the arbiter.
        supply: By need, a function that returns its `COLUMNS`; called only if they are needed.
        **columns: The fields that every arbiter sees.
    """
    for need, names in COLUMNS.items():
        if need in needs:
            columns |= zip(names, supply[need](), strict=True)
    return MismatchBatch(**columns)


def check_ruling(ruling: object, batch: MismatchBatch, name: str) -> None:
    """Check that an arbiter's answer is a ruling on each mismatch of a batch.

    Raises:
        ArbiterError: It is no such ruling.
    """
    if not isinstance(ruling, Ruling):
        raise ArbiterError(f"arbiter {name} answered {ruling!r}; it must return a Ruling.")
    keep, score, size = ruling.keep_draft, ruling.score, (len(batch),)
    if not isinstance(keep, torch.Tensor) or keep.shape != size or keep.dtype != torch.bool:
        raise ArbiterError(
            f"arbiter {name} ruled with keep_draft {_described(keep)}; it must be a tensor of "
            f"torch.bool of shape {size}, one ruling a mismatch."
        )
    if score is not None and (not isinstance(score, torch.Tensor) or score.shape != size):
        raise ArbiterError(
            f"arbiter {name} ruled with score {_described(score)}; it must be None or a tensor of "
            f"shape {size}, one score a mismatch."
        )

    features = ruling.features
    if features is not None and not (
        isinstance(features, torch.Tensor) and features.ndim == 2 and len(features) == len(batch)
    ):
        raise ArbiterError(
            f"arbiter {name} ruled with features {_described(features)}; they must be None or a "
            f"tensor of shape ({len(batch)}, F), one row a mismatch."
        )


def _described(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"of shape {tuple(value.shape)} and {value.dtype}"
    return repr(value)


class LookAhead(NamedTuple):
    """The target's view of the drafted tokens after each mismatch."""

    matches: Tensor
    """True for each token that it accepts, (M, N) bool; False where the block has ended."""
    log_p: Tensor
    """Their log-probabilities, (M, N) float32; 0 where the block has ended."""


def token_log_p(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Return log-probabilities of tokens (...) under raw logits (..., V), (...) float32."""
    logits = logits.float()
    return logits.gather(-1, token_ids[..., None])[..., 0] - logits.logsumexp(dim=-1)


def in_width(logits: Tensor, vocab_size: int) -> Tensor:
    """Return logits in the target's width, (..., V): padded with -inf, or cut if they are wider."""
    if logits.shape[-1] == vocab_size:
        return logits
    return torch.nn.functional.pad(logits, (0, vocab_size - logits.shape[-1]), value=-torch.inf)


def token_probs(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Return probabilities of N tokens per row (M, N) under raw logits (M, V), (M, N) float32."""
    logits = logits.float()
    return (logits.gather(1, token_ids) - logits.logsumexp(dim=1, keepdim=True)).exp()


def look_ahead(
    index: Tensor,
    num_ahead: int,
    blocks: Tensor,
    is_drafted: Tensor,
    is_match: Tensor,
    log_p: Tensor,
) -> LookAhead:
    """Return the target's view of the drafted tokens after each mismatch.

    The target judged each given the drafted tokens before it, so this is its view of the text that
    follows if the draft's token is kept.

    Args:
        index: Indices of the mismatches among the T tokens, (M,).
        num_ahead: Tokens to look ahead, N.
        blocks: Block of each token, (T,).
        is_drafted: Whether each is a drafted token rather than padding, (T,) bool.
        is_match: Whether the target accepts it, (T,) bool.
        log_p: Its log-probability, (T,) float32.
    """
    ahead = index[:, None] + torch.arange(1, num_ahead + 1, device=index.device)  # (M, N)
    ahead, is_inside = _inside(ahead, blocks, blocks[index], is_drafted)
    return LookAhead(is_inside & is_match[ahead], torch.where(is_inside, log_p[ahead], 0.0))


def whole_block(first: Tensor, k: int, blocks: Tensor, is_drafted: Tensor, log_q: Tensor) -> Tensor:
    """Return the draft's log-probability of each token of a block, (M, K); 0 after its end.

    Args:
        first: Index of the first token of each mismatch's block, (M,).
        k: K, the most tokens of a block.
        blocks: Block of each token, (T,).
        is_drafted: Whether each is a drafted token rather than padding, (T,) bool.
        log_q: Its log-probability, (T,) float32.
    """
    places = first[:, None] + torch.arange(k, device=first.device)  # (M, K)
    places, is_inside = _inside(places, blocks, blocks[first], is_drafted)
    return torch.where(is_inside, log_q[places], 0.0)


def _inside(
    index: Tensor, blocks: Tensor, wanted: Tensor, is_drafted: Tensor
) -> tuple[Tensor, Tensor]:
    """Return valid indices (M, N), and which are drafted tokens of the wanted blocks (M,)."""
    exists = index < len(blocks)
    index = index.clamp(max=len(blocks) - 1)
    return index, exists & (blocks[index] == wanted[:, None]) & is_drafted[index]


def rank_in_row(rows: Tensor) -> Tensor:
    """Return the number of entries before each in the same row, (M,), given their rows in order."""
    rows = rows.contiguous()
    return torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
