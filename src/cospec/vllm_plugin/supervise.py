"""A server and the processes it starts, as one: none is left behind.

vLLM's engine is another process than its server, and outlives one that is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

PATIENCE_S = 30.0
"""For a server that was asked to stop."""
_LAUNCHER = (
    "import ctypes, os, signal, sys\n"
    "if sys.platform == 'linux':  # PR_SET_PDEATHSIG: end if `cospec serve` itself is killed\n"
    "    ctypes.CDLL(None).prctl(1, signal.SIGTERM)\n"
    "os.execv(sys.argv[1], sys.argv[1:])\n"
)


def supervise(command: list[str]) -> int:
    """Run a server until it ends or a signal stops it, and leave no process behind.

    vLLM's engine is another process, which outlives a server that is killed. So all of them run in
    a group of their own, and what is left of the group when the server has ended is killed.

    Returns:
        The exit status: the server's own, or 0 after SIGTERM and 130 after SIGINT.
    """
    launch = [sys.executable, "-c", _LAUNCHER, *command]  # before exec: no threads to trip over
    server = subprocess.Popen(launch, start_new_session=True)
    stopped_by: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        stopped_by.append(signum)
        server.send_signal(signal.SIGTERM)

    old = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        deadline = None
        while server.poll() is None:
            if stopped_by and deadline is None:
                deadline = time.monotonic() + PATIENCE_S
            if deadline is not None and (time.monotonic() > deadline or len(stopped_by) > 1):
                break  # asked twice, or for long enough
            with suppress(subprocess.TimeoutExpired):
                server.wait(timeout=0.5)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        for each, handler in old.items():
            signal.signal(each, handler)
    if stopped_by:
        return 130 if stopped_by[0] == signal.SIGINT else 0
    return server.returncode if server.returncode >= 0 else 128 - server.returncode
