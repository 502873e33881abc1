"""What processors of transformers are asked about."""

from __future__ import annotations

import pytest
import torch

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

    found = target.generate(
        prompts, attention_mask=torch.ones_like(prompts), prefix_allowed_tokens_fn=allowed,
        custom_generate=Collaborative(disturbed(target, 0.12)), max_new_tokens=8,
        num_return_sequences=num_each, do_sample=True,
    )  # fmt: skip
    assert {row for row, _ in asked} == {0, 1}
    assert all(prompt == prompts[row].tolist() for row, prompt in asked)
    rows = torch.arange(2).repeat_interleave(num_each)[:, None]
    assert ((found[:, 3:] - 6) // 9 == rows).all()


def test_processors_work_where_the_prompt_is_and_not_where_the_model_is():
    """Found: with inputs on the CPU and a model on a GPU, the two devices met in a processor."""
    engine = TransformersEngine.__new__(TransformersEngine)
    engine.input_ids = torch.zeros(2, 3, dtype=torch.int64, device="meta")

    class Row:
        index = 1

    def processor(ids, scores):
        assert ids.device == scores.device
        return scores

    assert engine.ask(Row, [4], processor, torch.zeros(9)).shape == (9,)
