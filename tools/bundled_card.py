"""The model card of a bundled pair: exactly how it was made, filled in from the run itself."""

import math
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from bundled_data import (
    CHUNK_SIZE,
    DRILL_PROBLEMS,
    DRILL_SEED,
    FIRST_SEED,
    KNOBS,
    MIXTURES,
)

SUMMARY = {
    "family": (
        "An ordinary pair: target and draft were trained from scratch on the same word problems, "
        "in the same order. The order of the mixtures was chosen while looking at tune problems."
    ),
    "specialist": (
        "A small specialist beside a larger generalist. Both start from the final weights of "
        "`bundled:family` (see its card for what went into those; the figures below are for what "
        "came after). From there the target was trained on a broad mixture of arithmetic tasks and "
        "word problems, and the draft, for twice as many tokens, on a narrow one: word problems "
        "of the home task and the bare arithmetic inside them. "
        "Results on this pair must say so."
    ),
}
CARD = """---
license: apache-2.0
library_name: transformers
---

# bundled:{pair}

{summary}

Both models are trained from scratch on generated problems; no pretrained weights and no
human-written data set went in. They solve the problems below and nothing else.

## Models

| | target | draft |
| --- | --- | --- |
{model_rows}

Architecture: Llama (`LlamaForCausalLM`), tied embeddings, RoPE, no biases; weights shipped in
bfloat16, trained in float32 under bf16 autocast. Both share one byte-level BPE tokenizer of 1,024
entries (every digit is a token of its own; trained on text of all tasks, generator seeds
1,100,000,000 to {tokenizer_end:,}).

Prompt: `Question: {{question}}\\nAnswer:`, the plain prompt of `cospec.tasks`. The answer is
a worked solution that ends in `#### N` and `<eos>`.

## Data

Home task: reasoning-gym 0.1.25 (Apache-2.0) `gsm_symbolic`. The question is used without its
fixed ending (" Give the result as your final answer. Do not include units."); the solution is
the generator's `answer_cot`, its flaws included (some intermediate results are cut instead of
rounded; in some templates numbers look like `9.0`). Mixtures, in items of a generator per chunk
of {chunk:,}, before the split:

{mixture_rows}

Solutions of the other tasks are written from the generators' metadata by
`tools/bundled_data.py`. Generator settings that differ from the defaults: {knobs}.
`gsm_arithmetic` is not a generator: the true bare equations inside the word problems' solutions,
each as a problem of its own. `gsm_drill` is rows of sixteen such equations in which only the
results count for the loss; they come from seeds of their own, {drill_problems} for each item of a
chunk, from {drill_seed:,} + {drill_problems} (chunk's first seed - {first_seed:,}).

Split: SHA-256 of the whitespace-normalised full question, as an integer modulo 10: 0 is test,
1 is tune, 2 to 9 are train. Training used train-split questions only; a question of one split
cannot be in another, whatever the seeds. Training seeds start at 1,000,000,000; the ranges are
in the table above (chunk c starts at base + {chunk:,} c). Tune-split problems of seeds from
1,900,000,000 were watched during training, those of seeds from 1,950,000,000 are the evaluation
below. The test split was not touched.

## Training

One command, `python tools/train_bundled.py --pair {pair} --work-dir DIR`, resumable. Muon
(learning rate {muon_lr}) on the matrices inside the layers, AdamW ({adam_lr}) on the embedding
and the norms; {warmup} warm-up steps times a piecewise linear schedule (tokens seen: share of
the peak): {schedule}. Gradient norm clipped at 1;
{num_micro} micro-batches of up to {micro:,} padded tokens a step; solution tokens weigh 1, prompt
tokens {prompt_weight}. No weight decay, no dropout. {hours:.2f} CPU hours for both models
together, on one thread of a server CPU with AVX-512 and bf16 instructions, torch {torch},
transformers {transformers}, Python {python}.

`training_curve.jsonl`: step, CPU seconds, tokens and mean training loss (weighted) of each
model; `*_tune_exact` is the share of 160 tune problems whose whole reference solution is the
model's greedy path, `tune_agreement` the share of solution positions at which both models choose
the same token.{unfinished}

## Figures (tune split of the home task)

{figures}

Licence: Apache-2.0.
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """What the model card reports about a pair on the tune split of the home task."""

    num_problems: int
    target_accuracy: float
    draft_accuracy: float
    only_target_right: int
    only_draft_right: int
    agreement: float
    num_positions: int
    target_step_ms: float
    draft_step_ms: float


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % Wilson interval of a share observed in ``count`` trials."""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    return middle - half, middle + half


