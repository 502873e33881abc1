"""Tune a draft on Spider's train questions with LoRA, reading each schema once for its questions.

Usage: python experiments/text_to_sql/tune_draft.py DRAFT DATA OUT [--questions 3000] [--passes 3]
       python experiments/text_to_sql/tune_draft.py DRAFT DATA OUT --adapter FOLDER [FOLDER …]

A step is one pack: a schema and some of its questions side by side, each of which sees the schema
and itself. With --turns they are turns of one chat, in which each question sees those before it
with their answers, most like it last: the draft learns to use answered queries in its prompt. No
two of a pack differ in literals alone. The loss is on answers alone, which are the gold queries in
the models' writing.
Seeds are fixed, and a run that was killed goes on from its last checkpoint. OUT is a checkpoint
with LoRA merged, and OUT/adapter is the adapter alone. With --adapter nothing is tuned: OUT is
DRAFT with that adapter, or the mean of its weights with each of several (2203.05482).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from itertools import accumulate, groupby
from pathlib import Path

import torch
from halves import LONGEST_PREFIX, half, known, skeleton, words_of
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cospec.models.prefill import num_shared_tokens
from cospec.tasks import load_task

sys.path.append(str(Path(__file__).parents[1] / "retrieval"))

from retrieval import likeness  # a script of the repository

WARM_UP = 10
PACK_TOKENS = 1024
"""Of a step, which bounds its memory; a longer schema takes one question at a time."""
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    """Tune, checkpoint, merge and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("draft", "data", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--adapter", type=Path, nargs="+", help="merge these and tune nothing")
    parser.add_argument("--questions", type=int, default=3000)
    parser.add_argument("--passes", type=int, default=1, help="over the questions")
    parser.add_argument("--rank", type=int, default=2, help="of LoRA")
    parser.add_argument("--rate", type=float, default=8e-4, help="learning rate")
    parser.add_argument("--arbiter-quarters", type=int, default=2, choices=(1, 2))
    parser.add_argument(
        "--known-databases", action="store_true", help="learn from a part of each database"
    )
    parser.add_argument("--rotate", type=int, default=0, help="parts begin so many twentieths on")
    parser.add_argument("--turns", action="store_true", help="questions of a pack see earlier ones")
    parser.add_argument("--seed", type=int, default=0, help="of the adapter and the order")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="frozen weights and matrix products in bfloat16; the adapter stays in float32",
    )
    options = parser.parse_args()
    if (options.out / "config.json").exists():
        raise SystemExit(f"{options.out} holds a finished draft; give another folder.")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.draft)
    dtype = torch.bfloat16 if options.bfloat16 and not options.adapter else torch.float32
    model = AutoModelForCausalLM.from_pretrained(options.draft, dtype=dtype)
    if options.adapter:
        merged(model, options.adapter, options.draft).save_pretrained(options.out)
        tokenizer.save_pretrained(options.out)
        return
    task = load_task("spider", data_dir=options.data)
    some = task.examples("train")
    if options.known_databases:
        some = known(some, "draft", options.rotate)
    else:
        some = half(some, "draft", options.arbiter_quarters)
    made = chats if options.turns else packs
    train = []
    for number in range(options.passes):
        one = made(task, some, tokenizer, options.seed + 1000 * number)
        one = [pack for pack in one if len(pack[0]) <= LONGEST_PREFIX]
        ends = accumulate(len(branches) for _, branches in one)
        train += one[: 1 + sum(end < options.questions for end in ends)]
    tune = made(task, task.examples("tune", 64), tokenizer, seed=0)
    config = LoraConfig(r=options.rank, lora_alpha=16, target_modules=LINEAR)
    model = get_peft_model(model, config)  # its adapter is float32 whatever the model's dtype is
    log = fit(model, Head(model, train + tune), train, tune, options)
    save_adapter(model, options.out / "adapter")
    (options.out / "tuning.json").write_text(json.dumps(log) + "\n")
    save(model, tokenizer, options.out)


