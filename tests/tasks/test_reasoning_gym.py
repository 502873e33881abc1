"""Generated problems: splits that cannot overlap, seeds, scores."""

from __future__ import annotations

import hashlib
import inspect
import json
import random
import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from cospec.errors import ConfigError, TaskError
from cospec.tasks import BUNDLED_TRAINING_SEEDS, SPLITS, Example, load_task, split_of
from cospec.tasks.gsm_symbolic import TEMPLATE, all_templates, parse_templates, twin_key
from cospec.tasks.reasoning_gym import EVALUATES, SUFFIX, UNUSABLE
from cospec.tasks.splits import normalize

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cospec.tasks import Split

library = pytest.importorskip("reasoning_gym")


def test_the_split_rule_is_the_one_that_the_bundled_models_were_trained_by() -> None:
    """Frozen: a change would put training problems of the bundled models into the test split."""
    for question in ("What is 1 + 1?", "a", "", "\u00fc\nx"):
        digest = hashlib.sha256(" ".join(question.split()).encode()).hexdigest()
        rank = int(digest, 16) % 10
        assert split_of(question) == {0: "test", 1: "tune"}.get(rank, "train")
    assert split_of("What is  1 +\n1? ") == split_of("What is 1 + 1?")
    assert split_of("What is 0 + 1?") == "test"
    assert split_of("What is 2 + 1?") == "train"
    assert split_of("What is 9 + 1?") == "tune"
    assert BUNDLED_TRAINING_SEEDS == 10**9


def test_a_tenth_of_the_problems_is_test_and_a_tenth_tune() -> None:
    splits = [split_of(f"Question {i}") for i in range(10000)]
    assert 900 < splits.count("test") < 1100
    assert 900 < splits.count("tune") < 1100


@pytest.mark.parametrize(
    ("name", "number"),
    [(name, 60) for name in ("gsm_symbolic", "lcm", "leg_counting", "simple_equations")]
    # As many as the table of other tasks has.
    + [(name, 600) for name in ("chain_sum", "products", "gcd", "simple_geometry")],
)
def test_no_problem_is_in_two_splits_or_twice_in_one(name: str, number: int) -> None:
    task = load_task(f"reasoning_gym:{name}")
    drawn = {split: task.examples(split, number, seed=3) for split in SPLITS}
    for split, examples in drawn.items():
        suffix = SUFFIX if name == "gsm_symbolic" else ""
        assert all(split_of(e.question + suffix) == split for e in examples)
        assert len({" ".join(e.question.split()) for e in examples}) == number
        assert len({e.id for e in examples}) == number


def test_the_same_seed_gives_the_same_problems_and_another_seed_others() -> None:
    task = load_task("reasoning_gym:chain_sum")
    first = task.examples("test", 50, seed=1)
    assert task.examples("test", 80, seed=1)[:50] == first
    for seed in (0, 2, 1_000_004):
        assert not {e.question for e in first} & {
            e.question for e in task.examples("test", 50, seed)
        }


def test_the_seeds_that_train_the_bundled_models_cannot_pick_other_problems() -> None:
    task = load_task("reasoning_gym:gsm_symbolic")
    for split in ("tune", "test"):
        with pytest.raises(ConfigError, match="reserved for training the bundled models"):
            task.examples(split, 1, seed=BUNDLED_TRAINING_SEEDS)
    (example,) = task.examples("train", 1, seed=BUNDLED_TRAINING_SEEDS)
    assert int(example.id.partition("/")[2]) >= BUNDLED_TRAINING_SEEDS
    (example,) = task.examples("test", 1, seed=BUNDLED_TRAINING_SEEDS - 1)
    assert int(example.id.partition("/")[2]) < BUNDLED_TRAINING_SEEDS


