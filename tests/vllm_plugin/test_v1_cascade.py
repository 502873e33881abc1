"""The draft of vLLM's first runner reads guesses; here beside objects that look like vLLM's."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import types

import numpy as np
import pytest
import torch

from cospec.config import DecodeConfig
from cospec.drafters.cascade import Ngrams
from cospec.errors import ConfigError
from cospec.vllm_plugin.blocks import ending
from cospec.vllm_plugin.settings import Settings
from cospec.vllm_plugin.v1_cascade import Guessing
from tests.vllm_plugin.test_v1_blocks import an_engine

K, VOCAB, BLOCK, CYCLE = 12, 64, 4, 5
FIRST = 10
"""The draft counts from here to `FIRST + CYCLE - 1`, over and over."""


def following(token_id):
    return FIRST + (token_id - FIRST + 1) % CYCLE


@dataclasses.dataclass
class Metadata:
    """Looks like vLLM's CommonAttentionMetadata."""

    query_start_loc: torch.Tensor
    query_start_loc_cpu: torch.Tensor
    seq_lens: torch.Tensor
    block_table_tensor: torch.Tensor
    num_reqs: int = 0
    num_actual_tokens: int = 0
    max_query_len: int = 0
    max_seq_len: int = 0
    slot_mapping: torch.Tensor | None = None
    seq_lens_cpu_upper_bound: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    is_prefilling: torch.Tensor | None = None
    _num_computed_tokens_cache: torch.Tensor | None = None
    _token_to_req_indices_cache: torch.Tensor | None = None

    def replace(self, **new):
        return dataclasses.replace(self, **new)


class Drafter:
    """A draft with a paged cache of token ids, which checks all that it is shown.

    Args:
        texts: What each request's text is before the block, its last token included.
    """

    def __init__(self, texts):
        self.device, self.block_size, self.vllm_config = torch.device("cpu"), BLOCK, None
        self.texts, self.table = texts, torch.randperm(80)[: len(texts) * 20].view(len(texts), 20)
        self.cache = torch.full((80 * BLOCK,), -1)
        self.input_ids, self.positions = torch.zeros(64, dtype=torch.int32), torch.zeros(64)
        self.num_forwards, self._last_draft_probs = 0, None

    def propose(self, num_speculative_tokens, sampling_metadata, **_):
        """Read the texts, and draft one token of each."""
        assert num_speculative_tokens == 1
        self.num_speculative_tokens = 1
        for row, text in enumerate(self.texts):
            self.cache[self.slots(row, len(text))] = torch.tensor(text)
        last = torch.tensor([text[-1] for text in self.texts])
        ids, shown = self._sample_draft_tokens(last, sampling_metadata)
        self._last_draft_probs = shown[:, None]
        return ids[:, None]

    def slots(self, row, length):
        places = torch.arange(length)
        return self.table[row, places // BLOCK] * BLOCK + places % BLOCK

    def _sample_draft_tokens(self, states, sampling_metadata):
        ids = torch.tensor([following(one) for one in states.tolist()])
        logits = torch.zeros(len(ids), VOCAB)
        return ids, torch.scatter(logits, 1, ids[:, None], 5.0)

    def _set_positions(self, num_tokens, positions):
        self.positions[:num_tokens] = positions.float()

    def _determine_batch_execution_and_padding(self, num_tokens):
        return None, num_tokens + 3, None

    def build_model_inputs_first_pass(self, num_tokens, padded, _):
        assert num_tokens == self.metadata.num_actual_tokens
        return {"input_ids": self.input_ids[:padded]}, padded

    def build_per_group_and_layer_attn_metadata(self, metadata):
        self.metadata = metadata
        return None, {}

    def _get_slot_mapping(self, padded, slots):
        return slots

    def model(self, input_ids):
        """Store the tokens and return them; each has to see its whole text before it."""
        self.num_forwards += 1
        at, end = self.metadata, self.metadata.query_start_loc.tolist()
        assert end == at.query_start_loc_cpu.tolist()
        assert end[-1] == at.num_actual_tokens
        for i, table in enumerate(at.block_table_tensor):
            ids, slots = input_ids[end[i] : end[i + 1]].long(), at.slot_mapping[end[i] : end[i + 1]]
            length = int(at.seq_lens[i])
            row = next(r for r in range(len(self.texts)) if torch.equal(self.table[r], table))
            first = length - len(ids)
            assert self.positions[end[i] : end[i + 1]].tolist() == list(range(first, length))
            assert torch.equal(slots, self.slots(row, length)[first:])
            text = self.written(row, first + 1)
            assert self.cache[self.slots(row, first)].tolist() == text[:first]
            assert int(ids[0]) == text[first]
            self.cache[slots] = ids
        return input_ids

    def written(self, row, length):
        """The beginning of what the draft writes after a request's text."""
        text = list(self.texts[row])
        while len(text) < length:
            text.append(following(text[-1]))
        return text[:length]


@pytest.fixture
def context(monkeypatch):
    """As if vLLM were installed, as far as this needs it."""
    name = "vllm.forward_context"
    module = types.ModuleType(name)
    module.set_forward_context = lambda *_, **__: contextlib.nullcontext()
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, name, module)


