"""Requests as the adapters know them, and engines and arbiters that they refuse."""

from __future__ import annotations

import types
from dataclasses import replace

import pytest
import torch

from cospec.arbiters import AlwaysDraft
from cospec.arbiters.guard import PromptGuard
from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.errors import ArbiterError, ConfigError
from cospec.features import ScalarFeatures, token_kinds
from cospec.types import Needs
from cospec.vllm_plugin.adapter import Adapter, check_engine, check_threshold, load
from cospec.vllm_plugin.bridge import RowArbiter
from cospec.vllm_plugin.placing import place
from cospec.vllm_plugin.requests import MAX_STOP_IDS, RequestTable, is_plain
from cospec.vllm_plugin.rollouts import Recorder
from cospec.vllm_plugin.settings import RequestSettings
from tests.vllm_plugin.conftest import DRAFT, HIDDEN, OTHER_PAIRS, TARGET

CPU = torch.device("cpu")


def params(**changes):
    """A request's parameters by vLLM's names, all at their defaults."""
    defaults = dict(
        presence_penalty=0.0,
        frequency_penalty=0.0,
        repetition_penalty=1.0,
        bad_words=None,
        allowed_token_ids=None,
        logit_bias=None,
        structured_outputs=None,
        min_tokens=0,
        extra_args=None,
        stop_token_ids=[],
        eos_token_id=1,
        max_tokens=16,
    )
    return types.SimpleNamespace(**defaults | changes)


def column(table, name, *slots):
    return getattr(table.columns(torch.tensor(slots)), name).tolist()


def test_a_slot_holds_what_its_request_asked_for():
    table = RequestTable(4, CPU, has_thresholds=True)
    table.add(2, params(stop_token_ids=[7, 9], max_tokens=None))
    table.add(0, params(extra_args={"cospec": "threshold=0.25"}))
    assert column(table, "stop_ids", 2, 0) == [[1, 7, 9], [1, -1, -1]]
    assert column(table, "max_tokens", 2, 0) == [2**62, 16]
    assert column(table, "is_open", 2, 0, 1) == [True, True, False]
    assert column(table, "thresholds", 0) == [0.25]
    assert table.columns(torch.tensor([2])).thresholds.isnan().all()


def test_a_threshold_where_a_rule_rules_decodes_losslessly(caplog):
    """Found: without the server, which refuses it, threshold 1 had overrides."""
    table = RequestTable(1, CPU, has_thresholds=False)
    table.add(0, params(extra_args={"cospec": "threshold=1"}))
    assert column(table, "is_open", 0) == [False]
    assert "it wants threshold 1, and a rule has none" in caplog.text


def test_no_request_gets_a_threshold_below_the_operators():
    table = RequestTable(3, CPU, has_thresholds=True, min_threshold=0.5)
    table.add(0, params(extra_args={"cospec": "threshold=0.25"}))
    table.add(1, params(extra_args={"cospec": "threshold=0.75"}))
    table.add(2, params())
    assert column(table, "thresholds", 0, 1) == [0.5, 0.75]
    assert table.columns(torch.tensor([2])).thresholds.isnan().all(), "the server's own"


def test_a_new_request_in_a_slot_leaves_nothing_of_the_old_one():
    table = RequestTable(2, CPU, has_thresholds=True)
    table.add(1, params(stop_token_ids=[7, 9], extra_args={"cospec": "threshold=0.25"}))
    ended = torch.tensor([True, False])
    table.add_counts(torch.tensor([1, 0]), torch.tensor([3, 0]), torch.tensor([4, 1]), ended)
    assert column(table, "is_ended", 1, 0) == [True, False]
    assert column(table, "num_overrides", 1, 0) == [3, 0]
    assert column(table, "num_mismatches", 1, 0) == [4, 1]
    table.add(1, params(eos_token_id=None))
    assert column(table, "num_overrides", 1) == column(table, "num_mismatches", 1) == [0]
    assert column(table, "is_ended", 1) == [False]
    assert column(table, "stop_ids", 1) == [[-1, -1, -1]]
    assert table.columns(torch.tensor([1])).thresholds.isnan().all()


def test_more_requests_than_expected_find_room():
    table = RequestTable(2, CPU, has_thresholds=False)
    table.add(1, params(stop_token_ids=[4]))
    table.add_counts(*map(torch.tensor, ([1], [5], [6], [True])))
    table.add(9, params(stop_token_ids=[6]))
    assert column(table, "stop_ids", 1, 9) == [[1, 4], [1, 6]]
    assert column(table, "num_overrides", 1, 9) == [5, 0]
    assert column(table, "num_mismatches", 1, 9) == [6, 0]
    assert column(table, "is_ended", 1, 9) == [True, False]
    assert table.columns(torch.tensor([9])).thresholds is None


