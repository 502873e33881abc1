"""Names of arms beside those of arbiters: the command line lists them without transformers."""

ASSISTED, ORACLE = "assisted", "oracle"
"""Arms that no arbiter of ours rules on."""
MATCH = "random:match="
"""Before the name of the arm whose share of overrides is taken for a rate."""
