"""The audit: every outcome that it records, found again by decoding the branch from nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from cospec import Engine, ModelPair, SamplingConfig, load_arbiter
from cospec.evaluation.audit.auditor import Auditor, reached
from cospec.evaluation.audit.config import AuditConfig
from cospec.evaluation.audit.costs import accepted
from cospec.evaluation.audit.dataset import write_dataset
from cospec.evaluation.audit.summary import _one_step
from cospec.features import SCALAR_NAMES
from tests.conftest import VOCAB, random_model

if TYPE_CHECKING:
    from cospec.tasks import Example, Task

NUM_TOKENS = 20


@pytest.fixture(scope="module")
def examples(task: Task):
    return task.examples("test")


def config(**changes: object) -> AuditConfig:
    return AuditConfig(batch_size=256, max_new_tokens=NUM_TOKENS, **changes)


@pytest.fixture(scope="module")
def whole(pair, task, examples):
    """The audit of all problems: under the lossless arbiter, every branch, and no oracle."""
    return Auditor(pair, task, config(oracle=False)).audit(examples)


def are_right(pair: ModelPair, task: Task, texts: list[tuple[Example, list[int]]], engine: Engine):
    """Tell which texts that continue given tokens are right, decoded from the prompt."""
    is_open = [t[-1] not in pair.eos_token_ids and len(t) < NUM_TOKENS for _, t in texts]
    prompts = [pair.encode(task.prompt(example, pair.tokenizer)) + t for example, t in texts]
    samplings = [SamplingConfig(max_new_tokens=max(1, NUM_TOKENS - len(t))) for _, t in texts]
    found = []
    for (example, kept), goes_on, end in zip(
        texts, is_open, engine.generate(prompts, samplings), strict=True
    ):
        ids = kept + end.token_ids if goes_on else kept
        text = pair.tokenizer.decode(ids, skip_special_tokens=True)
        found.append(task.score(example, text).correct)
    return found


def test_the_outcome_of_each_branch_is_that_of_decoding_it_afresh(
    pair, task, examples, whole
) -> None:
    target = Engine.target_only(pair, batch_size=256)
    prompts = [task.prompt(example, pair.tokenizer) for example in examples]
    paths = target.generate(prompts, SamplingConfig(max_new_tokens=NUM_TOKENS))
    texts, outcomes = [], []
    for example, record, path in zip(examples, whole, paths, strict=True):
        assert record["correct"] == task.score(example, path.text).correct
        assert record["num_mismatches"] == len(record["mismatches"])
        for mismatch in record["mismatches"]:
            position = mismatch["position"]
            assert path.token_ids[position] == mismatch["target_id"] != mismatch["draft_id"]
            assert mismatch["target_correct"] == record["correct"]
            assert len(mismatch["features"]) == len(SCALAR_NAMES)
            texts.append((example, [*path.token_ids[:position], mismatch["draft_id"]]))
            outcomes.append((mismatch["draft_correct"], mismatch["target_correct"]))
    assert [draft for draft, _ in outcomes] == are_right(pair, task, texts, target)
    assert len(set(outcomes)) == 4, "a test that never sees one of the outcomes says little"


def test_under_a_rule_both_branches_go_on_under_the_rule(pair, task, examples) -> None:
    rule = "gap:max_gap=1"
    auditor = Auditor(pair, task, config(arbiter=rule, oracle=False))
    records = auditor.audit(examples)
    engine = Engine(pair, auditor._arbiter, auditor._decode)
    prompts = [task.prompt(example, pair.tokenizer) for example in examples]
    paths = engine.generate(prompts, SamplingConfig(max_new_tokens=NUM_TOKENS))
    texts, expected = [], []
    for example, record, path in zip(examples, records, paths, strict=True):
        for mismatch in record["mismatches"]:
            for who in ("draft", "target"):
                kept = [*path.token_ids[: mismatch["position"]], mismatch[f"{who}_id"]]
                texts.append((example, kept))
                expected.append(mismatch[f"{who}_correct"])
    assert expected == are_right(pair, task, texts, engine)
    assert any(m["target_correct"] != r["correct"] for r in records for m in r["mismatches"])


def test_accepted_tells_where_the_draft_alone_would_have_chosen_the_token(pair, task) -> None:
    (example,) = task.examples("test", 1)
    (record,) = Auditor(pair, task, config(oracle=False)).audit([example])
    prompt = pair.tokenizer(task.prompt(example, pair.tokenizer))["input_ids"]
    (path,) = Engine.target_only(pair).generate([prompt], SamplingConfig(max_new_tokens=NUM_TOKENS))
    draft, one = Engine.draft_only(pair), SamplingConfig(max_new_tokens=1)
    prefixes = [prompt + path.token_ids[:i] for i in range(len(path.token_ids))]
    choices = [completion.token_ids[0] for completion in draft.generate(prefixes, one)]
    expected = [str(int(a == b)) for a, b in zip(choices, path.token_ids, strict=True)]
    assert record["accepted"] == "".join(expected)
    assert {"0", "1"} <= set(record["accepted"])


def test_tokens_that_the_draft_does_not_have_are_no_choice_of_its(pair) -> None:
    """Found: the draft was asked for the embedding of a token that only the target has."""
    draft = random_model("llama", seed=7, vocab_size=VOCAB - 2)
    narrow = ModelPair(pair.target, draft, pair.tokenizer)
    (path,) = Engine.target_only(narrow).generate(
        [[1, VOCAB - 1]], SamplingConfig(max_new_tokens=8)
    )
    path = replace(path, token_ids=[*path.token_ids[:-1], VOCAB - 1])
    digits = accepted(narrow, path)
    assert len(digits) == len(path.token_ids) and digits[-1] == "0"


def test_the_oracle_path_ends_right_if_the_path_or_one_of_its_branches_does(
    pair, task, examples
) -> None:
    records = Auditor(pair, task, config()).audit(examples)
    for record in records:
        one_away = record["correct"] or any(m["draft_correct"] for m in record["mismatches"])
        assert record["oracle_correct"] >= one_away
        if not record["oracle_correct"]:
            assert record["oracle_overrides"] == 0
    assert sum(r["oracle_correct"] for r in records) > sum(r["correct"] for r in records)
    assert any(r["oracle_overrides"] > 1 for r in records)


@pytest.mark.parametrize("arbiter", ["always_draft", "gap:max_gap=1"])
def test_the_oracle_takes_the_targets_token_where_that_mends_a_rulings_answer(
    pair, task, examples, arbiter
) -> None:
    """Found: it tried the draft's token alone, which stands there already."""
    records = Auditor(pair, task, config(arbiter=arbiter)).audit(examples)
    for record in records:
        found = [m["draft_correct"] or m["target_correct"] for m in record["mismatches"]]
        assert record["oracle_correct"] >= (record["correct"] or any(found))
    assert sum(r["oracle_correct"] for r in records) > sum(r["correct"] for r in records)
    one_away = _one_step(records)["problems_right_or_one_override_away"]
    assert one_away["share"] > sum(r["correct"] for r in records) / len(records)


