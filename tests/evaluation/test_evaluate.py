"""Arms in turns: what is run, what comes out, and that the numbers follow from the rows."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest

from cospec import Engine, ModelPair, load_arbiter
from cospec.config import DecodeConfig
from cospec.errors import ConfigError, PromptError
from cospec.evaluation import stats
from cospec.evaluation.arms import EngineDecoders, make_arms
from cospec.evaluation.evaluate import Evaluation, default_chunk_size
from cospec.evaluation.problems import encode_problems
from cospec.evaluation.summary import (
    is_timed_once,
    paired,
    rows_by_arm,
    speeds_alike,
    summarize,
)
from cospec.tasks import Score, load_task
from cospec.tasks.mixture import mixture
from cospec.types import Stats
from tests.evaluation.conftest import WORDS

MAX_NEW_TOKENS = 24
CONTRACT = {
    "name", "arbiter", "num_problems", "accuracy", "accuracy_ci95", "wins", "losses", "mcnemar_p",
    "accuracy_delta", "accuracy_delta_ci95", "tokens_per_s", "seconds", "speedup_vs_target",
    "speedup_vs_lossless", "mean_acceptance_length", "draft_acceptance_rate", "num_strict_accepts",
    "num_overrides", "num_mismatches", "num_open_mismatches", "num_target_forwards",
    "target_forwards_per_token",
    "target_forwards_per_solved",
}  # fmt: skip
ROW_CONTRACT = {
    "id", "arm", "correct", "num_tokens", "num_target_forwards", "num_overrides",
    "num_open_mismatches", "text",
}  # fmt: skip


def arbiters(*specs):
    return [(spec, load_arbiter(spec)) for spec in specs]


def evaluation(pair, task, batch_size=2, number=None, **changes):
    arms = make_arms(
        pair,
        arbiters("random:rate=0.5", "lossless", "always_draft"),
        DecodeConfig(3, batch_size=batch_size),
    )
    settings = dict(max_new_tokens=MAX_NEW_TOKENS, chunk_size=2) | changes
    return Evaluation(arms, task, task.examples("test", number), **settings)


@pytest.fixture(scope="module")
def played(pair, task):
    it = evaluation(pair, task)
    turns = list(it.turns())
    return it, turns, it.result(turns)


def test_what_is_drawn_for_a_problem_depends_on_no_chunk(pair, task):
    """Found: it depended on the place in the chunk, so on batch size and number of problems."""
    runs = (
        evaluation(pair, task, size, 5, temperature=1.0, chunk_size=size, max_new_tokens=12)
        for size in (1, 4)
    )
    small, large = (
        {
            (row["arm"], row["id"]): row["text"]
            for turn in run.turns(warm_up=False)
            for row in turn.rows
        }
        for run in runs
    )
    assert small == large
    assert len({text for (arm, _), text in small.items() if arm == "target"}) > 1


def test_the_configuration_tells_the_prompts(pair, task):
    digests = {
        evaluation(pair, dataclasses.replace(task, plain=plain), 3, 5, max_new_tokens=12).config()[
            "prompts_sha256"
        ]
        for plain in ("{question}", "{question}", "Q: {question}")
    }
    assert len(digests) == 2


def test_target_draft_and_lossless_are_always_there(pair):
    assert [arm.name for arm in make_arms(pair)] == ["target", "draft", "lossless"]


def test_the_lossless_arbiter_adds_no_second_arm(played):
    _, _, result = played
    names = ["target", "draft", "lossless", "random:rate=0.5", "always_draft"]
    assert [arm["name"] for arm in result["arms"]] == names
    assert [arm["arbiter"] for arm in result["arms"]] == [None, None, *names[2:]]


def test_an_arbiter_named_twice_is_refused(pair):
    with pytest.raises(ConfigError, match="two arms are called 'gap:max_gap=1'"):
        make_arms(pair, arbiters("gap", "gap:max_gap=1.0"))


def test_the_keys_are_those_of_the_contract(played):
    _, _, result = played
    assert all(set(arm) >= CONTRACT for arm in result["arms"])
    assert all(set(row) >= ROW_CONTRACT for row in result["rows"])


def test_each_arm_solves_each_problem_once_in_chunks_with_another_first_arm(played):
    it, turns, result = played
    assert it.chunks == [range(2), range(2, 4), range(4, 6), range(6, 9)]
    for arm in it.arms:
        ids = [row["id"] for row in result["rows"] if row["arm"] == arm.name]
        assert ids == [example.id for example in it.examples]
    names = [arm.name for arm in it.arms]
    order = [[t.arm for t in turns if t.chunk == chunk] for chunk in range(4)]
    assert order == [names[chunk:] + names[:chunk] for chunk in range(4)]
    it.first_arm = 1  # as in the second repeat of a benchmark
    assert next(turn for turn in it.turns(warm_up=False)).arm == names[1]
    it.first_arm = 0
    assert [turn.chunk for turn in turns] == sorted(turn.chunk for turn in turns)


def test_texts_are_those_of_the_engine_and_lossless_is_the_target(played, pair):
    it, _, result = played
    alone = Engine.target_only(pair).generate(it.prompts, it.samplings)
    texts = {
        arm.name: [row["text"] for row in result["rows"] if row["arm"] == arm.name]
        for arm in it.arms
    }
    assert texts["target"] == texts["lossless"] == [completion.text for completion in alone]
    arms = {arm["name"]: arm for arm in result["arms"]}
    assert arms["lossless"]["num_texts_unlike_target"] == 0
    unlike = sum(a != b for a, b in zip(texts["always_draft"], texts["target"], strict=True))
    assert arms["always_draft"]["num_texts_unlike_target"] == unlike > 0


def test_the_exact_prefix_is_the_targets_in_every_arm_with_an_arbiter(played, pair, task):
    it, _, free = played
    texts = {0: {(row["arm"], row["id"]): row["text"] for row in free["rows"]}}
    for length in (9, MAX_NEW_TOKENS):
        held = evaluation(pair, task, batch_size=9, chunk_size=9, exact_prefix_tokens=length)
        assert held.config()["exact_prefix_tokens"] == length
        rows = held.result(list(held.turns(warm_up=False)))["rows"]
        texts[length] = {(row["arm"], row["id"]): row["text"] for row in rows}
    beginnings = Engine.target_only(pair).generate(
        it.prompts, [dataclasses.replace(s, max_new_tokens=9) for s in it.samplings]
    )
    for example, begun in zip(it.examples, beginnings, strict=True):
        for arm in ("lossless", "random:rate=0.5", "always_draft"):
            assert texts[MAX_NEW_TOKENS][arm, example.id] == texts[0]["target", example.id]
            assert texts[9][arm, example.id].startswith(begun.text)
    always = {n: [texts[n]["always_draft", e.id] for e in it.examples] for n in texts}
    assert always[0] != always[9] != always[MAX_NEW_TOKENS]


def test_the_numbers_of_an_arm_follow_from_its_rows_and_times(played):
    _, _, result = played
    rows = {arm["name"]: [] for arm in result["arms"]}
    for row in result["rows"]:
        rows[row["arm"]].append(row)
    seconds = {name: [c["seconds"] for c in result["chunks"] if c["arm"] == name] for name in rows}
    for arm in result["arms"]:
        ours, theirs = rows[arm["name"]], rows["target"]
        num_right = sum(row["correct"] for row in ours)
        num_tokens = sum(row["num_tokens"] for row in ours)
        forwards = sum(row["num_target_forwards"] for row in ours)
        pairs = list(zip(ours, theirs, strict=True))
        wins = sum(a["correct"] > b["correct"] for a, b in pairs)
        losses = sum(a["correct"] < b["correct"] for a, b in pairs)
        assert arm["num_problems"] == len(WORDS)
        assert arm["accuracy"] == num_right / len(WORDS)
        assert arm["accuracy_ci95"] == stats.wilson_interval(num_right, len(WORDS))
        assert (arm["wins"], arm["losses"]) == (wins, losses)
        assert arm["mcnemar_p"] == stats.mcnemar_p(wins, losses)
        assert arm["accuracy_delta"] == pytest.approx(
            arm["accuracy"] - sum(row["correct"] for row in theirs) / len(WORDS)
        )
        assert (
            arm["num_tokens"]
            == num_tokens
            == sum(c["num_tokens"] for c in result["chunks"] if c["arm"] == arm["name"])
        )
        assert arm["seconds"] == sum(seconds[arm["name"]]) > 0
        assert arm["tokens_per_s"] == pytest.approx(num_tokens / arm["seconds"])
        for name in ("target", "lossless"):
            rate = sum(row["num_tokens"] for row in rows[name]) / sum(seconds[name])
            ratio = arm["tokens_per_s"] / rate
            assert arm[f"speedup_vs_{name}"] == pytest.approx(ratio)
            assert arm[f"speedup_vs_{name}_ci95"] is None, "four chunks are too few"
        assert arm["num_target_forwards"] == forwards
        assert arm["target_forwards_per_token"] == pytest.approx(forwards / num_tokens)
        assert arm["target_forwards_per_solved"] == (forwards / num_right if num_right else None)
        assert arm["num_length_stops"] == sum(
            row["num_tokens"] == MAX_NEW_TOKENS and row["finish_reason"] == "length" for row in ours
        )


def test_a_speedup_has_an_interval_from_five_chunks_on(played):
    _, turns, result = played
    again = [dataclasses.replace(turn, chunk=turn.chunk + 4) for turn in turns]
    for arm in summarize([*turns, *again], {arm["name"]: None for arm in result["arms"]}):
        for name in ("target", "lossless"):
            low, high = arm[f"speedup_vs_{name}_ci95"]
            assert low <= arm[f"speedup_vs_{name}"] <= high
            assert (low < high) == (arm["name"] != name)


def test_the_problems_of_these_tests_tell_arms_apart(played):
    _, _, result = played
    assert any(arm["wins"] for arm in result["arms"])
    assert any(arm["losses"] for arm in result["arms"])
    assert {row["finish_reason"] for row in result["rows"]} == {"stop", "length"}


def test_the_arms_that_do_not_speculate_say_so(played):
    _, _, result = played
    target, draft, lossless, *_ = result["arms"]
    assert (target["wins"], target["losses"], target["mcnemar_p"]) == (0, 0, 1.0)
    assert target["speedup_vs_target"] == lossless["speedup_vs_lossless"] == 1.0
    assert target["num_target_forwards"] == target["num_tokens"]
    assert draft["num_target_forwards"] == draft["target_forwards_per_token"] == 0
    for arm in (target, draft):
        assert arm["mean_acceptance_length"] == 1.0
        assert arm["draft_acceptance_rate"] == arm["num_overrides"] == arm["num_mismatches"] == 0
    assert lossless["num_overrides"] == 0 < lossless["num_mismatches"]


def test_the_counts_of_an_arbiter_are_those_of_its_completions(played):
    it, _, result = played
    arm, row = it.arms[4], result["arms"][4]
    completions = arm.engine.generate(it.prompts, it.samplings)
    total = sum((completion.stats for completion in completions), Stats()).to_dict()
    for name in ("num_overrides", "num_mismatches", "num_strict_accepts", "num_target_forwards"):
        assert row[name] == total[name]
    assert row["num_overrides"] > 0
    assert row["mean_acceptance_length"] == pytest.approx(total["mean_acceptance_length"])
    assert row["draft_acceptance_rate"] == pytest.approx(total["draft_acceptance_rate"])


def test_a_stricter_score_is_reported_where_the_task_has_one(pair, task, played):
    def scorer(example, text):
        return Score(1.0, strict="e" in text)

    it = evaluation(pair, dataclasses.replace(task, scorer=scorer), batch_size=9, chunk_size=9)
    result = it.result(list(it.turns(warm_up=False)))
    for arm in result["arms"]:
        strict = [row["strict"] for row in result["rows"] if row["arm"] == arm["name"]]
        assert arm["accuracy"] == 1.0
        assert arm["accuracy_strict"] == sum(strict) / len(WORDS)
        assert arm["speedup_vs_target_ci95"] is None, "one chunk"
        assert arm["num_turns"] == 1 and is_timed_once(arm)
        old = {key: value for key, value in arm.items() if key != "num_turns"}
        assert not is_timed_once(old), "which is not known of a file that tells no turns"
        assert is_timed_once(speeds_alike(old, result))
    assert not any(is_timed_once(speeds_alike(arm, played[2])) for arm in played[2]["arms"])
    assert "accuracy_strict" not in played[2]["arms"][0]


def test_a_prompt_gets_the_tokens_that_the_context_leaves(pair, task):
    it = evaluation(pair, task, max_new_tokens=None)
    assert it.max_new_tokens == task.max_new_tokens == 512
    assert it.num_short_of_room == len(WORDS)
    assert it.samplings[0].max_new_tokens == pair.context_length - len(it.prompts[0])


def test_every_arm_gets_what_the_engine_with_the_shortest_context_takes(pair, task):
    class Short(EngineDecoders):
        def ruled(self, arbiter, config):
            engine = super().ruled(arbiter, config)
            return SimpleNamespace(**vars(engine), context_length=pair.context_length - config.k)

    arms = make_arms(pair, decode=DecodeConfig(3), decoders=Short(pair))
    it = Evaluation(arms, task, task.examples("test"))
    assert it.samplings[0].max_new_tokens == pair.context_length - 3 - len(it.prompts[0])


def test_chunks_are_equal_and_at_least_as_large_as_asked_for(pair, task):
    sizes = [len(c) for c in evaluation(pair, task, chunk_size=4).chunks]
    assert sizes == [4, 5]
    assert evaluation(pair, task, chunk_size=10).chunks == [range(9)]


def test_chunks_are_no_larger_than_five_of_them_allow(pair, task):
    """Found: 600 problems at batch 128 were one chunk, so that each arm had one turn."""
    sizes = {(3000, 16): 64, (200, 8): 32, (150, 8): 30, (600, 32): 120, (800, 128): 160}
    for (num_problems, batch_size), size in sizes.items():
        assert default_chunk_size(num_problems, batch_size) == size
    assert default_chunk_size(600, 128) == 128, "not less than a batch"
    assert len(evaluation(pair, task, chunk_size=None).chunks) == 4, "of two at least"


def test_the_seed_picks_the_arm_that_is_decoded_first(pair, task):
    """Found: it was always the target, whatever a machine does in its first seconds."""
    for seed in (0, 2, 5):
        it = evaluation(pair, task, seed=seed)
        assert it.first_arm == seed % 5
        assert it._order()[0] == (0, it.arms[seed % 5])
        assert it._order()[5] == (1, it.arms[(seed + 1) % 5])


def test_bad_input_is_refused_before_anything_is_decoded(pair, task, llama_pair):
    with pytest.raises(ConfigError, match="chunk_size is 0"):
        evaluation(pair, task, chunk_size=0)
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        evaluation(pair, task, max_new_tokens=0)
    long = dataclasses.replace(task, plain="{question}" + " the" * 200)
    with pytest.raises(PromptError, match=r"the prompt of letters/\d has 2\d\d"):
        evaluation(pair, long)
    with pytest.raises(ConfigError, match="no tokenizer"):
        evaluation(ModelPair(llama_pair.target, llama_pair.draft), task)


def test_an_answer_in_a_mixture_has_the_room_and_the_stops_of_its_own_task(pair, task):
    short = dataclasses.replace(task, name="short", max_new_tokens=3, stop=("Q",))
    renamed = [dataclasses.replace(e, id=f"short {e.id}") for e in task.examples("test")]
    short = dataclasses.replace(short, source=lambda split, number, seed: renamed[:number])
    both = mixture([(task, 1), (short, 1)])
    _, samplings = encode_problems(pair, both, both.examples("test", 4))
    room = [(s.max_new_tokens, s.stop) for s in samplings]
    assert room[1] == room[3] == (3, ("Q",))
    assert room[0] == room[2] == encoded_alone(pair, task)


def test_each_part_of_a_mixture_has_its_own_figures(played, pair, task):
    renamed = [dataclasses.replace(e, id=f"never {e.id}") for e in task.examples("test")]
    never = dataclasses.replace(
        task, name="never", source=lambda split, number, seed: renamed[:number],
        scorer=lambda example, text: Score(0.0), max_new_tokens=3,
    )  # fmt: skip
    both = mixture([(dataclasses.replace(task, max_new_tokens=24), 2), (never, 1)])
    arms = make_arms(pair, arbiters("always_draft"), DecodeConfig(3, batch_size=5))
    it = Evaluation(arms, both, both.examples("test", 9), chunk_size=4)
    result = it.result(list(it.turns(warm_up=False)))
    parts = result["parts"]
    assert list(parts) == [task.name, "never"]
    for i, arm in enumerate(result["arms"]):
        first, second = (found[i] for found in parts.values())
        assert first["name"] == second["name"] == arm["name"]
        assert (first["num_problems"], second["num_problems"]) == (6, 3)
        assert first["wins"] == arm["wins"] and second["wins"] == second["accuracy"] == 0
        assert first["accuracy"] * 6 == pytest.approx(arm["accuracy"] * 9)
    assert "parts" not in played[2]


def encoded_alone(pair, task):
    _, (sampling,) = encode_problems(pair, task, task.examples("test", 1))
    return sampling.max_new_tokens, sampling.stop


def test_a_result_may_be_made_of_turns_as_they_are_played(pair, task, played):
    """Found: the turns were iterated several times, and all but the first found none."""
    it, turns, whole = played
    assert it.result(turn for turn in turns) == whole and whole["rows"]


def test_problems_in_groups_are_compared_over_groups_too(pair, tmp_path):
    path = tmp_path / "letters.jsonl"
    rows = [{"question": w, "answer": "y", "group": len(w) % 3} for w in WORDS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    grouped = load_task(f"jsonl:{path},scorer=regex,split=test")
    it = evaluation(pair, grouped, batch_size=9, chunk_size=9)
    turns = list(it.turns(warm_up=False))
    result = it.result(turns)
    groups = [example.group for example in it.examples]
    right = {name: [row["correct"] for row in ours] for name, ours in rows_by_arm(turns).items()}
    target, _, _, random, always = result["arms"]
    for arm in (random, always):
        changes = dict.fromkeys(groups, 0)
        for group, ours, theirs in zip(groups, right[arm["name"]], right["target"], strict=True):
            changes[group] += ours - theirs
        assert arm["num_groups"] == 3
        assert arm["group_p"] == stats.sign_flip_p(list(changes.values()))
        low, high = arm["accuracy_delta_groups_ci95"]
        assert low < arm["accuracy_delta"] < high
        assert arm["vs_draft"]["num_groups"] == 3
    assert target["accuracy_delta_groups_ci95"] == (0, 0)
    assert {row["group"] for row in result["rows"]} == set(groups) == {"0", "1", "2"}


@pytest.mark.parametrize("groups", [[None] * 9, ["a"] * 9, list("abcdefghi")])
def test_groups_that_tell_nothing_more_are_left_out(groups):
    rows = [{"correct": i % 2 == 0} | ({"group": g} if g else {}) for i, g in enumerate(groups)]
    assert "group_p" not in paired(rows, rows[::-1])


def test_a_text_that_several_arms_write_is_scored_once(pair, task, monkeypatch):
    """Found: a scorer that runs a program ran it again for each arm and each repeat."""
    scored, score = [], type(task).score

    def counted(it, example, text):
        scored.append((example.id, text))
        return score(it, example, text)

    monkeypatch.setattr(type(task), "score", counted)
    it = evaluation(pair, task, batch_size=5, chunk_size=4)
    rows = [row for turn in it.turns(warm_up=False) for row in turn.rows]
    assert len(scored) == len(set(scored)) < len(rows)
    assert set(scored) == {(row["id"], row["text"]) for row in rows}