def a_step(texts, num_prompt=6, rejected=None, **options):
    """A runner's step whose texts end in these, and what drafts it.

    Each request was at four tokens less; its last ones are read in this step, with some rejected.
    """
    torch.manual_seed(0)
    rejected = rejected or [0] * len(texts)
    stored = np.full((len(texts), 64), -1)
    read, lengths = [], []
    for row, text in enumerate(texts):
        known = len(text) - 4
        stored[row, :known] = text[:known]
        read += text[known:-1] + [1] * rejected[row]
        lengths.append(3 + rejected[row])
    ends = torch.tensor([0, *np.cumsum(lengths)])
    drafter = Drafter(texts)
    names = [str(row) for row in range(len(texts))]
    runner = types.SimpleNamespace(
        drafter=drafter,
        requests=dict.fromkeys(names),
        model_config=types.SimpleNamespace(get_vocab_size=lambda: VOCAB),
        input_batch=types.SimpleNamespace(
            req_ids=names, num_prompt_tokens=[num_prompt] * len(texts), token_ids_cpu=stored
        ),
    )
    given = {
        "num_speculative_tokens": K,
        "target_token_ids": torch.tensor(read),
        "next_token_ids": torch.tensor([text[-1] for text in texts]),
        "num_rejected_tokens_gpu": torch.tensor(rejected) if any(rejected) else None,
        "sampling_metadata": None,
        "common_attn_metadata": Metadata(
            query_start_loc=ends,
            query_start_loc_cpu=ends,
            seq_lens=torch.tensor([len(t) - 1 + n for t, n in zip(texts, rejected, strict=True)]),
            block_table_tensor=drafter.table,
        ),
    }
    return Guessing(runner, DecodeConfig(num_speculative_tokens=K, **options)), drafter, given


def drafted(guessing, drafter, given, *, bounds=None, stops=(), is_open=None):
    """Blocks of a step."""
    num = len(drafter.texts)
    stop_ids = torch.tensor([[*stops, -1]] * num)
    ids, lengths = guessing.draft(
        drafter.propose,
        drafter._sample_draft_tokens,
        given,
        bounds or [(K, 0.0)] * num,
        stop_ids,
        torch.tensor(is_open or [True] * num),
    )
    assert drafter._last_draft_probs.shape == (*ids.shape, VOCAB)
    blocks = [row[:length] for row, length in zip(ids.tolist(), lengths.tolist(), strict=True)]
    for block, shown in zip(blocks, drafter._last_draft_probs, strict=True):
        assert shown[: len(block)].argmax(dim=1).tolist() == block
    return blocks


COUNTED = [FIRST + i % CYCLE for i in range(9)]
"""A text that repeats itself, so that guesses from it are right."""


def wanted(drafter, row, length=K):
    text = drafter.texts[row]
    return drafter.written(row, len(text) + length)[len(text) :]


@pytest.mark.usefixtures("context")
def test_blocks_are_those_of_one_token_a_forward_in_fewer_forwards() -> None:
    new = [30, 31, 32, 33, 34, 35, 36, 37, FIRST]  # nothing to guess from
    guessing, drafter, given = a_step([COUNTED, new, COUNTED[:-1]], rejected=[0, 2, 1])
    blocks = drafted(guessing, drafter, given)
    assert blocks == [wanted(drafter, row) for row in range(3)]
    assert drafter.num_forwards < K - 1, "the last one is written without guesses at first"


