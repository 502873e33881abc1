"""Every key of transformers' ``GenerationConfig``, and what becomes of it.

``python -m cospec.custom_generate.keys`` prints the table of docs/transformers.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cospec.errors import ConfigError

if TYPE_CHECKING:
    from transformers import GenerationConfig

_STOP = "a stopping criterion of transformers, asked after each token"
_PROCESSOR = "a logits processor of transformers, applied to the target's logits at each place"
_WARPER = "applied to both models, in transformers' order"

HONOURED = {
    "max_length": "as in generate",
    "max_new_tokens": "as in generate",
    "min_length": _PROCESSOR,
    "min_new_tokens": _PROCESSOR,
    "max_time": _STOP,
    "stop_strings": f"{_STOP}; pass `tokenizer` as well",
    "eos_token_id": "ends a row",
    "pad_token_id": "fills rows that have ended",
    "bos_token_id": "begins an empty prompt",
    "do_sample": "sampled rows follow the target's law, greedy ones are its argmax",
    "temperature": _WARPER,
    "top_k": _WARPER,
    "top_p": _WARPER,
    "min_p": _WARPER,
    "top_h": _PROCESSOR,
    "typical_p": _PROCESSOR,
    "epsilon_cutoff": _PROCESSOR,
    "eta_cutoff": _PROCESSOR,
    "repetition_penalty": _PROCESSOR,
    "encoder_repetition_penalty": f"{_PROCESSOR}; the prompt is the encoder's text",
    "no_repeat_ngram_size": _PROCESSOR,
    "encoder_no_repeat_ngram_size": f"{_PROCESSOR}; the prompt is the encoder's text",
    "bad_words_ids": _PROCESSOR,
    "renormalize_logits": _PROCESSOR,
    "forced_bos_token_id": _PROCESSOR,
    "forced_eos_token_id": _PROCESSOR,
    "remove_invalid_values": _PROCESSOR,
    "exponential_decay_length_penalty": _PROCESSOR,
    "suppress_tokens": _PROCESSOR,
    "begin_suppress_tokens": _PROCESSOR,
    "sequence_bias": _PROCESSOR,
    "num_return_sequences": "as in generate",
    "return_dict_in_generate": "an output with `sequences` and CoSpec's `completions`",
    "num_assistant_tokens": "drafted tokens a block, unless it is transformers' default of 20",
    "assistant_confidence_threshold": "ends a block early, unless it is transformers' default, 0.4",
    "prompt_lookup_num_tokens": "looks up so many tokens a block; refused beside a draft",
    "max_matching_ngram_size": "longest n-gram of prompt lookup; refused beside a draft",
}
"""By key, how it is honoured."""

NO_EFFECT = {
    "early_stopping": "only for beams",
    "length_penalty": "only for beams",
    "decoder_start_token_id": "only for encoder-decoder models",
    "assistant_lookbehind": "only for models with different tokenizers",
    "target_lookbehind": "only for models with different tokenizers",
    "disable_compile": "nothing is compiled",
    "cache_implementation": "CoSpec has a cache of its own; configs of some models name one",
    "return_legacy_cache": "no cache is returned",
    "transformers_version": "a record",
}
"""By key, why it changes nothing."""

_CACHE = "CoSpec has a cache of its own, whose rows roll back each for itself"
_HUB = "a decoding method of its own"
_TRACE = "pass return_dict_in_generate=True and read `completions`"

REFUSED: dict[str, tuple[Any, str]] = {  # Any: a value of the key
    "num_beams": (1, "there are no beams"),
    "num_beam_groups": (1, "there are no beams"),
    "diversity_penalty": (0.0, "there are no beams"),
    "constraints": (None, "there are no beams"),
    "force_words_ids": (None, "there are no beams"),
    "low_memory": (None, _HUB),
    "penalty_alpha": (None, _HUB),
    "dola_layers": (None, _HUB),
    "use_mtp": (False, _HUB),
    "speculation_type": (None, _HUB),
    "assistant_early_exit": (None, _HUB),
    "assistant_ensemble_weight": (None, "use the arbiter ensemble"),
    "num_assistant_tokens_schedule": ("constant", "blocks have one length"),
    "guidance_scale": (1.0, "its processor runs the model token by token"),
    "watermarking_config": (None, "its processor may keep a state, and sees each place once only"),
    "is_assistant": (False, "transformers sets it on drafts, with a stopping rule of theirs"),
    "token_healing": (False, "it needs the tokenizer before CoSpec gets it"),
    "use_cache": (True, _CACHE),
    "cache_config": (None, _CACHE),
    "max_cache_len": (None, _CACHE),
    "prefill_chunk_size": (None, _CACHE),
    "compile_config": (None, "nothing is compiled"),
    "continuous_batching_config": (None, _CACHE),
    "output_attentions": (False, _TRACE),
    "output_hidden_states": (False, _TRACE),
    "output_scores": (False, _TRACE),
    "output_logits": (False, _TRACE),
}
"""By key, the value that asks for nothing (as does None), and why others are refused."""

KNOWN = {*HONOURED, *NO_EFFECT, *REFUSED}


def refuse_unsupported(config: GenerationConfig) -> None:
    """Refuse a setting that would change what is generated and cannot be honoured.

    Raises:
        ConfigError: A key has a value that is not supported; it is named.
    """
    plain = vars(type(config)())
    for key, value in vars(config).items():
        if key in REFUSED:
            off, reason = REFUSED[key]
            if value is not None and value != off:
                raise ConfigError(
                    f"{key} is {value!r}, which generation with an arbiter does not support "
                    f"({reason}); leave it out, or call generate without custom_generate."
                )
        elif key in plain.keys() - KNOWN and value != plain[key] and not key.startswith("_"):
            raise ConfigError(
                f"{key} is {value!r}; this version of cospec does not know that key. Leave it out, "
                "or call generate without custom_generate."
            )


def table() -> str:
    """Return the keys as a Markdown table."""
    rows = {key: ("honoured", how) for key, how in HONOURED.items()}
    rows |= {key: ("no effect", why) for key, why in NO_EFFECT.items()}
    rows |= {key: ("refused", why) for key, (_, why) in REFUSED.items()}
    lines = [f"| `{key}` | {what} | {note} |" for key, (what, note) in sorted(rows.items())]
    return "\n".join(["| key | | |", "| --- | --- | --- |", *lines])


if __name__ == "__main__":
    print(table())
