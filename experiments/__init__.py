"""Measurements, and what fills the tables of the pages from their results."""