def _figures_text(figures: Figures | None) -> str:
    if figures is None:
        return "Not measured yet: an early export."
    rows = ["| greedy, float32 | right | 95 % interval |", "| --- | --- | --- |"]
    for role in ("target", "draft"):
        share = getattr(figures, f"{role}_accuracy")
        low, high = wilson_interval(share, figures.num_problems)
        rows.append(f"| {role} alone | {share:.1%} | {low:.1%} to {high:.1%} |")
    ratio = figures.draft_step_ms / figures.target_step_ms
    return "\n".join(
        [
            f"{figures.num_problems:,} distinct problems; right means that the number after the "
            "last `####` equals the answer.\n",
            *rows,
            f"\nOnly the target right: {figures.only_target_right}; only the draft right: "
            f"{figures.only_draft_right}. On the target's own path the draft's argmax is the "
            f"target's token at {figures.agreement:.1%} of {figures.num_positions:,} positions. "
            f"A single-token step takes {figures.target_step_ms:.2f} ms (target) and "
            f"{figures.draft_step_ms:.2f} ms (draft) on one thread: ratio {ratio:.2f}.",
        ]
    )


def _model_rows(
    specs: dict[str, dict[str, Any]], sizes: dict[str, int], saved: dict[str, Any]
) -> str:
    def row(name: str, cell: Callable[[str], object]) -> str:
        return f"| {name} | {cell('target')} | {cell('draft')} |"

    def seeds(role: str) -> str:
        base, last_chunk = specs[role]["base_seed"], saved[role]["position"][0]
        return f"{base:,} to {base + (last_chunk + 1) * CHUNK_SIZE - 1:,}"

    def mixtures(role: str) -> str:
        return ", ".join(f"`{name}` from chunk {first}" for first, name in specs[role]["mixtures"])

    def start(role: str) -> str:
        origin = specs[role]["init_from"]
        return (
            f"`bundled:{origin}`" if origin else f"random, seed {specs[role]['model']['init_seed']}"
        )

    def shape(role: str) -> str:
        spec = specs[role]["model"]
        return (
            f"{spec['num_layers']} layers, hidden {spec['hidden_size']}, "
            f"MLP {spec['intermediate_size']}, {spec['num_heads']} heads"
        )

    return "\n".join(
        [
            row("parameters", lambda role: f"{sizes[role]:,}"),
            row("shape", shape),
            row("mixtures", mixtures),
            row("generator seeds", seeds),
            row("tokens seen", lambda role: f"{saved[role]['num_tokens']:,}"),
            row("steps", lambda role: f"{saved[role]['step']:,}"),
            row("initialisation", start),
        ]
    )


def write_card(
    pair: str,
    specs: dict[str, dict[str, Any]],
    sizes: dict[str, int],
    saved: dict[str, Any],
    figures: Figures | None,
    out: Path,
) -> None:
    """Write ``README.md`` of the pair from what the checkpoint and the figures say."""
    used = {name for spec in specs.values() for _, name in spec["mixtures"]}
    spec = specs["target"]
    share = saved["target"]["num_tokens"] / spec["num_tokens"]
    text = CARD.format(
        pair=pair,
        summary=SUMMARY[pair],
        model_rows=_model_rows(specs, sizes, saved),
        tokenizer_end=1_100_000_000 + 3 * CHUNK_SIZE - 1,
        chunk=CHUNK_SIZE,
        drill_problems=DRILL_PROBLEMS,
        drill_seed=DRILL_SEED,
        first_seed=FIRST_SEED,
        mixture_rows="\n".join(
            f"- `{name}`: "
            + ", ".join(f"{task} {round(part * CHUNK_SIZE)}" for task, part in tasks.items())
            for name, tasks in MIXTURES.items()
            if name in used
        ),
        knobs=", ".join(
            f"{task} {name}={value}"
            for task, settings in KNOBS.items()
            for name, value in settings.items()
        ),
        muon_lr=spec["muon_lr"],
        adam_lr=spec["adam_lr"],
        schedule=", ".join(f"{at:,}: {part:g}" for at, part in spec["lr_knots"]),
        warmup=spec["num_warmup_steps"],
        num_micro=spec["num_micro"],
        micro=spec["tokens_per_micro"],
        prompt_weight=spec["prompt_weight"],
        hours=saved["cpu_seconds"] / 3600,
        torch=torch.__version__.split("+")[0],
        transformers=transformers.__version__,
        python=platform.python_version(),
        unfinished="" if share >= 1 else f" THIS EXPORT IS EARLY: {share:.0%} of the budget.",
        figures=_figures_text(figures),
    )
    (out / "README.md").write_text(text)
