"""Runs a command in a process that can be killed; a forkserver imports this file alone."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time


def start(argv: list[str]) -> multiprocessing.Process:
    """Start a command in a fork of a process that has imported everything and run nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.cli.killed", "cospec.cli", "cospec.rl", "transformers"])
    process = context.Process(target=_run, args=(argv,))
    process.start()
    return process


def finish(argv: list[str]) -> float:
    """Run a command to its end; the seconds that it took."""
    started = time.monotonic()
    process = start(argv)
    process.join()
    assert process.exitcode == 0, argv
    return time.monotonic() - started


def _run(argv: list[str]) -> None:
    import torch

    from cospec import cli

    torch.set_num_threads(1)
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)  # messages of a refusal stay on standard error
    sys.argv = ["cospec", *argv]
    cli.main()
