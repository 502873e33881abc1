"""A draft with another tokenizer: it speaks the target's ids, and lossless decoding stays exact."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cospec import Engine, ModelPair, SamplingConfig, load_arbiter
from cospec.errors import TokenizerMismatchError
from cospec.models import translate
from cospec.models.load import load_model
from cospec.types import Origin
from tests.conftest import VOCAB, random_model

PROMPTS = ["the hen and the stone", "on the other hand"]


@pytest.fixture(scope="module")
def other() -> PreTrainedTokenizerFast:
    """A tokenizer with fewer merges than the target's, in another order."""
    letters = ["Ġ", ".", ",", "Ċ", *reversed("abcdefghijklmnopqrstuvwxyz")]
    merges = [("Ġ", "t"), ("t", "h"), ("th", "e"), ("a", "n"), ("an", "d"), ("q", "u")]
    tokens = ["<eos>", "<unk>", *letters, *map("".join, merges)]
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folders(request, tmp_path_factory, tokenizer, other):
    """Target and draft as checkpoints; the draft is the target over the other tokenizer's ids.

    Where its two matrices are tied it has only the target's embeddings, and agrees less.
    """
    target = random_model("llama")
    draft = random_model("llama", vocab_size=len(other), tie_word_embeddings=request.param)
    ours = {theirs: i for i, theirs in translate.shared_ids(other, tokenizer).items()}
    rows = [ours.get(i, 0) for i in range(len(other))]
    weights = {
        name: weight[rows] if len(weight) == VOCAB else weight
        for name, weight in target.state_dict().items()
    }
    draft.load_state_dict(weights)
    paths = []
    for model, theirs in ((target, tokenizer), (draft, other)):
        paths.append(tmp_path_factory.mktemp("model"))
        model.save_pretrained(paths[-1])
        theirs.save_pretrained(paths[-1])
    return paths


@pytest.fixture(scope="module")
def pair(folders):
    return ModelPair.from_pretrained(*folders, allow_different_tokenizers=True)


def texts(engine, sampling):
    return [completion.token_ids for completion in engine.generate(PROMPTS, sampling)]


def test_it_is_refused_unless_it_is_asked_for(folders):
    with pytest.raises(TokenizerMismatchError, match="--allow-different-tokenizers"):
        ModelPair.from_pretrained(*folders)


def test_an_8_bit_draft_with_another_tokenizer_is_lossless_too(folders):
    pair = ModelPair.from_pretrained(
        *folders, allow_different_tokenizers=True, draft_quantization="int8"
    )
    exact = SamplingConfig(max_new_tokens=40)
    lossless = Engine(pair, load_arbiter("lossless"), num_speculative_tokens=3)
    assert texts(lossless, exact) == texts(Engine.target_only(pair), exact)
    assert pair.fingerprint.endswith("-int8")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_lossless_decoding_is_the_targets_own(pair, temperature, request):
    exact = SamplingConfig(max_new_tokens=40)
    lossless = Engine(pair, load_arbiter("lossless"), num_speculative_tokens=3, batch_size=1000)
    if not temperature:
        found = lossless.generate(PROMPTS, exact)
        assert [c.token_ids for c in found] == texts(Engine.target_only(pair), exact)
        if request.node.callspec.params["folders"] is False:
            assert all(c.stats.num_strict_accepts for c in found), "drafts stood"
    else:  # the first token's law is p, whatever the draft proposes
        many = SamplingConfig(max_new_tokens=1, temperature=temperature, seed=3)
        drawn = [c.token_ids[0] for c in lossless.generate(PROMPTS[:1] * 2000, many)]
        ids = torch.tensor([pair.tokenizer(PROMPTS[0])["input_ids"]])
        p = (pair.target(input_ids=ids).logits[0, -1] / temperature).softmax(dim=-1)
        share = torch.bincount(torch.tensor(drawn), minlength=VOCAB) / len(drawn)
        # Five standard deviations a token: false alarms below 1 in 10,000 over 61 tokens.
        assert ((share - p).abs() <= 5 * (p * (1 - p) / len(drawn)).sqrt() + 1e-3).all()


def test_a_padding_token_beyond_the_targets_vocabulary_is_no_matter(folders, monkeypatch):
    draft = load_model(folders[1], device="cpu")
    draft.get_input_embeddings().padding_idx = draft.config.vocab_size - 1
    models = [load_model(folders[0], device="cpu"), draft]
    monkeypatch.setattr("cospec.models.pair._load", lambda *_, **__: models)
    pair = ModelPair.from_pretrained(*folders, allow_different_tokenizers=True)
    assert pair.draft.get_input_embeddings().padding_idx is None