@pytest.mark.parametrize("name", ["gcd", "gsm_symbolic"])
def test_without_reasoning_the_same_problems_are_asked_for_the_answer_alone(name: str) -> None:
    reasoned = load_task(f"reasoning_gym:{name}")
    direct = load_task(f"reasoning_gym:{name},reasoning=off")
    (example,) = examples = direct.examples("tune", 1, seed=2)
    assert examples == reasoned.examples("tune", 1, seed=2)
    assert direct.name == f"reasoning_gym:{name},reasoning=off"
    assert (direct.max_new_tokens, reasoned.max_new_tokens) == (64, 512)
    assert "step by step" in reasoned.chat
    assert "step by step" not in direct.chat
    assert load_task(f"reasoning_gym:{name},reasoning=on").chat == reasoned.chat
    assert direct.score(example, f"<answer>{example.answer}</answer>").correct
    assert not direct.score(example, f"<answer>{example.answer}1</answer>").correct


def test_a_generated_task_wants_to_know_how_many_problems() -> None:
    with pytest.raises(TaskError, match="has no end"):
        load_task("reasoning_gym:gcd").examples("test")


def test_a_generator_that_runs_dry_says_so() -> None:
    with pytest.raises(TaskError, match=r"ran dry: seed 0 gave \d+ different test problems, 500"):
        load_task("reasoning_gym:tower_of_hanoi").examples("test", 500)


@pytest.mark.parametrize("split", SPLITS)
def test_some_templates_and_all_others_part_the_problems_of_a_seed(split: Split) -> None:
    every, some, others = (
        load_task(f"reasoning_gym:gsm_symbolic{option}").examples(split, num_problems, seed=3)
        for option, num_problems in (
            ("", 150),
            (",templates=3/7/20-29", 20),
            (",without_templates=3/7/20-29", 120),
        )
    )
    chosen = {3, 7, *range(20, 30)}
    assert {e.metadata["template"] for e in some} <= chosen
    assert all(e.metadata[TEMPLATE] == e.metadata["template"] for e in some)
    assert not {e.metadata["template"] for e in others} & chosen
    for part, is_part in ((some, chosen.__contains__), (others, lambda t: t not in chosen)):
        expected = [e for e in every if is_part(e.metadata["template"])]
        num_both = min(len(part), len(expected))
        assert num_both > 5
        assert part[:num_both] == expected[:num_both]


def test_a_template_is_told_by_the_words_of_its_problems() -> None:
    """With numbers and names taken out, problems of one template agree, of two never."""
    examples = load_task("reasoning_gym:gsm_symbolic").examples("test", 400, seed=4)
    words: dict[int, list[set[str]]] = {}
    for e in examples:
        found = set(re.findall(r"[a-z]+", e.question))
        words.setdefault(e.metadata["template"], []).append(found)
    assert len(words) > 80
    common = {template: set.intersection(*sets) for template, sets in words.items()}
    for template, sets in words.items():
        near = max(common, key=lambda t: sum(len(common[t] & s) / len(common[t] | s) for s in sets))
        assert near == template


def test_the_templates_are_the_85_that_reasoning_gym_calls_right() -> None:
    assert len(all_templates()) == 85
    assert parse_templates("0-99") == set(all_templates())
    assert parse_templates("31-33") == {31, 33}
    assert parse_templates("0-98", excluded=True) == {99}


def test_twins_have_the_same_template_and_numbers_and_other_names() -> None:
    assert twin_key(4, "Ann has 1,200 pens and 3.") == twin_key(4, "Ben has 1,200 cups and 3.")
    assert twin_key(4, "Ann has 12 pens and 3.") != twin_key(5, "Ann has 12 pens and 3.")
    assert twin_key(4, "Ann has 12 pens and 3.") != twin_key(4, "Ann has 1 pen and 23.")


def _drawn(name: str, split: Split, num_problems: int, seed: int) -> set[str]:
    examples = load_task(f"reasoning_gym:{name}").examples(split, num_problems, seed)
    return {normalize(e.question) for e in examples}


