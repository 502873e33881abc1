"""Audit of a pair: both branches at each mismatch are played, and the results summarized."""
