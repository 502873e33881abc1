"""The task itself: examples, prompts, scores."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cospec.errors import ConfigError, TaskError
from cospec.tasks import SPLITS, Example, Score, Task, load_task
from cospec.tasks.files import FileSource

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = [
    Example(f"e{i}", f"What is {i}?", str(i), {"solution": f"It is {i}."}) for i in range(9)
]


def make_task(**fields: Any) -> Task:
    source = FileSource("toy", {"train": EXAMPLES[:6], "test": EXAMPLES[6:]})
    return Task("toy", source, lambda example, text: Score(float(text == example.answer)), **fields)


@pytest.mark.parametrize("reward", [-0.1, 1.1, float("nan")])
def test_a_reward_outside_the_unit_interval_is_refused(reward: float) -> None:
    with pytest.raises(TaskError, match=r"must be in \[0, 1\]"):
        Score(reward)


def test_only_the_full_reward_counts_as_right() -> None:
    assert Score(1.0).correct
    assert not Score(0.999).correct


def test_the_seed_picks_problems_and_a_larger_number_only_adds_to_them() -> None:
    task = make_task()
    assert task.examples("train", 6, seed=1) != task.examples("train", 6, seed=2)
    assert task.examples("train", 3, seed=1) == task.examples("train", 6, seed=1)[:3]
    assert sorted(e.id for e in task.examples("train")) == [e.id for e in EXAMPLES[:6]]


def test_settings_that_cannot_be_are_refused_with_what_is_allowed() -> None:
    task = make_task()
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        task.examples("tests")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="num_problems is 0"):
        task.examples("test", 0)
    with pytest.raises(ConfigError, match="seed is -1"):
        task.examples("test", 1, seed=-1)
    with pytest.raises(TaskError, match=r"4 asked for; ask for fewer \(--num-prob.*=test"):
        task.examples("test", 4)
    with pytest.raises(TaskError, match="toy has 0 tune problems; ask for another split"):
        task.examples("tune")


def test_a_chat_model_gets_one_user_message_as_token_ids(chat_tokenizer: Any) -> None:
    task = make_task()
    assert task.prompt(EXAMPLES[7], chat_tokenizer) == [1, 2, 3]
    (message,) = chat_tokenizer.messages
    assert message["role"] == "user"
    assert message["content"].startswith("What is 7?\nPlease reason step by step")
    assert message["content"].endswith("final answer within \\boxed{}.")
    assert chat_tokenizer.settings["add_generation_prompt"] is True
    assert task.stop_strings(chat_tokenizer) == ()


def test_a_question_with_braces_goes_into_the_message_unchanged(chat_tokenizer: Any) -> None:
    make_task().prompt(Example("e", "Is {x} in {question}?", "yes"), chat_tokenizer)
    assert chat_tokenizer.messages[0]["content"].startswith("Is {x} in {question}?\n")


def test_other_models_get_a_plain_question(plain_tokenizer: Any) -> None:
    task = make_task()
    assert task.prompt(EXAMPLES[7], plain_tokenizer) == "Question: What is 7?\nAnswer:"
    assert task.stop_strings(plain_tokenizer) == ("\nQuestion:",)


def test_worked_examples_come_from_train_only_and_never_show_the_problem_itself(
    plain_tokenizer: Any,
) -> None:
    task = make_task(num_shots=3)
    for example in EXAMPLES:
        *shots, last = task.prompt(example, plain_tokenizer).split("\n\n")
        assert last == f"Question: {example.question}\nAnswer:"
        assert len(shots) == 3
        assert all(example.question not in shot for shot in shots)
        trained = [f"Question: {e.question}\nAnswer: It is {e.answer}." for e in EXAMPLES[:6]]
        assert set(shots) <= set(trained)


def test_a_chat_model_gets_worked_examples_as_earlier_turns(chat_tokenizer: Any) -> None:
    task = make_task(chat_shots=2)
    task.prompt(EXAMPLES[7], chat_tokenizer)
    *turns, last = chat_tokenizer.messages
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    asked, answered = turns[0]["content"], turns[1]["content"]
    (shown,) = (e for e in EXAMPLES[:6] if answered == f"It is {e.answer}.")
    assert asked == task.chat.replace("{question}", shown.question)
    assert last == {"role": "user", "content": task.chat.replace("{question}", "What is 7?")}


def test_the_nearest_worked_examples_are_shown_the_most_like_last(plain_tokenizer: Any) -> None:
    texts = ["How many red hats?", "Who ran?", "How many red cars are sold?", "How many cars?"]
    made = [Example(f"e/{i}", text, str(i)) for i, text in enumerate(texts)]
    asked = Example("asked", "How many red cars were sold?", "9")
    source = FileSource("toy", {"train": [*made, asked], "test": [asked]})
    task = Task("toy", source, lambda example, text: 1.0, num_shots=2, shot_sampler="nearest")
    *shots, last = str(task.prompt(asked, plain_tokenizer)).split("\n\n")
    assert [shot.split("\n")[0] for shot in shots] == [
        "Question: How many cars?", "Question: How many red cars are sold?",
    ], "and not the problem itself"  # fmt: skip
    assert last == f"Question: {asked.question}\nAnswer:"


def test_the_words_of_a_common_beginning_do_not_make_a_question_near(plain_tokenizer: Any) -> None:
    words = {"0": "apple", "1": "house", "2": "apple", "3": "house"}
    made = [Example(n, f"Room {int(n) // 2}. {word}?", n) for n, word in words.items()]
    asked = Example("asked", "Room 1. house?", "9")
    task = Task(
        "toy", FileSource("toy", {"train": made, "test": [asked]}), lambda example, text: 1.0,
        num_shots=1, shot_sampler="nearest", beginning=lambda example: example.question[:8],
    )  # fmt: skip
    assert str(task.prompt(asked, plain_tokenizer)).startswith(
        "Question: Room 1. house?\nAnswer: 3"
    )
    twins = [replace(one, id=f"{one.id}/2", question=f"{one.question} Say it.") for one in made]
    source = FileSource("toy", {"train": [*made, *twins], "test": [asked]})
    shown = replace(task, source=source)._shots(asked, 2)
    assert [one.answer for one in shown] == ["2", "3"], "an answer once"
    assert shown[-1].id == "3", "in its likest wording"
    elsewhere = Example("else", "Room 7. apple, Room 1", "9")
    (shot,) = task._shots(elsewhere, 1)
    assert shot.question.endswith("apple?"), "of any room, where there is none of this one"


def by_room(example: Example) -> str:
    return f"Room {int(example.answer) % 2}. "


def test_worked_examples_are_of_the_same_beginning_which_is_said_once(
    plain_tokenizer: Any, chat_tokenizer: Any
) -> None:
    made = [Example(e.id, by_room(e) + e.question, e.answer, e.metadata) for e in EXAMPLES]
    again = Example("again", by_room(made[6]) + "Which?", "4")
    elsewhere = Example("else", "Room 7. Which?", "7")
    source = FileSource("toy", {"train": made[:6], "test": [*made[6:], again, elsewhere]})
    task = Task(
        "toy", source, lambda example, text: 1.0, chat="{question}", num_shots=2, chat_shots=2,
        beginning=by_room,
    )  # fmt: skip
    *shots, last = str(task.prompt(made[8], plain_tokenizer)).split("\n\n")
    first, second = (int(shot[-2]) for shot in shots)
    assert {first, second} < {0, 2, 4}
    assert shots[0] == f"Question: Room 0. What is {first}?\nAnswer: It is {first}."
    assert shots[1] == f"Question: What is {second}?\nAnswer: It is {second}."
    assert last == "Question: What is 8?\nAnswer:"
    task.prompt(again, chat_tokenizer)
    assert "It is 4." not in {turn["content"] for turn in chat_tokenizer.messages}, "its answer"
    assert chat_tokenizer.messages[-1]["content"] == "Which?"
    shots = str(task.prompt(elsewhere, plain_tokenizer)).split("\n\n")
    assert len(shots) == 3 and shots[-1] == "Question: Room 7. Which?\nAnswer:"
    assert all("Room" in shot for shot in shots[:1]), "of any room, where there is none of this one"


def test_tasks_and_examples_can_be_sent_to_other_processes(data_dir: Path) -> None:
    for spec in ("gsm8k", "svamp", "math500", "reasoning_gym:gcd"):
        task = pickle.loads(pickle.dumps(load_task(spec, data_dir=data_dir)))
        (example,) = task.examples("train", 1)
        again = pickle.loads(pickle.dumps(example))
        assert again == example
        assert len({example, again}) == 1, "equal examples have equal hashes"


def test_the_splits_have_one_order() -> None:
    assert SPLITS == ("train", "tune", "test")


def test_a_source_may_be_a_generator(plain_tokenizer: Any) -> None:
    """Found: the worked examples were gone from the second prompt on."""

    def source(split: str, num_problems: int | None, seed: int) -> Any:
        yield from EXAMPLES[:num_problems]

    task = Task("toy", source, lambda example, text: Score(1.0), num_shots=2)
    assert task.examples("train", 3) == EXAMPLES[:3]
    first, second = (task.prompt(EXAMPLES[7], plain_tokenizer) for _ in range(2))
    assert first == second and str(first).count("Question:") == 3


def test_two_problems_of_one_id_are_refused() -> None:
    """Found: results are kept by id, so that one of the two was lost."""
    pools: Any = {"train": EXAMPLES[:2], "test": [*EXAMPLES[:2], Example("e1", "Other?", "o")]}
    task = Task("toy", FileSource("toy", pools), lambda example, text: Score(1.0))
    assert len(task.examples("train")) == 2
    with pytest.raises(TaskError, match="toy has more than one test problem with the id 'e1'"):
        task.examples("test")


@pytest.mark.parametrize("field", ["id", "question", "answer"])
def test_an_example_is_made_of_strings(field: str) -> None:
    """Found: an answer of 18 was no error, and never right."""
    fields: dict[str, Any] = {"id": "e", "question": "Q?", "answer": "18"} | {field: 18}
    with pytest.raises(TaskError, match=f"the {field} of example .* is 18; it must be a string"):
        Example(**fields)


@pytest.mark.parametrize(
    ("given", "reward"), [(True, 1.0), (False, 0.0), (1, 1.0), (np.float64(0.5), 0.5)]
)
def test_a_scorer_may_return_a_truth_or_a_number(given: Any, reward: float) -> None:
    """Found: an AttributeError after all the decoding."""
    task = Task("toy", make_task().source, lambda example, text: given)
    assert task.score(EXAMPLES[0], "0") == Score(reward)


@pytest.mark.parametrize("given", [None, "good", [1]])
def test_a_scorer_that_returns_no_number_is_named(given: Any) -> None:
    task = Task("toy", make_task().source, lambda example, text: given)
    with pytest.raises(TaskError, match=r"the scorer of toy gave .* for e0; it must return a Scor"):
        task.score(EXAMPLES[0], "0")


def test_the_seed_may_be_numpys() -> None:
    """Found: a TypeError of `random`."""
    task = make_task()
    assert task.examples("train", seed=np.int64(3)) == task.examples("train", seed=3)  # type: ignore[arg-type]
    seed: Any = np.int64(3)
    assert task.source("train", 2, seed) == task.source("train", 2, 3)


def test_numbers_of_numpy_in_a_score_are_plain_ones() -> None:
    """Found: the run ended, as JSON has no numpy.bool_."""
    score = Score(np.float64(1.0), 18, np.bool_(True))  # type: ignore[arg-type]
    assert json.dumps([score.reward, score.extracted, score.strict]) == '[1.0, "18", true]'
    assert score.correct is True
