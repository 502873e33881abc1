"""Text-to-SQL: questions about a database, answered by a query that is judged by running it.

From a question to its score: `prompt` shows the schema and asks, `extract` finds the query in the
answer, `executor` runs it in a `worker` process, and `compare` holds its results against the gold
query's. `judge` does all of this on each database of the schema. `filling` makes databases for
schemas without any.
"""
