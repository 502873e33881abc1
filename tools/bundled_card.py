"""The model card of the bundled models, filled in from how they were trained and measured."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundled_data import (
    CHUNK_SIZE,
    DRILL_LENGTH,
    DRILL_PROBLEMS,
    DRILL_SEED,
    FIRST_SEED,
    KNOBS,
    MIXTURES,
)
from bundled_models import MAX_LENGTH, TOKENIZER_SEED, VOCAB_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from train_bundled import TrainSpec

ROLES = {
    "target": "the target of `bundled:family`, trained on many tasks and drilled in bare equations",
    "family": "the draft of `bundled:family`, trained on the target's mixture of tasks, on other "
    "problems of it and on more of them",
    "specialist": "the draft of `bundled:specialist`, trained on word problems and such drills",
    "generalist": "the target of `bundled:specialist`, trained on many tasks without those drills",
}
CARD = """---
license: apache-2.0
library_name: transformers
---

# The bundled models

Four small language models over one tokenizer, which make two pairs:

{roles}

They were trained from scratch, on a CPU, on generated problems. No pretrained weights and no text
but that of the generators went in.{early}

**What they are for**: the demo, the tests, and experiments with arbiters that need no download and
no GPU.

**What they are not for**: anything else. They were trained on word problems and sums of the kinds
below and on nothing more. They cannot chat, know nothing of the world, and a result on them says
little about large models. In `bundled:specialist` the target never saw the drills in bare
equations that the draft was trained on: the pair was made so that a small draft can be right (in
arithmetic) where a larger target is wrong. A result on this pair must say so.

## Models

{models}

All are Llama models (`LlamaForCausalLM`): tied embeddings, rotary positions, no biases, a context
of {context} tokens. The weights are stored in bfloat16; `--pair` loads them as float32. The
tokenizer is a byte-level BPE of {vocabulary:,} entries in which every digit is a token of its own.

The prompt is `Question: {{question}}\\nAnswer:`, the plain prompt of `cospec.tasks`. The answer is
a worked solution that ends in `#### N` and `<eos>`.

## Data

All problems come from the generators of reasoning-gym {versions[reasoning-gym]} (Apache-2.0).
Training goes through chunks: chunk c of a model holds the train-split problems among the items that
each generator makes from seed (first seed + {chunk:,} c) on. Items a chunk, and share of the
tokens:

{mixtures}

- `gsm_symbolic`, the home task: word problems from 85 templates, which follow problems of GSM8K, so
  a score of these models on GSM8K itself would mean nothing. The question is shown without its
  fixed ending (" Give the result as your final answer. Do not include units."). The solution is the
  generator's own, its flaws included: some results are cut instead of rounded, and some templates
  write numbers as `9.0`.
- `gsm_drill` trains arithmetic: rows of {drill_length} true equations taken from solutions of other
  train-split word problems. What follows an equals sign weighs 1 in the loss, the rest
  {recipe.prompt_weight}. Each item of a chunk stands for {drill_problems} of these other problems;
  their seeds go on from the first seed of `gsm_drill` in the table above.
- `gsm_equation` is one such equation of each word problem, as a problem of its own.
- The other solutions are written from the generators' metadata by `tools/bundled_data.py`. Settings
  that differ from the generators' defaults: {knobs}.
- `sample` is for the tokenizer only, which was trained on three chunks of `sample` and of `broad`,
  from seed {tokenizer_seed:,} on.

**Splits.** A problem's split is a hash of its whole question (`cospec.tasks.splits`): a tenth is
test, a tenth is tune, the rest is train. Training used the train split only. Some questions of
`gsm_symbolic` come up more than once, but the same question is never in two splits. Test problems
come from the same 85 templates as training problems, and often have the same numbers under other
names: of 3,000 test problems (seed 63) 43 % have such a twin among the 100,000 solved train
problems of the arbiter `family` (`experiments/twins`). Being right on them shows no skill
at new kinds of problem. `target` saw at most 45,586 and `generalist` at most 92,603 different word
problems with their solutions, fewer than the arbiters that rule on them. The bare equations have no
split of their own: one that was trained on can be part of a test problem's solution.

