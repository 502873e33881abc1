"""Pairs: tokenizers compared by what ids stand for, checkpoints loaded, models probed."""

from __future__ import annotations

import copy
import functools
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, processors
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from cospec import Engine, SamplingConfig
from cospec.arbiters import AlwaysTarget
from cospec.errors import (
    CheckpointError,
    ConfigError,
    PairError,
    PromptError,
    TokenizerMismatchError,
    UnsupportedModelError,
)
from cospec.models import ModelPair
from cospec.models.compare import compare_tokenizers
from cospec.models.probe import probe
from tests.conftest import EOS, VOCAB, disturbed, random_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SAMPLING = SamplingConfig(max_new_tokens=12, ignore_eos=True)
WEIGHTS = "model.safetensors"


def rebuilt(
    tokenizer: PreTrainedTokenizerFast, edit: Callable[[dict[str, Any]], None] = lambda _: None
) -> PreTrainedTokenizerFast:
    """A copy of `tokenizer`, with `edit` applied to its model's JSON (vocab and merges)."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    edit(backend["model"])
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)),
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


# --- tokenizers --------------------------------------------------------------------------------


def test_equal_tokenizers_need_no_note(tokenizer):
    assert compare_tokenizers(tokenizer, tokenizer) == []
    assert compare_tokenizers(tokenizer, rebuilt(tokenizer)) == []


def test_an_id_of_two_strings_is_refused_and_named(tokenizer):
    """'q' and 'z' change places: the lower of the two ids is named with both strings."""

    def swap(model: dict[str, Any]) -> None:
        vocab = model["vocab"]
        vocab["q"], vocab["z"] = vocab["z"], vocab["q"]

    lower = tokenizer.convert_tokens_to_ids("q")
    sentence = f"id {lower} is 'z' in the draft and 'q' in the target; pass a pair that shares"
    with pytest.raises(TokenizerMismatchError, match=sentence) as caught:
        compare_tokenizers(tokenizer, rebuilt(tokenizer, swap))
    assert isinstance(caught.value, PairError) and isinstance(caught.value, ValueError)


def test_one_renamed_token_is_refused(tokenizer):
    def rename(model: dict[str, Any]) -> None:
        model["vocab"]["QQ"] = model["vocab"].pop("Ĥ")

    with pytest.raises(TokenizerMismatchError, match="is 'QQ' in the draft and 'Ĥ' in the target"):
        compare_tokenizers(tokenizer, rebuilt(tokenizer, rename))


@pytest.mark.parametrize("who", ["draft", "target"])
def test_tokens_that_only_one_has_are_noted(tokenizer, who):
    wider = rebuilt(tokenizer)
    wider.add_tokens(["<tool>", "<image>"], special_tokens=True)
    pair = (tokenizer, wider) if who == "draft" else (wider, tokenizer)
    (note,) = compare_tokenizers(*pair)
    assert note.startswith(f"only the {who} has 2 tokens, such as ")
    assert "'<tool>'" in note and "'<image>'" in note


def test_other_merges_of_the_same_vocabulary_are_refused(tokenizer):
    def drop(model: dict[str, Any]) -> None:
        model["merges"] = [merge for merge in model["merges"] if merge not in ("t h", ["t", "h"])]

    draft = rebuilt(tokenizer, drop)
    assert draft.get_vocab() == tokenizer.get_vocab()
    assert draft("the")["input_ids"] != tokenizer("the")["input_ids"]
    with pytest.raises(TokenizerMismatchError, match=r"split .* differently.*shares its merges"):
        compare_tokenizers(tokenizer, draft)


def test_another_end_of_sequence_token_is_noted(tokenizer):
    draft = rebuilt(tokenizer)
    draft.eos_token = "<b>"
    assert compare_tokenizers(tokenizer, draft) == [
        "the draft has another eos_token ('<b>' against '<eos>'); the target's is used"
    ]


def test_another_chat_template_is_noted_without_being_shown(tokenizer):
    draft = rebuilt(tokenizer)
    draft.chat_template = "{{ messages }}"
    assert compare_tokenizers(tokenizer, draft) == [
        "the draft has another chat_template; the target's is used"
    ]


def test_comparing_reads_each_vocabulary_a_few_times_only(tokenizer, monkeypatch):
    """Found: the draft's vocabulary was built anew for each of the target's tokens, which takes
    hours where there are 150,000 of them.
    """
    draft, calls = rebuilt(tokenizer), []
    vocabulary = draft.get_vocab()
    monkeypatch.setattr(draft, "get_vocab", lambda: calls.append(1) or dict(vocabulary))
    compare_tokenizers(tokenizer, draft)
    assert 1 <= len(calls) <= 4


def test_special_tokens_without_a_role_are_special_too(llama_pair, tokenizer):
    """Found: as a stop string such a token (`<|eom_id|>`) was sought in a text that hides it."""
    wider = rebuilt(tokenizer)
    wider.backend_tokenizer.add_special_tokens([AddedToken("<eom>", special=True)])
    wider.add_tokens(["<tool>"])
    assert wider.decode([VOCAB, VOCAB + 1], skip_special_tokens=True) == "<tool>"
    found = ModelPair(llama_pair.target, llama_pair.draft, wider).special_token_ids
    assert found["<eom>"] == VOCAB and found["<eos>"] == EOS
    assert "<tool>" not in found and "<eom>" not in wider.all_special_tokens


# --- checkpoints -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer) -> Path:
    """A folder with a target and a draft, to be copied before it is harmed."""
    home = tmp_path_factory.mktemp("pair")
    target = random_model("llama")
    for name, model in (("target", target), ("draft", disturbed(target, 0.12))):
        model.save_pretrained(home / name)
        tokenizer.save_pretrained(home / name)
    return home


@pytest.fixture
def folders(saved, tmp_path) -> tuple[Path, Path]:
    """Copies of the saved target and draft that a test may harm."""
    for path in saved.glob("*/*"):
        copied = tmp_path / path.relative_to(saved)
        copied.parent.mkdir(exist_ok=True)
        copied.write_bytes(path.read_bytes())
    return tmp_path / "target", tmp_path / "draft"


def load(*folders: Path | str, **settings: Any) -> ModelPair:
    return ModelPair.from_pretrained(*folders, **{"device": "cpu"} | settings)


def test_a_pair_from_folders_decodes_like_the_one_that_was_saved(saved, tokenizer):
    pair = load(saved / "target", str(saved / "draft"))
    assert pair.notes == ()
    assert pair.eos_token_ids == {EOS}
    assert pair.tokenizer.get_vocab() == tokenizer.get_vocab()
    for model in (pair.target, pair.draft):
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        assert model.dtype == torch.float32 and model.device.type == "cpu"
    target = random_model("llama")
    original = ModelPair(target, disturbed(target, 0.12), tokenizer)
    prompts = ["the end", tokenizer("an or in the and")["input_ids"]]
    done, expected = (
        Engine(each, AlwaysTarget()).generate(prompts, SAMPLING) for each in (pair, original)
    )
    assert done == expected
    assert done[0].text == tokenizer.decode(done[0].token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", torch.bfloat16])
def test_both_models_get_the_dtype_that_was_asked_for(saved, dtype):
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    pair = load(saved / "target", saved / "draft", dtype=dtype)
    assert pair.target.dtype == pair.draft.dtype == expected


def test_an_unknown_dtype_is_refused(saved):
    """Found: the settings error was caught on the way and came out as an unreadable file."""
    with pytest.raises(ConfigError, match="dtype is 'float99'; allowed are auto, bfloat16, float"):
        load(saved / "target", saved / "draft", dtype="float99")


@pytest.mark.parametrize("device", ["warp", "cuda:99"])
def test_an_unknown_device_is_refused(saved, device):
    with pytest.raises(ConfigError, match=f"device is '{device}', which is not usable here"):
        load(saved / "target", saved / "draft", device=device)


def test_other_vocabulary_widths_and_stop_tokens_are_noted(folders, tokenizer):
    target, draft = folders
    model = random_model("llama", vocab_size=VOCAB + 3)
    model.generation_config.eos_token_id = [EOS, 4]
    model.save_pretrained(draft)
    pair = load(target, draft)
    assert pair.notes == (
        f"the draft's logits are {VOCAB + 3} wide and the target's {VOCAB}; "
        "the rows that only one of them has are padding",
        f"the draft ends at tokens [4, {EOS}], the target at [{EOS}], which counts",
    )
    assert pair.eos_token_ids == {EOS}
    assert load(draft, target).eos_token_ids == {4, EOS}


def test_the_tokenizer_ends_texts_where_the_target_names_no_token(tokenizer):
    model = random_model("llama")
    model.generation_config.eos_token_id = None
    assert ModelPair(model, model, tokenizer).eos_token_ids == {EOS}
    assert ModelPair(model, model).eos_token_ids == frozenset()


def test_two_tokenizers_that_differ_stop_the_loading(folders, tokenizer):
    def swap(model: dict[str, Any]) -> None:
        vocab = model["vocab"]
        vocab["q"], vocab["z"] = vocab["z"], vocab["q"]

    rebuilt(tokenizer, swap).save_pretrained(folders[1])
    (folders[1] / WEIGHTS).unlink()
    with pytest.raises(TokenizerMismatchError, match=r"id .* is 'z' in the draft"):
        load(*folders)


@pytest.mark.parametrize("role", [0, 1])
def test_a_folder_that_does_not_exist_is_named(folders, tmp_path, role):
    sources = list(folders)
    sources[role] = tmp_path / "nowhere"
    with pytest.raises(CheckpointError, match=r"nowhere holds no config\.json; pass the folder"):
        load(*sources)


def test_a_relative_folder_that_does_not_exist_is_not_taken_for_a_hub_id(folders):
    with pytest.raises(CheckpointError, match=r"\./nowhere holds no config\.json"):
        load(folders[0], "./nowhere")


def test_a_folder_may_begin_with_the_home_folder(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved))
    assert load("~/target", "~/draft").tokenizer is not None
    with pytest.raises(CheckpointError, match=r"~/nowhere holds no config\.json"):
        load("~/nowhere")


def test_where_files_come_from_holds_for_the_tokenizers_too(saved, monkeypatch):
    """Found: the models were loaded from the cache that was named, the tokenizers from another."""
    asked = []
    whole = AutoTokenizer.from_pretrained

    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs)
        return whole(*args, **kwargs)

    monkeypatch.setattr("cospec.models.load.AutoTokenizer.from_pretrained", from_pretrained)
    where = {"cache_dir": str(saved), "subfolder": "", "proxies": {}}
    where |= {"local_files_only": True, "force_download": False}
    load(saved / "target", saved / "draft", **where)
    assert len(asked) == 2
    assert all(where == {name: each.get(name) for name in where} for each in asked)


def test_a_folder_without_a_config_is_named(folders):
    (folders[1] / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"draft holds no config\.json") as caught:
        load(*folders)
    assert isinstance(caught.value, OSError)


def test_a_gguf_file_that_does_not_exist_is_named(folders, tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no file .*lost\.gguf"):
        load(folders[0], tmp_path / "lost.gguf")


def test_a_gguf_file_of_garbage_is_refused(folders, tmp_path):
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    (tmp_path / "junk.gguf").write_bytes(b"junk" * 100)
    with pytest.raises(CheckpointError, match=r"cannot load .*junk\.gguf"):
        load(folders[0], tmp_path / "junk.gguf")


@pytest.mark.parametrize("loader", ["AutoModelForCausalLM", "AutoTokenizer"])
@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (MemoryError("full"), MemoryError, "^full"),
        (torch.OutOfMemoryError("full"), torch.OutOfMemoryError, "^full"),
        (RuntimeError("can't allocate memory"), RuntimeError, "^can't allocate"),
        (ImportError("run pip install gptq"), CheckpointError, "package .*gptq -- install it, or"),
        (RuntimeError("bad header"), CheckpointError, "cannot load .*bad header"),
    ],
)
def test_only_a_broken_checkpoint_is_called_broken(
    saved, monkeypatch, loader, error, kind, message
):
    """Found: out of memory was told as damage, and a missing package ended in a traceback."""

    def from_pretrained(**_: Any) -> Any:
        raise error

    monkeypatch.setattr(f"cospec.models.load.{loader}.from_pretrained", from_pretrained)
    with pytest.raises(kind, match=message):
        load(saved / "target", saved / "draft")


def halve(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


@pytest.mark.parametrize(
    "harm",
    [halve, lambda raw: raw[:-1], lambda raw: b"", lambda raw: b"\xff" * 300],
    ids=["half", "one byte short", "empty", "garbage"],
)
@pytest.mark.parametrize("role", [0, 1])
def test_damaged_weights_are_refused_and_named(folders, harm, role):
    weights = folders[role] / WEIGHTS
    weights.write_bytes(harm(weights.read_bytes()))
    with pytest.raises(CheckpointError, match=f"cannot load .*{folders[role].name}"):
        load(*folders)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_damaged_description_is_refused(folders, name):
    (folders[1] / name).write_text("{")
    # Older versions take a tokenizer that they cannot read for one of another library.
    with pytest.raises(CheckpointError, match=r"cannot load .*draft|draft needs a package"):
        load(*folders)


def test_a_checkpoint_with_a_missing_tensor_is_refused(folders):
    """Found: the tensor was filled with random numbers, and the pair decoded."""
    weights = load_file(folders[0] / WEIGHTS)
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, folders[0] / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.self_attn\.q_proj\.weight"):
        load(*folders)


def test_a_checkpoint_with_a_tensor_of_another_shape_is_refused(folders):
    weights = load_file(folders[0] / WEIGHTS)
    weights["model.layers.1.self_attn.q_proj.weight"] = torch.zeros(4, 32)
    save_file(weights, folders[0] / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="cannot load"):
        load(*folders)


def pickled(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(weights, folder / "pytorch_model.bin")


@pytest.mark.parametrize("role", [0, 1])
def test_a_pickled_checkpoint_is_loaded_only_on_demand(folders, saved, role):
    pickled(folders[role])
    with pytest.raises(CheckpointError, match=r"only safetensors and GGUF.*allow_pickle=True"):
        load(*folders)
    pair, original = load(*folders, allow_pickle=True), load(saved / "target", saved / "draft")
    done, expected = (
        Engine(each, AlwaysTarget()).generate(["the end"], SAMPLING) for each in (pair, original)
    )
    assert done == expected


def test_a_damaged_pickle_is_refused_even_on_demand(folders):
    pickled(folders[1])
    path = folders[1] / "pytorch_model.bin"
    path.write_bytes(halve(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"cannot load .*draft"):
        load(*folders, allow_pickle=True)


# --- chats -------------------------------------------------------------------------------------

TEMPLATE = (
    "{% for m in messages %}{{ '<a>' + m['content'] + '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<b>' }}{% endif %}"
)


def test_a_chat_is_written_in_the_targets_template(llama_pair, tokenizer):
    """By hand: <a> the <eos> <a> in <eos> <b>, and no token of the tokenizer's own before it."""
    chatty = rebuilt(tokenizer)
    chatty.add_tokens(["<a>", "<b>"], special_tokens=True)
    chatty.chat_template = TEMPLATE
    chatty.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    assert chatty("the")["input_ids"][0] == 1
    pair = ModelPair(llama_pair.target, llama_pair.draft, chatty)
    ids = pair.encode_chat(
        [{"role": "user", "content": "the"}, {"role": "assistant", "content": "in"}]
    )
    strings = ["<a>", "the", "<eos>", "<a>", "in", "<eos>", "<b>"]
    assert chatty.convert_ids_to_tokens(ids) == strings
    assert ids == [chatty.get_vocab()[token] for token in strings]