def test_with_a_limit_each_problem_plays_some_of_its_mismatches_and_always_the_same(
    pair, task, examples, whole
) -> None:
    some = Auditor(pair, task, config(oracle=False, branches_per_problem=2)).audit(examples)
    again = Auditor(pair, task, config(oracle=False, branches_per_problem=2)).audit(examples[3:5])
    places = [[m["position"] for m in record["mismatches"]] for record in some]
    for full, part in zip(whole, some, strict=True):
        assert part["num_mismatches"] == full["num_mismatches"]
        assert len(part["mismatches"]) == min(2, full["num_mismatches"])
        found = {m["position"]: m["draft_correct"] for m in full["mismatches"]}
        for mismatch in part["mismatches"]:
            assert found[mismatch["position"]] == mismatch["draft_correct"]
    assert [[m["position"] for m in record["mismatches"]] for record in again] == places[3:5]


def test_problems_of_another_chunk_draw_other_random_numbers(pair, task, examples) -> None:
    auditor = Auditor(pair, task, config(oracle=False, temperature=1.0))
    again, first, later = (auditor.audit(examples[:1], place) for place in (0, 0, 32))
    assert again == first != later


def test_a_sampled_path_does_not_depend_on_the_size_of_chunks(pair, task) -> None:
    """Found: it drew by its place in the chunk."""
    auditor = Auditor(pair, task, config(oracle=False, temperature=1.0))
    examples = task.examples("test", 4)
    whole = auditor.audit(examples)
    parts = [one for i in (0, 2) for one in auditor.audit(examples[i : i + 2], i)]
    for name in ("num_tokens", "accepted", "correct", "draft_correct"):
        assert [one[name] for one in parts] == [one[name] for one in whole]


