"""The bundled pair and the jobs that `offline.py` does with it in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

import cospec
from cospec.tasks.jsonl import jsonl

HOME = Path(cospec.__file__).parent / "bundled"
TARGET, DRAFT = HOME / "generalist", HOME / "specialist"
# The bundled arbiter without its guard, which leaves too little to see on few short texts.
BUNDLED = str(HOME / "arbiters" / "specialist-scalar")
LEARNED = f"{BUNDLED}:max_mismatch_rate=inf"
HIDDEN = f"{HOME}/arbiters/specialist:max_mismatch_rate=1"
OTHER_PAIRS = str(HOME / "arbiters" / "family")
"""It rules by hidden states too."""
ARBITERS = [LEARNED, "gap:max_gap=1", "lossless", f"{BUNDLED}:max_mismatch_rate=0.04"]
K, NUM_PROMPTS, MAX_TOKENS, NUM_OPTED_OUT = 6, 60, 120, 6


def encoded_problems(tokenizer, num):
    """The first problems of the test split as token ids."""
    task = jsonl(str(HOME / "problems.jsonl"), {"scorer": "numeric", "split": "test"})
    prompts = [task.prompt(example, tokenizer) for example in task.examples("test", num)]
    return [p if isinstance(p, list) else tokenizer.encode(p) for p in prompts]


@pytest.fixture(scope="session")
def pair():
    return cospec.ModelPair.from_pretrained(TARGET, DRAFT, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def job(pair):
    """Input that all modes of `offline.py` read; tests add what theirs needs."""
    return dict(
        target=str(TARGET),
        draft=str(DRAFT),
        k=K,
        batch_size=16,
        prompts=encoded_problems(pair.tokenizer, NUM_PROMPTS),
        max_tokens=MAX_TOKENS,
        arbiters=ARBITERS,
        num_opted_out=NUM_OPTED_OUT,
    )


def run(mode, job, folder):
    """Run `offline.py` and return its answer."""
    given, written = folder / "job.json", folder / f"{mode}.json"
    given.write_text(json.dumps(job))
    script = Path(__file__).with_name("offline.py")
    done = subprocess.run(
        [sys.executable, str(script), mode, str(given), str(written)],
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads(written.read_text())


def in_forks(*jobs):
    """Does each job in a process of its own, all at once: one that need not import torch again."""
    children = []
    for job in jobs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, for the threads
            child = os.fork()
        if child:
            children.append(child)
            continue
        code = 1
        try:
            signal.alarm(120)  # ends a job that hangs
            job()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)  # whatever happens, no child goes on with the tests
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * len(jobs)


class Later:
    """An arbiter that is told as if a text had begun earlier.

    Args:
        arbiter: Who rules.
        num_tokens: So many tokens earlier,
        num_overrides: with so many overrides among them.
    """

    def __init__(self, arbiter, num_tokens=1, num_overrides=0):
        self.arbiter, self.name, self.needs = arbiter, arbiter.name, arbiter.needs
        self.num_tokens, self.num_overrides = num_tokens, num_overrides

    def rule(self, batch):
        later = dict(
            positions=batch.positions + self.num_tokens,
            num_overrides=batch.num_overrides + self.num_overrides,
        )
        return self.arbiter.rule(replace(batch, **later))