@pytest.mark.usefixtures("context")
def test_a_wrong_guess_costs_nothing_but_its_place() -> None:
    text = [*COUNTED[:3], 50, 51, *COUNTED[:3], 50, 51, FIRST, FIRST + 1, FIRST + 2]
    guessing, drafter, given = a_step([text])
    assert drafted(guessing, drafter, given) == [wanted(drafter, 0)]
    assert drafter.num_forwards <= K


@pytest.mark.usefixtures("context")
def test_each_block_ends_where_it_is_told_to() -> None:
    guessing, drafter, given = a_step([COUNTED, COUNTED[:-1]], end_blocks_at_stop=True)
    blocks = drafted(guessing, drafter, given, stops=[FIRST + 2])
    assert [block[-1] for block in blocks] == [FIRST + 2] * 2
    assert [len(block) for block in blocks] == [4, 5]
    guessing, drafter, given = a_step([COUNTED] * 2)
    blocks = drafted(guessing, drafter, given, bounds=[(3, 0.0), (K, 0.9)])
    assert [len(block) for block in blocks] == [3, 1], "by number, and by confidence"


@pytest.mark.usefixtures("context")
def test_a_request_that_wants_no_draft_is_left_out() -> None:
    guessing, drafter, given = a_step([COUNTED, COUNTED])
    assert drafted(guessing, drafter, given, is_open=[False, True]) == [[], wanted(drafter, 1)]


@pytest.mark.usefixtures("context")
def test_an_answer_that_is_written_again_is_guessed_from_the_last_one() -> None:
    text = [40, 41, 42, 43, 44, 45, FIRST]
    guessing, drafter, given = a_step([text], end_blocks_at_stop=True)

    def num_forwards():
        before, guessing._ngrams = drafter.num_forwards, Ngrams()
        assert drafted(guessing, drafter, given, stops=[1]) == [wanted(drafter, 0)]
        return drafter.num_forwards - before

    anew = num_forwards()
    assert num_forwards() < anew
    guessing._runner.requests = {"1": None}
    guessing._runner.input_batch.req_ids = ["1"]
    assert num_forwards() == anew, "another request"
    assert list(guessing._answers) == ["1"], "the first one has ended"


@pytest.mark.usefixtures("context")
def test_an_answer_is_kept_with_the_text_before_it_and_only_if_it_is_whole() -> None:
    text = [40, 41, 42, 43, 44, 45, FIRST]
    guessing, drafter, given = a_step([text, text], end_blocks_at_stop=True)
    whole, short = drafted(guessing, drafter, given, bounds=[(K, 0.0), (K - 1, 0.0)], stops=[1])
    assert guessing._answers == {"0": [FIRST, *whole]}
    assert len(short) == K - 1


@pytest.mark.usefixtures("context")
def test_tokens_drafted_for_one_request_are_guessed_for_the_next() -> None:
    guessing, drafter, given = a_step([[40, 41, 42, 43, 44, 45, FIRST]])
    drafted(guessing, drafter, given)
    anew = drafter.num_forwards
    drafted(guessing, drafter, given)
    assert drafter.num_forwards - anew < anew


@pytest.mark.usefixtures("context")
def test_no_block_is_longer_than_the_load_allows_and_the_drafter_is_told() -> None:
    guessing, drafter, given = a_step([COUNTED])
    given["num_speculative_tokens"] = 5
    assert drafted(guessing, drafter, given) == [wanted(drafter, 0)[:5]]
    assert drafter.num_speculative_tokens == 5, "the pass over the step's tokens had set it to 1"


@pytest.mark.usefixtures("context")
def test_a_token_without_a_probability_ends_its_block() -> None:
    guessing, drafter, given = a_step([COUNTED])
    sample = drafter._sample_draft_tokens

    def broken(states, sampling_metadata):
        ids, shown = sample(states, sampling_metadata)
        return ids, shown + float("nan")

    drafter._sample_draft_tokens = broken
    _, lengths = guessing.draft(
        drafter.propose, broken, given, [(K, 0.5)], torch.tensor([[-1]]), torch.tensor([True])
    )
    assert lengths.tolist() == [1]


def test_guesses_need_an_engine_that_waits_for_its_drafts() -> None:
    found = ending(Settings("gap", cascade=True), an_engine())
    assert found.cascade
    assert not found.ends_blocks_early
    with pytest.raises(ConfigError, match=r"with async scheduling .* cascade True"):
        ending(Settings("gap", cascade=True), an_engine(is_async=True))
    with pytest.raises(ConfigError, match=r"cascade of .* is 1; it must be true or false"):
        Settings("gap", cascade=1)
