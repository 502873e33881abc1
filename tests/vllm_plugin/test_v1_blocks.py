"""Blocks of vLLM's drafter end row by row; here beside a runner that only looks like vLLM's."""

from __future__ import annotations

import types
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from cospec.config import DecodeConfig
from cospec.errors import ConfigError
from cospec.vllm_plugin.blocks import ending
from cospec.vllm_plugin.requests import RequestTable
from cospec.vllm_plugin.settings import Settings
from cospec.vllm_plugin.v1_blocks import EndingBlocks
from tests.vllm_plugin.test_adapter import params

K, VOCAB = 12, 50
STOP = 7


@dataclass
class Drafts:
    """Looks like vLLM's DraftTokenIds."""

    req_ids: list[str]
    draft_token_ids: list[list[int]]


class Drafter:
    """Drafts given tokens with given probabilities, as vLLM's drafter loops over a block.

    Args:
        token_ids: Tokens of each row, (R, K).
        probs: The draft's probability of each, (R, K).
    """

    def __init__(self, token_ids, probs):
        self.token_ids, self.probs = torch.tensor(token_ids), torch.tensor(probs)
        self.num_forwards, self._last_draft_probs = 0, None

    def _sample_draft_tokens(self, place, sampling_metadata):
        ids, p = self.token_ids[:, place], self.probs[:, place]
        logits = ((1 - p) / (VOCAB - 1)).log()[:, None].repeat(1, VOCAB)
        logits[torch.arange(len(ids)), ids] = p.log()
        return ids, torch.cat([logits, torch.full((len(ids), 3), 1e9)], dim=1)  # and states

    def propose(self, num_speculative_tokens, next_token_ids, sampling_metadata=None):
        found = []
        for place in range(num_speculative_tokens):
            self.num_forwards += 1
            found.append(self._sample_draft_tokens(place, sampling_metadata))
        ids, shown = zip(*found, strict=True)
        self._last_draft_probs = torch.stack(shown, dim=1)
        return torch.stack(ids, dim=1)


def a_runner(token_ids, probs=None, *, is_discarded=None, in_requests=None):
    """A runner of rows 0, 1, ..., whose texts end with `STOP`, and its sampler."""
    names = [str(i) for i in range(len(token_ids))]
    probs = [[0.99] * K for _ in names] if probs is None else probs
    table = RequestTable(len(names), torch.device("cpu"), has_thresholds=False)
    for slot in range(len(names)):
        table.add(slot, params(stop_token_ids=[STOP]))
    runner = types.SimpleNamespace(
        drafter=Drafter(token_ids, probs),
        device=torch.device("cpu"),
        model_config=types.SimpleNamespace(get_vocab_size=lambda: VOCAB),
        input_batch=types.SimpleNamespace(req_ids=names),
        requests=dict.fromkeys(names if in_requests is None else in_requests),
        discard_request_mask=types.SimpleNamespace(np=np.array(is_discarded or [False] * 8)),
        drafts=None,
    )
    runner.take_draft_token_ids = lambda: Drafts(names, runner.drafts.tolist())
    sampler = types.SimpleNamespace(
        adapter=types.SimpleNamespace(table=table), find_slots=lambda: list(range(len(names)))
    )
    return runner, sampler, table


def drafted(runner, sampler, **options):
    """Blocks of a drafting step, and the number of the draft's forwards."""
    config = DecodeConfig(num_speculative_tokens=K, **options)
    EndingBlocks(runner, sampler, config)
    return step(runner)


def step(runner, *next_ids):
    before = runner.drafter.num_forwards
    last = torch.tensor(next_ids or [9] * len(runner.input_batch.req_ids), dtype=torch.int32)
    runner.drafts = runner.drafter.propose(num_speculative_tokens=K, next_token_ids=last)
    return runner.take_draft_token_ids().draft_token_ids, runner.drafter.num_forwards - before


def row(*stops):
    """Twelve tokens with stop tokens at some places."""
    return [STOP if i in stops else 10 + i for i in range(K)]


def test_each_block_ends_at_its_stop_and_drafting_at_the_last_one() -> None:
    rows = [row(2), row(5), row(0)]
    runner, sampler, _ = a_runner(rows)
    blocks, num_forwards = drafted(runner, sampler, end_blocks_at_stop=True)
    assert blocks == [rows[0][:3], rows[1][:6], rows[2][:1]]
    assert num_forwards == 6
    assert runner.drafter._last_draft_probs.shape == (3, 6, VOCAB + 3)


def test_a_block_without_a_stop_is_whole_and_later_steps_begin_anew() -> None:
    rows = [row(2), row()]
    runner, sampler, _ = a_runner(rows)
    for _ in range(2):
        blocks, num_forwards = (
            drafted(runner, sampler, end_blocks_at_stop=True)
            if not runner.drafter.num_forwards
            else step(runner)
        )
        assert (blocks, num_forwards) == ([rows[0][:3], rows[1]], K)


