"""Runs generated programs behind walls that the kernel holds, or refuses to run them.

Every protection below is mandatory: when the kernel does not grant one, nothing runs and
`CodeExecutionRefusedError` says which one is missing. There is no weaker mode.

==================  ==============================================================================
what                how
==================  ==============================================================================
network             a network namespace of its own, and ``socket`` is refused (seccomp)
files               its own root: the Python installation and the system libraries, read-only, and
                    an empty ``/tmp`` of limited size in memory; nothing else of the host exists
processes           its own process namespace: the host's can be neither seen nor signalled, and
                    whatever is left is killed at the end; their number is limited
secrets             an empty environment, no inherited file descriptor, a fresh interpreter
privileges          not root, no capability, no new privileges, no new namespaces
CPU, memory, files  resource limits
output              goes to a file whose size the kernel limits
wall clock          the sandbox's first process kills the program, and dies with its parent
==================  ==============================================================================

It needs Linux (5.12, x86-64 or ARM64) and either root or permitted user namespaces. Docker's
default profile grants neither. It does not protect from faults of the kernel itself, and a program
that sets out to forge its own verdict can: it shares a process with its tests.

`sandbox_child` is the part on the other side of the walls.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from cospec.errors import CodeExecutionRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable

_CHILD = Path(__file__).with_name("sandbox_child.py")
_SYSTEM_TREES = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache")
_MOUNT_POINT = "/dev"
"""Folder in which the sandbox builds its root, in a mount namespace of its own: every Linux has it,
and it holds no Python."""
_TAIL_BYTES = 4000
"""Bytes of a program's output that are kept, its last ones."""
_STARTUP_S = 60.0
"""Time to build the sandbox on a busy machine, before the host gives up on it."""

_SELF_TEST = """
import os, resource, socket

def claim(is_held, what):
    if not is_held:
        raise SystemExit(f"not protected: {what}")

def is_refused(action, *arguments):
    try:
        action(*arguments)
    except OSError:
        return True
    return False

claim(not os.environ, "environment")
claim(os.getuid() != 0 and os.getpid() <= 3 and os.getppid() <= 1, "privileges and processes")
claim(is_refused(socket.socket), "network")
claim(is_refused(os.mkdir, "/escape") and is_refused(os.mkdir, "/usr/escape"), "read-only files")
claim(not set(os.listdir("/")) & {"dev", "proc", "sys", "var"}, "files of the host")
claim(is_refused(os.setuid, 0), "privileges")
for name in ("AS", "CPU", "FSIZE", "NPROC"):
    soft, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
    claim(resource.RLIM_INFINITY not in (soft, hard), f"limit {name}")
os.mkdir("/tmp/writable")
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a generated program."""

    cpu_s: int = 5
    """CPU seconds of each of its processes."""
    wall_s: float = 15.0
    """Seconds by the wall clock."""
    memory_bytes: int = 512 * 2**20
    """Address space of each of its processes."""
    file_bytes: int = 2**20
    """Size of its output and of each file that it writes."""
    disk_bytes: int = 16 * 2**20
    """Size of all its files together."""
    num_processes: int = 4
    """Processes and threads, itself included."""


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """Outcome of a program."""

    passed: bool
    """It reached its end: no exception, no early exit, no limit."""
    reason: str
    """``passed``, the last line of its error, or what killed it."""
    output: str
    """The last 4,000 bytes of its standard output and error."""


def run_program(
    program: str, limits: Limits | None = None, *, extra_trees: Iterable[Path] = ()
) -> ProgramResult:
    """Runs a Python program in a sandbox.

    Args:
        program: Source code; its tests are part of it. Only the standard library can be imported.
        limits: Limits of the program; the defaults if None.
        extra_trees: More folders that it can read and import from.

    Raises:
        CodeExecutionRefusedError: A protection is missing on this machine; nothing was run.
    """
    limits = limits or Limits()
    trees = [str(path) for path in extra_trees]
    with tempfile.TemporaryFile() as output:
        request = asdict(limits) | {
            "program": program,
            "mount_point": _MOUNT_POINT,
            "trees": [*_SYSTEM_TREES, sys.base_prefix, *trees],
            "import_from": trees,
        }
        report = _supervise(json.dumps(request), output, limits.wall_s)
        text = _tail(output)
    if "refused" in report:
        raise CodeExecutionRefusedError(
            f"generated code was not run, since it cannot be sandboxed here: {report['refused']}. "
            "It needs Linux 5.12 and either root or unprivileged user namespaces (not a container "
            "with Docker's default profile)."
        )
    reason = report["reason"]
    if reason == "failed":
        reason = text.rpartition("\n")[2][:200] or reason
    return ProgramResult(report["reason"] == "passed", reason, text)


def _supervise(request: str, output: IO[bytes], wall_s: float) -> dict[str, str]:
    """Starts the child, and returns its report; in any case the child ends."""
    if sys.platform != "linux":
        return {"refused": f"the platform is {sys.platform}"}
    with subprocess.Popen(
        [sys.executable, "-s", "-S", "-P", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=output,
        cwd="/",
        env={"PYTHONHASHSEED": "0"},  # or a program that iterates over a set passes by chance
        text=True,
        start_new_session=True,
    ) as process:
        try:
            report, _ = process.communicate(request, timeout=wall_s + _STARTUP_S)
        except subprocess.TimeoutExpired:
            return {"reason": "timed out"}
        finally:
            process.kill()
    try:
        return dict(json.loads(report))
    except json.JSONDecodeError:
        return {"refused": f"the sandbox process died: {_tail(output)[-500:]}"}


def _tail(output: IO[bytes]) -> str:
    size = output.seek(0, 2)
    output.seek(max(0, size - _TAIL_BYTES))
    return output.read(_TAIL_BYTES).decode(errors="replace").strip()


@functools.cache
def check_sandbox() -> None:
    """Runs a program that tries the walls from within, once a process.

    Raises:
        CodeExecutionRefusedError: A protection is missing, or does not hold, on this machine.
    """
    verdict = run_program(_SELF_TEST)
    if not verdict.passed:
        raise CodeExecutionRefusedError(
            f"generated code is not run: the sandbox failed its self-test ({verdict.reason})."
        )
