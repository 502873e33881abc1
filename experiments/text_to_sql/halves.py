"""The train questions in parts: one tunes drafts, another trains arbiters.

An arbiter learns nothing true about a draft from questions that the draft was tuned on.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cospec.models.prefill import num_shared_tokens
from cospec.tasks.sql.dice import stable_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase as Tokenizer

    from cospec.tasks import Example, Task

PART_SIZE = 16
LONGEST_PREFIX = 400
"""Most tokens that the prompts of a database share. Databases with longer schemas are left out of
training because they cost most."""


def half(examples: Sequence[Example], name: str, arbiter_quarters: int = 2) -> list[Example]:
    """The questions whose databases are for ``draft`` or for ``arbiter``, in their order.

    The arbiter has ``arbiter_quarters`` of the databases, 1 or 2: the first is in the second.

    Raises:
        ValueError: There is no such half.
    """
    if name not in ("draft", "arbiter"):
        raise ValueError(f"unknown half {name!r}; it is draft or arbiter.")
    quarters = (1, 3)[:arbiter_quarters]
    is_arbiter = {
        e.id: stable_hash(f"half/{e.metadata['db_id']}") % 4 in quarters for e in examples
    }
    return [example for example in examples if is_arbiter[example.id] == (name == "arbiter")]


QUERY_PARTS = {"draft": range(12), "arbiter": range(12, 15), "test": range(15, 20)}
"""Twentieths of the queries of each database."""
LITERAL = re.compile(r"'[^']*'|\"[^\"]*\"|\b\d+(?:\.\d+)?\b")


def skeleton(example: Example) -> str:
    """The gold query without literals."""
    return LITERAL.sub("?", str(example.metadata["solution"])).lower()


def known(examples: Sequence[Example], name: str, rotate: int = 0) -> list[Example]:
    """The questions of a part, in their order, where databases are known and queries are new.

    Every database is in every part. Questions whose gold queries differ in literals alone are in
    one part, as in the query split of Finegan-Dollak et al. (1806.09029). Each part begins
    ``rotate`` twentieths later: with 10, no test question of 0 is one of the test.
    """
    found = []
    for example in examples:
        place = stable_hash(f"query/{example.metadata['db_id']}/{skeleton(example)}") - rotate
        if place % 20 in QUERY_PARTS[name]:
            found.append(example)
    return found


def words_of(text: str) -> frozenset[str]:
    """Return the words of a text in lower case."""
    return frozenset(re.findall(r"[a-z]+", text.lower()))


def short_schemas(examples: Sequence[Example], task: Task, tokenizer: Tokenizer) -> list[Example]:
    """The questions whose databases have schemas of at most `LONGEST_PREFIX` tokens."""
    prompts: dict[str, list[list[int]]] = {}
    for example in examples:
        some = prompts.setdefault(example.metadata["db_id"], [])
        some.append(task.prompt(example, tokenizer))
    length = {
        name: min(num_shared_tokens(some[0][:-1], prompt) for prompt in some)
        for name, some in prompts.items()
    }
    return [e for e in examples if length[e.metadata["db_id"]] <= LONGEST_PREFIX]


def one_wording(examples: Sequence[Example]) -> list[Example]:
    """The first question of each gold query: Spider asks most of them in two wordings."""
    first = {(example.metadata["db_id"], example.answer): example for example in reversed(examples)}
    return [e for e in examples if first[e.metadata["db_id"], e.answer] is e]


def parts(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """Questions of one database each, 16 of every database before the next 16 of any.

    The names are DATABASE.0, DATABASE.1 and so on.
    """
    databases: dict[str, list[Example]] = {}
    for example in examples:
        databases.setdefault(example.metadata["db_id"], []).append(example)
    found = [
        (start // PART_SIZE, name, some[start : start + PART_SIZE])
        for name, some in databases.items()
        for start in range(0, len(some), PART_SIZE)
    ]
    found.sort(key=lambda part: part[0])
    return {f"{name}.{number}": some for number, name, some in found}
