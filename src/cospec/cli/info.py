"""``cospec info``: what is installed, where models would run, and what to expect from a pair."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cospec.cli.common.options import PairOptions, given
from cospec.cli.generate import PromptOptions
from cospec.errors import ConfigError, check_least, pip_line

if TYPE_CHECKING:
    from cospec.evaluation.checkup import Checkup
    from cospec.models import ModelPair

_EXTRAS = {
    "docs": ["mkdocs", "mkdocstrings"],
    "spread": ["accelerate"],
    "gguf": ["gguf", "accelerate"],
    "hub": ["datasets"],
    "lm-eval": ["lm_eval", "accelerate"],
    "report": ["matplotlib", "jinja2"],
    "browser": ["playwright"],
    "ray": ["ray"],
    "tasks": ["reasoning_gym", "math_verify"],
    "tensorboard": ["tensorboard"],
    "vllm": ["vllm"],
    "wandb": ["wandb"],
}
_NUM_PROMPTS = 4


@dataclass(frozen=True)
class Info:
    """Show versions, devices, arbiters and extras; with a pair, whether it works and pays.

    For a pair it shows memory, measured costs of both models, how often the draft's choice stands,
    and the speed-up of lossless decoding that follows, in a minute for small models.
    """

    pair: PairOptions = field(default_factory=PairOptions)
    prompts: PromptOptions = field(default_factory=PromptOptions)
    num_tokens: int = 64
    """Most tokens that the target generates for each prompt; by default the prompts are 4 word
    problems."""
    batch_size: int = 1
    """Batch size of the forwards that are timed."""

    def __post_init__(self) -> None:
        check_least(1, num_tokens=self.num_tokens, batch_size=self.batch_size)

    def run(self) -> None:
        """Print the table.

        Raises:
            ConfigError: There is no pair, but an option for pairs.
        """
        if self.pair != PairOptions():
            self._check_up()
            return
        for name, value in given(self, Info()).items():
            raise ConfigError(
                f"{name} is {value}, which is for measuring a pair; pass one by --pair, or "
                "--target T and --draft D, or leave it out."
            )
        import torch

        from cospec.arbiters import RULES
        from cospec.results import device_name, versions

        rows = dict(versions())
        rows["threads"] = str(torch.get_num_threads())
        rows["cpu"] = device_name("cpu")
        rows |= {f"cuda:{i}": device_name(f"cuda:{i}") for i in range(torch.cuda.device_count())}
        for extra, modules in _EXTRAS.items():
            missing = [m for m in modules if importlib.util.find_spec(m) is None]
            hint = f"missing ({', '.join(missing)}); run: {pip_line(extra)}"
            rows[f"extra {extra}"] = hint if missing else "installed"
        rows["arbiters"] = ", ".join(rule().name for rule in RULES.values())
        _print(rows)

    def _check_up(self) -> None:
        """Load the pair, which refuses unusable models, and measure it."""
        from cospec.evaluation.checkup import check_up

        prompts = self.prompts
        if not prompts.prompt and prompts.file is None:
            prompts = _word_problems(prompts)
        prompts.read()  # refused before the models load
        pair = self.pair.load()
        for note in pair.notes:
            print(f"note: {note}", file=sys.stderr)
        found = check_up(
            pair, prompts.encode(pair), num_tokens=self.num_tokens, batch_size=self.batch_size
        )
        _print(_rows(pair, found))
        print(found.verdict)


def _word_problems(options: PromptOptions) -> PromptOptions:
    """Return the options with the shortest problems of the package as prompts."""
    import json

    from cospec.models.bundled import bundled_home

    lines = (bundled_home() / "problems.jsonl").read_text(encoding="utf-8").splitlines()
    questions = sorted((json.loads(line)["question"] for line in lines), key=len)[:_NUM_PROMPTS]
    return replace(options, prompt=tuple(questions), template="Question: {prompt}\\nAnswer:")


def _rows(pair: ModelPair, found: Checkup) -> dict[str, str]:
    costs, num_rows, context = found.costs, 8, min(1024, pair.context_length)
    cache = found.cache_bytes_per_token * num_rows * context
    return {
        "models": f"{str(pair.target.dtype).removeprefix('torch.')} on {pair.target.device}, "
        f"context {pair.context_length}",
        "memory": f"weights {found.weight_bytes / 1e6:,.0f} MB, and a cache of "
        f"{cache / 1e6:,.0f} MB for {num_rows} rows of {context} tokens",
        "draft step": f"{costs.draft_step_s * 1e3:.2f} ms (batch {costs.batch_size}, "
        f"{costs.context} tokens before)",
        "target step": ", ".join(
            f"{costs.verify_s[n - 1] * 1e3:.2f} ms for {n} {'token' if n == 1 else 'tokens'}"
            for n in (1, 5, 17)
        ),
        "acceptance": f"the draft's choice stands at {found.acceptance:.1%} of "
        f"{found.num_tokens} tokens",
        "lossless": ", ".join(f"{row['speedup']:.2f}x at -k {row['k']}" for row in found.shown),
    }


def _print(rows: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, value)
    Console(soft_wrap=True).print(table, highlight=False, markup=False)
