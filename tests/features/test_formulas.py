"""The scalar features, against a mismatch worked by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from cospec import Engine, ModelPair, SamplingConfig
from cospec.arbiters import AlwaysTarget
from cospec.arbiters.observed import Observed
from cospec.errors import ConfigError
from cospec.features import (
    FLOOR,
    KINDS,
    SCALAR_NAMES,
    HiddenFeatures,
    ScalarFeatures,
    kind_of,
    make_features,
    spec_hash,
    token_kinds,
)
from cospec.types import (
    Completion,
    FinishReason,
    MismatchBatch,
    MismatchTrace,
    Needs,
    Origin,
    Stats,
    StepTrace,
)
from tests.conftest import VOCAB, family_pair, random_model, some_prompts

P = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25]])
Q = torch.tensor([[0.125, 0.75, 0.0625, 0.0625], [0.1, 0.2, 0.3, 0.4]])


def batch() -> MismatchBatch:
    """The draft wants 1 and then 3, the target 0; the first of a block of 4 and its last."""
    return MismatchBatch(
        rows=torch.tensor([0, 1]),
        block_positions=torch.tensor([0, 3]),
        positions=torch.tensor([10, 0]),
        num_overrides=torch.tensor([2, 0]),
        num_mismatches=torch.tensor([3, 0]),
        block_lengths=torch.tensor([4, 4]),
        draft_ids=torch.tensor([1, 3]),
        target_ids=torch.tensor([0, 0]),
        target_logits=P.log(),
        draft_logits=Q.log() + 3.0,
        lookahead_matches=torch.tensor([[True, True, False], [False, False, False]]),
        lookahead_log_p=torch.tensor([[-0.1, -0.2, -100.0], [0.0, 0.0, 0.0]]),
        block_log_q=torch.tensor([[-0.1, -0.2, -0.4, -100.0], [0.0, -0.6, -0.2, -0.4]]),
    )


def values(row: int) -> dict[str, float]:
    features = ScalarFeatures(kinds=torch.tensor([0, 1, 2, 3]))(batch())
    assert features.shape == (2, len(SCALAR_NAMES)) and features.dtype == torch.float32
    return dict(zip(SCALAR_NAMES, features[row].tolist(), strict=True))


def test_the_features_of_a_mismatch_are_those_worked_by_hand() -> None:
    expected = {
        "log_p_draft": math.log(0.25),
        "log_p_target": math.log(0.5),
        "log_q_draft": math.log(0.75),
        "log_q_target": math.log(0.125),
        "gap_p": math.log(2),
        "gap_q": math.log(6),
        "log_rank_p_draft": math.log(2),
        "log_rank_q_target": math.log(2),
        "entropy_p": 1.75 * math.log(2),
        "margin_p": math.log(2),
        "margin_q": math.log(6),
        "kl_p_q": 0.5 * math.log(4) + 0.25 * math.log(1 / 3) + 0.25 * math.log(2),
        "overlap": 0.125 + 0.25 + 0.125,
        "lookahead_run": 2,
        "lookahead_share": 2 / 3,
        "lookahead_log_p": -0.3 + FLOOR,
        "lookahead_min_log_p": FLOOR,
        "lookahead_tokens": 3,
        "lookahead_mean_log_p": (-0.3 + FLOOR) / 3,
        "lookahead_mismatches": 1,
        "block_mean_log_q": (-0.7 + FLOOR) / 4,
        "block_min_log_q": FLOOR,
        "block_position": 0,
        "log_position": math.log(11),
        "log_num_overrides": math.log(3),
        "draft_punctuation": 1,
        "draft_digit": 0,
        "target_digit": 1,
    }
    found = values(0)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


def test_nothing_lies_ahead_of_the_last_place_of_a_block() -> None:
    found = values(1)
    ahead = [found[name] for name in SCALAR_NAMES if name.startswith("lookahead")]
    assert ahead == [0] * 7


def test_impossible_tokens_give_finite_features() -> None:
    logits = torch.tensor([[0.0, float("-inf"), -1.0, -2.0]] * 2)
    one = batch()
    cut = MismatchBatch(
        **{f: getattr(one, f) for f in one.__dataclass_fields__}
        | {"target_logits": logits, "draft_logits": logits.flip(1)}
    )
    assert ScalarFeatures(torch.zeros(4, dtype=torch.int64))(cut).isfinite().all()


def test_all_at_once_they_are_what_they_are_one_by_one() -> None:
    """The slow twin: one mismatch, one model and one formula at a time, in double precision."""
    generator = torch.Generator().manual_seed(0)
    num, vocab_size = 7, 501
    logits = [4 * torch.randn(num, vocab_size, generator=generator) for _ in "pq"]
    ids = torch.randint(0, vocab_size, (2, num), generator=generator)
    nothing = torch.zeros(num, 0)
    zeros = torch.zeros(num, dtype=torch.int64)
    it = MismatchBatch(
        *(*[zeros] * 5, zeros + 1, *ids, *logits),
        lookahead_matches=nothing.bool(),
        lookahead_log_p=nothing,
        block_log_q=torch.zeros(num, 1),
    )
    found = ScalarFeatures(torch.zeros(vocab_size, dtype=torch.int64))(it)
    for row in range(num):
        log_p, log_q = (x[row].double().log_softmax(0) for x in logits)
        p, q = log_p.exp(), log_q.exp()
        log_p, log_q = log_p.clamp(min=FLOOR), log_q.clamp(min=FLOOR)
        d, t = ids[:, row].tolist()
        top_p, top_q = (x.sort(descending=True).values for x in (log_p, log_q))
        expected = [
            *(log_p[d], log_p[t], log_q[d], log_q[t], log_p[t] - log_p[d], log_q[d] - log_q[t]),
            *((log_p > log_p[d]).sum().log1p(), (log_q > log_q[t]).sum().log1p()),
            *(-(p * log_p).sum(), -(q * log_q).sum()),
            *(top_p[0] - top_p[1], top_q[0] - top_q[1]),
            *((p * (log_p - log_q)).sum(), (q * (log_q - log_p)).sum()),
            torch.minimum(p, q).sum(),
        ]
        expected = torch.stack([value.float() for value in expected])
        torch.testing.assert_close(found[row, : len(expected)], expected, rtol=2e-5, atol=2e-5)


def test_hidden_features_are_the_scalars_the_states_and_the_embeddings_of_both_tokens() -> None:
    """Each state is recomputed from scratch; the two models have states of different widths."""
    target = random_model("opt", word_embed_proj_dim=24)  # which is what its head reads
    pair = ModelPair(target, random_model("llama", seed=1, hidden_size=16))
    features = make_features("hidden", pair)
    assert features.hidden_sizes == (24, 16) and features.num_hidden == 4 * 24 + 16
    assert len(set(features.names)) == len(features.names) == len(SCALAR_NAMES) + 112
    assert features.names[-1] == "target_embedding_23"
    engine = Engine(pair, Observed(AlwaysTarget(), features), num_speculative_tokens=3)
    (done,) = engine.generate(some_prompts(1), SamplingConfig(max_new_tokens=8))
    head = {name: getattr(pair, name).get_output_embeddings() for name in ("target", "draft")}

    def state(name: str, ids: list[int]) -> torch.Tensor:
        """The last input of a model's head."""
        seen = []
        hook = head[name].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, -1]))
        getattr(pair, name)(input_ids=torch.tensor([ids]), use_cache=False)
        hook.remove()
        return seen[0]

    mismatches = [m for step in done.trace for m in step.mismatches if m.is_reached]
    assert mismatches
    for m in mismatches:
        text = [*done.prompt_ids, *done.token_ids[: m.position]]
        expected = [state("target", text), state("target", [*text, m.draft_id])]
        expected.append(state("draft", text))
        expected += target.get_input_embeddings().weight[[m.draft_id, m.target_id]]
        found = m.features
        assert found.shape == (len(features.names),)
        torch.testing.assert_close(found[-112:], torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_the_hidden_spec_is_bound_to_the_widths() -> None:
    kinds = torch.zeros(VOCAB, dtype=torch.int64)
    specs = [HiddenFeatures(kinds, sizes) for sizes in [(4, 2), (2, 4), (4, 3), (4, 2)]]
    specs += [HiddenFeatures(kinds, (4, 2), torch.zeros(VOCAB, width)) for width in (4, 2)]
    hashes = [spec.to_dict()["hash"] for spec in [*specs, ScalarFeatures(kinds)]]
    assert len(set(hashes)) == 6 and hashes[0] == hashes[3]
    assert Needs.HIDDEN in specs[0].needs
    assert not Needs.HIDDEN & ScalarFeatures(kinds).needs


def test_a_spec_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown features 'hiden'; did you mean 'hidden'"):
        make_features("hiden", family_pair("llama"))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("7", "digit"),
        (" 12", "digit"),
        (" +", "punctuation"),
        ("€", "punctuation"),
        ("\n", "space"),
        ("", "space"),
        (" plums", "word"),
        ("ums", "piece"),
        (" 3rd", "word"),
        ("é", "piece"),
    ],
)
def test_tokens_are_told_apart_by_kind(text: str, kind: str) -> None:
    assert kind_of(text) == kind and kind in KINDS


