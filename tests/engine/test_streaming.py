"""Texts that are streamed: the pieces that decoding the whole text at each block would give."""

from __future__ import annotations

import itertools
from random import Random

import pytest

from cospec import SamplingConfig
from cospec.engine.rows import Row
from cospec.types import Origin
from tests.test_display import Counting, of_bytes, some_bytes

STOPS = {"no stop": (), "stops": ("aa", "é€", "\n a", "\U0001f600")}


def whole_delta(row):
    """Text and end of `Row.delta` as it was: the whole text is decoded anew."""
    text = row.text()
    end = len(text) if row.finish_reason else row._num_final_chars(text)
    sent, row.num_sent_chars = row.num_sent_chars, max(end, row.num_sent_chars)
    return text[sent:end], text if row.finish_reason else None


def delta(row):
    found = row.delta()
    return found.text, found.completion.text if found.completion else None


def streamed(tokenizer, ids, stop, told):
    """Collect what is told of a row after each block of 1 to 5 tokens."""
    config = SamplingConfig(max_new_tokens=len(ids), stop=stop)
    row, sizes, left = Row(0, ids[:1], config, frozenset(), tokenizer), Random(1), iter(ids)
    deltas = []
    while not row.finish_reason:
        for token_id in itertools.islice(left, sizes.randint(1, 5)):
            row.emit(token_id, Origin.MATCH)
            if row.finish_reason:
                break
        deltas.append(told(row))
    return deltas


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
@pytest.mark.parametrize("kind", ["byte-level", "byte fallback"])
def test_pieces_are_those_of_the_whole_text_decoded_at_each_block(kind, stop):
    """Broken characters and what may become a stop string are held back alike."""
    (tokenizer, first), random = of_bytes(kind), Random(0)
    num_held = 0
    for _ in range(40):
        ids = some_bytes(random, first, len(tokenizer))
        found = streamed(tokenizer, ids, stop, delta)
        assert found == streamed(tokenizer, ids, stop, whole_delta)
        num_held += any(not text for text, _ in found[:-1])
    assert num_held > 0


def test_a_token_of_a_stream_is_decoded_with_few_others():
    """Found: each block decoded the whole text so far, so that long streams grew slow."""
    tokenizer, first = of_bytes("byte-level")
    counting = Counting(tokenizer)
    config = SamplingConfig(max_new_tokens=500)
    row = Row(0, [first], config, frozenset(), counting)
    for _ in range(500):
        row.emit(first + ord("a"), Origin.MATCH)
        last = row.delta()
    assert last.completion.text == "a" * 500
    assert counting.num_decoded < 6 * 500
