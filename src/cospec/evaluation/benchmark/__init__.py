"""Benchmark: tune every arm alike, then measure all of them on the test split."""