def test_a_chat_without_a_template_is_refused(llama_pair, tokenizer):
    messages = [{"role": "user", "content": "the"}]
    for each in (None, tokenizer):
        pair = ModelPair(llama_pair.target, llama_pair.draft, each)
        with pytest.raises(TokenizerMismatchError, match=r"no chat template; pass .* plain text"):
            pair.encode_chat(messages)


@pytest.mark.parametrize("messages", ["the", {"role": "user", "content": "the"}, [], ["the"], None])
def test_what_is_no_list_of_messages_is_refused(llama_pair, tokenizer, messages):
    """Found: errors of the template's, and a text without a message."""
    chatty = rebuilt(tokenizer)
    chatty.chat_template = TEMPLATE
    pair = ModelPair(llama_pair.target, llama_pair.draft, chatty)
    with pytest.raises(PromptError, match=r"pass a list of messages: \[{\"role\": \"user\""):
        pair.encode_chat(messages)


@pytest.mark.parametrize(
    ("template", "why"),
    [("{{ raise_exception('no system role') }}", "no system role"), ("{{ a.b.c }}", "undefined")],
)
def test_what_the_template_refuses_is_told_in_its_words(llama_pair, tokenizer, template, why):
    """Found: a traceback, such as for a system prompt with Gemma 2."""
    chatty = rebuilt(tokenizer)
    chatty.chat_template = template
    pair = ModelPair(llama_pair.target, llama_pair.draft, chatty)
    with pytest.raises(PromptError, match=f"refuses the messages: .*{why}.*; pass roles and an"):
        pair.encode_chat([{"role": "system", "content": "the"}])


