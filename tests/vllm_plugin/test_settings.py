"""Settings of the plugin: read, checked, and refused with a sentence."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cospec.errors import ConfigError
from cospec.vllm_plugin.settings import DecisionLogSettings, RequestSettings, Settings


def config(additional: object) -> SimpleNamespace:
    return SimpleNamespace(additional_config=additional)


@pytest.mark.parametrize("additional", [None, {}, {"other": 1}, {"cospec": None}, object()])
def test_without_our_key_the_plugin_is_off(additional):
    assert Settings.from_vllm(config(additional)) is None
    assert Settings.from_vllm(SimpleNamespace()) is None


def test_settings_are_read_and_round_trip():
    settings = Settings.from_vllm(
        config({"cospec": {"arbiter": "gap", "decisions": {"path": "d.jsonl", "max_bytes": 9}}})
    )
    assert settings == Settings("gap", decisions=DecisionLogSettings("d.jsonl", max_bytes=9))
    assert Settings.from_dict(settings.to_dict()) == settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"arbitre": "gap"}, r"unknown key of .*'arbitre'; did you mean 'arbiter'\? Allowed: any"),
        ({}, "names no arbiter; allowed keys: arbiter, threshold"),
        ({"arbiter": 3}, "arbiter of .* is 3; it must be a rule"),
        ({"arbiter": ""}, "arbiter of .* is ''"),
        ({"arbiter": "gap", "threshold": "x"}, "threshold of .* is 'x'; it must be a number"),
        ({"arbiter": "gap", "threshold": float("nan")}, "threshold of .* is nan"),
        ({"arbiter": "gap", "threshold": True}, "threshold of .* is True"),
        ({"arbiter": "gap", "draft_confidence_threshold": 2}, "draft_confidence_threshold of .* 2"),
        ({"arbiter": "gap", "exact_prefix_tokens": -1}, "is -1; it must be an integer of at least"),
        ({"arbiter": "gap", "exact_prefix_tokens": 1.5}, "is 1.5; it must be an integer"),
        ({"arbiter": "gap", "max_corrections": 0}, "is 0; it must be an integer of at least 1"),
        ({"arbiter": "gap", "end_blocks_at_stop": 1}, "is 1; it must be true or false"),
        ({"arbiter": "gap", "any_vllm_version": "yes"}, "is 'yes'; it must be true or false"),
        ({"arbiter": "gap", "decisions": "f"}, "is 'f'; it must be an object with the keys path"),
        ({"arbiter": "gap", "decisions": {}}, "decisions names no path; allowed keys: path"),
        ({"arbiter": "gap", "decisions": {"path": ""}}, "it must be the name of a file"),
        ({"arbiter": "gap", "decisions": {"pth": "f"}}, "did you mean 'path'"),
        ({"arbiter": "gap", "decisions": {"path": "f", "sampling_rate": 2}}, r"in \(0, 1\]"),
        ({"arbiter": "gap", "decisions": {"path": "f", "max_bytes": 0}}, "at least 1"),
        ({"arbiter": "gap", "counts_dir": 3}, "counts_dir of .* is 3; it must be a folder"),
        ("gap", "is 'gap'; it must be an object with the keys arbiter"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_is_allowed(values, message):
    with pytest.raises(ConfigError, match=message):
        Settings.from_dict(values)


@pytest.mark.parametrize(
    ("settings", "spec"),
    [
        (Settings("gap"), "gap"),
        (Settings("a/b", threshold=0.7), "a/b:threshold=0.7"),
        (Settings("a/b:point=fast", threshold=1), "a/b:point=fast,threshold=1"),
    ],
)
def test_the_threshold_becomes_part_of_the_spec(settings, spec):
    assert settings.arbiter_spec == spec


@pytest.mark.parametrize("rule", ["gap", "fsd_js"])
def test_a_threshold_for_a_rule_is_refused(rule):
    """A rule's own threshold means another thing: more of it is bolder."""
    with pytest.raises(ConfigError, match="which is of trained arbiters"):
        _ = Settings(rule, threshold=0.5).arbiter_spec


@pytest.mark.parametrize(
    ("extra_args", "settings"),
    [
        (None, RequestSettings()),
        ({}, RequestSettings()),
        ({"session_id": "x"}, RequestSettings()),
        ({"cospec": "on"}, RequestSettings()),
        ({"cospec": "off"}, RequestSettings(enabled=False)),
        ({"cospec": "threshold=0.7"}, RequestSettings(0.7)),
        ({"cospec": {"enabled": False, "threshold": 1}}, RequestSettings(1.0, enabled=False)),
        ({"cospec": {"threshold": None}}, RequestSettings()),
    ],
)
def test_a_request_may_switch_off_or_move_the_threshold(extra_args, settings):
    assert RequestSettings.from_extra_args(extra_args) == settings


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("of", "is 'of'; allowed are 'on', 'off', 'threshold=0.7'"),
        ("threshold=", "allowed are"),
        ("threshold=nan", "threshold of a request is nan; it must be a number"),
        (0, "is 0; allowed are"),
        (False, "is False; allowed are"),
        (["off"], "allowed are"),
        ({"enable": False}, "did you mean 'enabled'"),
        ({"enabled": 0}, "enabled of a request is 0; it must be true or false"),
        ({"threshold": "x"}, "threshold of a request is 'x'"),
    ],
)
def test_a_wrong_request_is_refused(value, message):
    with pytest.raises(ConfigError, match=message):
        RequestSettings.from_extra_args({"cospec": value})


def test_the_operators_floor_is_a_probability_and_not_above_the_servers_threshold():
    assert Settings("gap", min_threshold=0.5).min_threshold == 0.5
    with pytest.raises(ConfigError, match=r"min_threshold of .* is 1\.5"):
        Settings("gap", min_threshold=1.5)
    with pytest.raises(ConfigError, match=r"threshold of .* is 0\.3 and min_threshold 0\.5"):
        Settings("gap", threshold=0.3, min_threshold=0.5)
