"""The command line: ``cospec VERB``. Each verb is a dataclass whose fields are its options."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import tyro

from cospec.cli.audit import Audit
from cospec.cli.bench import Bench
from cospec.cli.calibrate import Calibrate
from cospec.cli.compare import Compare
from cospec.cli.demo import Demo
from cospec.cli.eval import Eval
from cospec.cli.generate import Generate
from cospec.cli.info import Info
from cospec.cli.push import Push
from cospec.cli.report import Report
from cospec.cli.reproduce import Reproduce
from cospec.cli.serve import Serve
from cospec.cli.trace import Trace
from cospec.cli.train import Train
from cospec.errors import CospecError

COMMANDS: dict[str, Callable[..., Any]] = {  # Any: each builds its own dataclass
    "demo": Demo,
    "generate": Generate,
    "audit": Audit,
    "train": Train,
    "calibrate": Calibrate,
    "eval": Eval,
    "trace": Trace,
    "report": Report,
    "bench": Bench,
    "compare": Compare,
    "reproduce": Reproduce,
    "serve": Serve,
    "push": Push,
    "info": Info,
}

__all__ = ["main"]


def main() -> None:
    """Run the command named in ``sys.argv``; exit 1 with a sentence on bad input, 130 on Ctrl-C."""
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="cospec",
        description="Collaborative speculative decoding.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    try:
        command.run()
    except CospecError as error:
        sys.exit(f"cospec: {error}")
    except KeyboardInterrupt as stop:
        print(f"cospec: {str(stop) or 'interrupted'}", file=sys.stderr)
        sys.exit(130)
