"""Training of the arbiter by reinforcement learning on final answers."""
