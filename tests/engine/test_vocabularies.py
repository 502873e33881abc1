"""Vocabularies of another width: padded ones decode exactly, and no token is out of range."""

from __future__ import annotations

import pytest

from cospec import Engine, load_arbiter
from cospec.models import ModelPair
from cospec.types import Completion, Origin
from tests.conftest import (
    VOCAB,
    TableModel,
    random_model,
    random_table,
    some_prompts,
)
from tests.engine.helpers import (
    GREEDY,
    SAMPLED,
    decode,
    ids,
    total,
)
from tests.laws.known_law import (
    FALSE_ALARM_RATE,
    NUM_DRAWS,
    SETTINGS,
    law,
    p_value,
    sample,
    text_counts,
)
from tests.laws.known_law import TARGET as TARGET_TABLE


def drafted_ids(completion: Completion) -> set[int]:
    """All tokens that the draft is known to have proposed."""
    stood = zip(completion.token_ids, completion.origins, strict=True)
    ruled = {m.draft_id for step in completion.trace for m in step.mismatches}
    return ruled | {i for i, origin in stood if origin in (Origin.MATCH, Origin.OVERRIDE)}


@pytest.mark.parametrize(
    ("width", "kind"),
    [*((width, "greedy") for width in (40, 60, 62, 90)), (40, "sampled"), (90, "sampled")],
)
def test_padded_vocabularies_of_another_width_are_exact_and_in_range(llama_pair, width, kind):
    """Greedy is the target's own; sampled and overridden stay within the target's vocabulary."""
    sampling = {"greedy": GREEDY, "sampled": SAMPLED}[kind]
    pair = ModelPair(llama_pair.target, random_model("llama", seed=7, vocab_size=width))
    prompts = [*some_prompts(6), [VOCAB - 1, VOCAB - 2, VOCAB - 1]]
    done = decode(pair, prompts=prompts, sampling=sampling)
    if sampling is GREEDY:
        assert ids(done) == ids(Engine.target_only(pair).generate(prompts, sampling))
    loose = decode(pair, load_arbiter("random:rate=0.7"), prompts, sampling)
    assert total(loose).num_overrides > 0
    for completion in done + loose:
        assert all(0 <= i < VOCAB for i in completion.token_ids)
        assert all(i < width for i in drafted_ids(completion))
        assert completion.stats.num_non_finite_drafts == 0
    for completion in Engine.draft_only(pair).generate(prompts, sampling):
        assert all(0 <= i < min(VOCAB, width) for i in completion.token_ids)


@pytest.mark.parametrize("width", [3, 7])
def test_padded_vocabularies_of_another_width_leave_the_sampled_law_exact(width):
    settings = [SETTINGS["temperature"]] * NUM_DRAWS
    draft = TableModel(random_table(width, seed=2))
    done = sample(TableModel(TARGET_TABLE), draft, settings, k=3)
    assert p_value(text_counts(done), law(TARGET_TABLE, SETTINGS["temperature"])) > FALSE_ALARM_RATE
    assert all(i < width for completion in done for i in drafted_ids(completion))
