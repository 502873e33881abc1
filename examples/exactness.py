"""Shows on this machine, without any download, that lossless decoding is exact.

A draft and a target of a real architecture with random weights decode eight prompts: the target
alone by transformers, then CoSpec with the lossless arbiter, whose tokens have to be the same, and
with arbiters that let the draft's token stand at some mismatches, whose need not be.

Usage: ``python examples/exactness.py``
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from cospec import Engine, ModelPair, SamplingConfig, load_arbiter
from cospec.types import Stats


def random_pair() -> ModelPair:
    """A target of random weights, and a draft that is its copy with noise on them."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    target = Qwen2ForCausalLM(config)
    draft = copy.deepcopy(target)
    for weight in draft.parameters():
        weight.data += 0.04 * weight.data.std().nan_to_num(0.0) * torch.randn_like(weight)
    for model in (target, draft):
        model.generation_config = GenerationConfig(pad_token_id=0)  # type: ignore[no-untyped-call]
    return ModelPair(target, draft)


def main() -> None:
    """Decode, compare, print a line an arbiter."""
    pair = random_pair()
    model: Any = pair.target  # Any: transformers does not type generate
    inputs = torch.randint(0, 512, (8, 12))
    expected = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=100, do_sample=False
    )[:, 12:].tolist()
    prompts = inputs.tolist()
    print(f"{'arbiter':<22} same tokens   tokens a block   overrides   target forwards a token")
    for spec in ("lossless", "random:rate=0.3", "gap:max_gap=0.5", "always_draft"):
        engine = Engine(pair, load_arbiter(spec), num_speculative_tokens=4)
        done = engine.generate(prompts, SamplingConfig(max_new_tokens=100, seed=0))
        num_same = sum(c.token_ids == ids for c, ids in zip(done, expected, strict=True))
        stats = sum((c.stats for c in done), Stats())
        print(
            f"{spec:<22} {num_same} of {len(done)} rows {stats.mean_acceptance_length:15.2f}"
            f" {stats.num_overrides:11d} {stats.num_target_forwards / stats.num_tokens:18.2f}"
        )
        if spec == "lossless" and num_same < len(done):
            raise SystemExit("lossless decoding differed from the target: please report this")


if __name__ == "__main__":
    main()
