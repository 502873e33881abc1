"""Play an arbiter's path and every branch off it on Spider questions, and keep what happened.

Usage: python experiments/text_to_sql/collect.py TARGET DRAFT DATA OUT [--questions 512]
           [--split train] [--arbiter lossless] [--finish arbiter]

A branch takes the other token at one decision, and the arbiter goes on from there. With
`--finish draft` the draft goes on alone, which is cheaper where blocks are long: the target reads
no branch. With `--finish target` the target does: with `--arbiter always_draft --max-corrections 1`
these branches and the path are all that an arbiter of one correction can write.

`cospec audit` does the same and keeps features as text, which is too much for hidden states. The
questions are those of databases that no draft was tuned on and whose schema is not longer than
--longest-schema, in one wording each (or in the other, --second-wording), 16 of each database
before the next 16 of any. OUT/NAME.0.safetensors has the first 16 of a database: the features of
each decision in half precision, and the worth of the draft's token there: 1 where the answer is
right only with it, -1 where only without it, else 0; and likewise `runs`, by whether the query runs
at all. NAME.0.jsonl has the texts. Parts that are there are skipped: a killed run resumes.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from arms import prompt, shots
from halves import LONGEST_PREFIX, half, known, one_wording, parts, short_schemas
from safetensors.torch import save_file

from cospec import Engine, ModelPair, PairPrompt, SamplingConfig
from cospec.arbiters import load_arbiter
from cospec.arbiters.observed import Observed
from cospec.config import DecodeConfig
from cospec.engine import Branch
from cospec.evaluation.audit.auditor import reached
from cospec.features import make_features
from cospec.models.prefill import num_shared_tokens
from cospec.tasks import Example, load_task
from cospec.tasks.sql.executor import QueryError
from cospec.types import Origin


def parsed() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("target", "draft", "data", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--questions", type=int, default=512)
    parser.add_argument("--arbiter", default="lossless")
    parser.add_argument("--arbiter-quarters", type=int, default=2, choices=(1, 2))
    parser.add_argument("--databases", nargs="+", help="only these")
    parser.add_argument("--split", choices=("train", "tune"), default="train")
    parser.add_argument(
        "--known-databases",
        nargs="?",
        const="arbiter",
        choices=("arbiter", "test"),
        help="train questions: this part of each database's queries",
    )
    parser.add_argument("--rotate", type=int, default=0, help="as in tune_draft.py")
    parser.add_argument(
        "--decoded",
        type=Path,
        help="OUT of one arm in arms.py: answers without a mismatch, which are any arbiter's",
    )
    wording = parser.add_mutually_exclusive_group()
    wording.add_argument("--second-wording", action="store_true", help="and not the first")
    wording.add_argument("--every-wording", action="store_true")
    parser.add_argument("--shots", type=int, default=0, help="as in arms.py, shown to the target")
    parser.add_argument("--nearest", action="store_true", help="as in arms.py")
    parser.add_argument("--without", type=Path, help="not the questions of trees.py --slim")
    parser.add_argument("--draft-is-shown", action="store_true", help="the same examples")
    parser.add_argument("--longest-schema", type=int, default=LONGEST_PREFIX, help="in tokens")
    parser.add_argument("--no-branches", action="store_true", help="only the paths")
    parser.add_argument("--finish", choices=("arbiter", "draft", "target"), default="arbiter")
    parser.add_argument("--batch-size", type=int, default=64, help="questions decoded together")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-k", type=int, default=4)
    parser.add_argument("--end-blocks-at-stop", action="store_true")
    parser.add_argument("--max-corrections", type=int)
    return parser.parse_args()


def main() -> None:
    """Collect, some parts at a time."""
    options = parsed()
    torch.set_num_threads(options.threads)
    task = load_task("spider", data_dir=options.data)
    pair = ModelPair.from_pretrained(options.target, options.draft, dtype="float32")
    arbiter = load_arbiter(options.arbiter, pair)
    observed = Observed(arbiter, make_features("hidden", pair))
    decode = DecodeConfig(
        num_speculative_tokens=options.k,
        batch_size=options.batch_size,
        end_blocks_at_stop=options.end_blocks_at_stop,
        max_corrections=options.max_corrections,
    )
    paths = Engine(pair, observed, decode)
    ends = None if options.no_branches else finisher(options, pair, arbiter, decode)
    options.out.mkdir(parents=True, exist_ok=True)
    shown = shots(task, options)
    wanted = chosen(options, task, pair.tokenizer)
    missing = [name for name in wanted if not (options.out / f"{name}.jsonl").exists()]
    while missing:
        some, size = [], 0
        while missing and (not some or size + len(wanted[missing[0]]) <= options.batch_size):
            size += len(wanted[missing[0]])
            some.append(missing.pop(0))
        chunk = {name: wanted[name] for name in some}
        print(collect(chunk, task, shown, paths, ends, options), flush=True)


def chosen(options, task, tokenizer) -> dict[str, list[Example]]:
    """The questions that are asked, in parts; those that are decoded already are written."""
    asked = task.examples(options.split)
    if options.known_databases == "test":
        asked = short_schemas(asked, task, tokenizer)
    if options.known_databases:
        asked = known(asked, options.known_databases, options.rotate)
    elif options.split == "train":
        asked = half(asked, "arbiter", options.arbiter_quarters)
    first = {example.id for example in one_wording(asked)}
    if not options.every_wording:
        asked = [example for example in asked if (example.id in first) != options.second_wording]
    if options.without:
        ids = set(np.load(options.without)["ids"].tolist())
        asked = [example for example in asked if example.id not in ids]
    if options.decoded:
        ids = {example.id for example in asked}
        rows = [same for row in map(json.loads, options.decoded.open()) if (same := whole(row))]
        rows = [row for row in rows if row["id"] in ids]
        (options.out / "decoded.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        ids -= {row["id"] for row in rows}
        asked = [example for example in asked if example.id in ids]
    wanted, num_questions = {}, 0
    for name, examples in parts(asked).items():
        prompts = [task.prompt(example, tokenizer) for example in examples]
        shared = min(num_shared_tokens(prompts[0], prompt) for prompt in prompts)
        is_short = shared <= options.longest_schema or options.known_databases == "test"
        is_asked = not options.databases or name.partition(".")[0] in options.databases
        if is_asked and is_short and num_questions < options.questions:
            wanted[name] = examples
            num_questions += len(examples)
    return wanted


def whole(row):
    """The draft's answer of a row of `arms.py` as a row here, if its text had no mismatch."""
    (entry,) = row["arms"].values()
    same = {key: entry[key] for key in ("correct", "text", "tokens", "target_forwards")}
    return None if entry["mismatches"] else {"id": row["id"]} | same | {"branches": []}


