"""Worked solutions: what they tell is what decoding would have met, and it can be learned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cospec import Engine, ModelPair, SamplingConfig
from cospec.arbiters import AlwaysTarget
from cospec.arbiters.observed import Observed
from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.errors import TaskError
from cospec.features import SCALAR_NAMES, make_features
from cospec.rl.solutions import Solution, encode_solutions, solution_decisions
from cospec.rl.types import SolutionData
from cospec.rl.updates import imitate
from cospec.tasks import Example
from tests.conftest import CONTEXT, EOS, VOCAB, random_model
from tests.rl.conftest import train_config

REST_OF_BLOCK = [SCALAR_NAMES.index(f"block_{name}_log_q") for name in ("mean", "min")]
POSITION = SCALAR_NAMES.index("log_position")
TEXTS = ["ten hens and an ant", "the end is near the stone", "oats or red ants"]


def examples(texts: list[str] = TEXTS) -> list[Example]:
    return [Example(f"x/{i}", "in on", "y", {"solution": text}) for i, text in enumerate(texts)]


def own_text(pair, num_tokens: int = 60) -> Solution:
    """A solution of which each model writes a part: the draft's text, then the target's."""
    prompt = pair.tokenizer("in on the")["input_ids"]
    ids = list(prompt)
    for engine in (Engine.draft_only(pair), Engine.target_only(pair)) * 3:
        settings = SamplingConfig(max_new_tokens=num_tokens // 6, ignore_eos=True)
        ids += engine.generate([ids], settings)[0].token_ids
    return Solution(ids, len(prompt))


def met(pair, features, one: Solution) -> tuple[torch.Tensor, list[float]]:
    """Features and deltas that decoding meets when it begins anew at each token of the solution."""
    engine = Engine(pair, Observed(AlwaysTarget(), features), num_speculative_tokens=1)
    seen, delta = [], []
    for place in range(one.num_prompt_tokens, len(one.ids)):
        settings = SamplingConfig(max_new_tokens=1, ignore_eos=True)
        (completion,) = engine.generate([one.ids[:place]], settings)
        for mismatch in completion.trace[0].mismatches:
            for token, worth in ((mismatch.draft_id, 1.0), (mismatch.target_id, -1.0)):
                if token == one.ids[place]:
                    row = mismatch.features.clone()
                    row[REST_OF_BLOCK] = 0.0
                    row[POSITION] = torch.tensor(float(place - one.num_prompt_tokens)).log1p()
                    seen.append(row)
                    delta.append(worth)
    return torch.stack(seen), delta


@pytest.mark.parametrize("spec", ["scalar", "hidden"])
def test_decisions_are_those_that_decoding_meets(pair, spec) -> None:
    features = make_features(spec, pair)
    one = own_text(pair)
    seen, delta = solution_decisions(pair, features, [one])
    expected, worth = met(pair, features, one)
    assert {-1.0, 1.0} == set(worth)
    assert delta.tolist() == worth
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("change", [-2, 28])
def test_a_draft_of_another_width_is_read_as_in_decoding(pair, change, temperature) -> None:
    """Found: logits of two widths could not be compared."""
    draft = random_model("llama", seed=7, vocab_size=VOCAB + change)
    other = ModelPair(pair.target, draft, pair.tokenizer)
    features = make_features("scalar", other)
    seen, worth = solution_decisions(other, features, [own_text(pair)], temperature=temperature)
    assert len(worth) > 0 and seen.isfinite().all()


def test_decisions_do_not_depend_on_what_is_read_beside_them(pair) -> None:
    features = make_features("hidden", pair)
    long, short = own_text(pair, 60), own_text(pair, 12)
    both = solution_decisions(pair, features, [short, long])
    apart = [solution_decisions(pair, features, [one]) for one in (short, long)]
    for found, parts in zip(both, zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(found, torch.cat(parts), rtol=1e-4, atol=1e-4)


def test_a_temperature_close_to_0_draws_the_greedy_tokens(pair) -> None:
    features, one = make_features("hidden", pair), own_text(pair)
    greedy = solution_decisions(pair, features, [one])
    close = solution_decisions(pair, features, [one], temperature=1e-9)
    assert len(greedy[1]) > 0
    for found, expected in zip(close, greedy, strict=True):
        torch.testing.assert_close(found, expected)


@torch.inference_mode()
def test_tokens_are_drawn_by_the_law_of_speculative_sampling(pair) -> None:
    """Refused and the draft's is right: max(q - p, 0); the target's is right: max(p - q, 0)."""
    one, temperature, number = own_text(pair, 24), 0.7, 400
    copies = [replace(one, place=place) for place in range(number)]
    _, delta = solution_decisions(
        pair, make_features("scalar", pair), copies, temperature=temperature
    )
    p, q = (
        model(torch.tensor([one.ids])).logits[0].div(temperature).softmax(dim=-1)
        for model in (pair.target, pair.draft)
    )
    at = torch.arange(one.num_prompt_tokens - 1, len(one.ids) - 1)
    gain = (q - p)[at, torch.tensor(one.ids)[at + 1]]
    for sign in (1.0, -1.0):
        chances = (sign * gain).clamp(min=0)
        expected, variance = (number * v.sum().item() for v in (chances, chances * (1 - chances)))
        assert expected > 50
        assert abs((delta == sign).sum().item() - expected) < 4 * variance**0.5


def test_what_is_drawn_for_a_solution_does_not_depend_on_what_is_read_beside_it(pair) -> None:
    features, ones = make_features("scalar", pair), [own_text(pair, 12), own_text(pair, 60)]
    ones = [replace(one, place=place) for place, one in enumerate(ones)]
    both = solution_decisions(pair, features, ones, temperature=1.0)
    apart = [solution_decisions(pair, features, [one], temperature=1.0) for one in ones]
    for found, parts in zip(both, zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(found, torch.cat(parts), rtol=1e-4, atol=1e-4)


def test_solutions_are_encoded_behind_their_prompts(pair, task) -> None:
    found = encode_solutions(pair, task, examples())
    assert len(found) == len(TEXTS)
    for one, text in zip(found, TEXTS, strict=True):
        prompt = task.prompt(examples()[0], pair.tokenizer)
        assert one.ids[: one.num_prompt_tokens] == pair.tokenizer(prompt)["input_ids"]
        assert one.ids == [*pair.tokenizer(f"{prompt} {text}")["input_ids"], EOS]


def test_a_solution_that_the_context_does_not_hold_is_left_out(pair, task) -> None:
    found = encode_solutions(pair, task, examples([TEXTS[0], "x" * CONTEXT]))
    assert len(found) == 1
    found = encode_solutions(pair, task, examples(["x" * CONTEXT, TEXTS[0]]), start=5)
    assert [one.place for one in found] == [6]


def test_a_problem_without_a_solution_is_refused(pair, task) -> None:
    with pytest.raises(TaskError, match="x/0 has no worked solution"):
        encode_solutions(pair, task, [replace(examples()[0], metadata={})])


def test_a_solution_that_is_no_text_is_refused(pair, task) -> None:
    """Found: an error of Python's own."""
    with pytest.raises(TaskError, match="the solution of x/1 is 7; it must be a string"):
        encode_solutions(
            pair, task, [examples()[0], replace(examples()[1], metadata={"solution": 7})]
        )


def test_a_policy_learns_whose_token_was_right() -> None:
    features = torch.randn(8000, 5, generator=torch.Generator().manual_seed(0))
    delta = torch.where(features[:, 0].abs() > 0.7, 1.0, -1.0)  # no linear rule
    config = train_config(num_solutions=1, num_solution_epochs=30)
    policy = Policy(5, PolicyConfig(init_logit=0.0))
    policy.normalize_by(features)
    loss = imitate(policy, SolutionData(features, delta), config)
    is_right = (policy(features) > 0) == (delta > 0)
    assert loss < 0.15
    assert is_right.float().mean() > 0.97


def test_a_solution_follows_a_prompt_as_a_worked_example_does(pair, task) -> None:
    """Found: where the prompt opens a line, it began with a space."""
    opened = replace(task, plain="{question}\nAnswer:\n")
    (one,) = encode_solutions(pair, opened, examples()[:1])
    prompt = opened.prompt(examples()[0], pair.tokenizer)
    assert one.ids == [*pair.tokenizer(f"{prompt}{TEXTS[0]}")["input_ids"], EOS]
