"""The inside of `sandbox`: run by path without site packages, so standard library only.

There are three processes. The *outer* one (started by the host, with an empty environment) builds
the namespaces and the file tree. The *init* (process 1 of the new process namespace) watches the
wall clock, and its end kills all that is left. The *program* drops every privilege and runs the
code. Any step that fails ends in a report ``{"refused": …}``, never in a run with less protection.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import struct
import sys
import traceback
import types
from typing import Any, NoReturn

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
NAMESPACES = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = -100, 0x8000, 1, 2
SYS_MOUNT_SETATTR = 442
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
EPERM, ENOSYS = 1, 38

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""By machine: the column in ``DENIED``, and the kernel's number of the architecture."""

DENIED = {
    "socket": (41, 198),
    "unshare": (272, 97),
    "setns": (308, 268),
    "ptrace": (101, 117),
    "shmget": (29, 194),  # this and the next three: memory that no limit counts
    "semget": (64, 190),
    "msgget": (68, 186),
    "memfd_create": (319, 279),
    "io_uring_setup": (425, 425),  # the rest: parts of the kernel with a history of faults
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
CLONE, CLONE3 = (56, 220), (435, 435)

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    """Calls a function of libc, and raises its error."""
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    if getattr(libc, name)(*wide) == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def enter_namespaces() -> None:
    """Leaves the host's network, processes, mounts and names. Root needs no user namespace."""
    user, group = os.geteuid(), os.getegid()
    new_user = CLONE_NEWUSER if user else 0
    call("unshare", NAMESPACES | new_user)
    if new_user:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)


def make_read_only(path: str, flags: int = 0) -> None:
    """Makes a mount read-only; with ``AT_RECURSIVE`` the mounts below it too."""
    what = struct.pack("4Q", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, what, len(what))


def build_root(request: dict[str, Any], user: int) -> None:
    """Makes the trees of the request, read-only, and an empty ``/tmp`` the whole file system."""
    root = request["mount_point"]
    own = f"size={request['disk_bytes']},nr_inodes=1000,mode=700,uid={user},gid={user}"
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    mount_memory(root, "size=1m,mode=755")
    os.mkdir(f"{root}/tmp")
    mount_memory(f"{root}/tmp", own)
    for tree in request["trees"]:
        show(tree, root + tree)
    make_read_only(root)
    os.chdir(root)
    call("pivot_root", b".", b".")
    call("umount2", b".", MNT_DETACH)
    os.chdir("/tmp")


def mount_memory(path: str, options: str) -> None:
    """Mounts an empty file system that lives in memory."""
    call("mount", b"tmpfs", path.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, options.encode())


def show(tree: str, target: str) -> None:
    """Make a file or folder of the host, if there is one, readable at ``target``.

    A link is shown as its target, which may lie outside of all that is shown.
    """
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.exists(tree):
        if os.path.isdir(tree):
            os.makedirs(target, exist_ok=True)
        else:
            open(target, "wb").close()
        call("mount", tree.encode(), target.encode(), None, MS_BIND | MS_REC, None)
        make_read_only(target, AT_RECURSIVE)


def limit_resources(request: dict[str, Any], num_ours: int) -> None:
    """Sets the limits of the program and of all that it starts."""
    cpu_s, memory, size = (request[key] for key in ("cpu_s", "memory_bytes", "file_bytes"))
    for name, soft, hard in (
        ("CPU", cpu_s, cpu_s + 1),
        ("AS", memory, memory),
        ("FSIZE", size, size),
        ("NPROC", request["num_processes"] + num_ours, request["num_processes"] + num_ours),
        ("NOFILE", 64, 64),
        ("CORE", 0, 0),
        ("MEMLOCK", 0, 0),
        ("MSGQUEUE", 0, 0),
    ):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, hard))


