"""Speed and accuracy inside vLLM: target alone, stock speculation, and CoSpec, in one run.

Arms, each an engine in a process of its own on the same machine:
``target`` decodes plainly; ``stock`` is vLLM's draft-model speculation without the plugin;
``lossless`` has the plugin with the arbiter at threshold 1 (a rule: the arbiter ``lossless``),
which rules and never overrides; ``cospec`` has the arbiter as it is. Further arms by --arms:
``fly`` is vLLM's own FLy (0.33 and later), ``fly_rule`` the plugin with the same rule.
With --plugin the plugin's engines get more of its settings, and with --stock-k vLLM's own
speculation gets blocks of another length.

Each arm solves all problems greedily at the highest concurrency (its accuracy and counts). Then the
arms take turns, a trial each, at each concurrency: the first few problems again. Of --num-trials
turns come the speeds and their intervals. Engines whose turn it is not wait, so all have to fit
into memory. Answers are kept beside the result file: a run that was stopped goes on with the next
arm. Where vLLM has its second runner alone and there is no GPU, Triton interprets the kernels: good
for answers, not for speeds.

Usage::

    python experiments/vllm_speed/vllm_speed.py --pair bundled:specialist --arbiter bundled \
        -k 16 --num-problems 200 --json runs/vllm_speed_specialist.json

With --task the problems are a task's, with the prompts that the task gives the target.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from cospec.arbiters import AlwaysTarget, load_arbiter
from cospec.cli.demo import _load_problems
from cospec.cli.serve import Serve, speculative_config
from cospec.evaluation.stats import speedup, speedup_interval
from cospec.evaluation.summary import quality
from cospec.models.bundled import bundled_home
from cospec.models.load import load_tokenizer
from cospec.results import Provenance, check_writable, document, write_json
from cospec.tasks import load_task
from cospec.vllm_plugin.metrics import read_counts
from cospec.vllm_plugin.settings import KEY, Settings

sys.path.append(str(Path(__file__).parents[2] / "tests" / "vllm_plugin"))

from interpreted import NO_WARM_UP, interpret_kernels  # a module of the repository's tests

ARMS = ("target", "stock", "lossless", "cospec")
ALL_ARMS = (*ARMS, "fly", "fly_rule")
FLY_RULE = "fly:window=7"
"""vLLM's window of 6 counts the matches alone."""
STOP = ("\nQuestion:",)
COUNTS = {
    "num_target_forwards": "vllm:spec_decode_num_drafts",
    "num_draft_tokens": "vllm:spec_decode_num_draft_tokens",
    "num_accepted_tokens": "vllm:spec_decode_num_accepted_tokens",
}

Json = dict[str, Any]

HERE: Json = {}
"""The engine, the timed prompts and the options of an arm's own process."""


def settings_of(arm: str, args: argparse.Namespace) -> Settings | None:
    """What the plugin is told in an arm; None if it is off."""
    if arm in {"target", "stock", "fly"}:
        return None
    if arm == "fly_rule":
        return Settings(FLY_RULE, **args.plugin)
    settings = Serve(pair=args.pair, target=args.target, draft=args.draft, arbiter=args.arbiter)
    spec = settings.settings().arbiter
    is_trained = Path(spec.partition(":")[0]).is_dir()
    if arm == "cospec":
        return Settings(spec, **args.plugin)
    if is_trained:
        return Settings(spec.partition(":")[0], threshold=1.0, **args.plugin)
    return Settings("lossless", **args.plugin)


def load_engine(arm: str, args: argparse.Namespace, settings: Settings | None) -> Any:
    """The vLLM engine of an arm."""
    options: Json = {}
    if is_interpreted():
        interpret_kernels()
        options |= NO_WARM_UP
    from vllm import LLM  # noqa: PLC0415  # in an arm's own process

    serve = Serve(pair=args.pair, target=args.target, draft=args.draft)
    target, draft = serve.models()
    if settings is not None:
        given = {name: value for name, value in settings.to_dict().items() if value is not None}
        options["additional_config"] = {KEY: given}
        arbiter = load_arbiter(settings.arbiter_spec)
        options["speculative_config"] = speculative_config(draft, args.k, arbiter)
    elif arm != "target":
        options["speculative_config"] = speculative_config(
            draft, args.stock_k or args.k, AlwaysTarget()
        )
        if arm == "fly":
            options["speculative_config"]["rejection_sample_method"] = "fly"
    return LLM(
        target,
        dtype="float32" if args.pair and args.dtype == "auto" else args.dtype,
        enforce_eager=not args.compile,
        max_model_len=args.max_model_len,
        max_num_seqs=max(args.concurrency),
        enable_prefix_caching=False,  # trials repeat their prompts
        disable_log_stats=False,
        seed=0,
        **share_of_gpu(args),
        **options,
    )


def share_of_gpu(args: argparse.Namespace) -> Json:
    """An arm's share of a GPU's memory, in vLLM's words."""
    return {"gpu_memory_utilization": 0.9 / len(args.arms)} if on_gpu() else {}


