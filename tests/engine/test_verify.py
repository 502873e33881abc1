"""Numbers of a block that an arbiter sees, against the same numbers picked one by one."""

from __future__ import annotations

import math

import pytest
import torch

from cospec import SamplingConfig
from cospec.engine import verify as module
from cospec.engine.verify import Verification, collect_mismatches, is_cut, trace_probs, verify
from cospec.models.cache import Output
from cospec.sampling import Chance, Warper, draw, row_generator
from cospec.types import Needs, Proposal

B, K, V, H = 5, 4, 11, 3


def test_each_mismatch_is_shown_its_own_row_and_place():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(B, K + 1, V, generator=generator)
    hidden = torch.randn(B, K + 1, H, generator=generator)
    drafted = logits[:, :-1].argmax(dim=-1)
    where = [(1, 0), (1, 2), (3, 1), (4, 3)]  # several in a row, rows without, the last place
    lengths = [4, 4, 2, 3, 4]
    for row, place in where:
        drafted[row, place] = (drafted[row, place] + 1) % V
    steps = [torch.randn(B, V, generator=generator) for _ in range(K)]
    states = [torch.randn(B, H, generator=generator) for _ in range(K)]
    is_finite = torch.ones(B, K, dtype=torch.bool)
    proposal = Proposal(drafted, torch.tensor(lengths), is_finite, steps, hidden=states)
    verified = verify(Output(logits, hidden), proposal, Chance(None, None))
    rows, places = torch.tensor(where).unbind(dim=1)
    needs = Needs.LOGITS | Needs.LOOKAHEAD | Needs.HIDDEN | Needs.BLOCK_LOG_Q
    counts = torch.arange(B)
    history = torch.stack([counts, 10 * counts, 7 * counts], dim=1)
    batch = collect_mismatches(verified, proposal, rows, places, history, needs, None)

    log_p = logits.log_softmax(dim=-1)
    for i, (row, place) in enumerate(where):
        assert batch.draft_ids[i] == drafted[row, place]
        assert batch.target_ids[i] == logits[row, place].argmax()
        assert batch.positions[i] == row + place and batch.num_overrides[i] == 10 * row
        assert batch.block_lengths[i] == lengths[row]
        earlier = sum(other == row for other, _ in where[:i])
        assert batch.num_mismatches[i] == 17 * row + earlier
        assert torch.equal(batch.target_logits[i], logits[row, place])
        assert torch.equal(batch.draft_logits[i], steps[place][row])
        assert torch.equal(batch.target_hidden[i], hidden[row, place])
        assert torch.equal(batch.target_hidden_after[i], hidden[row, place + 1])
        assert torch.equal(batch.draft_hidden[i], states[place][row])
        for j, step in enumerate(steps):
            said = step[row].log_softmax(dim=0)[drafted[row, j]]
            expected = said if j < lengths[row] else torch.tensor(0.0)
            assert torch.isclose(batch.block_log_q[i, j], expected)
        for ahead in range(K - 1):
            j = place + 1 + ahead
            is_inside = j < lengths[row]
            expected = log_p[row, j, drafted[row, j]] if is_inside else torch.tensor(0.0)
            assert torch.isclose(batch.lookahead_log_p[i, ahead], expected)
            is_match = is_inside and (row, j) not in where
            assert batch.lookahead_matches[i, ahead] == is_match


CONFIGS = [
    SamplingConfig(temperature=1.0, seed=0),
    SamplingConfig(temperature=0.0, seed=1),
    SamplingConfig(temperature=0.7, top_p=0.6, seed=2),
    SamplingConfig(temperature=1.3, top_k=3, seed=3),
    SamplingConfig(temperature=1.0, min_p=0.3, seed=4),
]