def test_a_block_ends_after_a_token_that_the_draft_is_unsure_of() -> None:
    probs = [[0.9, 0.6, 0.9] + [0.9] * 9, [0.9] * 4 + [0.2] + [0.9] * 7]
    runner, sampler, _ = a_runner([row(), row(1)], probs)
    blocks, num_forwards = drafted(runner, sampler, draft_confidence_threshold=0.7)
    assert [len(block) for block in blocks] == [2, 5], "a stop ends none here"
    assert num_forwards == 5


def test_a_lossless_text_has_short_blocks_that_end_where_the_draft_is_unsure() -> None:
    rows, probs = [row(), row(), row()], [[0.99] * K, [0.99] * K, [0.75] * K]
    runner, sampler, table = a_runner(rows, probs)
    slots = torch.tensor([1, 2])
    one = torch.ones(2, dtype=torch.int64)
    table.add_counts(slots, one, 2 * one, torch.zeros(2, dtype=torch.bool))  # one correction each
    blocks, _ = drafted(runner, sampler, max_corrections=1)
    assert [len(block) for block in blocks] == [12, 10, 1]
    table.add_counts(torch.tensor([0, 1]), one, one, torch.zeros(2, dtype=torch.bool))
    assert [len(block) for block in step(runner)[0]] == [12, 10, 1], "overrides are no corrections"


def test_a_request_that_opts_out_is_lossless_from_the_beginning() -> None:
    runner, sampler, table = a_runner([row(), row()])
    table.add(1, params(extra_args={"cospec": "off"}))
    blocks, _ = drafted(runner, sampler, max_corrections=1)
    assert [len(block) for block in blocks] == [12, 10]


def test_a_row_whose_prompt_is_not_read_does_not_prolong_the_drafting() -> None:
    runner, sampler, _ = a_runner([row(2), row()], is_discarded=[False, True])
    blocks, num_forwards = drafted(runner, sampler, end_blocks_at_stop=True)
    assert blocks == [row(2)[:3], row()[:1]]
    assert num_forwards == 3


def test_a_text_that_has_ended_does_not_prolong_the_drafting() -> None:
    runner, sampler, table = a_runner([row(2), row(), row()])
    table.add_counts(*(torch.tensor([n]) for n in (1, 0, 0)), torch.tensor([True]))
    EndingBlocks(runner, sampler, DecodeConfig(num_speculative_tokens=K, end_blocks_at_stop=True))
    blocks, num_forwards = step(runner, 9, 9, STOP)
    assert blocks == [row(2)[:3], row()[:1], row()[:1]]
    assert num_forwards == 3


def test_a_warm_up_and_a_step_without_drafting_are_left_alone() -> None:
    runner, sampler, _ = a_runner([row(2), row(3)], in_requests=["0"])
    assert drafted(runner, sampler, end_blocks_at_stop=True) == ([row(2), row(3)], K)
    runner.requests["1"] = None
    assert [len(block) for block in step(runner)[0]] == [3, 4]
    runner.drafts = torch.zeros(2, K)  # near the context's end vLLM's runner puts these
    assert [len(block) for block in runner.take_draft_token_ids().draft_token_ids] == [K, K]


def an_engine(*, is_async=False, ranks=1):
    """Looks like vLLM's configuration."""
    return types.SimpleNamespace(
        speculative_config=types.SimpleNamespace(num_speculative_tokens=K),
        scheduler_config=types.SimpleNamespace(async_scheduling=is_async),
        parallel_config=types.SimpleNamespace(data_parallel_size=ranks),
    )


def test_an_engine_ends_blocks_only_if_it_is_told_to() -> None:
    assert ending(Settings("gap"), an_engine()) is None
    found = ending(Settings("gap", draft_confidence_threshold=0.4), an_engine())
    assert (found.k, found.draft_confidence_threshold) == (K, 0.4)
    assert ending(Settings("gap", end_blocks_at_stop=True), an_engine()).end_blocks_at_stop
    assert ending(Settings("gap", max_corrections=2), an_engine()).max_corrections == 2


@pytest.mark.parametrize(
    ("engine", "why"),
    [(an_engine(is_async=True), "async scheduling"), (an_engine(ranks=2), "data parallelism")],
)
def test_an_engine_that_drafts_whole_blocks_says_so(engine, why, caplog) -> None:
    assert ending(Settings("gap", end_blocks_at_stop=True), engine) is None
    assert f"with {why} vLLM drafts whole blocks; --no-async-scheduling" in caplog.text
    with pytest.raises(ConfigError, match=f"with {why} .* draft_confidence_threshold 0.5"):
        ending(Settings("gap", draft_confidence_threshold=0.5), engine)
    with pytest.raises(ConfigError, match="end_blocks_at_stop True"):
        ending(Settings("gap", end_blocks_at_stop=True, records="scalar"), engine)
