"""``cospec info``: what is installed and where models would run."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

_EXTRAS = {
    "gguf": ["gguf", "accelerate"],
    "hub": ["datasets"],
    "lm-eval": ["lm_eval", "accelerate"],
    "report": ["matplotlib", "jinja2"],
    "browser": ["playwright"],
    "tasks": ["reasoning_gym", "math_verify"],
    "tensorboard": ["tensorboard"],
    "vllm": ["vllm"],
    "wandb": ["wandb"],
}


@dataclass(frozen=True)
class Info:
    """Show versions, devices, arbiters and optional parts."""

    def run(self) -> None:
        """Print the table."""
        import torch
        from rich.console import Console
        from rich.table import Table

        from cospec.arbiters import RULES
        from cospec.results import device_name, versions

        table = Table(show_header=False, box=None)
        for name, version in versions().items():
            table.add_row(name, version)
        table.add_row("threads", str(torch.get_num_threads()))
        table.add_row("cpu", device_name("cpu"))
        for i in range(torch.cuda.device_count()):
            table.add_row(f"cuda:{i}", device_name(f"cuda:{i}"))
        for extra, modules in _EXTRAS.items():
            missing = [m for m in modules if importlib.util.find_spec(m) is None]
            hint = f"missing ({', '.join(missing)}); run: pip install 'cospec[{extra}]'"
            table.add_row(f"extra {extra}", hint if missing else "installed")
        table.add_row("arbiters", ", ".join(rule().name for rule in RULES.values()))
        Console(soft_wrap=True).print(table, highlight=False, markup=False)
