"""Cache of what the slow reference decoder reads, kept for the tests of a file."""

from __future__ import annotations

import pytest

from cospec.engine import reference


@pytest.fixture(scope="module")
def texts_are_read_once():
    """Keep what the reference decoder's forwards give: many texts come again in other tests."""
    read, found = reference._logits, {}

    def remembered(model, token_ids):
        if (key := (id(model), tuple(token_ids))) not in found:
            found[key] = read(model, token_ids)
        return found[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "_logits", remembered)
        yield
