"""The rows that are decoded together, and their state in models and drafter.

Rolling back costs nothing: reading goes on from a row's length (see `cospec.models.cache`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.drafters import Drafter
    from cospec.engine.rows import DraftView, Row
    from cospec.models.cache import CachedModel

    Store: TypeAlias = CachedModel | Drafter


class Batch:
    """Rows 0, 1, ... of the stores, decoded in step; a subclass implements `step`.

    Args:
        stores: Models and drafters that store state for each row, the main model first.
        num_ahead: Most tokens that a row can grow by in one step.
    """

    def __init__(self, stores: Sequence[Store], num_ahead: int) -> None:
        self.rows: list[Row] = []
        self._stored: list[list[list[int]]] = [[] for _ in stores]
        """By store, the prompt that each of its rows begins with, in use or not."""
        self._stores = stores
        self._num_ahead = num_ahead
        self._may_hold_nan = False

    def step(self) -> None:
        """Decode one block of every row."""
        raise NotImplementedError

    @torch.inference_mode()
    def admit(self, rows: list[Row]) -> None:
        """Add rows, either all prompts or all branches.

        All but the last token of a row is read for prompts, and loaded for branches.
        """
        first = len(self.rows)
        num_prompts = sum(row.caches is None for row in rows)
        assert num_prompts in (0, len(rows)), "prompts and branches are not admitted together"
        for s, (store, stored) in enumerate(zip(self._stores, self._stored, strict=True)):
            seen = _seen(rows, s)
            prompts = [row.prompt_ids[:-1] for row in seen]
            store.reserve(first + len(rows), max(map(len, seen)) + self._num_ahead)
            if num_prompts:
                store.prefill(prompts, first, stored)
            for r, row in enumerate(seen, first):
                if row.caches is not None:
                    saved: Any = row.caches[s] if s < len(row.caches) else None
                    store.load_row(r, saved, len(row) - 1)
            # A drafter may have saved less than a prompt: of branches, only the main model's count.
            known = prompts if num_prompts or s == 0 else [[] for _ in rows]
            stored[first : first + len(rows)] = known
        for row in rows:
            row.caches = None
        self.rows += rows

    @torch.inference_mode()
    def drop_finished(self) -> None:
        """Free the cache rows of finished prompts; the last rows move into the gaps.

        After NaN has occurred, freed rows are cleared: NaN would spoil the next prompt there.
        """
        for i in reversed(range(len(self.rows))):
            if self.rows[i].finish_reason is None:
                continue
            last = self.rows.pop()
            if i < len(self.rows):
                self.rows[i] = last
                for store, stored in zip(self._stores, self._stored, strict=True):
                    stored[i] = stored[len(self.rows)]
                    store.copy_row(len(self.rows), i)
            if self._may_hold_nan:
                for store, stored in zip(self._stores, self._stored, strict=True):
                    stored[len(self.rows)] = []
                    store.clear(len(self.rows), 0)

    def _last_tokens(self, device: torch.device) -> tuple[Tensor, list[int]]:
        """Return the last token of each row, (B, 1), and their positions."""
        ids = torch.tensor([row.last_tokens(1) for row in self.rows], device=device)
        return ids, [len(row) - 1 for row in self.rows]

    def _save_finished(self) -> None:
        """Save the caches of finished rows that branches may start from."""
        for r, row in enumerate(self.rows):
            if row.finish_reason and row.keep_caches:
                row.caches = [
                    store.save_row(r, len(_seen([row], s)[0]) - 1)
                    for s, store in enumerate(self._stores)
                ]

    def _clear_ahead(self, stores: Sequence[Store]) -> None:
        """Forget what lies ahead of each row: it may hold NaN.

        Masked slots get a weight of 0 in attention, but 0 times NaN is NaN.
        """
        self._may_hold_nan = True
        for store in stores:
            for r, row in enumerate(_seen(self.rows, self._stores.index(store))):
                store.clear(r, len(row) - 1)


def _seen(rows: Sequence[Row], store: int) -> list[Row | DraftView]:
    """Return rows as a store sees them: the draft may have its own prompt."""
    return [row.drafted if store else row for row in rows]
