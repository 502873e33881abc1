"""Inside ``model.generate``: the lossless arbiter gives what it gives without CoSpec."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from transformers import (
    EtaLogitsWarper,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.streamers import BaseStreamer

from cospec.config import DEFAULT_NUM_SPECULATIVE_TOKENS
from cospec.custom_generate import Collaborative, _split, generate, keys
from cospec.errors import ConfigError
from cospec.types import Origin
from tests.arbiters.trained import learned
from tests.conftest import EOS, VOCAB, disturbed, random_model, some_prompts
from tests.laws.known_law import FALSE_ALARM_RATE, p_value

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "examples" / "hub_repository"


@pytest.fixture(scope="module")
def models():
    """A target and a draft of the test's own: `generate` leaves caches on models."""
    target = random_model("llama")
    return target, disturbed(target, 0.12)


@pytest.fixture(scope="module")
def inputs():
    """Three prompts, padded on the left."""
    prompts = [prompt for prompt in some_prompts(4) if len(prompt) > 1]
    width = max(map(len, prompts))
    ids = [[0] * (width - len(p)) + p for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def both(models, inputs, **settings):
    """Outputs of generate without and with CoSpec."""
    target, draft = models
    settings = {"max_new_tokens": 20} | settings
    if "max_length" in settings:
        del settings["max_new_tokens"]
    found = []
    for custom in ({}, {"custom_generate": Collaborative(draft)}):
        torch.manual_seed(0)
        found.append(target.generate(**inputs, **settings, **custom))
    return found


@pytest.fixture(scope="module")
def usual(models, inputs):
    """Output of generate with default settings, the same without and with CoSpec."""
    plain, ours = both(models, inputs)
    assert plain.tolist() == ours.tolist()
    return plain


SETTINGS = {
    "max_length": 40,
    "max_new_tokens": 9,
    "min_length": 35,
    "min_new_tokens": 14,
    "max_time": 1000.0,
    "eos_token_id": [EOS, 15, 38],
    "pad_token_id": 7,
    "bos_token_id": 1,
    "do_sample": False,
    "repetition_penalty": 1.7,
    "encoder_repetition_penalty": 1.7,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "bad_words_ids": [[8], [30, 31]],
    "renormalize_logits": True,
    "forced_bos_token_id": 11,
    "forced_eos_token_id": 12,
    "remove_invalid_values": True,
    "exponential_decay_length_penalty": (3, 1.5),
    "suppress_tokens": list(range(20, 40)),
    "begin_suppress_tokens": list(range(30, 60)),
    "sequence_bias": [[[9], 4.0]],
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "num_assistant_tokens": 3,
    "assistant_confidence_threshold": 0.6,
}
"""A value for each key that greedy decoding honours."""
ONE_TOKEN = {
    "temperature": 1e-4,
    "top_k": 1,
    "top_p": 1e-4,
    "min_p": 1.0,
    "top_h": 1e-4,
    "typical_p": 1e-4,
    "epsilon_cutoff": 0.99,
}
"""Values with which sampling has no choice."""
ELSEWHERE = {"stop_strings", "eta_cutoff", "prompt_lookup_num_tokens", "max_matching_ngram_size"}
CHANGES = {
    "max_length", "max_new_tokens", "eos_token_id", "pad_token_id", "repetition_penalty",
    "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "suppress_tokens", "begin_suppress_tokens", "sequence_bias",
}  # fmt: skip
"""Keys whose value here changes what is generated, so that ignoring them would show."""
INERT = [
    "max_time", "bos_token_id", "do_sample", "renormalize_logits", "forced_bos_token_id",
    "remove_invalid_values", "num_return_sequences", "return_dict_in_generate",
    "num_assistant_tokens", "assistant_confidence_threshold",
]  # fmt: skip
"""Keys whose value here leaves greedy decoding as it is, and which are given all at once."""


def test_every_key_of_the_config_has_a_place_and_every_honoured_one_a_test():
    names = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert names <= keys.KNOWN
    assert set(keys.HONOURED) == SETTINGS.keys() | ONE_TOKEN.keys() | ELSEWHERE
    assert len(keys.KNOWN) == len(keys.HONOURED) + len(keys.NO_EFFECT) + len(keys.REFUSED)


def test_honoured_keys_that_change_nothing_give_what_generate_gives(models, inputs, usual):
    plain, ours = both(models, inputs, **{key: SETTINGS[key] for key in INERT})
    assert plain.tolist() == ours.tolist() == usual.tolist()


@pytest.mark.parametrize("key", [key for key in SETTINGS if key not in INERT])
def test_an_honoured_key_gives_what_generate_gives(models, inputs, usual, key):
    plain, ours = both(models, inputs, **{key: SETTINGS[key]})
    assert plain.tolist() == ours.tolist()
    if key in CHANGES:
        assert usual.tolist() != plain.tolist()


def drafted(models, inputs, **settings):
    """Drafted tokens of each block."""
    target, draft = models
    found = target.generate(
        **inputs, **settings, custom_generate=Collaborative(draft), max_new_tokens=16,
        return_dict_in_generate=True,
    )  # fmt: skip
    return [step.num_draft_tokens for one in found.completions for step in one.trace]


def test_so_many_tokens_are_drafted_as_are_asked_for(models, inputs):
    """Found: the test of this key, whose tokens are the target's in any case, could not fail."""
    most = [max(drafted(models, inputs, num_assistant_tokens=number)) for number in (3, 6, 20)]
    assert most == [3, 6, DEFAULT_NUM_SPECULATIVE_TOKENS], "20 is the default of transformers"


def test_blocks_end_early_where_the_draft_is_not_as_sure_as_is_asked_for(models, inputs):
    """Found: the test of this key could not fail."""
    whole = drafted(models, inputs)
    sure = drafted(models, inputs, assistant_confidence_threshold=1.0)
    assert sum(whole) / len(whole) > sum(sure) / len(sure)
    assert max(sure) == 1, "a block ends after the token that the draft is not sure of"


def test_no_time_is_over_after_one_token(models, inputs):
    """Found: the test of this key, with more time than a test takes, could not fail."""
    plain, ours = both(models, inputs, max_time=0.0)
    assert plain.tolist() == ours.tolist()
    assert ours.shape[1] == inputs["input_ids"].shape[1] + 1


@pytest.mark.parametrize("key", ONE_TOKEN)
def test_a_sampling_key_that_leaves_no_choice_gives_what_generate_gives(models, inputs, key):
    off = {"top_k": 0}
    if key not in vars(GenerationConfig()):
        pytest.skip(f"this transformers has no {key}")
    settings = off | {key: ONE_TOKEN[key]}
    plain, ours = both(models, inputs, do_sample=True, max_new_tokens=8, **settings)
    assert plain.tolist() == ours.tolist()


def test_sampling_follows_the_seed_of_torch(models, inputs):
    target, draft = models
    calls = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        calls.append(
            target.generate(
                **inputs, do_sample=True, custom_generate=Collaborative(draft), max_new_tokens=9
            ).tolist()
        )
    assert calls[0] == calls[1] != calls[2]


@pytest.mark.parametrize("arbiter", ["lossless", "always_draft"])
def test_only_lossless_sampling_follows_the_targets_law(models, arbiter):
    """False alarms: one in a million."""
    target, draft = models
    prompt = torch.tensor([[7, 8, 9]])
    torch.manual_seed(0)
    found = target.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=True, temperature=0.2, top_k=0,
        num_return_sequences=2048, max_new_tokens=2, custom_generate=Collaborative(draft, arbiter),
    )  # fmt: skip
    law = (target(prompt).logits[0, -1].detach().double() / 0.2).softmax(-1)  # (V,)
    probability = p_value(found[:, 3].bincount(minlength=len(law)), law)
    assert (probability > FALSE_ALARM_RATE) is (arbiter == "lossless")