def problems(args: argparse.Namespace) -> tuple[Any, list[Any], list[str]]:
    """The task, its problems, and the strings that end an answer."""
    if not args.task:
        return *_load_problems(None, args.num_problems), list(STOP)
    task = load_task(args.task, data_dir=args.data_dir and Path(args.data_dir))
    return task, task.examples(args.split, args.num_problems, args.seed), []


def generate(
    llm: Any,
    prompts: list[list[int]],
    concurrency: int,
    args: argparse.Namespace,
    num_new: int | None = None,
) -> list[Any]:
    """Greedy completions, so many at a time (the engine's own limit is the highest)."""
    from vllm import SamplingParams, TokensPrompt  # noqa: PLC0415  # in an arm's own process

    limit = num_new or args.max_new_tokens
    params = SamplingParams(temperature=0, max_tokens=limit, stop=args.stop)
    size = len(prompts) if concurrency == max(args.concurrency) > 1 else concurrency
    done = []
    for start in range(0, len(prompts), size):
        part = [TokensPrompt(prompt_token_ids=ids) for ids in prompts[start : start + size]]
        done += llm.generate(part, params, use_tqdm=False)
    return [each.outputs[0] for each in done]


def start(arm: str, args: argparse.Namespace, *, has_answers: bool) -> Json | None:
    """Load an arm's engine in its process; return what is measured before the trials."""
    settings = settings_of(arm, args)
    task, examples, args.stop = problems(args)
    models = Serve(pair=args.pair, target=args.target, draft=args.draft).models()
    tokenizer = load_tokenizer(models[0])
    asked = [task.prompt(example, tokenizer) for example in examples]
    prompts = [tokenizer(one)["input_ids"] if isinstance(one, str) else list(one) for one in asked]
    most = max(args.concurrency)
    started = time.perf_counter()
    llm = load_engine(arm, args, settings)
    loaded = time.perf_counter() - started
    HERE.update(llm=llm, prompts=prompts[: args.num_timed], args=args)
    generate(llm, prompts[: max(most, args.num_timed)], most, args, 32)  # warm-up
    if has_answers:
        return None
    before = counts(llm)
    ours_before = read_counts(llm.llm_engine.vllm_config) if settings else {}
    done = generate(llm, prompts, most, args)
    counted = {name: value - before[name] for name, value in counts(llm).items()}
    if settings:
        ours = read_counts(llm.llm_engine.vllm_config)
        counted |= {name: ours[name] - ours_before[name] for name in ours}
    rows = [
        {
            "id": example.id,
            "arm": arm,
            "correct": task.score(example, each.text).correct,
            "strict": None,
            "num_tokens": len(each.token_ids),
            "text": each.text,
            "token_ids": list(each.token_ids),
        }
        for example, each in zip(examples, done, strict=True)
    ]
    arbiter = None
    if settings:  # without the folder that this machine has the package in
        arbiter = settings.arbiter_spec.removeprefix(f"{bundled_home()}/")
    return {
        "arm": arm,
        "arbiter": arbiter,
        "load_s": round(loaded, 1),
        "counts": counted,
        "rows": rows,
    }


def trial(concurrency: int) -> float:
    """Return the tokens a second of this process's engine."""
    begin = time.perf_counter()
    timed = generate(HERE["llm"], HERE["prompts"], concurrency, HERE["args"])
    seconds = time.perf_counter() - begin
    return round(sum(len(each.token_ids) for each in timed) / seconds, 3)


def run(args: argparse.Namespace, config: Json, paths: dict[str, Path]) -> dict[str, Json]:
    """Return everything that is measured, by arm."""
    parts: dict[str, Json] = {}
    spawn = get_context("spawn")
    workers = {arm: ProcessPoolExecutor(1, mp_context=spawn) for arm in args.arms}
    for arm, path in paths.items():  # one after another: on a GPU each measures the free memory
        kept = json.loads(path.read_text()) if path.exists() else {}
        has_answers = kept.get("config") == config
        if not has_answers or args.num_trials:
            found = workers[arm].submit(start, arm, args, has_answers=has_answers).result()
        if not has_answers:
            write_json(path, kept := {"config": config} | found)
        parts[arm] = kept | {"trials": {}}
    for turn in range(args.num_trials and args.num_trials + 1):
        first = turn % len(args.arms)
        for concurrency in args.concurrency:
            for arm in args.arms[first:] + args.arms[:first]:
                speed = workers[arm].submit(trial, concurrency).result()
                if turn:  # the first one warms up
                    parts[arm]["trials"].setdefault(str(concurrency), []).append(speed)
                    print(f"{arm}: {speed:.1f} tokens/s at {concurrency}", flush=True)
    for worker in workers.values():
        worker.shutdown()
    return parts


def counts(llm: Any) -> dict[str, int]:
    """VLLM's own counts of speculation so far; zeros without it."""
    found = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
    return {name: int(found.get(theirs, 0)) for name, theirs in COUNTS.items()}


