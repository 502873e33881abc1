"""Every way to decode a real pair, on the same prompts in one process.

Arms take turns prompt by prompt (or --batch-size prompts), another one first each time. Each arm's
speed-up over the target alone is a ratio of tokens a second with a bootstrap interval over these
turns, if there are enough. Beside it stands what the forwards of its blocks allow
(`cospec.models.costs`), at costs measured after the last prompt.

Usage::

    python experiments/speed_real/speed.py --target T --draft D --data-dir DATA --json OUT

For a try: ``--pair bundled:family --tasks reasoning_gym:chain_sum --count 1``
in place of both folders. The contexts of bundled pairs are too short for the other tasks.

A run that was killed resumes from OUT.rows, which has one line a prompt and arm.

With --prefix-caching every arm reads the schema of a database before its first question is timed,
as a service that knows its databases has: that question is decoded for a few tokens and not
measured. Arms with the same models read it once for all of them.

With --read-first so is every whole prompt: then what is timed is decoding alone, as where an
earlier turn has read the document. It comes with --prefix-caching.

With --shots the target is shown so many of the draft's questions about the same database with their
answers, as in experiments/text_to_sql (arms.py), and the draft the question alone, or with
--draft-is-shown the same.

With --arbiters rules and trained arbiters take part, which draft whole answers: blocks of up to
--answer-tokens that end with the text. Their texts differ from the target's, so the table has how
many answers are right. With --arms only some arms take part. An arm with --max-corrections whose
name ends in " in fours" has whole blocks of four tokens after its last correction, as older
versions had.

With --plain both models are loaded once more, as transformers has them, without packed weights.

llama.cpp takes part where ``llama-cpp-py-sync`` is installed and --target-gguf names the target's
file: greedy, the same prompts and threads. Its own speculation is not in those bindings.

vLLM takes part by name where it is installed: ``vllm, target``, ``vllm, stock`` (its own
speculation) and ``vllm, ARBITER`` (the plugin).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers.utils import logging

from cospec import Engine, ModelPair, PairPrompt, SamplingConfig
from cospec.arbiters import AlwaysTarget, load_arbiter
from cospec.config import DecodeConfig
from cospec.errors import ConfigError
from cospec.evaluation.benchmark.assisted import AssistedEngine
from cospec.evaluation.problems import encode_problems
from cospec.evaluation.stats import speedup, speedup_interval
from cospec.models.bundled import bundled_models
from cospec.models.costs import measure_costs
from cospec.models.load import load_model
from cospec.models.prefill import cheapest_order
from cospec.models.quantized import quantize_weights
from cospec.models.shortlist import shorten_head
from cospec.results import Provenance, check_writable, document, write_json
from cospec.tasks import load_task
from cospec.types import Stats

sys.path.insert(0, str(Path(__file__).parents[1] / "text_to_sql"))

from arms import prompt, shots

TARGET = "target"
KINDS = ("int8", "int4", "int8 short", "int4 short")
"""Weights of the draft; a short one has a shortened vocabulary (``--draft-vocab-size``)."""
FOURS = " in fours"
"""End of an arm's name if blocks after its last correction are as they were in older versions."""
Generate = Callable[[Sequence[Any], Sequence[SamplingConfig]], list[Any]]
"""Completes prompts, as `Engine.generate` does."""


class FoursEngine(Engine):
    """An engine with whole blocks of four tokens after the last correction."""

    def generate(self, *given: Any, **more: Any) -> list[Any]:
        """Complete prompts."""
        with (
            mock.patch("cospec.config._REST_TOKENS", 4),
            mock.patch("cospec.config._REST_CONFIDENCE", 0.0),
        ):
            return super().generate(*given, **more)


