"""One causal language model with a ragged key-value cache.

The only file that knows Hugging Face caches, attention masks and position ids.

Rows of a batch accept different numbers of tokens, so their lengths drift apart. Here row ``b``
keeps its token ``i`` in slot ``i`` of its own strip of one preallocated buffer. Reading writes
wherever the caller says, so rolling back is nothing but reading again from an earlier position:
slots after it hold garbage that the mask hides until they are written anew. There are no dead
slots to compact, and prompts of different length need no left padding.

Sliding-window layers keep all their slots and are masked to the window, which is exact for any
rollback at the price of memory.
"""

from __future__ import annotations

import inspect
from threading import get_ident
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from transformers.cache_utils import Cache

from cospec.models.attention import can_go_without_padding, sums_in_parts, without_padding
from cospec.models.prefill import plan_prefill
from cospec.models.support import attention_windows, check_supported, context_length, mask_strips

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

_SLOT_MULTIPLE = 64  # attention spans are rounded up to this, so that shapes stay the same
_PREFILL_CHUNK = 512
_MOST_PADDING = 48  # tokens by which ranges that are read together may differ in length

SavedRow: TypeAlias = "list[tuple[Tensor, Tensor]]"
"""Stored keys and values of one row, by layer, (slots, heads, head size) each."""


class Window(NamedTuple):
    """The places of the next tokens of a range of rows, and their attention masks.

    One window is computed per block; the draft's steps read column ranges of it.
    """

    positions: Tensor
    """Position ids, (B, n)."""
    slots: Tensor
    """Slots in the strips of all rows, one strip after the other, (B, n)."""
    masks: dict[str, Tensor]
    """By layer type: additive mask, (B, 1, n, S)."""
    rows: slice | Tensor
    """B cache rows: a range, whose strips are read in place, or indices of strips to copy."""
    wanted: Tensor | None = None
    """Indices of the tokens to read among all B n, (T,) int64, ascending; None for all. Slots of
    the others stay as they were, or get padding if the model needs it."""

    def only(self, is_wanted: Tensor) -> Window:
        """The window of the marked tokens, (B, n) bool; others need not be read."""
        wanted = is_wanted.flatten().nonzero()[:, 0]
        return self._replace(wanted=None if len(wanted) == is_wanted.numel() else wanted)

    def columns(self, start: int, stop: int) -> Window:
        """The window of tokens `start` to `stop` - 1."""
        assert self.wanted is None, "take the columns first"
        masks = {kind: mask[:, :, start:stop] for kind, mask in self.masks.items()}
        positions, slots = self.positions[:, start:stop], self.slots[:, start:stop]
        return Window(positions, slots, masks, self.rows)


class Output(NamedTuple):
    """The output of a forward."""

    logits: Tensor
    """(B, N, V) of the last N tokens of the window; meaningless for those that were not read."""
    hidden: Tensor | None
    """Hidden states that the output matrix was applied to, (B, N, H), if asked for."""


