"""Keys of a generation config that say nothing about what an arbiter's generation does."""

from __future__ import annotations

import copy

import pytest

from cospec.custom_generate import Collaborative, keys
from tests.custom_generate.test_generate import inputs, models, usual  # noqa: F401  # fixtures

VALUES = {
    "early_stopping": True,
    "length_penalty": 2.0,
    "decoder_start_token_id": 3,
    "is_assistant": True,
    "assistant_lookbehind": 3,
    "target_lookbehind": 3,
    "disable_compile": True,
    "cache_implementation": "static",
    "return_legacy_cache": False,
    "transformers_version": "4.0.0",
}


@pytest.mark.parametrize("key", keys.NO_EFFECT)
def test_a_key_without_effect_changes_nothing(models, inputs, usual, key):  # noqa: F811
    target, draft = models
    config = copy.deepcopy(target.generation_config)
    config.update(max_new_tokens=20)
    setattr(config, key, VALUES[key])
    found = target.generate(
        **inputs, generation_config=config, custom_generate=Collaborative(draft)
    )
    assert found.tolist() == usual.tolist()
