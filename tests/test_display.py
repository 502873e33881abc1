"""A completion as HTML: all of its text, each token's origin, and what hovering tells."""

from __future__ import annotations

import html
import pickle
import re
from dataclasses import replace

import pytest

from cospec import Engine, ModelPair, SamplingConfig, load_arbiter
from cospec.display import pieces
from cospec.types import Origin


@pytest.fixture(scope="module")
def completion(llama_pair, tokenizer):
    pair = ModelPair(llama_pair.target, llama_pair.draft, tokenizer)
    engine = Engine(pair, load_arbiter("random:rate=0.5"))
    return engine.generate([[9, 8, 7]], SamplingConfig(max_new_tokens=40, seed=1))[0]


def test_the_spans_are_the_text_in_the_order_of_the_tokens(completion):
    shown = completion._repr_html_().partition("</div>")[0]
    texts = re.findall(r"<span title=[^>]*>(.*?)</span>", shown, re.DOTALL)
    assert len(texts) == len(completion.token_ids)
    assert html.unescape("".join(texts)) == completion.text


def test_hovering_over_a_mismatch_tells_both_tokens_and_probabilities(completion, tokenizer):
    titles = re.findall(r'<span title="([^"]*)"', completion._repr_html_(), re.DOTALL)
    reached = [m for step in completion.trace for m in step.mismatches if m.is_reached]
    assert {Origin.OVERRIDE, Origin.CORRECTION} <= set(completion.origins)
    for m in reached:
        told = html.unescape(titles[m.position])
        for who, i, p, q in (
            ("draft's", m.draft_id, m.p_draft_id, m.q_draft_id),
            ("target's", m.target_id, m.p_target_id, m.q_target_id),
        ):
            assert f"{who} {tokenizer.decode([i])!r}: p {p:.3g}, q {q:.3g}" in told


def test_text_of_a_model_is_no_html(completion):
    evil = replace(completion, text="<script>\x1b", token_ids=completion.token_ids[:1],
                   origins=[Origin.MATCH], trace=[], tokenizer=Evil())  # fmt: skip
    assert "&lt;script&gt;\\x1b" in evil._repr_html_()


class Evil:
    def decode(self, *_, **__):
        return "<script>\x1b"


def test_the_tokenizer_is_no_part_of_what_is_stored(completion):
    assert "tokenizer" not in completion.to_dict()
    copy = pickle.loads(pickle.dumps(completion))
    assert copy.tokenizer is None and copy._repr_html_() is None
    assert copy.token_ids == completion.token_ids and "tokenizer" not in repr(completion)


def test_without_a_tokenizer_it_is_shown_as_anything_else(llama_pair):
    engine = Engine(llama_pair, load_arbiter("lossless"))
    assert engine.generate([[9, 8]], SamplingConfig(max_new_tokens=2))[0]._repr_html_() is None


def test_a_character_of_several_tokens_belongs_to_the_last_of_them(tokenizer):
    ids = tokenizer("an é and")["input_ids"]
    text = tokenizer.decode(ids)
    found = pieces(tokenizer, ids, text)
    assert "".join(found) == text and "é" in found and "\ufffd" not in "".join(found)
    assert "".join(pieces(tokenizer, ids, text[:4])) == text[:4], "nothing after a stop string"