def main() -> None:
    """Measure, print and write."""
    options = parse()
    check_writable(options.json, options.overwrite)
    logging.set_verbosity_error()
    if options.threads:
        torch.set_num_threads(options.threads)
    provenance = Provenance()
    source = options.pair or options.target
    pair = ModelPair.from_pretrained(source, options.draft, dtype=options.dtype)
    pairs = {"none": pair}
    for kind in KINDS:
        if not options.arms or any(kind_of(arm) == kind for arm in [options.base, *options.arms]):
            draft = bundled_models(source)[1] if options.pair else options.draft
            pairs[kind] = with_quantized_draft(pair, draft, kind, options.draft_vocab_size)
    runs = arms(pairs, options) | plain_arms(source, options)
    kept = options.json.with_suffix(".rows")
    config = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    rows = resumed(kept, json.dumps(config | {"overwrite": False}))
    done = {(row["task"], row["id"], row["arm"]) for row in rows}
    for name in options.tasks:
        task = load_task(
            name,
            data_dir=options.data_dir,
            allow_code_execution=options.allow_code_execution,
        )
        problems, first = read_before(problems_of(task, pair, options), options)
        read: dict[str, Any] = {}  # key of `first` that an arm has cached
        warm_up(runs, problems[-1][1])
        for i, start in enumerate(range(0, len(problems), options.batch_size)):
            some = problems[start : start + options.batch_size]
            for arm in rotated(list(runs), i):
                if (name, some[0][0].id, arm) in done:
                    continue
                place = some[0][0].id if options.read_first else database(some[0])
                if first and read.get(arm) != place:
                    givers = [runs[other] for other in read if read[other] == place]
                    if not any(lend(giver, runs[arm]) for giver in givers):
                        warm_up({arm: runs[arm]}, first[place][1])
                    read[arm] = place
                new = [
                    {"task": name, "id": example.id, "turn": i, "arm": arm} | row
                    for (example, *_), row in zip(some, play(runs[arm], some), strict=True)
                ]
                for (example, *_), row in zip(some, new, strict=True):
                    text = pair.tokenizer.decode(row["token_ids"], skip_special_tokens=True)
                    row["correct"] = task.score(example, text).correct
                rows += new
                with kept.open("a") as file:
                    for row in new:
                        file.write(json.dumps(row | {"stats": asdict(row["stats"])}) + "\n")
            print(f"{name}: {start + len(some)} of {len(problems)}", flush=True)
    costs = {
        kind: measure_costs(
            one,
            batch_size=options.batch_size,
            max_tokens=options.longest + 1,
            context=400,
        )
        for kind, one in pairs.items()
    }
    table = []
    for name in options.tasks:
        played = [row for row in rows if row["task"] == name]
        entries = summary(played, list(runs), costs, options.longest, options.base)
        table += [entry | {"task": name} for entry in entries]
    where = provenance.to_dict(str(pair.target.device), str(pair.target.dtype))
    result = document("speed_real", config, where, arms=table, rows=[lean(row) for row in rows])
    result["costs"] = {kind: asdict(cost) for kind, cost in costs.items()}
    write_json(options.json, result)
    kept.unlink()
    show(table, options.base)


def problems_of(task: Any, pair: ModelPair, options: argparse.Namespace) -> list[Any]:
    """Return the examples of a task that are asked, with their prompts and settings."""
    examples = task.examples(options.split, None if options.ids else options.count, options.seed)
    if options.ids:
        examples = [example for example in examples if example.id in options.ids]
    prompts, samplings = encode_problems(pair, task, examples, options.max_new_tokens)
    if options.shots:
        shown = shots(task, options)
        targets = [prompt(task, one, pair.tokenizer, shown, options) for one in examples]
        drafts = targets if options.draft_is_shown else prompts
        prompts = [PairPrompt(*both) for both in zip(targets, drafts, strict=True)]
    return list(zip(examples, prompts, samplings, strict=True))


