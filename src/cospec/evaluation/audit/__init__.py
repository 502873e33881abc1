"""Audit of a pair: play both branches at each mismatch, and what the results say."""
