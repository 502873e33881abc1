"""Rollouts on vLLM and on our engine, compared in a process of its own: see test_backend.

Usage: python rolling.py MODE JOB.json RESULT.json
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
sys.path.insert(0, str(Path(__file__).parents[2]))


def opened(job):
    """The pair, and both backends on it."""
    options = {}
    if job.get("is_second_runner"):  # before anything imports Triton
        from interpreted import NO_WARM_UP, interpret_kernels

        interpret_kernels()
        options = NO_WARM_UP
    from cospec import ModelPair
    from cospec.config import DecodeConfig
    from cospec.vllm_plugin.backend import VllmBackend, VllmSource
    from tests.vllm_plugin.aligned import AlignedBackend

    target, draft = job["models"]
    pair = ModelPair.from_pretrained(target, draft, dtype="float32", device="cpu")
    config = DecodeConfig(
        num_speculative_tokens=job["k"],
        batch_size=job["batch_size"],
        **job.get("decode", {}),
    )
    source = VllmSource(target, draft, "float32", options)
    vllm = VllmBackend(pair, source, config, records=job.get("records", "scalar"))
    return pair, AlignedBackend(pair, config), vllm


def numbers(m):
    """All that a decision is made from."""
    score = 0.0 if m.score is None else m.score
    return [m.p_draft_id, m.p_target_id, m.q_draft_id, m.q_target_id, score, *m.features.tolist()]


def facts(m):
    """Fields of a decision that have to be the same."""
    return m.position, m.block_position, m.draft_id, m.keep_draft, m.is_open, m.is_reached, m.veto


def compare(ours, theirs):
    """Differences of two lists of rollouts: tokens, counts, and decisions."""
    different, largest, num_decisions = [], 0.0, 0
    for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        a, b = one.completion, other.completion
        same = (
            a.token_ids == b.token_ids
            and a.text == b.text
            and a.origins == b.origins
            and a.finish_reason == b.finish_reason
            and replace(a.stats, num_draft_forwards=0) == replace(b.stats, num_draft_forwards=0)
            and len(a.trace) == len(b.trace)
        )
        same = same and list(map(facts, one.completion.reached)) == list(
            map(facts, other.completion.reached)
        )
        if not same:
            different.append([i, a.token_ids, b.token_ids, str(a.stats), str(b.stats)])
            continue
        for m, n in zip(one.completion.reached, other.completion.reached, strict=True):
            num_decisions += 1
            for x, y in zip(numbers(m), numbers(n), strict=True):
                gap = abs(x - y) / max(1.0, abs(x))
                largest = max(largest, math.inf if math.isnan(gap) else gap)
    return {
        "different": different,
        "largest": largest,
        "num_decisions": num_decisions,
        "num_overrides": sum(one.completion.stats.num_overrides for one in ours),
    }


def points(rollouts, seed):
    """The other ruling at the first, the middle and the last mismatch of each."""
    from cospec.backends.base import BranchPoint
    from cospec.types import Origin

    found = []
    for one in rollouts:
        reached = one.completion.reached
        for m in {id(m): m for m in (*reached[:1], *reached[len(reached) // 2 :][:1])}.values():
            other = (
                (m.target_id, Origin.CORRECTION) if m.keep_draft else (m.draft_id, Origin.OVERRIDE)
            )
            found.append(BranchPoint(one, m.position, *other, seed=seed, stream=len(found)))
    return found


def law(job):
    """One engine, and under each arbiter: completions, branches, branches of branches."""
    from cospec import SamplingConfig
    from cospec.arbiters import load_arbiter
    from cospec.arbiters.observed import Observed
    from cospec.backends.base import Item
    from cospec.features import make_features

    pair, ours, theirs = opened(job)
    result = {}
    for spec, chance in job["arbiters"]:
        arbiter = load_arbiter(spec, pair)
        arbiter = replace(arbiter, explore=1.0) if chance else arbiter
        if not hasattr(arbiter, "features"):
            arbiter = Observed(arbiter, make_features("scalar", pair))
        sampling = SamplingConfig(max_new_tokens=job["max_tokens"], seed=3, stop=("\n\n",))
        items = [Item(ids, sampling, i) for i, ids in enumerate(job["prompts"])]
        rollouts = [each.complete(items, arbiter, keep_handles=True) for each in (ours, theirs)]
        branches = [
            each.branch(points(done, 5), arbiter, keep_handles=True)
            for each, done in zip((ours, theirs), rollouts, strict=True)
        ]
        again = theirs.complete(items[::-1], arbiter)[::-1]
        found = {
            "rollouts": compare(*rollouts),
            "branches": compare(*branches),
            "again": compare(rollouts[1], again),
        }
        if not found["branches"]["different"]:
            twice = [
                each.branch(points(done[:6], 7), arbiter)
                for each, done in zip((ours, theirs), branches, strict=True)
            ]
            found["twice"] = compare(*twice)
        result[f"{spec} {'by chance' if chance else 'fixed'}"] = found
    return result


def train(job):
    """Two rounds with each backend, from one seed."""
    from cospec.rl.trainer import Trainer
    from cospec.tasks.jsonl import jsonl
    from tests.rl.conftest import train_config

    pair, ours, theirs = opened(job)
    task = jsonl(job["problems"], {"scorer": "numeric", "split": "test"})
    examples = task.examples("test", job["num_problems"])
    config = train_config(**job["train"], num_speculative_tokens=job["k"])
    result = {}
    for name, backend in {"ours": ours, "theirs": theirs}.items():
        folder = Path(tempfile.mkdtemp())
        half = len(examples) // 2
        trainer = Trainer(pair, backend, task, config, examples[:half], examples[half:], folder)
        trainer.run()
        skipped = ("seconds", "rollout_s")
        result[name] = {
            "weights": {k: v.tolist() for k, v in trainer.state.policy.state_dict().items()},
            "start": {k: v.tolist() for k, v in trainer.state.start.state_dict().items()},
            "history": [
                {k: v for k, v in row.items() if k not in skipped} for row in trainer.state.history
            ],
            "num_branches": [len(part) for part in trainer.state.replay],
        }
    return result


if __name__ == "__main__":
    mode, given, written = sys.argv[1:]
    answer = {"law": law, "train": train}[mode](json.loads(Path(given).read_text()))
    Path(written).write_text(json.dumps(answer))
