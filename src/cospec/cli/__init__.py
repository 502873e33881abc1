"""The command line: ``cospec VERB``. Each verb is a dataclass whose fields are its options."""

from __future__ import annotations

import ctypes
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
    keep_freed_memory()
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


def keep_freed_memory() -> None:
    """Let glibc keep large blocks that are freed for the next ones, as a caching allocator does.

    By default each large tensor is mapped and zeroed by the kernel anew: on CPUs that is a fifth of
    the time of decoding with billions of weights. Other C libraries are left as they are.
    """
    trim_threshold, mmap_max = -1, -4  # of mallopt(3)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)
