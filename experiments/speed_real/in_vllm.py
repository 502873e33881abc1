"""The arms of `speed.py` that decode inside vLLM: each is an engine in a process of its own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vllm import LLM, SamplingParams, TokensPrompt

from cospec.arbiters import load_arbiter
from cospec.cli.serve import speculative_config
from cospec.types import Stats
from cospec.vllm_plugin.settings import KEY

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedTokenizerBase

    from cospec import SamplingConfig


class Given:
    """The part of a completion that `speed.py` reads."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self.token_ids, self.stats = list(token_ids), Stats()


def in_vllm(
    way: str, tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace
) -> Callable[..., list[Given]]:
    """Start the engine of an arm and return its greedy decoding.

    Args:
        way: ``target``; ``stock``, its own speculation with the draft; or the name of an arbiter,
            by which the plugin rules.
        tokenizer: Of the target, for prompts that are texts.
        options: Of `speed.py`.
    """
    more: dict[str, Any] = {}
    if way != "target":
        spec = "lossless" if way == "stock" else way
        more["speculative_config"] = speculative_config(
            str(options.draft), options.k, load_arbiter(spec)
        )
    if way not in ("target", "stock"):
        more["additional_config"] = {KEY: {"arbiter": way}}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    if options.threads:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{options.threads - 1}")
    llm = LLM(
        str(options.target),
        dtype=options.dtype,
        max_model_len=options.max_model_len,
        max_num_seqs=options.batch_size,
        enable_prefix_caching=options.prefix_caching,
        disable_log_stats=True,
        seed=0,
        **more,
    )

    def generate(
        prompts: Sequence[Any], samplings: Sequence[SamplingConfig], **_: object
    ) -> list[Given]:
        ids = [tokenizer(each)["input_ids"] if isinstance(each, str) else each for each in prompts]
        params = [
            SamplingParams(temperature=0, max_tokens=one.max_new_tokens, stop=list(one.stop))
            for one in samplings
        ]
        inputs = [TokensPrompt(prompt_token_ids=list(each)) for each in ids]
        done = llm.generate(inputs, params, use_tqdm=False)
        return [Given(each.outputs[0].token_ids) for each in done]

    return generate
