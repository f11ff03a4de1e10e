"""Texts: how they become tokens, when two are the same, and what can be told of one without a model."""
