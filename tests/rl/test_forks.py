"""Forks of worked solutions: what is played is the target's own text, and scores set the worth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cospec import Engine, SamplingConfig
from cospec.errors import ConfigError
from cospec.features import make_features
from cospec.rl.forks import ForkPlayer
from cospec.rl.solutions import solution_decisions
from cospec.tasks import Example, Score
from tests.rl.helpers import solving
from tests.rl.test_solutions import own_text

LIMIT = 40
EXAMPLES = [Example(f"x/{i}", "in on", "y") for i in range(2)]


def play(pair, task, scorer, seen=None, temperature=0.0):
    """A player whose forks are noted in `seen`."""
    player = ForkPlayer(
        Engine.target_only(pair, batch_size=3),
        replace(task, scorer=scorer),
        EXAMPLES,
        [SamplingConfig(max_new_tokens=LIMIT, temperature=temperature, seed=0)] * 2,
    )

    def noted(forks):
        if seen is not None:
            seen.extend(forks)
        return player(forks)

    return noted


def finished(pair, begun: list[tuple[list[int], list[int]]]) -> list[str]:
    """The answers of the target alone that begin so, each decoded from its prompt."""
    prompts = [prompt + ids for prompt, ids in begun]
    settings = [SamplingConfig(max_new_tokens=LIMIT - len(ids)) for _, ids in begun]
    rests = Engine.target_only(pair, batch_size=256).generate(prompts, settings)
    return [
        pair.tokenizer.decode(
            ids + (rest.token_ids if ids[-1] not in pair.eos_token_ids else []),
            skip_special_tokens=True,
        )
        for (_, ids), rest in zip(begun, rests, strict=True)
    ]


def test_a_fork_goes_on_as_the_target_would(pair, task) -> None:
    solutions = [own_text(pair, 30), replace(own_text(pair, 18), place=1)]
    texts, forks = [], []

    def scorer(example, text):
        texts.append((example.id, text))
        return Score(0.0)

    solution_decisions(
        pair, make_features("hidden", pair), solutions, worth_of=play(pair, task, scorer, forks)
    )
    assert len(forks) > 10
    assert {fork.solution.place for fork in forks} == {0, 1}
    begun = []
    for fork, (name, _) in zip(forks, texts, strict=True):
        assert name == f"x/{fork.solution.place}"
        one = fork.solution
        prompt, answer = one.ids[: one.num_prompt_tokens], one.ids[one.num_prompt_tokens :]
        begun.append((prompt, [*answer[: fork.position], fork.token_id]))
        assert fork.token_id != answer[fork.position]
    assert [text for _, text in texts] == finished(pair, begun)


@torch.inference_mode()
def test_a_decision_is_worth_what_the_target_makes_of_both_tokens(pair, task) -> None:
    one = own_text(pair, 36)
    prompt, answer = one.ids[: one.num_prompt_tokens], one.ids[one.num_prompt_tokens :]

    def scorer(example, text):
        return Score(float(len(text) % 2))

    solution = pair.tokenizer.decode(answer, skip_special_tokens=True)
    one = replace(one, worth=float(scorer(None, solution).correct))
    p, q = (
        model(torch.tensor([one.ids])).logits[0].argmax(dim=-1)[len(prompt) - 1 : -1].tolist()
        for model in (pair.target, pair.draft)
    )
    places = [at for at, token in enumerate(answer) if p[at] != q[at] and token in (p[at], q[at])]
    drafts, targets = (
        [
            float(scorer(None, text).correct)
            for text in finished(pair, [(prompt, [*answer[:at], ids[at]]) for at in places])
        ]
        for ids in (q, p)
    )
    expected = [a - b for a, b in zip(drafts, targets, strict=True)]
    _, delta = solution_decisions(
        pair, make_features("scalar", pair), [one], worth_of=play(pair, task, scorer)
    )
    assert delta.tolist() == expected
    assert {-1.0, 0.0, 1.0} == set(expected)


def test_a_solution_counts_as_the_task_judges_it_and_no_longer_than_an_answer(pair, task) -> None:
    """Found: one that was cut, or in another form, was worth 1 beside forks that were worth 0."""
    player = ForkPlayer(
        Engine.target_only(pair),
        replace(task, scorer=lambda example, _: Score(float(example.id == "x/0"))),
        EXAMPLES,
        [SamplingConfig(max_new_tokens=30)] * 2,
    )
    short = own_text(pair, 12)
    solutions = [short, replace(short, place=1), own_text(pair, 40)]
    judged = player.judged(solutions)
    assert [(one.place, one.worth) for one in judged] == [(0, 1.0), (1, 0.0)]
    assert judged[0].ids == short.ids


def test_sampled_forks_of_two_problems_draw_other_numbers(pair, task) -> None:
    solutions = [own_text(pair, 12), replace(own_text(pair, 12), place=1)]
    texts: dict[str, list[str]] = {}

    def scorer(example, text):
        texts.setdefault(example.id, []).append(text)
        return Score(0.0)

    player = play(pair, task, scorer, temperature=1.0)
    solution_decisions(pair, make_features("scalar", pair), solutions, worth_of=player)
    first, second = texts.values()
    assert len(first) == len(second) > 2 and first != second


def test_a_run_learns_from_the_decisions_that_matter(pair, task) -> None:
    def trained(scorer):
        settings = dict(num_rounds=0, play_forks=True, max_new_tokens=LIMIT)
        it = solving(pair, replace(task, scorer=scorer), **settings)
        it.run()
        return it.state

    none_matters = trained(lambda *_: Score(1.0))
    assert none_matters.history[0]["loss"] == 0.0
    assert none_matters.history[0]["num_solution_decisions"] > 0
    some_matter = trained(lambda _, text: Score(float(len(text) % 2)))
    assert some_matter.history[0]["loss"] > 0.0
    with pytest.raises(ConfigError, match="play_forks is set, and there are no worked solutions"):
        solving(pair, task, play_forks=True, solutions_from="samples")