class _RaggedCache(Cache):
    """Keys and values of all layers, each (rows, slots, heads, head size), written in place."""

    def __init__(self, slot_multiple: int) -> None:
        super().__init__(layers=[])
        self._slot_multiple = slot_multiple
        self.num_rows = self.num_slots = 0
        self.buffers: list[tuple[Tensor, Tensor]] = []
        self._window: Window | None = None
        self._flat_slots: Tensor | None = None

    def aim(self, window: Window) -> None:
        """Direct the next forward to the slots of `window`."""
        slots = window.slots.reshape(-1)
        self._window = window
        self._flat_slots = slots if window.wanted is None else slots[window.wanted]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Called by each attention layer: store (B, heads, n, size), return all visible slots.

        Without padding, the stored tensors are (1, heads, T, size).
        """
        assert self._window is not None and self._flat_slots is not None, "aim first"
        if layer_idx == len(self.buffers):
            self.buffers.append((self._allocate(key_states), self._allocate(value_states)))
        window, slots = self._window, self._flat_slots.to(key_states.device)
        rows = window.rows  # a layer may be on another device than the inputs
        rows = rows if isinstance(rows, slice) else rows.to(key_states.device)
        # Written in place and before anything is read: tokens of this forward see each other, and
        # whatever an earlier, rolled-back block left in later slots is masked until it is replaced.
        span = next(iter(window.masks.values())).shape[-1]
        seen = []
        for buffer, states in zip(self.buffers[layer_idx], (key_states, value_states), strict=True):
            new = states.transpose(1, 2).flatten(0, 1)  # (B n, heads, size)
            buffer.view(-1, *buffer.shape[2:]).index_copy_(0, slots, new)
            seen.append(buffer[rows, :span].transpose(1, 2))  # (B, heads, S, size)
        return seen[0], seen[1]

    def rounded_up(self, num_slots: int) -> int:
        """Round up to a number of slots that may be stored or read."""
        return -(-num_slots // self._slot_multiple) * self._slot_multiple

    def _allocate(self, states: Tensor) -> Tensor:
        _, num_heads, _, size = states.shape
        return states.new_zeros(self.num_rows, self.num_slots, num_heads, size)

    def reserve(self, num_rows: int, num_slots: int) -> None:
        """Grow to at least this many rows and slots, keeping what is stored."""
        if num_rows <= self.num_rows and num_slots <= self.num_slots:
            return
        old_rows, old_slots = self.num_rows, self.num_slots
        self.num_rows = max(num_rows, old_rows)
        # Zeroed, not empty: masked slots are still multiplied by 0, and 0 times NaN is NaN.
        if num_slots > old_slots:  # by half at least, so that copying stays rare
            self.num_slots = self.rounded_up(max(num_slots, old_slots * 3 // 2))

        def grown(buffer: Tensor) -> Tensor:
            new = buffer.new_zeros(self.num_rows, self.num_slots, *buffer.shape[2:])
            new[:old_rows, :old_slots] = buffer
            return new

        for layer, (keys, values) in enumerate(self.buffers):  # never two whole caches at once
            self.buffers[layer] = grown(keys), grown(values)

    def copy_row(self, source: int, destination: int) -> None:
        for pair in self.buffers:
            for buffer in pair:
                buffer[destination] = buffer[source]

    def share(self, sources: list[int], rows: list[int], num_slots: int) -> None:
        """Copy the first slots of each row of `sources` to its row of `rows`, all at once."""
        for pair in self.buffers:
            for buffer in pair:
                buffer[rows, :num_slots] = buffer[sources, :num_slots]

    def save_row(self, row: int, num_slots: int) -> SavedRow:
        return [
            (keys[row, :num_slots].clone(), vals[row, :num_slots].clone())
            for keys, vals in self.buffers
        ]

    def load_row(self, row: int, saved: SavedRow, num_slots: int) -> None:
        for layer, (keys, values) in enumerate(saved):
            if layer == len(self.buffers):  # nothing was read yet
                shape = self.num_rows, self.num_slots, *keys.shape[1:]
                self.buffers.append((keys.new_zeros(shape), values.new_zeros(shape)))
            for buffer, part in zip(self.buffers[layer], (keys, values), strict=True):
                buffer[row, :num_slots] = part[:num_slots]

    def clear(self, row: int, start: int) -> None:
        """Zero what `row` stored from slot `start` on."""
        for pair in self.buffers:
            for buffer in pair:
                buffer[row, start:] = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Not used: the caller passes positions and masks."""
        return 0


