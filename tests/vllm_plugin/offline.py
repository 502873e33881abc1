"""Runs vLLM in a process of its own and writes down what it generates: see test_v1_offline.

Usage: python offline.py off|on|laws|mixed|preempted|stock JOB.json RESULT.json
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


def make(job, settings, **options):
    speculative = job.get("speculative", {})
    options = job.get("engine", {}) | options
    if job.get("is_second_runner"):
        import torch
        from interpreted import NO_WARM_UP, interpret_kernels

        if not torch.cuda.is_available():
            interpret_kernels()
            options |= NO_WARM_UP
        speculative = {"draft_sample_method": "probabilistic"} | speculative
    from vllm import LLM

    llm = LLM(
        model=job["target"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=job["batch_size"],
        **{"disable_log_stats": True} | options,
        speculative_config={
            "method": "draft_model",
            "model": job["draft"],
            "num_speculative_tokens": job["k"],
        }
        | speculative,
        additional_config={} if settings is None else {"cospec": settings},
    )
    return llm, llm.llm_engine.model_executor.driver_worker.worker.model_runner


def complete(llm, prompts, params):
    from vllm import SamplingParams

    requests = [{"prompt_token_ids": ids} for ids in prompts]
    outputs = llm.generate(requests, [SamplingParams(**each) for each in params], use_tqdm=False)
    return [output.outputs[0] for output in outputs]


def generate(llm, prompts, **params):
    return [list(each.token_ids) for each in complete(llm, prompts, [params] * len(prompts))]


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


def other(spec, arbiter):
    """Another arbiter for an engine: by its spec, or what it has with another threshold."""
    from cospec.arbiters import load_arbiter

    _, comma, threshold = spec.partition(",threshold=")
    return arbiter.with_threshold(float(threshold)) if comma else load_arbiter(spec)


def on(job):
    """One engine, with one arbiter after the other."""
    from cospec.arbiters import load_arbiter

    result = {}
    first, *others = job["arbiters"]
    settings = {"arbiter": first} | job.get("settings", {})
    llm, runner = make(job, settings, disable_log_stats=False)
    adapter = runner.rejection_sampler.adapter
    judge, counts = adapter.row_arbiter, adapter.counts

    def total():
        """Counts of the plugin and of vLLM itself."""
        prefix = "vllm:spec_decode_"
        names = [f"{prefix}num_drafts", f"{prefix}num_draft_tokens"]
        stock = {one.name: one.value for one in llm.get_metrics() if one.name in names}
        return counts.drain() | {name.removeprefix(prefix): n for name, n in stock.items()}

    num_forwards = 0

    def count(*_):
        nonlocal num_forwards
        num_forwards += 1

    if not job.get("is_second_runner"):
        runner.drafter.model.register_forward_hook(count)
    greedy = dict(temperature=0, max_tokens=job["max_tokens"])
    for spec in (first, *others):
        if spec != first:
            adapter.row_arbiter = replace(judge, arbiter=other(spec, judge.arbiter))
        before, num_forwards = total(), 0
        texts = generate(llm, job["prompts"], **greedy)
        new = {name: n - before[name] for name, n in total().items()}
        result[spec] = {"texts": texts, "counts": new, "forwards": num_forwards}
    adapter.row_arbiter = replace(judge, arbiter=load_arbiter("always_draft"))
    some = job["prompts"][: job["num_opted_out"]]
    result["opted out"] = generate(llm, some, extra_args={"cospec": "off"}, **greedy)
    result["penalised"] = generate(llm, some, repetition_penalty=1.0001, **greedy)
    return result


def laws(job):
    """Many samples of one prompt under an arbiter, by law."""
    from cospec.arbiters import load_arbiter

    llm, runner = make(job, {"arbiter": job["law_arbiter"]} | job.get("settings", {}))
    adapter = runner.rejection_sampler.adapter
    result = {}
    for name, law in job["laws"].items():
        drafts_are_sampled = law.pop("drafts_are_sampled")
        if not job.get("is_second_runner"):  # it has an option for that
            runner.drafter._enable_probabilistic_draft_probs = drafts_are_sampled
        if (spec := law.pop("arbiter", None)) is not None:
            adapter.row_arbiter = replace(adapter.row_arbiter, arbiter=load_arbiter(spec))
        result[name] = generate(llm, [job["law_prompt"]] * job["num_samples"], **law)
    return result


def mixed(job):
    """Requests of many kinds in one batch, twice, and what is told of their probabilities."""
    from vllm.v1.sample.rejection_sampler import RejectionSampler
    from vllm.v1.sample.sampler import Sampler

    from cospec.arbiters import load_arbiter
    from cospec.vllm_plugin.v1 import ArbiterSampler

    llm, runner = make(job, {"arbiter": job["arbiters"][0]})
    adapter = runner.rejection_sampler.adapter
    params, prompts = job["mixed"], job["mixed_prompts"]
    result = {}
    for name, drafts_are_sampled in {"chosen": False, "sampled": True}.items():
        runner.drafter._enable_probabilistic_draft_probs = drafts_are_sampled
        before = adapter.counts.drain()["num_overrides"]
        texts = [list(each.token_ids) for each in complete(llm, prompts, params)]
        num_overrides = adapter.counts.drain()["num_overrides"] - before
        again = complete(llm, prompts[::-1], params[::-1])[::-1]
        again = [list(each.token_ids) for each in again]
        result[name] = {"texts": texts, "again": again, "num_overrides": num_overrides}
    keeps_most = load_arbiter("fsd_js:threshold=0.5")  # it needs the draft's logits too
    adapter.row_arbiter = replace(adapter.row_arbiter, arbiter=keeps_most)
    for mode in job["logprobs_modes"]:
        runner.sampler = Sampler(logprobs_mode=mode)
        runner.rejection_sampler = ArbiterSampler(RejectionSampler(runner.sampler), adapter, runner)
        done = complete(llm, prompts, [each | {"logprobs": 2} for each in params])
        result[mode] = [
            [
                (token, told[token].logprob, told[token].rank)
                for token, told in zip(each.token_ids, each.logprobs, strict=True)
            ]
            for each in done
        ]
    return result


def preempted(job):
    """Too few blocks for the batch: requests lose theirs and begin again behind their text."""
    from cospec.arbiters import load_arbiter

    few = dict(block_size=32, num_gpu_blocks_override=job["num_blocks"], disable_log_stats=False)
    llm, runner = make(job, {"arbiter": job["seed_arbiter"]}, **few)
    adapter = runner.rejection_sampler.adapter
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    stock, resumed = scheduler.schedule, []

    def schedule(*args, **kwargs):
        output = stock(*args, **kwargs)
        for request_id in output.scheduled_cached_reqs.resumed_req_ids:
            number = int(request_id.partition("-")[0])  # from 0 on, over both runs
            num_tokens = len(scheduler.requests[request_id].output_token_ids)
            resumed.append((number % len(job["prompts"]), num_tokens))
        return output

    scheduler.schedule = schedule

    def num_preemptions():
        counters = {metric.name: metric for metric in llm.get_metrics()}
        return counters["vllm:num_preemptions"].value

    result = {}
    for name, spec in {"learned": None, "lossless": "lossless"}.items():
        if spec is not None:
            adapter.row_arbiter = replace(adapter.row_arbiter, arbiter=load_arbiter(spec))
        resumed.clear()
        before = num_preemptions()
        texts = generate(llm, job["prompts"], temperature=0, max_tokens=job["max_tokens"])
        result[name] = {
            "texts": texts,
            "resumed": list(resumed),
            "num_preemptions": num_preemptions() - before,
        }
    return result


def stock(job):
    """Stock vLLM with its second runner: texts, and whose sampler it is."""
    llm, runner = make(job, None)
    texts = generate(llm, job["prompts"], temperature=0, max_tokens=job["max_tokens"])
    return {"texts": texts, "sampler": type(runner.rejection_sampler).__module__}


MODES = {
    "off": off,
    "on": on,
    "laws": laws,
    "mixed": mixed,
    "preempted": preempted,
    "stock": stock,
}

if __name__ == "__main__":
    mode, given, written = sys.argv[1:]
    answer = MODES[mode](json.loads(Path(given).read_text()))
    Path(written).write_text(json.dumps(answer))
