"""Ctrl-C in the middle of a generation hands over what was finished."""

from __future__ import annotations

import pytest
import torch

from cospec import Engine, SamplingConfig
from cospec.errors import (
    GenerationInterrupted,
    PromptError,
)
from cospec.types import MismatchBatch, Ruling
from tests.conftest import (
    some_prompts,
)
from tests.engine.helpers import (
    GREEDY,
    FromFunction,
    decode,
    kept,
)

PROMPTS = some_prompts(4)
SAMPLING = [SamplingConfig(max_new_tokens=n, ignore_eos=True) for n in (30, 5, 3, 30)]


def ninth_raises(error: BaseException) -> FromFunction:
    """An arbiter that keeps nothing, and raises an error when it is asked for the ninth time."""
    calls = []

    def rule(batch: MismatchBatch) -> Ruling:
        calls.append(len(batch))
        if len(calls) == 9:
            raise error
        return Ruling(~kept(batch))

    return FromFunction(rule)


@pytest.fixture(scope="module")
def whole(llama_pair):
    """Completions of a run that nothing interrupts."""
    return decode(llama_pair, prompts=PROMPTS, sampling=SAMPLING, batch_size=2)


def test_an_interrupt_in_the_middle_of_a_batch_hands_over_the_finished_rows(llama_pair, whole):
    engine = Engine(llama_pair, ninth_raises(KeyboardInterrupt()), batch_size=2)
    with pytest.raises(KeyboardInterrupt) as caught:
        engine.generate(PROMPTS, SAMPLING)
    error = caught.value
    assert isinstance(error, GenerationInterrupted) and not isinstance(error, Exception)
    assert error.completions == {i: whole[i] for i in (1, 2)}
    assert "2 prompts had finished" in str(error)
    assert engine.generate(PROMPTS, SAMPLING) == whole, "the engine is as good as new"


@pytest.mark.parametrize(
    ("raised", "caught"),
    [
        (KeyboardInterrupt(), GenerationInterrupted),
        (PromptError("no"), PromptError),
        (torch.OutOfMemoryError("no memory"), torch.OutOfMemoryError),
        (MemoryError(), MemoryError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError),
    ],
)
def test_rollouts_hand_over_the_finished_ones_too(llama_pair, whole, raised, caught):
    engine = Engine(llama_pair, ninth_raises(raised), batch_size=2)
    with pytest.raises(caught) as stop:
        engine.rollouts(PROMPTS, SAMPLING)
    assert stop.value.completions == {i: whole[i] for i in (1, 2)}


def test_an_interrupted_stream_raises_where_it_is_read(llama_pair):
    def rule(batch: MismatchBatch) -> Ruling:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Engine(llama_pair, FromFunction(rule)).stream(some_prompts(2), GREEDY))