def finisher(options, pair, arbiter, decode) -> Engine:
    """What decodes branches to their end."""
    if options.finish == "draft":
        alone = ModelPair(pair.draft_model, tokenizer=pair.tokenizer)
        return Engine.target_only(alone, decode.with_options(batch_size=256))
    if options.finish == "target" or options.arbiter == "lossless":
        # Cheaper in large batches, and the same texts.
        return Engine.target_only(pair, decode)
    return Engine(pair, arbiter, decode)


def collect(chunk, task, shown, paths, ends, options) -> str:
    """Play the questions of some parts, write their files, and say what was found."""
    started = time.perf_counter()
    examples = [example for some in chunk.values() for example in some]
    tokenizer, sampling = paths.pair.tokenizer, SamplingConfig(max_new_tokens=task.max_new_tokens)
    prompts = [prompt(task, example, tokenizer, shown, options) for example in examples]
    if shown and not options.draft_is_shown:
        own = [task.prompt(example, tokenizer) for example in examples]
        prompts = list(map(PairPrompt, prompts, own))
    texts = paths.rollouts(prompts, sampling)
    places = [(i, m) for i, text in enumerate(texts) for m in reached(text.completion)]
    places = places if ends else []
    by_draft, out = options.finish == "draft", options.out
    branches = ends.branches([other(texts[i], m, by_draft) for i, m in places]) if ends else []
    grades = [grade(task, e, t.completion.text) for e, t in zip(examples, texts, strict=True)]
    branch_grades = [
        grade(task, examples[i], branch.completion.text)
        for (i, _), branch in zip(places, branches, strict=True)
    ]
    path_grades = torch.tensor([grades[i] for i, _ in places])
    gains = (torch.tensor(branch_grades) - path_grades).view(-1, 2)
    gains[[m.keep_draft for _, m in places]] *= -1
    worth, runs = gains.T.contiguous()
    first = 0
    for name, some in chunk.items():
        here = [j for j, (i, _) in enumerate(places) if first <= i < first + len(some)]
        rows = [
            {
                "id": examples[i].id,
                "correct": grades[i][0],
                "text": texts[i].completion.text,
                "tokens": len(texts[i].completion.token_ids),
                "target_forwards": texts[i].completion.stats.num_target_forwards,
                "branches": [
                    {"position": m.position, "draft_id": m.draft_id, "target_id": m.target_id}
                    | {"kept_draft": m.keep_draft, "correct": branch_grades[j][0]}
                    | {"text": branches[j].completion.text}
                    for j, m in ((j, places[j][1]) for j in here if places[j][0] == i)
                ],
            }
            for i in range(first, first + len(some))
        ]
        if here:
            features = torch.stack([places[j][1].features for j in here]).half()
            tensors = {"features": features, "worth": worth[here], "runs": runs[here]}
            save_file(tensors, out / f"{name}.safetensors")
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        first += len(some)
    seconds = (time.perf_counter() - started) / len(examples)
    num_right = int(sum(right for right, _ in grades))
    return (
        f"{', '.join(chunk)}: {len(examples)} questions, {num_right} right; "
        f"{len(places)} decisions, right only with the draft's token {int((worth > 0).sum())}, "
        f"only with the target's {int((worth < 0).sum())}; {seconds:.1f} s a question"
    )


def grade(task, example, text) -> tuple[float, float]:
    """Whether a text is right, and whether its query runs on a database of the question."""
    score = task.score(example, text)
    judge = task.scorer.__self__
    path = judge.databases.paths(example.metadata["db_id"])[0]
    try:
        judge.executor.run(path, score.extracted or "")
    except QueryError:
        return float(score.correct), 0.0
    return float(score.correct), 1.0


def other(rollout, mismatch, by_draft) -> Branch:
    """The branch that takes the other token at a decision, and goes on from the draft's cache."""
    if by_draft:
        _, (_, stored) = rollout.caches
        read = rollout.draft_prompt_ids or rollout.completion.prompt_ids
        completion = replace(rollout.completion, prompt_ids=read)
        rollout = replace(rollout, completion=completion, caches=[stored], draft_prompt_ids=None)
    if mismatch.keep_draft:
        return Branch(rollout, mismatch.position, mismatch.target_id, Origin.CORRECTION)
    return Branch(rollout, mismatch.position, mismatch.draft_id)


if __name__ == "__main__":
    main()