class CachedModel:
    """A causal language model with the ragged cache of one engine.

    Attributes:
        model: The Hugging Face model, in evaluation mode.
        context_length: Most positions that a row may have.
        vocab_size: Width of the logits.
        device: Device of its inputs.
    """

    def __init__(self, model: PreTrainedModel, capture_hidden: bool = False) -> None:
        """Wrap `model`; with `capture_hidden`, `read` returns last hidden states as well.

        Raises:
            UnsupportedModelError: The model keeps state that cannot be rolled back.
        """
        check_supported(model)
        self.model = model
        self.capture_hidden = capture_hidden
        self.device, self._dtype = model.device, model.dtype
        config = model.config.get_text_config()
        self.vocab_size: int = config.vocab_size
        self.context_length = context_length(config)
        self._windows = attention_windows(config)
        self._strips = mask_strips(self._windows, 0, self._dtype, self.device)
        parameters = inspect.signature(model.forward).parameters
        self._cache_keyword = "cache" if "cache" in parameters else "past_key_values"
        # Such attention sums 512 places at a time; for fewer, the order depends on their number.
        is_cut = sums_in_parts(self.device, self._dtype)
        self._cache = _RaggedCache(512 if is_cut else _SLOT_MULTIPLE)
        self._spread = len(set(getattr(model, "hf_device_map", {}).values())) > 1
        self._head = model.get_output_embeddings()  # type: ignore[no-untyped-call]

    def reserve(self, num_rows: int, num_slots: int) -> None:
        """Make room for rows 0 to `num_rows` - 1 of up to `num_slots` tokens each."""
        self._cache.reserve(num_rows, num_slots)
        num_slots = self._cache.num_slots
        if any(len(strip) != 2 * num_slots for strip in self._strips.values()):
            self._strips = mask_strips(self._windows, num_slots, self._dtype, self.device)

    def copy_row(self, source: int, destination: int) -> None:
        """Copy all that row `source` has stored over row `destination`."""
        self._cache.copy_row(source, destination)

    def save_row(self, row: int, num_slots: int) -> SavedRow:
        """A copy of the first `num_slots` places of `row`, for `load_row` of any cache."""
        return self._cache.save_row(row, num_slots)

    def load_row(self, row: int, saved: SavedRow, num_slots: int) -> None:
        """Put the first `num_slots` places of a saved row into `row`, which `reserve` made."""
        self._cache.load_row(row, saved, num_slots)

    def clear(self, row: int, start: int) -> None:
        """Forget what `row` stored from position `start` on.

        Only needed where it may hold NaN: the mask gives what lies ahead a weight of 0, and 0 times
        NaN is NaN.
        """
        self._cache.clear(row, start)

    def window(
        self, starts: Sequence[int], num_tokens: int, rows: Sequence[int] | None = None
    ) -> Window:
        """The window of `num_tokens` tokens of each row, from `starts` on.

        Args:
            starts: Position of each row's first token, B. Negative positions are read as 0.
            num_tokens: n.
            rows: Cache rows of the entries of `starts`, B; the first B by default.
        """
        num_slots = self._cache.num_slots
        span = min(self._cache.rounded_up(max(starts) + num_tokens), num_slots)
        strips = np.arange(len(starts)) if rows is None else np.array(rows)
        table = np.empty((3, len(starts), num_tokens), dtype=np.int64)  # crosses in one piece
        places = np.add(np.array(starts)[:, None], np.arange(num_tokens), out=table[2])
        np.maximum(places, 0, out=places)
        # Past the context only garbage is read, but learned position tables must not overflow.
        np.minimum(places, self.context_length - 1, out=table[0])
        np.add(strips[:, None] * num_slots, places, out=table[1])
        np.subtract(num_slots, places, out=places)  # where each mask begins in its strip
        positions, slots, index = torch.from_numpy(table).to(self.device).unbind()
        masks = {k: s.unfold(0, span, 1)[index][:, None] for k, s in self._strips.items()}
        read = slice(0, len(starts)) if rows is None else torch.tensor(rows, device=self.device)
        return Window(positions, slots, masks, read)

    def read(self, token_ids: Tensor, window: Window, num_logits: int = 1) -> Output:
        """Read tokens into the cache.

        Args:
            token_ids: (B, n) int64.
            window: Their places, with the same B and n.
            num_logits: Number of last tokens to return logits for, N.
        """
        if window.wanted is not None:
            if can_go_without_padding(self.model):
                return self._read_without_padding(token_ids, window, window.wanted, num_logits)
            window = window._replace(wanted=None)
        keep: int | Tensor = num_logits
        if num_logits < token_ids.shape[1] and token_ids.device.type == "cpu":
            # An index copies where a slice gives a strided view (of a single row too), on which
            # bfloat16 matrix products of the CPU are up to two hundred times slower.
            keep = torch.arange(token_ids.shape[1], device=token_ids.device)[-num_logits:]
        return self._forward(token_ids, window.positions, window, keep)

    def _read_without_padding(
        self, token_ids: Tensor, window: Window, wanted: Tensor, num_logits: int
    ) -> Output:
        """Read the wanted tokens of a window alone, as one row."""
        num_rows, length = token_ids.shape
        ids, positions = (x.flatten()[wanted][None] for x in (token_ids, window.positions))
        column = wanted % length - (length - num_logits)
        keep = (column >= 0).nonzero()[:, 0]
        with without_padding(wanted, num_rows, length):
            found = self._forward(ids, positions, window, keep)
        into = (wanted // length * num_logits + column)[keep].to(found.logits.device)

        def padded(packed: Tensor) -> Tensor:
            """Lay (1, T, X) out as (B, N, X)."""
            out = packed.new_zeros(num_rows * num_logits, packed.shape[-1])
            return out.index_copy_(0, into, packed[0]).view(num_rows, num_logits, -1)

        hidden = None if found.hidden is None else padded(found.hidden)
        return Output(padded(found.logits), hidden)

    def _forward(
        self, token_ids: Tensor, positions: Tensor, window: Window, keep: int | Tensor
    ) -> Output:
        """Run the model; return the output for the tokens of `keep` (a last number or indices)."""
        self._cache.aim(window)
        masks: Any = window.masks  # Any: a tensor or a dict, as the model class has it
        if len(masks) == 1:
            (masks,) = masks.values()
        arguments = {
            "input_ids": token_ids.clamp(max=self.vocab_size - 1),
            "attention_mask": masks,
            "position_ids": positions,
            self._cache_keyword: self._cache,
            "use_cache": True,
            "logits_to_keep": keep if isinstance(keep, int) or not self._spread else keep.tolist(),
        }
        if not self.capture_hidden:
            return Output(self.model(**arguments).logits, None)
        captured: dict[int, Tensor] = {}  # by thread: another engine may run the model meanwhile
        hook = self._head.register_forward_pre_hook(
            lambda _, x: captured.update({get_ident(): x[0]})
        )
        try:
            logits = self.model(**arguments).logits
        finally:
            hook.remove()
        return Output(logits, captured[get_ident()].to(logits.device))

    def prefill(
        self, prompts: list[list[int]], first_row: int, held: list[list[int]] | None = None
    ) -> None:
        """Read whole token lists into rows `first_row`, `first_row` + 1, ... from position 0 on.

        A shared beginning (a system prompt, worked examples, a database's schema) is read once, or
        copied from a row that has it.

        Args:
            prompts: Token ids; a list may be empty.
            first_row: Cache row of the first prompt.
            held: Tokens that rows 0, 1, ... have read from position 0 on, until replaced.
        """
        plan = plan_prefill(prompts, held or [])
        self._copy([(g.donor, first_row + g.places[0], g.num_held) for g in plan])
        spans = [(g.places[0], g.num_held, g.num_shared) for g in plan if len(g.places) > 1]
        self._read_spans(prompts, first_row, spans)
        twins = [(g.places[0], place, g.num_shared) for g in plan for place in g.places[1:]]
        self._copy([(first_row + a, first_row + b, number) for a, b, number in twins])
        rests = [
            (place, g.num_shared if len(g.places) > 1 else g.num_held, len(prompts[place]))
            for g in plan
            for place in g.places
        ]
        self._read_spans(prompts, first_row, rests)

    def _copy(self, copies: list[tuple[int, int, int]]) -> None:
        """Copy first slots from row to row: (source, destination, number of slots)."""
        wanted = [copy for copy in copies if copy[2]]
        if wanted:
            sources, rows, numbers = map(list, zip(*wanted, strict=True))
            self._cache.share(sources, rows, max(numbers))  # the surplus is overwritten

    def _read_spans(
        self, prompts: list[list[int]], first_row: int, spans: list[tuple[int, int, int]]
    ) -> None:
        """Read token ranges (place in `prompts`, start, end), those of similar length together.

        If a model needs padding, a shorter range starts earlier, with tokens that were read
        already. If there are none, it ends later, with tokens that are hidden until they are
        overwritten.
        """
        spans = sorted((s for s in spans if s[2] > s[1]), key=lambda s: s[1] - s[2])
        while spans:
            longest = spans[0][2] - spans[0][1]
            part = [s for s in spans if longest - (s[2] - s[1]) <= _MOST_PADDING]
            spans = spans[len(part) :]
            first = [max(0, end - longest) for _, _, end in part]
            given = [prompts[s[0]][start : s[2]] for s, start in zip(part, first, strict=True)]
            padded = torch.tensor(
                [one + one[-1:] * (longest - len(one)) for one in given], device=self.device
            )
            rows = [first_row + place for place, *_ in part]
            begin, end = torch.tensor([s[1:] for s in part], device=self.device).unbind(dim=1)
            position = torch.tensor(first, device=self.device)[:, None] + torch.arange(
                longest, device=self.device
            )
            is_read = (position >= begin[:, None]) & (position < end[:, None])
            for start in range(0, longest, _PREFILL_CHUNK):
                chunk = slice(start, start + _PREFILL_CHUNK)
                ids = padded[:, chunk]
                window = self.window([one + start for one in first], ids.shape[1], rows)
                self.read(ids, window.only(is_read[:, chunk]))
