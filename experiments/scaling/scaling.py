"""Cost of a training round: measured on a bundled pair, computed for a cluster.

``python experiments/scaling/scaling.py measure --out FILE`` plays rollouts and branches and times
its parts in CPU seconds of one thread, which another job on the machine does not change much.
``python experiments/scaling/scaling.py replicas --out FILE`` times the same work in one process, on
one replica and on two, by the clock: nothing may run beside it.
``python experiments/scaling/scaling.py plan`` fills the table of ``docs/scaling.md`` from that file
and from the sizes of a cluster; with ``--check`` it fails where the page differs.
"""

from __future__ import annotations

import itertools
import json
import pickle
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.backends.base import BranchPoint, Item, Rollout
from cospec.backends.engine import EngineBackend
from cospec.backends.packing import pack, unpack
from cospec.backends.ray import RayBackend
from cospec.config import DecodeConfig
from cospec.evaluation.problems import encode_problems
from cospec.features import make_features
from cospec.models import ModelPair
from cospec.models.bundled import bundled_home
from cospec.results import Provenance, document, write_json
from cospec.rl.losses import branch_loss
from cospec.tasks.jsonl import jsonl
from cospec.types import Origin
from cospec.vllm_plugin.parcels import Sender

HERE = Path(__file__).parent
MEASURED = HERE / "measured.json"
PAGE = HERE.parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- scaling -->", "<!-- end -->"
NUM_TURNS = 3
"""Times that each backend plays the same work."""
NUM_EPOCHS = 60
"""Updates of a round, as `cospec train` makes by default."""


@dataclass(frozen=True)
class Cluster:
    """GPUs, and how they are shared out; a GPU's data sheet, and shares of it that are reached."""

    num_gpus: int
    gpus_per_replica: int = 4
    bytes_per_s: float = 3.35e12
    flops: float = 989e12
    memory_bytes: float = 80e9
    memory_share: float = 0.7
    """Share of the bandwidth that is reached."""
    flops_share: float = 0.4
    dollars_per_gpu_hour: float = 2.5


@dataclass(frozen=True)
class Pair:
    """A target and a draft in 16 bits: 70B and 8B of the Llama 3 family."""

    target_params: float = 70e9
    draft_params: float = 8e9
    target_kv_bytes: float = 2 * 80 * 8 * 128 * 2
    draft_kv_bytes: float = 2 * 32 * 8 * 128 * 2


@dataclass(frozen=True)
class Round:
    """A round of training; lengths and acceptance are assumptions, to be replaced by an audit's."""

    num_problems: int = 2048
    num_branches: int = 8192
    prompt_tokens: int = 300
    output_tokens: int = 400
    branch_share: float = 0.5
    """Share of a text that is left at a branch."""
    k: int = 6
    tokens_per_block: float = 4.0
    mismatches_per_text: int = 40
    batch_size: int = 256
    """Texts decoded together by a replica, at most."""
    step_overhead_s: float = 0.004
    """Scheduling and launches of a verify step and its drafts."""


def step_seconds(cluster: Cluster, pair: Pair, work: Round, batch: int) -> tuple[float, str]:
    """Return the seconds of one block of a batch, and what limits its verify step."""
    g, k = cluster.gpus_per_replica, work.k
    bandwidth = g * cluster.bytes_per_s * cluster.memory_share
    flops = g * cluster.flops * cluster.flops_share
    context = work.prompt_tokens + work.output_tokens / 2

    def forward(params: float, kv_bytes: float, tokens: int) -> tuple[float, float]:
        read = 2 * params + batch * context * kv_bytes
        return read / bandwidth, 2 * params * batch * tokens / flops

    verify = forward(pair.target_params, pair.target_kv_bytes, k + 1)
    draft = max(forward(pair.draft_params, pair.draft_kv_bytes, 1))
    limit = "arithmetic" if verify[1] > verify[0] else "memory bandwidth"
    return max(verify) + k * draft + work.step_overhead_s, limit


