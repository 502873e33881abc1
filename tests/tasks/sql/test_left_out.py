"""The list of questions that are left out, held against the real data where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import pytest

from cospec.tasks import SPLITS
from cospec.tasks.sql import spider
from cospec.tasks.sql.trivial import why_trivial

if TYPE_CHECKING:
    from pathlib import Path

    from cospec.tasks import Task

DATABASES = ("concert_singer", "dog_kennels", "cinema")


@pytest.fixture(scope="module")
def folder(real_data: Path) -> Path:
    if not (real_data / "spider").is_dir():
        pytest.skip(f"no spider in {real_data}")
    return real_data


@pytest.fixture(scope="module")
def everything(folder: Path) -> Task:
    """The task without the list."""
    with mock.patch.object(spider, "read_left_out", frozenset):
        return spider.spider(folder)


def test_the_list_is_what_the_fillings_leave_out(everything: Task) -> None:
    judge = everything.scorer.__self__  # type: ignore[union-attr]
    listed = spider.read_left_out()
    queries = {
        (e.metadata["db_id"], e.metadata["query"])
        for split in SPLITS
        for e in everything.examples(split)
        if e.metadata["db_id"] in DATABASES
    }
    assert len(queries) > 50
    for db_id, query in queries:
        is_listed = spider.question_hash({"db_id": db_id, "query": query}) in listed
        assert is_listed is (why_trivial(judge, db_id, query) is not None), query


def test_the_real_splits_have_their_databases_and_most_of_their_questions(
    folder: Path, everything: Task
) -> None:
    task = spider.spider(folder)
    databases = [{e.metadata["db_id"] for e in task.examples(split)} for split in SPLITS]
    assert [len(names) for names in databases] == [110, 10, 40]
    assert len(set.union(*databases)) == 160
    for split in SPLITS:
        assert 0.97 < len(task.examples(split)) / len(everything.examples(split)) <= 1