def summarize(parts: dict[str, Json]) -> list[Json]:
    """One entry an arm."""
    arms = []
    has_speeds = any(part["trials"] for part in parts.values())
    for name, part in parts.items():
        rows, counted = part["rows"], part["counts"]
        num_blocks = counted["num_target_forwards"]
        length = 1 + counted["num_accepted_tokens"] / num_blocks if num_blocks else 1.0
        speeds = {c: statistics.median(trials) for c, trials in part["trials"].items()}
        entry: Json = {"name": name, "arbiter": part["arbiter"], "num_problems": len(rows)}
        entry |= quality(rows, parts["target"]["rows"])
        entry |= {"tokens_per_s": speeds, "trials": part["trials"], "load_s": part["load_s"]}
        for baseline in ("target", "stock") if has_speeds else ():
            theirs = parts[baseline]["trials"]
            pairs = {c: (chunks(theirs[c]), chunks(ours)) for c, ours in part["trials"].items()}
            entry[f"speedup_vs_{baseline}"] = {c: speedup(*both) for c, both in pairs.items()}
            entry[f"speedup_vs_{baseline}_ci95"] = {
                c: speedup_interval(*both) for c, both in pairs.items()
            }
        arms.append(entry | {"mean_acceptance_length": round(length, 3)} | counted)
    return arms


def chunks(speeds: list[float]) -> list[tuple[float, float]]:
    """Seconds a token of each trial, as `speedup_interval` takes them."""
    return [(1 / speed, 1.0) for speed in speeds]


def same_ids(ours: Json, theirs: Json) -> Json:
    """On how many problems two arms wrote the same tokens."""
    pairs = list(zip(ours["rows"], theirs["rows"], strict=True))
    unlike = [a["id"] for a, b in pairs if a["token_ids"] != b["token_ids"]]
    return {"num_problems": len(pairs), "num_same": len(pairs) - len(unlike), "unlike": unlike}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option in ("pair", "target", "draft"):
        parser.add_argument(f"--{option}")
    parser.add_argument("--arbiter", default="bundled")
    parser.add_argument("--task", help="in place of the demo's problems, such as gsm8k")
    parser.add_argument("--data-dir")
    parser.add_argument("--split", choices=("train", "tune", "test"), default="tune")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of problems")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ALL_ARMS)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("-k", type=int, default=6)
    parser.add_argument("--stock-k", type=int, help="-k of vLLM's own speculation; default: as -k")
    parser.add_argument("--plugin", type=json.loads, default={}, help="a JSON object")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--num-problems", type=int, default=200)
    parser.add_argument("--num-timed", type=int, default=16)
    parser.add_argument("--num-trials", type=int, default=20, help="of each arm; 0: no speeds")
    parser.add_argument("--max-new-tokens", type=int, default=300)
    parser.add_argument("--compile", action="store_true", help="not in eager mode")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    if not {"target", "stock"} <= set(args.arms):
        parser.error("--arms needs target and stock, with which the others are compared")
    return args


def main() -> None:
    """Run what is missing and write the result file."""
    args = parse()
    hidden = {"arms", "json", "overwrite", "num_trials"}
    config = {k: v for k, v in vars(args).items() if k not in hidden}
    check_writable(args.json, args.overwrite)
    provenance = Provenance()
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if is_interpreted():
        os.environ["TRITON_INTERPRET"] = "1"  # before an arm's process imports torch and Triton
    paths = {arm: args.json.with_name(f"{args.json.name}.{arm}.part") for arm in args.arms}
    parts = run(args, config, paths)
    arms = summarize(parts)
    pairs = [("stock", "target"), ("lossless", "stock"), ("fly_rule", "fly")]
    ids = {
        f"{one}_vs_{other}": same_ids(parts[one], parts[other])
        for one, other in pairs
        if one in parts and other in parts
    }
    rows = [
        {name: value for name, value in row.items() if name not in {"token_ids", "strict"}}
        for part in parts.values()
        for row in part["rows"]
    ]
    where = provenance.to_dict("cuda" if on_gpu() else "cpu", args.dtype)
    where["engine_threads"] = os.environ["OMP_NUM_THREADS"]
    config["num_trials"] = args.num_trials
    result = document("vllm_speed", config, where, arms=arms, same_ids=ids, rows=rows)
    result["argv"][0] = "experiments/vllm_speed/vllm_speed.py"
    write_json(args.json, result)
    for path in paths.values():
        path.unlink()
    report(arms, ids)


def on_gpu() -> bool:
    """Whether vLLM ran on CUDA."""
    return torch.cuda.is_available()


def is_interpreted() -> bool:
    """Whether Triton has to interpret vLLM's kernels: no GPU, and the second runner alone."""
    return not on_gpu() and importlib.util.find_spec("vllm.v1.worker.gpu_model_runner") is None


def report(arms: list[Json], ids: Json) -> None:
    """The table for people."""
    for arm in arms:
        speeds = "  ".join(f"{v:7.0f} tok/s at {c}" for c, v in arm["tokens_per_s"].items())
        shown = f"{arm['accuracy']:6.1%} right  {speeds}  length {arm['mean_acceptance_length']}"
        print(f"{arm['name']:9} {shown}  overrides {arm.get('num_overrides', 0)}")
    for name, found in ids.items():
        print(f"{name}: {found['num_same']} of {found['num_problems']} alike, token for token")


if __name__ == "__main__":
    main()