def test_a_cutoff_by_entropy_leaves_the_tokens_that_it_allows(models, inputs):
    target, draft = models
    one = {key: value[:1, -7:] for key, value in inputs.items()}
    num_forbidden = []
    for cutoff in ({}, {"eta_cutoff": 0.5}):
        torch.manual_seed(0)
        found = target.generate(
            **one, **cutoff, do_sample=True, top_k=0, num_return_sequences=4, eos_token_id=None,
            custom_generate=Collaborative(draft), max_new_tokens=12,
        )  # fmt: skip
        logits = target(input_ids=found).logits[:, 6:-1]  # (4, 12, V)
        allowed = EtaLogitsWarper(0.5)(None, logits.flatten(0, 1)).isfinite()
        chosen = allowed.gather(1, found[:, 7:].reshape(-1, 1))
        num_forbidden.append(int((~chosen).sum()))
    assert num_forbidden[0] > num_forbidden[1] == 0


@pytest.mark.parametrize("key", keys.REFUSED)
def test_a_key_that_cannot_be_honoured_is_refused_by_name(key):
    config = GenerationConfig()
    for off in (None, keys.REFUSED[key][0]):
        setattr(config, key, off)
        keys.refuse_unsupported(config)
    setattr(config, key, "something")
    with pytest.raises(ConfigError, match=f"^{key} is 'something'"):
        keys.refuse_unsupported(config)