def largest_batch(cluster: Cluster, pair: Pair, work: Round) -> int:
    """Return the texts that the memory of a replica holds, at most `Round.batch_size`."""
    g = cluster.gpus_per_replica
    room = 0.9 * g * cluster.memory_bytes - 2 * (pair.target_params + pair.draft_params)
    per_text = (work.prompt_tokens + work.output_tokens) * (
        pair.target_kv_bytes + pair.draft_kv_bytes
    )
    return max(0, min(work.batch_size, int(room / per_text)))


def plan(
    cluster: Cluster, pair: Pair, work: Round, measured: dict[str, float]
) -> dict[str, object]:
    """Return what a round costs."""
    num_replicas = cluster.num_gpus // cluster.gpus_per_replica
    batch = largest_batch(cluster, pair, work)
    step_s, limit = step_seconds(cluster, pair, work, batch)
    tokens_per_s = num_replicas * batch * work.tokens_per_block / step_s
    rollout_tokens = work.num_problems * work.output_tokens
    branch_tokens = work.num_branches * work.output_tokens * work.branch_share
    # A branch reads at most a cache block of 16 tokens again.
    read = work.num_problems * work.prompt_tokens + work.num_branches * 16
    flops = cluster.num_gpus * cluster.flops * cluster.flops_share
    read_s = 2 * (pair.target_params + pair.draft_params) * read / flops
    # The last texts of a round run in batches that are no longer full.
    tail_s = 2 * work.output_tokens / work.tokens_per_block * step_s / 4
    # The trace of a branch begins at the branch.
    texts = work.num_problems + work.branch_share * work.num_branches
    shipped = texts * measured["bytes_per_text"]
    host_s = texts * measured["pickle_s_per_text"]
    learner_s = measured["learner_s_per_branch_epoch"] * work.num_branches * NUM_EPOCHS
    play_s = (rollout_tokens + branch_tokens) / tokens_per_s + read_s + tail_s
    seconds = play_s + host_s + learner_s
    return {
        "GPUs": cluster.num_gpus,
        "replicas": num_replicas,
        "batch": batch,
        "limited by": limit,
        "tokens/s": round(tokens_per_s),
        "rollouts": f"{rollout_tokens / tokens_per_s:.0f} s",
        "branches": f"{branch_tokens / tokens_per_s:.0f} s",
        "prompts": f"{read_s:.0f} s",
        "tail": f"{tail_s:.0f} s",
        "results": f"{host_s:.1f} s, {shipped / 1e6:.0f} MB",
        "learner": f"{learner_s:.1f} s",
        "round": f"{seconds / 60:.1f} min",
        "cost": f"${seconds / 3600 * cluster.num_gpus * cluster.dollars_per_gpu_hour:.2f}",
    }


def table(rows: list[dict[str, object]]) -> str:
    """Return rows as a markdown table, one column a cluster."""
    lines = [f"| | {' | '.join(str(row['GPUs']) + ' H100' for row in rows)} |"]
    lines.append("| --- |" + " --- |" * len(rows))
    for name in list(rows[0])[1:]:
        lines.append(f"| {name} | {' | '.join(str(row[name]) for row in rows)} |")
    return "\n".join(lines)


def show_plan(check: bool = False) -> None:
    """Fill the page, or say where it differs."""
    measured = json.loads(MEASURED.read_text())["measured"]
    rows = [plan(Cluster(n), Pair(), Round(), measured) for n in (8, 64)]
    text = PAGE.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    filled = f"{head}{BEGIN}\n{table(rows)}\n{END}{tail}"
    if check and filled != text:
        raise SystemExit(f"{PAGE} differs; run: python experiments/scaling/scaling.py plan")
    PAGE.write_text(filled)
    print(table(rows))