def resumed(kept: Path, settings: str) -> list[dict[str, Any]]:
    """Return the rows of a killed run of these settings; start their file if there is none.

    Raises:
        ConfigError: The file holds rows of other settings.
    """
    if not kept.exists():
        kept.write_text(settings + "\n")
    first, *lines = kept.read_text().splitlines()
    if first != settings:
        raise ConfigError(f"{kept} is of a run with other settings ({first}); delete it.")
    print(f"{len(lines)} prompts and arms are in {kept}.", flush=True)
    return [row | {"stats": Stats(**row["stats"])} for row in map(json.loads, lines)]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", help="a bundled pair, for a try")
    parser.add_argument("--target", type=Path)
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--target-gguf", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["gsm8k", "spider"])
    parser.add_argument("--split", choices=("train", "tune", "test"), default="test")
    parser.add_argument("--ids", nargs="+", help="of each task only these prompts")
    parser.add_argument(
        "--shots", type=int, default=0, help="shown to the target (known databases)"
    )
    parser.add_argument("--draft-is-shown", action="store_true", help="the same examples")
    parser.add_argument("--nearest", action="store_true", help="as in text_to_sql/arms.py")
    parser.add_argument("--rotate", type=int, default=0, help="as in text_to_sql/arms.py")
    parser.add_argument("--arbiters", nargs="+", default=[], help="that draft whole answers")
    parser.add_argument("--answer-tokens", type=int, default=64, help="block length of those")
    parser.add_argument("--max-corrections", type=int, help="decode them so as well, in other arms")
    parser.add_argument("--arms", nargs="+", help="only these, and the base; by default all")
    parser.add_argument(
        "--plain",
        action="store_true",
        help="also decode with weights as transformers loads them: target, assisted generation",
    )
    parser.add_argument("--base", default=TARGET, help="arm that the others are compared with")
    parser.add_argument("--count", type=int, default=20, help="prompts of each task")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--seed", type=int, default=73)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("-k", type=int, default=4, help="block length of plain speculation")
    parser.add_argument("--longest", type=int, default=10, help="of blocks that end by themselves")
    parser.add_argument("--threshold", type=float, default=0.8, help="of the draft's confidence")
    parser.add_argument("--prefix-caching", action="store_true", help="keep caches between prompts")
    parser.add_argument(
        "--read-first", action="store_true", help="read each prompt before it is timed (batch 1)"
    )
    parser.add_argument("--allow-code-execution", action="store_true", help="for mbpp")
    parser.add_argument("--draft-vocab-size", type=int, default=16384, help="of short drafts")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--max-model-len", type=int, default=4096, help="of vLLM's engines")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    if not options.pair and not (options.target and options.draft):
        parser.error("pass --target and --draft, or --pair")
    if options.read_first and not (options.prefix_caching and options.batch_size == 1):
        parser.error("--read-first goes with --prefix-caching and batch 1")
    return options


def with_quantized_draft(
    pair: ModelPair, draft: str | Path, kind: str, num_first: int
) -> ModelPair:
    """Return a pair with the same target, and its draft loaded once more and quantized."""
    model = load_model(draft, dtype=pair.target.dtype, device="cpu")
    ModelPair(pair.target, model)  # checks that its cache gives the same logits
    bits, _, short = kind.partition(" ")
    quantize_weights(model, bits)
    if short:
        shorten_head(model, num_first, pair.eos_token_ids.union(pair.special_token_ids.values()))
    return ModelPair(pair.target, model, pair.tokenizer)


def kind_of(arm: str) -> str:
    """Return the kind of an arm's draft: its name begins with it."""
    first = arm.partition(", ")[0]
    return first if first in KINDS else "none"