@pytest.mark.parametrize("has_oracle", [False, True])
def test_progress_is_told_by_the_answers_decoded(pair, task, examples, has_oracle) -> None:
    """Found: 5 % of the work were said to be paths, so that two minutes were told as 32."""
    auditor, shares = Auditor(pair, task, config(oracle=has_oracle)), []
    auditor.on_progress = shares.append
    records = auditor.audit(examples)
    num_paths = 2 * len(examples)
    num_branches = 2 * sum(len(record["mismatches"]) for record in records)
    first = next(i for i, share in enumerate(shares) if share)
    whole_answers = num_paths + 0.5 * num_branches * (2 if has_oracle else 1)
    assert set(shares[:first]) == {0}
    assert shares[first] > num_paths / whole_answers
    assert shares == sorted(shares)
    for some in (examples, examples[:1], examples):  # the share of paths is expected now
        shares.clear()
        auditor.audit(some)
        assert shares == sorted(shares)
    assert any(0 < share < num_paths / whole_answers for share in shares)


def test_scored_texts_are_kept_for_the_problems_of_one_call(pair, task, examples) -> None:
    """Found: every text of an audit stayed in memory to its end."""
    texts = []

    def score(example, text):
        texts.append(text)
        return task.score(example, text)

    auditor = Auditor(pair, replace(task, scorer=score), config(oracle=False))
    auditor.audit(examples[:1])
    num_texts = len(texts)
    auditor.audit(examples[:1])
    assert len(texts) == 2 * num_texts > 2


def test_the_data_set_holds_every_mismatch_with_its_features(task, whole, tmp_path):
    records = whole[:4]
    path = tmp_path / "mismatches.safetensors"
    write_dataset(path, records, SCALAR_NAMES, {"task": task.name})
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    data = load_file(path)
    assert json.loads(metadata["feature_names"]) == list(SCALAR_NAMES)
    ids = json.loads(metadata["problem_ids"])
    places = [(r["id"], m) for r in records for m in r["mismatches"]]
    assert data["features"].shape == (len(places), len(SCALAR_NAMES))
    for i, (problem, mismatch) in enumerate(places):
        assert ids[data["problem"][i]] == problem
        assert data["draft_id"][i] == mismatch["draft_id"]
        assert bool(data["draft_correct"][i]) == mismatch["draft_correct"]
        assert data["features"][i].tolist() == pytest.approx(mismatch["features"])


def test_only_mismatches_that_were_reached_and_may_be_overridden_are_played(
    pair, task, examples
) -> None:
    auditor = Auditor(pair, task, config())
    engine = Engine(pair, auditor._arbiter, auditor._decode)
    prompts = [task.prompt(example, pair.tokenizer) for example in examples]
    completions = engine.generate(prompts, SamplingConfig(max_new_tokens=NUM_TOKENS))
    every = [m for c in completions for step in c.trace for m in step.mismatches]
    played = [m for m in every if m.is_reached and m.is_open]
    assert [m for c in completions for m in reached(c)] == played
    assert 0 < len(played) <= sum(m.is_reached for m in every) < len(every)


