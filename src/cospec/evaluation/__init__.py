"""Evaluation: run arms on the same problems and compare them, with statistics."""
