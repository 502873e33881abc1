"""A tiny pair with a tokenizer, and problems that it solves now and then."""

from __future__ import annotations

import json

import pytest

from cospec import ModelPair
from cospec.tasks import Task, load_task

WORDS = ["the and", "in on", "stone or", "ten hens", "red is", "the end", "an ant", "oats", "her"]


@pytest.fixture(scope="session")
def pair(llama_pair, tokenizer) -> ModelPair:
    return ModelPair(llama_pair.target, llama_pair.draft, tokenizer)


@pytest.fixture(scope="session")
def task(tmp_path_factory) -> Task:
    """An answer is right if there is a y in it, which happens about every other time."""
    path = tmp_path_factory.mktemp("task") / "letters.jsonl"
    rows = [{"question": words, "answer": "y"} for words in WORDS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_task(f"jsonl:{path},scorer=regex,split=test")