def test_mismatches_after_the_last_correction_are_not_played(pair, task, examples, whole) -> None:
    """Found: they were branched from, counted and taught, and no arbiter may override them."""

    def seen(record):
        return [(m["position"], m["draft_id"], m["draft_correct"]) for m in record["mismatches"]]

    same_blocks = {"draft_confidence_threshold": 1e-9}
    some = Auditor(pair, task, config(max_corrections=2, **same_blocks)).audit(examples)
    for one, other in zip(whole, some, strict=True):
        assert other["num_mismatches"] == len(other["mismatches"]) <= 2
        assert seen(other) == seen(one)[: len(other["mismatches"])]
        assert other["oracle_correct"] >= other["correct"]
        positions = {position for position, *_ in seen(one)}
        assert positions <= {m["position"] for m in other["mismatches"]} | {*other["settled"]}
    assert any(
        other["num_mismatches"] < one["num_mismatches"]
        for one, other in zip(whole, some, strict=True)
    )


def test_an_audit_reads_no_clock(pair, task, examples, whole, monkeypatch):
    """Found: one chose who plays branches, and in 16 bits a resumed audit was another one."""
    auditor = Auditor(pair, task, config(oracle=False))
    with monkeypatch.context() as patch:
        patch.setattr("time.perf_counter", lambda: pytest.fail("a clock was read"))
        some = auditor.audit(examples[:2])
    for one, other in zip(some, whole, strict=False):
        assert one["accepted"] == other["accepted"]
        for a, b in zip(one["mismatches"], other["mismatches"], strict=True):
            assert a | {"features": b["features"]} == b


@pytest.mark.parametrize("num_exact", [0, 8])
def test_the_oracle_decides_the_mismatches_that_may_be_overridden(pair, task, examples, num_exact):
    auditor = Auditor(pair, task, config())
    totals = [c.stats for c in auditor.oracle_paths(examples[:3], exact_prefix_tokens=num_exact)]
    for one in totals:
        assert one.num_overrides <= one.num_open_mismatches <= one.num_mismatches
    num_open, num_all = (
        sum(getattr(one, name) for one in totals)
        for name in ("num_open_mismatches", "num_mismatches")
    )
    assert 0 < num_open <= num_all and (num_open < num_all or not num_exact)


ONE_CORRECTION = dict(num_speculative_tokens=32, end_blocks_at_stop=True, max_corrections=1)


@pytest.fixture(scope="module")
def tree(pair, task, examples):
    """The audit of the drafts, at each of whose mismatches the target's token is tried."""
    how = config(arbiter="always_draft", oracle=False, **ONE_CORRECTION)
    return Auditor(pair, task, how).audit(examples)


@pytest.mark.parametrize("arbiter", ["lossless", "gap:max_gap=1", "cascade_diff:alpha=0"])
def test_an_audit_that_always_keeps_the_draft_holds_all_that_one_correction_can_write(
    pair, task, examples, tree, arbiter
) -> None:
    """So what any arbiter is worth with `max_corrections=1` is known without more decoding."""
    records = tree
    engine = Engine(pair, load_arbiter(arbiter), batch_size=16, **ONE_CORRECTION)
    prompts = [task.prompt(example, pair.tokenizer) for example in examples]
    done = engine.generate(prompts, SamplingConfig(max_new_tokens=NUM_TOKENS))
    found = []
    for record, completion in zip(records, done, strict=True):
        worth = {m["position"]: m["target_correct"] for m in record["mismatches"]}
        ruled = [m for m in reached(completion) if not m.keep_draft]
        found.append(worth[ruled[0].position] if ruled else record["correct"])
        assert all(m["draft_correct"] == record["correct"] for m in record["mismatches"])
    assert found == [
        task.score(*both).correct for both in zip(examples, (one.text for one in done), strict=True)
    ]
    assert {record["correct"] for record in records} == {True, False}
    assert sum(map(len, (record["mismatches"] for record in records))) > 20
