"""Spider as a task: splits, prompts, and the gold queries' own scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cospec.errors import TaskError
from cospec.tasks import SPLITS, load_task
from cospec.tasks.files import read_rows

from ..conftest import write_lines

if TYPE_CHECKING:
    from pathlib import Path

    from cospec.tasks import Task


def databases(task: Task, split: Any) -> set[str]:
    return {example.metadata["db_id"] for example in task.examples(split)}


def test_no_database_is_in_two_splits(spider: Task) -> None:
    train, tune, test = (databases(spider, split) for split in SPLITS)
    assert (len(train), len(tune), len(test)) == (10, 10, 21)
    assert not (train & tune or train & test or tune & test)


def test_the_test_part_is_the_development_file_or_the_databases_held_back(
    spider_dir: Path,
) -> None:
    dev = load_task("spider,part=dev", data_dir=spider_dir)
    train = load_task("spider,part=train", data_dir=spider_dir)
    assert databases(dev, "test") == {"concerts"}
    assert len(databases(train, "test")) == 20
    assert databases(dev, "train") == databases(train, "train")
    with pytest.raises(TaskError, match="unknown part of spider 'deev'; did you mean 'dev'"):
        load_task("spider,part=deev", data_dir=spider_dir)


TRIVIAL = {
    "Any singer.": "SELECT name FROM singer LIMIT 1",
    "Countries with a singer.": "SELECT country FROM singer GROUP BY country HAVING count(*)  >  0",
    "Nothing.": "SELECT nothing FROM singer",
}


def test_questions_of_the_whole_development_file_are_judged_when_it_is_loaded(
    spider_dir: Path,
) -> None:
    """Found: the list that ships does not know half of them, which were never judged."""
    even = spider_dir / "spider/dev_even.jsonl"
    rows = [
        {"db_id": "concerts", "question": question, "query": query}
        for question, query in TRIVIAL.items()
    ]
    write_lines(even, [*read_rows(even), *rows])
    assert questions(load_task("spider,part=dev", data_dir=spider_dir)) >= set(TRIVIAL)
    even.rename(even.with_name("dev.jsonl"))
    found = questions(load_task("spider,part=dev", data_dir=spider_dir))
    assert not found & set(TRIVIAL)
    assert "Who is older than 30?" in found


def questions(task: Task) -> set[str]:
    return {example.metadata["question"] for example in task.examples("test")}


@pytest.mark.parametrize("part", ["train", "dev_even"])
def test_a_database_without_a_schema_is_named_with_file_and_row(
    part: str, spider_dir: Path
) -> None:
    """Found: a KeyError."""
    path = spider_dir / f"spider/{part}.jsonl"
    rows = read_rows(path)
    write_lines(path, [rows[0], {**rows[1], "db_id": "bank"}])
    with pytest.raises(TaskError, match=rf"spider/{part}/1: the field 'db_id' is 'bank'"):
        load_task("spider", data_dir=spider_dir)


def test_every_gold_query_and_its_rewriting_are_right(spider: Task) -> None:
    for split in SPLITS:
        for example in spider.examples(split):
            assert spider.score(example, f"```sql\n{example.answer}\n```").correct, example.answer
            assert spider.score(example, example.metadata["solution"]).correct, example.answer


def test_the_schema_begins_the_prompt_and_the_question_ends_it(
    spider: Task, chat_tokenizer: Any, plain_tokenizer: Any
) -> None:
    (example,) = (e for e in spider.examples("test") if "youngest" in e.question)
    spider.prompt(example, chat_tokenizer)
    message = chat_tokenizer.messages[0]["content"]
    assert message.startswith(
        "SQLite schema:\nCREATE TABLE singer "
        "(singer_id NUMERIC PRIMARY KEY, name TEXT, country TEXT, age NUMERIC);\n"
    )
    assert "FOREIGN KEY (singer_id) REFERENCES singer(singer_id), " in message
    assert message.endswith("Question: The youngest singer.")
    plain = spider.prompt(example, plain_tokenizer)
    assert isinstance(plain, str)
    assert plain.count("```sql\nSELECT") == 3
    assert plain.endswith("Question: The youngest singer.\nAnswer:\n")
