"""Settings of the plugin, per server and per request.

A server's settings come in vLLM's ``additional_config``, a request's in its ``extra_args``.
vLLM has no option for acceptance rules and refuses unknown keys in its speculative configuration;
``additional_config`` is the place that it leaves to plugins, and the same object reaches every
process. A server without the key ``cospec`` there decodes as if the plugin were not installed.

This file knows nothing of vLLM's modules and loads without it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

from cospec.errors import ConfigError, unknown_name

KEY = "cospec"
"""Name of our settings, in ``additional_config`` and in ``extra_args``."""

WHERE = f'additional_config["{KEY}"]'

Records = Literal["scalar", "hidden"]
"""Inputs of a rollout engine's arbiters: the models' logits, or their hidden states as well."""

FORMS = "'on', 'off', 'threshold=0.7', or {'enabled': bool, 'threshold': number} (offline only)"


@dataclass(frozen=True, slots=True)
class DecisionLogSettings:
    """The file that decisions are written to. They hold token ids of users' texts."""

    path: str
    """File to append to, one JSON object a line."""
    sampling_rate: float = 1.0
    """Share of the requests whose decisions are written, all or none of a request."""
    max_bytes: int = 100_000_000
    """The file is never made larger than this; what comes later is counted and dropped."""

    def __post_init__(self) -> None:
        where = f"{WHERE}.decisions"
        if not isinstance(self.path, str) or not self.path:
            raise ConfigError(f"path of {where} is {self.path!r}; it must be the name of a file.")
        object.__setattr__(
            self, "sampling_rate", _number(f"sampling_rate of {where}", self.sampling_rate)
        )
        if not 0 < self.sampling_rate <= 1:
            raise ConfigError(
                f"sampling_rate of {where} is {self.sampling_rate!r}; it must be in (0, 1]."
            )
        _check_count(f"max_bytes of {where}", self.max_bytes, least=1)


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a server, for all requests."""

    arbiter: str
    """Folder or hub id of a trained arbiter, or a rule such as gap:max_gap=1."""
    threshold: float | None = None
    """Threshold in place of the arbiter's own; trained arbiters only."""
    exact_prefix_tokens: int = 0
    """Keep this many first tokens of each completion lossless."""
    draft_confidence_threshold: float = 0.0
    """End a drafted block after a token to which the draft gives a lower probability than this."""
    end_blocks_at_stop: bool = False
    """End each block after a drafted token that would end the text; an engine that drafts whole
    blocks lets the arbiter look no further than that token."""
    cascade: bool = False
    """Let the draft read guesses of its next tokens together; vLLM's first model runner only."""
    max_corrections: int | None = None
    """Decode losslessly after this many of the target's own tokens in a text; None has no limit."""
    decisions: DecisionLogSettings | None = None
    """Write reached decisions to a file; None writes none."""
    any_vllm_version: bool = False
    """Start in other versions of vLLM too, if every name that the plugin hooks into is there."""
    counts_dir: str | None = None
    """Folder in which engine and server share their counts; None takes one in the system's
    temporary folder."""
    min_threshold: float = 0.0
    """Lowest threshold of a request: one that asks for less gets this."""
    explore: float = 0.0
    """Share of rulings that a trained arbiter leaves to its policy's coin; the log of decisions has
    their probabilities, for further training."""
    records: Records | None = None
    """Record decisions for `cospec.vllm_plugin.backend`, whose arbiters may see these inputs; None
    in a server."""

    def __post_init__(self) -> None:
        if not isinstance(self.arbiter, str) or not self.arbiter:
            raise ConfigError(
                f"arbiter of {WHERE} is {self.arbiter!r}; it must be a rule, or the folder or hub "
                "id of a trained arbiter."
            )
        for key in ("threshold", "min_threshold", "explore", "draft_confidence_threshold"):
            if (value := getattr(self, key)) is not None:
                object.__setattr__(self, key, _probability(f"{key} of {WHERE}", value))
        if self.threshold is not None and self.threshold < self.min_threshold:
            raise ConfigError(
                f"threshold of {WHERE} is {self.threshold} and min_threshold {self.min_threshold}; "
                "the first must not be below the second."
            )
        _check_count(f"exact_prefix_tokens of {WHERE}", self.exact_prefix_tokens, least=0)
        for key in ("end_blocks_at_stop", "cascade", "any_vllm_version"):
            if not isinstance(value := getattr(self, key), bool):
                raise ConfigError(f"{key} of {WHERE} is {value!r}; it must be true or false.")
        if self.max_corrections is not None:
            _check_count(f"max_corrections of {WHERE}", self.max_corrections, least=1)
        if self.records is not None and self.records not in get_args(Records):
            raise ConfigError(unknown_name(f"records of {WHERE}:", self.records, get_args(Records)))
        if self.counts_dir is not None and not isinstance(self.counts_dir, str):
            raise ConfigError(f"counts_dir of {WHERE} is {self.counts_dir!r}; it must be a folder.")

    @property
    def arbiter_spec(self) -> str:
        """The arbiter with its threshold, if one is given, as `cospec.load_arbiter` takes it.

        Raises:
            ConfigError: It is a rule, and a threshold is given.
        """
        from cospec.arbiters import with_threshold  # noqa: PLC0415  # brings torch

        return with_threshold(self.arbiter, self.threshold)

    @classmethod
    def from_vllm(
        cls,
        vllm_config: Any,  # Any: vLLM's VllmConfig, which need not be installed here
    ) -> Settings | None:
        """The settings of an engine; None if it has none, and the plugin is off.

        Raises:
            ConfigError: A key is unknown or a value is not allowed.
        """
        additional = getattr(vllm_config, "additional_config", None)
        if not isinstance(additional, Mapping) or additional.get(KEY) is None:
            return None
        return cls.from_dict(additional[KEY])

    @classmethod
    def from_dict(cls, values: object) -> Settings:
        """Build from a JSON object.

        Raises:
            ConfigError: A key is unknown or a value is not allowed.
        """
        given = _checked(WHERE, values, cls)
        if "arbiter" not in given:
            raise ConfigError(f"{WHERE} names no arbiter; allowed keys: {_names(cls)}.")
        decisions = given.get("decisions")
        if decisions is not None and not isinstance(decisions, DecisionLogSettings):
            inner = _checked(f"{WHERE}.decisions", decisions, DecisionLogSettings)
            if "path" not in inner:
                raise ConfigError(
                    f"{WHERE}.decisions names no path; allowed keys: {_names(DecisionLogSettings)}."
                )
            given["decisions"] = DecisionLogSettings(**inner)
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:  # Any: a JSON object
        """The JSON object that `from_dict` takes."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """A request in a rollout engine: its name, its random stream, and the tokens before it."""

    key: str
    """Name under which its decisions are recorded."""
    seed: int
    stream: int
    """Stream of the seed: rulings by chance draw from it, as in `cospec.sampling.row_generator`."""
    num_before: int = 0
    """Tokens at the end of its prompt that count as generated."""
    num_overrides: int = 0
    """Overrides among them."""
    num_mismatches: int = 0
    """Reached mismatches among them."""

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, Integral):
            raise ConfigError(f"seed of rollout of {KEY} is {self.seed!r}; it must be an integer.")
        for name in ("stream", "num_before", "num_overrides", "num_mismatches"):
            _check_count(f"{name} of rollout of {KEY}", getattr(self, name), least=0)


@dataclass(frozen=True, slots=True)
class RequestSettings:
    """Settings that one request may change.

    Over HTTP they come as ``"vllm_xargs": {"cospec": "off"}`` in the body. vLLM allows strings,
    numbers and lists of those there, but no objects or booleans, so the value is one string. In
    Python, ``SamplingParams(extra_args={"cospec": {"enabled": False}})`` works as well.
    """

    threshold: float | None = None
    """Threshold in place of the server's."""
    enabled: bool = True
    """False decodes this request losslessly, as stock vLLM does."""
    rollout: RolloutRequest | None = None
    """Offline only, for `cospec.vllm_plugin.backend`."""

    @classmethod
    def from_extra_args(
        cls,
        extra_args: Mapping[str, Any] | None,  # Any: whatever the client sent
    ) -> RequestSettings:
        """The settings of a request.

        Raises:
            ConfigError: The value under ``cospec`` is none of the allowed forms. Check it where the
                request comes in: an error in the engine ends the engine.
        """
        value = (extra_args or {}).get(KEY)
        if value is None:
            return cls()
        if isinstance(value, str):
            value = _from_text(value)
        if not isinstance(value, Mapping):
            raise ConfigError(f"{KEY} of a request is {value!r}; allowed are {FORMS}.")
        given = _checked(f"{KEY} of a request", value, cls)
        if not isinstance(enabled := given.get("enabled", True), bool):
            raise ConfigError(f"enabled of a request is {enabled!r}; it must be true or false.")
        if given.get("threshold") is not None:
            given["threshold"] = _probability("threshold of a request", given["threshold"])
        if given.get("rollout") is not None:
            rollout = _checked(f"rollout of {KEY} of a request", given["rollout"], RolloutRequest)
            if missing := {"key", "seed", "stream"} - set(rollout):
                raise ConfigError(f"rollout of {KEY} of a request has no {min(missing)}; give it.")
            given["rollout"] = RolloutRequest(**rollout)
        return cls(**given)


