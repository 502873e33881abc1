"""Pairs of all families, with what transformers generates with their targets alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import FAMILIES, family_pair
from tests.laws.decoding import PROMPTS, expected_ids

if TYPE_CHECKING:
    from cospec.models import ModelPair


@pytest.fixture(scope="session", params=FAMILIES)
def pair_and_expected(request: pytest.FixtureRequest) -> tuple[ModelPair, list[list[int]]]:
    family = request.param
    return family_pair(family), [expected_ids(family, prompt) for prompt in PROMPTS]
