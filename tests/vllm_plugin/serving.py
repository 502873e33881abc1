"""Starting ``cospec serve`` on the bundled pair, watching its processes, and asking it things."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODEL = "bundled:specialist"
PROMPT = (
    "Question: Natalia sold clips to {} of her friends in April, and then she sold half as many "
    "in May. How many clips did she sell in April and May together?\nAnswer:"
)
CHAT_TEMPLATE = "{% for m in messages %}Question: {{ m.content }}\n{% endfor %}Answer:"
START_S, STOP_S = 600.0, 60.0
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def descendants(pid: int) -> set[int]:
    """All processes below one, and itself."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
            except OSError:  # has ended
                continue
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    found, last = {pid}, set()
    while found != last:
        last = found
        found = found | {child for child, parent in parents.items() if parent in found}
    return found


def is_alive(pid: int) -> bool:
    """Return True if a process runs, zombies not counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def still_alive(pids: set[int], patience_s: float) -> set[int]:
    """Return the processes that run even after some time."""
    end = time.monotonic() + patience_s
    while (left := {pid for pid in pids if is_alive(pid)}) and time.monotonic() < end:
        time.sleep(0.2)
    return left


@dataclass
class Server:
    """``cospec serve`` and what is below it."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    clients: list[Any] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pids(self) -> set[int]:
        return descendants(self.process.pid)

    @property
    def api_server_pid(self) -> int:
        """vLLM's server, the child of ``cospec serve``."""
        (child,) = (
            pid
            for pid in self.pids
            if "api_server" in Path(f"/proc/{pid}/cmdline").read_text()
            and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
            == str(self.process.pid)
        )
        return child

    def client(self) -> Any:
        """A new client of OpenAI's, closed with all others."""
        import openai

        url = f"{self.url}/v1"
        client = openai.OpenAI(base_url=url, api_key="none", timeout=60, max_retries=0)
        self.clients.append(client)
        return client

    def close_clients(self) -> None:
        for client in self.clients:
            client.close()

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """Values of ``/metrics`` by name, summed over labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        found: dict[str, float] = {}
        for name, value in re.findall(r"^([\w:]+)(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE):
            if name.startswith(prefix):
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def rss_bytes(self) -> int:
        """Resident memory that no process shares, of all processes."""
        total = 0
        for pid in self.pids:
            try:
                text = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            total += sum(int(kb) for kb in re.findall(r"^RssAnon:\s+(\d+)", text, re.MULTILINE))
        return 1024 * total

    def stop(self) -> int:
        """Ask it to stop; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=STOP_S)


def start(folder: Path, *arguments: str, arbiter: str = "bundled:max_mismatch_rate=inf") -> Server:
    """Start a server and wait until it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    template = folder / "chat.jinja"
    template.write_text(CHAT_TEMPLATE)
    command = [sys.executable, "-c", "from cospec.cli import main; main()", "serve"]
    command += ["--pair", MODEL, "--arbiter", arbiter, "-k", "6", *arguments]
    command += ["--", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command += ["--max-model-len", "512", "--max-num-seqs", "8", "--chat-template", str(template)]
    command += ["--per-request-spec-decode-metrics", "summary"]
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | ENVIRONMENT)
    server = Server(process, port, log)
    end = time.monotonic() + START_S
    while True:
        try:
            urllib.request.urlopen(f"{server.url}/health", timeout=5).close()
            return server
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                process.terminate()
                tail = log.read_text(errors="replace")[-3000:]
                raise AssertionError(f"the server did not start:\n{tail}") from None
            time.sleep(1)
