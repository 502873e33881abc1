"""What an arbiter is shown of a block, against the same numbers picked one by one."""

from __future__ import annotations

import torch

from cospec.engine.verify import collect_mismatches, verify
from cospec.models.cache import Output
from cospec.sampling import Chance
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
