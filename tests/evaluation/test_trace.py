"""Recorded problems: tokens join to the text, and branches end as they do when played alone."""

from __future__ import annotations

import pytest

from cospec import Engine, load_arbiter
from cospec.evaluation.problems import encode_problems
from cospec.evaluation.trace import trace_problems


@pytest.fixture(scope="module")
def rows(pair, task):
    engine = Engine(pair, load_arbiter("gap:max_gap=1"), num_speculative_tokens=3)
    examples = task.examples("test")
    found = trace_problems(engine, task, examples, keep=4, branches=True, max_new_tokens=24)
    return engine, {example.id: example for example in examples}, found


def test_the_tokens_of_a_problem_join_to_its_text(rows, task):
    engine, examples, found = rows
    assert len(found) == 4
    for row in found:
        text = "".join(token for token, _ in row["tokens"])
        prompts, samplings = encode_problems(engine.pair, task, [examples[row["id"]]], 24)
        (completion,) = engine.generate(prompts, samplings)
        assert text == completion.text
        assert [origin for _, origin in row["tokens"]] == list(completion.origins)
        assert row["correct"] == task.score(examples[row["id"]], text).correct


def test_every_mismatch_is_told_where_its_token_stands(rows):
    _, _, found = rows
    mismatches = [(row, m) for row in found for m in row["mismatches"]]
    assert any(m["keep_draft"] for _, m in mismatches)
    assert not all(m["keep_draft"] for _, m in mismatches)
    for row, m in mismatches:
        text, origin = row["tokens"][m["position"]]
        assert origin == ("override" if m["keep_draft"] else "correction")
        assert not text or text.endswith(m["draft_text" if m["keep_draft"] else "target_text"])


def test_the_branch_that_was_taken_ends_as_the_problem_did(rows):
    _, _, found = rows
    for row in found:
        for m in row["mismatches"]:
            taken = m["draft_correct"] if m["keep_draft"] else m["target_correct"]
            assert taken == row["correct"]
    others = [
        (m["target_correct"] if m["keep_draft"] else m["draft_correct"]) != row["correct"]
        for row in found
        for m in row["mismatches"]
    ]
    assert any(others) and not all(others), "some rulings matter"


def test_problems_whose_answer_changed_come_first(rows):
    _, _, found = rows
    is_same = [row["correct"] == row["target_correct"] for row in found]
    assert is_same == sorted(is_same)


def test_a_lossless_trace_has_no_overrides_and_the_targets_answers(pair, task):
    engine = Engine(pair, load_arbiter("lossless"), num_speculative_tokens=3)
    found = trace_problems(engine, task, task.examples("test"), keep=9, max_new_tokens=24)
    assert len(found) == 9
    assert all(row["correct"] == row["target_correct"] for row in found)
    assert not any(row["num_overrides"] for row in found)
    mismatches = [m for row in found for m in row["mismatches"]]
    assert len(mismatches) > 9, "the draft disagrees"
    assert not any(m["keep_draft"] or "draft_correct" in m for m in mismatches)
