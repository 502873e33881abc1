"""The sandbox against programs that mean harm; the host has to stay as it was."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import cospec.errors
from cospec.errors import CodeExecutionRefusedError
from cospec.tasks import sandbox
from cospec.tasks.sandbox import Limits, ProgramResult, check_sandbox, run_program

SMALL = Limits(cpu_s=1, wall_s=3, memory_bytes=128 * 2**20, disk_bytes=2**20)
TRY = """
def is_refused(action, *arguments, **settings):
    try:
        action(*arguments, **settings)
    except (OSError, ImportError):
        return True
    return False
"""


def run(program: str, limits: Limits = SMALL) -> ProgramResult:
    return run_program(TRY + program, limits)


pytestmark = pytest.mark.usefixtures("sandbox")


def test_a_program_that_reaches_its_end_passes_and_its_output_is_kept() -> None:
    assert run("print(6 * 7, '\u00fc')") == ProgramResult(
        passed=True, reason="passed", output="42 \u00fc"
    )


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("'\x00'", ""),
        ("'\ud800'", "UnicodeEncodeError"),
        ("import numpy", "ModuleNotFoundError"),
        ("raise SystemExit", "SystemExit"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "failed"),
        ("import os; os.abort()", "killed by SIGABRT"),
        ("input()", "EOFError"),
    ],
)
def test_a_program_that_does_not_reach_its_end_fails_and_says_why(
    program: str, reason: str
) -> None:
    verdict = run(program)
    assert not verdict.passed
    assert verdict.reason.startswith(reason)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("os.kill(os.getpid(), 40)", "killed by signal 40"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        (
            "attempt(os.kill, 1, signal.SIGINT); assert False, 'still here'",
            "AssertionError: still here",
        ),
        (
            "attempt(os.kill, 1, signal.SIGKILL); assert False, 'still here'",
            "AssertionError: still here",
        ),
        ("[close(fd) for fd in range(64)]; 1 / 0", ""),
        ("[read(fd) for fd in range(3, 64)]; 1 / 0", "ZeroDivisionError"),
        ("[write(fd) for fd in range(3, 64)]; 1 / 0", "ZeroDivisionError"),
    ],
)
def test_whatever_a_program_does_it_is_wrong_and_the_next_one_runs(
    program: str, reason: str
) -> None:
    """Each of these once ended the whole evaluation, or could."""
    verdict = run(
        "import os, signal\n"
        "def attempt(action, *arguments):\n"
        "    try: action(*arguments)\n"
        "    except OSError: pass\n"
        "def close(fd): attempt(os.close, fd)\n"
        "def read(fd): attempt(os.set_blocking, fd, False); attempt(os.read, fd, 100)\n"
        "def write(fd): attempt(os.write, fd, b'refused')\n" + program
    )
    assert not verdict.passed
    assert reason in verdict.reason
    assert run("").passed


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="annotations are evaluated late there")
def test_a_program_does_not_inherit_the_future_imports_of_the_sandbox() -> None:
    """Found: a name that is defined nowhere passed in an annotation."""
    verdict = run("def half(x: Missing):\n    return x / 2\n")
    assert not verdict.passed
    assert verdict.reason.startswith("NameError")


def test_a_child_that_ends_well_does_not_pass_for_its_parent() -> None:
    verdict = run("import os\nif os.fork():\n    os.wait()\n    raise ValueError('parent')")
    assert not verdict.passed
    assert verdict.reason == "ValueError: parent"


def test_the_order_of_a_set_is_the_same_in_every_run() -> None:
    program = "print({str(i) for i in range(50)})"
    assert run(program).output == run(program).output


def test_a_tree_behind_a_link_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "linked_module.py").write_text("value = 7")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    program = "from linked_module import value; assert value == 7"
    assert run_program(program, SMALL, extra_trees=[tmp_path / "link"]).passed


def test_nothing_is_left_in_the_temporary_folder_even_by_a_killed_host(tmp_path: Path) -> None:
    code = (
        "from cospec.tasks.sandbox import run_program\n"
        "print('started', flush=True)\n"
        "run_program('import time; time.sleep(100)')\n"
    )
    host = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
    )
    assert host.stdout is not None
    host.stdout.readline()
    time.sleep(1)
    host.kill()
    host.wait()
    host.stdout.close()
    assert list(tmp_path.iterdir()) == []


def test_what_solutions_import_and_define_works() -> None:
    verdict = run(
        "import asyncio, dataclasses, decimal, heapq, hashlib, json, random, re, tempfile, typing\n"
        "@dataclasses.dataclass\n"
        "class Point:\n"
        "    x: 'int'\n"
        "async def one(): return 1\n"
        "assert asyncio.run(one()) == 1\n"
        "with tempfile.TemporaryFile() as file: file.write(b'x')\n"
        "assert Point(1) == Point(1) and __name__ != '__main__'\n"
    )
    assert verdict.passed, verdict


def test_an_endless_loop_is_cut_by_its_cpu_time() -> None:
    limits = Limits(cpu_s=1, wall_s=60)  # long enough on a busy machine
    assert run("while True: pass", limits).reason == "killed by SIGXCPU"


def test_a_loop_that_ignores_the_cpu_signal_is_cut_all_the_same() -> None:
    program = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert run(program).reason in ("killed by SIGKILL", "timed out")


def test_an_endless_sleep_is_cut_by_the_wall_clock() -> None:
    started = time.monotonic()
    assert run("import time; time.sleep(1000)", Limits(wall_s=0.5)).reason == "timed out"
    assert time.monotonic() - started < 10


def test_a_fork_bomb_stays_small_and_leaves_nothing() -> None:
    verdict = run(
        "import os\nwhile True:\n    try: os.fork()\n    except BlockingIOError: pass\n",
        Limits(cpu_s=1, wall_s=1),
    )
    assert not verdict.passed
    assert not children_of_the_sandbox()


def test_the_number_of_processes_is_held() -> None:
    assert run(
        "import os, time\n"
        "num_started = 0\n"
        "try:\n"
        "    while True:\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(100)\n"
        "        num_started += 1\n"
        "except BlockingIOError:\n"
        "    assert num_started == 3, num_started\n"
    ).passed


def test_a_daemon_that_outlives_the_program_is_killed() -> None:
    program = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)"
    assert run(program).passed
    assert not children_of_the_sandbox()


def children_of_the_sandbox() -> list[str]:
    """Command lines of sandbox processes whose parent is this process, or gone."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
            command = (status.parent / "cmdline").read_text()
        except (OSError, ValueError):
            continue
        if "sandbox_child" in command and int(fields["PPid"]) in (1, os.getpid()):
            found.append(command)
    return found


