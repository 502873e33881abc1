"""Options of a command from a file, and from a result of the same command."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import is_dataclass, replace
from typing import get_type_hints

import pytest

from cospec.cli import COMMANDS, parse
from cospec.cli.common.config_file import without_flag
from cospec.cli.common.options import OutputOptions
from cospec.cli.common.run import to_json
from cospec.config import DecodeConfig
from cospec.errors import ConfigError

TYPED = {
    "eval": ["--task", "gsm8k", "--arbiter", "gap:max_gap=1", "--arbiter", "fly", "--strict"],
    "audit": ["--task", "gsm8k", "--split", "tune", "--cost-batch-sizes", "1", "3"],
    "bench": ["--task", "gsm8k", "--arms", "rules", "--temperatures", "0", "0.7"],
    "calibrate": ["--task", "gsm8k", "--thresholds", "0.5", "0.9", "--out", "somewhere"],
    "trace": ["--task", "gsm8k", "--no-branches", "--temperature", "0.5"],
    "generate": ["--prompt", "a", "--prompt=-b", "--stop", "x", "--seed", "None", "--chat", "True"],
    "demo": ["--num-problems", "9", "--arbiter", "lossless"],
}


@pytest.fixture
def file(tmp_path):
    """Writes JSON and gives its path."""

    def write(values: object) -> str:
        path = tmp_path / "options=1.json"
        path.write_text(json.dumps(values))
        return str(path)

    return write


@pytest.mark.parametrize("verb", TYPED)
def test_a_result_of_a_command_gives_its_options_back(verb, file):
    pair = ["--pair", "bundled:family", "-k", "7", "--drafter", "ngram+model"]
    typed = parse([verb, *TYPED[verb], *pair])
    config = to_json(typed) | {"models": {"target": "a hash"}, "arbiters": {}}
    del config["output"]
    path = file({"schema": 1, "command": verb, "config": config, "rows": []})
    again = parse([verb, "--config", path])
    assert replace(again, output=OutputOptions()) == typed
    other = parse([verb, f"--config={path}", "--cascade", "--pair", "bundled:specialist"])
    expected = parse([verb, *TYPED[verb], *pair[2:], "--cascade", "--pair=bundled:specialist"])
    assert replace(other, output=OutputOptions()) == expected


def test_a_file_sets_options_that_have_no_flag(file):
    path = file({"decode": {"drafter": "ngram", "prompt_lookup_max": 6}})
    found = parse(["eval", "--task", "gsm8k", "--config", path]).decode
    assert (found.drafter, found.prompt_lookup_max, found.batch_size) == ("ngram", 6, 8)
    path = file({"sampling": {"stop_token_ids": [5], "override_stop_tokens": True}})
    sampling = parse(["generate", "--prompt", "a", "--config", path]).sampling
    assert (sampling.stop_token_ids, sampling.override_stop_tokens) == ((5,), True)


def test_settings_may_be_typed_as_json_and_stand_beside_their_groups():
    typed = '{"drafter": "ngram", "prompt_lookup_max": 6, "task": {"task": "gsm8k"}}'
    for flags in (["--config", typed], [f"--config= {typed}"]):
        found = parse(["eval", *flags, "--num-problems", "4"])
        assert (found.decode.drafter, found.decode.prompt_lookup_max) == ("ngram", 6)
        assert (found.task.task, found.task.num_problems) == ("gsm8k", 4)
    assert parse(["train", "--out", "a", "--config", '{"clip": 0.1}']).train.objective.clip == 0.1
    with pytest.raises(ConfigError, match="cannot be read as settings"):
        parse(["eval", "--config", "{drafter: ngram}"])
    with pytest.raises(ConfigError, match="unknown setting 'batch_sizes'; did you mean 'batch_siz"):
        parse(["eval", "--config", '{"batch_sizes": 3}'])


def test_the_cost_that_an_error_asks_for_is_taken_as_it_is_written_there():
    """Found: beside --adaptive a cost alone in --config was refused."""
    with pytest.raises(ConfigError) as caught:
        DecodeConfig(adaptive=True).check_cost()
    (config,) = re.findall(r"--config '(\{.*\})'", str(caught.value))
    for flags in ([], ["--adaptive"]):
        decode = parse(["eval", "--task", "gsm8k", "--config", config, *flags]).decode
        assert (decode.adaptive, decode.adaptive_cost) == (True, 0.3)


@pytest.mark.parametrize("verb", TYPED)
def test_help_lists_the_settings_without_a_flag_and_each_setting_has_one_name(verb, capsys):
    hidden = without_flag(COMMANDS[verb])
    with pytest.raises(SystemExit):
        parse([verb, "--help"])
    assert f"for --config: {', '.join(hidden)}." in " ".join(capsys.readouterr().out.split())
    for name in hidden:
        with pytest.raises(ConfigError, match=f"{name} has no flag; pass --config"):
            parse([verb, f"--{name.replace('_', '-')}", "1"])
    groups = [hint for hint in get_type_hints(COMMANDS[verb]).values() if is_dataclass(hint)]
    names = Counter(name for group in groups for name in get_type_hints(group))
    assert [name for name, number in names.items() if number > 1] == []


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"schema": 1, "command": "bench", "config": {}}, "is a result of bench"),
        ({"decode": {"bach_size": 3}}, "did you mean 'batch_size'"),
        ({"batch_size": 3, "decode": {"batch_size": 3}}, "stands inside 'decode' and beside it"),
        ({"batch_size": "3"}, "decode.batch_size is '3'; it must be a whole"),
        ({"decode": {"batch_size": "many"}}, "decode.batch_size is 'many'; it must be a whole"),
        ({"decode": {"batch_size": 0}}, "batch_size is 0"),
        ([], "must be an object"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(file, values, told):
    with pytest.raises(ConfigError, match=told):
        parse(["eval", "--config", file(values)])


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read as settings"):
        parse(["eval", "--config", str(tmp_path / "none.json")])


def test_a_missing_task_is_named(capsys):
    with pytest.raises(ConfigError, match="--task is missing"):
        parse(["eval", "--pair", "bundled:tiny"]).task.load()


@pytest.mark.parametrize(
    ("group", "name", "value", "flag"),
    [
        ("pair", "allow_pickle", True, ["--allow-pickle"]),
        ("task", "allow_code_execution", True, ["--allow_code_execution"]),
        ("engine", "vllm_options", '{"trust_remote_code": true}', ["--vllm-options={}"]),
        ("engine", "ray_address", "ray://there:1", ["--ray-address", "auto"]),
        ("task", "task", "jsonl:x.jsonl,scorer=evil:run", ["--task", "gsm8k"]),
    ],
)
def test_a_result_that_can_run_code_needs_the_option_again(file, group, name, value, flag):
    """A result may be somebody else's; a file of one's own options is one's own."""
    config = {"engine": {"backend": "vllm"}, group: {name: value}}
    if group == "engine":
        config[group]["backend"] = "vllm"
    path = file({"schema": 1, "command": "eval", "config": config})
    with pytest.raises(ConfigError, match="with which it can run any code"):
        parse(["eval", "--config", path])
    assert parse(["eval", "--config", path, *flag]).engine.backend == "vllm"
    assert parse(["eval", "--config", file(config)]).engine.backend == "vllm"
