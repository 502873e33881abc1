"""Rows and prefixes that the processors of transformers are asked about."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from cospec.custom_generate import Collaborative
from cospec.custom_generate.batch import TransformersEngine
from tests.conftest import disturbed, random_model


@pytest.mark.parametrize("num_each", [1, 2])
def test_the_allowed_tokens_of_a_row_are_asked_for_with_its_own_prefix(num_each):
    """Found: the prefix of one row was asked about as that of each row."""
    target = random_model("llama")
    prompts = torch.tensor([[7, 8, 9], [17, 18, 19]])
    asked = []

    def allowed(row, ids):
        asked.append((row, ids[:3].tolist()))
        return list(range(6 + 9 * row, 15 + 9 * row))

    def generate(**options):
        asked.clear()
        found = target.generate(
            prompts, attention_mask=torch.ones_like(prompts), prefix_allowed_tokens_fn=allowed,
            max_new_tokens=8, num_return_sequences=num_each, do_sample=True, **options,
        )  # fmt: skip
        return found, {row for row, _ in asked}

    _, numbers = generate()  # of prompts; transformers 4 counts returned sequences
    found, ours = generate(custom_generate=Collaborative(disturbed(target, 0.12)))
    assert ours == numbers
    num_repeats = 2 * num_each // len(numbers)
    each = prompts.repeat_interleave(num_each // num_repeats, dim=0)
    assert all(prompt == each[row].tolist() for row, prompt in asked)
    rows = torch.arange(len(numbers)).repeat_interleave(num_repeats)[:, None]
    assert ((found[:, 3:] - 6) // 9 == rows).all()


class Seen(RepetitionPenaltyLogitsProcessor):
    """May hold anything, as any subclass."""

    def __call__(self, input_ids, scores):
        self.num_rows = len(input_ids)
        return super().__call__(input_ids, scores)


class Row:
    index = 2


def engine_of(input_ids):
    engine = TransformersEngine.__new__(TransformersEngine)
    engine.input_ids = input_ids
    return engine


def test_processors_that_hold_nothing_of_a_row_are_asked_about_one_row(monkeypatch):
    """Found: each was given the row as often as the batch has rows, for each row and place."""
    generator = torch.Generator().manual_seed(0)
    engine = engine_of(torch.randint(9, (4, 12), generator=generator))
    scores = torch.randn(9, generator=generator)
    processors = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.5),
            NoRepeatNGramLogitsProcessor(2),
            NoBadWordsLogitsProcessor([[3], [7, 1]]),
            SuppressTokensLogitsProcessor([5]),
        ]
    )
    wide = processors(engine.input_ids[2:3].expand(4, -1), scores.expand(4, -1).clone())[2]
    num_rows, call = [], RepetitionPenaltyLogitsProcessor.__call__
    monkeypatch.setattr(
        RepetitionPenaltyLogitsProcessor,
        "__call__",
        lambda self, ids, scores: (num_rows.append(len(ids)), call(self, ids, scores))[1],
    )
    assert torch.equal(engine.ask(Row, [], processors, scores), wide)
    assert num_rows == [1] and not torch.equal(wide, scores)


def with_lengths():
    try:
        return RepetitionPenaltyLogitsProcessor(1.5, torch.tensor([0, 1, 2, 3]))
    except ValueError:
        pytest.skip("this transformers has one length for all rows")


OTHERS = {
    "a subclass": lambda: Seen(1.5),
    "one that asks by row": lambda: PrefixConstrainedLogitsProcessor(lambda row, _: [row], 1),
    "one with a length of each row": with_lengths,
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_processors_that_may_hold_something_of_a_row_get_all_places(other):
    engine, seen = engine_of(torch.tensor([[1, 2, 3, 4]] * 4)), Seen(1.5)
    processors = LogitsProcessorList([SuppressTokensLogitsProcessor([5]), other()])
    found = engine.ask(Row, [], processors, scores := torch.ones(9))
    expected = processors(engine.input_ids, scores.expand(4, -1).clone())[2]
    assert torch.equal(found, expected)
    engine.ask(Row, [], LogitsProcessorList([seen]), scores)
    assert seen.num_rows == 4


def test_processors_work_where_the_prompt_is_and_not_where_the_model_is():
    """Found: with inputs on the CPU and a model on a GPU, the two devices met in a processor."""
    engine = engine_of(torch.zeros(3, 3, dtype=torch.int64, device="meta"))

    def processor(ids, scores):
        assert ids.device == scores.device
        return scores

    assert engine.ask(Row, [4], processor, torch.zeros(9)).shape == (9,)
