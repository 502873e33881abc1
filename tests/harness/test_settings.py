"""Arguments that the harness passes, read without the harness."""

from __future__ import annotations

import re
import sys

import pytest

from cospec.config import SamplingConfig
from cospec.errors import ConfigError, pip_line
from cospec.lm_eval.__main__ import main
from cospec.lm_eval.settings import ModelArgs, overruled, sampling_config


def test_model_args_are_those_of_the_commands_with_k_for_short() -> None:
    args = ModelArgs.from_dict(
        {"pair": "bundled:family", "arbiter": "fly", "k": 6, "dtype": "auto"}
    )
    assert args == ModelArgs(pair="bundled:family", arbiter="fly", num_speculative_tokens=6)
    assert ModelArgs.from_dict({"num_speculative_tokens": 6}).num_speculative_tokens == 6


@pytest.mark.parametrize(
    ("arbiter", "threshold", "spec"),
    [
        ("mine", None, "mine"),
        ("mine", 0.7, "mine:threshold=0.7"),
        ("mine:point=bold", 1, "mine:point=bold,threshold=1"),
    ],
)
def test_a_threshold_is_part_of_the_arbiters_spec(arbiter, threshold, spec) -> None:
    assert ModelArgs(arbiter=arbiter, threshold=threshold).arbiter_spec == spec


def test_a_threshold_of_a_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"threshold is 0\.1, which is of trained arbiters"):
        _ = ModelArgs(arbiter="typical:alpha=0.2", threshold=0.1).arbiter_spec


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pretrained": "gpt2"}, r"unknown key of --model_args: 'pretrained'.*arbiter, batch_size"),
        ({"arbitr": "fly"}, "did you mean 'arbiter'"),
        ({"k": 4, "num_speculative_tokens": 4}, "are the same"),
        ({"k": "four"}, "num_speculative_tokens is 'four'; it must be a whole number"),
        ({"batch_size": "auto"}, "batch_size is 'auto'; it must be a whole number"),
        ({"batch_size": True}, "batch_size is True"),
        ({"max_corrections": True}, "max_corrections is True"),
        ({"max_corrections": 0}, "max_corrections is 0; it must be at least 1"),
        ({"seed": 0.5}, r"seed is 0\.5"),
        ({"adaptive": True}, "adaptive is on and adaptive_cost is None"),
    ],
)
def test_model_args_that_cannot_be_are_refused(values, message) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelArgs.from_dict(values)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"until": "\n"}, {"stop": ("\n",)}),
        ({"until": ["\n", "", "Q:"]}, {"stop": ("\n", "Q:")}),
        ({"until": None, "max_gen_toks": None}, {}),
        ({"max_gen_toks": 7}, {"max_new_tokens": 7}),
        ({"max_new_tokens": "7", "max_tokens": 9}, {"max_new_tokens": 7}),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, {}),
        ({"temperature": 0.0, "top_k": 5}, {}),
        ({"temperature": 0.7}, {"temperature": 0.7}),
        (
            {"do_sample": True, "temperature": 1, "top_p": 0.9, "top_k": 5, "min_p": 0.1},
            {"temperature": 1, "top_p": 0.9, "top_k": 5, "min_p": 0.1},
        ),
        ({"num_beams": 1, "repetition_penalty": 1.0, "use_cache": True}, {}),
    ],
)
def test_settings_of_a_task_are_read_as_the_harness_reads_them(given, expected) -> None:
    found = sampling_config(given, default_max_new_tokens=256, stop_token_ids=(5,), seed=3)
    defaults = {"max_new_tokens": 256, "stop_token_ids": (5,), "seed": 3}
    assert found == SamplingConfig(**defaults | expected)


@pytest.mark.parametrize(
    ("given", "note"),
    [
        ({"max_gen_toks": 7, "max_tokens": 9}, "max_gen_toks=7, max_tokens=9, which are names of"),
        ({"max_new_tokens": "7", "max_tokens": 7}, None),
        ({"max_gen_toks": None, "max_tokens": 7}, None),
        ({"do_sample": False, "temperature": 0.7}, "do_sample=False and temperature=0.7: answers"),
        ({"do_sample": False, "temperature": 0.0}, None),
        ({"do_sample": None, "temperature": 0.7}, None),
        ({"do_sample": True, "temperature": 0.7}, None),
        ({}, None),
    ],
)
def test_settings_that_others_overrule_are_noted(given, note) -> None:
    """Found: the harness's own models warn of them, and ours passed over them."""
    found = overruled(given)
    assert len(found) == (note is not None)
    assert note is None or note in found[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 4}, "num_beams=4, which the engine does not do.*--gen_kwargs"),
        ({"repetition_penalty": 1.2}, r"repetition_penalty=1\.2"),
        ({"max_length": 100}, "max_length=100"),
        ({"do_sample": True}, "do_sample=True and no temperature above 0"),
        ({"do_sample": True, "temperature": 0.0}, "do_sample=True and no temperature above 0"),
        ({"temperature": 1.0, "top_p": 1.5}, r"top_p is 1\.5"),
        ({"temperature": "abc"}, "temperature is 'abc'; it must be a number"),
        ({"max_gen_toks": "abc"}, "max_gen_toks is 'abc'; it must be a number"),
        ({"max_gen_toks": float("inf")}, "max_gen_toks is inf"),
        ({"until": 3}, "until is 3; it must be a text or a list of texts"),
    ],
)
def test_settings_of_a_task_that_would_be_passed_over_are_refused(given, message) -> None:
    with pytest.raises(ConfigError, match=message):
        sampling_config(given, default_max_new_tokens=256)


def test_without_the_harness_the_command_says_what_to_install(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "cospec.lm_eval.model", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SystemExit, match=re.escape(pip_line("lm-eval"))):
        main()