def test_twins_are_kept_apart_on_request() -> None:
    """Problems come from few templates, so that there are twins."""
    spec = "reasoning_gym:gsm_symbolic,templates=0-9"
    for option, has_twins in (("", True), (",twins=apart", False)):
        train, test = (
            {
                twin_key(e.metadata["template"], e.question)
                for e in load_task(spec + option).examples(split, num_problems, seed)
            }
            for split, num_problems, seed in (("train", 2000, 7), ("test", 100, 8))
        )
        assert bool(train & test) == has_twins


@pytest.mark.slow
def test_no_test_problem_of_a_table_is_among_the_solved_train_problems() -> None:
    """At the sizes of the tables: 3,000 against 100,000."""
    train = _drawn("gsm_symbolic", "train", 100_000, 1_000_000)
    test = _drawn("gsm_symbolic", "test", 3000, 63)
    assert (len(train), len(test)) == (100_000, 3000)
    assert not train & test


def test_three_thousand_word_problems_take_seconds() -> None:
    started = time.process_time()
    assert len(load_task("reasoning_gym:gsm_symbolic").examples("test", 3000, seed=5)) == 3000
    assert time.process_time() - started < 10


def test_word_problems_are_shown_without_the_fixed_suffix_and_scored_by_the_final_number() -> None:
    task = load_task("reasoning_gym:gsm_symbolic")
    for example in task.examples("test", 200):
        assert "final answer" not in example.question
        assert task.score(example, example.metadata["answer_cot"]).correct
        assert task.score(example, f"It is {float(example.answer):,.2f} in all").correct
        assert not task.score(example, f"#### -{example.answer}1").correct
    negated = Example("e", "?", "5")
    assert not task.score(negated, "#### -5").correct
    assert task.score(negated, "5 is what I get: 4 + 1, so\n#### 5").correct


def test_only_full_credit_counts_and_only_for_the_final_answer() -> None:
    task = load_task("reasoning_gym:spell_backward")
    example = task.examples("test", 1)[0]
    assert task.score(example, f"Let me see.\n<answer>{example.answer}</answer>").correct
    assert task.score(example, f"The answer is {example.answer}.").correct
    padded = task.score(example, f"<answer>{example.answer} or so</answer>")
    assert padded.reward == 0
    assert padded.extracted == f"{example.answer} or so"
    assert task.score(example, "").extracted is None


def test_a_scorer_that_fails_on_an_answer_does_not_stop_the_run() -> None:
    """prime_factorization's raises on what is no number."""
    task = load_task("reasoning_gym:prime_factorization")
    assert task.score(task.examples("test", 1)[0], "<answer>no idea</answer>").reward == 0


def more_rows(grid: str) -> str:
    return json.dumps([*json.loads(grid), [0]])


def longer_rows(grid: str) -> str:
    return json.dumps([[*row, 0] for row in json.loads(grid)])


@pytest.mark.filterwarnings("ignore")  # what the generators leave open
@pytest.mark.parametrize(
    ("name", "add"),
    [
        ("word_sorting", "{}, zebra".format),
        ("letter_jumble", "{} zebra".format),
        ("game_of_life", more_rows),
        ("game_of_life", longer_rows),
        ("number_sorting", lambda numbers: re.sub(r"(\d)\.\d+", r"\1", numbers)),
        ("number_sorting", lambda numbers: str([float("nan")] * (numbers.count(",") + 1))),
        ("polynomial_equations", "{}, or 3".format),
    ],
)
def test_an_answer_that_says_more_or_less_than_the_right_one_is_wrong(
    name: str, add: Callable[[str], str]
) -> None:
    """Found: it had full credit."""
    task = load_task(f"reasoning_gym:{name}")
    example = next(e for e in task.examples("test", 50) if add(e.answer) != e.answer and e.answer)
    assert task.score(example, f"<answer>{example.answer}</answer>").correct
    assert not task.score(example, f"<answer>{add(example.answer)}</answer>").correct


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "key", "endless"),
    [
        ("rubiks_cube", "example_correct_answer", "R222222222"),
        ("rubiks_cube", "example_correct_answer", "R999 " * 4000),
        ("rush_hour", None, "A+999999999"),
        ("propositional_logic", "example_answer", "∧".join(f"a{i}" for i in range(30))),
    ],
)
def test_an_answer_that_a_scorer_would_take_for_ever_is_wrong_at_once(
    name: str, key: str | None, endless: str
) -> None:
    """Found: the scorer made so many moves, or tried all values of so many names, in here."""
    task = load_task(f"reasoning_gym:{name}")
    example = task.examples("test", 1)[0]
    started = time.process_time()
    assert not task.score(example, f"<answer>{endless}</answer>").correct
    assert time.process_time() - started < 1
    if key is not None:
        assert task.score(example, f"<answer>{example.metadata[key]}</answer>").correct


