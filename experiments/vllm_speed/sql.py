"""Text-to-SQL inside vLLM: the pair with an arbiter, exact speculation and the target, in turns.

``target`` decodes alone. ``stock`` has vLLM's own speculation in blocks of -k tokens, ``short`` in
blocks of four. One engine with the plugin has two arms. For ``cospec`` the arbiter rules in blocks
as long as an answer, with one correction a text. For ``exact`` the request switches it off: blocks
have at most ten tokens then and end after one to which the draft gives less than 0.8. Prompts are
read before the clock runs. Arms take turns, one after so many questions at once as --concurrency
says, and each number has a result of its own: OUT_1.json and so on. A run that was killed resumes
from OUT_1.json.rows. With --turn, an arm's turn has more questions than the engine takes at once:
as on a busy server, one begins as soon as another has ended. Three engines of this pair do not fit
into 24 GB, so a run has some of the --arms.

With --draft-options the plugin's engine gets more of vLLM's speculative configuration, as with
``cospec serve``: shorter blocks under load, say.

With --shots both models are shown answered queries, as in experiments/text_to_sql. The prompts of a
turn have to fit into VLLM_CPU_KVCACHE_SPACE (GB), or they are read again on the clock.

The questions are those of a result of ``speed_real/speed.py`` or ``text_to_sql``::

    python experiments/vllm_speed/sql.py --target T --draft D --data-dir DATA --arbiter A \
        --ids-of experiments/speed_real/sql_databases.json.gz --per-database 1 --json OUT
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_speed import COUNTS, counts

from cospec.arbiters import AlwaysTarget, load_arbiter
from cospec.cli.serve import speculative_config
from cospec.evaluation.stats import speedup, speedup_interval
from cospec.models.load import load_tokenizer
from cospec.results import Provenance, check_writable, document, read_document, write_json
from cospec.tasks import load_task
from cospec.vllm_plugin.settings import KEY

sys.path.insert(0, str(Path(__file__).parents[1] / "text_to_sql"))

from arms import prompt, shots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.tasks import Example

ARMS = ("target", "short", "stock", "exact", "cospec")


def main() -> None:
    """Measure, print and write."""
    args = parse()
    results = {n: args.json.with_stem(f"{args.json.stem}_{n}") for n in args.concurrency}
    for path in results.values():
        check_writable(path, args.overwrite)
    provenance = Provenance()
    task = load_task("spider", data_dir=args.data_dir)
    examples = chosen(task, args)
    tokenizer = load_tokenizer(str(args.target))
    shown = shots(task, args)
    prompts = [prompt(task, example, tokenizer, shown, args) for example in examples]
    prompts = [tokenizer(one)["input_ids"] if isinstance(one, str) else one for one in prompts]
    engines = started(args)
    config = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    places = {example.id: example.metadata["db_id"] for example in examples}
    for number, path in results.items():
        kept = path.with_name(f"{path.name}.rows")
        rows = played(engines, task, examples, prompts, number, args, kept)
        table = [summary(rows, arm) for arm in args.arms]
        where = provenance.to_dict("cpu", args.dtype)
        result = document("vllm_sql", config, where, arms=table, rows=rows, databases=places)
        write_json(path, result)
        kept.unlink()
        for entry in table:
            print(number, entry, flush=True)


def played(
    engines: dict[str, Any],
    task: Any,
    examples: list[Example],
    prompts: list[Any],
    at_once: int,
    args: argparse.Namespace,
    kept: Path,
) -> list[dict[str, Any]]:
    """Return a row for each question and arm, with so many questions at once.

    The questions of a turn share its seconds evenly. A run that was killed goes on after the last
    whole turn of ``kept``.
    """
    lines = kept.read_text().splitlines() if kept.exists() else []
    turns: list[list[dict[str, Any]]] = [json.loads(line) for line in lines]
    arms, size = args.arms, args.turn or at_once
    for turn, first in enumerate(range(0, len(examples), size)):
        if turn < len(turns):
            continue
        rows = []
        here = slice(first, first + size)
        for engine in engines.values():
            decode(engine, prompts[here], args, num_new=1)
        for arm in arms[turn % len(arms) :] + arms[: turn % len(arms)]:
            done, seconds, counted = timed(engines, arm, prompts[here], args)
            for i, (example, each) in enumerate(zip(examples[here], done, strict=True)):
                row = {"task": "spider", "id": example.id, "turn": turn, "arm": arm}
                row |= {"seconds": seconds / len(done), "num_tokens": len(each.token_ids)}
                row |= {"correct": task.score(example, each.text).correct, "text": each.text}
                rows.append(row | (counted if not i else {}))
        turns.append(rows)
        with kept.open("a") as file:
            file.write(json.dumps(rows) + "\n")
        print(f"{first + len(done)} of {len(examples)}, {at_once} at once", flush=True)
    return [row for rows in turns for row in rows]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option in ("target", "draft", "data-dir", "arbiter", "ids-of"):
        parser.add_argument(f"--{option}", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["stock", "exact", "cospec"])
    parser.add_argument("--shots", type=int, default=0, help="as in text_to_sql/arms.py")
    parser.add_argument("--nearest", action="store_true", help="as in text_to_sql/arms.py")
    parser.add_argument("--rotate", type=int, default=0, help="as in text_to_sql/arms.py")
    parser.add_argument("--per-database", type=int, default=2, help="questions of each")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8], help="at once")
    parser.add_argument("--turn", type=int, help="questions a turn, with one --concurrency")
    parser.add_argument("-k", type=int, default=4, help="block length of vLLM's own speculation")
    parser.add_argument("--answer-tokens", type=int, default=64, help="block length of the arbiter")
    parser.add_argument("--threshold", type=float, default=0.0, help="ends blocks, in place of 0.8")
    parser.add_argument("--cascade", action="store_true", help="the draft reads guesses together")
    parser.add_argument("--draft-options", type=json.loads, default={}, help="a JSON object")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--compile", action="store_true", help="as vLLM does by default")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    if args.turn and len(args.concurrency) > 1:
        parser.error(f"--turn {args.turn} goes with one --concurrency; given are several.")
    return args


def chosen(task: Any, args: argparse.Namespace) -> list[Example]:
    """Return the questions, the first ones of each database."""
    result = read_document(args.ids_of)
    names = result.get("ids") or dict.fromkeys(row["id"] for row in result["rows"])
    known = {example.id: example for example in task.examples("train", None)}
    found, number = [], Counter[str]()
    for name in names:
        place = known[name].metadata["db_id"]
        number[place] += 1
        if number[place] <= args.per_database:
            found.append(known[name])
    return found


def started(args: argparse.Namespace) -> dict[str, Any]:
    """Return the engines by name."""
    from vllm import LLM  # noqa: PLC0415  # slow

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    draft = str(args.draft)
    arbiter = load_arbiter(str(args.arbiter))
    short, stock = (speculative_config(draft, k, AlwaysTarget()) for k in (4, args.k))
    ruled = speculative_config(draft, args.answer_tokens, arbiter) | args.draft_options
    plugin = {"arbiter": str(args.arbiter), "end_blocks_at_stop": True, "max_corrections": 1}
    plugin |= {"draft_confidence_threshold": args.threshold, "cascade": args.cascade}
    kinds: dict[str, dict[str, Any]] = {
        "target": {},
        "short": {"speculative_config": short},
        "stock": {"speculative_config": stock},
        "cospec": {"speculative_config": ruled, "additional_config": {KEY: plugin}},
    }
    return {
        name: LLM(
            str(args.target),
            dtype=args.dtype,
            max_model_len=args.max_model_len,
            max_num_seqs=max(args.concurrency),
            enable_prefix_caching=True,
            disable_log_stats=False,
            enforce_eager=not args.compile,
            seed=0,
            **more,
        )
        for name, more in kinds.items()
        if name in {engine_of(arm) for arm in args.arms}
    }


def engine_of(arm: str) -> str:
    """Return the name of an arm's engine."""
    return "cospec" if arm == "exact" else arm