def merged(model, adapters, draft):
    """Return the model with an adapter, or the mean of its weights with each of several."""
    first, *others = adapters
    mean = PeftModel.from_pretrained(model, first).merge_and_unload()
    for number, adapter in enumerate(others, start=2):
        model = AutoModelForCausalLM.from_pretrained(draft, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        with torch.no_grad():
            for name, weight in mean.named_parameters():
                weight.add_((model.get_parameter(name) - weight) / number)
    return mean


def save_adapter(model, out: Path) -> None:
    """Round the adapter to bfloat16 and write it: what is merged has the same numbers."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.bfloat16().float()
    model.save_pretrained(out)
    file = out / "adapter_model.safetensors"
    halved = {name: weight.bfloat16() for name, weight in load_file(file).items()}
    save_file(halved, file, metadata={"format": "pt"})


def save(model, tokenizer, out: Path) -> None:
    """Merge the adapter and write the checkpoint."""
    model.float().merge_and_unload().save_pretrained(out)
    tokenizer.save_pretrained(out)


def packs(task, examples, tokenizer, seed):
    """Packs of questions that share a schema, in random order: (prefix, [(rest, answer), …])."""
    end = [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    made = []
    shuffle = random.Random(seed).shuffle
    by_database = sorted(examples, key=lambda example: example.metadata["db_id"])
    for _, group in groupby(by_database, key=lambda example: example.metadata["db_id"]):
        questions = list(group)
        shuffle(questions)
        prompts = [task.prompt(example, tokenizer) for example in questions]
        answers = [
            tokenizer.encode(e.metadata["solution"], add_special_tokens=False) + end
            for e in questions
        ]
        shared = min(num_shared_tokens(prompts[0][:-1], prompt) for prompt in prompts)
        prefix, size = prompts[0][:shared], PACK_TOKENS
        for prompt, answer in zip(prompts, answers, strict=True):
            branch = prompt[shared:], answer
            size += len(branch[0]) + len(answer)
            if size > PACK_TOKENS:
                made.append((prefix, []))
                size = shared + len(branch[0]) + len(answer)
            made[-1][1].append(branch)
    shuffle(made)
    return made


def chats(task, examples, tokenizer, seed):
    """Packs of questions as turns of one chat, in random order: (prefix, [(rest, answer), …])."""
    end = [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    made = []
    by_database: dict[str, list] = {}
    for example in random.Random(seed).sample(examples, len(examples)):
        by_database.setdefault(example.metadata["db_id"], []).append(example)
    for left in by_database.values():
        prompts = [task.prompt(example, tokenizer) for example in left]
        shared = min(num_shared_tokens(prompts[0][:-1], prompt) for prompt in prompts)
        while left:
            size, branches, skeletons, words = shared, [], set(), frozenset()
            while some := [e for e in left if skeleton(e) not in skeletons]:
                nearest = max(some, key=lambda e: likeness(words, words_of(question_of(e))))
                rest = f"\n<|im_start|>user\nQuestion: {question_of(nearest)}<|im_end|>\n"
                rest = tokenizer.encode(f"{rest}<|im_start|>assistant\n")
                if not branches:  # goes on with the schema's own turn
                    rest = task.prompt(nearest, tokenizer)[shared:]
                answer = tokenizer.encode(nearest.metadata["solution"], add_special_tokens=False)
                size += len(rest) + len(answer) + 1
                if branches and size > PACK_TOKENS:
                    break
                branches.append((rest, answer + end))
                skeletons.add(skeleton(nearest))
                words = words_of(question_of(nearest))
                left.remove(nearest)
            made.append((prompts[0][:shared], branches))
    random.Random(seed).shuffle(made)
    return made


def question_of(example) -> str:
    """The question without the schema."""
    return str(example.metadata["question"])


class Head:
    """The output matrix of the tokens that occur in the packs: an eighth of the time is saved."""

    def __init__(self, model, packed) -> None:
        prefixes = {token for prefix, _ in packed for token in prefix}
        rests = {
            token for _, some in packed for branch in some for part in branch for token in part
        }
        ids = torch.tensor(sorted(prefixes | rests))
        matrix = model.get_output_embeddings().weight.detach()
        self.weight = matrix[ids]
        self.number = torch.full([len(matrix)], -1)
        self.number[ids] = torch.arange(len(ids))

    def loss(self, hidden, tokens) -> torch.Tensor:
        """Mean loss of tokens, in nats."""
        logits = torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight)
        return torch.nn.functional.cross_entropy(logits.float(), self.number[torch.tensor(tokens)])


def loss_of(model, head, pack, is_chat) -> torch.Tensor:
    """Mean loss of a pack's answer tokens."""
    prefix, branches = pack
    ids, positions, owner, targets = list(prefix), list(range(len(prefix))), [0] * len(prefix), []
    for number, (rest, answer) in enumerate(branches, start=1):
        targets += [(len(ids) + len(rest) - 1 + i, token) for i, token in enumerate(answer)]
        start = len(ids) if is_chat else len(prefix)
        ids += rest + answer
        positions += range(start, start + len(rest) + len(answer))
        owner += [0 if is_chat else number] * (len(rest) + len(answer))
    of = torch.tensor(owner)
    seen = ((of == 0) | (of[:, None] == of)).tril()
    inner = model.base_model.model
    with torch.autocast("cpu", inner.dtype, enabled=inner.dtype != torch.float32):
        hidden = inner.model(
            input_ids=torch.tensor([ids]),
            position_ids=torch.tensor([positions]),
            attention_mask=torch.where(seen, 0.0, torch.finfo(inner.dtype).min)[None, None],
            use_cache=False,
        ).last_hidden_state[0]
    where, answer = map(list, zip(*targets, strict=True))
    return head.loss(hidden[where], answer)


def fit(model, head, train, tune, options) -> dict[str, object]:
    """AdamW with a cosine over all passes; returns losses."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=options.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * step / len(train))),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    state = options.out / "state.pt"
    log = {"questions": sum(len(branches) for _, branches in train), "losses": [], "tune": []}
    if state.exists():
        saved = torch.load(state, weights_only=True)
        set_peft_model_state_dict(model, saved["lora"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        log = saved["log"]
    else:
        log["tune"].append(mean_loss(model, head, tune, options.turns))
    print(f"{len(train)} packs, {log['questions']} questions; tune loss {log['tune']}", flush=True)
    started, done = time.perf_counter(), len(log["losses"])
    for step in range(done, len(train)):
        loss = loss_of(model, head, train[step], options.turns)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        log["losses"].append(round(loss.item(), 4))
        pace = (time.perf_counter() - started) / (step + 1 - done)
        left = pace * (len(train) - step - 1) / 60
        print(f"{step + 1}/{len(train)} loss {loss.item():.3f}, {left:.0f} min left", flush=True)
        if step % 10 == 9:
            parts = {"lora": get_peft_model_state_dict(model), "log": log}
            parts |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            torch.save(parts, state.with_suffix(".new"))
            state.with_suffix(".new").replace(state)
    log["tune"].append(mean_loss(model, head, tune, options.turns))
    state.unlink(missing_ok=True)
    return log


@torch.no_grad()
def mean_loss(model, head, tune, is_chat) -> float:
    """Mean loss of the packs."""
    losses = [loss_of(model, head, pack, is_chat).item() for pack in tune]
    return round(sum(losses) / len(losses), 4)


if __name__ == "__main__":
    main()