@pytest.mark.parametrize(
    "change",
    [
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"repetition_penalty": 1.1},
        {"bad_words": ["no"]},
        {"allowed_token_ids": [3]},
        {"logit_bias": {3: 1.0}},
        {"structured_outputs": object()},
        {"min_tokens": 1},
        {"thinking_token_budget": 0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_request_that_changes_the_targets_law_is_left_to_the_target(change):
    assert is_plain(params())
    assert not is_plain(params(**change))
    table = RequestTable(1, CPU, has_thresholds=False)
    table.add(0, params(**change))
    assert column(table, "is_open", 0) == [False]


def test_a_request_with_an_adapter_is_left_to_the_target():
    table = RequestTable(1, CPU, has_thresholds=False)
    table.add(0, params(), has_lora=True)
    assert column(table, "is_open", 0) == [False]


def test_a_server_takes_no_rollout_from_a_request(caplog):
    """Found: a client could set its counts, or end the engine with a seed that is no number."""
    rollout = dict(key="a", seed=0, stream=0, num_before=2, num_mismatches=9)
    table = RequestTable(1, CPU, has_thresholds=False)
    table.add(0, params(extra_args={"cospec": {"rollout": rollout}}))
    assert column(table, "num_before", 0) == column(table, "num_mismatches", 0) == [0]
    for wrong in ({"seed": "x"}, {"stream": -1}, {"num_before": 1.5}):
        table.add(0, params(extra_args={"cospec": {"rollout": rollout | wrong}}))
        assert column(table, "is_open", 0) == [False]
    with pytest.raises(ConfigError, match="has no key"):
        RequestSettings.from_extra_args({"cospec": {"rollout": {}}})


def test_the_arbiters_own_threshold_is_not_below_the_lowest_of_a_request():
    features = ScalarFeatures(torch.zeros(8, dtype=torch.int64))
    arbiter = LearnedArbiter(Policy(len(features.names), PolicyConfig()), features, threshold=0.4)
    check_threshold(arbiter, 0.4)
    check_threshold(AlwaysDraft(), 0.0)
    with pytest.raises(ConfigError, match="which has no threshold for requests"):
        check_threshold(AlwaysDraft(), 0.7)
    with pytest.raises(ConfigError, match=r"threshold is 0\.4 and min_threshold 0\.7"):
        check_threshold(arbiter, 0.7)


class Timid(AlwaysDraft):
    """Stands back from prompts that begin with an even token, and from those that it cannot see."""

    def is_foreign(self, prompt_ids):
        return not prompt_ids or prompt_ids[0] % 2 == 0


def test_a_request_whose_prompt_the_arbiter_stands_back_from_is_left_to_the_target():
    table = RequestTable(5, CPU, has_thresholds=False, has_rollouts=True)
    after = {"cospec": {"rollout": dict(key="a", seed=0, stream=0, num_before=2)}}
    for slot, (prompt, extra) in enumerate(
        [([1, 2], None), ([2, 1], None), (None, None), ([3, 2, 2], after), ([2, 2], after)]
    ):
        table.add(slot, params(extra_args=extra), prompt, Timid())
    assert column(table, "is_open", 0, 1, 2, 3, 4) == [True, False, False, True, False]
    table.add(1, params(), [2, 1], AlwaysDraft())
    assert column(table, "is_open", 1) == [True]


def test_a_guard_of_another_tokenizers_ids_is_dropped():
    """Found: every prompt was foreign to it, and nothing said so."""
    guard = PromptGuard.of([[1, 2]], [[1, 2]])
    features = ScalarFeatures(torch.zeros(8, dtype=torch.int64))
    policy = Policy(len(features.names), PolicyConfig())
    arbiter = LearnedArbiter(policy, features, prompt_guard=guard)
    assert place(arbiter, CPU, 8, lambda: None).prompt_guard is guard
    assert place(arbiter, CPU, 7, lambda: None).prompt_guard is None
    other = replace(arbiter, features=ScalarFeatures(torch.arange(8) % 3))
    assert place(other, CPU, 8, Letters).prompt_guard is None, "of the same size"
    same = replace(arbiter, features=ScalarFeatures(token_kinds(Letters(), 8)))
    assert place(same, CPU, 10, Letters).prompt_guard is guard, "with other padding"


def test_a_request_with_a_whole_vocabulary_of_stop_tokens_does_not_widen_the_table(caplog):
    """Such a request once made every later step of the server slow, until it was restarted."""
    table = RequestTable(4, CPU, has_thresholds=False)
    table.add(0, params(stop_token_ids=list(range(2, 2 + MAX_STOP_IDS))))
    assert column(table, "is_open", 0) == [False]
    table.add(1, params(stop_token_ids=list(range(150_000))))
    assert column(table, "is_open", 1) == [False]
    table.add(2, params(stop_token_ids=list(range(2, 1 + MAX_STOP_IDS))))
    assert column(table, "is_open", 2) == [True]
    (stop_ids,) = column(table, "stop_ids", 2)
    assert len(stop_ids) == MAX_STOP_IDS and 1 in stop_ids, "the model's own stops as well"
    assert "losslessly" in caplog.text and str(MAX_STOP_IDS) in caplog.text


def test_nonsense_in_a_request_does_not_end_the_engine(caplog):
    table = RequestTable(1, CPU, has_thresholds=False)
    table.add(0, params(extra_args={"cospec": "perhaps"}))
    assert column(table, "is_open", 0) == [False]
    assert "losslessly" in caplog.text


def test_an_engine_that_we_do_not_support_is_refused():
    def engine(**speculative):
        known = {"num_speculative_tokens": 128} | speculative
        return types.SimpleNamespace(speculative_config=types.SimpleNamespace(**known))

    check_engine(engine(rejection_sample_method="standard"))
    with pytest.raises(ConfigError, match="drafts none"):
        check_engine(types.SimpleNamespace(speculative_config=None))
    with pytest.raises(ConfigError, match=r"rejection_sample_method .* 'block'"):
        check_engine(engine(rejection_sample_method="block"))
    with pytest.raises(ConfigError, match="use_heterogeneous_vocab"):
        check_engine(engine(use_heterogeneous_vocab=True))
    with pytest.raises(ConfigError, match="129; vLLM's sampler takes at most 128"):
        check_engine(engine(num_speculative_tokens=129))


@pytest.mark.parametrize("needs", [Needs.NOTHING, Needs.TARGET_HIDDEN, Needs.DRAFT_LOGITS])
def test_the_engine_keeps_what_the_arbiter_needs(needs):
    assert adapter(needs).needs == needs


@pytest.mark.parametrize("more", [Needs.NOTHING, Needs.TARGET_HIDDEN])
def test_the_drafts_states_are_kept_where_its_logits_are(more):
    """Found: an arbiter that asked for the states without the logits got neither."""
    assert adapter(Needs.DRAFT_HIDDEN | more).needs == Needs.DRAFT | more


def test_an_engine_of_rollouts_keeps_what_any_arbiter_may_need():
    it = replace(adapter(Needs.NOTHING), recorder=Recorder.of("hidden"))
    assert it.needs & Needs.DRAFT == Needs.DRAFT


def adapter(needs):
    arbiter = types.SimpleNamespace(name="asks", needs=needs)
    return Adapter(RowArbiter(arbiter, 4), RequestTable(1, CPU, has_thresholds=False))


def learned(features):
    policy = Policy(len(features.names), PolicyConfig(), num_hidden=features.num_hidden)
    return LearnedArbiter(policy, features)


class Letters:
    """A tokenizer whose tokens are digits."""

    def __len__(self):
        return 6

    def decode(self, ids):
        return str(ids[0])

    def convert_ids_to_tokens(self, ids):
        return [str(i) for i in ids]  # as in vLLM, whose tokenizers take no single id


def test_a_trained_arbiter_learns_the_kinds_of_the_engines_tokens():
    arbiter = learned(ScalarFeatures(torch.full((4,), 3)))
    placed = place(arbiter, CPU, 8, Letters)
    assert placed.features.kinds.tolist() == [0] * 6 + [4] * 2
    with pytest.raises(ConfigError, match="knows 4 tokens and the target has 8"):
        place(arbiter, CPU, 8, lambda: None)
    assert place(arbiter, CPU, 4, lambda: None).features.kinds.tolist() == [3] * 4
    rule = AlwaysDraft()
    assert place(rule, CPU, 8, Letters) is rule


def test_an_arbiter_with_hidden_states_rules_on_their_pair(pair):
    models = (types.SimpleNamespace(model=str(path)) for path in (TARGET, DRAFT))
    target, draft = models
    target.dtype = torch.float32
    engine = types.SimpleNamespace(
        model_config=target, speculative_config=types.SimpleNamespace(draft_model_config=draft)
    )
    arbiter = load(HIDDEN, engine)
    assert arbiter.is_bound
    placed = place(arbiter, CPU, 2048, lambda: pair.tokenizer)
    table = pair.target.get_input_embeddings().weight
    assert torch.equal(placed.features.embeddings, table)
    with pytest.raises(ArbiterError, match="hidden states of the pair that it was trained on"):
        load(OTHER_PAIRS, engine)
    assert load("gap:max_gap=1", engine).name == "gap:max_gap=1"
