"""The command line: ``cospec VERB``. Each verb is a dataclass whose fields are its options."""

from __future__ import annotations

import ctypes
import importlib.metadata
import inspect
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import tyro

from cospec.cli.arbiters import Arbiters
from cospec.cli.audit import Audit
from cospec.cli.bench import Bench
from cospec.cli.calibrate import Calibrate
from cospec.cli.common.config_file import check_flags, given_config, options_from, without_flag
from cospec.cli.common.troubles import sentence_for
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
from cospec.cli.train import Train, defaults
from cospec.errors import CospecError
from cospec.text import visible

COMMANDS: dict[str, type[Any]] = {  # Any: each is its own dataclass
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
    "arbiters": Arbiters,
    "push": Push,
    "info": Info,
}
_DESCRIPTION = (
    "Collaborative speculative decoding: where a draft and a target model disagree, a trained "
    "arbiter decides whose token stands."
)
_WELCOME = f"""{_DESCRIPTION}

Start here:
  cospec demo                          target, draft and arbiter compared on a bundled pair
  cospec generate --pair bundled:specialist --arbiter bundled --prompt "Question: 3+4?"
  cospec info                          versions, devices, and which extras are missing

With your own models (hub ids or folders):
  cospec info  --target T --draft D                  whether the pair works, its memory and speed
  cospec audit --target T --draft D --task gsm8k     what an arbiter could win on this pair
  cospec train --target T --draft D --task gsm8k --out arbiter
  cospec eval  --target T --draft D --task gsm8k --arbiter arbiter
  cospec serve --target T --draft D --arbiter arbiter --port 8000

All commands: cospec --help. Options of one: cospec VERB --help.
Shell completion: cospec --tyro-write-completion bash FILE, then source FILE (also zsh, tcsh)."""

__all__ = ["main", "parse"]


def main() -> None:
    """Run the command named in ``sys.argv``; exit 1 with a sentence on bad input, 130 on Ctrl-C."""
    keep_freed_memory()
    args = sys.argv[1:]
    if not args:
        print(_WELCOME)
        return
    if args == ["--version"]:
        print(f"cospec {importlib.metadata.version('cospec')}")
        return
    try:
        try:
            parse(args).run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
        sys.exit(1)
    except CospecError as error:
        sys.exit(f"cospec: {visible(str(error))}")
    except (OSError, MemoryError, RuntimeError) as error:
        if (sentence := sentence_for(error, args[0])) is None:
            raise
        sys.exit(f"cospec: {visible(sentence)}")
    except KeyboardInterrupt as stop:
        print(f"cospec: {str(stop) or 'interrupted'}", file=sys.stderr)
        sys.exit(130)


def parse(args: Sequence[str]) -> Any:  # Any: the dataclass of the verb
    """Return the command that some arguments name; exit with a message if they do not fit.

    Args:
        args: The verb and its options.

    Raises:
        ConfigError: A config file cannot be used.
    """
    verb, *rest = args
    config = (tyro.conf.OmitArgPrefixes,)
    if verb not in COMMANDS:  # help, completion, and misspelt verbs
        return tyro.extras.subcommand_cli_from_dict(
            dict(COMMANDS), prog="cospec", description=_DESCRIPTION, args=args, config=config
        )
    # One verb alone starts faster, and errors name its options without tyro's wrapper.
    if verb != "serve":
        return _parse_one(verb, rest)
    end = rest.index("--") if "--" in rest else len(rest)
    command, unknown = tyro.cli(
        Serve, prog="cospec serve", args=rest[:end], config=config, return_unknown_args=True
    )
    return replace(command, vllm=(*unknown, *rest[end + 1 :]))


def _parse_one(verb: str, args: Sequence[str]) -> Any:  # Any: the dataclass of the verb
    """Return the command of a verb, with the options of its ``--config``."""
    command, default = COMMANDS[verb], None
    about, given = inspect.getdoc(command) or "", given_config(args)
    has_config = "output" in {field.name for field in fields(command)}
    if has_config and (names := without_flag(command)):
        check_flags(args, names)
        about += f"\n\nSettings without a flag, for --config: {', '.join(names)}."
    if given is not None and verb == "train":
        default = defaults(given)
    elif given is not None and has_config:
        default = options_from(given, verb, command, args)
    return tyro.cli(
        command,
        prog=f"cospec {verb}",
        description=about,
        args=args,
        config=(tyro.conf.OmitArgPrefixes,),
        default=default,
    )


def keep_freed_memory() -> None:
    """Let glibc keep freed large blocks for reuse, as a caching allocator does.

    By default the kernel maps and zeroes each large tensor anew: on CPUs that is a fifth of the
    time of decoding with billions of weights. Other C libraries are left as they are.
    """
    trim_threshold, mmap_max = -1, -4  # of mallopt(3)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)
