"""Names of arms beside those of arbiters: the command line lists them without transformers."""

ASSISTED, ORACLE = "assisted", "oracle"
"""Arms without one of our arbiters."""
MATCH = "random:match="
"""Prefix of the name of the arm whose share of overrides is taken as a rate."""
