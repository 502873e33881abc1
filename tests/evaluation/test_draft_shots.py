"""A task that gives the draft model a prompt of its own: who reads what, in every measurement."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cospec import Engine, ModelPair, PairPrompt, SamplingConfig, load_arbiter
from cospec.config import DecodeConfig
from cospec.errors import ConfigError, PromptError
from cospec.evaluation.arms import make_arms
from cospec.evaluation.audit.auditor import Auditor
from cospec.evaluation.audit.config import AuditConfig
from cospec.evaluation.audit.costs import accepted
from cospec.evaluation.evaluate import Evaluation
from cospec.evaluation.problems import encode_problems
from cospec.evaluation.summary import rows_by_arm
from cospec.tasks import load_task
from cospec.tasks.files import FileSource
from cospec.tasks.mixture import mixture
from tests.conftest import random_model
from tests.rl.helpers import trainer

NUM_TOKENS = 20


@pytest.fixture(scope="module")
def both(task):
    """The task without examples for the target, and one for the draft."""
    examples = task.examples("test")
    source = FileSource("letters", {"train": examples[:3], "test": examples})
    return replace(task, source=source, draft_shots=1)


def test_problems_have_a_prompt_for_each_model(pair, both):
    example = both.examples("test", 1)[0]
    (prompt,), _ = encode_problems(pair, both, [example])
    shot = next(e for e in both.source("train", 2, 0) if e.id != example.id)
    asked, shown = (f"Question: {one.question}\nAnswer:" for one in (example, shot))
    assert prompt == PairPrompt(pair.encode(asked), pair.encode(f"{shown} y\n\n{asked}"))
    part = mixture([(both, 1)])
    assert encode_problems(pair, part, part.examples("test", 3)) == encode_problems(
        pair, both, both.examples("test", 3)
    )


@pytest.mark.parametrize("short", ["target", "draft"])
def test_each_prompt_is_held_to_the_context_of_its_reader(pair, both, short):
    """Found: both prompts were held to the shorter context, also that of the other model."""
    task = both if short == "target" else replace(both, num_shots=1, draft_shots=0)
    examples = task.examples("test", 3)
    (one, *_), _ = encode_problems(pair, task, examples)
    length = min(len(one.target), len(one.draft)) + 9
    assert length < max(len(one.target), len(one.draft))
    models = {"target": pair.target, "draft": pair.draft}
    models[short] = random_model("llama", max_position_embeddings=length)
    pair = ModelPair(**models, tokenizer=pair.tokenizer)
    _, samplings = encode_problems(pair, task, examples)
    assert samplings[0].max_new_tokens == 9
    rows = rows_by_arm(Evaluation(make_arms(pair), task, examples).turns(warm_up=False))
    assert [r["text"] for r in rows["lossless"]] == [r["text"] for r in rows["target"]]
    (record, *_) = Auditor(pair, task, AuditConfig(oracle=False)).audit(examples)
    assert record["num_tokens"] == rows["target"][0]["num_tokens"]
    turned = replace(task, num_shots=task.draft_shots, draft_shots=task.num_shots)
    with pytest.raises(PromptError, match=rf"{short}'s prompt of .*, and the {short}'s context"):
        encode_problems(pair, turned, examples)


def test_each_arm_of_an_evaluation_reads_its_own(pair, both):
    examples = both.examples("test")
    (prompts, _), config = encode_problems(pair, both, examples), DecodeConfig(3, batch_size=9)
    arms = make_arms(pair, [("gap", load_arbiter("gap:max_gap=9"))], config)
    run = Evaluation(arms, both, examples, max_new_tokens=NUM_TOKENS)
    rows = rows_by_arm(run.turns(warm_up=False))
    texts = {arm: [row["text"] for row in rows] for arm, rows in rows.items()}
    sampling = SamplingConfig(NUM_TOKENS, stop=both.stop)

    def decoded(engine, prompts):
        return [one.text for one in engine.generate(prompts, sampling)]

    own = [one.draft for one in prompts]
    assert texts["lossless"] == texts["target"]
    assert texts["target"] == decoded(Engine.target_only(pair), [one.target for one in prompts])
    assert texts["draft"] == decoded(Engine.draft_only(pair), own)
    assert texts["draft"] != decoded(Engine.draft_only(pair), [one.target for one in prompts])
    ruled = Engine(pair, load_arbiter("gap:max_gap=9"), config)
    assert texts["gap:max_gap=9"] == decoded(ruled, prompts)
    assert texts["gap:max_gap=9"] != decoded(ruled, [one.target for one in prompts])


def test_an_audit_reads_a_path_with_the_drafts_own_prompt(pair, both):
    examples = both.examples("test", 4)
    prompts, _ = encode_problems(pair, both, examples)
    config = AuditConfig(batch_size=64, max_new_tokens=NUM_TOKENS, oracle=False)
    records = Auditor(pair, both, config).audit(examples)
    sampling = SamplingConfig(NUM_TOKENS, stop=both.stop)
    paths = Engine.target_only(pair).generate(prompts, sampling)
    found = [record["accepted"] for record in records]
    assert found == [
        accepted(pair, path, one.draft) for path, one in zip(paths, prompts, strict=True)
    ]
    assert found != [accepted(pair, path) for path in paths]
    for record, digits in zip(records, found, strict=True):
        places = [m["position"] for m in record["mismatches"]] + record["settled"]
        assert places, "the draft disagrees somewhere"
        assert all(digits[place] == "0" for place in places), "there blocks end"


def test_training_plays_with_both_prompts_and_reads_solutions_with_one(pair, both):
    run = trainer(pair, both, num_rounds=1)
    items = run.collector.items(both.examples("test", 2))
    assert all(isinstance(item.prompt, PairPrompt) for item in items)
    run.run()
    assert run.state.round == 1
    with pytest.raises(ConfigError, match="draft_shots gives the draft a prompt of its own"):
        replace(run, solved=both.examples("train"))


def test_the_command_line_names_both(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text(
        "".join(f'{{"question": "{i} + 1?", "answer": "{i + 1}"}}\n' for i in range(99))
    )
    task = load_task(f"jsonl:{path},draft_shots=0,scorer=numeric,shots=2")
    assert task.name == f"jsonl:{path},scorer=numeric,draft_shots=0,shots=2"
    assert (task.num_shots, task.chat_shots, task.draft_shots) == (2, 2, 0)
    assert load_task(f"jsonl:{path},scorer=numeric").draft_shots is None
