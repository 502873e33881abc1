"""Blocks of vLLM's speculator end row by row; here beside a runner that only looks like vLLM's."""

from __future__ import annotations

import types

import pytest
import torch

from cospec.config import DecodeConfig
from cospec.errors import ConfigError
from cospec.vllm_plugin.requests import RequestTable
from cospec.vllm_plugin.v2_blocks import EndingBlocks
from tests.vllm_plugin.test_adapter import params

K, VOCAB, STOP = 12, 50, 7
SLOTS = [4, 0, 2]


class Speculator:
    """Drafts given tokens with given probabilities, in a loop like that of vLLM's.

    Args:
        token_ids: Tokens of each row, (R, K).
        probs: The draft's probability of each, (R, K).
    """

    def __init__(self, token_ids, probs):
        self._ids, p = torch.tensor(token_ids), torch.tensor(probs)
        logits = ((1 - p) / (VOCAB - 1)).log()[:, :, None].repeat(1, 1, VOCAB)
        values = torch.zeros(8, K, VOCAB)  # by slot
        values[SLOTS[: len(p)]] = logits.scatter(2, self._ids[:, :, None], p.log()[:, :, None])
        self.draft_logits = types.SimpleNamespace(values=values)
        self.draft_tokens = torch.full((8, K), 99)
        self.num_forwards, self.supports_decode_metadata_update = 0, False

    def _configure_decode_metadata_update(self):
        self.supports_decode_metadata_update = True

    def _build_uniform_attn_metadata(self, num_reqs, step):
        return num_reqs, step

    def _forward(self, place):
        self.num_forwards += 1
        self.draft_tokens[: len(self._ids), place] = self._ids[:, place]

    def propose(self, input_batch, *args, num_speculative_tokens=K, **options):
        assert len(args) == 10, "all of the runner's arguments"
        self._forward(0)
        for step in range(1, num_speculative_tokens):
            found = self._build_uniform_attn_metadata(num_reqs=len(self._ids), step=step)
            assert found == (len(self._ids), step)
            self._forward(step)
        return self.draft_tokens[: len(self._ids)]


class Handler:
    """Keeps drafts as vLLM's handler does: their number, or the tokens for a grammar."""

    def __init__(self):
        self._draft_tokens_by_req, self.has_grammar = {}, False

    def set_draft_tokens(self, input_batch, draft_tokens):
        rows = draft_tokens.tolist()
        for name, row in zip(input_batch.req_ids, rows, strict=True):
            self._draft_tokens_by_req[name] = row if self.has_grammar else len(row)


def a_runner(token_ids, probs=None, **options):
    """A runner of slots 4, 0, 2, whose texts end with `STOP`, its blocks ending by themselves."""
    probs = [[0.99] * K for _ in token_ids] if probs is None else probs
    table = RequestTable(8, torch.device("cpu"), has_thresholds=False)
    for slot in SLOTS:
        table.add(slot, params(stop_token_ids=[STOP]))
    runner = types.SimpleNamespace(
        speculator=Speculator(token_ids, probs), draft_tokens_handler=Handler()
    )
    EndingBlocks(runner, table, DecodeConfig(num_speculative_tokens=K, **options))
    return runner, table


def step(runner, next_ids=(9, 9, 9), num_sampled=(1, 1, 1), **options):
    """Drafts that the scheduler hears of, and the number of the draft's forwards."""
    speculator, handler = runner.speculator, runner.draft_tokens_handler
    num_reqs, before = len(speculator._ids), speculator.num_forwards
    names, slots = list("abc")[:num_reqs], torch.tensor(SLOTS[:num_reqs], dtype=torch.int32)
    batch = types.SimpleNamespace(num_reqs=num_reqs, req_ids=names, idx_mapping=slots)
    last = torch.full((8, 1), STOP)
    last[slots.long(), 0] = torch.tensor(next_ids[:num_reqs])
    sampled = torch.tensor(num_sampled[:num_reqs])
    some = ({}, {}, None, None, sampled, torch.zeros_like(sampled), last, None, None, None)
    drafts = speculator.propose(batch, *some, **options)
    assert drafts.shape == (num_reqs, K), "the runner keeps as many of each"
    handler.set_draft_tokens(batch, drafts[:, : options.get("num_speculative_tokens", K)])
    found = [handler._draft_tokens_by_req[name] for name in names]
    return found, speculator.num_forwards - before


def row(*stops):
    """Twelve tokens with stop tokens at some places."""
    return [STOP if i in stops else 10 + i for i in range(K)]


def test_each_block_ends_at_its_stop_and_drafting_at_the_last_one() -> None:
    runner, _ = a_runner([row(2), row(5), row(0)], end_blocks_at_stop=True)
    assert step(runner) == ([3, 6, 1], 6)
    assert step(runner) == ([3, 6, 1], 6), "each step begins anew"


def test_a_block_without_a_stop_is_whole() -> None:
    runner, _ = a_runner([row(2), row(K - 1), row()], end_blocks_at_stop=True)
    assert step(runner) == ([3, K, K], K)
    assert step(runner, num_speculative_tokens=5) == ([3, 5, 5], 5)


def test_a_grammar_sees_the_tokens_up_to_the_end() -> None:
    runner, _ = a_runner([row(2), row(5)], end_blocks_at_stop=True)
    runner.draft_tokens_handler.has_grammar = True
    assert step(runner)[0] == [row(2)[:3], row(5)[:6]]


def test_a_block_ends_after_a_token_that_the_draft_is_unsure_of() -> None:
    probs = [[0.9, 0.6, 0.9] + [0.9] * 9, [0.9] * 4 + [0.2] + [0.9] * 7]
    runner, _ = a_runner([row(), row(1)], probs, draft_confidence_threshold=0.7)
    assert step(runner) == ([2, 5], 5), "a stop ends none here"


def test_a_lossless_text_has_short_blocks_that_end_where_the_draft_is_unsure() -> None:
    probs = [[0.99] * K, [0.99] * K, [0.75] * K]
    runner, table = a_runner([row(), row(), row()], probs, max_corrections=1)
    one, none = torch.ones(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)
    table.add_counts(torch.tensor(SLOTS[1:]), one, 2 * one, none)  # one correction each
    assert step(runner)[0] == [K, 10, 1]


def test_rows_whose_drafts_are_nobodys_do_not_prolong_the_drafting() -> None:
    """One text has just ended, and of one request the prompt is not read yet."""
    runner, _ = a_runner([row(), row(), row(3)], end_blocks_at_stop=True)
    assert step(runner, next_ids=(STOP, 9, 9), num_sampled=(1, 0, 1)) == ([1, 1, 4], 4)


def test_a_warm_up_drafts_whole_blocks() -> None:
    runner, _ = a_runner([row(2), row(3), row(4)], end_blocks_at_stop=True)
    assert step(runner, dummy_run=True) == ([K, K, K], K)


def test_the_loop_is_not_captured_as_one_graph() -> None:
    runner, _ = a_runner([row()], end_blocks_at_stop=True)
    runner.speculator._configure_decode_metadata_update()  # as vLLM does after loading
    assert not runner.speculator.supports_decode_metadata_update


def test_a_runner_without_the_names_is_refused() -> None:
    runner, table = a_runner([row()], end_blocks_at_stop=True)
    del runner.draft_tokens_handler._draft_tokens_by_req
    with pytest.raises(ConfigError, match="of this vLLM has no draft_tokens_handler"):
        EndingBlocks(runner, table, DecodeConfig(end_blocks_at_stop=True))
