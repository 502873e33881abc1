"""One prompt on its way to a completion: its tokens, its counts, and when it ends.

Knows tokens and text, nothing of models, caches or arbiters.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cospec.sampling import row_generator
from cospec.text import BROKEN, GrowingText
from cospec.types import Completion, Delta, FinishReason, Origin, Stats, StepTrace

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from transformers import PreTrainedTokenizerBase

    from cospec.config import SamplingConfig


_MOST_BYTES = 64
"""Most tokens to decode before those that may hold a stop string."""


@dataclass(slots=True)
class Row:
    """A prompt that is being completed.

    Attributes:
        index: Index of the prompt in the given list.
        prompt_ids: Its token ids.
        config: Its settings.
        stop_ids: Token ids that end it.
        tokenizer: Tokenizer for text and stop strings; None if the pair has none.
        special_ids: Tokens that decoded text leaves out; empty without stop strings.
        draft_prompt_ids: Prompt that the draft model reads; None for the same.
        keep_caches: Whether to save its caches when it finishes.
        keep_probs: Whether its trace has the probabilities of all its tokens.
        caches: Caches of target and drafter, of a branch that waits to be admitted or as saved by
            `keep_caches`; else None.
        is_foreign: Whether the arbiter stands back from its prompt.
        is_lossless: Whether no override is allowed in it, at all or from now on.
        is_stopped: Callback that tells after each token whether the text ends there, or None.
    """

    index: int
    prompt_ids: list[int]
    config: SamplingConfig
    stop_ids: frozenset[int]
    tokenizer: PreTrainedTokenizerBase | None
    special_ids: frozenset[int] = frozenset()
    draft_prompt_ids: list[int] | None = None
    keep_caches: bool = False
    keep_probs: bool = True
    caches: list[Any] | None = None  # Any: only their stores look into them
    is_foreign: bool = False
    is_lossless: bool = False
    is_stopped: Callable[[Row], bool] | None = None
    generator: torch.Generator = field(init=False)
    generated: list[int] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    stats: Stats = field(default_factory=Stats)
    trace: list[StepTrace] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    num_sent_tokens: int = 0
    num_sent_chars: int = 0
    _growing: GrowingText | None = field(default=None, init=False)
    _counts: Counter[Origin] = field(default_factory=Counter, init=False)
    _num_counted: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.draw_from(self.index)

    def draw_from(self, stream: int) -> None:
        """Switch to the beginning of a stream of the seed."""
        self.generator = row_generator(self.config, stream)

    def __len__(self) -> int:
        """Tokens of prompt and completion together."""
        return len(self.prompt_ids) + len(self.generated)

    @property
    def drafted(self) -> Row | DraftView:
        """The row as the draft model sees it."""
        ids = self.draft_prompt_ids
        return self if ids is None else DraftView(self, ids)

    def last_tokens(self, num_tokens: int) -> list[int]:
        """The last tokens; if there are too few, the first one is repeated."""
        return _last_tokens(self.prompt_ids, self.generated, num_tokens)

    def count(self, origin: Origin) -> int:
        """Count the tokens of an origin; only those since the last call are looked at."""
        if self._num_counted < len(self.origins):
            self._counts.update(self.origins[self._num_counted :])
            self._num_counted = len(self.origins)
        return self._counts[origin]

    def emit(self, token_id: int, origin: Origin) -> None:
        """Append a token and see whether it ends the completion."""
        self.generated.append(token_id)
        self.origins.append(origin)
        is_stop = token_id in self.stop_ids or self._has_stop_string()
        if is_stop or (self.is_stopped is not None and self.is_stopped(self)):
            self.finish_reason = FinishReason.STOP
        elif len(self.generated) >= self.config.max_new_tokens:
            self.finish_reason = FinishReason.LENGTH

    def _has_stop_string(self) -> bool:
        """Return whether a stop string ends within the last token."""
        if not self.config.stop:
            return False
        # A token adds at least one byte, so a stop string spans at most this many tokens, besides
        # special tokens, which add none.
        left = max(len(s.encode()) for s in self.config.stop) + 1
        start = len(self.generated)
        while start and left:
            start -= 1
            left -= self.generated[start] not in self.special_ids
        text = self._decode(self.generated[start:])
        # Single-byte tokens are decoded together: text that starts within a character is broken.
        for earlier in range(start - 1, max(-1, start - _MOST_BYTES), -1):
            if not text.startswith(BROKEN):
                break
            text = self._decode(self.generated[earlier:])
        return self._find_stop(text) >= 0

    def _find_stop(self, text: str) -> int:
        """Return the start of the first stop string in `text`; -1 if there is none."""
        return min((i for s in self.config.stop if (i := text.find(s)) >= 0), default=-1)

    def _decode(self, token_ids: list[int]) -> str:
        if self.tokenizer is None:
            return ""
        text = self.tokenizer.decode(
            token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def text(self) -> str:
        """The generated text, cut before a stop string."""
        return self._cut(self._decode(self.generated))

    def _cut(self, text: str) -> str:
        cut = self._find_stop(text)
        return text if cut < 0 else text[:cut]

    def _text_so_far(self) -> str:
        """The same as `text`, but only tokens since the last delta are decoded."""
        if self.tokenizer is None or self.finish_reason:
            return self.text()
        if self._growing is None:
            self._growing = GrowingText(self.tokenizer)
        for token_id in self.generated[self.num_sent_tokens :]:
            self._growing.add(token_id)
        return self._cut(self._growing.text)

    def delta(self) -> Delta:
        """Return the additions since the last call, with the completion if the row is finished."""
        text = self._text_so_far()
        end = len(text) if self.finish_reason else self._num_final_chars(text)
        sent_tokens, sent_chars = self.num_sent_tokens, self.num_sent_chars
        self.num_sent_tokens = len(self.generated)
        self.num_sent_chars = max(end, sent_chars)
        return Delta(
            index=self.index,
            token_ids=self.generated[sent_tokens:],
            origins=self.origins[sent_tokens:],
            text=text[sent_chars:end],
            completion=self.completion(text) if self.finish_reason else None,
        )

    def _num_final_chars(self, text: str) -> int:
        """Count the characters that no later token can change."""
        end = len(text.rstrip(BROKEN))
        for stop in self.config.stop:
            for size in range(min(len(stop) - 1, end), 0, -1):
                if text.startswith(stop[:size], end - size):
                    end -= size
                    break
        return end

    def completion(self, text: str | None = None) -> Completion:
        """The row as a finished completion."""
        assert self.finish_reason is not None, "the row is not finished"
        self.stats.num_tokens = len(self.generated)
        return Completion(
            index=self.index,
            prompt_ids=self.prompt_ids,
            token_ids=self.generated,
            text=self.text() if text is None else text,
            origins=self.origins,
            finish_reason=self.finish_reason,
            stats=self.stats,
            trace=self.trace,
            tokenizer=self.tokenizer,
        )


class DraftView:
    """A row with the draft's own prompt in place of the target's.

    Args:
        row: The row.
        prompt_ids: Prompt that the draft model reads.
    """

    def __init__(self, row: Row, prompt_ids: list[int]) -> None:
        self._row, self.prompt_ids = row, prompt_ids

    def __getattr__(self, name: str) -> Any:  # Any: whatever a row has
        return getattr(self._row, name)

    def __len__(self) -> int:
        """Tokens of the draft's prompt and the completion together."""
        return len(self.prompt_ids) + len(self._row.generated)

    def last_tokens(self, num_tokens: int) -> list[int]:
        """The last tokens; if there are too few, the first one is repeated."""
        return _last_tokens(self.prompt_ids, self._row.generated, num_tokens)


def _last_tokens(prompt_ids: list[int], generated: list[int], num_tokens: int) -> list[int]:
    ids = generated[-num_tokens:]
    if len(ids) < num_tokens:
        ids = prompt_ids[len(ids) - num_tokens :] + ids
    return [ids[0]] * (num_tokens - len(ids)) + ids
