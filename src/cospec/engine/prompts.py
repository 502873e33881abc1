"""Prompts as rows: all of them are checked before anything is decoded."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from cospec.config import PairPrompt, SamplingConfig
from cospec.engine.rows import Row
from cospec.errors import ConfigError, PromptError, whole_number
from cospec.models.pair import context_of
from cospec.models.prefill import cheapest_order

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cospec.config import Prompt
    from cospec.models.pair import ModelPair

Reader: TypeAlias = Literal["both", "target", "draft"]
"""The models that read prompts."""


def make_rows(
    pair: ModelPair,
    prompts: Sequence[Prompt],
    sampling: SamplingConfig | Sequence[SamplingConfig] | None,
    streams: Sequence[int] | None = None,
    reader: Reader = "both",
) -> deque[Row]:
    """Check all prompts before anything is decoded, and return their rows.

    Args:
        pair: The models.
        prompts: Texts, token ids, or a `PairPrompt` with one for each model.
        sampling: As in `Engine.generate`.
        streams: Stream of each prompt's seed to draw from; by default its index.
        reader: Models that read the prompts.

    Raises:
        PromptError: A prompt is empty, too long or of an unknown kind.
        ConfigError: The settings do not fit the prompts or the pair.
    """
    if isinstance(prompts, str):
        raise PromptError("prompts is one string; pass a list of prompts: [prompt].")
    if not isinstance(prompts, Sequence):
        raise PromptError(
            f"prompts is a {type(prompts).__name__}; pass a list of prompts, each a text or a "
            "list of token ids."
        )
    if not prompts:
        raise PromptError("the list of prompts is empty; pass at least one.")
    if sampling is None or isinstance(sampling, SamplingConfig):
        sampling = [sampling or SamplingConfig()] * len(prompts)
    for one in sampling if isinstance(sampling, Sequence) else [sampling]:
        if not isinstance(one, SamplingConfig):
            raise ConfigError(
                f"sampling has {one!r}; pass SamplingConfig(...) for all prompts, or a list with "
                "one for each."
            )
    if len(sampling) != len(prompts):
        raise ConfigError(
            f"got {len(sampling)} sampling configs for {len(prompts)} prompts; pass one for "
            "all, or one for each."
        )
    limits = context_lengths(pair, reader)  # read once: a configuration is slow to read
    vocab_size = pair.target.config.get_text_config().vocab_size
    rows: deque[Row] = deque()
    for i, (prompt, config) in enumerate(zip(prompts, sampling, strict=True)):
        words, own = _texts(prompt, reader)
        row = make_row(pair, i, _encode(pair, i, words, vocab_size), config)
        if own is not None:
            row.draft_prompt_ids = _encode(pair, i, own, vocab_size)
        check_room(row, limits)
        rows.append(row)
    if streams is not None and len(streams) != len(prompts):
        raise ConfigError(f"got {len(streams)} streams for {len(prompts)} prompts; pass one each.")
    for row, stream in zip(rows, () if streams is None else streams, strict=streams is not None):
        if whole_number("one of streams", stream) < 0:
            raise ConfigError(f"streams has {stream}; a stream is 0 or positive.")
        row.draw_from(int(stream))
    return rows


def _texts(
    prompt: Prompt, reader: Reader
) -> tuple[str | Sequence[int], str | Sequence[int] | None]:
    """Return the row's prompt, and the draft's own prompt if it reads another one."""
    if not isinstance(prompt, PairPrompt):
        return prompt, None
    if reader == "both":
        return prompt.target, prompt.draft
    return prompt.target if reader == "target" else prompt.draft, None


def context_lengths(pair: ModelPair, reader: Reader) -> list[int]:
    """Return the context lengths of the models that read, the target's before the draft's."""
    if reader == "both":
        return [context_of(model) for model in pair.models]
    return [context_of(pair.target if reader == "target" else pair.draft_model)]


def check_room(row: Row, limits: list[int]) -> None:
    """Check that a row's prompts and completion fit.

    Args:
        row: Row to check.
        limits: Context lengths of the models that read it, from `context_lengths`.

    Raises:
        PromptError: They do not fit.
    """
    own, num_new = row.draft_prompt_ids, row.config.max_new_tokens
    rooms = [(row.prompt_ids, min(limits))]
    if own is not None:
        rooms = [(row.prompt_ids, limits[0]), (own, limits[-1])]
    for ids, limit in rooms:
        if len(ids) + num_new > limit:
            raise PromptError(
                f"prompt {row.index} has {len(ids)} tokens and max_new_tokens is {num_new}: "
                f"together {len(ids) + num_new}, but the context holds {limit}; shorten the "
                "prompt or lower max_new_tokens."
            )


def make_row(pair: ModelPair, index: int, ids: list[int], config: SamplingConfig) -> Row:
    """Return the row of a prompt of token ids.

    Raises:
        ConfigError: There are stop strings and no tokenizer.
    """
    if config.stop and pair.tokenizer is None:
        raise ConfigError("stop strings need a tokenizer, and this pair has none.")
    stops = set() if config.ignore_eos else set(pair.eos_token_ids)
    stops |= set(config.stop_token_ids)
    specials = pair.special_token_ids if config.stop else {}  # decoded text leaves them out
    stops |= {specials[text] for text in config.stop if text in specials}
    special_ids = frozenset(specials.values())
    return Row(index, ids, config, frozenset(stops), pair.tokenizer, special_ids)


def _encode(pair: ModelPair, index: int, prompt: str | Sequence[int], vocab_size: int) -> list[int]:
    """Token ids of one prompt."""
    if isinstance(prompt, str):
        if pair.tokenizer is None:
            raise PromptError(
                f"prompt {index} is a text, and this pair has no tokenizer; pass token ids."
            )
        ids = pair.encode(prompt)
    else:
        try:
            if isinstance(prompt, bytes | bytearray):  # a text, not a list of ids
                raise TypeError
            ids = [operator.index(i) for i in prompt]
        except TypeError:
            raise PromptError(
                f"prompt {index} is {prompt!r}; pass a list of prompts, each a text or a list "
                "of token ids."
            ) from None
    wrong = next((i for i in ids if not 0 <= i < vocab_size), None)
    if not ids:
        raise PromptError(f"prompt {index} is empty; pass at least one token.")
    if wrong is not None:
        raise PromptError(
            f"prompt {index} holds token id {wrong}; allowed are 0 to {vocab_size - 1}."
        )
    return ids


def in_order(rows: Iterable[Row]) -> deque[Row]:
    """Put rows in the order that makes reading them cheap."""
    known = list(rows)
    order = cheapest_order([row.prompt_ids + row.generated for row in known])
    return deque(known[i] for i in order)
