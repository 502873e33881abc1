"""A search before the model: the model reads the rows that it drafts for, and no others."""

from __future__ import annotations

import pytest
import torch

from cospec import Engine, SamplingConfig, load_arbiter
from cospec.config import DecodeConfig
from cospec.drafters import DRAFTERS
from cospec.engine.rows import Row
from cospec.models.cache import CachedModel
from cospec.sampling import Chance
from cospec.types import Needs, Stats
from tests.laws.decoding import GREEDY, PROMPTS, covering, expected_ids

K = 4
FOUND = [[7, 8, 9, 10, 11, 7, 8], [20, 21, 22, 23, 20, 21]]
"""Their ends occurred before; these follow: [9, 10, 11, 7] and [22, 23, 20, 21]."""
NEW = list(range(6, 61))
"""No token occurs twice."""
OPTIONS = {
    "whole blocks": {},
    "cascade": {"cascade": True},
    "adaptive": {"adaptive": True, "adaptive_cost": 0.0},
    "threshold": {"draft_confidence_threshold": 0.05},
    "ends": {"end_blocks_at_stop": True},
    "corrections": {"max_corrections": 1},
}
DRAFTED_BY = ["ngram+model", "suffix+model"]
EVERY_WAY = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def begin(pair, prompts, temperature=0.0, **options):
    """A drafter that has read all but the last token of each prompt, and their rows."""
    config = DecodeConfig(num_speculative_tokens=K, drafter="ngram+model", **options)
    model = DRAFTERS["ngram+model"](pair, config, Needs.NOTHING)
    sampling = SamplingConfig(temperature=temperature, seed=0)
    rows = [Row(i, prompt, sampling, frozenset(), None) for i, prompt in enumerate(prompts)]
    with torch.inference_mode():
        model.reserve(len(rows), max(map(len, rows)))
        model.prefill([prompt[:-1] for prompt in prompts], 0)
    return model, rows


def propose(model, rows):
    configs, generators = [row.config for row in rows], [row.generator for row in rows]
    with torch.inference_mode():
        return model.propose(rows, Chance.draw(configs, generators, K, model.device))


@pytest.fixture
def forwards(monkeypatch):
    """Rows of the batch that each forward reads."""
    found, read = [], CachedModel.read

    def spied(self, token_ids, window, num_logits=1):
        places = range(token_ids.numel()) if window.wanted is None else window.wanted.tolist()
        found.append({place // token_ids.shape[1] for place in places})
        return read(self, token_ids, window, num_logits)

    monkeypatch.setattr(CachedModel, "read", spied)
    return found


@EVERY_WAY
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_model_reads_only_the_rows_that_it_drafts_for(
    llama_pair, forwards, options, temperature
):
    """Found: it drafted for all rows as soon as the search found nothing for one of them."""
    model, rows = begin(llama_pair, [FOUND[0], NEW[:9], FOUND[1]], temperature, **options)
    forwards.clear()
    found = propose(model, rows)
    assert forwards and all(places == {1} for places in forwards)
    assert found.num_forwards.tolist() == [0, len(forwards), 0]
    first, number, last = found.lengths.tolist()
    assert first == last == K and 0 < number <= K
    assert found.token_ids[::2].tolist() == [[9, 10, 11, 7], [22, 23, 20, 21]]
    num_read = [model.save_row(r, 99)[0] for r in range(3)]
    assert num_read == [len(FOUND[0]) - 1, 9 + number - 1, len(FOUND[1]) - 1]


@EVERY_WAY
def test_what_the_model_drafts_is_the_same_beside_rows_that_were_found(llama_pair, options):
    beside = propose(*begin(llama_pair, [FOUND[0], NEW[:9], FOUND[1]], **options))
    alone = propose(*begin(llama_pair, [NEW[:9]], **options))
    number = int(alone.lengths)
    assert int(beside.lengths[1]) == number
    assert beside.token_ids[1, :number].tolist() == alone.token_ids[0, :number].tolist()
    for ours, theirs in zip(beside.logits[:number], alone.logits, strict=True):
        torch.testing.assert_close(ours[1], theirs[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("needs_padding", [False, True])
@pytest.mark.parametrize("cascade", [False, True])
@pytest.mark.parametrize("num_missed", [1, 3, 20, 50])
def test_what_the_model_has_missed_of_a_row_is_read_before_it_drafts(
    llama_pair, monkeypatch, num_missed, cascade, needs_padding
):
    """A row may be searched for long, beside others that the model drafts for."""
    if needs_padding:
        monkeypatch.setattr("cospec.models.cache.can_go_without_padding", lambda _: False)
    model, rows = begin(llama_pair, [FOUND[0], NEW[:5], NEW[:9]], cascade=cascade)
    rows[1].generated = NEW[5 : 5 + num_missed]
    found = propose(model, rows)
    alone = propose(*begin(llama_pair, [NEW[: 5 + num_missed]], cascade=cascade))
    assert found.lengths.tolist() == [K] * 3
    drafted = found.token_ids[1].tolist()
    assert drafted == alone.token_ids[0].tolist()
    if not cascade:
        assert found.num_forwards.tolist() == [0, K + (num_missed == 50), K]
    text = NEW[: 5 + num_missed] + drafted
    num_read, stored = model.save_row(1, len(text))
    assert num_read == len(text) - 1
    fresh = CachedModel(llama_pair.draft)
    fresh.reserve(1, len(text))
    with torch.inference_mode():
        fresh.prefill([text[:-1]], 0)
    for ours, theirs in zip(stored, fresh.save_row(0, num_read), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a[:num_read], b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("option", "drafter", "is_padded"), covering(OPTIONS, DRAFTED_BY, [False, True])
)
def test_lossless_texts_are_the_targets_own(llama_pair, monkeypatch, option, drafter, is_padded):
    prompts = [prompt * (1 + i % 2) for i, prompt in enumerate(PROMPTS[:4])]
    engine = Engine(
        llama_pair,
        load_arbiter("lossless"),
        drafter=drafter,
        num_speculative_tokens=K,
        batch_size=3,
        **OPTIONS[option],
    )
    done = engine.generate(prompts, GREEDY)
    assert [c.token_ids for c in done] == [expected_ids("llama", prompt) for prompt in prompts]
    stats = sum((c.stats for c in done), Stats())
    assert 0 < stats.num_draft_forwards < stats.num_draft_tokens
    if is_padded:
        monkeypatch.setattr("cospec.models.cache.can_go_without_padding", lambda _: False)
        padded = engine.generate(prompts, GREEDY)
        assert [c.token_ids for c in padded] == [c.token_ids for c in done]
        assert [c.stats for c in padded] == [c.stats for c in done]
