"""How much time the engine adds to the models, and how it compares with assisted generation.

All arms run in one process and take turns. Speeds are medians of --trials after a warm-up, ratios
are of all trials' seconds.

* ``lossless``: CoSpec with the lossless arbiter, batch 1, fixed k.
* ``assisted``: transformers' assisted generation (``assistant_model=``) with the same fixed k.
* ``target``, ``hf_target``: plain decoding of the target, by CoSpec and by transformers.
* ``bare``: the very forwards that ``lossless`` made (same inputs, shapes and caches), and nothing
  else. ``lossless`` over ``bare`` is what the engine costs.
* ``lossless_b8``: the same prompts eight at a time.
* ``off``: adaptive blocks at a cost at which no draft pays. Over ``target`` it is what they cost.

Usage::

    python experiments/engine_speed/engine_speed.py small --json runs/engine_speed_small.json
    python experiments/engine_speed/engine_speed.py T_FOLDER D_FOLDER --json runs/…_real.json
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from cospec import Engine, ModelPair, SamplingConfig
from cospec.arbiters import AlwaysTarget
from cospec.evaluation.stats import speedup, speedup_interval
from cospec.models.cache import CachedModel, Output, Window
from cospec.results import Provenance, check_writable, document, write_json

RATIOS = {
    "lossless_over_assisted": ("lossless", "assisted"),
    "lossless_over_target": ("lossless", "target"),
    "target_over_hf_target": ("target", "hf_target"),
    "engine_time_over_bare": ("bare", "lossless"),
    "off_time_over_target": ("target", "off"),
    "b8_over_b1": ("lossless_b8", "lossless"),
}
"""By name: speed of the first arm over that of the second."""
REAL_PROMPTS = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May. "
    "How many clips did she sell in April and May together?",
    "A train covers 60 km in the first hour and 80 km in each of the next two. How far is that?",
)


def small_pair() -> ModelPair:
    """A target of eight thin layers, and a draft made of its first one, in float32.

    Random weights; the later layers are damped so that the draft agrees with the target often.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.2,
    )
    target = LlamaForCausalLM(config)
    for layer in target.model.layers[1:]:
        layer.self_attn.o_proj.weight.data *= 0.1
        layer.mlp.down_proj.weight.data *= 0.1
    draft = copy.deepcopy(target)
    draft.model.layers = draft.model.layers[:1]
    draft.config.num_hidden_layers = 1
    for model in (target, draft):
        model.generation_config = GenerationConfig(pad_token_id=0)
    return ModelPair(target, draft)


def recorded_forwards(run: Callable[[], object]) -> list[Callable[[], object]]:
    """The model forwards that `run` makes, each ready to be made again without the engine.

    Inputs, masks and cache slots are those of the first time.
    """
    forwards: list[Callable[[], object]] = []
    read = CachedModel.read

    def noting(cached: CachedModel, ids: Tensor, window: Window, num_logits: int = 1) -> Output:
        given: dict[str, object] = {}
        hook = cached.model.register_forward_pre_hook(
            lambda _, __, arguments: given.update(arguments), with_kwargs=True
        )
        try:
            output = read(cached, ids, window, num_logits)
        finally:
            hook.remove()
        cache, slots = cached._cache, cached._cache._flat_slots

        def forward() -> object:
            cache._window, cache._flat_slots = window, slots
            return cached.model(**given)

        forwards.append(forward)
        return output

    CachedModel.read = noting
    try:
        run()
    finally:
        CachedModel.read = read
    return forwards