def decode(
    engine: Any,  # Any: vllm.LLM
    prompts: Sequence[Any],
    args: argparse.Namespace,
    *,
    num_new: int | None = None,
    extra: dict[str, Any] | None = None,
) -> list[Any]:
    """Return greedy completions."""
    from vllm import SamplingParams, TokensPrompt  # noqa: PLC0415  # slow

    params = SamplingParams(
        temperature=0,
        max_tokens=num_new or args.max_new_tokens,
        extra_args=extra,
    )
    inputs = [TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts]
    return [one.outputs[0] for one in engine.generate(inputs, params, use_tqdm=False)]


def timed(
    engines: dict[str, Any], arm: str, prompts: Sequence[Any], args: argparse.Namespace
) -> tuple[list[Any], float, dict[str, int]]:
    """Return the completions of an arm's turn, its seconds, and vLLM's counts of it."""
    engine = engines[engine_of(arm)]
    extra = {KEY: "off"} if arm == "exact" else None
    before = counts(engine)
    start = time.perf_counter()
    done = decode(engine, prompts, args, extra=extra)
    seconds = time.perf_counter() - start
    return done, seconds, {name: n - before[name] for name, n in counts(engine).items()}


def summary(rows: list[dict[str, Any]], arm: str) -> dict[str, Any]:
    """Return an arm's numbers; speeds are over ``exact``, by the question, intervals over turns."""
    ours, exact = ([row for row in rows if row["arm"] == name] for name in (arm, "exact"))
    texts = {row["id"]: row["text"] for row in exact}
    pairs = [by_turn(some) for some in (exact, ours)]
    total = {name: sum(row.get(name, 0) for row in ours) for name in COUNTS}
    return {
        "arm": arm,
        "num_problems": len(ours),
        "num_correct": sum(row["correct"] for row in ours),
        "seconds_per_prompt": sum(row["seconds"] for row in ours) / len(ours),
        "speedup_vs_exact": speedup(*pairs) if exact else None,
        "speedup_vs_exact_ci95": speedup_interval(*pairs) if exact else None,
        "num_texts_unlike_exact": sum(row["text"] != texts.get(row["id"]) for row in ours),
        **total,
    }


def by_turn(rows: list[dict[str, Any]]) -> list[tuple[float, int]]:
    """Seconds and questions of each turn: those of one turn are no measurements of their own."""
    found: dict[int, tuple[float, int]] = {}
    for row in rows:
        seconds, number = found.get(row["turn"], (0.0, 0))
        found[row["turn"]] = seconds + row["seconds"], number + 1
    return list(found.values())


if __name__ == "__main__":
    sys.exit(main())