def test_only_shared_tokens_are_drafted(pair, tokenizer, other):
    shared = translate.shared_ids(other, tokenizer)
    assert 30 < len(shared) < VOCAB - 5
    engine = Engine(pair, load_arbiter("always_draft"), num_speculative_tokens=3)
    for found in engine.generate(PROMPTS, SamplingConfig(max_new_tokens=40)):
        drafted = [
            token
            for token, origin in zip(found.token_ids, found.origins, strict=True)
            if origin in (Origin.MATCH, Origin.OVERRIDE)
        ]
        assert drafted and set(drafted) <= shared.keys()


def test_on_shared_tokens_the_draft_says_what_it_said_before(pair, folders, tokenizer, other):
    draft = ModelPair.from_pretrained(folders[1], folders[1]).target
    shared = translate.shared_ids(other, tokenizer)
    some = list(shared)[:12]
    before = draft(input_ids=torch.tensor([[shared[i] for i in some]])).logits[0]
    after = pair.draft(input_ids=torch.tensor([some])).logits[0]
    theirs = [shared[i] for i in shared]
    assert after.shape[-1] == VOCAB
    assert torch.allclose(after[:, list(shared)], before[:, theirs], atol=1e-5)
    others = [i for i in range(VOCAB) if i not in shared]
    assert after.softmax(dim=-1)[:, others].max() == 0


def test_a_token_that_the_draft_lacks_is_read_as_what_spells_it(pair, folders, tokenizer, other):
    draft = ModelPair.from_pretrained(folders[1], folders[1]).target
    token = tokenizer.convert_tokens_to_ids("Ġand")
    pieces = other(" and", add_special_tokens=False)["input_ids"]
    assert len(pieces) == 2
    mean = draft.get_input_embeddings().weight[pieces].mean(dim=0)
    assert torch.allclose(pair.draft.get_input_embeddings().weight[token], mean)


def test_the_note_tells_how_much_is_shared_and_warns_where_that_is_too_little(pair):
    (note,) = [n for n in pair.notes if "tokenize differently" in n]
    assert "% of the target's tokens" in note
    assert "too little" not in translate._note(0.8, translate.POOR)
    assert "too little to be fast" in translate._note(0.8, translate.POOR - 0.01)


class Vocabulary:
    def __init__(self, *tokens):
        self.tokens = tokens
        self.all_special_ids = [0]
        self.bos_token_id = self.eos_token_id = self.pad_token_id = self.unk_token_id = None

    def get_vocab(self):
        return {token: i for i, token in enumerate(self.tokens)}


def test_kinds_of_tokenizers_spell_the_same_bytes_alike():
    pieces = Vocabulary("<s>", "▁the", "▁", "<0x0A>", "é", "the", "▁<s>")
    byte_level = Vocabulary("<s>", "Ġthe", "Ċ", "Ã©", "Ġ", "<0x0A>", "the")
    found = translate.shared_ids(pieces, byte_level)
    names = {byte_level.tokens[a]: pieces.tokens[b] for a, b in found.items()}
    assert names == {
        "<s>": "<s>", "Ġthe": "▁the", "Ċ": "<0x0A>", "Ã©": "é", "Ġ": "▁", "the": "the",
    }  # fmt: skip


@pytest.mark.parametrize("order", [1, -1])
def test_a_byte_token_gives_way_to_a_plain_one_of_the_same_bytes(order):
    """Found: <0x2E> was drafted for a full stop, which no target writes so."""
    pieces = Vocabulary("<s>", *["▁", "<0x2E>", ".", "<0x0A>"][::order])
    byte_level = Vocabulary("<s>", "Ġ", ".", "Ċ")
    for theirs, ours in ((pieces, byte_level), (byte_level, pieces)):
        found = translate.shared_ids(theirs, ours)
        names = {(theirs.tokens[b], ours.tokens[a]) for a, b in found.items()}
        assert {frozenset(one) for one in names} == {
            frozenset(one) for one in (("<s>",), ("▁", "Ġ"), (".",), ("<0x0A>", "Ċ"))
        }


def test_a_token_beyond_the_drafts_matrix_is_not_shared(tokenizer, other):
    """Found: an IndexError where a tokenizer has a token more than its model."""
    draft = random_model("llama", vocab_size=len(other) - 2)  # without "and" and "qu"
    assert len(other) - 2 in translate.shared_ids(other, tokenizer).values()
    translate.translate(draft, other, tokenizer, VOCAB, PROMPTS)
    assert draft.get_input_embeddings().weight.shape[0] == VOCAB


@pytest.mark.parametrize("shared", ["pad_token_id", "unk_token_id"])
def test_a_target_that_ends_with_its_padding_ends_with_the_drafts_end(shared):
    """Found: the draft's row of padding was read as the end, and the draft alone never ended."""
    theirs, ours = Vocabulary("<pad>", "</s>", "the"), Vocabulary("<end>", "the")
    theirs.eos_token_id, ours.eos_token_id = 1, 0
    setattr(theirs, shared, 0)
    setattr(ours, shared, 0)
    assert translate.shared_ids(theirs, ours) == {0: 1, 1: 2}