@pytest.mark.parametrize(
    "program",
    ["x = bytearray(10**9)", "x = []\nwhile True: x.append(bytearray(10**7))", "x = 'a' * 10**10"],
)
def test_a_memory_hog_gets_a_memory_error(program: str) -> None:
    assert run(program).reason == "MemoryError"


def test_memory_that_no_limit_counts_cannot_be_had() -> None:
    assert run(
        "import ctypes, os\n"
        "assert is_refused(os.memfd_create, 'x')\n"
        "assert ctypes.CDLL(None).shmget(0, 4096, 0o1600) == -1\n"
    ).passed


def test_its_folder_is_limited_in_size() -> None:
    program = (
        "data = bytes(2**19)\n"
        "assert is_refused(lambda: [open(f'f{i}', 'wb').write(data) for i in range(10)])\n"
        "assert is_refused(lambda: [os.mkdir(f'd{i}') for i in range(10000)])\n"
    )
    assert run("import os\n" + program).passed


def test_a_file_is_limited_in_size() -> None:
    limits = Limits(file_bytes=1000)
    program = "import pathlib\nassert is_refused(pathlib.Path('f').write_bytes, bytes(2000))"
    assert run(program, limits).passed


def test_huge_output_is_cut_and_does_not_pass() -> None:
    verdict = run("while True: print('x' * 1000)")
    assert not verdict.passed
    assert len(verdict.output) <= 4000


