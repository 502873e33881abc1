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

LIMIT = 80
EXAMPLES = [Example(f"x/{i}", "in on", "y") for i in range(2)]


def play(pair, task, scorer, seen=None):
    """A player whose forks are noted in `seen`."""
    player = ForkPlayer(
        Engine.target_only(pair, batch_size=3),
        replace(task, scorer=scorer),
        EXAMPLES,
        [SamplingConfig(max_new_tokens=LIMIT)] * 2,
    )

    def noted(forks):
        if seen is not None:
            seen.extend(forks)
        return player(forks)

    return noted


def test_a_fork_goes_on_as_the_target_would(pair, task) -> None:
    solutions = [own_text(pair), replace(own_text(pair, 24), place=1)]
    texts, forks = [], []

    def scorer(example, text):
        texts.append((example.id, text))
        return Score(0.0)

    solution_decisions(
        pair, make_features("hidden", pair), solutions, worth_of=play(pair, task, scorer, forks)
    )
    assert len(forks) > 10
    assert {fork.solution.place for fork in forks} == {0, 1}
    for fork, (name, text) in zip(forks, texts, strict=True):
        assert name == f"x/{fork.solution.place}"
        one = fork.solution
        prompt, answer = one.ids[: one.num_prompt_tokens], one.ids[one.num_prompt_tokens :]
        begun = [*answer[: fork.position], fork.token_id]
        assert fork.token_id != answer[fork.position]
        settings = SamplingConfig(max_new_tokens=LIMIT - len(begun))
        (rest,) = Engine.target_only(pair).generate([prompt + begun], settings)
        whole = begun + (rest.token_ids if fork.token_id not in pair.eos_token_ids else [])
        assert text == pair.tokenizer.decode(whole, skip_special_tokens=True)


def test_a_decision_is_worth_nothing_where_both_tokens_are_right(pair, task) -> None:
    one, features = own_text(pair), make_features("hidden", pair)
    seen, delta = solution_decisions(pair, features, [one])

    def scorer(example, text):
        return Score(float(len(text) % 2))

    texts = []

    def noted(example, text):
        texts.append(text)
        return scorer(example, text)

    seen_too, worth = solution_decisions(pair, features, [one], worth_of=play(pair, task, noted))
    torch.testing.assert_close(seen_too, seen)
    is_right = torch.tensor([len(text) % 2 for text in texts])
    assert 0 < is_right.sum() < len(texts)
    assert worth.tolist() == (delta * (1 - is_right)).tolist()


def test_a_run_learns_from_the_decisions_that_matter(pair, task) -> None:
    def trained(reward, **changes):
        it = solving(pair, replace(task, scorer=lambda *_: Score(reward)), num_rounds=0, **changes)
        it.run()
        return it.state

    plain, all_matter = trained(0.0), trained(0.0, play_forks=True)
    assert torch.equal(plain.policy.layers[0].weight, all_matter.policy.layers[0].weight)
    none_matters = trained(1.0, play_forks=True)
    assert none_matters.history[0]["loss"] == 0.0
    assert none_matters.history[0]["num_solution_decisions"] > 0
    with pytest.raises(ConfigError, match="play_forks is set, and there are no worked solutions"):
        solving(pair, task, play_forks=True, solutions_from="samples")
