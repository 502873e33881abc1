"""The words in which a model is asked for a query.

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


def question_text(schema: Schema, question: str) -> str:
    """Schema, request and question."""
    asked = " ".join(question.split())
    return f"SQLite schema:\n{schema.prompt_text()}\n\n{_ASK}\n\nQuestion: {asked}"


def database_of(example: Example) -> str:
    """Return the name of the database that a question is about."""
    return str(example.metadata["db_id"])


def sql_task(name: str, source: Source, judge: Judge, num_shots: int = 3) -> Task:
    """The task of a source of questions and the judge of its databases."""
    return Task(
        name,
        source,
        judge.score,
        chat="{question}",
        plain="{question}\nAnswer:\n",
        num_shots=num_shots,
        max_new_tokens=128,
        stop=("```\n", "\n\n", "\nQuestion:"),
    )