def test_the_spec_is_known_by_a_hash_that_orders_and_names_change() -> None:
    assert spec_hash(SCALAR_NAMES) == spec_hash(tuple(SCALAR_NAMES))
    assert spec_hash(SCALAR_NAMES) != spec_hash(SCALAR_NAMES[::-1])
    assert len(set(SCALAR_NAMES)) == len(SCALAR_NAMES)


def test_a_trace_writes_its_features_as_numbers() -> None:
    seen = torch.tensor([0.5, -1.5])
    numbers = dict(p_draft_id=0.1, p_target_id=0.2, q_draft_id=0.3, q_target_id=0.4, score=None)
    ruled = dict(keep_draft=True, is_reached=True, is_open=True)
    mismatch = MismatchTrace(0, 0, 1, 2, **numbers, **ruled, features=seen)
    steps = [StepTrace(0, 1, 0, 1, (mismatch,))]
    done = Completion(0, [1], [1], "x", [Origin.OVERRIDE], FinishReason.LENGTH, Stats(), steps)
    (step,) = json.loads(json.dumps(done.to_dict()))["trace"]
    assert step["mismatches"][0]["features"] == [0.5, -1.5]


def test_a_leading_space_of_sentencepiece_makes_a_word() -> None:
    """Found: its decoder drops the space of a single token, so that nothing was a word."""
    vocab = {"<unk>": 0, "\u2581the": 1, "the": 2, "\u25817": 3, "\u2581": 4}
    core = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    core.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert tokenizer.decode([1]) == "the"
    found = [KINDS[kind] for kind in token_kinds(tokenizer, 6)]
    assert found[1:] == ["word", "piece", "digit", "space", "piece"]