def drop_privileges(user: int) -> None:
    """Becomes an ordinary user for good, without capabilities."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))


def filter_syscalls() -> None:
    """Refuses the calls in ``DENIED``, and new user namespaces, by a seccomp filter."""
    column, architecture = ARCHITECTURES[os.uname().machine]
    load, equal, at_least, has_bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, deny = 0x7FFF0000, 0x80000000, 0x00050000
    # (code, jump if true, jump if false, operand); offsets: call 0, architecture 4, argument 16.
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, kill), (load, 0, 0, 0)]
    program += [(at_least, 0, 1, 0x40000000), (give, 0, 0, kill)]  # the x32 twins of all calls
    for numbers in DENIED.values():
        program += [(equal, 0, 1, numbers[column]), (give, 0, 0, deny | EPERM)]
    # libc falls back from clone3, whose flags a filter cannot see, to clone.
    program += [(equal, 0, 1, CLONE3[column]), (give, 0, 0, deny | ENOSYS)]
    program += [(equal, 0, 3, CLONE[column]), (load, 0, 0, 16), (has_bits, 0, 1, CLONE_NEWUSER)]
    program += [(give, 0, 0, deny | EPERM), (give, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in program))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0)


def run_program(request: dict[str, Any], user: int, verdict: int) -> NoReturn:
    """Run the program: write ``started`` or the fault to ``verdict``, then `` passed``."""
    own_id = os.getpid()
    try:
        os.dup2(2, 1)
        limit_resources(request, num_ours=0 if os.geteuid() == 0 else 2)
        drop_privileges(user)
        filter_syscalls()
    except Exception as error:
        os.write(verdict, f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    os.write(verdict, b"started")
    try:
        os.environ.clear()  # the host passes nothing; Python itself sets LC_CTYPE
        sys.path += request["import_from"]
        module = sys.modules["program"] = types.ModuleType("program")
        # Else the program would get this file's `from __future__ import annotations`.
        code = compile(request["program"], "program.py", "exec", dont_inherit=True)
        exec(code, module.__dict__)
        sys.stdout.flush()
        if os.getpid() == own_id:  # a child of the program may get here too
            os.write(verdict, b" passed")
            os._exit(0)
    except SystemExit as error:
        print(f"SystemExit: {error}", file=sys.stderr)
    except BaseException as error:
        own = error.__traceback__  # this function's frame, which says nothing about the program
        traceback.print_exception(error.with_traceback(own and own.tb_next))
    os._exit(1)


def watch_program(request: dict[str, Any], user: int) -> dict[str, str]:
    """The init: starts the program, waits for it or for the wall clock, and reports."""
    # Python's own handler would let the program interrupt this process, which the kernel protects
    # from signals that it does not handle.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        run_program(request, user, write_end)
    os.close(write_end)
    has_ended, _, _ = select.select([os.pidfd_open(pid)], [], [], request["wall_s"])
    if not has_ended:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.set_blocking(read_end, False)
    said = os.read(read_end, 1000).decode(errors="replace")
    if not has_ended:
        return {"reason": "timed out"}
    if not said.startswith("started"):
        return {"refused": said}
    if code < 0:
        return {"reason": f"killed by {signal_name(-code)}"}
    return {"reason": "passed" if said == "started passed" and code == 0 else "failed"}


def signal_name(number: int) -> str:
    """Return the name of a signal; real-time signals have none of their own."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def main() -> None:
    """The outer process: builds the walls, starts the init behind them, and waits for it."""
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        request = json.load(sys.stdin)
        # Beside root's programs no other process has this user, so that their number can be held.
        user = os.geteuid() or 1_000_000_000 + os.getpid()
        enter_namespaces()
        build_root(request, user)
        pid = os.fork()
        if pid:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if code < 0:  # it said nothing: the kernel, short of memory, may have killed it
                print(json.dumps({"reason": f"killed by {signal_name(-code)}"}), flush=True)
            return
        call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.setsid()  # or the program could kill the outer process as one of its own group
        report = watch_program(request, user)
    except Exception as error:
        report = {"refused": f"{type(error).__name__}: {error}"}
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
