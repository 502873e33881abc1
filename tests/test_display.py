"""A completion as HTML: all of its text, each token's origin, and what hovering tells."""

from __future__ import annotations

import html
import pickle
import re
from dataclasses import replace
from random import Random

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from cospec import Engine, ModelPair, SamplingConfig, load_arbiter
from cospec.display import VETOES, pieces
from cospec.rulings import Veto
from cospec.text import GrowingText
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


def test_hovering_over_any_token_tells_its_probabilities(completion):
    titles = re.findall(r'<span title="([^"]*)"', completion._repr_html_(), re.DOTALL)
    ruled = {m.position for m in completion.reached}
    told = [i for i in range(len(titles)) if i not in ruled]
    assert {completion.origins[i] for i in told} == {Origin.MATCH, Origin.BONUS}
    for i in told:
        p, q = completion.token_probs[i]
        shown = "-" if q is None else f"{q:.3g}"
        assert html.unescape(titles[i]).endswith(f"\np {p:.3g}, q {shown}")


def test_hovering_tells_no_probability_of_a_looked_up_token_and_vetoes_in_words(
    llama_pair, tokenizer
):
    """Found: ``q nan`` and ``exact_prefix``."""
    pair = ModelPair(llama_pair.target, None, tokenizer)
    engine = Engine(pair, load_arbiter("always_draft"), drafter="ngram")
    sampling = SamplingConfig(max_new_tokens=20, exact_prefix_tokens=2)
    shown = engine.generate([[9, 8, 7] * 4], sampling)[0]._repr_html_()
    assert "q -" in shown and "nan" not in shown
    assert "turned down: nothing is overridden at this place or in this text" in shown


def test_every_veto_has_its_words():
    assert VETOES.keys() == {veto.name.lower() for veto in Veto} - {"none"}


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


def of_bytes(kind):
    """A tokenizer with a token for each byte, and the id of the first of them.

    Byte-level ones (GPT-2's) turn all tokens into bytes; those with a fallback (Llama's) have texts
    as well, drop the first space, and break all characters of a row of bytes if one is broken.
    """
    if kind == "byte-level":
        words = []
        tokens = [letter for _, letter in sorted(bytes_to_unicode().items())]
        decoder = decoders.ByteLevel()
    else:
        words = ["<unk>", "▁", "▁▁", "▁a", "b", "é"]
        tokens = [*words, *(f"<0x{byte:02X}>" for byte in range(256))]
        space, strip = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
        decoder = decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse(), strip])
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=bool(words)))
    backend.decoder = decoder
    backend.add_special_tokens(["<eos>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>"), len(words)


def some_bytes(random, first, num_tokens):
    """Whole characters, parts of some, single bytes, and tokens of any kind."""
    ids = []
    while len(ids) < 40:
        character = random.choice("aé€😀\n ").encode()
        some = random.choice([character, character[: random.randint(1, 3)], b"\xff", b""])
        ids += [first + byte for byte in some] or [random.randrange(num_tokens)]
    return ids


def pieces_of_prefixes(tokenizer, token_ids, text):
    """`pieces` as it was: every prefix is decoded anew."""
    found, num_told = [], 0
    for i in range(1, len(token_ids) + 1):
        decoded = tokenizer.decode(
            token_ids[:i], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        is_whole = i == len(token_ids) or not decoded.endswith("\ufffd")
        end = min(len(decoded), len(text)) if is_whole else num_told
        found.append(text[num_told:end])
        num_told = max(num_told, end)
    return found


@pytest.mark.parametrize("kind", ["byte-level", "byte fallback"])
def test_pieces_are_those_of_all_prefixes_decoded_whole(kind):
    (tokenizer, first), random = of_bytes(kind), Random(0)
    for _ in range(40):
        ids = some_bytes(random, first, len(tokenizer))
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert "\ufffd" in text, "there are broken characters"
        for shown in (text, text[: len(text) // 2]):
            assert pieces(tokenizer, ids, shown) == pieces_of_prefixes(tokenizer, ids, shown)
        growing = GrowingText(tokenizer)
        assert [growing.add(i) for i in ids][-1] == text


class Counting:
    """Counts the tokens that are decoded."""

    def __init__(self, tokenizer):
        self.tokenizer, self.num_decoded = tokenizer, 0

    def decode(self, token_ids, **options):
        self.num_decoded += len(token_ids)
        return self.tokenizer.decode(token_ids, **options)


def test_a_token_is_decoded_with_few_others():
    """Found: each was decoded with all before it, seconds for a long text."""
    tokenizer, first = of_bytes("byte-level")
    counting = Counting(tokenizer)
    pieces(counting, [first + ord("a")] * 500, "a" * 500)
    assert counting.num_decoded < 5 * 500
