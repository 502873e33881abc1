"""One step of speculative decoding: propose, verify, arbitrate, walk.

The host waits for the device about ten times a block. After the forwards and after the arbiter it
fetches the results (with features for the trace, if the arbiter reports them). The other waits are
for small things: lists that it sends, such as last tokens, and selections of rows whose number it
needs. Where blocks may end early, it also waits after each drafted token and before the target's
forward, to read nothing beyond their ends.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from cospec.arbiters.guard import SelectiveArbiter
from cospec.engine.arbitrate import Decision, arbitrate
from cospec.engine.batch import Batch
from cospec.engine.verify import Verification, standing_probs, verify
from cospec.engine.walk import Block, walk
from cospec.errors import NonFiniteError
from cospec.models.cache import CachedModel, Output
from cospec.sampling import Chance
from cospec.types import Arbiter, Needs, Origin, Proposal

if TYPE_CHECKING:
    from cospec.config import DecodeConfig
    from cospec.drafters import Drafter
    from cospec.engine.rows import Row
    from cospec.models.pair import ModelPair


class SpeculativeBatch(Batch):
    """Rows decoded by a drafter, a target and an arbiter.

    Args:
        pair: The models.
        arbiter: Arbiter that rules at mismatches.
        drafter: Drafter that proposes tokens.
        config: Block length, batch size and other decoding options.
    """

    def __init__(
        self, pair: ModelPair, arbiter: Arbiter, drafter: Drafter, config: DecodeConfig
    ) -> None:
        self._target = CachedModel(pair.target, Needs.TARGET_HIDDEN in arbiter.needs)
        self._drafter, self._arbiter = drafter, arbiter
        self._k, self._keep_trace = config.k, config.keep_trace
        most = config.max_corrections
        self._max_corrections = math.inf if most is None else most
        super().__init__([self._target, drafter], config.k + 1)

    def admit(self, rows: list[Row]) -> None:
        """Add rows, and find those that the arbiter stands back from."""
        if isinstance(self._arbiter, SelectiveArbiter):
            for row in rows:
                row.is_foreign = self._arbiter.is_foreign(row.prompt_ids)
        super().admit(rows)

    @torch.inference_mode()
    def step(self) -> None:
        """Decode one block of every row."""
        chance = self._chance()
        for row in self.rows:
            num_corrections = row.count(Origin.CORRECTION)
            row.is_lossless = row.is_foreign or num_corrections >= self._max_corrections
        proposal = self._drafter.propose(self.rows, chance)
        verified = verify(self._read(proposal), proposal, chance)
        blocks = self._to_host(proposal, verified)
        if any(0 in block.is_finite for block in blocks):
            # A drafted token whose states are NaN also spoils the places before it: the mask gives
            # it a weight of 0, and 0 times NaN is NaN. Reading token by token avoids that.
            self._clear_ahead([self._target])
            verified = verify(self._read_one_by_one(proposal), proposal, chance)
            blocks = self._to_host(proposal, verified)
        decisions = arbitrate(
            self._arbiter,
            self.rows,
            blocks,
            proposal,
            verified,
            chance,
            keep_trace=self._keep_trace,
        )
        self._walk(blocks, decisions)
        if any(0 in block.is_finite or 0 in block.is_draft_finite for block in blocks):
            self._clear_ahead(self._stores)
        self._save_finished()

    def _chance(self) -> Chance:
        """Draw the block's random numbers, if any row or the arbiter needs some."""
        return Chance.draw(
            [row.config for row in self.rows],
            [row.generator for row in self.rows],
            self._k,
            self._target.device,
            needs_uniforms=Needs.UNIFORMS in self._arbiter.needs,
        )

    def _read(self, proposal: Proposal) -> Output:
        """Read the last token and the drafted ones, in one forward of the target.

        Nothing after the end of a row's block is read.
        """
        self._target.reserve(len(self.rows), max(map(len, self.rows)) + self._k)
        ids, starts = self._token_ids(proposal)
        window = self._target.window(starts, ids.shape[1])
        if self._drafter.ends_early and ids.shape[1] > 1:
            place = torch.arange(ids.shape[1], device=ids.device)
            window = window.only(place <= proposal.lengths[:, None])
        return self._target.read(ids, window, ids.shape[1])

    def _read_one_by_one(self, proposal: Proposal) -> Output:
        """Read the same tokens, in one forward for each place."""
        ids, starts = self._token_ids(proposal)
        window = self._target.window(starts, ids.shape[1])
        steps = [
            self._target.read(ids[:, j : j + 1], window.columns(j, j + 1))
            for j in range(ids.shape[1])
        ]
        hidden = [step.hidden for step in steps if step.hidden is not None]
        logits = torch.cat([step.logits for step in steps], dim=1)
        return Output(logits, torch.cat(hidden, dim=1) if hidden else None)

    def _token_ids(self, proposal: Proposal) -> tuple[torch.Tensor, list[int]]:
        """Return each row's last token and drafted ones, (B, K + 1), and their first positions."""
        last, starts = self._last_tokens(proposal.token_ids.device)
        return torch.cat([last, proposal.token_ids], dim=1), starts

    def _to_host(self, proposal: Proposal, verified: Verification) -> list[Block]:
        """Bring the inputs of the walk to the host in one go."""
        numbers = proposal.lengths[:, None]
        if proposal.num_forwards is not None:
            numbers = torch.stack([proposal.lengths, proposal.num_forwards], dim=1)
        flags = verified.is_match, verified.is_finite, proposal.is_finite
        parts = [numbers, proposal.token_ids, verified.target_ids, *flags]
        widths = [part.shape[1] for part in parts]
        shown: list[Any] = [()] * len(self.rows)
        if self._keep_trace and any(row.keep_probs for row in self.rows):
            shown = standing_probs(verified, proposal).tolist()
        blocks = []
        for row, probs in zip(torch.cat(parts, dim=1).tolist(), shown, strict=True):
            values = iter(row)
            (length, *forwards), ids, target_ids, is_match, is_finite, is_draft_finite = (
                [*islice(values, width)] for width in widths
            )
            num_forwards = forwards[0] if forwards else length * self._drafter.has_model
            flags_of_row = is_match, is_finite, is_draft_finite
            blocks.append(Block(length, ids, target_ids, *flags_of_row, num_forwards, probs))
        return blocks

    def _walk(self, blocks: list[Block], decisions: list[dict[int, Decision]]) -> None:
        """Append to each row the tokens of its block that stand; raise a row's error last."""
        error = None
        for row, block, decided in zip(self.rows, blocks, decisions, strict=True):
            try:
                walk(row, block, decided, keep_trace=self._keep_trace)
            except NonFiniteError as caught:
                error = error or caught
        if error is not None:
            raise error