The figures below are of the tune split. Other tune problems (seeds from 1,900,000,000 on) were
watched during training and while the mixtures and sizes were chosen. The test split was used for
neither. `problems.jsonl` holds test problems for the demo; the comparison inside vLLM
(`docs/vllm.md`) is on the same 200 of them.

## Training

`python tools/train_bundled.py --work-dir DIR` does everything, and goes on where it was stopped.

- Muon for the matrices inside the layers: peak learning rate {recipe.muon_lr}, weight decay
  {recipe.weight_decay}. AdamW for the embedding and the norms: {recipe.adam_lr}, no weight decay.
- {recipe.num_warmup_steps} steps of warm-up, constant rates up to the share of the token budget in
  the table above, then a straight line to zero. Later cycles start at half the peak rates and go
  to zero in a straight line as well; `generalist` got each of its two when the one before had ended
  and left it no better than its draft.
- A step is {recipe.num_micro} micro-batches of up to {recipe.tokens_per_micro:,} tokens, padding
  included. The norm of the gradient is clipped at 1. No dropout.
- Solution tokens weigh 1 in the loss, question tokens {recipe.prompt_weight}.
- float32 weights under bfloat16 autocast, each model on one thread of a CPU with {cpu}. Python
  {versions[python]}, torch {versions[torch]}, transformers {versions[transformers]}.

`training_curve_*.jsonl` hold step, tokens, CPU seconds and mean loss; `tune_exact` is the share of
160 tune problems whose whole reference solution is the model's greedy path.

## Figures (`figures.json`)

{figures}

## Trained arbiters

`arbiters/family` and `arbiters/specialist`, which are `--arbiter bundled`, were trained for the
pairs of these names by `cospec train`, at 16 drafted tokens a block (`-k 16`); their cards have the
settings and the curves. They see both models' hidden states and the embeddings of both tokens, and
learned from the worked solutions of 100,000 and 130,000 train problems before their first round.
`family` is as the solutions left it: no round of reinforcement did better on the tune split.
`arbiters/family-scalar` and `arbiters/specialist-scalar` (`--arbiter bundled-scalar`) learned by
reinforcement alone, and see scalars only.

## Licence

Apache-2.0, as the rest of the project. `SHA256SUMS` lists every other file of this folder.
"""
FIGURES = """\
Greedy, float32, on {num_problems:,} different tune problems of `gsm_symbolic` (seeds from {seed:,}
on). Intervals are Wilson's, 95 %. A step is one token after 200, on one thread; a model that was
exported later than another one may have been timed on another machine, beside other jobs.

{models}

The pairs on the same problems, each model alone. Agreement is the share of the positions of the
target's own path at which the draft would choose the same token; the step ratio is the draft's step
over the target's.

{pairs}

The other tasks of the broad mixture: share right, of few problems, so known to 10 points or so.

