"""Runs vLLM in a process of its own and writes down what it generates: see test_v1_offline.

Usage: python offline.py off|on|laws JOB.json RESULT.json
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def make(job, settings):
    from vllm import LLM

    llm = LLM(
        model=job["target"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=job["batch_size"],
        disable_log_stats=True,
        speculative_config={
            "method": "draft_model",
            "model": job["draft"],
            "num_speculative_tokens": job["k"],
        },
        additional_config={} if settings is None else {"cospec": settings},
    )
    return llm, llm.llm_engine.model_executor.driver_worker.worker.model_runner


def generate(llm, prompts, **params):
    from vllm import SamplingParams

    requests = [{"prompt_token_ids": ids} for ids in prompts]
    outputs = llm.generate(requests, SamplingParams(**params), use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def off(job):
    """Stock vLLM, with the plugin installed and without settings."""
    llm, runner = make(job, None)
    module = sys.modules[type(runner.rejection_sampler).__module__]
    touched = [
        name
        for name, it in {
            "rejection_sampler": type(runner.rejection_sampler),
            "drafter": type(runner.drafter)._sample_draft_tokens,
            "constraints": module.apply_sampling_constraints,
            "expand": module.expand_batch_to_tokens,
        }.items()
        if not it.__module__.startswith("vllm.") or hasattr(it, "__cospec__")
    ]
    touched += [name for name in vars(runner.drafter) if name == "_sample_draft_tokens"]
    texts = generate(llm, job["prompts"], temperature=0, max_tokens=job["max_tokens"])
    return {"touched": touched, "texts": texts}


def on(job):
    """One engine, with one arbiter after the other."""
    from cospec.arbiters import load_arbiter

    result = {}
    first, *others = job["arbiters"]
    llm, runner = make(job, {"arbiter": first})
    adapter = runner.rejection_sampler._adapter
    judge, counts = adapter.judge, adapter.counts
    greedy = dict(temperature=0, max_tokens=job["max_tokens"])
    for spec in (first, *others):
        if spec != first:
            adapter.judge = replace(judge, arbiter=load_arbiter(spec))
        before = counts.drain()
        texts = generate(llm, job["prompts"], **greedy)
        new = {name: n - before[name] for name, n in counts.drain().items()}
        result[spec] = {"texts": texts, "counts": new}
    adapter.judge = replace(judge, arbiter=load_arbiter("always_draft"))
    some = job["prompts"][: job["num_opted_out"]]
    result["opted out"] = generate(llm, some, extra_args={"cospec": "off"}, **greedy)
    result["penalised"] = generate(llm, some, repetition_penalty=1.0001, **greedy)
    return result


def laws(job):
    """Many samples of one prompt under the lossless arbiter, by law."""
    llm, runner = make(job, {"arbiter": "lossless"})
    result = {}
    for name, law in job["laws"].items():
        runner.drafter._enable_probabilistic_draft_probs = law.pop("drafts_are_sampled")
        result[name] = generate(llm, [job["law_prompt"]] * job["num_samples"], **law)
    return result


if __name__ == "__main__":
    mode, given, written = sys.argv[1:]
    answer = {"off": off, "on": on, "laws": laws}[mode](json.loads(Path(given).read_text()))
    Path(written).write_text(json.dumps(answer))
