"""Tuning and cells: what is chosen, from what, and that the numbers follow from rows and times."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from cospec import Engine
from cospec.arbiters import AlwaysTarget
from cospec.backends.jobs import play_here
from cospec.config import DecodeConfig, SamplingConfig
from cospec.errors import ConfigError
from cospec.evaluation import stats
from cospec.evaluation.arms import EngineDecoders, make_arms
from cospec.evaluation.audit.auditor import Auditor
from cospec.evaluation.audit.config import AuditConfig
from cospec.evaluation.audit.costs import num_blocks
from cospec.evaluation.benchmark import ceiling
from cospec.evaluation.benchmark.arms import make_specs
from cospec.evaluation.benchmark.assisted import AssistedEngine
from cospec.evaluation.benchmark.ceiling import OracleEngine, search
from cospec.evaluation.benchmark.cells import measure, result
from cospec.evaluation.benchmark.config import BenchConfig, Benchmark, describe
from cospec.evaluation.benchmark.grids import GRIDS
from cospec.evaluation.benchmark.tuning import best_rival, settings, tune
from cospec.evaluation.evaluate import Evaluation
from cospec.evaluation.problems import encode_problems
from cospec.evaluation.summary import summarize
from cospec.evaluation.turns import Turn
from cospec.models.costs import Costs
from tests.evaluation.conftest import WORDS
from tests.rl.conftest import arbiter, coin

SPECS = ["gap", "random:rate=0.5", "random:match=gap", "assisted"]


def play(evaluation, part, *, warm_up):
    return [dataclasses.replace(turn, part=part) for turn in evaluation.turns(warm_up=warm_up)]


def benchmark(pair, task, **changes):
    """Tuned on the first problems and tested on the others; the task itself has one split."""
    examples = task.examples("test")
    config = dict(
        num_speculative_tokens=3, batch_sizes=(5,), repeats=2, tune_k=(2, 3), tune_knobs=True,
        max_new_tokens=16,
    )  # fmt: skip
    return Benchmark(
        pair,
        task,
        examples[:4],
        examples[4:],
        BenchConfig(**config | changes),
        seed=0,
        decoders=EngineDecoders(pair),
        play=play_here,
    )


@pytest.fixture(scope="module")
def specs():
    return make_specs(SPECS, lambda spec: spec, tune_knobs=True)


@pytest.fixture(scope="module")
def tuning(pair, task, specs):
    return tune(benchmark(pair, task), specs, 0.0, play)


@pytest.fixture(scope="module")
def cell(pair, task, specs, tuning):
    chosen, rival = settings(tuning), best_rival(tuning, specs)
    return measure(benchmark(pair, task), specs, chosen, rival, 5, 0.0, play)


def by_name(entries, key="name"):
    return {entry[key]: entry for entry in entries}


def test_every_arm_is_tried_with_every_setting_then_every_k(tuning):
    found = by_name(tuning, "arm")
    assert list(found) == ["draft", "lossless", "gap", "random:rate=0.5", "random:match=gap"]
    assert [len(entry["tries"]) for entry in tuning] == [1, 2, 6, 2, 1]
    *settings, shorter = found["gap"]["tries"]
    assert [(one["knob"], one["k"]) for one in settings] == [
        (f"max_gap={gap}", 3) for gap in (0.25, 0.5, 1, 2, 4)
    ]
    assert shorter["k"] == 2
    assert all(one["num_problems"] == 4 for one in found["gap"]["tries"])


def test_a_rule_takes_what_is_right_most_often_and_its_k_what_costs_least(pair, task, tuning):
    found = by_name(tuning, "arm")["gap"]
    *settings, shorter = found["tries"]
    best = min(settings, key=lambda one: (-one["num_right"], one["cost"]))
    assert shorter["arbiter"] == best["arbiter"]
    cheapest = min([best, shorter], key=lambda one: one["cost"])
    assert found["tries"][found["chosen"]] == cheapest
    cost = benchmark(pair, task).draft_cost
    assert cost == pytest.approx(1.0)  # the draft is a disturbed copy of the target
    for one in found["tries"]:
        assert one["cost"] == one["num_target_forwards"] + cost * one["num_draft_forwards"]


def test_lossless_takes_what_costs_least(tuning):
    found = by_name(tuning, "arm")["lossless"]
    costs = [one["cost"] for one in found["tries"]]
    assert costs[0] != costs[1]
    assert found["chosen"] == costs.index(min(costs))


def test_what_two_arms_try_is_decoded_once(pair, task):
    played = []

    def spy(evaluation, part, *, warm_up):
        played.extend(arm.name for arm in evaluation.arms)
        return play(evaluation, part, warm_up=warm_up)

    fixed = make_specs(["gap:max_gap=1"], lambda spec: spec)
    tuned = make_specs(["gap"], lambda spec: spec, tune_knobs=True)
    found = tune(benchmark(pair, task, tune_k=(2,)), [*tuned, fixed[-1]], 0.0, spy)
    assert played == ["draft", "lossless, k=2"] + [
        f"gap:max_gap={gap}, k=2" for gap in (0.25, 0.5, 1, 2, 4)
    ]
    by_arm = by_name(found, "arm")
    assert by_arm["gap:max_gap=1"]["tries"][0] == by_arm["gap"]["tries"][2]


def test_two_checkpoints_of_one_name_are_tuned_apart(pair, task, tmp_path):
    """Found: the tries of one took the results of the other."""
    always = {name: arbiter(coin(logit)) for name, logit in (("a", 9.0), ("b", -9.0))}
    for name, one in always.items():
        dataclasses.replace(one, about={"name": "x"}).save(tmp_path / name)
    chosen = make_specs([f"{tmp_path}/a", f"{tmp_path}/b:threshold=0.5"], lambda spec: spec)
    found = by_name(tune(benchmark(pair, task, tune_k=(2,)), chosen, 0.0, play), "arm")
    shares = [found[f"x{end}"]["tries"][0]["num_overrides"] for end in ("", ":threshold=0.5")]
    assert shares[0] > 0 == shares[1]


def test_a_cheap_draft_makes_blocks_longer(pair, task):
    dear, cheap = (
        benchmark(pair, task, draft_cost=cost, tune_k=(1, 3), tune_knobs=False) for cost in (10, 0)
    )
    exact = make_specs([], lambda spec: spec)
    assert settings(tune(dear, exact, 0.0, play))["lossless"].k == 1
    assert settings(tune(cheap, exact, 0.0, play))["lossless"].k == 3


def test_chance_gets_the_rate_of_the_arm_that_it_matches(tuning):
    found = by_name(tuning, "arm")
    model = found["gap"]["tries"][found["gap"]["chosen"]]
    share = model["num_overrides"] / model.get("num_open_mismatches", model["num_mismatches"])
    assert found["random:match=gap"]["matches"] == "gap"
    (one,) = found["random:match=gap"]["tries"]
    assert one == {
        "k": model["k"], "arbiter": f"random:rate={share:.4g}", "knob": f"rate={share:.4g}"
    }  # fmt: skip
    assert 0 < share < 1


def test_the_rate_of_chance_is_of_the_mismatches_that_may_be_overridden(pair, task):
    """Found: it was of all, and chance was asked about the others for nothing."""

    def told(evaluation, part, *, warm_up):
        return [
            dataclasses.replace(
                turn,
                rows=[row | {"num_open_mismatches": 2 * row["num_overrides"]} for row in turn.rows],
            )
            for turn in play(evaluation, part, warm_up=warm_up)
        ]

    specs = make_specs(["gap", "random:match=gap"], lambda spec: spec)
    found = by_name(tune(benchmark(pair, task, tune_k=(2,)), specs, 0.0, told), "arm")
    (one,) = found["gap"]["tries"]
    assert 0 < one["num_overrides"] < one["num_open_mismatches"] != one["num_mismatches"]
    assert found["random:match=gap"]["tries"][0]["knob"] == "rate=0.5"


def test_the_best_rival_is_chosen_on_the_tune_split(tuning, specs):
    rivals = {entry["arm"]: entry["tries"][entry["chosen"]] for entry in tuning[:4]}
    best = best_rival(tuning, specs)
    most = max(one["num_right"] for one in rivals.values())
    ties = {name: one["cost"] for name, one in rivals.items() if one["num_right"] == most}
    assert best == min(ties, key=ties.get)


def test_without_tune_problems_nothing_is_played_and_there_is_no_rival(pair, task):
    config = dict(num_tune_problems=0, tune_k=(), tune_knobs=False)
    untuned = dataclasses.replace(benchmark(pair, task, **config), tune=[])
    specs = make_specs(["gap"], lambda spec: spec)
    found = tune(untuned, specs, 0.0, lambda *_, **__: pytest.fail("played"))
    assert {name: each.spec for name, each in settings(found).items()}["gap"] == "gap"
    assert best_rival(found, specs) is None


def test_a_cell_has_every_arm_with_what_was_chosen_for_it(cell, tuning):
    chosen = settings(tuning)
    names = ["target", "draft", "lossless", "gap", "random:rate=0.5", "random:match=gap"]
    assert [arm["name"] for arm in cell["arms"]] == names
    for arm in cell["arms"]:
        k = chosen[arm["name"]].k if arm["name"] in chosen else 0
        assert arm["k"] == (k or None)
        assert len(arm["repeats"]["tokens_per_s"]) == 2
        assert arm["num_rows_unlike_first_repeat"] == 0
    arms = by_name(cell["arms"])
    assert arms["gap"]["arbiter"] == chosen["gap"].spec == f"gap:{arms['gap']['knob']}"
    assert arms["target"]["knob"] is arms["lossless"]["knob"] is arms["draft"]["knob"] is None
    assert len(cell["rows"]) == len(names) * (len(WORDS) - 4)


def test_each_arm_has_the_speed_up_that_its_forwards_allow(cell):
    costs = Costs(**cell["costs"])
    assert costs.draft_step_s > 0 and min(costs.verify_s) > 0
    for arm in cell["arms"]:
        if arm["k"] is None:
            assert arm["speedup_bound"] is None
            continue
        blocks = arm["num_target_forwards"]
        assert arm["num_draft_tokens"] == arm["num_draft_forwards"] == arm["k"] * blocks
        block_s = arm["k"] * costs.draft_step_s + costs.verify_s[arm["k"]]
        # Found: the acceptance length, which gives the last block a token that it does not have.
        expected = arm["num_tokens"] / blocks * costs.verify_s[0] / block_s
        assert arm["num_tokens"] / blocks < arm["mean_acceptance_length"]
        assert arm["speedup_bound"] == pytest.approx(expected)


def test_assisted_generation_is_left_out_of_batches_and_of_sampling_with_the_reason(
    pair, task, tuning, cell
):
    assert [each["arm"] for each in cell["left_out"]] == ["assisted"]
    assert "one prompt at a time" in cell["left_out"][0]["reason"]
    once, specs = benchmark(pair, task, repeats=1), make_specs(["assisted"], lambda spec: spec)
    once = dataclasses.replace(once, test=once.test[:2])
    sampled = measure(once, specs, settings(tuning), None, 1, 1.0, play)
    assert "greedy" in sampled["left_out"][0]["reason"]
    alone = measure(once, specs, settings(tuning), None, 1, 0.0, play)
    assert alone["left_out"] == []
    arms = by_name(alone["arms"])
    assert arms["assisted"]["kind"] == "reference"
    assert arms["assisted"]["num_texts_unlike_target"] == 0
    assert arms["assisted"]["k"] == arms["lossless"]["k"]


def test_a_temperature_samples(pair, task, specs, tuning, cell):
    sampled = measure(benchmark(pair, task, repeats=2), specs, settings(tuning), None, 5, 1.0, play)
    texts = [[r["text"] for r in each["rows"] if r["arm"] == "target"] for each in (cell, sampled)]
    assert texts[0] != texts[1]
    assert {arm["num_rows_unlike_first_repeat"] for arm in sampled["arms"]} == {0}


def test_a_text_is_stored_where_it_differs_from_that_of_the_target(pair, task):
    arms = make_arms(pair, decode=DecodeConfig(3))
    evaluation = Evaluation(arms, task, task.examples("test"), max_new_tokens=16)
    turns = list(evaluation.turns())
    rows = result([turns], {arm.name: arm.arbiter for arm in arms}, None)["rows"]
    full = {(row["arm"], row["id"]): row["text"] for turn in turns for row in turn.rows}
    kept = {(row["arm"], row["id"]): row["text"] for row in rows}
    assert len(kept) == len(full) == 3 * len(WORDS)
    for (arm, name), text in kept.items():
        if arm == "target" or full[arm, name] != full["target", name]:
            assert text == full[arm, name]
        else:
            assert text is None
    assert {text for (arm, _), text in kept.items() if arm == "lossless"} == {None}
    assert any(text is not None for (arm, _), text in kept.items() if arm == "draft")


def made_turns(seconds, right, num_chunks=2):
    """One turn a chunk of two problems, for the arms target, lossless and gap."""
    return [
        Turn(
            chunk,
            arm,
            seconds[arm] * (chunk + 1),
            [
                {
                    "id": f"{chunk}/{i}", "arm": arm, "correct": right[arm][2 * chunk + i],
                    "strict": None, "finish_reason": "stop", "num_tokens": 10,
                    "num_target_forwards": 5, "num_draft_forwards": 20, "num_draft_tokens": 20,
                    "num_strict_accepts": 4, "num_overrides": 1, "num_mismatches": 4,
                    "num_accepted_tokens_per_pos": [3, 2],
                    "text": f"{arm} {chunk}",
                }
                for i in range(2)
            ],
        )
        for chunk in range(num_chunks)
        for arm in seconds
    ]  # fmt: skip


def test_the_interval_of_a_speed_up_holds_its_median():
    """Found: it was of the mean seconds, which one slow repeat moved away from the median."""
    right = {name: [1] * 12 for name in ("target", "lossless", "gap")}
    usual, slow = ({"target": t, "lossless": 2.0, "gap": 1.0} for t in (4.0, 40.0))
    repeats = [made_turns(seconds, right, num_chunks=6) for seconds in (usual, slow, usual)]
    arbiters = {"target": None, "lossless": "lossless", "gap": "gap"}
    gap = by_name(result(repeats, arbiters, None)["arms"])["gap"]
    low, high = gap["speedup_vs_target_ci95"]
    assert gap["speedup_vs_target"] == pytest.approx(4) and low <= 4.0001 and high >= 3.9999


def test_quality_is_that_of_the_first_repeat_and_a_speedup_is_the_median():
    right = {"target": [1, 0, 0, 0], "lossless": [1, 0, 0, 0], "gap": [1, 1, 1, 0]}
    first = made_turns({"target": 4.0, "lossless": 2.0, "gap": 1.0}, right)
    wrong = {name: [0] * 4 for name in right}
    second = made_turns({"target": 6.0, "lossless": 2.0, "gap": 3.0}, wrong)
    arbiters = {"target": None, "lossless": "lossless", "gap": "gap"}
    arms = by_name(result([first, second], arbiters, "lossless")["arms"])
    gap = arms["gap"]
    assert gap["accuracy"] == 0.75
    assert gap["repeats"]["tokens_per_s"] == pytest.approx([40 / 3, 40 / 9])
    assert gap["repeats"]["speedup_vs_target"] == pytest.approx([4, 2])
    assert gap["repeats"]["speedup_vs_lossless"] == pytest.approx([2, 2 / 3])
    assert gap["seconds"] == pytest.approx(6)
    assert gap["tokens_per_s"] == pytest.approx(40 / 6)
    assert gap["speedup_vs_target"] == pytest.approx(3), "not 5 / 2, the ratio of mean seconds"
    assert gap["speedup_vs_lossless"] == pytest.approx(4 / 3)
    assert gap["speedup_vs_target_ci95"] is None, "there are two chunks"
    assert gap["seconds_per_token"] == pytest.approx(6 / 40)
    assert gap["seconds_per_solved"] == pytest.approx(2)
    assert gap["override_share"] == 0.25
    assert gap["num_rows_unlike_first_repeat"] == 3, "the ones that were right"
    assert gap["vs_rival"] == {
        "rival": "lossless", "wins": 2, "losses": 0, "mcnemar_p": stats.mcnemar_p(2, 0),
        "accuracy_delta": 0.5, "accuracy_delta_ci95": stats.accuracy_delta_interval(2, 0, 4),
    }  # fmt: skip
    once = summarize(first, arbiters)
    assert once[2]["wins"] == gap["wins"]


def test_the_configuration_tells_the_problems_of_both_splits(pair, task):
    one = benchmark(pair, task)
    found = describe(one)
    assert (found["num_problems"], found["tune"]["num_problems"]) == (5, 4)
    other = describe(dataclasses.replace(one, tune=one.tune[1:]))
    assert other["problems_sha256"] == found["problems_sha256"]
    assert other["tune"] != found["tune"]


def test_assisted_generation_is_the_target_alone_in_fewer_forwards(pair, task):
    arms = make_arms(pair, decode=DecodeConfig(3))
    it = Evaluation(arms, task, task.examples("test", 4), max_new_tokens=16)
    own = pair.draft.generation_config
    ours = AssistedEngine(pair, 3).generate(it.prompts, it.samplings)
    alone = Engine.target_only(pair).generate(it.prompts, it.samplings)
    for mine, theirs in zip(ours, alone, strict=True):
        assert mine.token_ids == theirs.token_ids
        assert (mine.text, mine.finish_reason) == (theirs.text, theirs.finish_reason)
    forwards = sum(c.stats.num_target_forwards for c in ours)
    tokens = sum(len(c.token_ids) for c in ours)
    accepted = sum(c.stats.num_strict_accepts for c in ours)
    assert forwards < tokens <= forwards + accepted
    assert accepted <= sum(c.stats.num_draft_tokens for c in ours) <= 3 * forwards
    assert pair.draft.generation_config is own


def test_assisted_generation_ends_at_a_stop_string_as_any_other_arm(pair, task):
    it = Evaluation(make_arms(pair), task, task.examples("test", 4), max_new_tokens=24)
    samplings = [SamplingConfig(max_new_tokens=24, stop=("e",)) for _ in it.prompts]
    ours = AssistedEngine(pair, 4).generate(it.prompts, samplings)
    alone = Engine.target_only(pair).generate(it.prompts, samplings)
    assert [c.token_ids for c in ours] == [c.token_ids for c in alone]
    assert [c.text for c in ours] == [c.text for c in alone]
    assert any(len(c.token_ids) < 24 for c in ours)


def test_the_oracle_knows_problems_apart_that_share_a_prompt(pair, task):
    """Found: both had the answer of the last one."""
    first, second, *_ = task.examples("test")
    twin = dataclasses.replace(first, id="twin", answer=second.answer)
    bench = dataclasses.replace(benchmark(pair, task), test=[first, twin])
    engine, seen = OracleEngine(bench, 3, 4), []
    engine._auditor = SimpleNamespace(oracle_paths=lambda some, **_: seen.extend(some))
    sampling = [SamplingConfig(seed=seed) for seed in (1, 0)]  # as an evaluation numbers them
    engine.generate([[1], [1]], sampling)
    assert [example.id for example in seen] == ["twin", first.id]


def test_the_oracle_is_a_ceiling_with_the_outcomes_of_the_audit_and_with_the_speed_of_its_forwards(
    pair, task, tuning, cell
):
    one = benchmark(pair, task)
    k = settings(tuning)["lossless"].k
    rows = search(one, k, play)
    audit = AuditConfig(k, batch_size=64, max_new_tokens=16)
    records = Auditor(pair, task, audit).audit(one.test)
    assert [row["correct"] for row in rows] == [r["oracle_correct"] for r in records]
    assert [row["num_overrides"] for row in rows] == [r["oracle_overrides"] for r in records]
    assert sum(row["num_overrides"] for row in rows) > 0
    for row, record in zip(rows, records, strict=True):
        accepted = record["oracle_accepted"]
        assert row["num_tokens"] == len(accepted)
        assert row["num_target_forwards"] == num_blocks(accepted, k)
        kept = row["num_strict_accepts"] + row["num_overrides"]
        assert kept + num_blocks(accepted, k) - len(accepted) in (0, 1)
        assert row["correct"] >= record["correct"], "a path that is right is left for none"
    target = [row for row in cell["rows"] if row["arm"] == "target"]
    *_, found = ceiling.add(cell | {"best_rival": "target"}, rows, k)["arms"]
    assert found["kind"] == "ceiling"
    assert found["losses"] == 0 < found["wins"]
    assert found["accuracy"] * len(rows) == found["wins"] + sum(row["correct"] for row in target)
    share = found["num_target_forwards"] / by_name(cell["arms"])["lossless"]["num_target_forwards"]
    exact = by_name(cell["arms"])["lossless"]
    assert found["seconds"] == pytest.approx(share * exact["seconds"])
    rate = found["num_tokens"] / found["seconds"]
    assert found["speedup_vs_lossless"] == pytest.approx(rate / exact["tokens_per_s"])
    assert found["speedup_vs_target_ci95"] is None
    assert found["vs_rival"]["wins"] == found["wins"]
    assert set(found) == set(cell["arms"][0])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(repeats=0), "repeats has 0"),
        (dict(batch_sizes=(4, 0)), "batch_sizes has 0"),
        (dict(batch_sizes=(4, 4)), "each once"),
        (dict(temperatures=()), "one or more"),
        (dict(num_tune_problems=0, tune_k=(4,)), "num_tune_problems is 0"),
        (dict(num_tune_problems=-1), "num_tune_problems is -1"),
        (dict(draft_cost=-1.0), "draft_cost is -1"),
        (dict(adaptive=True), 'give it: --config \'{"adaptive": true, "adaptive_cost": 0.3}\''),
        (dict(temperatures=(0.0, -1.0)), "temperature is -1"),
        (dict(max_new_tokens=0), "max_new_tokens is 0"),
    ],
)
def test_bad_settings_are_refused(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        BenchConfig(**changes)


def test_within_the_exact_prefix_every_arm_that_has_an_arbiter_is_the_target(pair, task):
    """And so is the oracle's path, while a shorter prefix leaves it something to choose."""
    specs = make_specs(["gap:max_gap=4", "random:rate=0.5"], lambda spec: spec)
    whole = benchmark(pair, task, exact_prefix_tokens=16, repeats=1, tune_knobs=False, tune_k=(3,))
    assert describe(whole)["exact_prefix_tokens"] == 16
    tuning = tune(whole, specs, 0.0, play)
    assert {one["num_overrides"] for entry in tuning[1:] for one in entry["tries"]} == {0}
    cell = measure(whole, specs, settings(tuning), None, 5, 0.0, play)
    unlike = {arm["name"]: arm["num_texts_unlike_target"] for arm in cell["arms"]}
    assert unlike.pop("draft") > 0
    assert set(unlike.values()) == {0}
    target = [row["text"] for row in cell["rows"] if row["arm"] == "target"]
    assert [row["text"] for row in search(whole, 3, play)] == target
    half = search(benchmark(pair, task, exact_prefix_tokens=4), 3, play)
    assert sum(row["num_overrides"] for row in half) > 0
    beginnings = Engine.target_only(pair).generate(
        [task.prompt(example, pair.tokenizer) for example in whole.test],
        SamplingConfig(max_new_tokens=4),
    )
    for row, begun in zip(half, beginnings, strict=True):
        assert row["text"].startswith(begun.text)


def test_csd_remembers_the_mismatches_of_the_tune_problems(pair, task):
    bench = benchmark(pair, task)
    arbiter = bench.arbiter("csd:frequency=0,ratio=0")
    prompts, samplings = encode_problems(pair, task, bench.tune, 16)
    done = Engine(pair, AlwaysTarget(), num_speculative_tokens=3).generate(prompts, samplings)
    met = [[m.draft_id, m.target_id] for completion in done for m in completion.reached]
    assert arbiter.pairs.tolist() == met
    assert len(met) > 3
    assert bench.arbiter("csd").pairs is arbiter.pairs, "counted once"


def test_csd_is_tuned_like_any_rule(pair, task):
    specs = make_specs(["csd"], lambda spec: spec, tune_knobs=True)
    found = tune(benchmark(pair, task, tune_k=(2,), max_new_tokens=24), specs, 0.0, play)
    (entry,) = [each for each in found if each["arm"] == "csd"]
    assert [one["knob"] for one in entry["tries"][:5]] == [f"{s},memory=tune" for s in GRIDS["csd"]]
    assert entry["tries"][4]["num_overrides"] > 0