def test_a_refusal_reaches_who_calls_generate(models, inputs):
    with pytest.raises(ConfigError, match="num_beams is 2"):
        both(models, inputs, num_beams=2)[1]


def test_a_key_of_a_newer_transformers_is_refused_by_name(monkeypatch):
    class Newer(GenerationConfig):
        def __init__(self, **values):
            super().__init__(**values)
            self.new_key = values.get("new_key")

    keys.refuse_unsupported(Newer())
    with pytest.raises(ConfigError, match="new_key is 3; this version of cospec does not know"):
        keys.refuse_unsupported(Newer(new_key=3))


def test_the_table_of_the_docs_is_that_of_the_code():
    text = (ROOT / "docs" / "transformers.md").read_text(encoding="utf-8")
    assert keys.table() in text, "paste what `python -m cospec.custom_generate.keys` prints"


class Alternating(LogitsProcessor):
    """Even tokens after odd ones, and the other way round."""

    def __call__(self, input_ids, scores):
        last = input_ids[:, -1:] % 2
        wrong = torch.arange(scores.shape[1])[None] % 2 == last
        return scores.masked_fill(wrong, float("-inf"))


class AfterMany(StoppingCriteria):
    """Ends a row once its tokens, prompt included, add up to enough."""

    def __call__(self, input_ids, scores, **_):
        return input_ids.sum(dim=1) > 900


def test_a_processor_rules_at_each_place_and_no_arbiter_overrides_it(models, inputs):
    plain, ours = both(models, inputs, logits_processor=[Alternating()])
    assert plain.tolist() == ours.tolist()
    target, draft = models
    decode = Collaborative(draft, "always_draft")
    kept = target.generate(
        **inputs, logits_processor=[Alternating()], custom_generate=decode, max_new_tokens=16
    )
    new = kept[:, inputs["input_ids"].shape[1] - 1 :]
    is_open = (new[:, 1:] != 0) & (new[:, :-1] != EOS)
    assert ((new[:, 1:] + new[:, :-1]) % 2)[is_open].all()


def test_a_criterion_ends_each_row_at_its_token(models, inputs):
    plain, ours = both(models, inputs, stopping_criteria=[AfterMany()], max_new_tokens=40)
    assert plain.tolist() == ours.tolist()
    assert ours.shape[1] < inputs["input_ids"].shape[1] + 40


@pytest.mark.parametrize("criterion", [MaxLengthCriteria(max_length=24), EosTokenCriteria([9])])
def test_length_and_stop_criteria_of_ones_own_replace_those_of_the_config(
    models, inputs, criterion
):
    """Found: they were taken for the config's."""
    changes = {"stopping_criteria": [criterion], "max_new_tokens": 30}
    plain, ours = both(models, inputs, **changes)
    assert plain.tolist() == ours.tolist()
    assert ours.tolist() != both(models, inputs, max_new_tokens=30)[1].tolist()


