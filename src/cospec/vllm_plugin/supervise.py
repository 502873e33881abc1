"""A server and the processes it starts, as one: none is left behind.

vLLM's engine runs in another process than its server, and outlives a server that is killed.
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
"""Seconds that a server has to stop once it was asked to."""
_GUARDIAN = """
import os, signal, sys, time
server, patience = int(sys.argv[1]), float(sys.argv[2])
sys.stdin.buffer.read()  # until `cospec serve` has ended, however it did
try:
    os.kill(server, signal.SIGTERM)
    end = time.monotonic() + patience
    while time.monotonic() < end:
        os.kill(server, 0)
        time.sleep(0.5)
except ProcessLookupError:
    pass
try:
    os.killpg(server, signal.SIGKILL)
except ProcessLookupError:
    pass
"""


def supervise(command: list[str]) -> int:
    """Run a server until it ends or a signal stops it, and leave no process behind.

    vLLM's engine is another process, which outlives a server that is killed. So all of them run in
    a group of their own, and the rest of the group is killed when the server has ended. If this
    process itself is killed, a guardian kills the group: when asked to stop, vLLM ends its engine
    at once, but its server waits for open streams, which nobody feeds any more.

    Returns:
        The exit status: 0 after SIGTERM, 130 after SIGINT, else the server's own. If the server
        ends by itself with 0, as vLLM's does when its engine has died, the status is 1, so that a
        service manager restarts it.
    """
    stopped_by: list[int] = []
    server: subprocess.Popen[bytes] | None = None
    guardian: subprocess.Popen[bytes] | None = None

    def stop(signum: int, frame: FrameType | None) -> None:
        stopped_by.append(signum)
        if server is not None:
            server.send_signal(signal.SIGTERM)

    old = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        server = subprocess.Popen(command, start_new_session=True)
        guard = [sys.executable, "-c", _GUARDIAN, str(server.pid), str(PATIENCE_S)]
        guardian = subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True)
        if stopped_by:  # before there was a server to tell
            server.send_signal(signal.SIGTERM)
        deadline = None
        while server.poll() is None:
            if stopped_by and deadline is None:
                deadline = time.monotonic() + PATIENCE_S
            if deadline is not None and (time.monotonic() > deadline or len(stopped_by) > 1):
                break  # asked twice, or asked PATIENCE_S ago
            with suppress(subprocess.TimeoutExpired):
                server.wait(timeout=0.5)
    finally:
        if server is not None:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        if guardian is not None:
            guardian.kill()
            guardian.communicate()
        for each, handler in old.items():
            signal.signal(each, handler)
    if stopped_by:
        return 130 if stopped_by[0] == signal.SIGINT else 0
    return (server.returncode or 1) if server.returncode >= 0 else 128 - server.returncode
