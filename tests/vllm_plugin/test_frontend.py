"""Requests are refused in the server's process, before they reach the engine."""

from __future__ import annotations

import importlib.util

import pytest

from cospec.vllm_plugin.settings import Settings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("ignore"),  # vLLM's own
]
ROLLOUT = {"rollout": {"key": "a", "seed": 0, "stream": 0}}


@pytest.fixture
def verify(monkeypatch):
    from vllm import SamplingParams

    from cospec.vllm_plugin import frontend

    def verified(settings, asked):
        monkeypatch.setattr(frontend, "_SERVED", [settings])
        check = frontend._checked(lambda params: None)
        check(SamplingParams(extra_args={"cospec": asked}))

    return verified


@pytest.mark.parametrize(
    "settings, asked, message",
    [
        (Settings("gap"), "perhaps", "allowed are 'on', 'off'"),
        (Settings("gap"), "threshold=0.5", "gap is a rule"),
        (Settings("an-arbiter"), ROLLOUT, "not for requests to a server"),
        (Settings("an-arbiter"), {"rollout": {}}, "has no key"),
        (Settings("an-arbiter"), {"rollout": ROLLOUT["rollout"] | {"seed": "x"}}, "an integer"),
    ],
)
def test_a_wrong_setting_is_refused(verify, settings, asked, message):
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match=message):
        verify(settings, asked)


def test_a_threshold_is_refused_where_an_arbiter_of_another_package_is_served(verify, monkeypatch):
    """Found: the client got the unchanged arbiter, also for 1, which is lossless."""
    from vllm.exceptions import VLLMValidationError

    from cospec.vllm_plugin import frontend

    monkeypatch.setattr(frontend, "registered_names", lambda group: ["mine"])
    verify(Settings("mine:rate=1"), "off")
    with pytest.raises(VLLMValidationError, match="mine is of another package"):
        verify(Settings("mine:rate=1"), "threshold=1")


def test_a_right_one_is_not(verify):
    verify(Settings("an-arbiter"), "threshold=0.5")
    verify(Settings("gap"), "off")
    verify(Settings("lossless", records="scalar"), ROLLOUT)
