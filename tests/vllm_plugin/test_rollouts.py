"""The parts of rollouts on vLLM that need no vLLM: requests, drafts that wait, recorded steps."""

from __future__ import annotations

import inspect
import types
from dataclasses import replace

import pytest
import torch

from cospec import SamplingConfig
from cospec.arbiters import load_arbiter
from cospec.engine.rows import Row
from cospec.errors import ConfigError
from cospec.sampling import row_generator
from cospec.types import FinishReason, Needs, Origin
from cospec.vllm_plugin.adapter import exploring
from cospec.vllm_plugin.replay import by_request, replay
from cospec.vllm_plugin.requests import RequestTable
from cospec.vllm_plugin.rollouts import RecordedStep, Recorder, keep_drafts
from cospec.vllm_plugin.settings import Settings
from tests.rl.conftest import arbiter, coin
from tests.vllm_plugin.test_adapter import CPU, column, params

ROLLOUT = dict(key="7", seed=3, stream=2, num_before=5, num_overrides=1, num_mismatches=2)


def test_a_rollout_begins_with_what_was_before_it_and_draws_from_its_own_stream() -> None:
    table = RequestTable(2, CPU, has_thresholds=True, has_rollouts=True)
    table.add(0, params(extra_args={"cospec": {"rollout": ROLLOUT}}, max_tokens=10))
    assert column(table, "num_before", 0) == [5] and column(table, "max_tokens", 0) == [15]
    assert column(table, "num_overrides", 0) == [1] and column(table, "num_mismatches", 0) == [2]
    assert table.rollouts[0].key == "7"
    ours = row_generator(SamplingConfig(seed=3), 2)
    assert torch.rand(3, generator=table.generators[0]).equal(torch.rand(3, generator=ours))
    table.add(0, params())
    assert table.rollouts == {} == table.generators and column(table, "num_before", 0) == [0]


def test_a_rollout_that_was_preempted_goes_on_with_its_counts_and_numbers() -> None:
    table = RequestTable(2, CPU, has_thresholds=False, has_rollouts=True)
    asked = params(extra_args={"cospec": {"rollout": ROLLOUT}})
    table.add(0, asked)
    one, no = torch.tensor([1]), torch.tensor([False])
    table.add_counts(torch.tensor([0]), one, 2 * one, no)
    ours = row_generator(SamplingConfig(seed=3), 2)
    assert torch.rand(3, generator=table.generators[0]).equal(torch.rand(3, generator=ours))
    progress = table.progress(0)
    table.add(0, params())  # another request has the slot meanwhile
    table.add(1, asked)
    table.restore(1, progress)
    assert column(table, "num_overrides", 1) == [2] and column(table, "num_mismatches", 1) == [4]
    assert torch.rand(3, generator=table.generators[1]).equal(torch.rand(3, generator=ours))
    table.restore(0, table.progress(0))
    assert 0 not in table.generators, "no rollout"


@torch.inference_mode()  # as in vLLM's runner
def test_drafts_that_wait_a_step_keep_their_logits() -> None:
    """Stock vLLM has those of its last drafting step alone, and then none for the whole batch."""
    first, second = torch.randn(2, 3, 5), torch.randn(1, 3, 5)
    runner = types.SimpleNamespace(
        requests={"a": 0, "b": 0},
        input_batch=types.SimpleNamespace(req_ids=["a", "b"], spec_token_ids=[[1], [1]]),
        use_async_scheduling=False,
        _draft_probs=first,
        _draft_prob_req_ids=["a", "b"],
        _get_spec_decode_draft_probs=lambda _: None,
        rejection_sampler=types.SimpleNamespace(undrafted=set()),
    )
    empty = torch.cat([second[0], torch.zeros(2, 5)])
    keep_drafts(runner)
    ask = runner._get_spec_decode_draft_probs
    steps = [types.SimpleNamespace(num_draft_tokens=n) for n in ([3, 0], [3, 2])]
    assert ask(steps[0]).equal(first[0])
    runner._draft_probs, runner._draft_prob_req_ids = second, ["a"]
    assert ask(steps[1]).equal(torch.cat([second[0], first[1, :2]]))
    waiting = inspect.getclosurevars(ask).nonlocals["kept"]["b"]
    assert waiting.untyped_storage().nbytes() == waiting.nbytes, "not those of the whole batch"
    assert not runner.rejection_sampler.placeholders
    for runner.use_async_scheduling, spec in ((True, [1]), (False, [-1])):
        runner.input_batch.spec_token_ids[1] = spec  # "b" comes back with placeholders
        assert ask(steps[1]).equal(empty)
        assert runner.rejection_sampler.placeholders == {"b"}
    runner.input_batch.spec_token_ids[1] = [1]
    runner.rejection_sampler.undrafted = {"b"}  # placeholders wait for it now
    assert ask(steps[1]).equal(empty)
    runner.rejection_sampler.undrafted = set()
    assert ask(steps[1]).equal(empty)
    runner._draft_prob_req_ids, runner._draft_probs = ["a", "b"], first
    assert ask(steps[1]).equal(torch.cat([first[0], first[1, :2]]))
    del runner.requests["b"]
    runner._draft_probs, runner._draft_prob_req_ids = second, ["a"]
    ask(steps[0])
    runner.requests["b"] = 1  # another request of that name
    assert ask(steps[1]).equal(empty)
    runner._draft_probs = None  # drafted without logits
    assert ask(steps[0]) is None