def test_nothing_outside_its_folder_can_be_written_or_deleted(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("keep")
    code = Path(os.__file__)
    program = f"""
import os, shutil
assert not os.path.exists({str(mine)!r})
for path in ("/escape", "/usr/escape", {str(code.parent / "escape")!r}):
    assert is_refused(open, path, "w"), path
assert is_refused(os.remove, {str(code)!r})
assert is_refused(os.chmod, {str(code)!r}, 0o777)
shutil.rmtree({str(code.parent / "json")!r}, ignore_errors=True)
assert os.path.exists({str(code.parent / "json" / "__init__.py")!r})
"""
    verdict = run(program)
    assert verdict.passed, verdict
    assert mine.read_text() == "keep"
    assert code.exists()


def test_the_files_of_the_host_cannot_be_read() -> None:
    paths = ["/etc/passwd", "/proc/self/status", "/dev/mem", str(Path(__file__)), "/sys", "/var"]
    assert run(f"import os\nassert not any(map(os.path.exists, {paths}))").passed


def test_the_environment_and_open_files_of_the_parent_are_not_visible(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COSPEC_TEST_SECRET", "do-not-tell")
    with (tmp_path / "secret").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        verdict = run(
            "import os\n"
            "assert not os.environ, os.environ\n"
            "opened = [n for n in range(3, 64) if not is_refused(os.fstat, n)]\n"
            "print(opened)\n"
            "assert all(not os.path.isfile(f'/proc/self/fd/{n}') for n in opened)\n"
            "import stat\n"
            "assert not any(stat.S_ISREG(os.fstat(n).st_mode) for n in opened)\n"
        )
    assert verdict.passed, verdict


def test_its_parent_and_the_host_cannot_be_killed() -> None:
    verdict = run(
        "import os, signal\n"
        f"for pid in (1, os.getppid(), {os.getpid()}, {os.getppid()}):\n"
        "    try: os.kill(pid, signal.SIGKILL)\n"
        "    except (PermissionError, ProcessLookupError): pass\n"
    )
    assert verdict.passed, verdict


@pytest.mark.parametrize("target", ["0", "-1", "os.getpid()"])
def test_a_program_that_kills_all_it_can_kills_only_itself(target: str) -> None:
    """A signal to its own process group used to end the sandbox, and with it the evaluation."""
    assert not run(f"import os\nos.kill({target}, 9)\nos._exit(0)").passed


def test_no_socket_can_be_opened() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        verdict = run(
            "import socket\n"
            f"assert is_refused(socket.create_connection, ('127.0.0.1', {port}), timeout=1)\n"
            "assert is_refused(socket.socket, socket.AF_UNIX)\n"
            "assert is_refused(socket.socket, 40)\n"  # AF_VSOCK, which no namespace holds
        )
    assert verdict.passed, verdict


def test_no_privilege_can_be_gained() -> None:
    verdict = run(
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None)\n"
        "assert os.getuid() and os.geteuid() and not os.getgroups()[1:]\n"
        "assert is_refused(os.setuid, 0) and is_refused(os.chroot, '.')\n"
        "for flag in (0x10000000, 0x00020000, 0x40000000):\n"
        "    assert libc.unshare(flag) == -1\n"
        "    assert libc.syscall(56 if os.uname().machine == 'x86_64' else 220, flag | 17,"
        " 0, 0, 0, 0) == -1\n"
        "assert libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == -1\n"
        "assert libc.ptrace(0, 0, 0, 0) == -1\n"
    )
    assert verdict.passed, verdict


def test_the_sandbox_tests_itself() -> None:
    check_sandbox()


@pytest.mark.parametrize(
    ("step", "broken"),
    [
        ('call("unshare"', 'call("no_such_call"'),
        ('call("pivot_root"', 'call("no_such_call"'),
        ('call("capset"', 'call("no_such_call"'),
        ('call("syscall", SYS_MOUNT_SETATTR', 'call("syscall", 9999'),
        ("os.uname().machine", '"vax"'),
        ('("NPROC",', '("NO_SUCH_LIMIT",'),
    ],
)
def test_without_one_of_its_protections_nothing_runs(
    step: str, broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(sandbox.__file__).with_name("sandbox_child.py").read_text()
    assert step in source
    (tmp_path / "child.py").write_text(source.replace(step, broken))
    monkeypatch.setattr(sandbox, "_CHILD", tmp_path / "child.py")
    with pytest.raises(CodeExecutionRefusedError, match="generated code was not run"):
        run("print('ran')")


def test_a_wall_with_a_hole_fails_the_self_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(sandbox.__file__).with_name("sandbox_child.py").read_text()
    (tmp_path / "child.py").write_text(source.replace("        filter_syscalls()\n", ""))
    monkeypatch.setattr(sandbox, "_CHILD", tmp_path / "child.py")
    with pytest.raises(CodeExecutionRefusedError, match="not protected: network"):
        check_sandbox.__wrapped__()


def test_other_platforms_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(CodeExecutionRefusedError, match="the platform is darwin"):
        run("print('ran')")


def test_an_ordinary_user_gets_the_same_sandbox() -> None:
    """Run as root, the other tests here do not use a user namespace; an ordinary user needs one."""
    if os.geteuid() != 0:
        pytest.skip("the other tests ran as an ordinary user")
    python = next(filter(is_for_everyone, (sys.executable, "/usr/bin/python3")), None)
    if python is None:
        pytest.skip("no Python that another user can start")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        package = Path(folder, "cospec")
        (package / "tasks").mkdir(parents=True)
        shutil.copy(cospec.errors.__file__, package)
        for file in ("sandbox.py", "sandbox_child.py"):
            shutil.copy(Path(sandbox.__file__).with_name(file), package / "tasks")
        code = (
            "from cospec.tasks.sandbox import *; check_sandbox()\n"
            "print(run_program('import os; os.kill(0, 9)').reason)"
        )
        done = subprocess.run(
            [python, "-c", code],
            cwd=folder,
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
        )
    if "PermissionError: unshare" in done.stderr:
        pytest.skip("user namespaces are not permitted here")
    assert done.stdout == "killed by SIGKILL\n", done.stderr


def is_for_everyone(program: str) -> bool:
    """Return True if another user can start the program, at 3.11 or later."""
    check = [program, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    try:
        return subprocess.run(check, user=65534, check=False).returncode == 0
    except OSError:
        return False