def measure(out: Path = MEASURED, num_problems: int = 32) -> None:
    """Play a small round of bundled:specialist, and time its parts in CPU seconds."""
    torch.set_num_threads(1)
    provenance = Provenance()
    pair = ModelPair.from_pretrained("bundled:specialist")
    features = make_features("scalar", pair)
    policy = Policy(len(features.names), PolicyConfig())
    arbiter = LearnedArbiter(policy, features, explore=1.0)
    found = measure_rollouts(pair, arbiter, num_problems)
    found["learner_s_per_branch_epoch"] = learner_s(policy)
    play_s = found.pop("play_s")
    found["learner_share"] = (
        NUM_EPOCHS * found["learner_s_per_branch_epoch"] * found["num_branches"] / play_s
    )
    start = time.process_time()
    sent = [len(Sender().pack(arbiter)) for _ in range(20)]
    found |= {"arbiter_bytes": sent[0], "arbiter_pack_s": (time.process_time() - start) / 20}
    where = provenance.to_dict(str(pair.target.device), str(pair.target.dtype))
    config = {"num_problems": num_problems, "num_epochs": NUM_EPOCHS, "pair": "bundled:specialist"}
    write_json(out, document("scaling", config, where, measured=found))
    print(json.dumps(found, indent=1))


def engine() -> EngineBackend:
    """Return the backend that is measured, in one thread."""
    torch.set_num_threads(1)
    pair = ModelPair.from_pretrained("bundled:specialist")
    return EngineBackend(pair, DecodeConfig(num_speculative_tokens=6, batch_size=24))


def compare_replicas(out: Path = HERE / "replicas.json", num_problems: int = 96) -> None:
    """Play problems and their branches in this process, on one replica and on two, in turns."""
    import ray  # noqa: PLC0415  # only this part needs it

    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)  # for all replicas
    provenance = Provenance()
    alone = engine()
    features = make_features("scalar", alone.pair)
    arbiter = LearnedArbiter(Policy(len(features.names), PolicyConfig()), features, explore=1.0)
    backends = {"one process": alone} | {
        f"{n} replica{'s' * (n > 1)}": RayBackend(engine, n, chunk_size=24) for n in (1, 2)
    }
    task = jsonl(str(bundled_home() / "problems.jsonl"), {"scorer": "numeric", "split": "test"})
    encoded = encode_problems(alone.pair, task, task.examples("test", num_problems))
    items = [Item(*pair, i) for i, pair in enumerate(zip(*encoded, strict=True))]
    rows: list[dict[str, object]] = []
    for turn in range(-1, NUM_TURNS):  # the first one warms up
        for name, backend in backends.items():
            start = time.perf_counter()
            rollouts = backend.complete(items, arbiter, keep_handles=True)
            middle = time.perf_counter()
            points = points_of(rollouts)
            backend.branch(points, arbiter)
            seconds = {"rollouts_s": middle - start, "branches_s": time.perf_counter() - middle}
            if turn >= 0:
                rows.append({"backend": name, "turn": turn, "num_branches": len(points), **seconds})
            print(name, turn, seconds, flush=True)
    where = provenance.to_dict(str(alone.pair.target.device), str(alone.pair.target.dtype))
    config = {"num_problems": num_problems, "batch_size": 24, "pair": "bundled:specialist"}
    write_json(out, document("scaling", config, where, rows=rows))


def points_of(rollouts: list[Rollout]) -> list[BranchPoint]:
    """Return a branch at each ruling for the target."""
    return [
        BranchPoint(one, m.position, m.draft_id, Origin.OVERRIDE, 0, i)
        for i, one in enumerate(rollouts)
        for m in one.completion.reached
        if m.is_open and not m.keep_draft
    ]


