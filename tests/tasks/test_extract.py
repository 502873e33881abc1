"""Answer extraction, on the ways in which models really end their answers."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cospec.tasks.extract import (
    all_numbers,
    boxed,
    choice,
    final_answer,
    final_number,
    gold_number,
    last_number,
    same_number,
    strict_gsm8k,
)

NUMBERS = [
    # Qwen2.5: a boxed answer after its reasoning
    ("Janet makes 9 * 2 = 18 dollars.\n\nTherefore, the answer is \\(\\boxed{18}\\).", "18"),
    ("So, Janet makes $\\boxed{18}$ dollars every day at the farmers' market.", "18"),
    ("The total is \\[\n\\boxed{64}\n\\]\nThis uses 3 trips of 4 hours.", "64"),
    ("He runs \\( 3 \\times 3 \\times 60 = 540 \\) meters.\n\\[ \\boxed{540} \\]", "540"),
    ("The profit is \\(\\boxed{\\$70,000}\\).", "70000"),
    ("The profit is \\(\\boxed{70{,}000}\\).", "70000"),
    ("The profit is $\\boxed{70\\,000}$.", "70000"),
    ("The answer is \\(\\boxed{125\\%}\\).", "125"),
    ("Thus it takes \\(\\boxed{20 \\text{ minutes}}\\).", "20"),
    ("The area is $\\boxed{24\\ \\text{cm}^2}$.", "24"),
    ("The area is $\\boxed{24\\text{ m}^{2}}$.", "24"),
    ("Hence \\boxed{x = 5}.", "5"),
    ("Hence \\boxed{9 \\times 2 = 18}.", "18"),
    ("Hence \\boxed{16 - 3 - 4 = 9 \\text{ eggs}}.", "9"),
    ("\\boxed{\\text{18 dollars}}", "18"),
    ("\\boxed{\\textbf{42}}", "42"),
    ("The slope is \\boxed{-3}.", "-3"),
    ("The change is \\boxed{-\\$5}, a loss.", "-5"),
    ("The change is $\\boxed{\u22127}$ degrees.", "-7"),
    ("The part is \\boxed{\\frac{1}{2}}.", "1/2"),
    ("The part is \\boxed{-\\dfrac{3}{4}}.", "-3/4"),
    ("The part is \\boxed{\\frac12}.", "0.5"),
    ("It takes \\boxed{2\\frac{1}{2}} hours.", "2.5"),
    ("First \\boxed{3}, and then altogether \\boxed{12}.", "12"),
    ("\\boxed{\\text{No}} since he has 3 of the 5.\n#### 3", "3"),
    ("We get \\boxed{18} but check: \\boxed{1", "18"),
    ("He pays \\boxed{0.75} dollars for each of 2.", "0.75"),
    # Llama 3: step headings, "The final answer is"
    ("## Step 1: Add 3 and 4.\n\nThe final answer is: $\\boxed{7}$", "7"),
    ("## Step 3: Conclude\nThe final answer is 540.", "540"),
    ("The final answer is $18.", "18"),
    ("The final answer is $18.50.", "18.5"),
    ("So, the answer is 18 dollars, since she sells 9 of 16.", "18"),
    ("The answer is 9 * 2 = 18.", "18"),
    ("The answer is **18**.", "18"),
    ("**Answer: 18 eggs** (of the 24 she had)", "18"),
    ("Answer: $1,234.56 in total for 3 people", "1234.56"),
    ("**Final Answer**: 5\n\nI hope that these 2 steps help!", "5"),
    ("### Final Answer:\n18\n\nChecked in 2 ways.", "18"),
    ("The answer is therefore 18.", "18"),
    ("The answer is the sum of 3 and 5, which is 8.", "8"),
    ("The answer is -4.", "-4"),
    ("Answer: -$5", "-5"),
    # GSM8K's own form, and what looks like it
    ("She makes 9 * 2 = $<<9*2=18>>18.\n#### 18", "18"),
    ("#### 1,200", "1200"),
    ("####18", "18"),
    ("#### $18", "18"),
    ("#### 18 dollars for 2 days", "18"),
    ("#### -5", "-5"),
    ("#### 18.00", "18"),
    ("#### 3/4", "0.75"),
    ("#### 9 + 9 = 18", "18"),
    ("#### Step 1: eggs\nShe has 16.\n#### Step 2: sell\nShe earns 18 dollars.", "18"),
    ("#### 1. Count\n16 eggs\n#### 2. Sell\nThat makes 18.", "18"),
    ("#### 1. Count\n16 eggs\n\n#### 18", "18"),
    # with an exponent
    ("The answer is 1.5e3.", "1500"),
    ("#### 1e-07", "0.0000001"),
    ("\\boxed{2E5}", "200000"),
    # no marker: the last number
    ("Janet sells 9 eggs and so makes 18 dollars.", "18"),
    ("She has 3 + 4 = 7", "7"),
    ("He has 10-3", "3"),
    ("He has 10 - 3 = 7 left", "7"),
    ("x=-3", "-3"),
    ("It costs $-3.50", "-3.5"),
    ("It costs -$3.50", "-3.5"),
    ("It is 20 m^2.", "20"),
    ("It weighs 1,234,567 grams.", "1234567"),
    ("He bought 3,4, and 5.", "5"),
    ("That is 50%.", "50"),
    ("That is 12.5 %", "12.5"),
    ("That is \u20ac1,000.", "1000"),
    ("That is Rs.500", "500"),
    ("It is .5", "1/2"),
    ("3/4 of the cake", "3/4"),
    ("He ate 1 1/2 cakes", "1.5"),
    ("The total is *72*.", "72"),
    ("The total is \\(72\\).", "72"),
    ("18/day", "18"),
    ("He earns $18.", "18"),
    ("007", "7"),
    ("The change is \\boxed{- 5}.", "-5"),
    ("The answer is \u20135.", "-5"),
    ("He needs 3\u20135", "5"),
    ("The answer is:\n- 5 apples", "5"),
    ("The answer is 3/4 of 20 = 15", "15"),
    # none
    ("I do not know.", None),
    ("", None),
    ("\\boxed{}", None),
    ("#### N", None),
]


@pytest.mark.parametrize(("text", "expected"), NUMBERS)
def test_the_number_that_a_model_gives_as_its_answer_is_found(
    text: str, expected: str | None
) -> None:
    found = final_number(text)
    assert found == expected or same_number(found, expected)


def test_the_table_of_model_outputs_is_long_enough_to_mean_something() -> None:
    assert len({text for text, _ in NUMBERS}) == len(NUMBERS) >= 60


@pytest.mark.parametrize(
    ("left", "right", "is_same"),
    [
        ("18.00", "18", True),
        ("0.5", "1/2", True),
        ("1 1/2", "1.5", True),
        ("-1 1/2", "-1.5", True),
        ("0.1", "1/10", True),
        ("-0", "0", True),
        ("18", "-18", False),
        ("0.333", "1/3", False),
        ("12345678901234567890", "12345678901234567891", False),
        (None, "1", False),
        (None, None, False),
    ],
)
def test_numbers_are_compared_exactly(left: str | None, right: str | None, is_same: bool) -> None:
    assert same_number(left, right) is is_same


@pytest.mark.parametrize("text", ["3 / 4", "3/4", " 3 /4"])
def test_a_gold_fraction_is_one_number_on_every_python(text: str) -> None:
    gold = gold_number(text)
    assert same_number(gold, "0.75") and not same_number(gold, "7")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\u22127", "-7"),
        ("\u2212$5", "-5"),
        ("\u22123 / 4", "-0.75"),
        ("\\frac{1}{2}", "0.5"),
        ("70{,}000", "70000"),
        ("2^3", None),
        ("10^{6}", None),
        ("20 m^2", None),
    ],
)
def test_a_gold_number_is_read_as_a_models_text_is(text: str, expected: str | None) -> None:
    """Found: the sign was lost, and a power was its base."""
    gold = gold_number(text)
    assert gold == expected or same_number(gold, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so 18\n#### 18", "18"),
        ("#### 1,200.", "1200"),
        ("#### -5", "-5"),
        ("#### 18\n\nQuestion: another\n#### 5", "18"),
        ("#### 18.00", "18.00"),
        ("####18", None),
        ("#### $18", None),
        ("The answer is 18", None),
    ],
)
def test_the_strict_rule_is_that_of_the_evaluation_harness(text: str, expected: str | None) -> None:
    assert strict_gsm8k(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Answer: C", "C"),
        ("The correct answer is (C).", "C"),
        ("The answer is (c).", "C"),
        ("The answer is C) 600", "C"),
        ("the correct option is B", "B"),
        ("So option B is right.", "B"),
        ("Therefore, the correct answer is **D**.", "D"),
        ("Therefore, the answer is $\\boxed{C}$.", "C"),
        ("\\boxed{\\text{E}}", "E"),
        ("\\boxed{\\text{(B) 150 m}}", "B"),
        ("\\boxed{(A)}", "A"),
        ("\\boxed{D) 5}", "D"),
        ("(A) is too small, so it must be (B)", "B"),
        ("We find 600.\n\nC", "C"),
        ("We find 600.\n**C**", "C"),
        ("C) 600", "C"),
        ("Answer: A. It is 5, not (B) 6.", "A"),
        ("**B. Paris**", "B"),
        ("B: Paris", "B"),
        ("A. x is wrong.\n\nB. Paris is right.", "B"),
        ("The correct answer is B. Option A is incorrect because it is too big.", "B"),
        ("The answer is B because option A is wrong.", "B"),
        ("\\boxed{\\mathrm{B}}", "B"),
        ("\\boxed{\\mathbf{B}}", "B"),
        ("The answer is \\(B\\).", "B"),
        ("The answer is $\\mathrm{B}$.", "B"),
        ("Answer: b", "B"),
        ("The answer is the letter B.", "B"),
        ("The answer is a bird.", None),
        ("B.C. was long ago", None),
        ("A bird flies at 600.", None),
        ("The answer is Dan's.", None),
        ("The answer is 600.", None),
        ("", None),
    ],
)
def test_the_letter_that_a_model_settles_on_is_found(text: str, expected: str | None) -> None:
    assert choice(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("thinking <answer> a b\nc d </answer> done", "a b\nc d"),
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("so \\boxed{\\text{yes}}", "\\text{yes}"),
        ("27 + 5 = 32\n#### 32", "32"),
        ("#### Final Answer\nParis", "Paris"),
        ("####\n\nParis", "Paris"),
        ("#### The answer is Paris", "Paris"),
        ("#### Paris\n####", None),
        ("The answer is olleh.", "olleh"),
        ("**Answer:** olleh\nThat was easy.", "olleh"),
        ("Some thoughts.\n\nolleh", "olleh"),
        ("`olleh`", "olleh"),
        ("The answer is:\n```\nolleh\n```", "olleh"),
        ("```text\nolleh\n```", "olleh"),
        ("<answer></answer>", None),
        ("", None),
    ],
)
def test_the_final_answer_in_words_is_found(text: str, expected: str | None) -> None:
    assert final_answer(text) == expected


def test_braces_within_a_box_are_matched_and_a_cut_off_box_is_ignored() -> None:
    assert boxed(r"\boxed{\frac{1}{2}} \boxed{\{1, 2\}} \boxed{cut") == [
        r"\frac{1}{2}",
        r"\{1, 2\}",
    ]


ORNAMENTS = st.text(alphabet="aA1.,*_$\\({[<>/#= \n-9", max_size=400)
EXTRACTORS = (final_number, final_answer, choice, boxed, all_numbers, last_number, strict_gsm8k)


@given(ORNAMENTS | st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_extractors_take_any_text(text):
    for extract in EXTRACTORS:
        extract(text)
    assert same_number(final_number(text), final_number(text)) == (final_number(text) is not None)


@pytest.mark.parametrize(
    "text",
    [
        "answer" + "**" * 50_000 + "x",
        "\n" * 100_000,
        "<answer>" * 20_000,
        "1," + "111," * 20_000 + "1111",
        "\\boxed{" * 20_000,
        "\\boxed{" * 2_500 + "x" + "}" * 2_500,
        "=1" * 50_000,
        "A \n" * 30_000 + "x",
        "answer is " * 20_000,
        "#" * 100_000,
    ],
    ids=lambda text: text[:8],
)
def test_a_long_text_takes_no_longer_than_its_length_allows(text):
    """Twice the text may take twice the time, not four times; counted in seconds with much room."""
    started = time.process_time()
    for extract in EXTRACTORS:
        extract(text)
    assert time.process_time() - started < 5


def test_numbers_of_thousands_of_digits_are_compared_as_they_are_written():
    long = "7" * 5000
    assert same_number(long, long)
    assert not same_number(long, long[:-1])
    assert last_number(f"It is {long}") == long


def test_the_answer_of_a_very_long_text_is_at_its_end():
    text = "The answer is 1. " + "x" * 30_000 + " The answer is 2."
    assert final_number(text) == "2"
    assert choice("Answer: A. " + "x" * 30_000 + " Answer: B.") == "B"
    assert final_answer("<answer>a</answer>" + "x" * 30_000 + "<answer>b</answer>") == "b"