{tasks}"""


def table(header: list[str], rows: list[list[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _models(specs: dict[str, "TrainSpec"], training: dict[str, dict[str, Any]]) -> str:
    def drill_seed(spec: "TrainSpec") -> str:
        if "gsm_drill" not in MIXTURES[spec.mixture]:
            return ""
        return f"{DRILL_SEED + DRILL_PROBLEMS * (spec.base_seed - FIRST_SEED):,}"

    cells: dict[str, Callable[[TrainSpec, dict[str, Any]], object]] = {
        "parameters": lambda _, run: f"{run['num_parameters']:,}",
        "layers": lambda spec, _: spec.model.num_layers,
        "hidden size": lambda spec, _: spec.model.hidden_size,
        "MLP size": lambda spec, _: spec.model.intermediate_size,
        "heads": lambda spec, _: spec.model.num_heads,
        "seed of the first weights": lambda spec, _: spec.model.init_seed,
        "mixture": lambda spec, _: f"`{spec.mixture}`",
        "first seed": lambda spec, _: f"{spec.base_seed:,}",
        "first seed of `gsm_drill`": lambda spec, _: drill_seed(spec),
        "chunks begun": lambda _, run: run["num_chunks"],
        "tokens seen": lambda _, run: f"{run['num_tokens']:,}",
        "steps": lambda _, run: f"{run['num_steps']:,}",
        "constant rates up to": lambda spec, _: f"{spec.constant_share:.0%}",
        "tokens of later cycles": lambda spec, _: " + ".join(f"{n:,}" for n in spec.later_cycles),
        "by torch.compile": lambda spec, _: "yes" if spec.is_compiled else "no",
        "CPU hours": lambda _, run: f"{run['cpu_hours']:.1f}",
    }
    rows = [
        [label, *(cell(specs[name], run) for name, run in training.items())]
        for label, cell in cells.items()
    ]
    return table(["", *training], rows)


def _mixtures(token_shares: dict[str, dict[str, float]]) -> str:
    def cell(mixture: str, task: str) -> str:
        if task not in MIXTURES[mixture]:
            return ""
        items = f"{round(MIXTURES[mixture][task] * CHUNK_SIZE):,}"
        share = token_shares.get(mixture, {}).get(task)
        return items if share is None else f"{items} ({share:.0%})"

    tasks = dict.fromkeys(task for mixture in reversed(MIXTURES.values()) for task in mixture)
    return table(
        ["", *(f"`{mixture}`" for mixture in MIXTURES)],
        [[f"`{task}`", *(cell(mixture, task) for mixture in MIXTURES)] for task in tasks],
    )


def _figures(figures: dict[str, Any]) -> str:
    if "models" not in figures:
        return "Not measured."
    models = [
        [
            name,
            f"{row['accuracy']:.1%}",
            "{:.1%} to {:.1%}".format(*row["accuracy_ci95"]),
            f"{row['step_ms']:.2f} ms",
        ]
        for name, row in figures["models"].items()
    ]
    counts = ("only_target_right", "only_draft_right", "both_right")
    pairs = [
        [
            f"`{name}`",
            *(row[count] for count in counts),
            f"{row['agreement']:.1%}",
            f"{row['step_ratio']:.2f}",
        ]
        for name, row in figures["pairs"].items()
    ]
    tasks = [
        [f"`{task}`", row["num_problems"], *(f"{row[name]:.0%}" for name in figures["models"])]
        for task, row in figures["tasks"].items()
    ]
    pair_header = ["", *(count.replace("_", " ") for count in counts), "agreement", "step ratio"]
    return FIGURES.format(
        num_problems=figures["num_problems"],
        seed=figures["seed"],
        models=table(["", "right", "interval", "step"], models),
        pairs=table(pair_header, pairs),
        tasks=table(["", "problems", *figures["models"]], tasks),
    )


def write_card(specs: dict[str, "TrainSpec"], figures: dict[str, Any], path: Path) -> None:
    """Write the card of the models that ``figures`` (as in figures.json) tells of."""
    training = figures["training"]
    # The card describes one recipe for all models.
    (recipe,) = {
        replace(
            specs[name],
            model=None,
            base_seed=0,
            mixture="",
            num_tokens=0,
            constant_share=0.0,
            later_cycles=(),
            is_compiled=False,
        )
        for name in training
    }
    shares = {name: training[name]["num_tokens"] / specs[name].num_all_tokens for name in training}
    unfinished = [f"{name} at {share:.0%}" for name, share in shares.items() if share < 1]
    text = CARD.format(
        roles="\n".join(f"- `{name}`: {ROLES[name]};" for name in training)[:-1] + ".",
        early=f"\n\n**An early export**: {', '.join(unfinished)} of its tokens." * bool(unfinished),
        models=_models(specs, training),
        context=MAX_LENGTH,
        vocabulary=VOCAB_SIZE,
        chunk=CHUNK_SIZE,
        mixtures=_mixtures(figures["token_shares"]),
        drill_length=DRILL_LENGTH,
        drill_problems=DRILL_PROBLEMS,
        knobs=", ".join(
            f"`{task}` {name}={value}"
            for task, settings in KNOBS.items()
            for name, value in settings.items()
        ),
        tokenizer_seed=TOKENIZER_SEED,
        recipe=recipe,
        cpu=figures["cpu"],
        versions=figures["versions"],
        figures=_figures(figures),
    )
    path.write_text(text)