@pytest.mark.parametrize("answer", ["NaN", "nan + nani", "1 + nani"])
def test_no_answer_is_right_because_it_is_no_number(answer: str) -> None:
    """Found: the library's scorer gave NaN full credit for every problem."""
    task = load_task("reasoning_gym:complex_arithmetic")
    for example in task.examples("test", 20):
        assert task.score(example, f"<answer>{example.answer}</answer>").correct
        assert not task.score(example, f"<answer>{answer}</answer>").correct


def test_a_time_in_another_unit_is_wrong() -> None:
    task = load_task("reasoning_gym:time_intervals")
    examples = [e for e in task.examples("test", 100) if e.answer.endswith(" days")]
    assert examples
    for example in examples:
        number = example.answer.split()[0]
        assert task.score(example, f"<answer>{example.answer}</answer>").correct
        assert task.score(example, f"<answer>{number}</answer>").correct
        assert not task.score(example, f"<answer>{number} hours</answer>").correct


def test_blanks_at_the_end_of_a_grids_lines_do_not_matter() -> None:
    task = load_task("reasoning_gym:mini_sudoku")
    example = task.examples("test", 1)[0]
    assert task.score(example, f"<answer>{example.answer}</answer>").correct
    blanks = example.answer.replace("\n", " \n")
    assert task.score(example, f"<answer>{blanks} </answer>").correct


def test_list_functions_are_the_same_in_each_draw() -> None:
    """Found: they depended on Python's global random numbers, and could be in two splits."""
    task = load_task("reasoning_gym:list_functions")
    random.seed(1)
    first = task.examples("train", 60)
    random.seed(2)
    state = random.getstate()
    assert task.examples("train", 60) == first
    assert random.getstate() == state


def test_a_problem_whose_answer_is_no_text_is_left_out() -> None:
    task = load_task("reasoning_gym:ab")
    assert all(example.answer for example in task.examples("test", 300))


@pytest.mark.parametrize("name", ["propositional_logic", "rubiks_cube", "graph_color"])
def test_a_worked_example_has_a_right_answer_where_many_are_right(
    name: str, plain_tokenizer: Any
) -> None:
    """Found: ``shots`` showed empty answers."""
    task = load_task(f"reasoning_gym:{name},shots=1")
    (shot,) = task.examples("train", 1)
    prompt = str(task.prompt(task.examples("test", 1)[0], plain_tokenizer))
    worked = prompt.removeprefix(f"Question: {shot.question}\nAnswer:")
    assert worked != prompt
    assert task.score(shot, worked.partition("\n\n")[0]).correct


@pytest.mark.parametrize("name", ["boxnet", "rush_hour"])
def test_a_generator_without_answers_shows_none(name: str, plain_tokenizer: Any) -> None:
    task = load_task(f"reasoning_gym:{name},shots=1")
    with pytest.raises(TaskError, match=r"no right answer that could be shown.*show fewer"):
        task.prompt(task.examples("test", 1)[0], plain_tokenizer)