def arms(pairs: dict[str, ModelPair], options: argparse.Namespace) -> dict[str, Generate]:
    """Return the ways to decode by name, from the pairs by the quantization of their drafts."""
    alone = {
        "batch_size": options.batch_size,
        "enable_prefix_caching": options.prefix_caching,
    }
    common = alone | {"keep_trace": False}

    def lossless(one: ModelPair, k: int, **more: Any) -> Generate:
        settings = common | more
        return Engine(one, AlwaysTarget(), num_speculative_tokens=k, **settings).generate

    k, longest, ends = options.k, options.longest, options.threshold
    pair = pairs["none"]
    found: dict[str, Generate] = {
        TARGET: Engine.target_only(pair, **alone).generate,
        "assisted": AssistedEngine(pair, k).generate,
        "assisted, threshold": AssistedEngine(pair, longest, ends).generate,
        "ngram": lossless(pair, longest, drafter="ngram"),
    }
    for kind, one in pairs.items():
        ways = {
            "draft": Engine.draft_only(one, **alone).generate,
            "": lossless(one, k),
            "threshold": lossless(one, longest, draft_confidence_threshold=ends),
            "adaptive": lossless(one, longest, adaptive=True),
            "cascade": lossless(one, k, cascade=True),
            "cascade, threshold": lossless(
                one, longest, cascade=True, draft_confidence_threshold=ends
            ),
        }
        for drafter in ("ngram+model", "suffix+model"):
            ways[f"{drafter}, adaptive"] = lossless(
                one, longest, drafter=drafter, adaptive=True, prompt_lookup_min=3
            )
        found |= {arm_name(kind, way): run for way, run in ways.items()}
    whole = {"num_speculative_tokens": options.answer_tokens, "end_blocks_at_stop": True}
    limits: dict[str, int | None] = {"": None}
    if options.max_corrections is not None:
        limits[", then lossless"] = options.max_corrections
    for spec in options.arbiters:
        for kind, one in pairs.items():
            for cascade, way in ((False, spec), (True, f"cascade, {spec}")):
                config = DecodeConfig(**whole | common, cascade=cascade)
                for rest, most in limits.items():
                    name = arm_name(kind, way + rest)
                    asked = options.arms or [name]
                    for arm, kind_of_engine in ((name, Engine), (name + FOURS, FoursEngine)):
                        if arm in asked:
                            arbiter = load_arbiter(spec, one)
                            engine = kind_of_engine(one, arbiter, config, max_corrections=most)
                            found[arm] = engine.generate
    if options.target_gguf:
        found["llama.cpp"] = llama_cpp(pair, options)
    else:
        print("llama.cpp is left out: --target-gguf names no file.", flush=True)
    wanted = dict.fromkeys([options.base, *(options.arms or found)])
    return {name: found.get(name) or in_vllm(name, pair, options) for name in wanted}


def in_vllm(arm: str, pair: ModelPair, options: argparse.Namespace) -> Generate:
    """Return the greedy decoding of an arm of vLLM."""
    if not arm.startswith("vllm, ") or options.pair or options.shots:
        raise ConfigError(f"arm is {arm!r}; there is no such one with these options.")
    import in_vllm  # noqa: PLC0415  # optional: vLLM has an environment of its own

    return in_vllm.in_vllm(arm.removeprefix("vllm, "), pair.tokenizer, options)


def arm_name(kind: str, way: str) -> str:
    """Return the name of an arm; plain exact speculation says so."""
    if kind == "none" and way in ("", "threshold"):
        way = ", ".join(["lossless", way]) if way else "lossless"
    return ", ".join(part for part in (kind, way) if part not in ("none", ""))


def plain_arms(source: str | Path, options: argparse.Namespace) -> dict[str, Generate]:
    """Return the target alone and assisted generation on models whose weights are not packed."""
    if not options.plain:
        return {}
    pair = ModelPair.from_pretrained(source, options.draft, dtype=options.dtype, pack_weights=False)
    return {
        "plain target": Engine.target_only(pair, batch_size=options.batch_size).generate,
        "plain assisted, threshold": AssistedEngine(
            pair, options.longest, options.threshold
        ).generate,
    }


