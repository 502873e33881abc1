"""The tiny pair of the evaluations."""

from tests.evaluation.conftest import pair  # noqa: F401
