"""The model ``cospec`` inside lm-evaluation-harness."""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import cospec
from cospec import Engine, ModelPair, SamplingConfig
from cospec.cli.common.options import PairOptions
from cospec.errors import ConfigError, CospecError
from cospec.models.source import PairSource
from tests.conftest import CONTEXT

pytestmark = [
    pytest.mark.skipif(
        find_spec("lm_eval") is None,
        reason="lm-evaluation-harness is not installed: pip install 'cospec[lm-eval]'",
    ),
    pytest.mark.filterwarnings("ignore"),  # of the harness and what it imports
]
PROBLEMS = Path(cospec.__file__).parent / "bundled" / "problems.jsonl"
QUESTION = "Question: {question}\nAnswer:"
MAX_NEW_TOKENS = 40
TASK = """
task: words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {folder}/cache}}
output_type: generate_until
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\nQuestion:", ". So"], max_gen_toks: 40, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
filter_list:
  - name: last_number
    filter:
      - {{function: regex, group_select: -1, regex_pattern: "([0-9]+)"}}
      - {{function: take_first}}
"""


def write_task(folder: Path, num_problems: int) -> list[dict[str, str]]:
    """A task of the bundled problems in a folder of its own, and the problems."""
    lines = PROBLEMS.read_text().splitlines()[:num_problems]
    (folder / "problems.jsonl").write_text("\n".join(lines) + "\n")
    task = TASK.format(data=folder / "problems.jsonl", folder=folder)
    (folder / "words.yaml").write_text(task)
    return [json.loads(line) for line in lines]


