"""The prompt that asks a model for a query.

The schema comes first and the question last, so that the prompts of one database share the longest
beginning, which a cache can keep.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cospec.tasks.base import Task

if TYPE_CHECKING:
    from cospec.tasks.base import Example, Source
    from cospec.tasks.sql.judge import Judge
    from cospec.tasks.sql.schema import Schema

_ASK = (
    "Answer the question with one SQLite query. Reply with the query in one ```sql block and "
    "nothing else."
)


_QUESTION = "\n\nQuestion: "


def question_text(schema: Schema, question: str) -> str:
    """Return schema, request and question as one text."""
    asked = " ".join(question.split())
    return f"SQLite schema:\n{schema.prompt_text()}\n\n{_ASK}{_QUESTION}{asked}"


def database_of(example: Example) -> str:
    """Return the name of the database that a question is about."""
    return str(example.metadata["db_id"])


def schema_of(example: Example) -> str:
    """Return the question's text up to the question itself, which a database's questions share."""
    text, said, _ = example.question.rpartition(_QUESTION)
    return text + said[:2]


def sql_task(name: str, source: Source, judge: Judge, num_shots: int = 3) -> Task:
    """Return the task of a source of questions and the judge of its databases."""
    return Task(
        name,
        source,
        judge.score,
        chat="{question}",
        plain="{question}\nAnswer:\n",
        num_shots=num_shots,
        beginning=schema_of,
        max_new_tokens=128,
        stop=("```\n", "\n\n", "\nQuestion:"),
    )