def llama_cpp(pair: ModelPair, options: argparse.Namespace) -> Generate:
    """Return llama.cpp's greedy decoding of the target's GGUF file."""
    from llama_cpp_py_sync import Llama  # noqa: PLC0415  # optional

    class Given:
        """What `play` reads of a completion."""

        def __init__(self, token_ids: list[int]) -> None:
            self.token_ids, self.stats = token_ids, Stats()

    class Chat(Llama):
        """Reads the special tokens of a chat prompt as such."""

        def tokenize(
            self, text: str, add_special: bool = False, parse_special: bool = True
        ) -> list[int]:
            return super().tokenize(text, add_special=False, parse_special=True)

    model = Chat(str(options.target_gguf), n_ctx=8192, n_threads=torch.get_num_threads())

    def generate(
        prompts: Sequence[Any], sampling: Sequence[SamplingConfig], **_: object
    ) -> list[Given]:
        texts = [
            model.generate(
                prompt if isinstance(prompt, str) else pair.tokenizer.decode(prompt),
                max_tokens=config.max_new_tokens,
                temperature=0.0,
                repeat_penalty=1.0,
                stop_sequences=list(config.stop),
            )
            for prompt, config in zip(prompts, sampling, strict=True)
        ]
        return [Given(model.tokenize(text)) for text in texts]

    return generate


def rotated(names: list[str], place: int) -> list[str]:
    """Another order for each prompt, so that no arm is always first."""
    shift = place % len(names)
    return names[shift:] + names[:shift]


def read_before(problems: list[Any], options: argparse.Namespace) -> tuple[list[Any], Any]:
    """Return the problems that are timed, and by what is asked the one that is read before it."""
    if options.read_first:
        return problems, {example.id: (example, *rest) for example, *rest in problems}
    return by_database(problems) if options.prefix_caching else (problems, {})


def by_database(problems: list[Any]) -> tuple[list[Any], dict[Any, Any]]:
    """Return problems in an order that shares caches, without the first of each database, and it.

    Where there are no databases, all problems are returned.
    """
    prompts = [one.target if isinstance(one, PairPrompt) else one for _, one, _ in problems]
    ordered = [problems[i] for i in cheapest_order(prompts)]
    first = {place: p for p in reversed(ordered) if (place := database(p)) is not None}
    return [p for p in ordered if first.get(database(p)) is not p], first


def database(problem: tuple[Any, Any, SamplingConfig]) -> Any:
    """Return what the example of a problem asks about; None for tasks without databases."""
    return problem[0].metadata.get("db_id")


def warm_up(runs: dict[str, Generate], prompt: Any) -> None:
    """Decode a few tokens with every arm: what is measured or compiled once is done then."""
    for run in runs.values():
        run([prompt], [SamplingConfig(max_new_tokens=8)])


@torch.inference_mode()
def lend(giver: Generate, taker: Generate) -> bool:
    """Give an arm what another has stored of its last prompt, so that it need not read it as well.

    Returns whether it could: both have to store the same models' keys and values.
    """
    ours, theirs = (getattr(one, "__self__", None) for one in (giver, taker))
    if not isinstance(ours, Engine) or not isinstance(theirs, Engine) or ours._kept is None:
        return False
    batch = theirs._kept or theirs._new_batch()
    is_whole = ours.pair is theirs.pair and len(ours._kept._stores) == len(batch._stores) == 2
    is_target = len(batch._stores) == 1 and getattr(theirs, "_role", "") == TARGET
    if not (is_whole or is_target) or getattr(ours, "_role", "") == "draft":
        return False
    read = [tokens for tokens, *_ in ours._kept._stored]
    saved = [store.save_row(0, len(t)) for store, t in zip(ours._kept._stores, read, strict=True)]
    if is_whole and saved[1] is None:  # it drafts without a model
        return False
    for s, store in enumerate(batch._stores):
        store.reserve(1, len(read[s]))
        store.load_row(0, saved[s], len(read[s]))
        batch._stored[s][:1] = [list(read[s])]
    theirs._kept = batch
    return True


