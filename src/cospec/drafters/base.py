"""The protocol of a drafter: admit rows, propose tokens, keep and load a row.

An engine makes a drafter for each list of prompts. Row ``b`` of a batch is row ``b`` of whatever
the drafter stores. The engine only ever takes back tokens at the end of a row, so a drafter that
stores something by position rolls back by reading again from an earlier one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch

from cospec.sampling import one_hot
from cospec.types import Needs, Proposal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.config import DecodeConfig
    from cospec.models.pair import ModelPair
    from cospec.sampling import Chance
    from cospec.types import Origin, Stats


class DraftRow(Protocol):
    """The part of a row that a drafter sees."""

    prompt_ids: list[int]
    generated: list[int]
    origins: list[Origin]
    stats: Stats
    stop_ids: frozenset[int]
    is_lossless: bool

    @property
    def drafted(self) -> DraftRow:
        """The row as a draft model sees it, which may have a prompt of its own."""
        ...

    def __len__(self) -> int:
        """Tokens of prompt and completion together."""
        ...

    def last_tokens(self, num_tokens: int) -> list[int]:
        """The last tokens of prompt and completion together."""
        ...


class Drafter:
    """Proposes up to k tokens for each row of a batch.

    A drafter is a subclass; one that stores nothing writes `__init__` and `propose` only.

    Attributes:
        provides: `Needs.DRAFT_LOGITS` and `Needs.DRAFT_HIDDEN`, if its proposals have them. An
            arbiter that needs what is missing is refused when the engine is made.
        has_model: Whether it runs a model. If so, its forwards are counted, and a branch needs the
            drafter's cache of the rollout.
        ends_early: Whether blocks of a batch may differ in length. If so, the target reads each to
            its own end. If they never do, False saves a wait for the device.
    """

    provides: ClassVar[Needs] = Needs.NOTHING
    has_model: ClassVar[bool] = False
    ends_early: bool = True

    def __init__(self, pair: ModelPair, config: DecodeConfig, needs: Needs) -> None:
        """Make a drafter.

        Args:
            pair: The models.
            config: Block length and other decoding options.
            needs: Inputs that the arbiter asks for.

        Raises:
            CospecError: It cannot draft for this pair, or with these settings.
        """

    def propose(self, rows: Sequence[DraftRow], chance: Chance) -> Proposal:
        """Propose tokens that may follow each row.

        Where a row samples, its tokens must be drawn from `Proposal.probs`, or lossless decoding is
        not exact.
        """
        raise NotImplementedError

    def reserve(self, num_rows: int, num_tokens: int) -> None:
        """Make room for `num_rows` rows of up to `num_tokens` tokens each."""

    def prefill(
        self, prompts: list[list[int]], first_row: int, held: list[list[int]] | None = None
    ) -> None:
        """Read the prompts of new rows, all but the last token of each.

        Args:
            prompts: Token ids; a list may be empty.
            first_row: Row of the first prompt.
            held: Tokens that rows 0, 1, ... have read, until a prompt replaces them.
        """

    def save_row(self, row: int, num_tokens: int) -> Any:  # Any: only `load_row` looks into it
        """Return the stored state of a row's first tokens, for branches that start from it."""

    def load_row(self, row: int, saved: Any, num_tokens: int) -> None:  # Any: from `save_row`
        """Store the first tokens of a saved row in a row."""

    def copy_row(self, source: int, destination: int) -> None:
        """Store row `source` in place of row `destination`."""

    def clear(self, row: int, start: int) -> None:
        """Forget a row's stored state from a position on: it may hold NaN."""


def found_proposal(
    found: Sequence[list[int]], vocab_size: int, chance: Chance, device: torch.device
) -> Proposal:
    """Return tokens that no model drew as a proposal.

    Where a row samples, each is drawn from a distribution with all its mass on it. It is accepted
    with probability p(token), and the residual is p without that token.

    Args:
        found: Tokens of each row, a list that may be empty.
        vocab_size: Vocabulary size of the target.
        chance: Distributions and random numbers of the block.
        device: Device of the proposal.
    """
    width = max(map(len, found))
    padded = [ids + [0] * (width - len(ids)) for ids in found]
    token_ids = torch.tensor(padded, dtype=torch.int64, device=device)  # (B, K)
    lengths = torch.tensor([len(ids) for ids in found], device=device)
    probs = None
    if chance.warper is not None:
        is_drafted = torch.arange(width, device=device) < lengths[:, None]  # (B, K)
        probs = one_hot(token_ids, vocab_size) * is_drafted[..., None]
    is_finite = torch.ones_like(token_ids, dtype=torch.bool)
    return Proposal(token_ids, lengths, is_finite, probs=probs)