def a_step(keep: bool) -> RecordedStep:
    """Four drafted tokens, the second one a mismatch; another request before is not recorded."""
    rows = [
        [0, 1, 2, 0, 1, 1, 0, 0],
        [6, 11, 11, 0, 0, 1, 0, 0],
        [7, 12, 22, 0, 1, 1, int(keep), 1],
    ]
    rows += [[8, 13, 13, 0, 0, 1, 0, 0], [9, 14, 14, 0, 0, 1, 0, 0]]
    emitted = [11, 12, 13, 14, 15] if keep else [11, 22, -1, -1, -1]
    return RecordedStep(
        keys=["", "7"],
        num_rows=[1, 4],
        sampled=torch.tensor([[1, 2, -1, -1, -1], emitted]),
        integers=torch.tensor(rows),
        reals=torch.full((5, 5), 0.25, dtype=torch.float64),
        features=torch.tensor([[0.0, 1.0], [2.0, 3.0]]),  # of both mismatches
    )


def a_row(**settings) -> Row:
    row = Row(0, [1, 2], SamplingConfig(**{"max_new_tokens": 40} | settings), frozenset({14}), None)
    row.generated, row.origins = [3, 4, 5, 6, 7], [Origin.MATCH] * 5
    return row


@pytest.mark.parametrize("keep", [True, False])
def test_a_block_is_walked_as_in_our_engine(keep) -> None:
    row = a_row(max_new_tokens=9) if not keep else a_row()
    emitted = [9, 11, 12, 13, 14, 15] if keep else [9, 11, 22, 30]
    replay(row, by_request([a_step(keep)])["7"], emitted)
    done = row.completion()
    assert done.token_ids[5:] == ([9, 11, 12, 13, 14] if keep else emitted), "14 ends the text"
    assert done.origins[5] is Origin.BONUS and done.origins[6] is Origin.MATCH
    assert done.origins[7] is (Origin.OVERRIDE if keep else Origin.CORRECTION)
    assert done.finish_reason is (FinishReason.STOP if keep else FinishReason.LENGTH)
    (m,) = done.trace[0].mismatches
    assert (m.position, m.block_position, m.draft_id, m.target_id) == (7, 1, 12, 22)
    assert m.keep_draft is keep and m.is_reached and m.is_open and m.veto is None
    assert m.score == 0.25 and m.features.tolist() == [2.0, 3.0]
    assert done.stats.num_drafts == 1 and done.stats.num_overrides == int(keep)


@pytest.mark.parametrize("length", [0, 2])
def test_placeholders_in_place_of_drafts_are_no_tokens(length) -> None:
    step = a_step(True)
    step.integers[1 + length :, 1] = -1
    step.sampled[1] = torch.tensor([*[11, 12][:length], 30, *[-1] * (4 - length)])
    row = a_row(max_new_tokens=7 + length)
    replay(row, by_request([step])["7"], [9, *[11, 12][:length], 30])
    assert row.generated[5:] == [9, *[11, 12][:length], 30]
    assert row.origins[-1] is Origin.BONUS and row.stats.num_draft_tokens == length


def test_what_is_drafted_after_a_stop_counts() -> None:
    row = a_row()
    row.stop_ids = frozenset({13})
    replay(row, by_request([a_step(True)])["7"], [9, 11, 12, 13])
    assert row.generated[5:] == [9, 11, 12, 13] and row.finish_reason is FinishReason.STOP
    assert row.stats.num_draft_tokens == 4 == row.trace[0].num_draft_tokens


def test_blocks_that_do_not_fit_the_text_are_noticed() -> None:
    with pytest.raises(AssertionError, match="its blocks say"):
        replay(a_row(), by_request([a_step(True)])["7"], [9, 11, 12, 99, 14, 15])


def test_an_engine_for_scalar_features_refuses_an_arbiter_that_asks_for_states() -> None:
    asks = types.SimpleNamespace(name="asks", needs=Needs.TARGET_HIDDEN)
    with pytest.raises(ConfigError, match="asks needs TARGET_HIDDEN, and this engine was started"):
        Recorder.of("scalar").check(asks)
    Recorder.of("hidden").check(asks)


def test_only_an_arbiter_with_a_policy_explores() -> None:
    with pytest.raises(ConfigError, match="has no policy to toss a coin by"):
        exploring(load_arbiter("gap:max_gap=1"), 0.1)
    it = replace(exploring(arbiter(coin(0.0), explore=0.0), 0.2), threshold=0.4)
    assert Needs.UNIFORMS in it.needs
    p = it.keep_probability(torch.tensor([0.5, 0.3]))
    assert p.tolist() == pytest.approx([0.9, 0.06])
    with pytest.raises(ConfigError, match=r"explore of .* is 2"):
        Settings("gap:max_gap=1", explore=2)