@pytest.mark.usefixtures("sandbox")
def test_a_scorer_that_evaluates_the_answer_does_so_in_the_sandbox(tmp_path: Path) -> None:
    task = load_task("reasoning_gym:countdown", allow_code_execution=True)
    example = task.examples("test", 1)[0]
    assert task.score(example, f"<answer>{example.answer}</answer>").correct
    escaped = tmp_path / "escaped"
    hostile = f"__import__('pathlib').Path({str(escaped)!r}).write_text('x')"
    assert not task.score(example, f"<answer>{hostile}</answer>").correct
    assert not escaped.exists()


def test_the_list_of_generators_that_evaluate_answers_is_complete() -> None:
    """A new version of reasoning-gym may add one: its module would name an evaluator."""
    for name, (kind, _) in library.factory.DATASETS.items():
        source = inspect.getsource(kind.score_answer)
        evaluates = re.search(r"\b(eval\(a|exec\(|parse_expr\((?!metadata)|sympify\()", source)
        assert not evaluates or name in {*EVALUATES, *UNUSABLE}, name


@pytest.mark.slow
@pytest.mark.usefixtures("sandbox")
def test_an_answer_that_takes_forever_to_evaluate_is_wrong() -> None:
    task = load_task("reasoning_gym:countdown", allow_code_execution=True)
    example = task.examples("test", 1)[0]
    assert not task.score(example, "<answer>9**9**9**9</answer>").correct


@pytest.mark.slow
@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("name", EVALUATES)
def test_the_sandbox_gives_each_evaluating_scorer_what_it_needs(name: str) -> None:
    task = load_task(f"reasoning_gym:{name}", allow_code_execution=True)
    example = task.examples("test", 1)[0]
    assert task.score(example, f"<answer>{example.answer}</answer>").correct


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # some generators leave files open or warn of their answers
def test_every_generator_scores_its_own_answer_right_and_nonsense_wrong() -> None:
    names = set(library.factory.DATASETS) - set(UNUSABLE) - set(EVALUATES)
    for name in sorted(names):
        task = load_task(f"reasoning_gym:{name}")
        example = task.examples("test", 1)[0]
        if example.answer:
            assert task.score(example, f"<answer>{example.answer}</answer>").correct, name
        assert not task.score(example, "<answer>no idea, 7</answer>").correct, name


def test_times_without_a_date_do_not_differ_from_day_to_day() -> None:
    """Found: a run could not be resumed after midnight, for its problems held today's date."""
    task = load_task("reasoning_gym:time_intervals")
    examples = task.examples("test", 20)
    assert any(":" in e.question and "date" not in e.question for e in examples)
    assert not any({"start_time", "end_time"} & e.metadata.keys() for e in examples)
    assert all(task.score(e, f"<answer>{e.answer}</answer>").correct for e in examples)


def test_a_generator_that_fails_on_some_seeds_gives_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failing:
        def __init__(self, seed: int) -> None:
            self.seed = seed

        def __getitem__(self, i: int) -> dict[str, object]:
            if i % 2:
                raise RuntimeError("no puzzle for this seed")
            return {"question": f"q{self.seed + i}", "answer": "a", "metadata": {}}

    task = load_task("reasoning_gym:gcd")
    monkeypatch.setattr(library, "create_dataset", lambda name, seed, size: Failing(seed))
    examples = task.examples("test", 20)
    assert len(examples) == 20
    assert all(int(e.id.partition("/")[2]) % 2 == 0 for e in examples)


def test_a_generated_task_has_no_nearest_examples(plain_tokenizer) -> None:
    task = load_task("reasoning_gym:leg_counting,shots=2,shot_sampler=nearest")
    (example,) = task.examples("test", 1)
    with pytest.raises(
        TaskError, match="has no end, and shot_sampler=nearest searches a whole train"
    ):
        task.prompt(example, plain_tokenizer)


def test_a_worked_answer_has_the_tags_that_are_asked_for() -> None:
    """Found: answers of several lines were shown bare, of which the last line alone is read."""
    task = load_task("reasoning_gym:leg_counting,shots=2")
    for example in task.examples("tune", 3):
        shown = task.show(example, True)
        assert shown == f"<answer>{example.answer}</answer>"
        assert task.score(example, shown).correct
