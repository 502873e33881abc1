"""The tiny pair and the task of the evaluations."""

from tests.evaluation.conftest import pair, task  # noqa: F401