def _from_text(text: str) -> Mapping[str, Any] | str:  # Any: values to be checked
    """The mapping that a request's string stands for; the string itself if it stands for none."""
    if text in {"on", "off"}:
        return {"enabled": text == "on"}
    name, _, value = text.partition("=")
    if name != "threshold":
        return text
    try:
        return {"threshold": float(value)}
    except ValueError:
        return text


def _names(kind: type) -> str:
    """Fields of a dataclass."""
    return ", ".join(f.name for f in dataclasses.fields(kind))


def _checked(where: str, values: object, kind: type) -> dict[str, Any]:  # Any: values to be checked
    """A mapping whose keys are fields of a dataclass.

    Raises:
        ConfigError: The value is no mapping, or a key is unknown.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{where} is {values!r}; it must be an object with the keys {_names(kind)}."
        )
    for key in values:
        if key not in (names := [f.name for f in dataclasses.fields(kind)]):
            raise ConfigError(unknown_name(f"key of {where}:", str(key), names))
    return dict(values)


def _number(name: str, value: object) -> float:
    """A finite number.

    Raises:
        ConfigError: The value is no finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} is {value!r}; it must be a number.")
    return float(value)


def _probability(name: str, value: object) -> float:
    """A number from 0 to 1.

    Raises:
        ConfigError: The value is no number from 0 to 1.
    """
    number = _number(name, value)
    if not 0 <= number <= 1:
        raise ConfigError(f"{name} is {value!r}; it must be from 0 to 1, which is lossless.")
    return number


def _check_count(name: str, value: object, least: int) -> None:
    """Raise a `ConfigError` unless a value is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}; it must be an integer of at least {least}.")