def measure_rollouts(
    pair: ModelPair, arbiter: LearnedArbiter, num_problems: int
) -> dict[str, float]:
    """Play problems and a branch at each ruling for the target; time both, and what they send."""
    task = jsonl(str(bundled_home() / "problems.jsonl"), {"scorer": "numeric", "split": "test"})
    backend = EngineBackend(pair, DecodeConfig(num_speculative_tokens=6, batch_size=32))
    encoded = encode_problems(pair, task, task.examples("test", num_problems))
    items = [Item(*pair, i) for i, pair in enumerate(zip(*encoded, strict=True))]
    clock = time.process_time
    times = [clock()]
    rollouts = backend.complete(items, arbiter, keep_handles=True)
    times.append(clock())
    points = points_of(rollouts)
    ends = backend.branch(points, arbiter)
    times.append(clock())
    rollouts_s, branches_s = (b - a for a, b in itertools.pairwise(times))
    tokens = sum(len(one.completion.token_ids) for one in rollouts)
    return {
        "play_s": rollouts_s + branches_s,
        "rollouts_per_cpu_s": len(rollouts) / rollouts_s,
        "branches_per_cpu_s": len(ends) / branches_s,
        "num_rollouts": len(rollouts),
        "num_branches": len(ends),
        "tokens_per_rollout": tokens / len(rollouts),
        **sending(rollouts, Round()),
    }


def sending(rollouts: list[Rollout], work: Round, num_texts: int = 256) -> dict[str, float]:
    """Pack texts of the planned size, made of blocks that were played, and unpack them."""
    done = [one.completion for one in rollouts]
    blocks = [step for one in done for step in one.trace]
    ruled = itertools.cycle(step for step in blocks if len(step.mismatches) == 1)
    others = itertools.cycle(step for step in blocks if not step.mismatches)
    num_others = round(work.output_tokens / work.tokens_per_block) - work.mismatches_per_text
    texts = []
    for _ in range(num_texts):
        trace = [*itertools.islice(ruled, work.mismatches_per_text)]
        trace += itertools.islice(others, num_others)
        ids = [*itertools.islice(itertools.cycle(done[0].token_ids), work.output_tokens)]
        origins = [*itertools.islice(itertools.cycle(done[0].origins), work.output_tokens)]
        whole = replace(done[0], token_ids=ids, origins=origins, trace=trace)
        texts.append(Rollout(whole))
    seconds = []
    for _ in range(NUM_TURNS):
        start = time.process_time()
        parcel = pickle.dumps(pack(texts))
        unpack(pickle.loads(parcel))
        seconds.append((time.process_time() - start) / num_texts)
    return {
        "pickle_s_per_text": statistics.median(seconds),
        "bytes_per_text": len(parcel) / num_texts,
    }


def learner_s(policy: Policy) -> float:
    """Return the CPU seconds of one update, per branch."""
    x = torch.randn(2048, len(policy.mean))
    policy.normalize_by(x)
    optimizer = torch.optim.AdamW(policy.parameters())
    start = time.process_time()
    for _ in range(NUM_EPOCHS):
        optimizer.zero_grad()
        branch_loss(policy(x), torch.ones(len(x)), torch.ones(len(x))).backward()
        optimizer.step()
    return (time.process_time() - start) / NUM_EPOCHS / len(x)


@dataclass(frozen=True)
class Plan:
    """Fill the table of the page."""

    check: bool = False


@dataclass(frozen=True)
class Measure:
    """Measure on a bundled pair."""

    out: Path = MEASURED
    num_problems: int = 32


@dataclass(frozen=True)
class Replicas:
    """Compare one process, one replica and two."""

    out: Path = HERE / "replicas.json"
    num_problems: int = 96


if __name__ == "__main__":
    chosen = tyro.cli(
        Annotated[Plan, tyro.conf.subcommand("plan")]
        | Annotated[Measure, tyro.conf.subcommand("measure")]
        | Annotated[Replicas, tyro.conf.subcommand("replicas")]
    )
    if isinstance(chosen, Plan):
        show_plan(chosen.check)
    elif isinstance(chosen, Measure):
        measure(**asdict(chosen))
    else:
        compare_replicas(**asdict(chosen))
