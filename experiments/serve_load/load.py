"""`cospec serve` under load for some minutes: errors, memory and latency, as a result file.

Usage: PYTHONPATH=. python experiments/serve_load/load.py --json FILE [--minutes 10]

Clients in another process than the server's send whole requests (arbiter on, off, or with another
threshold), requests that are hung up, and wrong ones. Then more requests arrive at once than the
queue takes. Then the engine's process is killed, and the server is started again.
"""

from __future__ import annotations

import http.client
import json as jsonlib
import os
import random
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tests.vllm_plugin import serving

from cospec.results import Provenance, document, write_json

QUEUE = 16
SWITCHES = [None, "off", "threshold=0.9", "on"]
WRONG: list[tuple[str, dict[str, Any], int]] = [  # Any: JSON
    ("unknown switch", {"vllm_xargs": {"cospec": "maybe"}}, 400),
    ("wrong threshold", {"vllm_xargs": {"cospec": "threshold=7"}}, 400),
    ("negative length", {"max_tokens": -1}, 400),
    ("too long", {"max_tokens": 100_000}, 400),
    ("unknown model", {"model": "nobody"}, 404),
]


@dataclass
class Seen:
    """The answers to all clients."""

    answers: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    num_unexpected: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, status: int | str, wanted: int, seconds: float | None = None) -> None:
        """Count an answer."""
        with self.lock:
            self.answers[f"{kind}: {status}"] += 1
            self.num_unexpected += status != wanted
            if seconds is not None:
                self.latencies_s.append(seconds)


def body(number: int, **changes: Any) -> dict[str, Any]:  # Any: JSON
    """A request of 40 tokens."""
    prompt = serving.PROMPT.format(number % 90 + 10)
    base = {"model": serving.MODEL, "prompt": prompt, "max_tokens": 40, "temperature": 0}
    return base | changes


def send(port: int, payload: dict[str, Any]) -> int | str:  # Any: JSON
    """Send a request and read the answer; return its status, or the name of the error."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", jsonlib.dumps(payload), headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


def hang_up(port: int, payload: dict[str, Any]) -> None:  # Any: JSON
    """Send a request and close the connection before the answer is whole."""
    text = jsonlib.dumps(payload | {"stream": True})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text)}\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall((head + text).encode())
        time.sleep(0.3)


def client(port: int, number: int, end: float, seen: Seen) -> None:
    """Send requests of all kinds, one after the other, until the end."""
    rng = random.Random(number)
    while time.monotonic() < end:
        share, question = rng.random(), rng.randrange(10_000)
        if share < 0.7:
            switch = rng.choice(SWITCHES)
            more = {} if switch is None else {"vllm_xargs": {"cospec": switch}}
            start = time.monotonic()
            status = send(port, body(question, **more))
            seen.add(f"whole, cospec {switch}", status, 200, time.monotonic() - start)
        elif share < 0.85:
            hang_up(port, body(question))
            seen.add("hung up", 0, 0)  # has no status; it is counted
        else:
            name, changes, wanted = rng.choice(WRONG)
            seen.add(name, send(port, body(question, **changes)), wanted)


def under_load(server: serving.Server, minutes: float, num_clients: int) -> dict[str, Any]:
    """Run the clients, watch the memory of the server's processes, and sum up."""
    seen, memory = Seen(), list[tuple[float, int]]()
    end = time.monotonic() + 60 * minutes
    with ThreadPoolExecutor(num_clients) as pool:
        clients = [pool.submit(client, server.port, n, end, seen) for n in range(num_clients)]
        while time.monotonic() < end:
            memory.append((time.monotonic(), server.rss_bytes()))
            time.sleep(5)
    for one in clients:
        one.result()  # raises what it raised
    seconds, sizes = np.array(memory).T
    settled = seconds > seconds[0] + 0.4 * (seconds[-1] - seconds[0])  # buffers are there by then
    slope = np.polyfit(seconds[settled] / 60, sizes[settled] / 1e6, 1)[0]
    p50, p95, most = np.quantile(seen.latencies_s, [0.5, 0.95, 1])
    return {
        "answers": dict(sorted(seen.answers.items())),
        "num_unexpected": seen.num_unexpected,
        "latency_s": {"p50": round(p50, 2), "p95": round(p95, 2), "max": round(most, 2)},
        "memory_mb": [round(size / 1e6, 1) for size in sizes],
        "memory_mb_per_minute": round(float(slope), 3),
    }


def burst(port: int, size: int) -> dict[str, int]:
    """Send many requests at once; count their statuses."""
    with ThreadPoolExecutor(size) as pool:
        statuses = pool.map(lambda number: str(send(port, body(number))), range(size))
        return dict(Counter(statuses))


def kill_engine(server: serving.Server) -> dict[str, Any]:
    """Kill the largest process behind the server while a request runs; say what happens."""
    behind = server.pids - {server.process.pid, server.api_server_pid}
    engine = max(behind, key=lambda pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1]))
    pids = server.pids
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(send, server.port, body(1, max_tokens=400))
        time.sleep(0.5)
        start = time.monotonic()
        os.kill(engine, signal.SIGKILL)
        status = server.process.wait(timeout=300)
        ended_s = time.monotonic() - start
    return {
        "running_request": request.result(),
        "exit_status": status,
        "ended_after_s": round(ended_s, 1),
        "processes_left": len(serving.still_alive(pids, 30)),
    }


def main(json: Path, minutes: float = 10, num_clients: int = 6, burst_size: int = 48) -> None:
    """Run the load and write what was seen.

    Args:
        json: Result file.
        minutes: Time under load.
        num_clients: That send one request after the other.
        burst_size: Requests that arrive at once.
    """
    provenance = Provenance()
    serving.START_S = 3000.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = serving.start(folder, "--max-num-queued-reqs", str(QUEUE))
        send(server.port, body(0))
        result = under_load(server, minutes, num_clients)
        result["burst"] = burst(server.port, burst_size)
        result["after_the_burst"] = send(server.port, body(2))
        result["engine_killed"] = kill_engine(server)
        again = serving.start(folder)
        result["after_the_restart"] = send(again.port, body(2))
        result["exit_status_at_sigterm"] = again.stop()
    config = {"minutes": minutes, "num_clients": num_clients, "burst_size": burst_size}
    where = provenance.to_dict("cpu", "torch.float32")
    write_json(json, document("serve_load", config | {"queue": QUEUE}, where, **result))
    print(jsonlib.dumps(result | {"memory_mb": "..."}, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