def play(run: Generate, problems: Sequence[tuple[Any, Any, SamplingConfig]]) -> list[Any]:
    """Decode some prompts with one arm; each has its share of the time."""
    _, prompts, sampling = zip(*problems, strict=True)
    start = time.perf_counter()
    done = run(prompts, sampling)
    seconds = (time.perf_counter() - start) / len(done)
    return [{"seconds": seconds, "token_ids": one.token_ids, "stats": one.stats} for one in done]


def summary(
    rows: list[dict[str, Any]], names: list[str], costs: Any, longest: int, base: str
) -> list[dict[str, Any]]:
    """Return one entry an arm, from the rows of one task; a bound where blocks are not longer."""
    by_arm = {name: [row for row in rows if row["arm"] == name] for name in names}
    order = {row["id"]: i for i, row in enumerate(by_arm[base])}
    entries = []
    for name, ours in by_arm.items():
        ours.sort(key=lambda row: order[row["id"]])
        theirs, own = turns(by_arm[base]), turns(ours)
        total = sum((row["stats"] for row in ours), Stats())
        bound, blocks = None, total.num_drafts
        is_short = 0 < total.num_draft_tokens <= longest * blocks
        if is_short and base == TARGET:
            cost = costs[kind_of(name)]
            per_block = total.num_draft_tokens / blocks, total.num_draft_forwards / blocks
            bound = cost.bound(total.mean_acceptance_length, *per_block)
        entries.append(
            {
                "arm": name,
                "num_prompts": len(ours),
                "seconds_per_prompt": sum(seconds for seconds, _ in own) / len(ours),
                "num_correct": sum(row["correct"] for row in ours),
                "num_tokens": sum(tokens for _, tokens in own),
                "tokens_per_s": sum(tokens for _, tokens in own) / sum(s for s, _ in own),
                f"speedup_vs_{base}": speedup(theirs, own),
                f"speedup_vs_{base}_ci95": speedup_interval(theirs, own),
                "speedup_bound": bound,
                "mean_acceptance_length": total.mean_acceptance_length,
                "draft_acceptance_rate": total.draft_acceptance_rate,
                "num_draft_forwards": total.num_draft_forwards,
                "num_target_forwards": total.num_target_forwards,
                f"num_texts_unlike_{base}": sum(
                    a["token_ids"] != b["token_ids"]
                    for a, b in zip(ours, by_arm[base], strict=True)
                ),
            }
        )
    return entries


def turns(rows: list[dict[str, Any]]) -> list[tuple[float, int]]:
    """Seconds and tokens of each turn."""
    found: dict[int, tuple[float, int]] = {}
    for row in rows:
        seconds, number = found.get(row["turn"], (0.0, 0))
        found[row["turn"]] = seconds + row["seconds"], number + len(row["token_ids"])
    return [*found.values()]


def lean(row: dict[str, Any]) -> dict[str, Any]:
    """A row as it is stored."""
    kept = {key: row[key] for key in ("task", "id", "turn", "arm", "seconds", "correct")}
    return kept | {"num_tokens": len(row["token_ids"]), "num_blocks": row["stats"].num_drafts}


def show(table: list[dict[str, Any]], base: str) -> None:
    """Print a Markdown table."""
    print(
        f"| task | arm | right | seconds | tokens/s | over {base} | interval | of bound | unlike |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for one in table:
        low, high = one[f"speedup_vs_{base}_ci95"] or (float("nan"),) * 2
        bound = one["speedup_bound"]
        cells = [
            one["task"],
            one["arm"],
            f"{one['num_correct']}/{one['num_prompts']}",
            f"{one['seconds_per_prompt']:.2f}",
            f"{one['tokens_per_s']:.2f}",
            f"{one[f'speedup_vs_{base}']:.2f}x",
            f"{low:.2f}-{high:.2f}",
            "" if bound is None else f"{one['speedup_vs_target'] / bound:.0%}",
            f"{one[f'num_texts_unlike_{base}']}/{one['num_prompts']}",
        ]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
