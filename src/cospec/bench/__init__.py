"""Measuring: arms side by side on the same problems, and the statistics of the comparison."""