def a_block(configs: list[SamplingConfig], k: int = K) -> tuple[Output, Proposal, Chance]:
    """Random logits of both models, and what the draft draws from its own."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(B, k + 1, V, generator=generator)
    steps = [logits[:, j] + torch.randn(B, V, generator=generator) for j in range(k)]
    generators = [row_generator(config, r) for r, config in enumerate(configs)]
    chance = Chance.draw(configs, generators, K, torch.device("cpu"))
    lengths, is_finite = torch.full((B,), k), torch.ones(B, k, dtype=torch.bool)
    if not k:
        ids, q = torch.empty(B, 0, dtype=torch.int64), torch.empty(B, 0, V)
    elif chance.warper is None:
        ids, q = torch.stack(steps, dim=1).argmax(dim=-1), None
    else:
        q = chance.warper.probs(torch.stack(steps, dim=1))
        ids = draw(q, chance.numbers.draft[:, :k])
    return Output(logits, None), Proposal(ids, lengths, is_finite, steps, q), chance


@pytest.mark.parametrize("k", [K, 2, 0])
@pytest.mark.parametrize("num_places", [1, 2, 3, K])
def test_a_block_that_is_verified_in_parts_is_verified_alike(monkeypatch, num_places, k):
    """Found: of 32 rows and 64 tokens the float copies alone took gigabytes."""
    output, proposal, chance = a_block(CONFIGS, k)
    whole = verify(output, proposal, chance)
    numels, probs = [], Warper.probs

    def spied(self, logits):
        numels.append(logits.numel())
        return probs(self, logits)

    monkeypatch.setattr(Warper, "probs", spied)
    monkeypatch.setattr(module, "_MOST_LOGITS", num_places * B * V + 1)
    found = verify(output, proposal, chance)
    assert len(numels) == math.ceil((k + 1) / num_places) and max(numels) <= num_places * B * V
    for name in ("target_ids", "is_match", "is_finite", "draft_probs"):
        assert torch.equal(getattr(found, name), getattr(whole, name)), name


@pytest.mark.parametrize("most_logits", [1, 5 * V, 1 << 26])
@pytest.mark.parametrize("configs", [CONFIGS, [CONFIGS[1]] * B], ids=["sampled", "greedy"])
def test_what_is_shown_in_parts_is_the_same(monkeypatch, configs, most_logits):
    output, proposal, chance = a_block(configs)
    verified = verify(output, proposal, chance)
    rows, places = (~verified.is_match).nonzero().unbind(dim=1)
    assert len(rows) > 5
    numels, token_log_p = [], module.token_log_p

    def spied(logits, token_ids):
        numels.append(logits.numel())
        return token_log_p(logits, token_ids)

    monkeypatch.setattr(module, "_MOST_LOGITS", most_logits)
    monkeypatch.setattr(module, "token_log_p", spied)
    history = torch.zeros(B, 3, dtype=torch.int64)
    needs = Needs.LOGITS | Needs.LOOKAHEAD
    batch = collect_mismatches(verified, proposal, rows, places, history, needs, chance)
    num_rows = len(rows.unique())
    assert max(numels) <= max(most_logits, num_rows * V)
    log_p, log_q = output.logits.log_softmax(dim=-1), torch.stack(proposal.logits, dim=1)
    log_q = log_q.log_softmax(dim=-1)
    ids = batch.draft_ids, batch.target_ids
    expected = [each[rows, places, i].exp() for each in (log_p, log_q) for i in ids]
    torch.testing.assert_close(trace_probs(verified, proposal, batch), torch.stack(expected))
    for i, (row, place) in enumerate(zip(rows.tolist(), places.tolist(), strict=True)):
        for ahead, j in enumerate(range(place + 1, K)):
            said = log_p[row, j, proposal.token_ids[row, j]]
            torch.testing.assert_close(batch.lookahead_log_p[i, ahead], said)


def test_a_token_that_truncation_takes_is_cut_and_no_other():
    output, proposal, chance = a_block(CONFIGS)
    verified = verify(output, proposal, chance)
    rows, places = torch.ones(B, K).nonzero().unbind(dim=1)
    history = torch.zeros(B, 3, dtype=torch.int64)
    batch = collect_mismatches(verified, proposal, rows, places, history, Needs.NOTHING, chance)
    p = chance.warper.probs(output.logits)[rows, places, batch.draft_ids]
    found = is_cut(verified, batch, chance.warper)
    is_sampled = torch.tensor([not config.is_greedy for config in CONFIGS])[rows]
    assert torch.equal(found, (p == 0) & is_sampled)
    assert found.any() and not found.all()


def test_greedy_blocks_are_verified_without_a_copy_of_their_logits():
    """The argmax decides; bfloat16 logits are looked at as they are."""
    output, proposal, chance = a_block([CONFIGS[1]] * B)
    output = Output(output.logits.bfloat16(), None)
    found = verify(output, proposal, chance)
    assert isinstance(found, Verification) and found.draft_probs is None
    assert found.logits is output.logits
    assert torch.equal(found.target_ids, output.logits.argmax(dim=-1))
    assert torch.equal(found.is_match, found.target_ids[:, :-1] == proposal.token_ids)
