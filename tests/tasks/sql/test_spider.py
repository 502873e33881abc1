"""Spider as a task: splits, prompts, and the gold queries' own scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cospec.errors import TaskError
from cospec.tasks import SPLITS, load_task

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
