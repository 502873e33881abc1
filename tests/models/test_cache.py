"""Reading into the ragged cache."""

from __future__ import annotations

import pytest
import torch

from cospec.models.cache import CachedModel
from tests.conftest import random_model


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("num_tokens", [1, 2, 5])
def test_the_output_matrix_gets_no_view_with_gaps(num_rows, num_tokens):
    """One row too: torch goes by the strides, also of an axis of length 1."""
    model = random_model("llama")
    seen = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    cached = CachedModel(model)
    cached.reserve(num_rows, 16)
    starts = torch.zeros(num_rows, dtype=torch.int64)
    token_ids = torch.ones(num_rows, num_tokens, dtype=torch.int64)
    with torch.inference_mode():
        found = cached.read(token_ids, cached.window(starts, num_tokens, num_tokens))
    (states,) = seen
    assert states.shape[:2] == found.logits.shape[:2] == (num_rows, 1)
    assert states.stride(0) == states.stride(1) == states.shape[2]