def test_what_a_criterion_cuts_off_is_not_counted(models, inputs):
    target, draft = models
    found = target.generate(
        **inputs,
        custom_generate=Collaborative(draft, "always_draft"),
        stopping_criteria=[AfterMany()],
        max_new_tokens=40,
        return_dict_in_generate=True,
    )
    for one in found.completions:
        assert one.stats.num_tokens == len(one.token_ids) < 40
        assert one.stats.num_overrides == one.origins.count(Origin.OVERRIDE)
        matches = one.origins.count(Origin.MATCH)
        assert one.stats.num_accepted_tokens == matches + one.stats.num_overrides


def test_allowed_tokens_may_depend_on_the_row(models, inputs):
    def allowed(row, _):
        return list(range(6 + 9 * row, 15 + 9 * row))

    plain, ours = both(models, inputs, prefix_allowed_tokens_fn=allowed)
    assert plain.tolist() == ours.tolist()


class Heard(BaseStreamer):
    def __init__(self):
        self.ids, self.ended = [], False

    def put(self, value):
        self.ids += value.flatten().tolist()

    def end(self):
        self.ended = True


@pytest.fixture
def modules(monkeypatch, tmp_path):
    """Let transformers copy the code of a folder to a temporary one."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))


def test_the_folder_works_as_a_repository_of_the_hub(models, inputs, tokenizer, modules):
    """With a streamer and stop strings, which transformers does not pass on to a callable."""
    target, draft = models
    one = {key: value[:1, -7:] for key, value in inputs.items()}
    word = tokenizer.decode(target.generate(**one, max_new_tokens=9)[0, -3:])
    settings = {"max_new_tokens": 30, "stop_strings": word, "tokenizer": tokenizer}
    found = []
    for custom in (
        {},
        {"custom_generate": str(FOLDER), "trust_remote_code": True, "assistant_model": draft},
    ):
        heard = Heard()
        found.append((target.generate(**one, **settings, streamer=heard, **custom), heard))
    (plain, plainly), (ours, heard) = found
    assert plain.tolist() == ours.tolist() == [heard.ids]
    assert heard.ids == plainly.ids and heard.ended
    assert plain.shape[1] < 7 + 30, "the stop string was met"


@pytest.mark.parametrize("is_given", [False, True])
def test_stop_strings_of_the_model_itself_end_a_row(models, inputs, tokenizer, is_given):
    """Found: transformers asked for the tokenizer that was given."""
    target, draft = models
    one = {key: value[:1, -7:] for key, value in inputs.items()}
    word = tokenizer.decode(target.generate(**one, max_new_tokens=9)[0, -3:])
    settings = {"max_new_tokens": 30, "tokenizer": tokenizer}
    settings |= {"stop_strings": word[:1]} if is_given else {}
    target.generation_config.stop_strings = [word]
    try:
        plain = target.generate(**one, **settings)
        ours = generate(target, assistant_model=draft, **one, **settings)
        assert plain.tolist() == ours.tolist() and plain.shape[1] < 7 + 30
        assert target.generation_config.stop_strings == [word]
        with pytest.raises(ConfigError, match="num_beams is 2"):
            generate(target, assistant_model=draft, num_beams=2, **one, **settings)
        assert target.generation_config.stop_strings == [word]
    finally:
        target.generation_config.stop_strings = None


def test_the_folder_takes_an_arbiter_and_returns_completions(models, inputs, modules):
    target, draft = models
    found = target.generate(
        **inputs, custom_generate=str(FOLDER), trust_remote_code=True, assistant_model=draft,
        arbiter="always_draft", max_new_tokens=12, return_dict_in_generate=True,
    )  # fmt: skip
    assert len(found.completions) == len(inputs["input_ids"])
    assert any(Origin.OVERRIDE in c.origins for c in found.completions)
    row = found.sequences[0].tolist()
    width = inputs["input_ids"].shape[1]
    assert row[width:][: len(found.completions[0].token_ids)] == found.completions[0].token_ids


def test_prompt_lookup_needs_no_draft(models, inputs, usual):
    target, _ = models
    lookup = {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}
    found = target.generate(
        **inputs, **lookup, custom_generate=Collaborative(None), max_new_tokens=20,
        return_dict_in_generate=True,
    )  # fmt: skip
    assert found.sequences.tolist() == usual.tolist()
    assert any(c.stats.num_draft_tokens for c in found.completions)


def test_so_many_tokens_are_looked_up_as_are_asked_for(models, inputs):
    """20 is what transformers has by default for another setting."""
    target, _ = models
    inputs = {"input_ids": torch.tensor([[5, 6] * 16])}
    found = target.generate(
        **inputs, prompt_lookup_num_tokens=20, custom_generate=Collaborative(None, "always_draft"),
        max_new_tokens=30, return_dict_in_generate=True,
    )  # fmt: skip
    steps = [step for c in found.completions for step in c.trace]
    assert max(step.num_draft_tokens for step in steps) == 20


def test_torch_seeds_an_arbiter_that_rules_by_chance(models, inputs):
    target, draft = models
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        custom = Collaborative(draft, "random:rate=0.5")
        texts.append(target.generate(**inputs, custom_generate=custom, max_new_tokens=30).tolist())
    assert texts[0] == texts[1] != texts[2]


def test_models_are_given_back_as_they_were(models, inputs):
    target, _ = models
    target.train(True)
    target.model.layers[0].train(False)  # found: it was given back in the mode of the whole
    modes = [module.training for module in target.modules()]
    before = target.config._attn_implementation
    try:
        both(models, inputs)
        assert [module.training for module in target.modules()] == modes
        assert all(w.requires_grad for w in target.parameters())
        assert target.config._attn_implementation == before
    finally:
        target.train(False)


def test_models_are_tried_once(models, inputs, usual, monkeypatch):
    """Found: each call read both models three times before it decoded."""
    monkeypatch.setattr("cospec.models.probe.CachedModel", None)  # fails where it is used
    assert all(torch.equal(each, usual) for each in both(models, inputs))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"custom_generate": Collaborative(None)}, "there is no draft; pass it as assistant_model"),
        ({"inputs_embeds": torch.zeros(3, 2, 32)}, "inputs_embeds is given"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens is 3, and a draft is given"),
        ({"max_matching_ngram_size": 2}, "max_matching_ngram_size is 2, and a draft is given"),
    ],
)
def test_what_it_cannot_take_is_named(models, inputs, arguments, sentence):
    target, draft = models
    arguments = {"custom_generate": Collaborative(draft)} | arguments
    with pytest.raises(ConfigError, match=sentence):
        target.generate(**inputs, max_new_tokens=2, **arguments)


def test_a_tokenizer_of_the_draft_is_refused_with_what_to_do(models, inputs, tokenizer):
    """Found: the advice was to leave it out, with which two tokenizers went on unchecked."""
    target, draft = models
    with pytest.raises(ConfigError, match="pass a draft that shares the target's, and leave"):
        generate(target, assistant_model=draft, assistant_tokenizer=tokenizer, **inputs)


def test_tokens_past_the_vocabulary_never_come(models, inputs):
    assert int(both(models, inputs, max_new_tokens=40)[1].max()) < VOCAB


def test_an_empty_table_beside_the_tokens_is_no_input(models, inputs, usual):
    """Found: transformers gives classes of vision models one, and it was refused."""
    target, draft = models

    def decode(*prepared, **more):
        return Collaborative(draft)(*prepared, mm_encoder_outputs={}, **more)

    found = target.generate(**inputs, custom_generate=decode, max_new_tokens=20)
    assert found.tolist() == usual.tolist()


def test_a_model_whose_own_repository_has_the_folder_is_decoded(models, inputs, usual, monkeypatch):
    """Found: its ``generate`` is this function, which called itself."""
    target, draft = models
    monkeypatch.setitem(vars(target), "generate", functools.partial(generate, model=target))
    ours = target.generate(**inputs, assistant_model=draft, max_new_tokens=20)
    assert ours.tolist() == usual.tolist()


class LengthOrSum(MaxLengthCriteria):
    """A criterion with a call of its own."""

    def __call__(self, input_ids, scores, **_):
        return AfterMany()(input_ids, scores)


def test_a_kind_of_length_criterion_with_its_own_call_is_asked(models, inputs):
    """Found: it was taken for the length alone."""
    criterion = LengthOrSum(max_length=99)
    plain, ours = both(models, inputs, stopping_criteria=[criterion], max_new_tokens=40)
    assert plain.tolist() == ours.tolist()
    assert ours.shape[1] < inputs["input_ids"].shape[1] + 40


TEMPERATURE, TOP_K, TOP_P = TemperatureLogitsWarper(0.5), TopKLogitsWarper(3), TopPLogitsWarper(0.9)


@pytest.mark.parametrize(
    ("processors", "settings"),
    [
        ([TEMPERATURE, TOP_K, TOP_P], {"temperature": 0.5, "top_k": 3, "top_p": 0.9}),
        ([Alternating(), TEMPERATURE, TOP_P], {"temperature": 0.5, "top_p": 0.9}),
        ([TOP_P, TEMPERATURE, TOP_K], {"temperature": 0.5, "top_k": 3}),
        ([TEMPERATURE, TEMPERATURE], {"temperature": 0.5}),
        ([TEMPERATURE, Alternating()], {}),
        ([TopPLogitsWarper(0.9, min_tokens_to_keep=2)], {}),
        ([TEMPERATURE, TopKLogitsWarper(3, filter_value=-9.0)], {}),
    ],
)
def test_the_last_warpers_are_settings_of_both_models(processors, settings):
    """Found: beside any processor the draft had none; and what else a warper does was dropped."""
    found, kept = _split(LogitsProcessorList(processors))
    assert found == settings
    assert list(kept) == processors[: len(processors) - len(settings)]


def test_a_processor_beside_a_warper_that_leaves_no_choice_gives_what_generate_gives(
    models, inputs
):
    settings = {"do_sample": True, "top_k": 1, "logits_processor": [Alternating()]}
    plain, ours = both(models, inputs, **settings)
    assert plain.tolist() == ours.tolist()


def test_positions_are_those_of_the_mask_or_refused(models, inputs, usual):
    """Found: others were ignored."""
    target, draft = models
    custom = {"custom_generate": Collaborative(draft), "max_new_tokens": 20}
    places = inputs["attention_mask"].cumsum(-1) - 1
    found = target.generate(**inputs, position_ids=places.clamp(min=0), **custom)
    assert found.tolist() == usual.tolist()
    for positions in (places + 3, places[:, 1:]):
        with pytest.raises(ConfigError, match=r"position_ids ends in .* leave position_ids out"):
            target.generate(**inputs, position_ids=positions, **custom)


def test_notes_on_an_arbiter_are_logged_once(models, inputs, caplog):
    """Found: they were dropped."""
    target, draft = models
    about = {"training": {"train": {"rollouts": {"num_speculative_tokens": 9}}}}
    custom = Collaborative(draft, learned(label="mine", about=about))
    for _ in range(2):
        target.generate(**inputs, custom_generate=custom, num_assistant_tokens=3, max_new_tokens=2)
    assert caplog.text.count("note: the arbiter mine was trained at 9 drafted tokens a block") == 1


def test_notes_on_a_pair_are_logged_once(models, inputs, caplog):
    """Found: the models were not compared."""
    custom = Collaborative(random_model("llama", vocab_size=VOCAB + 5))
    for _ in range(2):
        models[0].generate(**inputs, custom_generate=custom, max_new_tokens=2)
    assert caplog.text.count(f"note: the draft's logits are {VOCAB + 5} wide") == 1