@pytest.fixture
def evaluate(tmp_path):
    """Runs the task through the harness; has its problems."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    import cospec.lm_eval.model  # noqa: F401  # registers

    problems = write_task(tmp_path, 6)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)

    def run(model_args: Any, **changes: Any) -> tuple[list[str], dict[str, Any]]:
        results = simple_evaluate(
            "cospec", model_args, ["words"], task_manager=manager, bootstrap_iters=0, **changes
        )
        samples = sorted(results["samples"]["words"], key=lambda sample: sample["doc_id"])
        return [sample["resps"][0][0] for sample in samples], results

    run.problems = problems
    return run


def test_lossless_gives_the_answers_of_the_target_alone_through_the_whole_harness(evaluate) -> None:
    """Those of this project's plain decoding, and those of the harness's own model ``hf``."""
    from lm_eval.models.huggingface import HFLM

    pair = PairOptions(pair="bundled:family").load()
    questions = [QUESTION.format(**problem) for problem in evaluate.problems]
    settings = SamplingConfig(max_new_tokens=MAX_NEW_TOKENS, stop=("\nQuestion:", ". So"))
    alone = Engine.target_only(pair).generate(questions, settings)

    texts, results = evaluate("pair=bundled:family,arbiter=lossless,k=3", batch_size=4)
    assert texts == [completion.text for completion in alone]
    stats = results["config"]["generation_stats"]
    assert stats["num_tokens"] == sum(len(c.token_ids) for c in alone) > 60
    assert stats["num_target_forwards"] < stats["num_tokens"] / 2 and stats["num_overrides"] == 0
    numbers = [[w for w in c.text.replace(".", " ").split() if w.isdecimal()][-1:] for c in alone]
    right = [[p["answer"]] == n for p, n in zip(evaluate.problems, numbers, strict=True)]
    assert results["results"]["words"]["exact_match,last_number"] == sum(right) / len(right)

    other = HFLM(pretrained=copy.deepcopy(pair.target), tokenizer=pair.tokenizer, batch_size=1)
    gen_kwargs = {"until": list(settings.stop), "max_gen_toks": MAX_NEW_TOKENS}
    assert other.generate_until(requests(*((q, gen_kwargs) for q in questions))) == texts


def test_another_arbiter_gives_other_answers(evaluate) -> None:
    arguments = {"pair": "bundled:family", "arbiter": "gap:max_gap=9", "k": 3, "batch_size": 6}
    texts, results = evaluate(arguments)
    assert texts != evaluate(arguments | {"arbiter": "lossless"})[0]
    config = results["config"]
    assert config["generation_stats"]["num_overrides"] > 0
    assert config["arbiter"] == "gap:max_gap=9" and config["num_speculative_tokens"] == 3


def requests(*arguments: tuple[Any, ...], kind: str = "generate_until") -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


@pytest.fixture
def model(monkeypatch, llama_pair, tokenizer):
    """Makes the model of a tiny pair."""
    from cospec.lm_eval.model import CospecLM

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<a>"
    pair = ModelPair(llama_pair.target, llama_pair.draft, tokenizer, ("the draft has no name",))
    monkeypatch.setattr(PairSource, "load", lambda _: pair)
    return CospecLM


def test_each_request_has_its_own_limit_and_stop_strings(model) -> None:
    it = model(batch_size=3)
    (free, *_) = it.generate_until(requests(("the hen", {"max_gen_toks": 20})))
    stop = free[len(free) // 2 :][:2]
    found = it.generate_until(
        requests(
            ("the hen", {"max_gen_toks": 20, "until": stop}),
            ("the hen", {"max_gen_toks": 3}),
            ("the hen", {"max_gen_toks": 20, "until": ["never seen", stop]}),
            ("the hen", {"max_gen_toks": 20}),
        )
    )
    assert found[0] == found[2] == free.split(stop)[0] != free
    assert found[1] != free and free.startswith(found[1])
    assert found[3] == free


def test_sampled_answers_follow_the_seed_and_differ_from_request_to_request(model) -> None:
    sampled = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 4}
    asked = [("the hen", sampled)] * 36  # more than the engine gets at a time
    texts = model(batch_size=2).generate_until(requests(*asked))
    assert len(set(texts)) > 25
    assert texts[:8] != model(batch_size=8, seed=1).generate_until(requests(*asked[:8]))
    assert texts == model(batch_size=1).generate_until(requests(*asked)), "chunks are of 16"


def test_a_chat_is_asked_in_the_targets_template(model) -> None:
    it = model()
    chat = [{"role": "user", "content": "the hen and the stone"}]
    context = it.apply_chat_template(chat)
    (text,) = it.generate_until(requests((context, {"max_gen_toks": 10})))
    pair = it.engine.pair
    (expected,) = it.engine.generate([pair.encode_chat(chat)], SamplingConfig(max_new_tokens=10))
    assert text == expected.text and context.endswith("<a>")
    assert text != it.generate_until(requests(("the hen and the stone", {"max_gen_toks": 10})))[0]


def test_a_prompt_that_leaves_no_room_is_cut_on_the_left_and_said_so_once(model, caplog) -> None:
    it = model()
    ask = {"max_gen_toks": 20}
    words = "the hen and the stone " * 40
    ids = it.tok_encode(words)
    assert len(ids) > CONTEXT - 20
    with caplog.at_level(logging.WARNING):
        texts = it.generate_until(requests((words, ask), (words, ask)))
    (expected,) = it.engine.generate([ids[20 - CONTEXT :]], SamplingConfig(max_new_tokens=20))
    assert texts == [expected.text] * 2
    assert caplog.text.count("cut on the left") == 1 and f"{len(ids)} tokens" in caplog.text
    with pytest.raises(ConfigError, match=f"{CONTEXT} new tokens.*--gen_kwargs max_gen_toks=N"):
        it.generate_until(requests(("the hen", {"max_gen_toks": CONTEXT})))


def test_settings_that_others_overrule_are_noted_once_and_read_as_by_hf(model, caplog) -> None:
    from lm_eval.models.huggingface import HFLM

    it = model()
    other = HFLM(copy.deepcopy(it.engine.pair.target), tokenizer=it.tokenizer, batch_size=1)
    asked = {"max_gen_toks": 5, "max_new_tokens": 9, "do_sample": False, "temperature": 1.0}
    with caplog.at_level(logging.WARNING, logger="cospec"):
        texts = it.generate_until(requests(("the hen", asked), ("the stone", asked)))
    assert caplog.text.count("the first one counts") == 1
    assert caplog.text.count("do_sample=True samples") == 1
    asked |= {"until": []}
    assert texts == other.generate_until(requests(("the hen", asked), ("the stone", asked)))


def test_log_likelihoods_are_the_targets_and_that_is_said_once(model, caplog) -> None:
    it = model(arbiter="always_draft")
    assert "note: the draft has no name" in caplog.text
    pairs = [("the hen", " and the stone"), ("the", " ant")]
    with caplog.at_level(logging.WARNING):
        found = it.loglikelihood(requests(*pairs, kind="loglikelihood"))
        it.loglikelihood_rolling(requests(("the hen and",), kind="loglikelihood_rolling"))
    assert caplog.text.count("log-likelihoods are the target's alone") == 1
    for (context, continuation), (log_p, _) in zip(pairs, found, strict=True):
        start, ids = len(it.tok_encode(context)), it.tok_encode(context + continuation)
        with torch.inference_mode():
            logits = it.engine.pair.target(input_ids=torch.tensor([ids])).logits[0]
        chosen = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])
        assert log_p == pytest.approx(float(chosen[start - 1 :].sum()), abs=1e-4)


def test_answers_are_handed_to_the_harness_cache(model) -> None:
    seen = []

    class Hook:
        def add_partial(self, *entry: Any) -> None:
            seen.append(entry)

    it = model()
    it.set_cache_hook(Hook())
    asked = ("the hen", {"max_gen_toks": 5})
    (text,) = it.generate_until(requests(asked))
    assert seen == [("generate_until", asked, text)]


def test_model_args_go_before_the_options_of_the_harness(model) -> None:
    from cospec.lm_eval.model import CospecLM

    options = {"batch_size": 1, "device": "cuda:0", "max_batch_size": None}
    it = CospecLM.create_from_arg_string("batch_size=5,k=2,arbiter=fly:window=3", options)
    assert it.args.batch_size == it.engine.batch_size == it.batch_size == 5
    assert it.engine.num_speculative_tokens == 2 and it.engine.arbiter.name.startswith(
        "fly:window=3"
    )
    if not torch.cuda.is_available():
        assert it.args.device == "auto", "the harness asks for CUDA unless it is told otherwise"
    assert CospecLM.create_from_arg_obj({}, options).args.batch_size == 1
    written = CospecLM.create_from_arg_obj({}, options | {"batch_size": "16"})  # its command line
    assert written.args.batch_size == written.engine.batch_size == 16
    with pytest.raises(ConfigError, match="batch_size is 'auto'"):
        CospecLM.create_from_arg_obj({}, options | {"batch_size": "auto"})
    with pytest.raises(ConfigError, match="unknown key of --model_args: 'pretrained'"):
        CospecLM.create_from_arg_obj({"pretrained": "gpt2"}, options)


@pytest.mark.slow
def test_the_command_line_of_the_harness_takes_the_model(tmp_path) -> None:
    write_task(tmp_path, 2)
    base = [sys.executable, "-m", "cospec.lm_eval", "--model", "cospec", "--tasks", "words"]
    base += ["--include_path", tmp_path, "--output_path", tmp_path / "out"]
    good = [*base, "--model_args", "pair=bundled:specialist,arbiter=bundled,threshold=0.7,k=6"]
    done = subprocess.run([*map(str, good)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "|words|" in done.stdout
    (path,) = (tmp_path / "out").rglob("results*.json")
    config = json.loads(path.read_text())["config"]
    assert config["arbiter"].endswith(":threshold=0.7") and config["model"] == "cospec"
    bad = [*base, "--model_args", "pair=bundled:famly"]
    done = subprocess.run([*map(str, bad)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "did you mean 'bundled:family'" in done.stderr
    assert "Traceback" not in done.stderr


def test_all_requests_are_checked_before_any_is_answered(model, monkeypatch) -> None:
    """Found: a bad request of a later chunk lost the answers of those before."""
    it, calls = model(batch_size=1), []
    monkeypatch.setattr(it.engine, "rollouts", lambda *_, **__: calls.append(1))
    good = ("the hen", {"max_gen_toks": 3})
    for bad in (("the hen", {"max_gen_toks": CONTEXT}), ("", {"max_gen_toks": 3})):
        with pytest.raises(CospecError):
            it.generate_until(requests(*[good] * 20, bad))
    assert calls == [] and it.generate_until([]) == []


@pytest.mark.parametrize("error", [ConfigError("broken"), KeyboardInterrupt(), MemoryError()])
def test_answers_before_an_error_are_handed_to_the_harness_cache(model, error) -> None:
    """Found: up to 16 full batches of them were lost."""
    seen = []

    class Hook:
        def add_partial(self, _, asked: Any, text: str) -> None:
            seen.append((asked, text))

    def stop(num_finished: int) -> None:
        if num_finished:
            raise error

    it = model(batch_size=1)
    asked = [(text, {"max_gen_toks": 5}) for text in ("the hen", "the stone", "the ant")]
    texts = it.generate_until(requests(*asked))
    it.set_cache_hook(Hook())
    it.engine.on_finished = stop
    with pytest.raises(type(error)):
        it.generate_until(requests(*asked))
    assert len(seen) == 1 and seen[0] in list(zip(asked, texts, strict=True))


def test_a_tokenizer_without_an_end_token_stops_at_none(model, monkeypatch) -> None:
    """Found: stop_token_ids was (None,), which is refused."""
    it = model()
    monkeypatch.setattr(type(it), "eot_token_id", None)
    assert it._encode(*requests(("the hen", {"max_gen_toks": 5})))[1].stop_token_ids == ()
