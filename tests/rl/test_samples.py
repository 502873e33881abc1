"""The models' own answers as training data: weighed without favour, read as they were written."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cospec import Engine
from cospec.errors import ConfigError
from cospec.evaluation.problems import encode_problems
from cospec.features import make_features
from cospec.rl import warmstart
from cospec.rl.samples import answer_worths, sample_solutions
from cospec.rl.solutions import solution_decisions
from cospec.tasks.base import Score
from tests.rl.conftest import train_config
from tests.rl.helpers import trainer


def config(**changes):
    settings = dict(num_solutions=9, solutions_from="samples", num_samples=3, max_new_tokens=12)
    return train_config(**settings | changes)


def greedy_texts(make_engine, pair, task, examples):
    engine = make_engine(pair)
    return [c.text for c in engine.generate(*encode_problems(pair, task, examples, 12))]


def test_worths_add_up_to_nothing_for_each_author_and_each_problem():
    rewards = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(0)).round()
    worths = answer_worths(rewards)
    for axes in ((1, 2), (0, 2)):
        torch.testing.assert_close(worths.sum(dim=axes), torch.zeros_like(worths.sum(dim=axes)))


def test_a_problem_that_one_model_alone_solves_is_worth_most():
    """Author 1 is right on three problems of four; author 0 on one, which the other fails."""
    rewards = torch.tensor([[[0.0], [0.0], [0.0], [1.0]], [[1.0], [1.0], [1.0], [0.0]]])
    worths = answer_worths(rewards)[..., 0]
    assert worths[0, 3] == pytest.approx(0.75) and worths[1, 3] == pytest.approx(-0.75)
    assert worths[0, :3].tolist() == pytest.approx([-0.25] * 3)


def test_answers_that_all_are_right_are_worth_nothing():
    assert not answer_worths(torch.ones(2, 3, 4)).any()


@pytest.mark.parametrize("winner", ["draft", "target"])
def test_the_tokens_of_whose_answers_are_right_are_the_ones_to_take(pair, task, winner):
    """Every other problem is solved by one model alone, the rest by none."""
    examples = task.examples("test")[:8]
    make_engine = Engine.draft_only if winner == "draft" else Engine.target_only
    right = greedy_texts(make_engine, pair, task, examples)
    answers = {e.id: text for e, text in zip(examples[::2], right[::2], strict=True)}
    picky = replace(task, scorer=lambda e, text: Score(float(answers.get(e.id) == text)))
    solutions = sample_solutions(pair, picky, examples, config(num_samples=1))
    places = {one.place for one in solutions}
    assert {0, 2, 4, 6} <= places
    solved = [one for one in solutions if one.place % 2 == 0]
    features, delta = solution_decisions(pair, make_features("scalar", pair), solved)
    assert len(features) == len(delta) > 4
    sign = 1 if winner == "draft" else -1
    assert (sign * delta > 0).all()


def test_an_answer_is_read_as_it_was_written_and_twins_once(pair, task):
    examples = task.examples("test")[:4]
    solutions = sample_solutions(pair, task, examples, config())
    texts = [tuple(one.ids) for one in solutions]
    assert len(set(texts)) == len(texts) <= 2 * 3 * len(examples)
    for one in solutions:
        prompt = pair.tokenizer(task.prompt(examples[one.place], pair.tokenizer))["input_ids"]
        assert one.ids[: one.num_prompt_tokens] == prompt
        assert len(one.ids) - len(prompt) <= 12


def test_what_is_drawn_for_a_problem_does_not_depend_on_the_others(pair, task, monkeypatch):
    monkeypatch.setattr("cospec.rl.samples._LEAST_WORTH", 0.0)
    examples = task.examples("test")[:4]
    together = sample_solutions(pair, task, examples, config())
    alone = sample_solutions(pair, task, examples[2:], config(), start=2)
    texts = {(one.place, *one.ids) for one in together if one.place >= 2}
    assert {(one.place, *one.ids) for one in alone} == texts
    assert len(texts) > 4


def test_a_run_warms_up_on_own_answers_and_its_cache_knows_them(pair, task, tmp_path):
    settings = dict(
        num_solutions=7,
        solutions_from="samples",
        num_samples=2,
        solutions=tmp_path / "read.safetensors",
        num_rounds=0,
        num_solution_epochs=3,
    )
    first = trainer(pair, task, **settings)
    first.solved = first.train
    first.run()
    assert first.state.history[0]["num_solution_decisions"] > 0
    again = trainer(pair, task, **settings)
    again.solved = again.train
    again.run()
    before, after = (t.state.policy.state_dict() for t in (first, again))
    torch.testing.assert_close(before, after, rtol=0, atol=0)
    for other in (dict(num_samples=3), dict(solutions_from="task")):
        it = trainer(pair, task, **settings | other)
        it.solved = it.train
        with pytest.raises(ConfigError, match="solutions_from"):
            it.run()
    longer = trainer(pair, task, **settings | dict(num_solutions=8))
    longer.solved = [*longer.train, longer.train[0]]
    with pytest.raises(ConfigError, match="more can follow only a multiple of 128"):
        longer.run()


def test_a_run_that_is_killed_while_it_reads_keeps_its_answers(pair, task, tmp_path, monkeypatch):
    """Found: an hour of a real pair's answers was lost."""
    path = tmp_path / "read.safetensors"

    def run(folder: str) -> dict:
        settings = dict(num_solutions=7, num_samples=2, num_rounds=0, num_solution_epochs=3)
        it = trainer(pair, task, solutions_from="samples", solutions=tmp_path / folder, **settings)
        it.solved = it.train
        it.run()
        return it.state.policy.state_dict()

    with monkeypatch.context() as patch:
        patch.setattr(warmstart, "solution_decisions", no_time)
        with pytest.raises(KeyboardInterrupt):
            run(path.name)
    assert path.with_name("read.safetensors.answers").exists()
    with monkeypatch.context() as patch:
        patch.setattr(warmstart, "sample_solutions", no_time)
        resumed = run(path.name)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    torch.testing.assert_close(resumed, run("other"), rtol=0, atol=0)


def no_time(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "wrong",
    [dict(solutions_from="gold"), dict(num_samples=0), dict(sample_temperature=0.0)],
    ids=lambda wrong: next(iter(wrong)),
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        config(**wrong)
