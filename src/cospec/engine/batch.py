"""The rows that are decoded together, and what models and drafter store of them.

Rolling back costs nothing: the cache (see `cospec.models.cache`) is read from where a row stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.drafters import Drafter
    from cospec.engine.rows import Row
    from cospec.models.cache import CachedModel

    Store: TypeAlias = CachedModel | Drafter


class Batch:
    """Rows 0, 1, ... of the stores, decoded in step; a subclass says how.

    Args:
        stores: Models and drafters that store something of each row.
        num_ahead: Most tokens that a row grows by in one step.
    """

    def __init__(self, stores: Sequence[Store], num_ahead: int) -> None:
        self.rows: list[Row] = []
        self._stored: list[list[int]] = []
        """Prompt that each cache row begins with, in use or not."""
        self._stores = stores
        self._num_ahead = num_ahead
        self._may_hold_nan = False

    def step(self) -> None:
        """Decode one block of every row."""
        raise NotImplementedError

    @torch.inference_mode()
    def admit(self, rows: list[Row]) -> None:
        """Add rows, which are all prompts or all branches.

        Of prompts all but the last token is read, of branches it is loaded.
        """
        first = len(self.rows)
        prompts = [row.prompt_ids[:-1] for row in rows if row.caches is None]
        assert len(prompts) in (0, len(rows)), "prompts and branches are not admitted together"
        for s, store in enumerate(self._stores):
            store.reserve(first + len(rows), max(map(len, rows)) + self._num_ahead)
            if prompts:
                store.prefill(prompts, first, self._stored)
            for r, row in enumerate(rows, first):
                if row.caches is not None:
                    saved: Any = row.caches[s] if s < len(row.caches) else None
                    store.load_row(r, saved, len(row) - 1)
        for row in rows:
            row.caches = None
        self.rows += rows
        self._stored[first : first + len(rows)] = [row.prompt_ids[:-1] for row in rows]

    @torch.inference_mode()
    def drop_finished(self) -> None:
        """Free the cache rows of finished prompts; the last rows move into the gaps.

        Once there was NaN, what is freed is cleared: it would spoil the prompt that comes there.
        """
        for i in reversed(range(len(self.rows))):
            if self.rows[i].finish_reason is None:
                continue
            last = self.rows.pop()
            if i < len(self.rows):
                self.rows[i] = last
                self._stored[i] = self._stored[len(self.rows)]
                for store in self._stores:
                    store.copy_row(len(self.rows), i)
            if self._may_hold_nan:
                self._stored[len(self.rows)] = []
                for store in self._stores:
                    store.clear(len(self.rows), 0)

    def _last_tokens(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the last token of each row, (B, 1), and its position, (B,)."""
        ids = torch.tensor([row.last_tokens(1) for row in self.rows], device=device)
        return ids, torch.tensor([len(row) - 1 for row in self.rows], device=device)

    def _save_finished(self) -> None:
        """Keep what is stored of finished rows that branches may leave."""
        for r, row in enumerate(self.rows):
            if row.finish_reason and row.keep_caches:
                row.caches = [store.save_row(r, len(row) - 1) for store in self._stores]

    def _clear_ahead(self, stores: Sequence[Store]) -> None:
        """Forget what lies ahead of each row: it may hold NaN.

        Masked slots get a weight of 0 in attention, but 0 times NaN is NaN.
        """
        self._may_hold_nan = True
        for store in stores:
            for r, row in enumerate(self.rows):
                store.clear(r, len(row) - 1)
