"""Prompts, settings and arbiters of the laws, and two ways to decode them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from cospec import Engine, SamplingConfig, load_arbiter
from cospec.types import Origin
from tests.conftest import random_model, some_prompts

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from transformers import PreTrainedModel

    from cospec.models import ModelPair
    from cospec.types import Completion

NUM_NEW = 24
"""Enough that the longest texts cross the first 64 places of a cache."""
PROMPTS = some_prompts(6)
SHARING = [[*range(6, 30), *prompt] for prompt in PROMPTS]
"""Prompts with the same beginning, as a system prompt makes them."""
GREEDY = SamplingConfig(max_new_tokens=NUM_NEW, seed=0)
UNSURE = 0.25
"""A quarter of what the drafts of these pairs propose is less probable to them."""
ARBITERS = [
    "lossless",
    "always_draft",
    "random:rate=0.4",
    "gap:max_gap=1",
    "fly:window=2,min_entropy=0.1",
    "agreement:min_share=0.3",
    "chow_average:min_log_q=-1.3",
]
SAMPLED = [
    SamplingConfig(max_new_tokens=NUM_NEW, temperature=t, top_p=p, top_k=k, min_p=m, seed=s)
    for t, p, k, m, s in [
        (1.0, 1.0, 0, 0.0, 0),
        (0.7, 0.9, 0, 0.0, 1),
        (0.0, 1.0, 0, 0.0, 2),
        (1.3, 1.0, 9, 0.0, 3),
        (1.0, 1.0, 0, 0.1, 4),
        (0.9, 0.8, 12, 0.05, 5),
    ]
]

BOTH = {"greedy": [GREEDY] * len(PROMPTS), "sampled": SAMPLED}


def covering(*columns: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Cover each value of the first column with each of the second, the third in turns.

    A grid of three columns costs as many decodings as all their values multiplied. Here each value
    of the third, if these are two, meets every value of the first two, and half of their pairs.
    """
    first, second, third = map(list, columns)
    return [
        (a, b, third[(i + j) % len(third)])
        for i, a in enumerate(first)
        for j, b in enumerate(second)
    ]


@functools.cache
def target_alone(family: str) -> PreTrainedModel:
    """The target of `family_pair` as transformers has it: a pair changes its models' attention."""
    return random_model(family)


def expected_ids(family: str, prompt: list[int], **settings: Hashable) -> list[int]:
    """Ids that transformers generates with the target of `family_pair`; tuples are lists to it."""
    return list(_expected_ids(family, tuple(prompt), **settings))


@functools.cache
def _expected_ids(family: str, prompt: tuple[int, ...], **settings: Hashable) -> list[int]:
    """Cached: most laws ask for the same texts."""
    given = {name: list(s) if isinstance(s, tuple) else s for name, s in settings.items()}
    output = target_alone(family).generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        **{"max_new_tokens": NUM_NEW, "do_sample": False} | given,
    )
    return output[0, len(prompt) :].tolist()


def expected_starts(family: str, prompts: list[list[int]], num_new: int) -> list[list[int]]:
    """The first tokens of what it generates after each prompt."""
    return [expected_ids(family, prompt)[:num_new] for prompt in prompts]


def assert_it_rules(arbiter: str, completions: list[Completion]) -> None:
    """Assert that the arbiter ruled for the draft somewhere, and for the target elsewhere.

    Lossless never overrides, and ``always_draft`` need not correct.
    """
    origins = {origin for completion in completions for origin in completion.origins}
    assert (Origin.OVERRIDE in origins) == (arbiter != "lossless")
    assert Origin.CORRECTION in origins or arbiter == "always_draft"


def decode(
    pair: ModelPair,
    arbiter: str,
    k: int,
    batch: int,
    threshold: float = 0.0,
    *,
    end_blocks_at_stop: bool = False,
    max_corrections: int | None = None,
    **kwargs: object,
) -> list[Completion]:
    engine = Engine(
        pair,
        load_arbiter(arbiter),
        num_speculative_tokens=k,
        batch_size=batch,
        draft_confidence_threshold=threshold,
        end_blocks_at_stop=end_blocks_at_stop,
        max_corrections=max_corrections,
    )
    return engine.generate(**{"prompts": PROMPTS, "sampling": GREEDY} | kwargs)
