"""``cospec serve`` as its users meet it: the official client, several at once, and failures."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.vllm_plugin import serving
from tests.vllm_plugin.serving import MODEL, PROMPT, Server

MISSING = [name for name in ("vllm", "openai") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"needs {' and '.join(MISSING)}, which COSPEC_CI_VLLM=1 .ci/run installs",
    ),
]

LOAD = """
import sys, threading, time, openai
url, seconds, most = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
client = openai.OpenAI(base_url=url, api_key="none", timeout=60, max_retries=0)
end, done, errors, lock = time.monotonic() + seconds, [], [], threading.Lock()
def work(n):
    i = 0
    while time.monotonic() < end and len(done) < most:
        i += 1
        try:
            answer = client.completions.create(
                model="bundled:specialist", prompt=f"Question: {n} and {i} clips?\\nAnswer:",
                max_tokens=24, temperature=0 if i % 2 else 0.8,
                extra_body={"ignore_eos": True, "vllm_xargs": {"cospec": "on" if i % 3 else "off"}},
            )
            assert answer.usage.completion_tokens == 24, answer
            done.append(1)
        except Exception as error:
            with lock: errors.append(repr(error))
            return
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
print(len(done), errors)
sys.exit(bool(errors))
"""

STOCK = """
import json, sys
from vllm import LLM, SamplingParams
target, draft, prompts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
llm = LLM(target, dtype="float32", enforce_eager=True, max_model_len=512, max_num_seqs=8,
          speculative_config={"method": "draft_model", "model": draft, "num_speculative_tokens": 6})
done = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=60))
print("IDS", json.dumps([list(each.outputs[0].token_ids) for each in done]))
"""


def stream_until_it_breaks(server: Server) -> str:
    try:
        stream = server.client().completions.create(
            model=MODEL,
            prompt="a",
            max_tokens=490,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        for _ in stream:
            pass
    except Exception as error:  # of openai or of the HTTP library below it
        return type(error).__name__
    return "finished"


@pytest.mark.parametrize("victim", ["vllm", "cospec"])
def test_a_killed_server_leaves_clients_with_an_error_and_no_process(tmp_path, victim):
    server = serving.start(tmp_path)
    pids = server.pids
    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(stream_until_it_breaks, server) for _ in range(4)]
        end = time.monotonic() + 30
        while server.metrics("vllm:num_requests_running")["vllm:num_requests_running"] < 4:
            assert time.monotonic() < end
        pids |= server.pids
        os.kill(server.api_server_pid if victim == "vllm" else server.process.pid, signal.SIGKILL)
        results = [stream.result(timeout=60) for stream in streams]
    server.close_clients()
    if victim == "vllm":  # the supervisor is told to stop gently, and its server may finish streams
        assert "finished" not in results
    assert server.process.wait(timeout=30) == (137 if victim == "vllm" else -signal.SIGKILL)
    assert not serving.still_alive(pids, patience_s=30)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    server = serving.start(folder, "--decisions", str(folder / "decisions.jsonl"))
    pids = server.pids
    yield server
    server.close_clients()
    pids |= server.pids
    assert server.stop() == 0
    assert not serving.still_alive(pids, patience_s=5)


def complete(server: Server, number: int, setting: str = "on", **options: object) -> object:
    body = {"return_token_ids": True, "vllm_xargs": {"cospec": setting}}
    options = {"max_tokens": 60, "temperature": 0} | options
    return server.client().completions.create(
        model=MODEL, prompt=PROMPT.format(number), extra_body=body, **options
    )


def token_ids(answer: object) -> list[int]:
    return answer.choices[0].model_extra["token_ids"]


def test_chat_and_completions_answer_alike(server):
    question = PROMPT.format(48).removeprefix("Question: ").removesuffix("\nAnswer:")
    chat = server.client().chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": question}],
        max_completion_tokens=60,
        temperature=0,
    )
    assert chat.choices[0].message.content == complete(server, 48).choices[0].text
    assert chat.usage.completion_tokens > 0


def test_streamed_pieces_make_up_the_whole(server):
    pieces = list(complete(server, 48, stream=True, stream_options={"include_usage": True}))
    text = "".join(piece.choices[0].text for piece in pieces if piece.choices)
    assert text == complete(server, 48).choices[0].text
    spec = pieces[-1].model_extra["metrics"]["speculative_decoding"]
    assert spec["num_overrides"] + spec["num_strict_accepts"] == spec["num_accepted_draft_tokens"]


def test_several_at_once_get_the_answers_of_one_by_one(server):
    alone = [token_ids(complete(server, n)) for n in range(40, 48)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda n: token_ids(complete(server, n)), range(40, 48)))
    assert together == alone


def test_a_full_queue_answers_503_at_once_and_takes_requests_again(tmp_path):
    import openai

    server = serving.start(tmp_path, "--max-num-queued-reqs", "4")

    def status(number: int) -> int:
        try:
            complete(server, number)
        except openai.APIStatusError as error:
            return error.status_code
        return 200

    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(status, range(24)))
    assert set(found) == {200, 503} and found.count(200) >= 4
    assert status(24) == 200
    server.close_clients()
    assert server.stop() == 0


def test_a_request_with_the_switch_off_is_stock_vllm(server):
    from cospec.models.bundled import bundled_models

    numbers = range(40, 48)
    command = [sys.executable, "-c", STOCK, *map(str, bundled_models(MODEL))]
    command += [json.dumps([PROMPT.format(n) for n in numbers])]
    environment = os.environ | serving.ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    run = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=True, timeout=300
    )
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("IDS "))
    stock = json.loads(line.removeprefix("IDS "))
    assert [token_ids(complete(server, n, "off")) for n in numbers] == stock
    assert [token_ids(complete(server, n, "threshold=1")) for n in numbers] == stock
    assert [token_ids(complete(server, n)) for n in numbers] != stock


@pytest.mark.parametrize("setting", ["offf", "threshold=x", 1, ["off"]])
def test_a_wrong_setting_is_a_bad_request_and_the_server_goes_on(server, setting):
    import openai

    with pytest.raises(openai.BadRequestError, match="cospec of a request is"):
        complete(server, 48, setting)
    assert complete(server, 48).choices[0].text


def test_other_bad_requests_are_refused(server):
    import openai

    with pytest.raises(openai.NotFoundError):
        server.client().completions.create(model="nobody", prompt="x")
    with pytest.raises(openai.BadRequestError):
        complete(server, 48, max_tokens=-1)
    with pytest.raises(openai.BadRequestError):
        server.client().completions.create(model=MODEL, prompt="x " * 3000, max_tokens=4)


def test_the_log_names_the_arbiter(server):
    """Found: vLLM shows infos of its own loggers alone."""
    assert re.search(r"CoSpec: arbiter \S+ rules in this engine", server.log.read_text())


def test_strict_accepts_and_overrides_are_counted_apart(server):
    def tell() -> dict[str, float]:
        found = server.metrics("cospec:") | server.metrics("vllm:spec_decode")
        return {name: value for name, value in found.items() if name.endswith("_total")}

    before = tell()
    answers = [complete(server, n) for n in range(40, 48)]
    after = tell()
    new = {name: after[name] - before[name] for name in after}
    strict, overrides = new["cospec:num_strict_accepts_total"], new["cospec:num_overrides_total"]
    assert strict > 0 and overrides > 0
    assert strict + overrides == new["vllm:spec_decode_num_accepted_tokens_total"]
    assert overrides <= new["cospec:num_mismatches_total"]
    specs = [answer.model_extra["metrics"]["speculative_decoding"] for answer in answers]
    assert sum(spec["num_overrides"] for spec in specs) == overrides
    assert sum(spec["num_strict_accepts"] for spec in specs) == strict
    answers = [complete(server, n, max_tokens=5) for n in range(40, 48)]
    short = {name: value - after[name] for name, value in tell().items()}
    ours = short["cospec:num_strict_accepts_total"] + short["cospec:num_overrides_total"]
    accepted = short["vllm:spec_decode_num_accepted_tokens_total"]
    assert 0 < ours < accepted, "vLLM counts accepted tokens after the end of a text too"
    specs = [answer.model_extra["metrics"]["speculative_decoding"] for answer in answers]
    assert sum(s["num_overrides"] + s["num_strict_accepts"] for s in specs) == accepted


def test_decisions_are_written_as_they_are_counted(server):
    path = server.log.parent / "decisions.jsonl"

    def written() -> list[dict]:
        return [json.loads(line) for line in path.read_text().splitlines()[1:]]

    before, counted = len(written()), server.metrics("cospec:")
    complete(server, 51)
    rows, now = written()[before:], server.metrics("cospec:")
    names = {"num_mismatches": lambda row: True, "num_overrides": lambda row: row["keep_draft"]}
    for name, is_one in names.items():
        new = now[f"cospec:{name}_total"] - counted[f"cospec:{name}_total"]
        assert new == sum(map(is_one, rows))
    seen = json.loads(path.read_text().splitlines()[0])["features"]
    assert len(seen) > 33 and {len(row["features"]) for row in rows} == {len(seen)}


def test_a_client_that_hangs_up_ends_its_request(server):
    body = {"ignore_eos": True}
    stream = server.client().completions.create(
        model=MODEL, prompt="a", max_tokens=480, temperature=0, stream=True, extra_body=body
    )
    pieces = iter(stream)
    next(pieces)
    stream.close()
    pieces.close()
    end = time.monotonic() + 10
    while server.metrics("vllm:num_requests_running")["vllm:num_requests_running"]:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert complete(server, 48).choices[0].text


def test_a_minute_of_load_brings_no_error_and_no_growth(server):
    def load(seconds: float, most: int) -> None:
        command = [sys.executable, "-c", LOAD, f"{server.url}/v1", str(seconds), str(most)]
        run = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=seconds + 90
        )
        assert run.returncode == 0, run.stdout + run.stderr
        print(run.stdout)

    load(120, 1000)  # until all buffers are there, however slow the machine
    before, pids = server.rss_bytes(), server.pids
    load(60, 1500)
    grown = server.rss_bytes() - before
    assert grown < 24e6, f"{grown / 1e6:.0f} MB more"
    assert server.pids == pids
