"""The commands beside training, and what only they use."""
