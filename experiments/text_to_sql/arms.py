"""Compare arbiters on Spider questions.

Usage: python experiments/text_to_sql/arms.py TARGET DRAFT DATA OUT --arms lossless always_draft
           [--split tune] [--count 128]

The first arbiter's path is decoded whole. Where another arbiter would rule alike at every mismatch
of it, the text is the other's as well and is taken. OUT is one JSON line a question; a run that was
killed goes on after the last chunk, and other arms can be added to what is there. `--summary`
prints the table of OUT and decodes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import ClassVar

import torch
from halves import half, known, one_wording, short_schemas, words_of

from cospec import Engine, ModelPair, PairPrompt, SamplingConfig
from cospec.arbiters import load_arbiter
from cospec.arbiters.observed import Observed
from cospec.drafters import ModelDrafter
from cospec.engine.prompts import make_row
from cospec.evaluation.stats import mcnemar_p
from cospec.tasks import load_task
from cospec.tasks.sql.dice import stable_hash
from cospec.types import Arbiter, Completion, Origin

sys.path.append(str(Path(__file__).parents[1] / "retrieval"))

from retrieval import likeness  # a script of the repository

BASE = "lossless"
ALONE = ("draft_only", "target_only")


def main() -> None:
    """Decode what is missing, chunk by chunk, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("target", "draft", "data", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--arms", nargs="+", default=[BASE, "draft_only"])
    parser.add_argument("--split", default="tune", choices=["train", "tune", "test"])
    parser.add_argument("--arbiter-quarters", type=int, default=2, choices=(1, 2))
    parser.add_argument(
        "--known-databases",
        choices=("arbiter", "test"),
        help="train questions: this part of each database's queries",
    )
    parser.add_argument("--count", type=int, default=128, help="questions")
    parser.add_argument("--one-wording", action="store_true", help="one question a gold query")
    parser.add_argument(
        "--shots",
        type=int,
        default=0,
        help="known databases: show so many of the draft's questions and answers in the prompt",
    )
    parser.add_argument(
        "--nearest", action="store_true", help="show those most like the question, likest last"
    )
    parser.add_argument("--rotate", type=int, default=0, help="as in tune_draft.py")
    parser.add_argument(
        "--target-alone-is-shown", action="store_true", help="the draft gets the question alone"
    )
    parser.add_argument("--chunk", type=int, default=64, help="questions between two savings")
    parser.add_argument("--batch", type=int, help="questions decoded together (default: a chunk)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-k", type=int, default=4)
    parser.add_argument("--end-blocks-at-stop", action="store_true")
    parser.add_argument("--max-corrections", type=int)
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--json", type=Path, help="write the rows without texts")
    options = parser.parse_args()
    if options.shots and not options.known_databases:
        parser.error("--shots needs --known-databases: no other question is of a shown database")
    if options.nearest and not options.shots:
        parser.error("--nearest needs --shots: how many of them to show")
    rows = [json.loads(line) for line in options.out.open()] if options.out.exists() else []
    if not options.summary:
        rows = decode(options, rows)
    summarise(rows)
    if options.json:
        slim(rows, options.json)


def decode(options, rows):
    """Decode all arms that the rows lack."""
    torch.set_num_threads(options.threads)
    task = load_task("spider", data_dir=options.data)
    pair = ModelPair.from_pretrained(options.target, options.draft, dtype="float32")
    examples = task.examples("train" if options.known_databases else options.split)
    if options.known_databases:
        examples = short_schemas(examples, task, pair.tokenizer)
        examples = known(examples, options.known_databases, options.rotate)
    elif options.split == "train":  # the draft may have been tuned on the others
        examples = half(examples, "arbiter", options.arbiter_quarters)
    if options.one_wording:
        examples = one_wording(examples)
    # Databases by a hash of their names, so that a run which is stopped early has a fair sample.
    examples = sorted(examples, key=lambda e: stable_hash(f"order/{e.metadata['db_id']}"))
    examples = examples[: options.count]
    shown = shots(task, options)
    by_id = {row["id"]: row for row in rows}
    for start in range(0, len(examples), options.chunk):
        some = examples[start : start + options.chunk]
        done = [by_id.get(example.id, {}).get("arms", {}) for example in some]
        missing = [arm for arm in options.arms if not all(arm in arms for arms in done)]
        if not missing:
            continue
        prompts = [prompt(task, one, pair.tokenizer, shown, options) for one in some]
        for arm, column, seconds in play(pair, task, some, prompts, missing, options):
            right = sum(entry["correct"] for entry in column)
            print(f"{start}: {arm} {right}/{len(some)}, {seconds:.0f} s", flush=True)
            for example, entry in zip(some, column, strict=True):
                database = example.metadata["db_id"]
                row = by_id.setdefault(example.id, {"id": example.id, "db": database, "arms": {}})
                row["arms"][arm] = entry
        new = options.out.with_suffix(".new")
        new.write_text("".join(json.dumps(row) + "\n" for row in by_id.values()))
        new.replace(options.out)
    return list(by_id.values())


def shots(task, options):
    """The questions of each database that drafts are tuned on, in the order of a hash."""
    by_database: dict[str, list] = {}
    if options.shots:
        found = one_wording(known(task.examples("train"), "draft", options.rotate))
        for example in sorted(found, key=lambda example: stable_hash(f"shot/{example.id}")):
            by_database.setdefault(example.metadata["db_id"], []).append(example)
    return by_database


def chosen_shots(example, some, options):
    """The first questions, or with --nearest those most like an example, the likest last."""
    if not options.nearest:
        return some[: options.shots]
    words = words_of(example.metadata["question"])
    likest = sorted(some, key=lambda one: likeness(words, words_of(one.metadata["question"])))
    return likest[-options.shots :]


def prompt(task, example, tokenizer, shown, options):
    """The prompt of a question, after turns with those of its database that are shown.

    A task with `chat_shots` makes the same, but for double blanks in 13 of 1,600 questions. It came
    later, and published results are of these.
    """
    some = chosen_shots(example, shown.get(example.metadata["db_id"], []), options)
    if not some:
        return task.prompt(example, tokenizer)
    beginning = example.question.partition("Question: ")[0]
    messages = []
    for one in some:
        asked = {"role": "user", "content": f"{beginning}Question: {one.metadata['question']}"}
        messages += [asked, {"role": "assistant", "content": one.metadata["solution"]}]
        beginning = ""
    messages.append({"role": "user", "content": f"Question: {example.metadata['question']}"})
    return list(
        tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    )


def play(pair, task, examples, prompts, arms, options):
    """Yield each arm with one entry a question, and the seconds that it took."""
    sampling = SamplingConfig(max_new_tokens=task.max_new_tokens)
    settings = {
        "num_speculative_tokens": options.k,
        "batch_size": options.batch or options.chunk,
        "end_blocks_at_stop": options.end_blocks_at_stop,
        "max_corrections": options.max_corrections,
    }
    if options.target_alone_is_shown:
        own = [task.prompt(example, pair.tokenizer) for example in examples]
        prompts = list(map(PairPrompt, prompts, own))
    drafts = FirstBlocks.answers = {}
    is_whole = options.end_blocks_at_stop and options.k <= task.max_new_tokens
    drafter = FirstBlocks if is_whole else ModelDrafter
    arbiters = {arm: load_arbiter(arm, pair) for arm in arms if arm not in ALONE}
    first: list[Completion] = []
    for arm in arms:
        started = time.perf_counter()
        if arm == "draft_only":
            column = draft_only(pair, prompts, sampling, settings, drafts)
        elif arm == "target_only":
            column = Engine.target_only(pair, **settings).generate(prompts, sampling)
        elif not first:
            observed = Observed(arbiters[arm], Rulings(tuple(arbiters.values())))
            engine = Engine(pair, observed, drafter=drafter, **settings)
            column = first = engine.generate(prompts, sampling)
        else:
            place = list(arbiters).index(arm)
            column = [None if leaves(completion, place) else completion for completion in first]
            left = [i for i, one in enumerate(column) if one is None]
            engine = Engine(pair, arbiters[arm], drafter=drafter, **settings)
            new = iter(engine.generate([prompts[i] for i in left], sampling) if left else [])
            column = [completion or next(new) for completion in column]
        entries = [
            entry(completion) | {"correct": task.score(example, completion.text).correct}
            for example, completion in zip(examples, column, strict=True)
        ]
        yield arm, entries, time.perf_counter() - started


@dataclass
class Rulings:
    """What several arbiters say of the same mismatches, recorded in the place of features."""

    arbiters: tuple[Arbiter, ...]

    @property
    def needs(self):
        """All that one of them needs."""
        return reduce(or_, (arbiter.needs for arbiter in self.arbiters))

    def __call__(self, batch):
        """Whether each keeps the draft's token, (M, arbiters)."""
        kept = [arbiter.rule(batch).keep_draft for arbiter in self.arbiters]
        return torch.stack(kept, dim=1).float()


def leaves(completion, place) -> bool:
    """Whether an arbiter, by its place, would have left the path of a completion."""
    return any(bool(m.features[place]) != m.keep_draft for m in completion.reached)


def entry(completion):
    """What is kept of a completion."""
    return {
        "text": completion.text,
        "tokens": len(completion.token_ids),
        "target_forwards": completion.stats.num_target_forwards,
        "mismatches": completion.stats.num_mismatches,
        "overrides": completion.origins.count(Origin.OVERRIDE),
    }


class FirstBlocks(ModelDrafter):
    """The draft, which notes its own answer: the first block of a row, if it ends with the text."""

    answers: ClassVar[dict[tuple[int, ...], list[int]]] = {}

    def propose(self, rows, chance):
        """Propose, and note first blocks by prompt."""
        proposal = super().propose(rows, chance)
        for row, ids, length in zip(
            rows, proposal.token_ids.tolist(), proposal.lengths.tolist(), strict=True
        ):
            if not row.generated and ids[length - 1] in row.stop_ids:
                self.answers[tuple(row.drafted.prompt_ids)] = ids[:length]
        return proposal


def draft_only(pair, prompts, sampling, settings, known):
    """The draft's own answers; where it has written them as first blocks, they are taken."""
    prompts = [one.draft if isinstance(one, PairPrompt) else one for one in prompts]
    missing = [prompt for prompt in prompts if tuple(prompt) not in known]
    decoded = iter(
        Engine.draft_only(pair, **settings).generate(missing, sampling) if missing else []
    )
    return [
        draft_answer(pair, known[tuple(prompt)]) if tuple(prompt) in known else next(decoded)
        for prompt in prompts
    ]


def draft_answer(pair, token_ids):
    """A completion of tokens that the draft has written."""
    row = make_row(pair, 0, [0], SamplingConfig(max_new_tokens=len(token_ids)))
    for token in token_ids:
        row.emit(token, Origin.MATCH)
    return row.completion()


def summarise(rows) -> None:
    """Print accuracy, paired tests against the target and the draft, and tokens a forward."""
    names = list(dict.fromkeys(arm for row in rows for arm in row["arms"]))
    rows = [row for row in rows if all(arm in row["arms"] for arm in names)]
    print(f"{len(rows)} questions of {len({row['db'] for row in rows})} databases")
    for name in names:
        right = [row["arms"][name]["correct"] for row in rows]
        line = f"{name:42} {100 * sum(right) / len(rows):5.1f} %"
        for other in (BASE, "draft_only"):
            if other in names and other != name:
                theirs = [row["arms"][other]["correct"] for row in rows]
                won = sum(a and not b for a, b in zip(right, theirs, strict=True))
                lost = sum(b and not a for a, b in zip(right, theirs, strict=True))
                line += f"  {other} +{won}/-{lost} p {mcnemar_p(won, lost):.2g}"
        parts = [row["arms"][name] for row in rows]
        if forwards := sum(part["target_forwards"] for part in parts):
            line += f"  {sum(part['tokens'] for part in parts) / forwards:.2f} tokens a forward"
        print(line)
    if BASE in names and "draft_only" in names:
        either = sum(
            row["arms"][BASE]["correct"] or row["arms"]["draft_only"]["correct"] for row in rows
        )
        print(f"right by one model or the other: {100 * either / len(rows):.1f} %")


def slim(rows, path: Path) -> None:
    """Write ids and databases, and of each arm a bit a question and its totals."""
    names = list(dict.fromkeys(arm for row in rows for arm in row["arms"]))
    rows = [row for row in rows if all(arm in row["arms"] for arm in names)]
    totals = {
        "num_tokens": "tokens",
        "num_target_forwards": "target_forwards",
        "num_mismatches": "mismatches",
        "num_overrides": "overrides",
    }
    arms = [
        {"name": name, "num_problems": len(rows)}
        | {key: sum(row["arms"][name][count] for row in rows) for key, count in totals.items()}
        | {"correct": "".join(str(int(row["arms"][name]["correct"])) for row in rows)}
        for name in names
    ]
    document = {
        "schema": 1,
        "about": "float32, greedy",
        "ids": [row["id"] for row in rows],
        "databases": [row["db"] for row in rows],
        "arms": arms,
    }
    body = ",\n".join(f"{json.dumps(key)}: {json.dumps(one)}" for key, one in document.items())
    path.write_text(f"{{{body}}}\n")


if __name__ == "__main__":
    main()