# --- the probe ---------------------------------------------------------------------------------


def without_positions(arguments: dict[str, Any]) -> None:
    arguments["position_ids"] = None


def without_masks(arguments: dict[str, Any]) -> None:
    if torch.is_tensor(arguments.get("attention_mask")):
        arguments["attention_mask"] = torch.zeros_like(arguments["attention_mask"])


def without_the_cache(arguments: dict[str, Any]) -> None:
    for name in {"cache", "past_key_values", "attention_mask"} & set(arguments):
        arguments[name] = None


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("forget", [without_positions, without_masks, without_the_cache])
def test_a_model_that_reads_wrongly_through_the_cache_is_refused(family, forget):
    model = random_model(family)
    probe(model)
    forward = model.forward

    @functools.wraps(forward)
    def forgetful(**arguments: Any) -> Any:
        forget(arguments)
        return forward(**arguments)

    model.forward = forgetful
    with pytest.raises(UnsupportedModelError, match="gives other logits through CoSpec's cache"):
        probe(model)
    for models in ((model, random_model(family)), (random_model(family), model)):
        with pytest.raises(UnsupportedModelError, match="does not honour position ids or masks"):
            ModelPair(*models)


def test_a_model_that_needs_padding_is_read_with_it():
    model = random_model("qwen2")
    forward = model.forward

    @functools.wraps(forward)
    def by_rows(**arguments: Any) -> Any:
        mask = arguments.get("attention_mask")
        if mask is not None and len(mask) != len(arguments["input_ids"]):
            raise ValueError("a mask of other rows")
        return forward(**arguments)

    model.forward = by_rows
    pair = ModelPair(model, random_model("qwen2"))
    assert pair.target.config._attn_implementation == "cospec_sdpa_padded"
    assert pair.draft_model.config._attn_implementation == "cospec_sdpa"


def test_a_model_that_fails_in_its_forward_is_refused_with_its_reason(llama_pair):
    class Fails(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            raise ValueError("no such kernel")

    model = copy.deepcopy(llama_pair.target)
    model.__class__ = Fails
    with pytest.raises(UnsupportedModelError, match=r"no such kernel\. Load it with attn_impl"):
        ModelPair(model, llama_pair.draft)


def test_models_on_different_devices_are_refused():
    """Found: a RuntimeError of torch's after the prompts were read."""
    with pytest.raises(PairError, match="target is on cpu and the draft on meta; load both on one"):
        ModelPair(random_model("llama"), random_model("llama").to("meta"))


@pytest.mark.parametrize("name", ["flash_attention_2", "kernels-community/flash-attn"])
def test_an_attention_that_takes_no_masks_is_changed(name):
    """On a GPU it would read past its keys, which ends the process."""
    target = random_model("llama")
    target.config._attn_implementation = name
    pair = ModelPair(target, random_model("llama"))
    assert pair.target.config._attn_implementation == pair.draft.config._attn_implementation
