"""Settings from files: any JSON gives settings that can be written again, or a sentence."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from typing import Any, get_type_hints

from hypothesis import given, settings
from hypothesis import strategies as st

from cospec import SamplingConfig
from cospec.config import DecodeConfig
from cospec.errors import ConfigError
from cospec.rl.config import TrainConfig

numbers = st.sampled_from([0, 1, -1, 10**400, 2**70, 0.5, -0.0, 1e39, math.inf, math.nan])
plain = st.none() | st.booleans() | numbers | st.integers() | st.floats() | st.text(max_size=8)
anything = st.recursive(
    plain | st.sampled_from(["\ud800", "\x00", "rl", "hidden"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


def objects(kind: type) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of the settings of a class, nested ones included, and wrong values."""
    hints = get_type_hints(kind)
    values = {
        name: (objects(hint) | anything if dataclasses.is_dataclass(hint) else anything)
        for name, hint in hints.items()
    }
    names = st.sets(st.sampled_from(sorted(values)), max_size=2)
    return names.flatmap(lambda some: st.fixed_dictionaries({name: values[name] for name in some}))


def checked(kind: Any, values: object) -> None:
    try:
        config = kind.from_dict(values)
    except ConfigError:
        return
    written = json.loads(json.dumps(config.to_dict()))
    assert kind.from_dict(written) == config
    floats = [v for v in _leaves(written) if isinstance(v, float)]
    assert all(map(math.isfinite, floats)), "no setting is infinite"


def _leaves(value: Any) -> list[Any]:
    return [x for v in value.values() for x in _leaves(v)] if isinstance(value, dict) else [value]


@settings(max_examples=60, deadline=None)
@given(objects(TrainConfig) | anything)
def test_any_json_is_a_training_configuration_or_is_refused(values):
    checked(TrainConfig, values)


@settings(max_examples=100, deadline=None)
@given(objects(SamplingConfig))
def test_any_json_is_a_sampling_configuration_or_is_refused(values):
    checked(SamplingConfig, values)


@settings(max_examples=100, deadline=None)
@given(objects(DecodeConfig))
def test_any_value_of_a_decode_option_is_taken_or_refused(values):
    with contextlib.suppress(ConfigError):
        DecodeConfig(**values)