def arms(
    pair: ModelPair, prompts: list[list[int]], k: int, num_new: int
) -> dict[str, Callable[[], int]]:
    """By name, a run that returns how many tokens it made."""
    sampling = SamplingConfig(max_new_tokens=num_new, ignore_eos=True)
    settings = {"num_speculative_tokens": k, "keep_trace": False}
    one = Engine(pair, AlwaysTarget(), batch_size=1, **settings)
    eight = Engine(pair, AlwaysTarget(), batch_size=8, **settings)
    plain = Engine.target_only(pair, batch_size=1)
    never = {"adaptive": True, "adaptive_cost": 3.0}  # drafted tokens that cost three of the target
    off = Engine(pair, AlwaysTarget(), batch_size=1, **settings, **never)
    pair.draft.generation_config.num_assistant_tokens = k
    pair.draft.generation_config.num_assistant_tokens_schedule = "constant"
    pair.draft.generation_config.assistant_confidence_threshold = 0.0

    def count(engine: Engine, texts: list[list[int]]) -> int:
        return sum(len(c.token_ids) for c in engine.generate(texts, sampling))

    def transformers_generate(**kwargs: object) -> int:
        total = 0
        for prompt in prompts:
            output = pair.target.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=num_new,
                min_new_tokens=num_new,
                do_sample=False,
                **kwargs,
            )
            total += output.shape[1] - len(prompt)
        return total

    forwards = recorded_forwards(lambda: one.generate(prompts, sampling))

    @torch.inference_mode()
    def bare() -> int:
        for forward in forwards:
            forward()
        return num_new * len(prompts)

    eight_prompts = (prompts * 8)[:8]
    return {
        "lossless": lambda: count(one, prompts),
        "assisted": lambda: transformers_generate(assistant_model=pair.draft),
        "target": lambda: count(plain, prompts),
        "hf_target": transformers_generate,
        "bare": bare,
        "lossless_b8": lambda: count(eight, eight_prompts),
        "off": lambda: count(off, prompts),
    }


def measure(runs: dict[str, Callable[[], int]], num_trials: int) -> dict[str, dict[str, Any]]:
    """Interleaved trials: seconds, tokens and their median rate."""
    trials: dict[str, list[float]] = {name: [] for name in runs}
    tokens: dict[str, int] = {}
    for trial in range(num_trials + 1):
        order = list(runs)
        for name in order[trial % len(order) :] + order[: trial % len(order)]:
            start = time.perf_counter()
            tokens[name] = runs[name]()
            if trial:  # the first is the warm-up
                trials[name].append(time.perf_counter() - start)
        if not trial % 10:
            print(f"trial {trial} of {num_trials}", flush=True)
    return {
        name: {
            "num_tokens": tokens[name],
            "seconds": [round(s, 4) for s in seconds],
            "tokens_per_s": round(tokens[name] / statistics.median(seconds), 2),
        }
        for name, seconds in trials.items()
    }


def compared(measured: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return ratios of speeds over all trials, with bootstrap intervals over the trials."""
    found = {}
    for name, (ours, theirs) in RATIOS.items():
        if ours in measured:
            arms = [measured[arm] for arm in (theirs, ours)]
            chunks = [[(s, arm["num_tokens"]) for s in arm["seconds"]] for arm in arms]
            found[name] = {"ratio": speedup(*chunks), "ci95": speedup_interval(*chunks)}
    return found


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", help="'small', or the target's folder")
    parser.add_argument("draft", nargs="?", help="the draft's folder")
    parser.add_argument("-k", type=int, default=4)
    parser.add_argument("--num-new", type=int, default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    check_writable(args.json, args.overwrite)
    if args.threads:
        torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    provenance = Provenance()
    if args.target == "small":
        pair, num_new = small_pair(), args.num_new or 128
        prompts = torch.randint(2, 512, (2, 32), generator=torch.Generator().manual_seed(1))
        prompt_ids = prompts.tolist()
    else:
        pair, num_new = ModelPair.from_pretrained(args.target, args.draft), args.num_new or 48
        prompt_ids = [pair.encode_chat([{"role": "user", "content": p}]) for p in REAL_PROMPTS]
    runs = arms(pair, prompt_ids, args.k, num_new)
    if args.target != "small":
        del runs["lossless_b8"]  # asked of the small pair only; compute-bound on a CPU
    measured = measure(runs, args.trials)
    sampling = SamplingConfig(max_new_tokens=num_new, ignore_eos=True)
    engine = Engine(pair, AlwaysTarget(), num_speculative_tokens=args.k, batch_size=1)
    stats = [c.stats.to_dict() for c in engine.generate(prompt_ids, sampling)]
    ratios = compared(measured)
    config = {"pair": args.target, "k": args.k, "num_new": num_new, "num_prompts": len(prompt_ids)}
    where = provenance.to_dict(str(pair.target.device), str(pair.target.dtype))
    result = document("engine_speed", config, where, arms=measured, stats=stats, ratios=ratios)
    write_json(args.json, result)
    for name, values in (measured | ratios).items():
        print(name, values.get("tokens_per_s", values))


if __name__ == "__main__":
    main()
