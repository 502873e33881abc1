"""Share of systematic near misses that the judge of ``spider`` tells from the gold query.

    python experiments/sql_judge/near_misses.py --data-dir DATA --json near_misses.json

Takes gold queries of the train split, changes each in one place in every way below, and asks the
judge whether the changed query is right. Some changes keep the meaning (DISTINCT on a key), so that
no kind has to reach 100 %. Queries that do not run are not counted.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from cospec.tasks import load_task
from cospec.tasks.sql.executor import QueryError
from cospec.tasks.sql.scan import scan
from cospec.tasks.sql.tokens import Token, depths, tokenize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cospec.tasks.sql.schema import Schema

_SWAPS = {
    "bound": {">": ">=", ">=": ">", "<": "<=", "<=": "<"},
    "direction": {"DESC": "ASC", "ASC": "DESC"},
    "aggregate": {"MAX": "MIN", "MIN": "MAX", "AVG": "SUM", "SUM": "AVG", "COUNT": "MAX"},
    "connective": {"AND": "OR", "OR": "AND"},
    "set operator": {"INTERSECT": "UNION", "UNION": "INTERSECT", "EXCEPT": "INTERSECT"},
}


def text(tokens: list[Token]) -> str:
    """The query that tokens spell."""
    return " ".join(token.text for token in tokens)


def near_misses(query: str, schema: Schema) -> Iterator[tuple[str, str]]:
    """Kind and text of every change."""
    tokens = [token for token in tokenize(query) if token.text != ";"]
    for i, token in enumerate(tokens):
        before, after = tokens[:i], tokens[i + 1 :]
        for kind, swaps in _SWAPS.items():
            if (other := swaps.get(token.upper)) and not _is_of_between(tokens, i):
                yield kind, text([*before, Token("word", other), *after])
        if token.upper == "DISTINCT":
            yield "DISTINCT dropped", text([*before, *after])
        if token.upper == "SELECT" and i == 0 and after[0].upper != "DISTINCT":
            yield "DISTINCT added", text([token, Token("word", "DISTINCT"), *after])
        if token.upper == "JOIN" and tokens[i - 1].upper not in ("LEFT", "INNER"):
            yield "LEFT JOIN", text([*before, Token("word", "LEFT"), token, *after])
        if token.upper == "ORDER":
            yield "ORDER BY dropped", text([*before, *_after_clause(tokens, i)])
        if token.kind == "number" and token.text.isdigit():
            yield "off by one", text([*before, Token("number", str(int(token.text) + 1)), *after])
    yield from _conjuncts(tokens)
    yield from _columns(tokens, schema, query)


def _is_of_between(tokens: list[Token], i: int) -> bool:
    return tokens[i].upper == "AND" and any(t.upper == "BETWEEN" for t in tokens[max(0, i - 3) : i])


CLAUSES = {"WHERE", "GROUP", "HAVING", "ORDER", "LIMIT", "UNION", "INTERSECT", "EXCEPT"}


def _after_clause(tokens: list[Token], start: int, *ends: str) -> list[Token]:
    """The tokens after a clause, or what ends it before: the next clause, or one of some words."""
    levels = depths(tokens)
    for i in range(start + 1, len(tokens)):
        is_end = tokens[i].upper in {*CLAUSES, *ends} and not _is_of_between(tokens, i)
        if levels[i] < levels[start] or (levels[i] == levels[start] and is_end):
            return tokens[i:]
    return []


def _conjuncts(tokens: list[Token]) -> Iterator[tuple[str, str]]:
    """One side of an AND in WHERE dropped; one column of several in GROUP BY dropped."""
    clause = ""
    for i, token in enumerate(tokens):
        clause = token.upper if token.upper in {"ON", "SELECT", *CLAUSES} else clause
        if token.upper == "AND" and clause == "WHERE" and not _is_of_between(tokens, i):
            yield "conjunct dropped", text([*tokens[:i], *_after_clause(tokens, i, "AND", "OR")])
        if clause == "GROUP" and token.text == ",":
            yield "GROUP BY column dropped", text([*tokens[:i], *_after_clause(tokens, i, ",")])


def _columns(tokens: list[Token], schema: Schema, query: str) -> Iterator[tuple[str, str]]:
    """Another column of the table with the same type, for each that the query selects."""
    done = set()
    for scope in scan(query, schema).scopes[:1]:
        for place in scope.selected:
            if place in done:
                continue
            done.add(place)
            columns = schema.by_name[place.table].columns
            (kind,) = (c.kind for c in columns if c.name == place.column)
            others = [c.name for c in columns if c.kind == kind and c.name != place.column]
            for i, token in enumerate(tokens):
                if others and token.value.lower() == place.column.lower():
                    other = Token("quoted", f'"{others[0]}"')
                    yield "column", text([*tokens[:i], other, *tokens[i + 1 :]])
                    break


def main() -> None:
    """Measures and writes a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--num-problems", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--show", type=int, default=0, help="undetected changes to print a kind")
    options = parser.parse_args()
    task = load_task("spider", data_dir=options.data_dir)
    judge = task.scorer.__self__  # type: ignore[union-attr]  # the judge's own method
    detected: Counter[str] = Counter()
    num: Counter[str] = Counter()
    missed: dict[str, list[str]] = defaultdict(list)
    for example in task.examples("train", options.num_problems, options.seed):
        db_id, gold = example.metadata["db_id"], example.metadata["query"]
        for kind, query in near_misses(gold, judge.databases.schema(db_id)):
            try:
                judge.executor.run(judge.databases.paths(db_id)[0], query)
            except QueryError:
                continue
            num[kind] += 1
            is_missed = judge.is_right(db_id, gold, query)
            detected[kind] += not is_missed
            if is_missed:
                missed[kind].append(f"{example.id} {db_id}: {query}")
    for kind in num:
        print(f"{kind:25} {num[kind]:5} {100 * detected[kind] / num[kind]:6.1f} %")
        for each in missed[kind][: options.show]:
            print("   ", each)
    if options.json:
        result = {
            "command": "near_misses",
            "config": {"num_problems": options.num_problems, "seed": options.seed},
            "kinds": {kind: {"num": num[kind], "detected": detected[kind]} for kind in num},
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
