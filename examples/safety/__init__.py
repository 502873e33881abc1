"""Prompts that tell what an arbiter does to refusals and to orders on format (docs/safety.md)."""
